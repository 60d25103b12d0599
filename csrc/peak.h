// What the machine can do at most: int8 and float32 multiply-adds of this instruction set, and reading
// memory.
//
// Layout: loops without memory (peak) or without arithmetic (read_memory). Cost: `rounds` times 12
// instructions of two to 512 multiply-adds a lane. Why measured and not looked up: clocks, ports and memory
// differ between machines of the same name, and a benchmark should say which part of its own machine a kernel
// reaches.
#pragma once

#include <cstdint>
#include <cstring>

#include "dispatch.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace fewbit {
namespace {

constexpr int kChains = 12;  // independent sums: more than an instruction's latency times its rate

#if defined(__AVX512F__)
using PeakFloat = __m512;
using PeakInt = __m512i;
constexpr int64_t kFloatLanes = 16;
inline PeakFloat peak_float(float v) { return _mm512_set1_ps(v); }
inline PeakInt peak_int(int v) { return _mm512_set1_epi32(v); }
inline PeakFloat multiply_add(PeakFloat sum, PeakFloat a) { return _mm512_fmadd_ps(a, a, sum); }
#if defined(__AVX512VNNI__)
inline PeakInt dot(PeakInt sum, PeakInt a) { return _mm512_dpbusd_epi32(sum, a, a); }
#else
inline PeakInt dot(PeakInt sum, PeakInt a) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, a), peak_int(0x00010001)));
}
#endif
#elif defined(__AVX2__)
using PeakFloat = __m256;
using PeakInt = __m256i;
constexpr int64_t kFloatLanes = 8;
inline PeakFloat peak_float(float v) { return _mm256_set1_ps(v); }
inline PeakInt peak_int(int v) { return _mm256_set1_epi32(v); }
inline PeakFloat multiply_add(PeakFloat sum, PeakFloat a) { return _mm256_fmadd_ps(a, a, sum); }
#if defined(__AVXVNNI__)
inline PeakInt dot(PeakInt sum, PeakInt a) { return _mm256_dpbusd_avx_epi32(sum, a, a); }
#else
inline PeakInt dot(PeakInt sum, PeakInt a) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), peak_int(0x00010001)));
}
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
using PeakFloat = float32x4_t;
using PeakInt = int32x4_t;
constexpr int64_t kFloatLanes = 4;
inline PeakFloat peak_float(float v) { return vdupq_n_f32(v); }
inline PeakInt peak_int(int v) { return vdupq_n_s32(v); }
inline PeakFloat multiply_add(PeakFloat sum, PeakFloat a) { return vfmaq_f32(sum, a, a); }
inline PeakInt dot(PeakInt sum, PeakInt a) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(a));
}
#else
struct PeakFloat {
  float lane[4];
};
struct PeakInt {
  int32_t lane[4];
};
constexpr int64_t kFloatLanes = 4;
inline PeakFloat peak_float(float v) { return {{v, v, v, v}}; }
inline PeakInt peak_int(int v) { return {{v, v, v, v}}; }
inline PeakFloat multiply_add(PeakFloat sum, PeakFloat a) {
  for (int i = 0; i < 4; ++i) sum.lane[i] += a.lane[i] * a.lane[i];
  return sum;
}
inline PeakInt dot(PeakInt sum, PeakInt a) {  // four products a lane, as the others
  for (int i = 0; i < 4; ++i) {
    for (int shift = 0; shift < 32; shift += 8) {
      const int32_t byte = static_cast<int8_t>(a.lane[i] >> shift);
      sum.lane[i] += byte * byte;
    }
  }
  return sum;
}
#endif

/// Keeps the compiler from doing once what a loop should do again.
template <class Vector>
inline void forget(Vector& v) {
#if defined(__AVX2__)
  __asm__ volatile("" : "+v"(v));
#elif defined(__ARM_FEATURE_DOTPROD)
  __asm__ volatile("" : "+w"(v));
#else
  (void)v;
#endif
}

/// Operations (two a multiply-add) of `rounds` rounds over all chains; `a` comes from outside, unknown to the
/// compiler.
template <class Vector, class Step>
double run_chains(int64_t rounds, Vector a, Vector zero, double operations, Step step) {
  Vector sum[kChains];
  for (Vector& s : sum) s = zero;
  for (int64_t r = 0; r < rounds; ++r) {
    for (Vector& s : sum) {
      forget(a);
      s = step(s, a);
    }
  }
  volatile char sink = 0;
  for (const Vector& s : sum) {
    char first;
    std::memcpy(&first, &s, 1);
    sink = static_cast<char>(sink + first);
  }
  return static_cast<double>(rounds) * kChains * operations;
}

#if defined(__AMX_INT8__)
double peak_tiles(int64_t rounds) {
  struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  for (int t = 0; t < 8; ++t) {
    shapes.bytes[t] = 64;
    shapes.rows[t] = 16;
  }
  __asm__ volatile("" : : "r"(&shapes) : "memory");  // some compilers believe that eight bytes of it are read
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(rounds) * 4 * 2 * 16 * 16 * 64;
}
#else
double peak_tiles(int64_t) { return 0.0; }
#endif

double peak(Peak what, int64_t rounds) {
  volatile int seed = 0;
  const int unknown = seed;
  switch (what) {
    case Peak::float32:
      return run_chains(rounds, peak_float(static_cast<float>(unknown)), peak_float(0.0f), 2.0 * kFloatLanes,
                        [](PeakFloat s, PeakFloat a) { return multiply_add(s, a); });
    case Peak::int8:
      return run_chains(rounds, peak_int(unknown), peak_int(0), 8.0 * kFloatLanes,
                        [](PeakInt s, PeakInt a) { return dot(s, a); });
    case Peak::tiles:
      return peak_tiles(rounds);
  }
  return 0.0;
}

/// Lines are asked for 2 KiB ahead, as the low-bit kernels do: without, one core reads a fifth less.
uint64_t read_memory(const uint64_t* data, int64_t count) {
  constexpr int64_t kAheadWords = 256, kLineWords = 8;
  uint64_t sum[32] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32) {
    for (int64_t line = 0; line < 32; line += kLineWords) {
      __builtin_prefetch(data + i + kAheadWords + line, 0, 2);
    }
    for (int j = 0; j < 32; ++j) sum[j] += data[i + j];
  }
  for (int j = 1; j < 32; ++j) sum[0] += sum[j];
  return sum[0];
}

}  // namespace
}  // namespace fewbit
