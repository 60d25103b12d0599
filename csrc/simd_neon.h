// The operations of csrc/simd.h on NEON with its dot products: a tile is four registers.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace fewbit {
namespace {

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

}  // namespace
}  // namespace fewbit
