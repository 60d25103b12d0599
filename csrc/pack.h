// Codes of one byte each to 1 to 8 bits.
//
// Layout: as csrc/unpack.h, whose inverse this is: eight codes are `bits` bytes of a little-endian bit
// stream. Cost: a dozen integer instructions for eight codes, which the compiler makes vectors of for 1, 2, 4
// and 8 bits. Why by halves: 8 codes in bytes -> 4 pairs in 16 bits -> 2 fours in 32 -> 1 eight serves every
// width. What lies above `bits` bits of a code is dropped, which is what makes two's complement of a signed
// one.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace fewbit {
namespace {

/// Eight codes, a byte each, in the lowest 8 * kBits bits.
template <int kBits>
uint64_t gathered(uint64_t word) {
  if constexpr (kBits < 8) {
    constexpr uint64_t kOne = ((uint64_t{1} << kBits) - 1) * 0x0001000100010001u;
    constexpr uint64_t kTwo = ((uint64_t{1} << (2 * kBits)) - 1) * 0x0000000100000001u;
    constexpr uint64_t kFour = (uint64_t{1} << (4 * kBits)) - 1;
    word = (word & kOne) | ((word >> 8 & kOne) << kBits);
    word = (word & kTwo) | ((word >> 16 & kTwo) << (2 * kBits));
    word = (word & kFour) | ((word >> 32 & kFour) << (4 * kBits));
  }
  return word;
}

template <int kBits>
void store_eight(uint64_t word, uint8_t* out) {
  if constexpr (kBits == 8) {
    std::memcpy(out, &word, 8);
  } else if constexpr (kBits >= 4) {
    std::memcpy(out, &word, 4);
    const uint32_t rest = static_cast<uint32_t>(word >> 32);
    std::memcpy(out + 4, &rest, kBits - 4);
  } else if constexpr (kBits >= 2) {
    std::memcpy(out, &word, 2);
    const uint32_t rest = static_cast<uint32_t>(word >> 16);
    std::memcpy(out + 2, &rest, kBits - 2);
  } else {
    *out = static_cast<uint8_t>(word);
  }
}

template <int kBits>
void pack_eights(const uint8_t* __restrict codes, int64_t eights, uint8_t* __restrict out) {
  if constexpr (kBits == 4) {  // two codes a byte, without crossing wider lanes
    for (int64_t i = 0; i < 4 * eights; ++i) {
      uint16_t pair;
      std::memcpy(&pair, codes + 2 * i, 2);
      out[i] = static_cast<uint8_t>((pair & 15u) | (pair >> 4 & 0xF0u));
    }
  } else {
    for (int64_t i = 0; i < eights; ++i) {
      uint64_t word;
      std::memcpy(&word, codes + 8 * i, 8);
      store_eight<kBits>(gathered<kBits>(word), out + i * kBits);
    }
  }
}

template <int kBits>
void pack_as(const uint8_t* __restrict codes, int64_t count, uint8_t* __restrict out) {
  const int64_t eights = count / 8, rest = count % 8;
  pack_eights<kBits>(codes, eights, out);
  if (rest > 0) {  // the last byte is filled with zeros
    uint64_t word = 0;
    std::memcpy(&word, codes + 8 * eights, static_cast<size_t>(rest));
    word = gathered<kBits>(word);
    std::memcpy(out + eights * kBits, &word, static_cast<size_t>((rest * kBits + 7) / 8));
  }
}

void pack(const uint8_t* codes, int64_t count, int bits, uint8_t* out) {
  constexpr decltype(&pack_as<1>) kByWidth[] = {pack_as<1>, pack_as<2>, pack_as<3>, pack_as<4>,
                                                pack_as<5>, pack_as<6>, pack_as<7>, pack_as<8>};
  kByWidth[bits - 1](codes, count, out);
}

}  // namespace
}  // namespace fewbit
