// Floats to codes and back: q = clamp(round(x / s) + z, qmin, qmax) and x' = s * (q - z), row by row.
//
// Layout: x[rows][cols] float32, float16 or bfloat16 (computed in float32), one scale and zero point a row,
// codes[rows][cols] of 8 or 16 bits. Cost: one pass; reads 4 bytes and writes 1 or 2 a value (or the
// reverse). quantize is bounded by the division. Why a true division: x * (1 / s) differs from x / s in the
// last bit and would move ties; the codes here equal torch's formula bit for bit. Why clamp before round:
// with integer bounds the two commute, the clamp takes +-inf (x / s overflowed) to a finite value before
// anything becomes an integer, and a value within +-2^22 is rounded half to even by two additions on every
// instruction set, SSE2 included. A NaN becomes qmin.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "halves.h"
#include "minmax.h"
#include "types.h"

namespace fewbit {
namespace {

/// clamp(round_half_even(v), lo, hi) for integers lo <= hi within +-2^22.
inline float round_clamped(float v, float lo, float hi) {
  constexpr float kOneHasNoFraction = 12582912.0f;  // 1.5 * 2^23: floats of this size are integers
  v = v > lo ? v : lo;
  v = v < hi ? v : hi;
  return (v + kOneHasNoFraction) - kOneHasNoFraction;
}

template <class C>
void quantize_row(const float* __restrict x, int64_t n, float scale, int32_t zero_point, Bounds bounds,
                  C* __restrict out) {
  const float lo = static_cast<float>(bounds.qmin - zero_point);
  const float hi = static_cast<float>(bounds.qmax - zero_point);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<C>(static_cast<int32_t>(round_clamped(x[i] / scale, lo, hi)) + zero_point);
  }
}

/// A row of any type: 16-bit floats are made float32 a tile at a time.
template <class C>
void quantize_row_of(const void* x, Float kind, int64_t n, float scale, int32_t zero_point, Bounds bounds,
                     C* out) {
  if (kind == Float::f32)
    return quantize_row(static_cast<const float*>(x), n, scale, zero_point, bounds, out);
  constexpr int64_t kTile = 1024;
  float wide[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t tile = n - i < kTile ? n - i : kTile;
    widen(static_cast<const uint16_t*>(x) + i, kind, tile, wide);
    quantize_row(wide, tile, scale, zero_point, bounds, out + i);
  }
}

template <class C>
void quantize_rows_as(const void* x, Float kind, Shape shape, const float* scale, const int32_t* zero_point,
                      Bounds bounds, void* out) {
  const char* row = static_cast<const char*>(x);
  C* codes = static_cast<C*>(out);
  for (int64_t r = 0; r < shape.rows; ++r, row += shape.cols * size_of(kind), codes += shape.cols) {
    quantize_row_of(row, kind, shape.cols, scale[r], zero_point[r], bounds, codes);
  }
}

void quantize_rows(const void* x, Float kind, Shape shape, const float* scale, const int32_t* zero_point,
                   Bounds bounds, void* out, Code code) {
  switch (code) {
    case Code::i8:
      return quantize_rows_as<int8_t>(x, kind, shape, scale, zero_point, bounds, out);
    case Code::u8:
      return quantize_rows_as<uint8_t>(x, kind, shape, scale, zero_point, bounds, out);
    case Code::i16:
      return quantize_rows_as<int16_t>(x, kind, shape, scale, zero_point, bounds, out);
    case Code::u16:
      return quantize_rows_as<uint16_t>(x, kind, shape, scale, zero_point, bounds, out);
  }
}

/// Largest magnitude of n floats; a NaN if there is one.
float largest_magnitude(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  return float_of_bits32(largest);
}

/// The symmetric scale of values up to amax: amax / qmax, at least the smallest normal float, 1 for zeros.
/// NaN for an infinity, which no scale serves: all that is multiplied with it then shows that.
inline float symmetric_scale(float amax, int32_t qmax) {
  constexpr float kSmallestNormal = std::numeric_limits<float>::min();
  if (amax > std::numeric_limits<float>::max()) return std::numeric_limits<float>::quiet_NaN();
  const float step = amax == 0.0f ? 1.0f : amax / static_cast<float>(qmax);
  return step < kSmallestNormal ? kSmallestNormal : step;
}

/// Symmetric with a scale for each row, codes within +-qmax. The second pass over a row finds it in the
/// cache.
void quantize_rows_dynamic(const float* x, Shape shape, int32_t qmax, int8_t* out, float* scale) {
  for (int64_t r = 0; r < shape.rows; ++r, x += shape.cols, out += shape.cols) {
    scale[r] = symmetric_scale(largest_magnitude(x, shape.cols), qmax);
    quantize_row(x, shape.cols, scale[r], 0, {-qmax, qmax}, out);
  }
}

template <class C>
void dequantize_rows_as(const void* codes, Shape shape, const float* scale, const int32_t* zero_point,
                        float* out) {
  const C* __restrict row = static_cast<const C*>(codes);
  float* __restrict to = out;
  for (int64_t r = 0; r < shape.rows; ++r, row += shape.cols, to += shape.cols) {
    const float s = scale[r];
    const int32_t z = zero_point[r];
    for (int64_t i = 0; i < shape.cols; ++i) to[i] = s * static_cast<float>(static_cast<int32_t>(row[i]) - z);
  }
}

void dequantize_rows(const void* codes, Code code, Shape shape, const float* scale, const int32_t* zero_point,
                     float* out) {
  switch (code) {
    case Code::i8:
      return dequantize_rows_as<int8_t>(codes, shape, scale, zero_point, out);
    case Code::u8:
      return dequantize_rows_as<uint8_t>(codes, shape, scale, zero_point, out);
    case Code::i16:
      return dequantize_rows_as<int16_t>(codes, shape, scale, zero_point, out);
    case Code::u16:
      return dequantize_rows_as<uint16_t>(codes, shape, scale, zero_point, out);
  }
}

}  // namespace
}  // namespace fewbit
