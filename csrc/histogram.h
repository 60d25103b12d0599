// Counts of values in equal bins around zero, row by row.
//
// Layout: x[rows][cols] -> counts[rows][bins] (added to); bin = floor(x * inv_width) + bins / 2, clipped to
// the ends. Each bin is half open, [k, k + 1) * width. Cost: one pass; the bin numbers of a block are vector
// code, the counting is one addition a value. Why four sub-histograms: activations repeat (a ReLU's zeros all
// fall into one bin), and an addition to a counter that was just written waits for that write. Neighbours
// therefore count in different tables; the tables are added up at the end, which pays once a row has several
// values a bin.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace fewbit {
namespace {

constexpr int64_t kBlock = 1024;

/// Bin numbers of up to kBlock values. Clipping comes first (as floats: no overflow), then floor by
/// truncation.
inline void bin_numbers(const float* x, int64_t n, float inv_width, int64_t bins, int32_t* out) {
  const int32_t middle = static_cast<int32_t>(bins / 2);
  const float lo = static_cast<float>(-middle), hi = static_cast<float>(bins - 1 - middle);
  for (int64_t i = 0; i < n; ++i) {
    float v = x[i] * inv_width;
    v = v > lo ? v : lo;  // a NaN goes to the first bin
    v = v < hi ? v : hi;
    const int32_t truncated = static_cast<int32_t>(v);
    out[i] = truncated - (v < static_cast<float>(truncated) ? 1 : 0) + middle;
  }
}

/// A short row: straight into its counts.
inline void count_directly(const float* x, int64_t n, float inv_width, int64_t bins, int64_t* counts) {
  int32_t bin[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t block = n - i < kBlock ? n - i : kBlock;
    bin_numbers(x + i, block, inv_width, bins, bin);
    for (int64_t k = 0; k < block; ++k) ++counts[bin[k]];
  }
}

/// A long row of fewer than 2^32 values: through kSubHistograms tables of 32-bit counters.
inline void count_in_tables(const float* x, int64_t n, float inv_width, int64_t bins, uint32_t* scratch,
                            int64_t* counts) {
  uint32_t *a = scratch, *b = a + bins, *c = b + bins, *d = c + bins;
  std::memset(scratch, 0, static_cast<size_t>(kSubHistograms * bins) * sizeof *scratch);
  int32_t bin[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t block = n - i < kBlock ? n - i : kBlock;
    bin_numbers(x + i, block, inv_width, bins, bin);
    int64_t k = 0;
    for (; k + 4 <= block; k += 4) {
      ++a[bin[k]];
      ++b[bin[k + 1]];
      ++c[bin[k + 2]];
      ++d[bin[k + 3]];
    }
    for (; k < block; ++k) ++a[bin[k]];
  }
  for (int64_t k = 0; k < bins; ++k) {
    counts[k] += static_cast<int64_t>(a[k]) + b[k] + c[k] + d[k];
  }
}

void histogram_rows(const float* x, Shape shape, const float* inv_width, int64_t bins, uint32_t* scratch,
                    int64_t* counts) {
  constexpr int64_t kCounterHolds = int64_t{1} << 31;
  const bool is_long = shape.cols >= 2 * bins;
  for (int64_t r = 0; r < shape.rows; ++r, x += shape.cols, counts += bins) {
    if (!is_long) {
      count_directly(x, shape.cols, inv_width[r], bins, counts);
      continue;
    }
    for (int64_t i = 0; i < shape.cols; i += kCounterHolds) {
      const int64_t part = shape.cols - i < kCounterHolds ? shape.cols - i : kCounterHolds;
      count_in_tables(x + i, part, inv_width[r], bins, scratch, counts);
    }
  }
}

}  // namespace
}  // namespace fewbit
