// KL(P || Q) of windows of a histogram, as src/fewbit/calibrate/entropy.py defines it.
//
// Layout: running sums mass, filled and h_log_h [bins + 1] of the counts histogram[bins]; windows [start,
// stop) -> out. Cost: per window and level two lookups and a logarithm, some 4 ns. Why a logarithm of our
// own: it is vector code, and the same bits on every instruction set, where each library has its own last
// digit. Why eight sums: they are what makes the loop over levels vector code, and their order is fixed.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "dispatch.h"

namespace fewbit {
namespace {

constexpr int64_t kSums = 8;

/// Natural logarithm of a positive normal number, to about 2e-16 relative or absolute.
inline double natural_log(double x) {
  constexpr double kLog2 = 0.69314718055994530942, kSqrt2 = 1.41421356237309504880;
  constexpr double kExponentBase = 4503599627370496.0 + 1023.0;  // 2^52 + bias
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  uint64_t exponent_bits = bits >> 52 | 0x4330000000000000u,
           mantissa_bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u;
  double exponent, m;
  std::memcpy(&exponent, &exponent_bits, sizeof exponent);
  std::memcpy(&m, &mantissa_bits, sizeof m);
  exponent -= kExponentBase;
  const bool is_upper = m > kSqrt2;
  m = is_upper ? 0.5 * m : m;
  exponent = is_upper ? exponent + 1.0 : exponent;
  const double s = (m - 1.0) / (m + 1.0), z = s * s;  // log m = 2 artanh s, |s| < 0.172
  double series = 1.0 / 23;
  for (int k = 21; k >= 3; k -= 2) series = series * z + 1.0 / k;
  return exponent * kLog2 + 2.0 * (s + s * z * series);
}

/// x log x, 0 for 0.
inline double x_log_x(double x) { return x > 0.0 ? x * natural_log(x) : 0.0; }

/// The levels of one window: counts g, counts with outliers m, filled bins n. Scratch holds 3 * levels
/// values.
struct Levels {
  double *g, *m, *n;
};

inline void fill_levels(const Histogram& h, int64_t start, int64_t stop, int64_t levels, const Levels& to) {
  const int64_t bins = stop - start, whole = bins / levels, rest = bins % levels;
  int64_t from = start, carried = levels - 1;  // level g begins at ceil(g bins / levels)
  for (int64_t level = 0; level < levels; ++level) {
    int64_t until = from + whole;
    carried += rest;
    if (carried >= levels) {
      carried -= levels;
      ++until;
    }
    to.g[level] = h.mass[until] - h.mass[from];
    to.n[level] = h.filled[until] - h.filled[from];
    to.m[level] = to.g[level];
    from = until;
  }
}

/// Folds the outliers of one end into its level; gives what that adds to the sum of p log p.
inline double fold(const Histogram& h, int64_t end, double outliers, int64_t level, const Levels& to) {
  const double own = h.counts[end];
  to.m[level] += outliers;
  if (own == 0.0 && outliers > 0.0) to.n[level] += 1.0;
  return x_log_x(own + outliers) - x_log_x(own);
}

inline double divergence(const Histogram& h, int64_t start, int64_t stop, int64_t levels, double smoothing,
                         double* scratch) {
  const Levels at{scratch, scratch + levels, scratch + 2 * levels};
  const double inside = h.mass[stop] - h.mass[start], total = h.mass[h.bins];
  if (!(inside > 0.0)) return std::numeric_limits<double>::infinity();
  fill_levels(h, start, stop, levels, at);
  double p_log_p = h.h_log_h[stop] - h.h_log_h[start];
  p_log_p += fold(h, start, h.mass[start], 0, at);
  p_log_p += fold(h, stop - 1, total - h.mass[stop], levels - 1, at);
  double filled = 0.0;  // whole numbers: their order is free
  for (int64_t k = 0; k < levels; ++k) filled += at.n[k];
  const double scale = (1.0 - smoothing) / inside, floor = smoothing / filled;
  double sums[kSums] = {};
  int64_t k = 0;
  for (; k + kSums <= levels; k += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      const double n = at.n[k + j] > 1.0 ? at.n[k + j] : 1.0;
      sums[j] += at.m[k + j] * natural_log(at.g[k + j] * scale / n + floor);
    }
  }
  for (int64_t j = 0; k < levels; ++k, ++j) {
    const double n = at.n[k] > 1.0 ? at.n[k] : 1.0;
    sums[j] += at.m[k] * natural_log(at.g[k] * scale / n + floor);
  }
  const double m_log_q =
      ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  return (p_log_p - m_log_q) / total - natural_log(total);
}

void kl_divergences(const Histogram& h, const int64_t* start, const int64_t* stop, int64_t windows,
                    int64_t levels, double smoothing, double* scratch, double* out) {
  for (int64_t w = 0; w < windows; ++w) out[w] = divergence(h, start[w], stop[w], levels, smoothing, scratch);
}

void log_sums(const double* counts, int64_t bins, double* h_log_h) {
  h_log_h[0] = 0.0;
  for (int64_t k = 0; k < bins; ++k) h_log_h[k + 1] = h_log_h[k] + x_log_x(counts[k]);
}

}  // namespace
}  // namespace fewbit
