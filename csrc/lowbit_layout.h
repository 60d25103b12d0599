// The packed layout of low-bit weights, and how eight codes a byte position come out of it.
//
// Layout: a matrix [N, K] of unsigned codes (signed ones moved up by 2^(bits-1), zero points alike), K padded
// to whole groups (multiples of 32) with codes equal to the zero point. Sixteen outputs make a tile; a tile
// holds its K after one another in blocks of 32, a block is `bits` lines of 64 bytes, and in every line
// 32-bit lane n belongs to output n, its four bytes to four successive k:
//   8 bits  line i                     k = 4 i .. 4 i + 3
//   4 bits  line i, low / high nibble  k = 8 i .. + 3 / k = 8 i + 4 .. + 3
//   2 bits  line i, bits 2 f, 2 f + 1  k = 16 i + 4 f .. + 3
//   3 bits  lines 0 and 1 the low two bits of each code as for 2 bits, line 2 bit f the third bit of
//           k = 4 f .. + 3
// Scales and zero points lie apart as [tile][group][16]. So the weights of a tile are one stream.
// Cost: one load feeds 2 (4 bits) to 4 (2 bits) dot products of 64, with one shift and one mask each.
// Why: a line is the second operand of vpdpbusd for 16 outputs with a broadcast of four activations as first
// operand, no sum across lanes is ever needed; 16 unpacked lines are one AMX tile of 64 k by 16 outputs, and
// halves and quarters of a line serve 256-bit and 128-bit registers. The layout is the same on every
// instruction set.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fewbit {
namespace {

constexpr int64_t kTile = 16;   // outputs of a tile
constexpr int64_t kBlock = 32;  // k of a block
constexpr int64_t kLine = 64;   // bytes

/// Bytes of a part (register) of a line.
constexpr int64_t kPart = kLine / Simd::kParts;

/// Part `part` of the codes k = 4 kStep .. 4 kStep + 3 of a block, one a byte.
template <int kBits, int kStep>
inline Simd::Bytes codes_of(const uint8_t* block, int part) {
  const uint8_t* p = block + part * kPart;
  if constexpr (kBits == 8) {
    return Simd::load(p + kStep * kLine);
  } else if constexpr (kBits == 4) {
    const Simd::Bytes line = Simd::load(p + kStep / 2 * kLine);
    return Simd::both(kStep % 2 == 0 ? line : Simd::right<4>(line), Simd::bytes(15));
  } else {
    constexpr int kField = kStep % 4;
    const Simd::Bytes line = Simd::load(p + kStep / 4 * kLine);
    const Simd::Bytes low = Simd::both(Simd::right<2 * kField>(line), Simd::bytes(3));
    if constexpr (kBits == 2) {
      return low;
    } else {
      const Simd::Bytes bits = Simd::load(p + 2 * kLine);
      Simd::Bytes high;
      if constexpr (kStep < 2) {
        high = Simd::left<2 - kStep>(bits);
      } else {
        high = Simd::right<kStep - 2>(bits);
      }
      return Simd::either(low, Simd::both(high, Simd::bytes(4)));
    }
  }
}

/// Calls fn.operator()<0>() to fn.operator()<7>(): the steps of a block, unrolled.
template <class Fn>
inline void each_step(const Fn& fn) {
  fn.template operator()<0>();
  fn.template operator()<1>();
  fn.template operator()<2>();
  fn.template operator()<3>();
  fn.template operator()<4>();
  fn.template operator()<5>();
  fn.template operator()<6>();
  fn.template operator()<7>();
}

}  // namespace
}  // namespace fewbit
