// The packed layout of low-bit weights, and how eight codes a byte position come out of it.
//
// Layout: a matrix [N, K] of unsigned codes (signed ones moved up by 2^(bits-1), zero points alike), K padded
// to whole groups (multiples of 32) with codes equal to the zero point. Sixteen outputs make a tile; a tile
// holds its K after one another in blocks of 32, a block is `bits` lines of 64 bytes, and in every line
// 32-bit lane n belongs to output n, its four bytes to four successive k:
//   8 bits  line i                     k = 4 i .. 4 i + 3
//   4 bits  line i, low / high nibble  k = 8 i .. + 3 / k = 8 i + 4 .. + 3
//   2 bits  line i, bits 2 f, 2 f + 1  k = 16 i + 4 f .. + 3
//   3 bits  line i, bits 0-2, 3-5      k = 12 i .. + 3 / k = 12 i + 4 .. + 3
//           lines 0 and 1, bits 6-7    the upper two bits of k = 12 i + 8 .. + 3, bit 6 + i of line 2 the
//           lowest
// Scales and zero points lie apart as [tile][group][16]. So the weights of a tile are one stream.
// Cost: one load feeds 2 (4 bits) to 4 (2 bits) dot products of 64; a mask brings out a code where it stands,
// but for a quarter of those of 3 bits, which take three instructions, and a shift moves it down where that
// is needed. Why: a line is the second operand of vpdpbusd for 16 outputs with a broadcast of four
// activations as first operand, no sum across lanes is ever needed; 16 unpacked lines are one AMX tile of 64
// k by 16 outputs, and halves and quarters of a line serve 256-bit and 128-bit registers. The layout is the
// same on every instruction set.
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

/// Fields of a line: steps whose codes stand at places of their own.
template <int kBits>
constexpr int kFields = kBits == 3 ? 3 : 8 / kBits;

/// How far up the codes of a field stand in `raised_codes`.
template <int kBits>
constexpr int raise(int field) {
  return kBits == 3 && field == 2 ? 5 : kBits * field;
}

/// Part `part` of the codes k = 4 kStep .. 4 kStep + 3 of a block, one a byte, times 2^raise(kStep %
/// kFields).
template <int kBits, int kStep>
inline Simd::Bytes raised_codes(const uint8_t* block, int part) {
  constexpr int kField = kStep % kFields<kBits>, kNumber = kStep / kFields<kBits>;
  const uint8_t* p = block + part * kPart;
  const Simd::Bytes line = Simd::load(p + kNumber * kLine);
  if constexpr (kBits == 8) {
    return line;
  } else if constexpr (kBits == 3 && kField == 2) {
    const Simd::Bytes lowest = Simd::right<1 + kNumber>(Simd::load(p + 2 * kLine));
    return Simd::either(Simd::both(line, Simd::bytes(0xC0)), Simd::both(lowest, Simd::bytes(0x20)));
  } else {
    return Simd::both(line, Simd::bytes(static_cast<uint8_t>(((1 << kBits) - 1) << kBits * kField)));
  }
}

/// Part `part` of the codes k = 4 kStep .. 4 kStep + 3 of a block, one a byte.
template <int kBits, int kStep>
inline Simd::Bytes codes_of(const uint8_t* block, int part) {
  constexpr int kRaise = raise<kBits>(kStep % kFields<kBits>);
  const Simd::Bytes raised = raised_codes<kBits, kStep>(block, part);
  if constexpr (kRaise == 0) return raised;
  return Simd::right<kRaise>(raised);
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
