// Sums of x x^T over rows x in bfloat16: the statistic of GPTQ and its relatives. On AMX's tiles, or on
// AVX-512's products of pairs (vdpbf16ps) where the processor has them.
//
// Layout: rows[count][cols] are packed into tiles of 16 columns by 32 rows: `along`, pairs of rows side by
// side as the right factor wants them ([16 pairs][16 columns][2]), and, for AMX alone, `across`, its
// transpose in units of pairs, for the left one; without AMX the left one's pairs are broadcast from `along`.
// Both are [blocks of 16 columns][blocks of 32 rows][1 KiB], zeros behind the end. A square of 256 by 256
// sums is one piece: its sums and some hundred rows of both factors stay in the second cache. Products of
// bfloat16 are exact in float32; their sums over all rows are in float32 in a fixed order, then added to the
// accumulator. Cost: 32 x 32 sums take four products of 16 cycles for 32 rows with AMX, and 1024 of one cycle
// on Zen 4; only squares on and above the diagonal are computed. Why not the library's matrix product: it has
// no symmetric one, and gives bfloat16 sums.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "halves.h"
#include "pairs.h"

#if defined(FEWBIT_PAIRS) && defined(__AMX_BF16__)
#define FEWBIT_GRAM_TILES 1
#endif

namespace fewbit {
namespace {

#ifdef FEWBIT_PAIRS

inline constexpr int64_t kGramSide = 256;  // columns of a square
inline constexpr int64_t kGramTile = 512;  // values

#ifdef FEWBIT_GRAM_TILES

inline constexpr int64_t kGramDepth = 16;  // tiles of rows at a time

inline void transpose_tile(const uint16_t* from, uint16_t* to) {
  __m512i rows[16], columns[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_load_si512(from + 32 * i);
  transpose_pairs(rows, columns);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(to + 32 * i, columns[i]);
}

#endif

inline __m512 floats_of(__m512i low_halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(low_halves, 16)); }

/// Sixteen columns in tiles, and the sums of their values and of their magnitudes.
void gram_pack(const GramProblem& g, int64_t block) {
  const int64_t first = block * 16, tiles = (g.count + 31) / 32;
  const int64_t left = g.cols - first, there = left < 0 ? 0 : left < 16 ? left : 16;
  const __mmask16 columns = static_cast<__mmask16>((1u << there) - 1u);
  double sums[16] = {}, magnitudes[16] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    uint32_t* along = reinterpret_cast<uint32_t*>(g.along + (block * tiles + t) * kGramTile);
    __m512 sum = _mm512_setzero_ps(), magnitude = _mm512_setzero_ps();
    for (int64_t p = 0; p < 16; ++p) {
      __m512i pair[2];
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t row = t * 32 + 2 * p + i;
        const __mmask16 mask = row < g.count ? columns : static_cast<__mmask16>(0);
        const uint16_t* at = g.rows + (row < g.count ? row : 0) * g.cols + (there > 0 ? first : 0);
        pair[i] = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
        const __m512 value = floats_of(pair[i]);
        sum = _mm512_add_ps(sum, value);
        magnitude = _mm512_add_ps(magnitude, _mm512_abs_ps(value));
      }
      _mm512_store_si512(along + 16 * p, _mm512_or_si512(pair[0], _mm512_slli_epi32(pair[1], 16)));
    }
#ifdef FEWBIT_GRAM_TILES
    transpose_tile(g.along + (block * tiles + t) * kGramTile, g.across + (block * tiles + t) * kGramTile);
#endif
    alignas(64) float part[2][16];
    _mm512_store_ps(part[0], sum);
    _mm512_store_ps(part[1], magnitude);
    for (int64_t l = 0; l < 16; ++l) sums[l] += part[0][l], magnitudes[l] += part[1][l];
  }
  for (int64_t l = 0; l < there; ++l) g.sums[first + l] += sums[l], g.magnitudes[first + l] += magnitudes[l];
}

#ifdef FEWBIT_GRAM_TILES

struct alignas(64) GramTiles {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// 32 x 32 sums at `acc` take in `tiles` tiles of rows; a block of 16 columns is `step` values after the
/// other.
inline void multiply_tiles(const uint16_t* across, const uint16_t* along, int64_t step, int64_t tiles,
                           float* acc) {
  constexpr int64_t kRow = kGramSide * 4, kDown = 16 * kGramSide;
  _tile_loadd(0, acc, kRow);
  _tile_loadd(1, acc + 16, kRow);
  _tile_loadd(2, acc + kDown, kRow);
  _tile_loadd(3, acc + kDown + 16, kRow);
  for (int64_t t = 0; t < tiles; ++t, across += kGramTile, along += kGramTile) {
    _tile_loadd(4, across, 64);
    _tile_loadd(6, along, 64);
    _tile_loadd(5, across + step, 64);
    _tile_loadd(7, along + step, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, acc, kRow);
  _tile_stored(1, acc + 16, kRow);
  _tile_stored(2, acc + kDown, kRow);
  _tile_stored(3, acc + kDown + 16, kRow);
}

/// What the tile registers have to know before a square, and have to forget behind it.
struct GramUnit {
  explicit GramUnit(const float* acc) {
    const GramTiles shapes;
    __asm__ volatile("" : : "r"(&shapes), "r"(acc) : "memory");
    _tile_loadconfig(&shapes);
  }
  ~GramUnit() {
    __asm__ volatile("" : : : "memory");
    _tile_release();
  }
};

inline const uint16_t* gram_left(const GramProblem& g) { return g.across; }

#else

inline constexpr int64_t kGramDepth = 16;
inline constexpr int64_t kGramRows = 8;  // of sums in registers, 32 columns wide

/// 32 x 32 sums at `acc` take in `tiles` tiles of rows; a block of 16 columns is `step` values after the
/// other.
inline void multiply_tiles(const uint16_t* left, const uint16_t* along, int64_t step, int64_t tiles,
                           float* acc) {
  for (int64_t row = 0; row < 32; row += kGramRows) {
    const int32_t* pairs = reinterpret_cast<const int32_t*>(left + row / 16 * step) + row % 16;
    float* to = acc + row * kGramSide;
    __m512 sums[kGramRows][2];
    for (int64_t r = 0; r < kGramRows; ++r) {
      for (int64_t v = 0; v < 2; ++v) sums[r][v] = _mm512_load_ps(to + r * kGramSide + 16 * v);
    }
    for (int64_t p = 0; p < 16 * tiles; ++p) {
      const __m512i first = _mm512_load_si512(along + 32 * p),
                    second = _mm512_load_si512(along + step + 32 * p);
      for (int64_t r = 0; r < kGramRows; ++r) {
        const __m512i pair = _mm512_set1_epi32(pairs[16 * p + r]);
        sums[r][0] = add_pairs(sums[r][0], pair, first);
        sums[r][1] = add_pairs(sums[r][1], pair, second);
      }
    }
    for (int64_t r = 0; r < kGramRows; ++r) {
      for (int64_t v = 0; v < 2; ++v) _mm512_store_ps(to + r * kGramSide + 16 * v, sums[r][v]);
    }
  }
}

struct GramUnit {
  explicit GramUnit(const float*) {}
};

inline const uint16_t* gram_left(const GramProblem& g) { return g.along; }

#endif

template <class T>
inline void add_square(const float* acc, int64_t rows, int64_t cols, T* to, int64_t distance) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) to[r * distance + c] += acc[r * kGramSide + c];
  }
}

/// The products of rows of sums from `row` on with columns from `col` on; of a square on the diagonal those
/// below it may be left out.
inline void multiply_square(const GramProblem& g, bool diagonal, int64_t row, int64_t col, int64_t rows,
                            int64_t cols, float* acc) {
  const int64_t tiles = (g.count + 31) / 32, step = tiles * kGramTile;
  const GramUnit unit(acc);
  for (int64_t t = 0; t < tiles; t += kGramDepth) {
    const int64_t depth = tiles - t < kGramDepth ? tiles - t : kGramDepth;
    for (int64_t r = 0; r < rows; r += 32) {
      const uint16_t* left = gram_left(g) + (row + r) / 16 * step + t * kGramTile;
      for (int64_t c = diagonal ? r : 0; c < cols; c += 32) {
        const uint16_t* along = g.along + (col + c) / 16 * step + t * kGramTile;
        multiply_tiles(left, along, step, depth, acc + r * kGramSide + c);
      }
    }
  }
}

/// The square of sums in row `down` and column `right` of squares; `acc` holds 256 x 256 values.
void gram_square(const GramProblem& g, int64_t down, int64_t right, float* acc) {
  const int64_t row = down * kGramSide, col = right * kGramSide;
  const int64_t rows = g.cols - row < kGramSide ? g.cols - row : kGramSide,
                cols = g.cols - col < kGramSide ? g.cols - col : kGramSide;
  for (int64_t i = 0; i < kGramSide * kGramSide; ++i) acc[i] = 0.0f;
  multiply_square(g, down == right, row, col, rows, cols, acc);
  const int64_t at = row * g.cols + col;
  if (g.is_double) {
    add_square(acc, rows, cols, static_cast<double*>(g.products) + at, g.cols);
  } else {
    add_square(acc, rows, cols, static_cast<float*>(g.products) + at, g.cols);
  }
}

#else

inline constexpr void (*gram_pack)(const GramProblem&, int64_t) = nullptr;
inline constexpr void (*gram_square)(const GramProblem&, int64_t, int64_t, float*) = nullptr;

#endif

}  // namespace
}  // namespace fewbit
