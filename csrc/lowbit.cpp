// Cutting a low-bit layer into pieces and running them. See csrc/lowbit.h.
#include "lowbit.h"

#include <algorithm>
#include <memory>

#include "lowbit_matrix.h"
#include "threads.h"

namespace fewbit {
namespace {

constexpr int64_t kRowBlock = 16;
constexpr int64_t kMostRows = 512;          // of a piece: enough to pay for unpacking its weights
constexpr int64_t kMostTiles = 16;          // of a piece of many rows
constexpr int64_t kPieceBytes = 256 << 10;  // of packed weights, some 20 us at the speed of memory
constexpr int64_t kPieces = 16;             // at least, where a call is large enough, for some cores
constexpr int64_t kTeamRows = 2;            // from here on a call is long, or among OpenMP's own loops
constexpr size_t kKeep = size_t{64} << 20;  // larger workspaces are given back after the call

size_t lines(int64_t bytes) { return static_cast<size_t>((bytes + 63) / 64 * 64); }

/// Memory that a thread keeps between calls, so that no call waits for fresh pages.
class Workspace {
 public:
  uint8_t* take(size_t bytes) {
    if (memory_ == nullptr || memory_->size() < bytes) {
      memory_.reset();
      memory_ = std::make_unique<LowbitMemory>(bytes);
    }
    return memory_->data();
  }
  void release() {
    if (memory_ != nullptr && memory_->size() > kKeep) memory_.reset();
  }

 private:
  std::unique_ptr<LowbitMemory> memory_;
};

thread_local Workspace workspace;

/// How a call is cut: `tiles` by `rows` a piece. From the shape alone, so that the bits never depend on
/// threads.
struct Cut {
  int64_t tiles, rows, across, down;

  Cut(const LowbitCall& call, bool on_tiles) : rows(kMostRows) {
    const LowbitWeights& w = call.weights;
    const int64_t unit = on_tiles ? 2 : 1, few = on_tiles ? 32 : 8;
    if (call.rows <= few) {  // as long as the weights are what takes time
      const int64_t most = std::clamp<int64_t>(w.tiles / (kPieces * unit), 1, 64);
      tiles = unit * std::clamp<int64_t>(kPieceBytes / (unit * w.tile_bytes()), 1, most);
    } else {  // enough outputs to use the rows again and again, and pieces for some cores; few rows take
              // little time, and whoever takes the last piece should not be waited for
      const int64_t most = std::clamp<int64_t>(call.rows / 4 / unit * unit, 4, kMostTiles);
      tiles = std::clamp<int64_t>(w.tiles / 8 / unit * unit, unit, most);
    }
    across = (w.tiles + tiles - 1) / tiles;
    down = (call.rows + rows - 1) / rows;
  }

  LowbitPiece piece(const LowbitCall& call, int64_t number) const {
    const int64_t row = number / across * rows, tile = number % across * tiles;
    return {row, std::min(row + rows, call.rows), tile, std::min(tile + tiles, call.weights.tiles)};
  }
};

void prepare_rows(const LowbitCall& call, void (*prepare)(const LowbitCall&, int64_t, int64_t)) {
  if (call.rows <= kRowBlock) return prepare(call, 0, call.rows);
  const int64_t blocks = (call.rows + kRowBlock - 1) / kRowBlock;
  parallel_for(
      blocks,
      [&](int64_t block, int) {
        prepare(call, block * kRowBlock, std::min((block + 1) * kRowBlock, call.rows));
      },
      threads(), true);
}

}  // namespace

void run_integer(const LowbitKernels& kernels, LowbitCall call) {
  const LowbitWeights& w = call.weights;
  if (call.rows == 0 || w.outputs == 0) return;
  const bool on_tiles = kernels.integer_tile_rows > 0 && call.rows >= kernels.integer_tile_rows;
  const int most = threads();
  const size_t codes = lines(call.rows * ((w.padded + 63) / 64 * 64)), each = lines(call.rows * w.groups * 4);
  const size_t factors = lines(call.rows * 4), shifts = call.row_zero == nullptr ? 0 : factors;
  const Cut cut(call, on_tiles);
  const size_t scratch = on_tiles ? lines(tile_scratch(w, std::min(call.rows, cut.rows), cut.tiles, 1)) : 0;
  uint8_t* memory = workspace.take(codes + 2 * each + shifts + factors + scratch * static_cast<size_t>(most));
  call.codes = memory;
  call.scale = reinterpret_cast<float*>(memory + codes);
  call.sum = reinterpret_cast<int32_t*>(memory + codes + each);
  if (shifts > 0) call.shift = reinterpret_cast<int32_t*>(memory + codes + 2 * each);
  call.factor = reinterpret_cast<float*>(memory + codes + 2 * each + shifts);
  uint8_t* slots = memory + codes + 2 * each + shifts + factors;
  prepare_rows(call, kernels.prepare_integer);
  parallel_for(
      cut.across * cut.down,
      [&](int64_t number, int slot) {
        const LowbitPiece piece = cut.piece(call, number);
        if (on_tiles) {
          kernels.integer_tiles(call, piece, slots + static_cast<size_t>(slot) * scratch);
        } else {
          kernels.integer(call, piece);
        }
      },
      most, call.rows >= kTeamRows);
  workspace.release();
}

void run_float(const LowbitKernels& kernels, LowbitCall call) {
  const LowbitWeights& w = call.weights;
  if (call.rows == 0 || w.outputs == 0) return;
  const bool on_tiles = kernels.float_tile_rows > 0 && call.rows >= kernels.float_tile_rows;
  const int most = threads();
  const int64_t row_bytes = w.padded * (on_tiles ? (call.row_type == RowType::bf16 ? 2 : 6) : 4);
  const size_t rows = lines(call.rows * row_bytes), factors = lines(call.rows * 4);
  const Cut cut(call, on_tiles);
  const size_t scratch = on_tiles ? lines(tile_scratch(w, std::min(call.rows, cut.rows), cut.tiles, 2)) : 0;
  call.codes = workspace.take(rows + factors + scratch * static_cast<size_t>(most));
  call.factor = reinterpret_cast<float*>(call.codes + rows);
  uint8_t* slots = call.codes + rows + factors;
  prepare_rows(call, on_tiles ? kernels.prepare_tiles_float : kernels.prepare_float);
  parallel_for(
      cut.across * cut.down,
      [&](int64_t number, int slot) {
        const LowbitPiece piece = cut.piece(call, number);
        if (on_tiles) {
          kernels.float_tiles(call, piece, slots + static_cast<size_t>(slot) * scratch);
        } else {
          kernels.floating(call, piece);
        }
      },
      most, call.rows >= kTeamRows);
  workspace.release();
}

}  // namespace fewbit
