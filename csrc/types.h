// Small types that the kernels and the code that calls them share.
//
// Layout: plain values, passed in registers. Cost: none.
// Why apart from csrc/dispatch.h: a new kernel in its table should not recompile those that have their own
// (csrc/lowbit.h).
#pragma once

#include <cstdint>

namespace fewbit {

enum class Float { f32, f16, bf16 };
enum class Code { i8, u8, i16, u16 };

inline constexpr int64_t size_of(Float kind) { return kind == Float::f32 ? 4 : 2; }
inline constexpr int64_t size_of(Code code) { return code == Code::i8 || code == Code::u8 ? 1 : 2; }

/// A C-contiguous matrix: `rows` times `cols`.
struct Shape {
  int64_t rows, cols;
};

/// The smallest and the largest code.
struct Bounds {
  int32_t qmin, qmax;
};

/// How a range becomes a scale and a zero point (fewbit.numbers.affine).
struct Rule {
  Bounds bounds;
  bool symmetric;
  Float scale_type;  // what the scale is rounded to
};

/// Whether integer products of few rows, which wait for memory, should ask for weights ahead of their
/// arithmetic (csrc/cpu.cpp). Not on AMD's processors: on a Zen 4 their own prefetching reads 4-bit weights
/// at 30 GB/s a core, where asking gave 18 to 25. With more rows asking helps there, too.
extern const bool asks_ahead;

/// Zero points must lie within +-kMaxZeroPoint: code minus zero point is then exact in float32.
inline constexpr int32_t kMaxZeroPoint = 1 << 20;
/// Bins a histogram may have: bin numbers are then exact in float32.
inline constexpr int64_t kMaxBins = 1 << 22;
/// Sub-histograms that share the counting (csrc/histogram.h); scratch holds this many times the bins.
inline constexpr int64_t kSubHistograms = 4;

}  // namespace fewbit
