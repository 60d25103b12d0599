// Low-bit weights times float activations on AMX's bfloat16 tiles, in full float32 precision.
//
// Layout: as csrc/lowbit_tiles.h, a panel of two tiles of outputs by two blocks of rows. q - z is an integer
// of at most 9 bits with its sign, which bfloat16 holds exactly; an activation is one, or the sum of three
// bfloat16 values (csrc/lowbit_rows.h), each multiplied on its own into the same float32 sums. Cost: 32 k
// take 4 products (12 for float32) of 16 cycles: a float32 product at a third of the bfloat16 rate, still
// five times the rate of FMA. Why the middle two of every four k change places: a bfloat16 tile wants pairs
// of k in 32 bits, and the four bytes k0 k1 k2 k3 of a lane give the pairs (k0, k2) and (k1, k3) by a mask
// and a shift.
#pragma once

#include "lowbit_tiles.h"

namespace fewbit {
namespace {

constexpr int64_t kFloatTileRows = 4;  // fewer are as fast without tiles
constexpr int64_t kFloatDepth = 384;   // k of a block times parts of an activation

inline uint16_t leading_bfloat(float v) {
  return static_cast<uint16_t>(v != v ? 0x7FC0u : bits_from_float(v) >> 16);
}

/// 32 floats as bfloat16 parts [kParts][distance], in the order of the tiles.
template <int kParts>
inline void split_run(const float* x, float factor, uint16_t* to, int64_t distance) {
  for (int i = 0; i < kBlock; ++i) {
    const int at = (i & ~3) | ((i & 1) << 1) | ((i >> 1) & 1);
    float rest = x[at] * factor;
    for (int part = 0; part < kParts; ++part) {
      const uint16_t lead = leading_bfloat(rest);
      to[part * distance + i] = lead;
      const float taken = float_from_bits(static_cast<uint32_t>(lead) << 16);
      const bool finite = (lead & 0x7F80u) != 0x7F80u;
      rest = finite ? rest - taken : 0.0f;  // an infinity is its own leading part, and leaves no NaN behind
    }
  }
}

void prepare_tiles_float(const LowbitCall& call, int64_t begin, int64_t end) {
  const int parts = parts_of(call);
  float buffer[kBlock];
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int rows = rows_of(call, first);
    uint16_t* block = reinterpret_cast<uint16_t*>(call.codes) + first * call.weights.padded * parts;
    float factors[kRowBlock];
    for (int r = 0; r < rows; ++r) factors[r] = tamed(call, first + r);
    for (int64_t k = 0; k < call.weights.padded; k += kBlock) {
      for (int r = 0; r < rows; ++r) {
        const float* x = read_floats(call, first + r, k, kBlock, buffer);
        uint16_t* to = block + (k * parts * rows) + r * kBlock;
        if (parts == 1) {
          split_run<1>(x, factors[r], to, 0);
        } else {
          split_run<3>(x, factors[r], to, rows * kBlock);
        }
      }
    }
  }
}

/// The prepared rows of a block: tile `part` of columns k to k + 31.
struct FloatRows {
  const uint16_t* values;
  int rows, parts;
  FloatRows(const LowbitCall& call, int64_t first)
      : values(reinterpret_cast<const uint16_t*>(call.codes) + first * call.weights.padded * parts_of(call)),
        rows(rows_of(call, first)),
        parts(parts_of(call)) {}
  const uint16_t* at(int64_t k, int part) const { return values + (k * parts + part * kBlock) * rows; }
};

/// bfloat16 of the low bytes of the words of `v` (codes) minus `zero`: a table for up to 4 bits.
inline __m512i bfloats_of_words(__m512i v, __m512i zero, __m512i table) {
  return _mm512_permutexvar_epi16(_mm512_sub_epi16(v, zero), table);
}

/// bfloat16 pairs (low, high) of two vectors of int32 that bfloat16 holds exactly.
inline __m512i bfloats_of_ints(__m512i low, __m512i high) {
  const __m512i a = _mm512_castps_si512(_mm512_cvtepi32_ps(low)),
                b = _mm512_castps_si512(_mm512_cvtepi32_ps(high));
  return _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
}

/// bfloat16 of -16 .. 15, addressed by the low five bits of a two's complement number.
inline __m512i small_bfloats() {
  alignas(64) uint16_t values[32];
  for (int i = 0; i < 32; ++i) values[i] = leading_bfloat(static_cast<float>(i < 16 ? i : i - 32));
  return _mm512_load_si512(values);
}

/// q - z of one group of a tile as bfloat16, [group / 2][16 outputs][2] in the order of the rows.
template <int kBits>
inline void unpack_floats(const LowbitWeights& w, int64_t tile, int64_t group, __m512i table, uint8_t* to) {
  const uint8_t* block = w.codes + tile * w.tile_bytes() + group * w.group * 2 * kBits;
  const __m512i zero = zeros_of(w, tile, group, 0);
  const __m512i pairs = _mm512_or_si512(zero, _mm512_slli_epi32(zero, 16));
  const __m512i low = _mm512_set1_epi16(255), byte = _mm512_set1_epi32(255);
  for (int64_t k = 0; k < w.group; k += kBlock, block += kBits * kLine, to += 16 * kLine) {
    ask_ahead<kBits>(block);
    each_step([&]<int kStep>() {
      const __m512i codes = codes_of<kBits, kStep>(block, 0);
      __m512i even, odd;
      if constexpr (kBits == 8) {
        const auto at = [&](int shift) {
          return _mm512_sub_epi32(
              _mm512_and_si512(_mm512_srli_epi32(codes, static_cast<unsigned>(shift)), byte), zero);
        };
        even = bfloats_of_ints(at(0), at(16));
        odd = bfloats_of_ints(at(8), at(24));
      } else {
        even = bfloats_of_words(_mm512_and_si512(codes, low), pairs, table);
        odd = bfloats_of_words(_mm512_srli_epi16(codes, 8), pairs, table);
      }
      _mm512_store_si512(to + 2 * kStep * kLine, even);
      _mm512_store_si512(to + (2 * kStep + 1) * kLine, odd);
    });
  }
}

template <bool kTwoRows, bool kTwoTiles>
inline void multiply_floats(const Panel& panel, const FloatRows& high, const FloatRows& low, int64_t begin,
                            int64_t group, int32_t* acc) {
  clear_tiles<kTwoRows, kTwoTiles>();
  for (int64_t k = 0; k < group; k += kBlock) {
    _tile_loadd(6, panel.first + k * kTile * 2, 64);
    if constexpr (kTwoTiles) _tile_loadd(7, panel.second + k * kTile * 2, 64);
    for (int part = 0; part < high.parts; ++part) {
      _tile_loadd(4, high.at(begin + k, part), 64);
      if constexpr (kTwoRows) _tile_loadd(5, low.at(begin + k, part), 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kTwoTiles) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwoRows) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTwoRows && kTwoTiles) _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tiles<kTwoRows, kTwoTiles>(acc);
}

/// total[row][column] += scale of output * acc.
inline void scale_floats(const LowbitWeights& w, int64_t tile, int64_t group, int rows, const int32_t* acc,
                         float* total) {
  const __m512 scale = scales_of(w, tile, group, 0);
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r, acc += kTile, total += kPair) {
    _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_load_ps(acc), scale, _mm512_load_ps(total)));
  }
}

template <bool kTwoRows, bool kTwoTiles>
inline void scale_float_square(const LowbitWeights& w, const Square& at, int64_t group, const FloatRows& high,
                               const FloatRows& low, const int32_t* acc) {
  float* below = at.total + kTile * kPair;
  scale_floats(w, at.tile, group, high.rows, acc, at.total);
  if constexpr (kTwoTiles) scale_floats(w, at.tile + 1, group, high.rows, acc + 256, at.total + kTile);
  if constexpr (kTwoRows) scale_floats(w, at.tile, group, low.rows, acc + 512, below);
  if constexpr (kTwoRows && kTwoTiles)
    scale_floats(w, at.tile + 1, group, low.rows, acc + 768, below + kTile);
}

/// Groups [begin, end) of a square; `panel` is where their unpacked weights are, or will be.
template <int kBits, bool kTwoRows, bool kTwoTiles>
void float_square(const LowbitCall& call, const Square& at, int64_t begin, int64_t end, __m512i table,
                  int32_t* acc, uint8_t* panel) {
  const LowbitWeights& w = call.weights;
  const FloatRows high(call, at.row), low(call, kTwoRows ? at.row + kRowBlock : at.row);
  const auto place = [&](int64_t g) { return panel + (g - begin) * w.group * kPair * 2; };
  const auto unpack = [&](int64_t g) {
    if (at.unpacked || g >= end) return;
    unpack_floats<kBits>(w, at.tile, g, table, place(g));
    if constexpr (kTwoTiles) unpack_floats<kBits>(w, at.tile + 1, g, table, place(g) + w.group * kTile * 2);
  };
  unpack(begin);
  for (int64_t g = begin; g < end; ++g) {
    unpack(g + 1);
    const Panel weights{place(g), place(g) + w.group * kTile * 2};
    settle();
    multiply_floats<kTwoRows, kTwoTiles>(weights, high, low, g * w.group, w.group, acc + g % 2 * 1024);
    if (g == begin) continue;
    scale_float_square<kTwoRows, kTwoTiles>(w, at, g - 1, high, low, acc + (g - 1) % 2 * 1024);
  }
  scale_float_square<kTwoRows, kTwoTiles>(w, at, end - 1, high, low, acc + (end - 1) % 2 * 1024);
}

template <int kBits>
void float_tiles_piece(const LowbitCall& call, const LowbitPiece& piece, uint8_t* memory) {
  const __m512i table = small_bfloats();
  each_part(piece, [&](const LowbitPiece& part) {
    const TileScratch scratch(memory, part);
    const auto multiply = [&](const Square& at, bool two_rows, bool two_tiles, int64_t begin, int64_t end,
                              uint8_t* panel) {
      int32_t* acc = scratch.acc;
      if (two_rows) {
        if (two_tiles) return float_square<kBits, true, true>(call, at, begin, end, table, acc, panel);
        return float_square<kBits, true, false>(call, at, begin, end, table, acc, panel);
      }
      if (two_tiles) return float_square<kBits, false, true>(call, at, begin, end, table, acc, panel);
      return float_square<kBits, false, false>(call, at, begin, end, table, acc, panel);
    };
    walk_piece(call, part, scratch, kFloatDepth / parts_of(call), 2, 64, multiply);
  });
  _tile_release();
}

void float_tiles(const LowbitCall& call, const LowbitPiece& piece, uint8_t* scratch) {
  switch (call.weights.bits) {
    case 2:
      return float_tiles_piece<2>(call, piece, scratch);
    case 3:
      return float_tiles_piece<3>(call, piece, scratch);
    case 4:
      return float_tiles_piece<4>(call, piece, scratch);
    default:
      return float_tiles_piece<8>(call, piece, scratch);
  }
}

}  // namespace
}  // namespace fewbit
