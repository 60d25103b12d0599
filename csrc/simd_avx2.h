// The operations of csrc/simd.h on AVX2, with AVX-VNNI where there is: a tile is two registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace fewbit {
namespace {

struct Simd {
  static constexpr int kLanes = 8, kParts = 2, kMaxRows = 4, kWideShift = 0;
  using Int = __m256i;
  using Float = __m256;
  using Bytes = __m256i;

  static Int ints(int32_t v) { return _mm256_set1_epi32(v); }
  static Int load_ints(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  template <int kBits>
  static Int down(Int v) {
    return _mm256_srai_epi32(v, kBits);
  }
  static Int widen(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Float floats(float v) { return _mm256_set1_ps(v); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float load_bfloat(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }

  static Bytes load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static Bytes bytes(uint8_t v) { return _mm256_set1_epi8(static_cast<char>(v)); }
  static Bytes both(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
  static Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static Bytes right(Bytes v) {
    return _mm256_srli_epi16(v, kBits);
  }
  template <int kBits>
  static Bytes left(Bytes v) {
    return _mm256_slli_epi16(v, kBits);
  }
  template <int kByte>
  static Int byte_of(Bytes v) {
    return kByte == 3 ? _mm256_srli_epi32(v, 24)
                      : _mm256_and_si256(_mm256_srli_epi32(v, 8 * kByte), _mm256_set1_epi32(255));
  }

  static Bytes four(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  using Partial = __m256i;
#if defined(__AVXVNNI__)
  static constexpr bool kDotsBytes = true;
  static Partial begin(Int acc) { return acc; }
  static Int finish(Int, Partial p) { return p; }
  static Partial dot(Partial p, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(p, w, x); }
  static Int dot_wide(Int acc, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
#else
  static constexpr bool kDotsBytes = false;
  static Partial begin(Int) { return _mm256_setzero_si256(); }
  static Int finish(Int acc, Partial p) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
  }
  static Partial dot(Partial p, Bytes w, Bytes x) { return _mm256_add_epi16(p, _mm256_maddubs_epi16(w, x)); }
  static Int dot_wide(Int acc, Bytes w, Bytes x) {
    const __m256i low = _mm256_maddubs_epi16(both(w, bytes(15)), x);
    const __m256i high = _mm256_maddubs_epi16(both(right<4>(w), bytes(15)), x);
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)),
                                         _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    return _mm256_add_epi32(acc, sum);
  }
#endif
};

}  // namespace
}  // namespace fewbit
