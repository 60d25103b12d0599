// The operations of csrc/simd.h in plain C++.
#pragma once

#include <math.h>  // fmaf of C: an inline one of C++ could be shared between instruction sets

#include <cstdint>
#include <cstring>

namespace fewbit {
namespace {

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

}  // namespace
}  // namespace fewbit
