// A weight matrix in the layout of csrc/lowbit_layout.h, and the memory it owns.
//
// Layout: one allocation: codes, scales, zero points, sums, each from a multiple of 64 bytes.
// Cost: made once, one pass over the codes. Why huge pages for what is larger than one: a core streams
// weights past 4 KiB pages 10% slower, as the processor's own prefetching ends at every page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "lowbit.h"

namespace fewbit {

/// Zeroed memory from a multiple of 64 bytes, on huge pages where it is large and the system has them.
class LowbitMemory {
 public:
  explicit LowbitMemory(size_t bytes);
  ~LowbitMemory();
  LowbitMemory(const LowbitMemory&) = delete;
  LowbitMemory& operator=(const LowbitMemory&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  bool mapped_ = false;
  uint8_t* data_ = nullptr;
};

/// What a matrix is packed from: one code a byte.
struct LowbitSource {
  const uint8_t* codes;  // [N, K] as signed or unsigned bytes
  bool is_signed;
  const float* scale;         // [N, groups]
  const int32_t* zero_point;  // [N, groups], or null for 0
  int64_t outputs, columns, group;
  int bits;                // 2, 3, 4 or 8: of the layout
  bool with_sums = false;  // whether rows may have zero points
};

class LowbitMatrix {
 public:
  /// Throws std::invalid_argument if a code or zero point does not fit `bits`.
  explicit LowbitMatrix(const LowbitSource& source);
  const LowbitWeights& weights() const { return weights_; }
  size_t bytes() const { return memory_->size(); }

 private:
  LowbitWeights weights_;
  std::unique_ptr<LowbitMemory> memory_;
};

}  // namespace fewbit
