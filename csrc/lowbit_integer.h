// Low-bit weights times int8 activations: int32 within a group, floats across groups.
//
// Layout: one tile and up to kMaxRows rows at a time; the sums of a tile stay in registers through all of K.
// Cost: for 64 products one bit operation (of 3 bits sometimes three) and a dot product; with one row the
// memory is what it waits for, so lines are asked for some KiB ahead and codes are multiplied where they
// stand in their bytes, which saves the shifts. Why zero points begin the sum: sum x (q - z) = sum x q - z
// sum x, exact in int32, and one instruction a group. Every row and output is computed alone and in one
// order, so neither the number of threads nor the number of rows changes a bit.
#pragma once

#include "lowbit_block.h"

namespace fewbit {
namespace {

/// Whether codes are multiplied where they stand, those of a field in a chain of its own, which is moved down
/// at the end of a group: exact, as every product of the field has the factor, and without overflow, as
/// 224 * 128 * 32768 / 4 and 240 * 128 * 32768 / 2 < 2^31.
template <int kBits, int kRows>
constexpr bool kInPlace = Simd::kDotsBytes && kBits != 8 && kRows == 1;

/// Sums of a row that do not wait for one another.
template <int kBits, int kRows>
constexpr int kChainsOf = kInPlace<kBits, kRows> ? kFields<kBits> : (kRows == 1 ? 2 : 1);

/// Step kStep's codes for the dot products.
template <int kBits, int kRows, int kStep>
inline Simd::Bytes dot_codes(const uint8_t* block, int part) {
  if constexpr (kInPlace<kBits, kRows>) return raised_codes<kBits, kStep>(block, part);
  return codes_of<kBits, kStep>(block, part);
}

/// The sum of one row's chains.
template <int kBits, int kRows, int kChain = kChainsOf<kBits, kRows> - 1>
inline Simd::Int sum_of(const Simd::Int (&acc)[kChainsOf<kBits, kRows>][kRows][Simd::kParts], int row,
                        int part) {
  if constexpr (kChain == 0) {
    return acc[0][row][part];
  } else {
    constexpr int kDown = kInPlace<kBits, kRows> ? raise<kBits>(kChain) : 0;
    return Simd::add(sum_of<kBits, kRows, kChain - 1>(acc, row, part),
                     Simd::down<kDown>(acc[kChain][row][part]));
  }
}

/// One block of 32 k added to acc[kChains][kRows][kParts].
template <int kBits, int kRows, int kChains>
inline void add_block(const uint8_t* block, const IntegerRows& x, int first, int64_t k,
                      Simd::Int (&acc)[kChains][kRows][Simd::kParts]) {
  const int8_t* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = x.at(first + r, k);
  if (kRows > kAloneRows<kBits> || asks_ahead) ask_ahead<kBits>(block);
  Simd::Partial sums[kChains][kRows][Simd::kParts];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < Simd::kParts; ++p) sums[c][r][p] = Simd::begin(acc[c][r][p]);
    }
  }
  each_step([&]<int kStep>() {
    constexpr int kChain = kStep % kChains;
    Simd::Bytes codes[Simd::kParts];
    for (int p = 0; p < Simd::kParts; ++p) codes[p] = dot_codes<kBits, kRows, kStep>(block, p);
    for (int r = 0; r < kRows; ++r) {
      const Simd::Bytes four = Simd::four(rows[r] + 4 * kStep);
      for (int p = 0; p < Simd::kParts; ++p) {
        if constexpr (kBits == 8) {
          acc[kChain][r][p] = Simd::dot_wide(acc[kChain][r][p], codes[p], four);
        } else {
          sums[kChain][r][p] = Simd::dot(sums[kChain][r][p], codes[p], four);
        }
      }
    }
  });
  if constexpr (kBits != 8) {
    for (int c = 0; c < kChains; ++c) {
      for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < Simd::kParts; ++p) acc[c][r][p] = Simd::finish(acc[c][r][p], sums[c][r][p]);
      }
    }
  }
}

/// Rows first to first + kRows - 1 of the block of rows `x` by one tile: sums[kRows][16].
template <int kBits, int kRows>
void integer_tile(const LowbitWeights& w, int64_t tile, const IntegerRows& x, int first, float* sums) {
  constexpr int kChains = kChainsOf<kBits, kRows>;
  const Simd::Int shift = Simd::ints(kBits == 8 ? Simd::kWideShift : 0);
  Simd::Float total[kRows][Simd::kParts];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < Simd::kParts; ++p) total[r][p] = Simd::floats(0.0f);
  }
  const uint8_t* block = w.codes + tile * w.tile_bytes();
  for (int64_t g = 0; g < w.groups; ++g) {
    Simd::Int acc[kChains][kRows][Simd::kParts];
    for (int p = 0; p < Simd::kParts; ++p) {
      const Simd::Int zero = Simd::sub(shift, zeros_of(w, tile, g, p));
      for (int r = 0; r < kRows; ++r) {
        acc[0][r][p] = Simd::mul(zero, Simd::ints(x.sum[g * x.rows + first + r]));
        for (int c = 1; c < kChains; ++c) acc[c][r][p] = Simd::ints(0);
      }
    }
    for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kBlock, block += kBits * kLine) {
      add_block<kBits, kRows, kChains>(block, x, first, k, acc);
    }
    for (int p = 0; p < Simd::kParts; ++p) {
      const Simd::Float scale = scales_of(w, tile, g, p);
      for (int r = 0; r < kRows; ++r) {
        Simd::Int sum = sum_of<kBits, kRows>(acc, r, p);
        if (x.zero != nullptr) {
          sum = Simd::sub(sum, Simd::mul(weight_sums_of(w, tile, g, p), Simd::ints(x.zero[first + r])));
        }
        const Simd::Float scaled =
            Simd::mul(Simd::to_float(sum), Simd::floats(x.scale[g * x.rows + first + r]));
        total[r][p] = Simd::fma(scaled, scale, total[r][p]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < Simd::kParts; ++p) Simd::store(sums + r * kTile + p * Simd::kLanes, total[r][p]);
  }
}

template <int kBits, int kRows>
void integer_rows(const LowbitCall& call, int64_t row, int first, const LowbitPiece& piece) {
  const IntegerRows x(call, row);
  alignas(64) float sums[kRows * kTile];
  if (kRows > kAloneRows<kBits> || asks_ahead) ask_first<kBits>(call.weights, piece.tile_begin);
  for (int64_t tile = piece.tile_begin; tile < piece.tile_end; ++tile) {
    integer_tile<kBits, kRows>(call.weights, tile, x, first, sums);
    for (int r = 0; r < kRows; ++r) finish(call, row + first + r, tile, sums + r * kTile);
  }
}

/// The kernel for exactly `rows` rows, at most kMost.
template <int kBits, int kMost>
void integer_some(const LowbitCall& call, int64_t row, int first, int rows, const LowbitPiece& piece) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return integer_some<kBits, kMost - 1>(call, row, first, rows, piece);
  }
  integer_rows<kBits, kMost>(call, row, first, piece);
}

template <int kBits>
void integer_piece(const LowbitCall& call, const LowbitPiece& piece) {
  for (int64_t row = piece.row_begin; row < piece.row_end; row += kRowBlock) {
    const int rows = rows_of(call, row);
    if constexpr (kHasBlocks) {
      if (rows == kFull) {
        full_rows<kBits>(call, row, piece);
        continue;
      }
    }
    for (int first = 0; first < rows; first += Simd::kMaxRows) {
      const int some = rows - first < Simd::kMaxRows ? rows - first : Simd::kMaxRows;
      integer_some<kBits, Simd::kMaxRows>(call, row, first, some, piece);
    }
  }
}

void integer(const LowbitCall& call, const LowbitPiece& piece) {
  switch (call.weights.bits) {
    case 2:
      return integer_piece<2>(call, piece);
    case 3:
      return integer_piece<3>(call, piece);
    case 4:
      return integer_piece<4>(call, piece);
    default:
      return integer_piece<8>(call, piece);
  }
}

}  // namespace
}  // namespace fewbit
