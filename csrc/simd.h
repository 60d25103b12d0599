// One small set of vector operations for all instruction sets, chosen by the flags a file is compiled with.
//
// Layout: `Simd` works on the 16 outputs of a tile (csrc/lowbit_layout.h) as `kParts` registers of `kLanes`
// 32-bit lanes. Cost: every function is one to four instructions; all are inlined.
// Why so few: the kernels need an int8 dot product that never saturates, float lanes, and bits moved within
// bytes; with these a kernel's body is written once. `Partial` is where a dot product collects a block of 32
// products: the int32 accumulator itself where the processor has one instruction for it (VNNI, NEON dotprod),
// 16-bit sums on AVX2 (15 * 128 * 2 * 8 = 30720 < 32768: no saturation), which `finish` widens.
// Codes reach `dot` as bytes from 0 to 15, to 255 where kDotsBytes, and `dot_wide` as bytes from 0 to 255; on
// NEON the latter multiplies code - kWideShift, which the caller takes into its zero point.
#pragma once

#if defined(__AVX512BW__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif
