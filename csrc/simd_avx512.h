// The operations of csrc/simd.h on AVX-512: a tile is one register; VNNI multiplies bytes without saturating.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace fewbit {
namespace {

struct Simd {
  static constexpr int kLanes = 16, kParts = 1, kMaxRows = 8, kWideShift = 0;
  using Int = __m512i;
  using Float = __m512;
  using Bytes = __m512i;

  static Int ints(int32_t v) { return _mm512_set1_epi32(v); }
  static Int load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  template <int kBits>
  static Int down(Int v) {
    return _mm512_srai_epi32(v, kBits);
  }
  static Int widen(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float floats(float v) { return _mm512_set1_ps(v); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float load_bfloat(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }

  static Bytes load(const uint8_t* p) { return _mm512_load_si512(p); }
  static Bytes bytes(uint8_t v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  static Bytes both(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
  static Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
  template <int kBits>
  static Bytes right(Bytes v) {
    return _mm512_srli_epi16(v, kBits);
  }
  template <int kBits>
  static Bytes left(Bytes v) {
    return _mm512_slli_epi16(v, kBits);
  }
  /// Byte kByte of every 32-bit lane, as an integer.
  template <int kByte>
  static Int byte_of(Bytes v) {
    return kByte == 3 ? _mm512_srli_epi32(v, 24)
                      : _mm512_and_si512(_mm512_srli_epi32(v, 8 * kByte), _mm512_set1_epi32(255));
  }

  static Bytes four(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
#if defined(__AVX512VNNI__)
  static constexpr bool kDotsBytes = true;
  using Partial = __m512i;
  static Partial begin(Int acc) { return acc; }
  static Int finish(Int, Partial p) { return p; }
  static Partial dot(Partial p, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(p, w, x); }
  static Int dot_wide(Int acc, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(acc, w, x); }
#else
  static constexpr bool kDotsBytes = false;
  using Partial = __m512i;
  static Partial begin(Int) { return _mm512_setzero_si512(); }
  static Int finish(Int acc, Partial p) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(p, _mm512_set1_epi16(1)));
  }
  static Partial dot(Partial p, Bytes w, Bytes x) { return _mm512_add_epi16(p, _mm512_maddubs_epi16(w, x)); }
  static Int dot_wide(Int acc, Bytes w, Bytes x) {
    const __m512i low = _mm512_maddubs_epi16(both(w, bytes(15)), x);
    const __m512i high = _mm512_maddubs_epi16(both(right<4>(w), bytes(15)), x);
    const __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(low, _mm512_set1_epi16(1)),
                                         _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
    return _mm512_add_epi32(acc, sum);
  }
#endif
};

}  // namespace
}  // namespace fewbit
