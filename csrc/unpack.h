// Packed codes of 1 to 8 bits to one byte each.
//
// Layout: a flat little-endian bit stream; code i is the `bits` bits from bit i * bits on, least significant
// first. Eight codes are therefore exactly `bits` bytes. Cost: about twelve integer instructions for eight
// codes, on 64-bit lanes the compiler makes vectors of for 1, 2, 4 and 8 bits; these widths run at the speed
// of memory. Why one formula: halving three times (8 codes -> 2 x 4 -> 4 x 2 -> 8 x 1, each half moved to its
// own field) serves every width, also those where codes cross bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace fewbit {
namespace {

template <class Word>
uint64_t load(const uint8_t* data) {
  Word word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

/// The kBits bytes of eight codes: two loads that end where they should, and overlap where kBits is no power
/// of two.
template <int kBits>
uint64_t load_eight(const uint8_t* data) {
  if constexpr (kBits == 1) {
    return *data;
  } else if constexpr (kBits < 4) {
    return load<uint16_t>(data) | (load<uint16_t>(data + kBits - 2) << (8 * (kBits - 2)));
  } else {
    return load<uint32_t>(data) | (load<uint32_t>(data + kBits - 4) << (8 * (kBits - 4)));
  }
}

/// The eight codes of a word, each in its own byte; sign-extended if kSigned.
template <int kBits, bool kSigned>
uint64_t spread(uint64_t word) {
  if constexpr (kBits < 8) {
    constexpr uint64_t kFour = (uint64_t{1} << (4 * kBits)) - 1;
    constexpr uint64_t kTwo = ((uint64_t{1} << (2 * kBits)) - 1) * 0x0000000100000001u;
    constexpr uint64_t kOne = ((uint64_t{1} << kBits) - 1) * 0x0001000100010001u;
    word = (word & kFour) | (((word >> (4 * kBits)) & kFour) << 32);
    word = (word & kTwo) | (((word >> (2 * kBits)) & kTwo) << 16);
    word = (word & kOne) | (((word >> kBits) & kOne) << 8);
    if constexpr (kSigned) {  // in every byte (v ^ sign) - sign; the top bit, set for the while, stops the
                              // borrow
      constexpr uint64_t kSign = (uint64_t{1} << (kBits - 1)) * 0x0101010101010101u;
      constexpr uint64_t kTop = 0x8080808080808080u;
      word = (((word ^ kSign) | kTop) - kSign) ^ kTop;
    }
  }
  return word;
}

template <int kBits, bool kSigned>
void unpack_as(const uint8_t* data, int64_t count, uint8_t* out) {
  const int64_t eights = count / 8, rest = count % 8;
  for (int64_t i = 0; i < eights; ++i) {
    const uint64_t codes = spread<kBits, kSigned>(load_eight<kBits>(data + i * kBits));
    std::memcpy(out + 8 * i, &codes, 8);
  }
  if (rest > 0) {
    uint8_t last[8] = {};
    std::memcpy(last, data + eights * kBits, static_cast<size_t>((rest * kBits + 7) / 8));
    const uint64_t codes = spread<kBits, kSigned>(load_eight<kBits>(last));
    std::memcpy(out + 8 * eights, &codes, static_cast<size_t>(rest));
  }
}

template <int kBits>
void unpack_width(const uint8_t* data, int64_t count, bool is_signed, uint8_t* out) {
  return is_signed ? unpack_as<kBits, true>(data, count, out) : unpack_as<kBits, false>(data, count, out);
}

void unpack(const uint8_t* data, int64_t count, int bits, bool is_signed, uint8_t* out) {
  constexpr decltype(&unpack_width<1>) kByWidth[] = {unpack_width<1>, unpack_width<2>, unpack_width<3>,
                                                     unpack_width<4>, unpack_width<5>, unpack_width<6>,
                                                     unpack_width<7>, unpack_width<8>};
  kByWidth[bits - 1](data, count, is_signed, out);
}

}  // namespace
}  // namespace fewbit
