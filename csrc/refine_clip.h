// Moves the two ends of each row's clip, each by itself, while that makes the squared error smaller.
//
// Layout: x[rows][cols], moves[n]; lo[rows] and hi[rows] hold a clip on entry, a better one on return. A
// round tries every factor of `moves` on the lower end (no further than the row's own range), takes the best,
// and does the same with the upper end; a row whose error fell below `worth_another` of what it was has
// another round. Cost: as csrc/mse_search.h for 2 n candidates a round, whose loops these are. Asymmetric
// codes only.
#pragma once

#include <cstdint>
#include <limits>

#include "mse_search.h"
#include "types.h"

namespace fewbit {
namespace {

/// The clip [lo, hi] as candidate j; false if its scale is subnormal or infinite.
inline bool set_clip(Clips& clips, int64_t j, Range clip, Bounds bounds) {
  const float qmin = static_cast<float>(bounds.qmin), qmax = static_cast<float>(bounds.qmax);
  const float scale = (clip.hi - clip.lo) / (qmax - qmin);
  const bool usable =
      scale >= std::numeric_limits<float>::min() && scale <= std::numeric_limits<float>::max();
  const float zero_point = usable ? round_clamped(qmin - clip.lo / scale, qmin, qmax) : 0.0f;
  clips.scale[j] = usable ? scale : 1.0f;
  clips.least[j] = qmin - zero_point;
  clips.most[j] = qmax - zero_point;
  return usable;
}

/// A row, its best clip so far and that clip's error.
struct Search {
  const float* x;
  int64_t n;
  Range range, best;
  double error;
};

/// Takes the best of up to kLanes clips if it is better than the best so far.
inline void consider(Search& search, const Range* tried, int64_t count, Bounds bounds) {
  Clips clips;
  bool usable[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) usable[j] = set_clip(clips, j, tried[j < count ? j : 0], bounds);
  double total[kLanes] = {};
  add_errors(search.x, search.n, clips, total);
  for (int64_t j = 0; j < count; ++j) {
    const double scale = static_cast<double>(clips.scale[j]), error = total[j] * scale * scale;
    if (usable[j] && error < search.error) {
      search.error = error;
      search.best = tried[j];
    }
  }
}

inline void move_one_end(Search& search, bool lower, const float* moves, int64_t n_moves, Bounds bounds) {
  const Range from = search.best;
  for (int64_t t = 0; t < n_moves; t += kLanes) {
    const int64_t count = n_moves - t < kLanes ? n_moves - t : kLanes;
    Range tried[kLanes];
    for (int64_t j = 0; j < count; ++j) {
      const float lo = from.lo * moves[t + j], hi = from.hi * moves[t + j];
      tried[j] = lower ? Range{lo > search.range.lo ? lo : search.range.lo, from.hi}
                       : Range{from.lo, hi < search.range.hi ? hi : search.range.hi};
    }
    consider(search, tried, count, bounds);
  }
}

void refine_clip_rows(const float* x, Shape shape, const float* moves, int64_t n_moves, int rounds,
                      float worth_another, Bounds bounds, float* lo, float* hi) {
  for (int64_t r = 0; r < shape.rows; ++r, x += shape.cols) {
    Search search{x,
                  shape.cols,
                  range_to_clip(x, shape.cols, false),
                  {lo[r], hi[r]},
                  std::numeric_limits<double>::infinity()};
    if (search.range.lo == 0.0f && search.range.hi == 0.0f) continue;
    consider(search, &search.best, 1, bounds);
    double before = std::numeric_limits<double>::infinity();
    for (int round = 0; round < rounds; ++round) {
      if (round > 0 && !(search.error < static_cast<double>(worth_another) * before)) break;
      before = search.error;
      move_one_end(search, true, moves, n_moves, bounds);
      move_one_end(search, false, moves, n_moves, bounds);
    }
    lo[r] = search.best.lo;
    hi[r] = search.best.hi;
  }
}

}  // namespace
}  // namespace fewbit
