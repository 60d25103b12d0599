// Low-bit weights times float activations: y = sum over groups of s * sum of x (q - z), all in float32.
//
// Layout: one tile and up to kMaxRows rows at a time; a sum for each byte position while there are few rows.
// Cost: four instructions and an FMA for 16 products of one row; AVX-512 takes q - z from a table in one
// register where the zero point is one for all (two instructions and an FMA). Why q - z is made before the
// product: x q - z x would lose bits where q is near z. It is an integer of at most 9 bits, exact in any
// float.
#pragma once

#include "lowbit_integer.h"

namespace fewbit {
namespace {

/// q - z for the codes of one byte position of 16 outputs, from a table of 16 floats or by arithmetic.
struct Centre {
  Simd::Float zero[Simd::kParts];
#if defined(__AVX512BW__)
  static constexpr bool kTable = true;
  __m512 table;

  template <int kBits>
  void fill(const LowbitWeights& w) {
    alignas(64) float values[16];
    for (int i = 0; i < 16; ++i) {
      const int code = kBits == 2 ? i & 3 : i;  // of a field of two bits the table sees two more bits above
      values[i] = static_cast<float>(code - w.zero);
    }
    table = _mm512_load_ps(values);
  }
  /// Codes of kBits (4 or 2) that begin at bit kShift of every lane.
  template <int kShift>
  Simd::Float look_up(Simd::Bytes line) const {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(line, kShift), table);
  }
#else
  static constexpr bool kTable = false;
  template <int kBits>
  void fill(const LowbitWeights&) {}
#endif
};

/// q - z of output lanes for k = 4 kStep + kByte of a block.
template <int kBits, bool kTable, int kStep, int kByte>
inline Simd::Float centred(const uint8_t* block, const Centre& centre, int part) {
#if defined(__AVX512BW__)
  if constexpr (kTable && kBits == 4) {
    return centre.look_up<8 * kByte + 4 * (kStep % 2)>(Simd::load(block + kStep / 2 * kLine));
  } else if constexpr (kTable && kBits == 2) {
    return centre.look_up<8 * kByte + 2 * (kStep % 4)>(Simd::load(block + kStep / 4 * kLine));
  }
#endif
  const Simd::Int code = Simd::byte_of<kByte>(codes_of<kBits, kStep>(block, part));
  return Simd::sub(Simd::to_float(code), centre.zero[part]);
}

template <int kBits, bool kTable, int kStep, int kByte, int kRows, int kChains>
inline void add_product(const uint8_t* block, const Centre& centre, const float* const (&x)[kRows], int64_t k,
                        Simd::Float (&acc)[kChains][kRows][Simd::kParts]) {
  constexpr int kChain = kByte % kChains;
  for (int p = 0; p < Simd::kParts; ++p) {
    const Simd::Float weight = centred<kBits, kTable, kStep, kByte>(block, centre, p);
    for (int r = 0; r < kRows; ++r) {
      const Simd::Float value = Simd::floats(x[r][k + 4 * kStep + kByte]);
      acc[kChain][r][p] = Simd::fma(weight, value, acc[kChain][r][p]);
    }
  }
}

/// Rows x[kRows] by one tile: sums[kRows][16].
template <int kBits, bool kTable, int kRows>
void float_tile(const LowbitWeights& w, int64_t tile, const float* const (&x)[kRows], float* sums) {
  constexpr int kChains = kRows == 1 ? 4 : (kRows == 2 ? 2 : 1);
  Centre centre;
  if constexpr (kTable) centre.fill<kBits>(w);
  Simd::Float total[kRows][Simd::kParts];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < Simd::kParts; ++p) total[r][p] = Simd::floats(0.0f);
  }
  const uint8_t* block = w.codes + tile * w.tile_bytes();
  for (int64_t g = 0; g < w.groups; ++g) {
    for (int p = 0; p < Simd::kParts; ++p) centre.zero[p] = Simd::to_float(zeros_of(w, tile, g, p));
    Simd::Float acc[kChains][kRows][Simd::kParts];
    for (int c = 0; c < kChains; ++c) {
      for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < Simd::kParts; ++p) acc[c][r][p] = Simd::floats(0.0f);
      }
    }
    for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kBlock, block += kBits * kLine) {
      ask_ahead<kBits>(block);
      each_step([&]<int kStep>() {
        add_product<kBits, kTable, kStep, 0>(block, centre, x, k, acc);
        add_product<kBits, kTable, kStep, 1>(block, centre, x, k, acc);
        add_product<kBits, kTable, kStep, 2>(block, centre, x, k, acc);
        add_product<kBits, kTable, kStep, 3>(block, centre, x, k, acc);
      });
    }
    for (int p = 0; p < Simd::kParts; ++p) {
      const Simd::Float scale = scales_of(w, tile, g, p);
      for (int r = 0; r < kRows; ++r) {
        Simd::Float sum = acc[0][r][p];
        for (int c = 1; c < kChains; ++c) sum = Simd::add(sum, acc[c][r][p]);
        total[r][p] = Simd::fma(sum, scale, total[r][p]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < Simd::kParts; ++p) Simd::store(sums + r * kTile + p * Simd::kLanes, total[r][p]);
  }
}

template <int kBits, bool kTable, int kRows>
void float_rows(const LowbitCall& call, int64_t row, const LowbitPiece& piece) {
  const float* x[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = reinterpret_cast<const float*>(call.codes) + (row + r) * call.weights.padded;
  }
  alignas(64) float sums[kRows * kTile];
  ask_first<kBits>(call.weights, piece.tile_begin);
  for (int64_t tile = piece.tile_begin; tile < piece.tile_end; ++tile) {
    float_tile<kBits, kTable, kRows>(call.weights, tile, x, sums);
    for (int r = 0; r < kRows; ++r) finish(call, row + r, tile, sums + r * kTile);
  }
}

template <int kBits, bool kTable, int kMost>
void float_some(const LowbitCall& call, int64_t row, int64_t rows, const LowbitPiece& piece) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return float_some<kBits, kTable, kMost / 2>(call, row, rows, piece);
  }
  float_rows<kBits, kTable, kMost>(call, row, piece);
  if (rows > kMost) float_some<kBits, kTable, kMost>(call, row + kMost, rows - kMost, piece);
}

template <int kBits>
void float_piece(const LowbitCall& call, const LowbitPiece& piece) {
  const int64_t rows = piece.row_end - piece.row_begin;
  if constexpr (Centre::kTable && (kBits == 2 || kBits == 4)) {
    if (call.weights.zeros == nullptr) {
      return float_some<kBits, true, Simd::kMaxRows>(call, piece.row_begin, rows, piece);
    }
  }
  float_some<kBits, false, Simd::kMaxRows>(call, piece.row_begin, rows, piece);
}

void floating(const LowbitCall& call, const LowbitPiece& piece) {
  switch (call.weights.bits) {
    case 2:
      return float_piece<2>(call, piece);
    case 3:
      return float_piece<3>(call, piece);
    case 4:
      return float_piece<4>(call, piece);
    default:
      return float_piece<8>(call, piece);
  }
}

}  // namespace
}  // namespace fewbit
