// Counts of values in equal bins around zero, row by row.
//
// Layout: x[rows][cols] -> counts[rows][bins] (added to); bin = floor(x * inv_width) + bins / 2, clipped to
// the ends. Each bin is half open, [k, k + 1) * width. Cost: one pass; the bin numbers of a block are vector
// code, the counting is one addition a value. Why four sub-histograms: activations repeat (a ReLU's zeros all
// fall into one bin), and an addition to a counter that was just written waits for that write. Neighbours
// therefore count in different tables; the tables are added up at the end, which pays once a row has several
// values a bin. Where one instruction packs a vector's chosen lanes (AVX-512), zeros are counted by a
// population count and only the others go through the tables.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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

#if defined(__AVX512F__)

/// Bin numbers of those of up to kBlock values that are not 0; returns how many there are. `out` has room for
/// 16 more.
inline int64_t bin_numbers_but_zeros(const float* x, int64_t n, float inv_width, int64_t bins, int32_t* out) {
  const int32_t middle = static_cast<int32_t>(bins / 2);
  const __m512 lo = _mm512_set1_ps(static_cast<float>(-middle));
  const __m512 hi = _mm512_set1_ps(static_cast<float>(bins - 1 - middle));
  const __m512 factor = _mm512_set1_ps(inv_width);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 some = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xFFFFu);
    const __m512 values = _mm512_maskz_loadu_ps(some, x + i);
    const __mmask16 other = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    // A NaN goes to the first bin: of two operands of which one is a NaN the instruction takes the second.
    const __m512 v = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(values, factor), lo), hi);
    const __m512i truncated = _mm512_cvttps_epi32(v);
    const __mmask16 above = _mm512_cmp_ps_mask(v, _mm512_cvtepi32_ps(truncated), _CMP_LT_OQ);
    const __m512i floor = _mm512_mask_sub_epi32(truncated, above, truncated, _mm512_set1_epi32(1));
    const __m512i bin = _mm512_add_epi32(floor, _mm512_set1_epi32(middle));
    _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(other, bin));
    count += __builtin_popcount(other);
  }
  return count;
}

constexpr int64_t kTables = 2;  // without the zeros few neighbours are alike

#else

constexpr int64_t kTables = kSubHistograms;

inline int64_t bin_numbers_but_zeros(const float* x, int64_t n, float inv_width, int64_t bins, int32_t* out) {
  bin_numbers(x, n, inv_width, bins, out);
  return n;
}

#endif

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
  uint32_t *a = scratch, *b = a + bins, *c = kTables > 2 ? b + bins : a, *d = kTables > 2 ? c + bins : b;
  std::memset(scratch, 0, static_cast<size_t>(kTables * bins) * sizeof *scratch);
  int32_t bin[kBlock + 16];
  int64_t zeros = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t values = n - i < kBlock ? n - i : kBlock;
    const int64_t block = bin_numbers_but_zeros(x + i, values, inv_width, bins, bin);
    zeros += values - block;
    int64_t k = 0;
    for (; k + 4 <= block; k += 4) {
      ++a[bin[k]];
      ++b[bin[k + 1]];
      ++c[bin[k + 2]];
      ++d[bin[k + 3]];
    }
    for (; k < block; ++k) ++a[bin[k]];
  }
  counts[bins / 2] += zeros;
  for (int64_t k = 0; k < bins; ++k) {
    counts[k] += static_cast<int64_t>(a[k]) + b[k] + (kTables > 2 ? static_cast<int64_t>(c[k]) + d[k] : 0);
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
