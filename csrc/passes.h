// The kernels of csrc/dispatch.h over whole matrices, on as many threads as csrc/threads.h allows.
//
// Layout: as in csrc/dispatch.h. Cost: that of the kernel, split into pieces of some ten microseconds.
// Why apart from the kernels: they stay plain loops that know of no threads, and the pieces are the same for
// every instruction set.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace fewbit::passes {

void minmax_rows(const Kernels& with, const void* x, Float kind, Shape shape, float* out);
void quantize_rows(const Kernels& with, const void* x, Float kind, Shape shape, const float* scale,
                   const int32_t* zero_point, Bounds bounds, void* out, Code code);
void quantize_rows_dynamic(const Kernels& with, const float* x, Shape shape, int32_t qmax, int8_t* out,
                           float* scale);
void dequantize_rows(const Kernels& with, const void* codes, Code code, Shape shape, const float* scale,
                     const int32_t* zero_point, float* out);
void histogram_rows(const Kernels& with, const float* x, Shape shape, const float* inv_width, int64_t bins,
                    int64_t* counts);
/// x[n] into counts[bins], bins a power of two, over [-2^exponent, 2^exponent), which doubles until it holds
/// all; the extremes widen to them. False, and nothing is changed, if a value is not finite.
bool histogram_grow(const Kernels& with, const float* x, int64_t n, int64_t bins, int64_t* counts,
                    int64_t* exponent, float* low, float* high);
void mse_search_rows(const Kernels& with, const float* x, Shape shape, const float* candidates,
                     int64_t n_candidates, bool symmetric, Bounds bounds, float* lo, float* hi);
/// False if a row has no scale; the outputs are then of no use.
bool minmax_quantize_rows(const Kernels& with, const void* x, Float kind, Shape shape, Rule rule, int bits,
                          float* scale, int32_t* zero_point, uint8_t* out);
void refine_clip_rows(const Kernels& with, const float* x, Shape shape, const float* moves, int64_t n_moves,
                      int rounds, float worth_another, Bounds bounds, float* lo, float* hi);
void rebin_rows(const Kernels& with, int64_t* counts, Shape shape, const int64_t* doublings);
/// KL(P || Q) of each window of counts[bins], whole numbers; see csrc/kl_search.h.
void kl_divergences(const Kernels& with, const double* counts, int64_t bins, const int64_t* start,
                    const int64_t* stop, int64_t windows, int64_t levels, double smoothing, double* out);
/// Operations of `rounds` rounds of csrc/peak.h on each of `pieces` pieces; 0 where the set has no such
/// unit.
double peak(const Kernels& with, Peak what, int64_t pieces, int64_t rounds);
/// Reads all of it; the sum of its words.
uint64_t read_memory(const Kernels& with, const uint64_t* data, int64_t count);
void pack(const Kernels& with, const uint8_t* codes, int64_t count, int bits, uint8_t* out);
void unpack(const Kernels& with, const uint8_t* data, int64_t count, int bits, bool is_signed, uint8_t* out);
void weigh(const Kernels& with, const PlaneProblem& problem, int32_t power);
void nearest_plane(const Kernels& with, const PlaneProblem& problem);
void descend(const Kernels& with, DescentProblem problem, int64_t rows);
/// False where the set has no tiles; nothing is added then. The scratch is made here.
bool gram(const Kernels& with, GramProblem problem);
/// Heads of attention, alike in sizes; `at(i)` is number i of them, without scratch. False where the set has
/// no such kernel; nothing is written then.
bool attention(const Kernels& with, int64_t heads, AttentionHead (*at)(const void* context, int64_t head),
               const void* context);

}  // namespace fewbit::passes
