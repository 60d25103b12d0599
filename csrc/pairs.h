// Pairs of values in bfloat16, as AVX-512's products of pairs (vdpbf16ps) and AMX's tiles take them.
//
// Layout: a vector is sixteen pairs, each one lane of 32 bits. Cost: one instruction for 32 products; 64 for
// a transpose. Why the instruction by name: the compiler's own function would need every kernel of this set
// built for processors with bfloat16, which not all that run the set have (csrc/passes.cpp asks).
#pragma once

#include <cstdint>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define FEWBIT_PAIRS 1

namespace fewbit {
namespace {

/// acc + the products of the pairs of two vectors.
inline __m512 add_pairs(__m512 acc, __m512i left, __m512i right) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(left), "v"(right));
  return acc;
}

/// The transpose of 16 x 16 values of 32 bits, in vectors: lane j of rows[i] becomes lane i of to[j].
inline void transpose_pairs(const __m512i* rows, __m512i* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // a[4 g + i] holds, in lane q, column 4 q + i of rows 4 g to 4 g + 3
    b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
    b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xDD);
    b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    to[i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88);
    to[8 + i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0xDD);
    to[4 + i] = _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0x88);
    to[12 + i] = _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0xDD);
  }
}

}  // namespace
}  // namespace fewbit

#endif
