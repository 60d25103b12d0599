// 16-bit floats to float32 and back.
//
// Layout: arrays of float16 or bfloat16 bits -> float32. Cost: a dozen integer instructions a vector for
// float16, two for bfloat16. Why integers and not the processor's own conversion: every instruction set has
// them, the compiler makes vectors of them, and no float16 subnormal becomes a float32 one on the way, which
// would be slow or, where subnormals are flushed, wrong.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace fewbit {
namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_half(uint16_t half) {
  constexpr uint32_t kExponent = 31u << 23, kRebias = 112u << 23;
  const uint32_t magnitude = (half & 0x7FFFu) << 13, exponent = magnitude & kExponent;
  uint32_t bits = magnitude + kRebias;
  bits += exponent == kExponent ? kRebias : 0u;  // infinity and NaN
  // Zero and subnormals: as if there were an implicit one, which is then subtracted.
  const float subnormal = float_from_bits(bits + (1u << 23)) - float_from_bits(113u << 23);
  bits = exponent == 0 ? bits_from_float(subnormal) : bits;
  return float_from_bits(bits | (half & 0x8000u) << 16);
}

/// n values of a 16-bit type to float32.
inline void widen(const void* x, Float kind, int64_t n, float* __restrict out) {
  const uint16_t* __restrict from = static_cast<const uint16_t*>(x);
  if (kind == Float::f16) {
    for (int64_t i = 0; i < n; ++i) out[i] = float_from_half(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = float_from_bits(static_cast<uint32_t>(from[i]) << 16);
  }
}

/// A positive normal float32 to the nearest value of another type, ties to even; at least that type's
/// smallest step.
inline float rounded_to(Float type, float value) {
  constexpr float kHalfStep = 0x1p-24f, kHalfNormal = 0x1p-14f, kOneHasNoFraction = 12582912.0f;
  if (type == Float::f32) return value;
  if (type == Float::f16 && value < kHalfNormal) {
    const float steps = (value / kHalfStep + kOneHasNoFraction) - kOneHasNoFraction;
    return (steps < 1.0f ? 1.0f : steps) * kHalfStep;
  }
  const int dropped = type == Float::f16 ? 13 : 16;
  const uint32_t bits = bits_from_float(value), half = (1u << (dropped - 1)) - 1u;
  return float_from_bits((bits + half + (bits >> dropped & 1u)) >> dropped << dropped);
}

inline float largest_of(Float type) {
  if (type == Float::f16) return 65504.0f;
  return float_from_bits(type == Float::bf16 ? 0x7F7F0000u : 0x7F7FFFFFu);
}

}  // namespace
}  // namespace fewbit
