// softmax(scale Q K^T) V in bfloat16 for one head: the attention of passes over calibration data, where torch
// takes a matrix product that a Zen 4 runs at a quarter of its speed.
//
// Layout: rows of Q, K, V and of the output are anywhere, the values of one side by side. K is packed as
// [blocks of 16 keys][pairs along the width][16 keys][2], V as [blocks of 16 columns][pairs of keys][16][2],
// zeros behind the ends; Q and the softmax's shares stay in rows, of which a pair is broadcast. 32 queries
// meet 256 keys at a time, whose scores stay in the first two caches; what is kept of earlier keys is scaled
// when a larger score comes (arXiv 2112.05682, arXiv 2205.14135). 32 keys that the mask hides from all 32
// queries are skipped. Scores, exponentials and sums are float32 in a fixed order; shares are rounded to
// bfloat16 before they meet V, as torch's are, and their sum, which they are divided by, is one of rounded
// shares. Cost: 32 products an instruction, 16 sums in registers.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "pairs.h"

namespace fewbit {
namespace {

#if defined(FEWBIT_PAIRS) && !defined(__AMX_BF16__)

inline constexpr int64_t kQueries = kAttentionQueries, kKeys = kAttentionKeys;
inline constexpr int64_t kStep = 32;  // keys, or columns of V, that are two vectors of sums
inline constexpr int64_t kGroup = 8;  // queries whose sums are in registers
inline constexpr float kLog2E = 1.44269504f;

inline int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline __mmask32 first_values(int64_t n) {
  return n >= 32 ? ~static_cast<__mmask32>(0) : n <= 0 ? 0u : static_cast<__mmask32>((1u << n) - 1u);
}

/// 2^x for x <= 0, NaN for NaN; a relative error of 2e-7 (the polynomial of Cephes' exp2f).
inline __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // a NaN stays
  const __m512 whole = _mm512_roundscale_ps(x, 0);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.535336188e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.339887440e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618437358e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550332471e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402264791e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472029e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

/// Rounded to bfloat16, ties to even, in the upper halves.
inline __m512i rounded_halves(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                               _mm512_set1_epi32(0x7FC00000));
}

inline __m256i upper_halves(__m512i bits) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)); }

void attention_pack_keys(const AttentionHead& h, uint16_t* to) {
  const int64_t width = up_to(h.width, kStep);
  for (int64_t key = 0; key < up_to(h.keys, kStep); key += 16) {
    for (int64_t d = 0; d < width; d += 32, to += 512) {
      __m512i rows[16], columns[16];
      for (int64_t i = 0; i < 16; ++i) {
        const bool there = key + i < h.keys;
        rows[i] = _mm512_maskz_loadu_epi16(there ? first_values(h.width - d) : 0u,
                                           h.key + (there ? key + i : 0) * h.key_row + d);
      }
      transpose_pairs(rows, columns);
      for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(to + 32 * i, columns[i]);
    }
  }
}

void attention_pack_values(const AttentionHead& h, uint16_t* to) {
  for (int64_t d = 0; d < up_to(h.value_width, kStep); d += 16) {
    const int64_t left = h.value_width - d;
    const __mmask16 columns = static_cast<__mmask16>(first_values(left < 16 ? left : 16));
    for (int64_t key = 0; key < up_to(h.keys, kStep); key += 2, to += 32) {
      __m512i pair[2];
      for (int64_t i = 0; i < 2; ++i) {
        const bool there = key + i < h.keys;
        const uint16_t* at = h.value + (there ? key + i : 0) * h.value_row + (left > 0 ? d : 0);
        pair[i] =
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there ? columns : static_cast<__mmask16>(0), at));
      }
      _mm512_store_si512(to, _mm512_or_si512(pair[0], _mm512_slli_epi32(pair[1], 16)));
    }
  }
}

/// 8 x 32 sums at `to` are set, or added to: rows of `left` times 32 packed columns, the second 16 of which
/// are `step` values behind the first.
template <bool kAdd>
inline void multiply_pairs(const uint16_t* left, int64_t left_row, const uint16_t* right, int64_t step,
                           int64_t pairs, float* to, int64_t to_row) {
  __m512 sums[kGroup][2];
  for (int64_t r = 0; r < kGroup; ++r) {
    for (int64_t v = 0; v < 2; ++v)
      sums[r][v] = kAdd ? _mm512_load_ps(to + r * to_row + 16 * v) : _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512i first = _mm512_load_si512(right + 32 * p),
                  second = _mm512_load_si512(right + step + 32 * p);
    for (int64_t r = 0; r < kGroup; ++r) {
      const __m512i pair = _mm512_set1_epi32(reinterpret_cast<const int32_t*>(left + r * left_row)[p]);
      sums[r][0] = add_pairs(sums[r][0], pair, first);
      sums[r][1] = add_pairs(sums[r][1], pair, second);
    }
  }
  for (int64_t r = 0; r < kGroup; ++r) {
    for (int64_t v = 0; v < 2; ++v) _mm512_store_ps(to + r * to_row + 16 * v, sums[r][v]);
  }
}

/// Sixteen keys from `key` on that a query may see.
inline __mmask16 seen_keys(const AttentionHead& h, int64_t query, int64_t key) {
  const int64_t end = h.causal && query < h.keys ? query + 1 : h.keys;
  const __mmask16 there = static_cast<__mmask16>(first_values(end - key < 16 ? end - key : 16));
  if (h.mask == nullptr) return there;
  const __m128i bytes = _mm_maskz_loadu_epi8(there, h.mask + query * h.mask_row + key);
  return _mm_test_epi8_mask(bytes, bytes);
}

inline bool any_seen(const AttentionHead& h, int64_t query, int64_t queries, int64_t key) {
  for (int64_t r = queries - 1; r >= 0; --r) {  // the last sees most where masks are causal
    if (seen_keys(h, query + r, key) != 0 || seen_keys(h, query + r, key + 16) != 0) return true;
  }
  return false;
}

/// What 32 queries have of the keys up to now.
struct Attended {
  float *scores, *sums;     // [32][256], [32][value width up to 32s]
  uint16_t *rows, *shares;  // [32][width up to 32s], [32][256]
  float largest[kQueries], total[kQueries];
};

/// Scores of a query become shares of it, in units of 2^-largest; its sums follow when that grows.
inline void share_out(const AttentionHead& h, int64_t query, int64_t r, int64_t key, int64_t keys,
                      Attended& a) {
  float* scores = a.scores + r * kKeys;
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff()), scale = _mm512_set1_ps(h.scale * kLog2E);
  __m512 most = hidden;
  for (int64_t k = 0; k < keys; k += 16) {
    const __m512 score =
        _mm512_mask_mul_ps(hidden, seen_keys(h, query, key + k), _mm512_load_ps(scores + k), scale);
    _mm512_store_ps(scores + k, score);
    most = _mm512_max_ps(most, score);
  }
  const float here = _mm512_reduce_max_ps(most), before = a.largest[r],
              largest = here > before ? here : before;
  const float unit = largest == -__builtin_inff() ? 0.0f : largest;  // nothing seen yet
  __m512 total = _mm512_setzero_ps();
  for (int64_t k = 0; k < keys; k += 16) {
    const __m512i share =
        rounded_halves(power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + k), _mm512_set1_ps(unit))));
    // The sum of what meets V: a query's shares are then 1 together, however they were rounded.
    const __m512i kept = _mm512_and_si512(share, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
    total = _mm512_add_ps(total, _mm512_castsi512_ps(kept));
    _mm256_store_si256(reinterpret_cast<__m256i*>(a.shares + r * kKeys + k), upper_halves(share));
  }
  if (largest != before) {
    const __m512 less = power_of_two(_mm512_set1_ps(before - unit));
    float* sums = a.sums + r * up_to(h.value_width, kStep);
    for (int64_t d = 0; d < h.value_width; d += 16)
      _mm512_store_ps(sums + d, _mm512_mul_ps(_mm512_load_ps(sums + d), less));
    a.total[r] *= _mm512_cvtss_f32(less);
  }
  a.largest[r] = largest;
  a.total[r] += _mm512_reduce_add_ps(total);
}

/// 32 queries, or fewer, and some keys: at most 256, a multiple of 32, those behind the last hidden.
inline void attend_keys(const AttentionHead& h, int64_t query, int64_t queries, int64_t key, int64_t keys,
                        Attended& a) {
  const int64_t width = up_to(h.width, kStep), across = up_to(h.value_width, kStep),
                all = up_to(h.keys, kStep);
  for (int64_t k = 0; k < keys; k += kStep) {
    const uint16_t* right = h.packed_keys + (key + k) * width;
    for (int64_t r = 0; r < queries; r += kGroup)
      multiply_pairs<false>(a.rows + r * width, width, right, 16 * width, width / 2, a.scores + r * kKeys + k,
                            kKeys);
  }
  for (int64_t r = 0; r < queries; ++r) share_out(h, query + r, r, key, keys, a);
  for (int64_t d = 0; d < across; d += kStep) {
    const uint16_t* right = h.packed_values + d * all + key * 16;
    for (int64_t r = 0; r < queries; r += kGroup)
      multiply_pairs<true>(a.shares + r * kKeys, kKeys, right, 16 * all, keys / 2, a.sums + r * across + d,
                           across);
  }
}

inline void take_queries(const AttentionHead& h, int64_t query, int64_t queries, Attended& a) {
  const int64_t width = up_to(h.width, kStep), across = up_to(h.value_width, kStep);
  for (int64_t r = 0; r < kQueries; ++r) {
    const bool there = r < queries;
    for (int64_t d = 0; d < width; d += 32) {
      const __mmask32 values = there ? first_values(h.width - d) : 0u;
      const uint16_t* at = h.query + (query + (there ? r : 0)) * h.query_row + d;
      _mm512_store_si512(a.rows + r * width + d, _mm512_maskz_loadu_epi16(values, at));
    }
    a.largest[r] = -__builtin_inff(), a.total[r] = 0.0f;
  }
  for (int64_t i = 0; i < kQueries * across; i += 16) _mm512_store_ps(a.sums + i, _mm512_setzero_ps());
  for (int64_t i = 0; i < kQueries * kKeys; i += 32) _mm512_store_si512(a.shares + i, _mm512_setzero_si512());
}

inline void put_out(const AttentionHead& h, int64_t query, int64_t queries, const Attended& a) {
  const int64_t across = up_to(h.value_width, kStep);
  for (int64_t r = 0; r < queries; ++r) {
    const float total = a.total[r], unit = total == 0.0f ? 0.0f : 1.0f / total;  // a query that sees nothing
    for (int64_t d = 0; d < h.value_width; d += 16) {
      const int64_t left = h.value_width - d;
      const __m512 value = _mm512_mul_ps(_mm512_load_ps(a.sums + r * across + d), _mm512_set1_ps(unit));
      _mm256_mask_storeu_epi16(h.out + (query + r) * h.out_row + d,
                               static_cast<__mmask16>(first_values(left < 16 ? left : 16)),
                               upper_halves(rounded_halves(value)));
    }
  }
}

void attention_queries(const AttentionHead& h, int64_t query, float* scratch) {
  const int64_t left = h.queries - query, queries = left < kQueries ? left : kQueries;
  Attended a;
  a.scores = scratch;
  a.sums = a.scores + kQueries * kKeys;
  a.shares = reinterpret_cast<uint16_t*>(a.sums + kQueries * up_to(h.value_width, kStep));
  a.rows = a.shares + kQueries * kKeys;
  take_queries(h, query, queries, a);
  for (int64_t key = 0; key < h.keys; key += kKeys) {
    const int64_t behind = up_to(h.keys - key < kKeys ? h.keys - key : kKeys, kStep);
    int64_t first = 0, last = behind;
    while (first < last && !any_seen(h, query, queries, key + first)) first += kStep;
    while (first < last && !any_seen(h, query, queries, key + last - kStep)) last -= kStep;
    if (first < last) attend_keys(h, query, queries, key + first, last - first, a);
  }
  put_out(h, query, queries, a);
}

#else

inline constexpr void (*attention_pack_keys)(const AttentionHead&, uint16_t*) = nullptr;
inline constexpr void (*attention_pack_values)(const AttentionHead&, uint16_t*) = nullptr;
inline constexpr void (*attention_queries)(const AttentionHead&, int64_t, float*) = nullptr;

#endif

}  // namespace
}  // namespace fewbit
