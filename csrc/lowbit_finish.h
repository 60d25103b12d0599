// The end of a low-bit product: bias, activation function, float32 or
// bfloat16.
//
// Layout: sixteen sums of one row and tile in, at most sixteen outputs of y out.
// Cost: a few vector instructions for 16 outputs; the activation functions about 20.
// Why no library call: a loop over sixteen values with a polynomial becomes vector code, and gives the same
// bits on every instruction set. exp is 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2], within 2 ulp.
#pragma once

#include <cstdint>
#include <cstring>

#include "halves.h"
#include "lowbit.h"
#include "lowbit_layout.h"
#include "quantize.h"

namespace fewbit {
namespace {

inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float n = round_clamped(x * 1.44269504f, -127.0f, 127.0f);
  const float r =
      (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts: the first product is exact
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

/// Abramowitz and Stegun 7.1.26: within 1.5e-7.
inline float erf_of(float x) {
  const float a = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float y = 1.0f - p * t * exp_of(-a * a);
  return x < 0.0f ? -y : y;
}

template <Activation kAct>
inline float activated(float x) {
  if constexpr (kAct == Activation::relu) return x < 0.0f ? 0.0f : x;
  if constexpr (kAct == Activation::silu) return x * sigmoid(x);
  if constexpr (kAct == Activation::gelu) return 0.5f * x * (1.0f + erf_of(x * 0.707106781f));
  if constexpr (kAct == Activation::gelu_tanh) {
    return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));  // (1 + tanh u) / 2 = sigmoid(2 u)
  }
  return x;
}

template <Activation kAct>
inline void activate(float* v) {
  for (int i = 0; i < kTile; ++i) v[i] = activated<kAct>(v[i]);
}

inline void activate(Activation activation, float* v) {
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return activate<Activation::relu>(v);
    case Activation::silu:
      return activate<Activation::silu>(v);
    case Activation::gelu:
      return activate<Activation::gelu>(v);
    case Activation::gelu_tanh:
      return activate<Activation::gelu_tanh>(v);
  }
}

/// bfloat16 bits of v, rounded half to even; a NaN stays one.
inline uint16_t bfloat_of(float v) {
  const uint32_t bits = bits_from_float(v);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(v != v ? 0x7FC0u : rounded);
}

/// Sixteen outputs of the most common kind.
inline void finish_plain(const float* sums, const float* bias, float* y) {
  for (int i = 0; i < kTile; ++i) y[i] = bias == nullptr ? sums[i] : sums[i] + bias[i];
}

/// At most sixteen outputs of any kind; v holds the sums and is overwritten.
inline void finish_any(const LowbitCall& call, int64_t row, int64_t at, int count, float* v) {
  if (call.bias != nullptr) {
    for (int i = 0; i < count; ++i) v[i] += call.bias[at + i];
  }
  activate(call.activation, v);
  const int64_t to = row * call.weights.outputs + at;
  if (call.bf16_out) {
    uint16_t halves[kTile];
    for (int i = 0; i < kTile; ++i) halves[i] = bfloat_of(v[i]);
    std::memcpy(static_cast<uint16_t*>(call.y) + to, halves, static_cast<size_t>(count) * 2);
  } else {
    std::memcpy(static_cast<float*>(call.y) + to, v, static_cast<size_t>(count) * 4);
  }
}

/// Write the outputs of `row` and `tile` from their sums.
inline void finish(const LowbitCall& call, int64_t row, int64_t tile, const float* sums) {
  const int64_t at = tile * kTile, left = call.weights.outputs - at;
  const float factor = call.factor[row];
  if (factor == 1.0f && left >= kTile && !call.bf16_out && call.activation == Activation::none) {
    const float* bias = call.bias == nullptr ? nullptr : call.bias + at;
    return finish_plain(sums, bias, static_cast<float*>(call.y) + row * call.weights.outputs + at);
  }
  float v[kTile];
  for (int i = 0; i < kTile; ++i) v[i] = sums[i] * factor;
  finish_any(call, row, at, static_cast<int>(left < kTile ? left : kTile), v);
}

}  // namespace
}  // namespace fewbit
