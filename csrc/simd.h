// One small set of vector operations for all instruction sets, chosen by the flags a file is compiled with.
//
// Layout: `Simd` works on the 16 outputs of a tile (csrc/lowbit_layout.h) as `kParts` registers of `kLanes`
// 32-bit lanes. Cost: every function is one to four instructions; all are inlined.
// Why so few: the kernels need an int8 dot product that never saturates, float lanes, and bits moved within
// bytes; with these a kernel's body is written once. `Partial` is where a dot product collects a block of 32
// products: the int32 accumulator itself where the processor has one instruction for it (VNNI, NEON dotprod),
// 16-bit sums on AVX2 (15 * 128 * 2 * 8 = 30720 < 32768: no saturation), which `finish` widens.
// Codes reach `dot` as bytes from 0 to 15, to 255 where kDotsBytes, and `dot_wide` as bytes from 0 to 255; on
// NEON the latter multiplies code - kWideShift, which the caller takes into its zero point.
#pragma once

#include <math.h>  // fmaf of C: an inline one of C++ could be shared between instruction sets

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace fewbit {
namespace {

#if defined(__AVX512BW__)

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

#elif defined(__AVX2__)

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

#elif defined(__ARM_FEATURE_DOTPROD)

struct Simd {
  static constexpr int kLanes = 4, kParts = 4, kMaxRows = 4, kWideShift = 128;
  static constexpr bool kDotsBytes = false;
  using Int = int32x4_t;
  using Float = float32x4_t;
  using Bytes = uint8x16_t;

  static Int ints(int32_t v) { return vdupq_n_s32(v); }
  static Int load_ints(const int32_t* p) { return vld1q_s32(p); }
  static Int add(Int a, Int b) { return vaddq_s32(a, b); }
  static Int sub(Int a, Int b) { return vsubq_s32(a, b); }
  static Int mul(Int a, Int b) { return vmulq_s32(a, b); }
  template <int kBits>
  static Int down(Int v) {
    return vshlq_s32(v, vdupq_n_s32(-kBits));
  }
  static Int widen(const uint8_t* p) {
    const int32_t lanes[4] = {p[0], p[1], p[2], p[3]};
    return vld1q_s32(lanes);
  }
  static Float floats(float v) { return vdupq_n_f32(v); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static Float load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static Float load_bfloat(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
  }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float to_float(Int v) { return vcvtq_f32_s32(v); }

  static Bytes load(const uint8_t* p) { return vld1q_u8(p); }
  static Bytes bytes(uint8_t v) { return vdupq_n_u8(v); }
  static Bytes both(Bytes a, Bytes b) { return vandq_u8(a, b); }
  static Bytes either(Bytes a, Bytes b) { return vorrq_u8(a, b); }
  template <int kBits>
  static Bytes right(Bytes v) {
    if constexpr (kBits == 0)
      return v;
    else
      return vshrq_n_u8(v, kBits);
  }
  template <int kBits>
  static Bytes left(Bytes v) {
    return vshlq_n_u8(v, kBits);
  }
  template <int kByte>
  static Int byte_of(Bytes v) {
    const uint32x4_t lanes = vreinterpretq_u32_u8(v);
    if constexpr (kByte == 0)
      return vreinterpretq_s32_u32(vandq_u32(lanes, vdupq_n_u32(255)));
    else
      return vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(lanes, 8 * kByte), vdupq_n_u32(255)));
  }

  static Bytes four(const int8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return vreinterpretq_u8_u32(vdupq_n_u32(word));
  }
  using Partial = int32x4_t;
  static Partial begin(Int acc) { return acc; }
  static Int finish(Int, Partial p) { return p; }
  static Partial dot(Partial p, Bytes w, Bytes x) {
    return vdotq_s32(p, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
  }
  static Int dot_wide(Int acc, Bytes w, Bytes x) {
    return vdotq_s32(acc, vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128))), vreinterpretq_s8_u8(x));
  }
};

#else

/// Plain C++, four lanes a register so that a compiler can keep them in one.
struct Simd {
  static constexpr int kLanes = 4, kParts = 4, kMaxRows = 2, kWideShift = 0;
  static constexpr bool kDotsBytes = true;
  struct Int {
    int32_t lane[4];
  };
  struct Float {
    float lane[4];
  };
  struct Bytes {
    uint8_t byte[16];
  };

  template <class To, class Fn>
  static To each(const Fn& fn) {
    To to;
    for (int i = 0; i < 4; ++i) to.lane[i] = fn(i);
    return to;
  }
  static int32_t wrap(uint32_t v) { return static_cast<int32_t>(v); }
  static uint32_t bits(int32_t v) { return static_cast<uint32_t>(v); }
  static Int ints(int32_t v) { return {{v, v, v, v}}; }
  static Int load_ints(const int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Int add(Int a, Int b) {
    return each<Int>([&](int i) { return wrap(bits(a.lane[i]) + bits(b.lane[i])); });
  }
  static Int sub(Int a, Int b) {
    return each<Int>([&](int i) { return wrap(bits(a.lane[i]) - bits(b.lane[i])); });
  }
  static Int mul(Int a, Int b) {
    return each<Int>([&](int i) { return wrap(bits(a.lane[i]) * bits(b.lane[i])); });
  }
  template <int kBits>
  static Int down(Int v) {
    return each<Int>([&](int i) { return v.lane[i] >> kBits; });
  }
  static Int widen(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Float floats(float v) { return {{v, v, v, v}}; }
  static Float load(const float* p) {
    Float v;
    std::memcpy(v.lane, p, sizeof v.lane);
    return v;
  }
  static void store(float* p, Float v) { std::memcpy(p, v.lane, sizeof v.lane); }
  static float of_bits(uint32_t v) {
    float f;
    std::memcpy(&f, &v, sizeof f);
    return f;
  }
  static float of_half(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 0x3FFu;
    if (exponent == 0) {
      const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
      return sign != 0 ? -magnitude : magnitude;
    }
    return of_bits(sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13));
  }
  static Float load_half(const uint16_t* p) {
    return each<Float>([&](int i) { return of_half(p[i]); });
  }
  static Float load_bfloat(const uint16_t* p) {
    return each<Float>([&](int i) { return of_bits(static_cast<uint32_t>(p[i]) << 16); });
  }
  static Float add(Float a, Float b) {
    return each<Float>([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Float sub(Float a, Float b) {
    return each<Float>([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Float mul(Float a, Float b) {
    return each<Float>([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Float fma(Float a, Float b, Float c) {
    return each<Float>([&](int i) { return fmaf(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static Float to_float(Int v) {
    return each<Float>([&](int i) { return static_cast<float>(v.lane[i]); });
  }

  static Bytes load(const uint8_t* p) {
    Bytes v;
    std::memcpy(v.byte, p, sizeof v.byte);
    return v;
  }
  static Bytes bytes(uint8_t v) {
    Bytes to;
    std::memset(to.byte, v, sizeof to.byte);
    return to;
  }
  template <class Fn>
  static Bytes every(const Fn& fn) {
    Bytes to;
    for (int i = 0; i < 16; ++i) to.byte[i] = static_cast<uint8_t>(fn(i));
    return to;
  }
  static Bytes both(Bytes a, Bytes b) {
    return every([&](int i) { return a.byte[i] & b.byte[i]; });
  }
  static Bytes either(Bytes a, Bytes b) {
    return every([&](int i) { return a.byte[i] | b.byte[i]; });
  }
  template <int kBits>
  static Bytes right(Bytes v) {
    return every([&](int i) { return v.byte[i] >> kBits; });
  }
  template <int kBits>
  static Bytes left(Bytes v) {
    return every([&](int i) { return v.byte[i] << kBits; });
  }
  template <int kByte>
  static Int byte_of(Bytes v) {
    return each<Int>([&](int i) { return static_cast<int32_t>(v.byte[4 * i + kByte]); });
  }

  static Bytes four(const int8_t* p) {
    Bytes to;
    for (int i = 0; i < 16; i += 4) std::memcpy(to.byte + i, p, 4);
    return to;
  }
  using Partial = Int;
  static Partial begin(Int acc) { return acc; }
  static Int finish(Int, Partial p) { return p; }
  static Partial dot(Partial p, Bytes w, Bytes x) { return dot_wide(p, w, x); }
  static Int dot_wide(Int acc, Bytes w, Bytes x) {
    for (int i = 0; i < 16; ++i) acc.lane[i / 4] += w.byte[i] * static_cast<int8_t>(x.byte[i]);
    return acc;
  }
};

#endif

}  // namespace
}  // namespace fewbit
