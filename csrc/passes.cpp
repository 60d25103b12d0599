// The split of every pass into pieces. See csrc/passes.h.
#include "passes.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cpu.h"
#include "split.h"

namespace fewbit::passes {
namespace {

/// The first address from `memory` on that 64 divides.
template <class T>
T* aligned(T* memory) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
}

constexpr int64_t kStream = 1 << 16;  // values of a piece of a pass that waits for memory
constexpr int64_t kSearch = 1 << 10;  // values of a piece of a search, which looks at each value many times
constexpr int64_t kCount = 1 << 18;   // values of a piece of a histogram, which clears and adds up tables

}  // namespace

void minmax_rows(const Kernels& with, const void* x, Float kind, Shape shape, float* out) {
  const char* from = static_cast<const char*>(x);
  if (shape.cols <= kStream) {
    return for_rows(shape, kStream, [&](int64_t first, int64_t rows, int) {
      with.minmax_rows(from + first * shape.cols * size_of(kind), kind, {rows, shape.cols}, out + 2 * first);
    });
  }
  const int64_t across = (shape.cols + kStream - 1) / kStream;
  std::vector<float> ends(
      static_cast<size_t>(2 * across * shape.rows));  // of the parts of each row, in a row
  for_parts(shape, kStream, [&](Part p, int) {
    with.minmax_rows(from + (p.row * shape.cols + p.col) * size_of(kind), kind, {1, p.cols},
                     ends.data() + 2 * (p.row * across + p.col / kStream));
  });
  with.minmax_rows(ends.data(), Float::f32, {shape.rows, 2 * across}, out);
}

void quantize_rows(const Kernels& with, const void* x, Float kind, Shape shape, const float* scale,
                   const int32_t* zero_point, Bounds bounds, void* out, Code code) {
  for_parts(shape, kStream, [&](Part p, int) {
    const int64_t at = p.row * shape.cols + p.col;
    with.quantize_rows(static_cast<const char*>(x) + at * size_of(kind), kind, {p.rows, p.cols},
                       scale + p.row, zero_point + p.row, bounds,
                       static_cast<char*>(out) + at * size_of(code), code);
  });
}

void quantize_rows_dynamic(const Kernels& with, const float* x, Shape shape, int32_t qmax, int8_t* out,
                           float* scale) {
  for_rows(shape, kStream, [&](int64_t first, int64_t rows, int) {
    const int64_t at = first * shape.cols;
    with.quantize_rows_dynamic(x + at, {rows, shape.cols}, qmax, out + at, scale + first);
  });
}

void dequantize_rows(const Kernels& with, const void* codes, Code code, Shape shape, const float* scale,
                     const int32_t* zero_point, float* out) {
  for_parts(shape, kStream, [&](Part p, int) {
    const int64_t at = p.row * shape.cols + p.col;
    with.dequantize_rows(static_cast<const char*>(codes) + at * size_of(code), code, {p.rows, p.cols},
                         scale + p.row, zero_point + p.row, out + at);
  });
}

namespace {

/// What one thread counts in.
struct Tables {
  explicit Tables(int64_t bins)
      : scratch(static_cast<size_t>(kSubHistograms * bins) * sizeof(uint32_t)),
        counts(static_cast<size_t>(bins)) {}
  std::vector<unsigned char> scratch;  // of counters that are as wide as a kernel wants them
  std::vector<int64_t> counts;         // of its parts of a long row
};

/// The tables of the threads that this one sets to work, kept from call to call: fresh memory of their size
/// costs as much as counting a hundred thousand values.
std::vector<Tables>& kept_tables(size_t number, int64_t bins) {
  thread_local std::vector<Tables> tables;
  thread_local int64_t of_bins = 0;
  if (of_bins != bins || tables.size() < number) {
    tables.assign(number, Tables(bins));
    of_bins = bins;
  }
  return tables;
}

void count_long_row(const Kernels& with, const float* x, int64_t cols, float inv_width, int64_t bins,
                    int64_t* counts, std::vector<Tables>& tables) {
  const auto count = [&](Part p, int slot) {
    Tables& mine = tables[static_cast<size_t>(slot)];
    with.histogram_rows(x + p.col, {1, p.cols}, &inv_width, bins, mine.scratch.data(), mine.counts.data());
  };
  for_parts({1, cols}, kCount, count, static_cast<int>(tables.size()));
  for (Tables& table : tables) {  // sums of integers: their order is free
    for (int64_t k = 0; k < bins; ++k) counts[k] += table.counts[static_cast<size_t>(k)];
    std::fill(table.counts.begin(), table.counts.end(), 0);
  }
}

}  // namespace

void histogram_rows(const Kernels& with, const float* x, Shape shape, const float* inv_width, int64_t bins,
                    int64_t* counts) {
  const int workers = shape.rows * shape.cols <= kCount ? 1 : threads();
  std::vector<Tables>& tables = kept_tables(static_cast<size_t>(workers), bins);
  if (workers == 1) {
    with.histogram_rows(x, shape, inv_width, bins, tables[0].scratch.data(), counts);
    return;
  }
  if (shape.cols > kCount) {
    for (int64_t r = 0; r < shape.rows; ++r) {
      count_long_row(with, x + r * shape.cols, shape.cols, inv_width[r], bins, counts + r * bins, tables);
    }
    return;
  }
  const auto count = [&](int64_t first, int64_t rows, int slot) {
    with.histogram_rows(x + first * shape.cols, {rows, shape.cols}, inv_width + first, bins,
                        tables[static_cast<size_t>(slot)].scratch.data(), counts + first * bins);
  };
  for_rows(shape, kCount, count, static_cast<int>(tables.size()));
}

bool histogram_grow(const Kernels& with, const float* x, int64_t n, int64_t bins, int64_t* counts,
                    int64_t* exponent, float* low, float* high) {
  float ends[2];
  minmax_rows(with, x, Float::f32, {1, n}, ends);
  if (!std::isfinite(ends[0]) || !std::isfinite(ends[1])) return false;
  int needed = 0;
  const float amax = std::max(-ends[0], ends[1]);
  std::frexp(amax, &needed);  // amax < 2^needed, strictly
  if (amax > 0.0f && needed > *exponent) {
    const int64_t doublings = needed - *exponent;
    rebin_rows(with, counts, {1, bins}, &doublings);
    *exponent = needed;
  }
  const int half = std::countr_zero(static_cast<uint64_t>(bins)) - 1;
  const float inv_width = std::ldexp(1.0f, half - static_cast<int>(*exponent));
  histogram_rows(with, x, {1, n}, &inv_width, bins, counts);
  *low = std::min(*low, ends[0]);
  *high = std::max(*high, ends[1]);
  return true;
}

void mse_search_rows(const Kernels& with, const float* x, Shape shape, const float* candidates,
                     int64_t n_candidates, bool symmetric, Bounds bounds, float* lo, float* hi) {
  for_rows(shape, kSearch, [&](int64_t first, int64_t rows, int) {
    with.mse_search_rows(x + first * shape.cols, {rows, shape.cols}, candidates, n_candidates, symmetric,
                         bounds, lo + first, hi + first);
  });
}

bool minmax_quantize_rows(const Kernels& with, const void* x, Float kind, Shape shape, Rule rule, int bits,
                          float* scale, int32_t* zero_point, uint8_t* out) {
  // A piece of whole eights of codes begins at a whole byte of the stream.
  const int64_t about = shape.cols < kStream ? kStream / (shape.cols < 1 ? 1 : shape.cols) : 1;
  const int64_t height = shape.cols % 8 == 0 ? about : (about + 7) / 8 * 8;
  std::atomic<bool> is_good{true};
  parallel_for((shape.rows + height - 1) / height, [&](int64_t piece, int) {
    const int64_t first = piece * height, at = first * shape.cols;
    const Shape part{std::min(height, shape.rows - first), shape.cols};
    if (!with.minmax_quantize_rows(static_cast<const char*>(x) + at * size_of(kind), kind, part, rule, bits,
                                   scale + first, zero_point == nullptr ? nullptr : zero_point + first,
                                   out + at / 8 * bits)) {
      is_good.store(false, std::memory_order_relaxed);
    }
  });
  return is_good.load(std::memory_order_relaxed);
}

void refine_clip_rows(const Kernels& with, const float* x, Shape shape, const float* moves, int64_t n_moves,
                      int rounds, float worth_another, Bounds bounds, float* lo, float* hi) {
  for_rows(shape, kSearch, [&](int64_t first, int64_t rows, int) {
    with.refine_clip_rows(x + first * shape.cols, {rows, shape.cols}, moves, n_moves, rounds, worth_another,
                          bounds, lo + first, hi + first);
  });
}

void rebin_rows(const Kernels& with, int64_t* counts, Shape shape, const int64_t* doublings) {
  for_rows(shape, kStream, [&](int64_t first, int64_t rows, int) {
    with.rebin_rows(counts + first * shape.cols, {rows, shape.cols}, doublings + first);
  });
}

void kl_divergences(const Kernels& with, const double* counts, int64_t bins, const int64_t* start,
                    const int64_t* stop, int64_t windows, int64_t levels, double smoothing, double* out) {
  std::vector<double> mass(static_cast<size_t>(bins + 1)), filled(mass), h_log_h(mass);
  for (size_t k = 0; k < static_cast<size_t>(bins); ++k) {
    mass[k + 1] = mass[k] + counts[k];
    filled[k + 1] = filled[k] + (counts[k] > 0.0 ? 1.0 : 0.0);
  }
  with.log_sums(counts, bins, h_log_h.data());
  const Histogram histogram{bins, counts, mass.data(), filled.data(), h_log_h.data()};
  const int64_t each = std::max<int64_t>(1, kCount / 16 / (levels + 16));
  const int slots = threads();
  std::vector<double> scratch(static_cast<size_t>(3 * levels * slots));
  const auto search = [&](int64_t piece, int slot) {
    const int64_t first = piece * each;
    with.kl_divergences(histogram, start + first, stop + first, std::min(each, windows - first), levels,
                        smoothing, scratch.data() + 3 * levels * slot, out + first);
  };
  parallel_for((windows + each - 1) / each, search, slots);
}

double peak(const Kernels& with, Peak what, int64_t pieces, int64_t rounds) {
  std::vector<double> done(static_cast<size_t>(pieces));
  parallel_for(pieces,
               [&](int64_t piece, int) { done[static_cast<size_t>(piece)] = with.peak(what, rounds); });
  double sum = 0.0;
  for (const double part : done) sum += part;
  return sum;
}

uint64_t read_memory(const Kernels& with, const uint64_t* data, int64_t count) {
  std::atomic<uint64_t> sum{0};
  for_parts({1, count}, kStream, [&](Part p, int) {
    sum.fetch_add(with.read_memory(data + p.col, p.cols), std::memory_order_relaxed);
  });
  return sum.load();
}

void pack(const Kernels& with, const uint8_t* codes, int64_t count, int bits, uint8_t* out) {
  for_parts({1, count}, kStream,
            [&](Part p, int) { with.pack(codes + p.col, p.cols, bits, out + p.col / 8 * bits); });
}

void unpack(const Kernels& with, const uint8_t* data, int64_t count, int bits, bool is_signed, uint8_t* out) {
  for_parts({1, count}, kStream,
            [&](Part p, int) {  // a piece begins at a multiple of eight codes, a whole byte
              with.unpack(data + p.col / 8 * bits, p.cols, bits, is_signed, out + p.col);
            });
}

void weigh(const Kernels& with, const PlaneProblem& problem, int32_t power) {
  for_rows({problem.rows, problem.cols}, kSearch,
           [&](int64_t first, int64_t rows, int) { with.weigh(problem, power, first, rows); });
}

void nearest_plane(const Kernels& with, const PlaneProblem& problem) {
  constexpr int64_t kTile = 16;  // problems side by side
  const int64_t most = threads(), each = 4 * kTile * problem.cols;
  std::vector<float> scratch(static_cast<size_t>(most * each + kTile));
  float* memory = aligned(scratch.data());
  const int64_t cost = std::max<int64_t>(1, problem.cols * problem.cols * problem.candidates / 2);
  const int64_t rows = std::max<int64_t>(kTile, (int64_t{1} << 18) / cost / kTile * kTile);
  parallel_for((problem.rows + rows - 1) / rows,
               [&](int64_t piece, int slot) {
                 const int64_t first = piece * rows;
                 with.nearest_plane(problem, first, std::min(rows, problem.rows - first),
                                    memory + slot * each);
               },
               static_cast<int>(most));
}

void descend(const Kernels& with, DescentProblem problem, int64_t rows) {
  std::vector<float> diagonal(static_cast<size_t>(problem.cols));
  for (int64_t j = 0; j < problem.cols; ++j)
    diagonal[static_cast<size_t>(j)] = problem.gram[j * problem.cols + j];
  problem.diagonal = diagonal.data();
  constexpr int64_t kTogether = 32;
  parallel_for((rows + kTogether - 1) / kTogether, [&](int64_t piece, int) {
    with.descend(problem, piece * kTogether, std::min(kTogether, rows - piece * kTogether));
  });
}

namespace {

/// Whether the processor has what gram_square of a set needs: without tiles products of pairs, which not
/// every processor has that runs the set.
bool multiplies_bfloat16(const Kernels& with) {
  static const std::vector<std::string> features = cpu_features();
  return std::string_view(with.isa) == "amx" ||
         std::find(features.begin(), features.end(), "avx512_bf16") != features.end();
}

/// Room for packed rows, kept by each thread from call to call up to 64 MB (calibration asks for 33 MB some
/// hundred times): fresh memory costs a tenth of the time of the products. Not set to 0, as a vector would
/// be: packing writes all of it.
uint16_t* packed_rows(size_t count) {
  constexpr size_t kKept = size_t{1} << 25;
  thread_local std::unique_ptr<uint16_t[]> room;
  thread_local size_t has = 0;
  if (has < count || has > kKept) {
    room.reset();
    room.reset(new uint16_t[count]);
    has = count;
  }
  return room.get();
}

}  // namespace

bool gram(const Kernels& with, GramProblem problem) {
  if (with.gram_square == nullptr || !multiplies_bfloat16(with)) return false;
  constexpr int64_t kSide = 256, kSquare = kSide * kSide, kLine = 32;
  if (problem.count == 0 || problem.cols == 0) return true;
  const int64_t blocks = (problem.cols + 31) / 32 * 2, depth = (problem.count + 31) / 32 * 32,
                most = threads(), squares = (problem.cols + kSide - 1) / kSide;
  const std::unique_ptr<float[]> sums(new float[static_cast<size_t>(most * kSquare + kLine)]);
  problem.along = aligned(packed_rows(static_cast<size_t>(2 * blocks * 16 * depth + kLine)));
  problem.across = problem.along + blocks * 16 * depth;
  float* acc = aligned(sums.get());
  // On torch's threads: they still spin after the loops that gathered the rows.
  parallel_for(
      blocks, [&](int64_t block, int) { with.gram_pack(problem, block); }, static_cast<int>(most), true);
  parallel_for(
      squares * squares,
      [&](int64_t piece, int slot) {
        const int64_t down = piece / squares, right = piece % squares;
        if (right >= down) with.gram_square(problem, down, right, acc + slot * kSquare);
      },
      static_cast<int>(most), true);
  return true;
}

bool attention(const Kernels& with, int64_t heads, AttentionHead (*at)(const void* context, int64_t head),
               const void* context) {
  if (with.attention_queries == nullptr || !multiplies_bfloat16(with)) return false;
  if (heads == 0) return true;
  constexpr int64_t kLine = 32;
  const auto up = [](int64_t n) { return (n + 31) / 32 * 32; };
  const AttentionHead like = at(context, 0);
  const int64_t keys = up(like.keys) * up(like.width), values = up(like.keys) * up(like.value_width),
                rest =
                    kAttentionQueries * (kAttentionKeys * 3 / 2 + up(like.value_width) + up(like.width) / 2);
  // Not set to 0, as a vector would be: packing writes all of it.
  const std::unique_ptr<uint16_t[]> packed(new uint16_t[static_cast<size_t>(keys + values + kLine)]);
  const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(rest + kLine)]);
  for (int64_t i = 0; i < heads; ++i) {
    AttentionHead head = at(context, i);
    head.packed_keys = aligned(packed.get());
    head.packed_values = head.packed_keys + keys;
    with.attention_pack_keys(head, head.packed_keys);
    with.attention_pack_values(head, head.packed_values);
    for (int64_t query = 0; query < head.queries; query += kAttentionQueries)
      with.attention_queries(head, query, aligned(scratch.get()));
  }
  return true;
}

}  // namespace fewbit::passes
