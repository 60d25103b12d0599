// Linear layers with weights of 2, 3, 4 or 8 bits: what their kernels share.
//
// Layout: csrc/lowbit_layout.h has the weights' layout, csrc/lowbit_rows.h that of the activations. A call is
// cut into pieces, a range of tiles (16 outputs each) by a range of rows; csrc/lowbit.cpp chooses piece and
// kernel from the shape, runs the pieces on the pool, and one table for each instruction set computes them.
// Cost: two indirect calls a piece.
// Why one struct for all arguments: it is read by every piece and copied by none.
#pragma once

#include <cstdint>

#include "types.h"

namespace fewbit {

enum class ScaleType { f32, f16, bf16 };
enum class Activation { none, relu, silu, gelu, gelu_tanh };
enum class RowType { f32, bf16, i8, u8 };

/// Weights in the layout of csrc/lowbit_layout.h. Not the owner of the memory.
struct LowbitWeights {
  int64_t outputs = 0, columns = 0;                      // N, K
  int64_t padded = 0, group = 0, groups = 0, tiles = 0;  // padded = group * groups >= K
  int bits = 4;
  const uint8_t* codes = nullptr;  // [tiles][padded / 32][bits][64], 64-byte aligned
  const void* scales = nullptr;    // [tiles][groups][16]
  ScaleType scale_type = ScaleType::f32;
  const uint8_t* zeros = nullptr;  // [tiles][groups][16], or null: `zero` for all
  int32_t zero = 0;
  const int32_t* sums =
      nullptr;  // [tiles][groups][16]: the sum of q - z, which a row's zero point multiplies; or null

  int64_t tile_bytes() const { return padded * 2 * bits; }
};

/// What a layer computes: y = act(rows W^T + bias).
struct LowbitCall {
  LowbitWeights weights;
  int64_t rows = 0;                 // M
  RowType row_type = RowType::f32;  // of `x`
  const void* x = nullptr;          // [M, K]
  bool bf16_out = false;            // y is bfloat16
  void* y = nullptr;                // [M, N]
  const float* bias = nullptr;      // [N]
  Activation activation = Activation::none;
  // Integer products: x is quantized on the fly within +-qmax for each row and group (or each row), or is
  // codes.
  int32_t qmax = 127;
  bool per_row = false;
  const float* row_scale = nullptr;  // of codes: [M], or one if !per_row
  const int32_t* row_zero = nullptr;
  // Prepared rows (csrc/lowbit_rows.h).
  uint8_t* codes = nullptr;
  float* scale = nullptr;
  int32_t* sum = nullptr;
  int32_t* shift = nullptr;  // [M]: zero points of the signed codes, or null
  float* factor = nullptr;   // [M]: powers of two that the sums are multiplied with, 1 but for huge values
};

/// A range of rows, a multiple of 16 long but for the last, by a range of tiles.
struct LowbitPiece {
  int64_t row_begin, row_end, tile_begin, tile_end;
};

/// Scratch of a piece on matrix tiles: accumulators, float sums, unpacked weights of one block of K.
inline constexpr int64_t kTileAccumulators = 8192, kTileDepth = 512;
inline int64_t tile_scratch(const LowbitWeights& w, int64_t rows, int64_t tiles, int64_t code_bytes) {
  const int64_t squares = (rows + 31) / 32 * ((tiles + 1) / 2),
                depth = w.group > kTileDepth ? w.group : kTileDepth;
  return kTileAccumulators + squares * 4096 + (tiles + 1) / 2 * 32 * depth * code_bytes;
}

struct LowbitKernels {
  const char* isa;
  /// Prepare rows [begin, end) for integer products or for float ones; begin is a multiple of 16.
  void (*prepare_integer)(const LowbitCall& call, int64_t begin, int64_t end);
  void (*prepare_float)(const LowbitCall& call, int64_t begin, int64_t end);
  void (*integer)(const LowbitCall& call, const LowbitPiece& piece);
  void (*floating)(const LowbitCall& call, const LowbitPiece& piece);
  /// On matrix tiles (AMX), from so many rows on; 0 where there are none. Scratch is one thread's own.
  int64_t integer_tile_rows = 0, float_tile_rows = 0;
  void (*prepare_tiles_float)(const LowbitCall& call, int64_t begin, int64_t end) = nullptr;
  void (*integer_tiles)(const LowbitCall& call, const LowbitPiece& piece, uint8_t* scratch) = nullptr;
  void (*float_tiles)(const LowbitCall& call, const LowbitPiece& piece, uint8_t* scratch) = nullptr;
};

/// Run a call: prepare its rows, then all pieces. The fields of prepared rows are set here.
void run_integer(const LowbitKernels& kernels, LowbitCall call);
void run_float(const LowbitKernels& kernels, LowbitCall call);

}  // namespace fewbit
