// Low-bit weights times a whole block of 16 rows of int8 activations, for sets with 32 registers of 16 lanes
// and a dot product of bytes (AVX-512 VNNI).
//
// Layout: 16 int32 sums, one a row, stay in registers through a group; the float sums of a tile are in the
// first cache, read and written once a group. Prepared rows of a full block lie 64 bytes apart
// (csrc/lowbit_rows.h), so that every broadcast is a constant away from one pointer, and part of its dot
// product. Cost: 16 dot products a weight line's field, which is loaded and unpacked once for all rows (csrc/
// lowbit_integer.h does it for eight): a dot product a cycle where the processor can, but for the ends of
// groups. Why the same bits as there: a row's products are added in another order in int32 only, which is
// exact; the floats are the same operations in the same order.
#pragma once

#include "lowbit_finish.h"
#include "lowbit_rows.h"
#include "lowbit_stream.h"

namespace fewbit {
namespace {

constexpr int kFull = 16;

/// How far ahead weights are asked for, into the second cache. By measurement on a Zen 4: half as far, or
/// into the first cache, products of 16 rows took 10 to 30% longer.
template <int kBits>
constexpr int64_t kFullAhead = 1024 * kBits;  // bytes

/// Whether this set has the registers for sixteen rows at once.
constexpr bool kHasBlocks = Simd::kParts == 1 && Simd::kDotsBytes;

/// One block of 32 k, `x` its codes of row 0, added to the sums of sixteen rows.
template <int kBits>
inline void add_full(const uint8_t* block, const int8_t* x, Simd::Int (&acc)[kFull]) {
  for (int line = 0; line < kBits; ++line) __builtin_prefetch(block + kFullAhead<kBits> + line * kLine, 0, 2);
  each_step([&]<int kStep>() {
    const Simd::Bytes codes = codes_of<kBits, kStep>(block, 0);
    for (int r = 0; r < kFull; ++r) {
      acc[r] = Simd::dot_wide(acc[r], codes, Simd::four(x + r * kChunk + 4 * kStep));
    }
  });
}

/// Sixteen rows by one tile: sums[16][16].
template <int kBits>
void full_tile(const LowbitWeights& w, int64_t tile, const IntegerRows& x, float* sums) {
  for (int i = 0; i < kFull; ++i) Simd::store(sums + i * kTile, Simd::floats(0.0f));
  const uint8_t* block = w.codes + tile * w.tile_bytes();
  for (int64_t g = 0; g < w.groups; ++g) {
    Simd::Int acc[kFull];
    const Simd::Int zero = Simd::sub(Simd::ints(0), zeros_of(w, tile, g, 0));
    for (int r = 0; r < kFull; ++r) acc[r] = Simd::mul(zero, Simd::ints(x.sum[g * kFull + r]));
    for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kBlock, block += kBits * kLine) {
      add_full<kBits>(block, x.at(0, k), acc);
    }
    const Simd::Float scale = scales_of(w, tile, g, 0);
    if (x.zero != nullptr) {
      const Simd::Int of_weights = weight_sums_of(w, tile, g, 0);
      for (int r = 0; r < kFull; ++r) {
        acc[r] = Simd::sub(acc[r], Simd::mul(of_weights, Simd::ints(x.zero[r])));
      }
    }
    for (int r = 0; r < kFull; ++r) {
      const Simd::Float scaled = Simd::mul(Simd::to_float(acc[r]), Simd::floats(x.scale[g * kFull + r]));
      Simd::store(sums + r * kTile, Simd::fma(scaled, scale, Simd::load(sums + r * kTile)));
    }
  }
}

template <int kBits>
void full_rows(const LowbitCall& call, int64_t row, const LowbitPiece& piece) {
  const IntegerRows x(call, row);
  alignas(64) float sums[kFull * kTile];
  for (int64_t tile = piece.tile_begin; tile < piece.tile_end; ++tile) {
    full_tile<kBits>(call.weights, tile, x, sums);
    for (int r = 0; r < kFull; ++r) finish(call, row + r, tile, sums + r * kTile);
  }
}

}  // namespace
}  // namespace fewbit
