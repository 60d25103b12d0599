// Counts of values in equal bins around zero, row by row.
//
// Layout: x[rows][cols] -> counts[rows][bins] (added to); bin = floor(x * inv_width) + bins / 2, clipped to
// the ends. Each bin is half open, [k, k + 1) * width. Cost: one pass; the bin numbers of a block are vector
// code, the counting is one addition a value. Why a long row goes through small tables first, which are added
// up and cleared as far as values fell into them: counters of 64 bits do not fit the first-level cache. Why
// four tables: activations repeat (a ReLU's zeros all fall into one bin), and an addition to a counter that
// was just written waits for that write, so neighbours count in different ones. Where one instruction packs a
// vector's chosen lanes (AVX-512), zeros are counted by a population count instead, and the others in a
// single table of 16 bits: that it stays in the cache is worth more than the waiting of the few neighbours
// that are alike.
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
constexpr int64_t kValuesABin = 2;  // of a row that is worth a table

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

/// A long row of fewer than 2^32 values: through kSubHistograms tables of 32-bit counters, all 0 before and
/// after.
inline void count_in_tables(const float* x, int64_t n, float inv_width, int64_t bins, uint32_t* scratch,
                            int64_t* counts) {
  uint32_t *a = scratch, *b = a + bins, *c = b + bins, *d = c + bins;
  int32_t bin[kBlock], first = static_cast<int32_t>(bins), last = -1;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t block = n - i < kBlock ? n - i : kBlock;
    bin_numbers(x + i, block, inv_width, bins, bin);
    for (int64_t k = 0; k < block; ++k) {
      first = bin[k] < first ? bin[k] : first;
      last = bin[k] > last ? bin[k] : last;
    }
    int64_t k = 0;
    for (; k + 4 <= block; k += 4) {
      ++a[bin[k]];
      ++b[bin[k + 1]];
      ++c[bin[k + 2]];
      ++d[bin[k + 3]];
    }
    for (; k < block; ++k) ++a[bin[k]];
  }
  for (int64_t k = first; k <= last; ++k) {
    counts[k] += static_cast<int64_t>(a[k]) + b[k] + static_cast<int64_t>(c[k]) + d[k];
    a[k] = b[k] = c[k] = d[k] = 0;
  }
}

#if defined(__AVX512F__)

constexpr int64_t kNarrowBins = int64_t{1} << 16;

/// The bins that values were counted in since the table was cleared; none at first.
struct Span {
  __m512i first, last;
};

/// Bin numbers of those of up to kBlock values that are not 0, for at most kNarrowBins bins; returns how many
/// there are. `out` has room for 16 more.
inline int64_t bin_numbers_but_zeros(const float* x, int64_t n, float inv_width, int64_t bins, uint16_t* out,
                                     Span& span) {
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
    const __m512i floor = _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512i bin = _mm512_add_epi32(floor, _mm512_set1_epi32(middle));
    span.first = _mm512_mask_min_epi32(span.first, other, span.first, bin);
    span.last = _mm512_mask_max_epi32(span.last, other, span.last, bin);
    const __m512i packed = _mm512_maskz_compress_epi32(other, bin);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + count), _mm512_cvtepi32_epi16(packed));
    count += __builtin_popcount(other);
  }
  return count;
}

/// Adds a table to the counts and clears it.
inline void take_over(uint16_t* table, Span& span, int64_t bins, int64_t* counts) {
  const int32_t first = _mm512_reduce_min_epi32(span.first), last = _mm512_reduce_max_epi32(span.last);
  for (int64_t k = first; k <= last; ++k) counts[k] += table[k];
  if (first <= last) std::memset(table + first, 0, static_cast<size_t>(last - first + 1) * sizeof *table);
  span = {_mm512_set1_epi32(static_cast<int32_t>(bins)), _mm512_set1_epi32(-1)};
}

/// A long row with at most kNarrowBins bins: its zeros apart, the others through a table of 16-bit counters,
/// all 0 before and after.
inline void count_but_zeros(const float* x, int64_t n, float inv_width, int64_t bins, uint16_t* table,
                            int64_t* counts) {
  constexpr int64_t kCounterHolds = 65535;
  Span span{_mm512_set1_epi32(static_cast<int32_t>(bins)), _mm512_set1_epi32(-1)};
  uint16_t bin[kBlock + 16];
  int64_t zeros = 0, held = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t values = n - i < kBlock ? n - i : kBlock;
    const int64_t block = bin_numbers_but_zeros(x + i, values, inv_width, bins, bin, span);
    zeros += values - block;
    held += block;
    for (int64_t k = 0; k < block; ++k) ++table[bin[k]];
    if (held + kBlock > kCounterHolds) {
      take_over(table, span, bins, counts);
      held = 0;
    }
  }
  take_over(table, span, bins, counts);
  counts[bins / 2] += zeros;
}

#endif

/// A row whose values are many beside its bins.
inline void count_long(const float* x, int64_t n, float inv_width, int64_t bins, void* scratch,
                       int64_t* counts) {
#if defined(__AVX512F__)
  if (bins <= kNarrowBins)
    return count_but_zeros(x, n, inv_width, bins, static_cast<uint16_t*>(scratch), counts);
#endif
  constexpr int64_t kCounterHolds = int64_t{1} << 31;
  for (int64_t i = 0; i < n; i += kCounterHolds) {
    const int64_t part = n - i < kCounterHolds ? n - i : kCounterHolds;
    count_in_tables(x + i, part, inv_width, bins, static_cast<uint32_t*>(scratch), counts);
  }
}

void histogram_rows(const float* x, Shape shape, const float* inv_width, int64_t bins, void* scratch,
                    int64_t* counts) {
  for (int64_t r = 0; r < shape.rows; ++r, x += shape.cols, counts += bins) {
    if (shape.cols >= kValuesABin * bins) {
      count_long(x, shape.cols, inv_width[r], bins, scratch, counts);
    } else {
      count_directly(x, shape.cols, inv_width[r], bins, counts);
    }
  }
}

}  // namespace
}  // namespace fewbit
