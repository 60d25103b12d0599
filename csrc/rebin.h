// Counts of a histogram around zero after its range doubled some times: bin j from the middle goes to floor(j
// / 2^k).
//
// Layout: counts[rows][bins] in place, doublings[rows]. Cost: one pass over the counts of a row that grew.
// Why in place: a bin never moves away from the middle, so that each half can be walked from there.
#pragma once

#include <cstdint>

#include "types.h"

namespace fewbit {
namespace {

inline void rebin_row(int64_t* counts, int64_t bins, int64_t doublings) {
  const int64_t half = bins / 2, above = bins - half;
  const int64_t shift = doublings < 62 ? doublings : 62;
  int64_t* middle = counts + half;
  for (int64_t j = 1; j < above; ++j) {  // bin 0 stays
    const int64_t count = middle[j];
    middle[j] = 0;
    middle[j >> shift] += count;
  }
  for (int64_t j = -2; j >= -half; --j) {  // bin -1 stays
    const int64_t count = middle[j];
    middle[j] = 0;
    middle[j >> shift] += count;
  }
}

void rebin_rows(int64_t* counts, Shape shape, const int64_t* doublings) {
  for (int64_t r = 0; r < shape.rows; ++r, counts += shape.cols) {
    if (doublings[r] > 0 && shape.cols > 1) rebin_row(counts, shape.cols, doublings[r]);
  }
}

}  // namespace
}  // namespace fewbit
