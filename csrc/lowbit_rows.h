// Activations made ready for a low-bit product: int8 codes with their scales and sums, floats, or bfloat16
// parts.
//
// Layout: rows stand in blocks of 16 (the last may have fewer, R). Integer rows of a block: codes
// [depth / 64][R][64] with depth = K padded to whole groups and then to 64, scales and sums [groups][R].
// Float rows: [M][padded] floats. Rows for tile products in float: bfloat16 [padded / 32][parts][R][32], in
// every four k the middle two exchanged (csrc/lowbit_float_tiles.h says why).
// Cost: quantizing reads a row twice (the second time from the cache) and is bounded by its division.
// Why blocks: 16 rows of 64 bytes are one AMX tile of consecutive lines; rows of a power of two apart would
// fall into one set of the first cache.
// Why three parts: the leading 8 bits of a float32, the next 8 and the last 8 are bfloat16 values, so the sum
// of three bfloat16 products is the float32 product without loss; a bfloat16 activation needs one.
#pragma once

#include <cstdint>
#include <cstring>

#include "halves.h"
#include "lowbit.h"
#include "lowbit_layout.h"
#include "quantize.h"

namespace fewbit {
namespace {

constexpr int64_t kRowBlock = 16;
constexpr int64_t kChunk = 64;  // k of a chunk of integer rows

inline int64_t depth_of(const LowbitWeights& w) { return (w.padded + kChunk - 1) / kChunk * kChunk; }
inline int rows_of(const LowbitCall& call, int64_t first) {
  return static_cast<int>(call.rows - first < kRowBlock ? call.rows - first : kRowBlock);
}
inline int parts_of(const LowbitCall& call) { return call.row_type == RowType::bf16 ? 1 : 3; }

/// The prepared integer rows of a block; `rows` is the distance between the values of one row, too.
struct IntegerRows {
  const int8_t* codes;
  const float* scale;
  const int32_t* sum;
  const int32_t* zero;  // of each row, or null
  int rows;

  IntegerRows(const LowbitCall& call, int64_t first)
      : codes(reinterpret_cast<const int8_t*>(call.codes) + first * depth_of(call.weights)),
        scale(call.scale + first * call.weights.groups),
        sum(call.sum + first * call.weights.groups),
        zero(call.shift == nullptr ? nullptr : call.shift + first),
        rows(rows_of(call, first)) {}
  const int8_t* at(int row, int64_t k) const {
    return codes + (k / kChunk * rows + row) * kChunk + k % kChunk;
  }
};

/// Floats k to k + n of a row of the call, in `buffer` if they must be converted or padded with zeros.
inline const float* read_floats(const LowbitCall& call, int64_t row, int64_t k, int64_t n, float* buffer) {
  const int64_t columns = call.weights.columns, at = row * columns + k;
  const int64_t there = columns - k < n ? (columns > k ? columns - k : 0) : n;
  if (call.row_type == RowType::f32) {
    const float* x = static_cast<const float*>(call.x) + at;
    if (there == n) return x;
    for (int64_t i = 0; i < there; ++i) buffer[i] = x[i];
  } else {
    widen(static_cast<const uint16_t*>(call.x) + at, Float::bf16, there, buffer);
  }
  for (int64_t i = there; i < n; ++i) buffer[i] = 0.0f;
  return buffer;
}

/// Calls fn(k, n) for runs of [begin, end) that stay within a chunk.
template <class Fn>
void each_run(int64_t begin, int64_t end, const Fn& fn) {
  for (int64_t k = begin; k < end;) {
    const int64_t to = (k / kChunk + 1) * kChunk < end ? (k / kChunk + 1) * kChunk : end;
    fn(k, to - k);
    k = to;
  }
}

/// Adds codes by the dot product with ones: whole chunks, and what is left one by one.
class CodeSum {
 public:
  CodeSum() {
    for (int p = 0; p < Simd::kParts; ++p) parts_[p] = Simd::ints(0);
  }
  void add(const int8_t* codes, int64_t n) {
    if (n < kChunk) {
      for (int64_t i = 0; i < n; ++i) rest_ += codes[i];
      return;
    }
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(codes);
    for (int p = 0; p < Simd::kParts; ++p) {
      const Simd::Partial sum =
          Simd::dot(Simd::begin(parts_[p]), Simd::bytes(1), Simd::load(bytes + p * kPart));
      parts_[p] = Simd::finish(parts_[p], sum);
    }
  }
  int32_t total() const {
    int32_t lanes[kTile], sum = rest_;
    std::memcpy(lanes, parts_, sizeof lanes);
    for (int i = 0; i < kTile; ++i) sum += lanes[i];
    return sum;
  }

 private:
  Simd::Int parts_[Simd::kParts];
  int32_t rest_ = 0;
};

/// The largest magnitude of columns [begin, end) of a row; a NaN if there is one.
inline float magnitude_of(const LowbitCall& call, int64_t row, int64_t begin, int64_t end) {
  const int64_t columns = call.weights.columns;
  if (call.row_type == RowType::f32 && end <= columns) {
    return largest_magnitude(static_cast<const float*>(call.x) + row * columns + begin, end - begin);
  }
  float buffer[kChunk];
  int32_t largest = 0;  // bits of magnitudes order like integers, a NaN lies above infinity
  each_run(begin, end, [&](int64_t k, int64_t n) {
    const float magnitude = largest_magnitude(read_floats(call, row, k, n, buffer), n);
    const int32_t bits = static_cast<int32_t>(bits_from_float(magnitude));
    largest = bits > largest ? bits : largest;
  });
  return float_of_bits32(largest);
}

/// The scale of quantize_rows_dynamic for columns [begin, end) of a row.
inline float dynamic_scale(const LowbitCall& call, int64_t row, int64_t begin, int64_t end) {
  return symmetric_scale(magnitude_of(call, row, begin, end), call.qmax);
}

/// Rows with scales above this have them divided by it, so that no sum overflows whose result does not: an
/// int32 times 2^64 is a float.
constexpr float kLargeScale = 0x1p64f;

/// Makes the scales of a row fit to be multiplied with, and notes what the outputs are to be multiplied with.
inline void tame_scales(const LowbitCall& call, int64_t first, int row, int rows) {
  float* scales = call.scale + first * call.weights.groups + row;
  float largest = 0.0f;
  for (int64_t g = 0; g < call.weights.groups; ++g) {
    largest = scales[g * rows] > largest ? scales[g * rows] : largest;
  }
  call.factor[first + row] = largest > kLargeScale ? kLargeScale : 1.0f;
  if (largest <= kLargeScale) return;
  for (int64_t g = 0; g < call.weights.groups; ++g) scales[g * rows] *= 1.0f / kLargeScale;
}

/// Codes of columns [k, k + n) of a row, quantized with `scale` or copied, as signed bytes.
inline void write_codes(const LowbitCall& call, int64_t row, int64_t k, int64_t n, float scale, int8_t* to) {
  if (call.row_type == RowType::f32 || call.row_type == RowType::bf16) {
    float buffer[kChunk];
    quantize_row(read_floats(call, row, k, n, buffer), n, scale, 0, {-call.qmax, call.qmax}, to);
    return;
  }
  const int64_t columns = call.weights.columns;
  const int64_t there = columns - k < n ? (columns > k ? columns - k : 0) : n;
  const uint8_t* from = static_cast<const uint8_t*>(call.x) + row * columns + k;
  const uint8_t flip =
      call.row_type == RowType::u8 ? 128 : 0;  // code - 128 is the code with its top bit turned
  for (int64_t i = 0; i < there; ++i) to[i] = static_cast<int8_t>(from[i] ^ flip);
  for (int64_t i = there; i < n; ++i) to[i] = 0;
}

inline void prepare_integer_row(const LowbitCall& call, int64_t first, int row, int rows) {
  const LowbitWeights& w = call.weights;
  const bool coded = call.row_type == RowType::i8 || call.row_type == RowType::u8;
  int8_t* codes = reinterpret_cast<int8_t*>(call.codes) + first * depth_of(w);
  float whole = 1.0f;
  if (coded) {
    const int64_t at = call.per_row ? first + row : 0;
    whole = call.row_scale[at];
    if (call.shift != nullptr) {
      call.shift[first + row] = call.row_zero[at] - (call.row_type == RowType::u8 ? 128 : 0);
    }
  } else if (call.per_row) {
    whole = dynamic_scale(call, first + row, 0, w.padded);
  }
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t begin = g * w.group, end = begin + w.group;
    const float scale = coded || call.per_row ? whole : dynamic_scale(call, first + row, begin, end);
    CodeSum sum;
    each_run(begin, end, [&](int64_t k, int64_t n) {
      int8_t* to = codes + (k / kChunk * rows + row) * kChunk + k % kChunk;
      write_codes(call, first + row, k, n, scale, to);
      sum.add(to, n);
    });
    call.scale[first * w.groups + g * rows + row] = scale;
    call.sum[first * w.groups + g * rows + row] = sum.total();
  }
  tame_scales(call, first, row, rows);
  each_run(w.padded, depth_of(w), [&](int64_t k, int64_t n) {
    std::memset(codes + (k / kChunk * rows + row) * kChunk + k % kChunk, 0, static_cast<size_t>(n));
  });
}

void prepare_integer(const LowbitCall& call, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int rows = rows_of(call, first);
    for (int row = 0; row < rows; ++row) prepare_integer_row(call, first, row, rows);
  }
}

/// What floats of a row are multiplied with before the product, a power of two; its inverse is noted for the
/// outputs. Values up to 2^96 times 255 in sums of a million of them fit a float; larger ones are divided by
/// 2^32.
inline float tamed(const LowbitCall& call, int64_t row) {
  const float largest = magnitude_of(call, row, 0, call.weights.padded);
  call.factor[row] = largest > 0x1p96f ? 0x1p32f : 1.0f;
  return largest > 0x1p96f ? 0x1p-32f : 1.0f;
}

void prepare_float(const LowbitCall& call, int64_t begin, int64_t end) {
  float buffer[kChunk];
  for (int64_t row = begin; row < end; ++row) {
    float* to = reinterpret_cast<float*>(call.codes) + row * call.weights.padded;
    const float factor = tamed(call, row);
    each_run(0, call.weights.padded, [&](int64_t k, int64_t n) {
      const float* x = read_floats(call, row, k, n, buffer);
      for (int64_t i = 0; i < n; ++i) to[k + i] = x[i] * factor;
    });
  }
}

}  // namespace
}  // namespace fewbit
