// Round to nearest in one pass: the range of every row, its scale and zero point, its codes, packed.
//
// Layout: x[rows][cols] -> scale[rows], zero_point[rows] if asymmetric, and the codes of all rows as one
// stream of csrc/pack.h (8 bits: a code a byte). Cost: x is read from memory once; its second reading and the
// codes before packing stay in the first cache. A division a value bounds it. Why the scale in double:
// fewbit.numbers.affine computes it so, and every bit here is its bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "halves.h"
#include "minmax.h"
#include "pack.h"
#include "quantize.h"
#include "types.h"

namespace fewbit {
namespace {

constexpr int64_t kTile = 1024;  // codes that wait to be packed

/// The step of a row, or 0 where it has none: not finite, subnormal, or beyond the scale type.
inline float step_of(double width, double levels, Float type) {
  if (width == 0.0) return rounded_to(type, 1.0f);
  const float step = static_cast<float>(width / levels);
  const bool fits = step >= 0x1p-126f && step <= largest_of(type);  // false for NaN
  return fits ? rounded_to(type, step) : 0.0f;
}

/// clamp(round(qmin - lo / step)), ties to even; 0 for a row without width.
inline int32_t zero_point_of(double lo, double hi, double step, Bounds bounds) {
  constexpr double kOneHasNoFraction = 6755399441055744.0;  // 1.5 * 2^52
  if (!(hi > lo)) return 0 < bounds.qmin ? bounds.qmin : 0 > bounds.qmax ? bounds.qmax : 0;
  const double least = bounds.qmin, most = bounds.qmax;
  double exact = least - lo / step;
  exact = exact > least ? exact : least;
  exact = exact < most ? exact : most;
  return static_cast<int32_t>((exact + kOneHasNoFraction) - kOneHasNoFraction);
}

/// A stream of codes, packed whenever many wait: a call for each short row would cost more than the packing.
class Stream {
 public:
  Stream(int bits, uint8_t* out) : bits_(bits), out_(out) {}

  /// Where the next n <= kTile codes go.
  uint8_t* next(int64_t n) {
    if (held_ + n > 2 * kTile) {
      const int64_t whole = held_ / 8 * 8;
      write(whole);
      std::memcpy(codes_, codes_ + whole, static_cast<size_t>(held_ - whole));
      held_ -= whole;
    }
    held_ += n;
    return codes_ + held_ - n;
  }
  void finish() { write(held_); }

 private:
  void write(int64_t n) {
    pack(codes_, n, bits_, out_);
    out_ += n * bits_ / 8;
  }

  int bits_;
  uint8_t* out_;
  int64_t held_ = 0;
  uint8_t codes_[2 * kTile];
};

inline void quantize_into(Stream& stream, const char* x, Float kind, int64_t n, float step,
                          int32_t zero_point, Bounds bounds) {
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t tile = n - i < kTile ? n - i : kTile;
    quantize_row_of(x + i * size_of(kind), kind, tile, step, zero_point, bounds, stream.next(tile));
  }
}

/// Gives false if a row has no step; what was written is then of no use.
bool minmax_quantize_rows(const void* x, Float kind, Shape shape, Rule rule, int bits, float* scale,
                          int32_t* zero_point, uint8_t* out) {
  const char* row = static_cast<const char*>(x);
  const int64_t stride = shape.cols * size_of(kind);
  const Bounds bounds = rule.bounds;
  const double levels = !rule.symmetric   ? static_cast<double>(bounds.qmax) - bounds.qmin
                        : bounds.qmax > 0 ? bounds.qmax
                                          : -static_cast<double>(bounds.qmin);
  Stream stream(bits, out);
  for (int64_t r = 0; r < shape.rows; ++r, row += stride) {
    float ends[2] = {};
    minmax_rows(row, kind, {1, shape.cols}, ends);
    const double lo = ends[0] < 0.0f ? ends[0] : 0.0, hi = ends[1] > 0.0f ? ends[1] : 0.0;
    const bool is_number = ends[0] == ends[0];
    const float step = step_of(rule.symmetric ? (-lo > hi ? -lo : hi) : hi - lo, levels, rule.scale_type);
    if (!is_number || step == 0.0f) return false;
    scale[r] = step;
    int32_t zero = 0;
    if (!rule.symmetric) zero_point[r] = zero = zero_point_of(lo, hi, static_cast<double>(step), bounds);
    quantize_into(stream, row, kind, shape.cols, step, zero, bounds);
  }
  stream.finish();
  return true;
}

}  // namespace
}  // namespace fewbit
