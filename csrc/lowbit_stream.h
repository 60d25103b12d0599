// How the kernels read low-bit weights: their scales and zero points, and their codes as a stream.
//
// Layout: csrc/lowbit_layout.h. Cost: with one row the memory is what a kernel waits for, so lines are asked
// for some KiB ahead of the arithmetic where the processor does not do better alone. Why per bit width: what
// is in flight should be the same number of microseconds.
#pragma once

#include "lowbit.h"
#include "lowbit_layout.h"

namespace fewbit {
namespace {

/// How far ahead of the arithmetic weights are asked for, and into which cache (2: the second, where one core
/// keeps more requests open; 3: the first). By measurement on an Intel Xeon: 4 KiB ahead were 10% slower than
/// these. Of 2 and 3 bits, which leave fewer bytes a dot product, the lines `kFarAhead` on are asked into the
/// second as well. A processor that does better alone is not asked (csrc/types.h).
template <int kBits>
constexpr int64_t kAhead = kBits < 4 ? 1024 : 3072;  // bytes
template <int kBits>
constexpr int kLevel = kBits < 4 ? 3 : 2;
constexpr int64_t kFarAhead = 3072;

/// Integer products of up to so many rows leave it to the processor if that does better alone.
template <int kBits>
constexpr int kAloneRows = kBits == 8 ? 4 : 2;

inline Simd::Float scales_of(const LowbitWeights& w, int64_t tile, int64_t group, int part) {
  const int64_t at = (tile * w.groups + group) * kTile + part * Simd::kLanes;
  switch (w.scale_type) {
    case ScaleType::f16:
      return Simd::load_half(static_cast<const uint16_t*>(w.scales) + at);
    case ScaleType::bf16:
      return Simd::load_bfloat(static_cast<const uint16_t*>(w.scales) + at);
    default:
      return Simd::load(static_cast<const float*>(w.scales) + at);
  }
}

inline Simd::Int zeros_of(const LowbitWeights& w, int64_t tile, int64_t group, int part) {
  if (w.zeros == nullptr) return Simd::ints(w.zero);
  return Simd::widen(w.zeros + (tile * w.groups + group) * kTile + part * Simd::kLanes);
}

inline Simd::Int weight_sums_of(const LowbitWeights& w, int64_t tile, int64_t group, int part) {
  return Simd::load_ints(w.sums + (tile * w.groups + group) * kTile + part * Simd::kLanes);
}

template <int kBits>
inline void ask_for(const uint8_t* line) {
  __builtin_prefetch(line, 0, kLevel<kBits>);
}

/// Asks for what the block `kAhead` bytes on holds.
template <int kBits>
inline void ask_ahead(const uint8_t* block) {
  for (int line = 0; line < kBits; ++line) {
    ask_for<kBits>(block + kAhead<kBits> + line * kLine);
    if constexpr (kBits < 4) __builtin_prefetch(block + kFarAhead + line * kLine, 0, 2);
  }
}

/// Asks for the first lines of a piece, all at once; from there on every block asks for a later one.
template <int kBits>
inline void ask_first(const LowbitWeights& w, int64_t tile) {
  const uint8_t* begin = w.codes + tile * w.tile_bytes();
  for (int64_t at = 0; at < kAhead<kBits>; at += kLine) ask_for<kBits>(begin + at);
}

}  // namespace
}  // namespace fewbit
