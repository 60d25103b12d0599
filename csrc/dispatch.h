// The table of kernels and the choice of instruction set.
//
// Layout: `Kernels` holds one pointer a kernel; csrc/kernels.cpp fills one table per instruction set.
// Cost: one indirect call for a whole matrix, nothing per row or element.
// Why a table: the choice is made once, at import, and a test can walk every set in turn.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "types.h"

namespace fewbit {

/// Rows whose codes are rounded one column after another (csrc/gptq.h); all arrays are C-contiguous.
struct PlaneProblem {
  const float* weight;  // [rows][cols]
  const float* carry;   // [rows][cols], what earlier columns left
  const float* factor;  // [cols][cols], upper triangular, with a diagonal above 0
  const float* scale;   // [rows][candidates], or [rows][cols] if by_column
  const float* zero;    // like scale, whole numbers
  int64_t rows, cols, candidates;
  bool by_column;  // then candidates is 1
  float qmin, qmax;
  int32_t* codes;  // [rows][cols] of the best candidate
  float* change;   // [rows][cols], weight - scale * (code - zero)
  float* error;    // [rows]
  int32_t* best;   // [rows]
};

/// Rows whose codes move one step or more wherever that lowers the error (csrc/gptq.h).
struct DescentProblem {
  const float* gram;      // [cols][cols], symmetric
  const float* diagonal;  // [cols], of gram; set by csrc/passes.cpp
  const float* scale;     // [rows][groups]
  const float* zero;      // [rows][groups], whole numbers
  int64_t cols, group;
  float qmin, qmax;
  int32_t sweeps;
  int32_t* codes;   // [rows][cols]
  float* gradient;  // [rows][cols], change times gram
};

/// Rows x in bfloat16 whose sums of x x^T are wanted (csrc/gram.h).
struct GramProblem {
  const uint16_t* rows;  // [count][cols]
  int64_t count, cols;
  uint16_t *along, *across;   // scratch, packed rows: cols and count up to multiples of 32
  double *sums, *magnitudes;  // [cols], added to
  void* products;             // [cols][cols] of double or float, added to on and above the diagonal
  bool is_double;
};

inline constexpr int64_t kAttentionQueries = 32, kAttentionKeys = 256;  // that meet at a time

/// One head of attention in bfloat16 (csrc/attention.h); values of a row lie side by side, rows `..._row`
/// values apart.
struct AttentionHead {
  const uint16_t *query, *key, *value;  // [queries][width], [keys][width], [keys][value_width]
  int64_t query_row, key_row, value_row;
  const uint8_t*
      mask;  // [queries][keys], 1 where a query sees a key; null: all, or those up to its own place
  int64_t mask_row;
  bool causal;
  int64_t queries, keys, width, value_width;
  float scale;
  uint16_t *packed_keys, *packed_values;  // scratch: keys times width, each up to a multiple of 32
  uint16_t* out;                          // [queries][value_width]
  int64_t out_row;
};

/// What csrc/peak.h measures.
enum class Peak { float32, int8, tiles };

struct LowbitKernels;  // csrc/lowbit.h
/// A histogram for csrc/kl_search.h: counts[bins], and running sums [bins + 1] of the counts, of the bins
/// that hold any, and of count log count.
struct Histogram {
  int64_t bins;
  const double *counts, *mass, *filled, *h_log_h;
};

struct Kernels {
  const char* isa;
  void (*minmax_rows)(const void* x, Float kind, Shape shape, float* out);
  void (*quantize_rows)(const void* x, Float kind, Shape shape, const float* scale, const int32_t* zero_point,
                        Bounds bounds, void* out, Code code);
  void (*quantize_rows_dynamic)(const float* x, Shape shape, int32_t qmax, int8_t* out, float* scale);
  void (*dequantize_rows)(const void* codes, Code code, Shape shape, const float* scale,
                          const int32_t* zero_point, float* out);
  /// The scratch, kSubHistograms * bins values of 4 bytes, is all 0 before and after.
  void (*histogram_rows)(const float* x, Shape shape, const float* inv_width, int64_t bins, void* scratch,
                         int64_t* counts);
  void (*mse_search_rows)(const float* x, Shape shape, const float* candidates, int64_t n_candidates,
                          bool symmetric, Bounds bounds, float* lo, float* hi);
  bool (*minmax_quantize_rows)(const void* x, Float kind, Shape shape, Rule rule, int bits, float* scale,
                               int32_t* zero_point, uint8_t* out);
  void (*refine_clip_rows)(const float* x, Shape shape, const float* moves, int64_t n_moves, int rounds,
                           float worth_another, Bounds bounds, float* lo, float* hi);
  double (*peak)(Peak what, int64_t rounds);
  uint64_t (*read_memory)(const uint64_t* data, int64_t count);
  void (*rebin_rows)(int64_t* counts, Shape shape, const int64_t* doublings);
  void (*log_sums)(const double* counts, int64_t bins, double* h_log_h);
  void (*kl_divergences)(const Histogram& h, const int64_t* start, const int64_t* stop, int64_t windows,
                         int64_t levels, double smoothing, double* scratch, double* out);
  void (*pack)(const uint8_t* codes, int64_t count, int bits, uint8_t* out);
  void (*unpack)(const uint8_t* data, int64_t count, int bits, bool is_signed, uint8_t* out);
  /// The error of every candidate, [rows][candidates], as if no column made up for another.
  void (*weigh)(const PlaneProblem& problem, int32_t power, int64_t first, int64_t count);
  /// Rows `first` to `first + count - 1`; scratch holds 4 * 16 * cols values, from a
  /// multiple of 64 bytes on.
  void (*nearest_plane)(const PlaneProblem& problem, int64_t first, int64_t count, float* scratch);
  /// At most 64 rows at a time.
  void (*descend)(const DescentProblem& problem, int64_t first, int64_t count);
  /// Columns 16 * block to 16 * block + 15; null where the set cannot multiply bfloat16, as gram_square is
  /// then.
  void (*gram_pack)(const GramProblem& problem, int64_t block);
  /// A square of 256 by 256 sums; acc holds as many, at an address that 64 divides.
  void (*gram_square)(const GramProblem& problem, int64_t down, int64_t right, float* acc);
  /// Fill the scratch of a head; null where the set cannot, or where tiles are better, as attention_queries
  /// is then.
  void (*attention_pack_keys)(const AttentionHead& head, uint16_t* to);
  void (*attention_pack_values)(const AttentionHead& head, uint16_t* to);
  /// 32 queries from `query` on; scratch holds 32 times 256 + value width + half of 256 + width values,
  /// widths up to multiples of 32, at an address that 64 divides.
  void (*attention_queries)(const AttentionHead& head, int64_t query, float* scratch);
  const LowbitKernels* lowbit;
};

/// Names of the instruction sets that are compiled in and that this processor runs, best first.
std::vector<std::string> available_isas();

/// The table of a name, or the best one for "".
/// Throws std::runtime_error if the name is unknown or this machine cannot run the set.
const Kernels& choose_kernels(std::string wanted);

/// The table that the environment variable FEWBIT_ISA names, or the best one.
const Kernels& choose_kernels();

}  // namespace fewbit
