// Low-bit weights times int8 activations on AMX tiles, for a dozen rows and more.
//
// Layout: two tiles of outputs (32) by two blocks of rows (32) at a time: four accumulators of 16 by 16
// int32, two tiles of activations and two of weights, all eight tile registers. Weights are unpacked once a
// piece into bytes q - z (those of 8 bits are used where they lie) and serve every block of rows; K is walked
// in blocks whose activations stay in the first cache while all outputs of the piece use them. Cost: 64 k
// take four products of 16 cycles; at the end of a group four accumulators go through memory into float sums,
// three instructions for 16 outputs of a row, so groups of 32 are bounded by the latter. Why q - z: no zero
// point is left to correct; for 8 bits it would not fit a byte, so z * sum x is taken off there. Why a
// group's weights are unpacked one group ahead and its sums taken one group behind: tile instructions wait
// for earlier stores to reach the cache, they are not forwarded.
#pragma once

#include "lowbit_integer.h"

namespace fewbit {
namespace {

constexpr int64_t kIntegerTileRows = 12;  // fewer are as fast without tiles
constexpr int64_t kIntegerDepth = 512;    // k of a block
constexpr int64_t kPair = 2 * kTile;      // outputs of two tiles, and rows of two blocks
constexpr int64_t kPairFloats = kPair * kPair;

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

/// One piece's place in the scratch of a thread (tile_scratch in csrc/lowbit.h).
struct TileScratch {
  int32_t* acc;    // [2][4][16][16], two groups in turn
  float* total;    // [pairs of row blocks][pairs of tiles][32][32]
  uint8_t* panel;  // [pairs of tiles][2][columns of a block][16], one or two bytes each

  TileScratch(uint8_t* memory, const LowbitPiece& piece)
      : acc(reinterpret_cast<int32_t*>(memory)), total(reinterpret_cast<float*>(memory + kTileAccumulators)) {
    const int64_t rows = (piece.row_end - piece.row_begin + kPair - 1) / kPair;
    const int64_t tiles = (piece.tile_end - piece.tile_begin + 1) / 2;
    panel = reinterpret_cast<uint8_t*>(total + rows * tiles * kPairFloats);
  }
};

/// q - z of one group of a tile as bytes, [group / 4][16 outputs][4].
template <int kBits>
inline void unpack_group(const LowbitWeights& w, int64_t tile, int64_t group, uint8_t* to) {
  const uint8_t* block = w.codes + tile * w.tile_bytes() + group * w.group * 2 * kBits;
  const __m512i zero = _mm512_mullo_epi32(zeros_of(w, tile, group, 0), _mm512_set1_epi32(0x01010101));
  for (int64_t k = 0; k < w.group; k += kBlock, block += kBits * kLine, to += 8 * kLine) {
    ask_ahead<kBits>(block);
    each_step([&]<int kStep>() {
      _mm512_store_si512(to + kStep * kLine, _mm512_sub_epi8(codes_of<kBits, kStep>(block, 0), zero));
    });
  }
}

/// Where the weights of a group of two tiles lie for the tile loads.
struct Panel {
  const uint8_t* first;
  const uint8_t* second;
};

template <bool kTwoRows, bool kTwoTiles>
inline void clear_tiles() {
  _tile_zero(0);
  if constexpr (kTwoTiles) _tile_zero(1);
  if constexpr (kTwoRows) _tile_zero(2);
  if constexpr (kTwoRows && kTwoTiles) _tile_zero(3);
}

template <bool kTwoRows, bool kTwoTiles>
inline void store_tiles(void* acc) {
  uint8_t* to = static_cast<uint8_t*>(acc);
  _tile_stored(0, to, 64);
  if constexpr (kTwoTiles) _tile_stored(1, to + 1024, 64);
  if constexpr (kTwoRows) _tile_stored(2, to + 2048, 64);
  if constexpr (kTwoRows && kTwoTiles) _tile_stored(3, to + 3072, 64);
}

/// Weights of 8 bits come from memory right into the tiles, at the first rows that use them.
template <bool kTwoTiles>
inline void ask_for_weights(const Panel& panel, int64_t at, int64_t bytes) {
  for (int64_t i = at + kAhead<8>; i < at + kAhead<8> + bytes; i += kLine) {
    ask_for<8>(panel.first + i);
    if constexpr (kTwoTiles) ask_for<8>(panel.second + i);
  }
}

template <bool kSigned, bool kTwoRows, bool kTwoTiles>
inline void multiply_group(const Panel& panel, const IntegerRows& high, const IntegerRows& low, int64_t begin,
                           int64_t group, bool ask, int32_t* acc) {
  const int64_t step = group % kChunk == 0 ? 64 : 32;
  clear_tiles<kTwoRows, kTwoTiles>();
  for (int64_t k = 0; k < group; k += step) {
    if (!kSigned && ask) ask_for_weights<kTwoTiles>(panel, k * kTile, step * kTile);
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
  store_tiles<kTwoRows, kTwoTiles>(acc);
}

/// total[row][column] += scale of row * scale of output * (acc - z sum), z and sum for 8 bits alone; kZero:
/// rows have zero points.
template <bool kSigned, bool kZero>
inline void scale_group_as(const LowbitWeights& w, int64_t tile, int64_t group, const IntegerRows& x,
                           const int32_t* acc, float* total) {
  const __m512 scale = scales_of(w, tile, group, 0);
  const __m512i zero = zeros_of(w, tile, group, 0);
  const __m512i weight_sums = kZero ? weight_sums_of(w, tile, group, 0) : _mm512_setzero_si512();
  const float* row_scale = x.scale + group * x.rows;
  const int32_t* row_sum = x.sum + group * x.rows;
#pragma GCC unroll 4
  for (int r = 0; r < x.rows; ++r, acc += kTile, total += kPair) {
    __m512i sum = _mm512_load_si512(acc);
    if constexpr (!kSigned) {
      const __m512i product = w.zeros == nullptr ? _mm512_set1_epi32(w.zero * row_sum[r])
                                                 : _mm512_mullo_epi32(zero, _mm512_set1_epi32(row_sum[r]));
      sum = _mm512_sub_epi32(sum, product);
    }
    if constexpr (kZero) {
      sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(weight_sums, _mm512_set1_epi32(x.zero[r])));
    }
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(row_scale[r]));
    _mm512_store_ps(total, _mm512_fmadd_ps(scaled, scale, _mm512_load_ps(total)));
  }
}

template <bool kSigned>
inline void scale_group(const LowbitWeights& w, int64_t tile, int64_t group, const IntegerRows& x,
                        const int32_t* acc, float* total) {
  if (x.zero != nullptr) return scale_group_as<kSigned, true>(w, tile, group, x, acc, total);
  scale_group_as<kSigned, false>(w, tile, group, x, acc, total);
}

/// Two blocks of rows by two tiles: what every step of the walk below is about.
struct Square {
  int64_t row, tile;
  float* total;  // [32][32]
  bool unpacked;
};

template <bool kSigned, bool kTwoRows, bool kTwoTiles>
inline void scale_square(const LowbitWeights& w, const Square& at, int64_t group, const IntegerRows& high,
                         const IntegerRows& low, const int32_t* acc) {
  float* below = at.total + kTile * kPair;
  scale_group<kSigned>(w, at.tile, group, high, acc, at.total);
  if constexpr (kTwoTiles) scale_group<kSigned>(w, at.tile + 1, group, high, acc + 256, at.total + kTile);
  if constexpr (kTwoRows) scale_group<kSigned>(w, at.tile, group, low, acc + 512, below);
  if constexpr (kTwoRows && kTwoTiles) {
    scale_group<kSigned>(w, at.tile + 1, group, low, acc + 768, below + kTile);
  }
}

/// Groups [begin, end) of a square; `panel` is where their unpacked weights are, or will be.
template <int kBits, bool kTwoRows, bool kTwoTiles>
void multiply_square(const LowbitCall& call, const Square& at, int64_t begin, int64_t end, int32_t* acc,
                     uint8_t* panel) {
  constexpr bool kSigned = kBits != 8;
  const LowbitWeights& w = call.weights;
  const IntegerRows high(call, at.row), low(call, kTwoRows ? at.row + kRowBlock : at.row);
  const auto place = [&](int64_t g) { return panel + (g - begin) * w.group * kPair; };
  const auto unpack = [&](int64_t g) {
    if (!kSigned || at.unpacked || g >= end) return;
    unpack_group<kBits>(w, at.tile, g, place(g));
    if constexpr (kTwoTiles) unpack_group<kBits>(w, at.tile + 1, g, place(g) + w.group * kTile);
  };
  unpack(begin);
  for (int64_t g = begin; g < end; ++g) {
    unpack(g + 1);
    const uint8_t* first = kSigned ? place(g) : w.codes + at.tile * w.tile_bytes() + g * w.group * kTile;
    const Panel weights{first, first + (kSigned ? w.group * kTile : w.tile_bytes())};
    settle();
    multiply_group<kSigned, kTwoRows, kTwoTiles>(weights, high, low, g * w.group, w.group, !at.unpacked,
                                                 acc + g % 2 * 1024);
    if (g == begin) continue;
    scale_square<kSigned, kTwoRows, kTwoTiles>(w, at, g - 1, high, low, acc + (g - 1) % 2 * 1024);
  }
  scale_square<kSigned, kTwoRows, kTwoTiles>(w, at, end - 1, high, low, acc + (end - 1) % 2 * 1024);
}

template <int kBits>
inline void multiply_any(const LowbitCall& call, const Square& at, bool two_rows, bool two_tiles,
                         int64_t begin, int64_t end, int32_t* acc, uint8_t* panel) {
  if (two_rows) {
    if (two_tiles) return multiply_square<kBits, true, true>(call, at, begin, end, acc, panel);
    return multiply_square<kBits, true, false>(call, at, begin, end, acc, panel);
  }
  if (two_tiles) return multiply_square<kBits, false, true>(call, at, begin, end, acc, panel);
  return multiply_square<kBits, false, false>(call, at, begin, end, acc, panel);
}

/// The outputs of a square whose sums are complete.
inline void finish_square(const LowbitCall& call, const LowbitPiece& piece, const Square& at) {
  const int64_t rows = piece.row_end - at.row < kPair ? piece.row_end - at.row : kPair;
  for (int64_t r = 0; r < rows; ++r) {
    finish(call, at.row + r, at.tile, at.total + r * kPair);
    if (at.tile + 1 < piece.tile_end) finish(call, at.row + r, at.tile + 1, at.total + r * kPair + kTile);
  }
}

/// Walks a piece: blocks of K, then pairs of row blocks, then pairs of tiles. multiply(square, two_rows,
/// two_tiles, begin, end, panel) adds groups [begin, end) to the square's sums. Where one block is all of K,
/// all squares use one place for their sums, which stays in the first cache.
template <class Multiply>
void walk_piece(const LowbitCall& call, const LowbitPiece& piece, const TileScratch& scratch, int64_t depth,
                int64_t code_bytes, int row_bytes, const Multiply& multiply) {
  const LowbitWeights& w = call.weights;
  const int64_t step = depth > w.group ? depth / w.group : 1,
                pairs = (piece.tile_end - piece.tile_begin + 1) / 2;
  int high = 0, low = 0;
  for (int64_t begin = 0; begin < w.groups; begin += step) {
    const int64_t end = begin + step < w.groups ? begin + step : w.groups;
    for (int64_t row = piece.row_begin; row < piece.row_end; row += kPair) {
      const int now_high = rows_of(call, row);
      const int now_low = row + kRowBlock < piece.row_end ? rows_of(call, row + kRowBlock) : 0;
      if (now_high != high || now_low != low) configure(high = now_high, low = now_low, row_bytes);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t place = step >= w.groups ? 0 : (row - piece.row_begin) / kPair * pairs + pair;
        float* total = scratch.total + place * kPairFloats;
        const Square at{row, piece.tile_begin + 2 * pair, total, row > piece.row_begin};
        if (begin == 0) std::memset(total, 0, kPairFloats * sizeof(float));
        multiply(at, low > 0, at.tile + 1 < piece.tile_end, begin, end,
                 scratch.panel + pair * step * w.group * kPair * code_bytes);
        if (end == w.groups) finish_square(call, piece, at);
      }
    }
  }
}

/// Pieces of one pair of row blocks stream their weights tile after tile, others share the rows among all
/// tiles.
template <class Walk>
void each_part(const LowbitPiece& piece, const Walk& walk) {
  if (piece.row_end - piece.row_begin > kPair) return walk(piece);
  for (int64_t tile = piece.tile_begin; tile < piece.tile_end; tile += 2) {
    const int64_t end = tile + 2 < piece.tile_end ? tile + 2 : piece.tile_end;
    walk(LowbitPiece{piece.row_begin, piece.row_end, tile, end});
  }
}

template <int kBits>
void tiles_piece(const LowbitCall& call, const LowbitPiece& piece, uint8_t* memory) {
  const int row_bytes = call.weights.group % kChunk == 0 ? 64 : 32;
  each_part(piece, [&](const LowbitPiece& part) {
    const TileScratch scratch(memory, part);
    walk_piece(
        call, part, scratch, kIntegerDepth, 1, row_bytes,
        [&](const Square& at, bool two_rows, bool two_tiles, int64_t begin, int64_t end, uint8_t* panel) {
          multiply_any<kBits>(call, at, two_rows, two_tiles, begin, end, scratch.acc, panel);
        });
  });
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
