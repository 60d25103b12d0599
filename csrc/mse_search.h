// The clip of every row that quantizes it with the smallest squared error, by trying given fractions of its
// range.
//
// Layout: x[rows][cols], candidates[n] -> lo[rows], hi[rows]. A row is a quantization block.
// Cost: rows * cols * n evaluations of eight float instructions, sixteen candidates at a time; a row is read
// n / 16 times. Why a lane holds a candidate and not a value: a short row (a group of 32) then needs no sum
// across lanes, the scales of sixteen candidates cost one vector division, and each sum runs over the row in
// its own order, so that every instruction set computes the same errors and takes the same choice. Why the
// error is summed in units of the scale: (x / s - q)^2 is of moderate size whatever x is, where (x - s q)^2
// would overflow or vanish for extreme x; the sum is multiplied by s^2 in double at the end. The reciprocal
// of the scale is good enough to choose a clip; the codes are computed elsewhere with a true division.
#pragma once

#include <cstdint>
#include <limits>

#include "minmax.h"
#include "quantize.h"
#include "types.h"

namespace fewbit {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 256;  // values summed in float before the sum goes on in double

/// Sixteen candidates for one row: scale and bounds of code minus zero point.
struct Clips {
  float scale[kLanes], least[kLanes], most[kLanes];
};

/// The row's range: mirrored around zero (symmetric) or stretched to hold it; NaN if a value is.
struct Range {
  float lo, hi;
};

inline Range range_to_clip(const float* x, int64_t n, bool symmetric) {
  float range[2];
  minmax_rows(x, Float::f32, {1, n}, range);
  const float lo = range[0] > 0.0f ? 0.0f : range[0], hi = range[1] < 0.0f ? 0.0f : range[1];
  const float amax = -lo > hi ? -lo : hi;
  return symmetric ? Range{-amax, amax} : Range{lo, hi};
}

/// Symmetric: scale = p amax / qmax (one bit has codes -1 and 0: / -qmin), zero point 0.
/// Asymmetric: scale = p (hi - lo) / (qmax - qmin), zero point = clamp(round(qmin - p lo / scale)).
inline Clips clips_of(Range range, const float* fractions, bool symmetric, Bounds bounds) {
  const float qmin = static_cast<float>(bounds.qmin), qmax = static_cast<float>(bounds.qmax);
  const float levels = symmetric ? (qmax > 0.0f ? qmax : -qmin) : qmax - qmin;
  Clips clips;
  for (int64_t j = 0; j < kLanes; ++j) {
    const float lo = range.lo * fractions[j], hi = range.hi * fractions[j];
    const float scale = (symmetric ? hi : hi - lo) / levels;
    const float zero_point = symmetric ? 0.0f : round_clamped(qmin - lo / scale, qmin, qmax);
    clips.scale[j] = scale;
    clips.least[j] = qmin - zero_point;
    clips.most[j] = qmax - zero_point;
  }
  return clips;
}

/// The squared error of a value under a clip, in units of its scale squared.
inline float squared_error(float x, float inverse, float least, float most) {
  const float v = x * inverse;
  const float error = v - round_clamped(v, least, most);
  return error * error;
}

/// Adds to total[j] the squared errors of n values under clip j, in units of its scale squared.
inline void add_errors(const float* x, int64_t n, const Clips& clips, double* total) {
  float inverse[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) inverse[j] = 1.0f / clips.scale[j];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = n - begin < kChunk ? n : begin + kChunk;
    float sum[kLanes] = {};
    const auto next = [&](int64_t i, int64_t j, float s) {
      return s + squared_error(x[i], inverse[j], clips.least[j], clips.most[j]);
    };
    int64_t i = begin;
    // Four values at a time: compilers keep `sum` in memory, and a value would wait for the one before it.
    for (; i + 4 <= end; i += 4) {
#pragma omp simd  // this loop and not the one around it, which a compiler would otherwise choose
      for (int64_t j = 0; j < kLanes; ++j)
        sum[j] = next(i + 3, j, next(i + 2, j, next(i + 1, j, next(i, j, sum[j]))));
    }
    for (; i < end; ++i) {
#pragma omp simd
      for (int64_t j = 0; j < kLanes; ++j) sum[j] = next(i, j, sum[j]);
    }
    for (int64_t j = 0; j < kLanes; ++j) total[j] += static_cast<double>(sum[j]);
  }
}

/// Index of the best candidate; 0 if none has a normal scale (the row is then too small, or not finite).
inline int64_t best_candidate(const float* x, int64_t n, Range range, const float* candidates,
                              int64_t n_candidates, bool symmetric, Bounds bounds) {
  constexpr float kSmallestNormal = std::numeric_limits<float>::min(),
                  kLargest = std::numeric_limits<float>::max();
  int64_t best = 0;
  double least_error = std::numeric_limits<double>::infinity();
  for (int64_t t = 0; t < n_candidates; t += kLanes) {
    const int64_t used = n_candidates - t < kLanes ? n_candidates - t : kLanes;
    float fractions[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) fractions[j] = candidates[t + (j < used ? j : 0)];
    const Clips clips = clips_of(range, fractions, symmetric, bounds);
    double total[kLanes] = {};
    add_errors(x, n, clips, total);
    for (int64_t j = 0; j < used; ++j) {
      const double scale = static_cast<double>(clips.scale[j]);
      const bool usable = clips.scale[j] >= kSmallestNormal && clips.scale[j] <= kLargest;
      if (usable && total[j] * scale * scale < least_error) {
        least_error = total[j] * scale * scale;
        best = t + j;
      }
    }
  }
  return best;
}

void mse_search_rows(const float* x, Shape shape, const float* candidates, int64_t n_candidates,
                     bool symmetric, Bounds bounds, float* lo, float* hi) {
  for (int64_t r = 0; r < shape.rows; ++r, x += shape.cols) {
    const Range range = range_to_clip(x, shape.cols, symmetric);
    float p = 0.0f;
    if (range.lo != 0.0f || range.hi != 0.0f) {
      p = candidates[best_candidate(x, shape.cols, range, candidates, n_candidates, symmetric, bounds)];
    }
    lo[r] = range.lo * p;
    hi[r] = range.hi * p;
  }
}

}  // namespace
}  // namespace fewbit
