// Low-bit weights times int8 activations on AMX tiles, for 16 rows and more.
//
// Layout: a panel of two tiles of outputs (32) by two blocks of rows (32): four accumulators of 16 by 16 int32,
// two tiles of activations and two of weights, all eight tile registers. The weights of a panel are unpacked
// once into bytes q - z (8-bit weights are used where they lie) and serve every block of rows.
// Cost: 64 k take four products of 16 cycles; at the end of a group four accumulators go through memory into float sums,
// three instructions for 16 outputs of a row. Small groups are therefore bounded by the latter.
// Why q - z: no zero point is left to correct; for 8 bits it would not fit a byte, so z * sum x is taken off there.
#pragma once

#include "lowbit_integer.h"

namespace fewbit {
namespace {

constexpr int64_t kIntegerTileRows = 12;  // fewer are as fast without tiles
constexpr int64_t kPanel = 2;        // tiles of outputs
constexpr int64_t kTileBytes = 1024;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

/// What was stored so far is in memory for the tile instructions, which compilers do not know to read it.
inline void settle() { __asm__ volatile("" : : : "memory"); }

/// Tiles 0-3 accumulate, 4 and 5 hold rows, 6 and 7 weights; `low` may be 0 where one block of rows is all.
inline void configure(int high, int low, int row_bytes) {
  TileShapes shapes;
  for (int t = 0; t < 8; ++t) {
    const bool is_weight = t > 5, is_low = t == 2 || t == 3 || t == 5;
    shapes.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? row_bytes : 64);
    shapes.rows[t] = static_cast<uint8_t>(is_weight ? row_bytes / 4 : (is_low && low > 0 ? low : high));
  }
  __asm__ volatile("" : : "r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
}

/// Scratch of one thread: float sums [32][32], integer accumulators [4][16][16], then the unpacked panel.
struct TileScratch {
  float* total;
  int32_t* acc;
  uint8_t* panel;
  explicit TileScratch(uint8_t* memory)
      : total(reinterpret_cast<float*>(memory)),
        acc(reinterpret_cast<int32_t*>(memory + 4096)),
        panel(memory + 4096 + 4 * kTileBytes) {}
};

/// q - z of one group of a tile as bytes, [group / 4][16 outputs][4].
template <int kBits>
inline void unpack_group(const LowbitWeights& w, int64_t tile, int64_t group, uint8_t* to) {
  const uint8_t* block = w.codes + tile * w.tile_bytes() + group * w.group * 2 * kBits;
  const __m512i spread = _mm512_set1_epi32(0x01010101);
  const __m512i zero = _mm512_mullo_epi32(zeros_of(w, tile, group, 0), spread);
  for (int64_t k = 0; k < w.group; k += kBlock, block += kBits * kLine, to += 8 * kLine) {
    for (int line = 0; line < kBits; ++line) ask_for(block + kAhead + line * kLine);
    each_step([&]<int kStep>() {
      _mm512_store_si512(to + kStep * kLine, _mm512_sub_epi8(codes_of<kBits, kStep>(block, 0), zero));
    });
  }
}

/// One panel's place: where its weights lie for the tile loads.
struct Panel {
  const uint8_t* first;
  const uint8_t* second;
};

template <bool kSigned, bool kTwoRows, bool kTwoTiles>
inline void multiply_group(const Panel& panel, const IntegerRows& high, const IntegerRows& low, int64_t begin,
                           int64_t group, int step, int32_t* acc) {
  _tile_zero(0);
  if constexpr (kTwoTiles) _tile_zero(1);
  if constexpr (kTwoRows) _tile_zero(2);
  if constexpr (kTwoRows && kTwoTiles) _tile_zero(3);
  for (int64_t k = 0; k < group; k += step) {
    _tile_loadd(4, high.at(0, begin + k), 64);
    _tile_loadd(6, panel.first + k * kTile, 64);
    if constexpr (kTwoTiles) _tile_loadd(7, panel.second + k * kTile, 64);
    if constexpr (kTwoRows) _tile_loadd(5, low.at(0, begin + k), 64);
    if constexpr (kSigned) {
      _tile_dpbssd(0, 4, 6);
      if constexpr (kTwoTiles) _tile_dpbssd(1, 4, 7);
      if constexpr (kTwoRows) _tile_dpbssd(2, 5, 6);
      if constexpr (kTwoRows && kTwoTiles) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      if constexpr (kTwoTiles) _tile_dpbsud(1, 4, 7);
      if constexpr (kTwoRows) _tile_dpbsud(2, 5, 6);
      if constexpr (kTwoRows && kTwoTiles) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, acc, 64);
  if constexpr (kTwoTiles) _tile_stored(1, acc + 256, 64);
  if constexpr (kTwoRows) _tile_stored(2, acc + 512, 64);
  if constexpr (kTwoRows && kTwoTiles) _tile_stored(3, acc + 768, 64);
}

/// total[row][column + 16] += scale of row * scale of output * (acc - z sum), z and sum for 8 bits alone.
template <bool kSigned, bool kFirst>
inline void scale_group(const LowbitWeights& w, int64_t tile, int64_t group, const IntegerRows& x,
                        const int32_t* acc, float* total) {
  const __m512 scale = scales_of(w, tile, group, 0);
  const __m512i zero = zeros_of(w, tile, group, 0);
  for (int r = 0; r < x.rows; ++r) {
    __m512i sum = _mm512_load_si512(acc + r * kTile);
    if constexpr (!kSigned) {
      sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sum[group * x.rows + r])));
    }
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x.scale[group * x.rows + r]));
    const __m512 before = kFirst ? _mm512_setzero_ps() : _mm512_load_ps(total + r * 2 * kTile);
    _mm512_store_ps(total + r * 2 * kTile, _mm512_fmadd_ps(scaled, scale, before));
  }
}

template <bool kSigned, bool kTwoRows, bool kTwoTiles, bool kFirst>
inline void scale_panel(const LowbitWeights& w, int64_t tile, int64_t group, const IntegerRows& high,
                        const IntegerRows& low, const TileScratch& scratch) {
  scale_group<kSigned, kFirst>(w, tile, group, high, scratch.acc, scratch.total);
  if constexpr (kTwoTiles) {
    scale_group<kSigned, kFirst>(w, tile + 1, group, high, scratch.acc + 256, scratch.total + kTile);
  }
  float* below = scratch.total + 16 * 2 * kTile;
  if constexpr (kTwoRows) scale_group<kSigned, kFirst>(w, tile, group, low, scratch.acc + 512, below);
  if constexpr (kTwoRows && kTwoTiles) {
    scale_group<kSigned, kFirst>(w, tile + 1, group, low, scratch.acc + 768, below + kTile);
  }
}

/// Up to 32 rows by one panel; with `unpacked` false the panel is unpacked on the way, group after group.
template <int kBits, bool kTwoRows, bool kTwoTiles>
void panel_rows(const LowbitCall& call, int64_t row, int64_t tile, bool unpacked, const TileScratch& scratch) {
  constexpr bool kSigned = kBits != 8;
  const LowbitWeights& w = call.weights;
  const IntegerRows high(call, row), low(call, kTwoRows ? row + kRowBlock : row);
  const int step = w.group % kChunk == 0 ? 64 : 32;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t begin = g * w.group;
    Panel panel;
    if constexpr (kSigned) {
      uint8_t* at = scratch.panel + begin * kPanel * kTile;
      if (!unpacked) {
        unpack_group<kBits>(w, tile, g, at);
        if constexpr (kTwoTiles) unpack_group<kBits>(w, tile + 1, g, at + w.group * kTile);
      }
      panel = {at, at + w.group * kTile};
    } else {
      const uint8_t* at = w.codes + tile * w.tile_bytes() + begin * kTile;
      panel = {at, at + w.tile_bytes()};
    }
    settle();
    multiply_group<kSigned, kTwoRows, kTwoTiles>(panel, high, low, begin, w.group, step, scratch.acc);
    if (g == 0) {
      scale_panel<kSigned, kTwoRows, kTwoTiles, true>(w, tile, g, high, low, scratch);
    } else {
      scale_panel<kSigned, kTwoRows, kTwoTiles, false>(w, tile, g, high, low, scratch);
    }
  }
  const int rows = high.rows + (kTwoRows ? low.rows : 0);
  for (int r = 0; r < rows; ++r) {
    const float* sums = scratch.total + r * 2 * kTile;
    finish(call, row + r, tile, sums);
    if constexpr (kTwoTiles) finish(call, row + r, tile + 1, sums + kTile);
  }
}

template <int kBits, bool kTwoTiles>
void panel_piece(const LowbitCall& call, const LowbitPiece& piece, int64_t tile, const TileScratch& scratch) {
  const int row_bytes = call.weights.group % kChunk == 0 ? 64 : 32;
  int high = 0, low = 0;
  for (int64_t row = piece.row_begin; row < piece.row_end; row += 2 * kRowBlock) {
    const int now_high = rows_of(call, row);
    const int now_low = row + kRowBlock < piece.row_end ? rows_of(call, row + kRowBlock) : 0;
    if (now_high != high || now_low != low) configure(high = now_high, low = now_low, row_bytes);
    if (low > 0) {
      panel_rows<kBits, true, kTwoTiles>(call, row, tile, row > piece.row_begin, scratch);
    } else {
      panel_rows<kBits, false, kTwoTiles>(call, row, tile, row > piece.row_begin, scratch);
    }
  }
}

template <int kBits>
void tiles_piece(const LowbitCall& call, const LowbitPiece& piece, uint8_t* memory) {
  const TileScratch scratch(memory);
  for (int64_t tile = piece.tile_begin; tile < piece.tile_end; tile += kPanel) {
    if (tile + 1 < piece.tile_end) {
      panel_piece<kBits, true>(call, piece, tile, scratch);
    } else {
      panel_piece<kBits, false>(call, piece, tile, scratch);
    }
  }
  _tile_release();
}

void integer_tiles(const LowbitCall& call, const LowbitPiece& piece, uint8_t* scratch) {
  switch (call.weights.bits) {
    case 2:
      return tiles_piece<2>(call, piece, scratch);
    case 3:
      return tiles_piece<3>(call, piece, scratch);
    case 4:
      return tiles_piece<4>(call, piece, scratch);
    default:
      return tiles_piece<8>(call, piece, scratch);
  }
}

}  // namespace
}  // namespace fewbit
