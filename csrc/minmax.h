// Smallest and largest value of every row, exact, for float32, float16 and bfloat16.
//
// Layout: x[rows][cols] -> out[rows][2] = (min, max) in float32.
// Cost: reads x once; five integer instructions a vector, so the memory is what it waits for.
// Why integers: a float's bits, with the lower bits turned over when the sign is set, order like the float
// does. Integer minima may be taken in any order, so the loop becomes vector code without -ffast-math; a NaN
// lies beyond an infinity and shows in the result at no cost; 16-bit floats need no widening; and -0 < +0, so
// every instruction set gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "halves.h"
#include "types.h"

namespace fewbit {
namespace {

/// Orders float bits as signed integers; its own inverse.
template <class Bits>
Bits ordered(Bits bits) {
  constexpr Bits kAllButSign = static_cast<Bits>(~(static_cast<Bits>(1) << (8 * sizeof(Bits) - 1)));
  return static_cast<Bits>(bits ^ ((bits >> (8 * sizeof(Bits) - 1)) & kAllButSign));
}

template <class Bits>
struct Extremes {
  Bits lo, hi;  // `ordered` bits; an empty row has lo = +inf, hi = -inf
};

/// Extremes of n floats whose positive infinity has the bits `infinity`.
template <class Bits>
Extremes<Bits> extremes(const void* x, int64_t n, Bits infinity) {
  const char* bytes = static_cast<const char*>(x);
  Bits lo = infinity, hi = static_cast<Bits>(~infinity);  // ordered(-inf) == ~infinity
  for (int64_t i = 0; i < n; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    const Bits key = ordered(bits);
    lo = key < lo ? key : lo;
    hi = key > hi ? key : hi;
  }
  return {lo, hi};
}

template <class Bits, class ToFloat>
void minmax_rows_as(const void* x, Shape shape, Bits infinity, ToFloat to_float, float* out) {
  const char* row = static_cast<const char*>(x);
  const int64_t stride = shape.cols * static_cast<int64_t>(sizeof(Bits));
  for (int64_t r = 0; r < shape.rows; ++r, row += stride) {
    const Extremes<Bits> e = extremes<Bits>(row, shape.cols, infinity);
    const bool has_nan = e.hi > infinity || e.lo < static_cast<Bits>(~infinity);
    out[2 * r] = has_nan ? float_from_bits(0x7FC00000u) : to_float(ordered(e.lo));
    out[2 * r + 1] = has_nan ? float_from_bits(0x7FC00000u) : to_float(ordered(e.hi));
  }
}

constexpr int32_t kInfinity32 = 0x7F800000;

inline float float_of_bits32(int32_t bits) { return float_from_bits(static_cast<uint32_t>(bits)); }

void minmax_rows(const void* x, Float kind, Shape shape, float* out) {
  switch (kind) {
    case Float::f32:
      return minmax_rows_as<int32_t>(x, shape, kInfinity32, float_of_bits32, out);
    case Float::f16:
      return minmax_rows_as<int16_t>(
          x, shape, 0x7C00, [](int16_t b) { return float_from_half(static_cast<uint16_t>(b)); }, out);
    case Float::bf16:
      return minmax_rows_as<int16_t>(
          x, shape, 0x7F80,
          [](int16_t b) { return float_from_bits(static_cast<uint32_t>(static_cast<uint16_t>(b)) << 16); },
          out);
  }
}

}  // namespace
}  // namespace fewbit
