// The inner loops of GPTQ and of coordinate descent: codes of a row chosen one column after another.
//
// Both lower d G d^T, the output error of a row's change d. With G = R R^T, R upper triangular, that is the
// sum of squares of d R, and column j of it, d_j R_jj + sum over i < j of d_i R_ij, is settled once d_0 ..
// d_j are: each code in turn is rounded to cancel what the earlier ones left (arXiv 2210.17323 in the form of
// arXiv 2507.18553: no inverse is needed).
//
// Layout of nearest_plane: problems[rows][cols] in order; `scale` and `zero` hold one value a problem, or one
// a column. Sixteen problems (rows, or rows under different scales) stand side by side in the lanes of a
// vector, so that the triangular update needs no sum across lanes and every instruction set computes the same
// bits. Cost: cols / 2 vector multiply-adds for sixteen codes; sixteen columns are settled before the ones
// behind take them in, eight at a time in registers, so that carries seldom go through memory. Layout of
// descend: one row at a time; its gradient d G is updated by a row of G where a code changes, which is
// seldom. Cost: a few vector instructions for sixteen columns, and cols multiply-adds a changed code.
#pragma once

#include <cstdint>
#include <cstring>

#include "dispatch.h"

namespace fewbit {
namespace {

inline constexpr int64_t kProblems = 16;
inline constexpr int64_t kAtOnce = 8;    // columns whose carries stay in registers
inline constexpr int64_t kColumns = 16;  // columns that are settled before the ones behind them take them in

/// One value of each problem: one vector where there are 512 bits, several where not.
using Lanes = float __attribute__((vector_size(64)));

/// Half to even for |x| below 2^22, which callers clamp to: the sum has no bits left for a fraction.
inline float nearest_even(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

inline float clamped(float x, float lo, float hi) {
  const float above = x > lo ? x : lo;  // a NaN becomes lo
  return above < hi ? above : hi;
}

/// Sixteen problems side by side: a row under its candidates, or rows under their own scales.
struct Tile {
  int64_t row[kProblems], at[kProblems];  // the problem's row and the place of its scale
  Lanes scale, inverse, lowest, highest, zero, error;
};

inline void load_scales(Tile& tile, const PlaneProblem& problem, int64_t column) {
  for (int64_t l = 0; l < kProblems; ++l) {
    tile.scale[l] = problem.scale[tile.at[l] + column];
    tile.zero[l] = problem.zero[tile.at[l] + column];
  }
  tile.inverse = 1.0f / tile.scale;
  tile.lowest = problem.qmin - tile.zero;
  tile.highest = problem.qmax - tile.zero;
}

/// The codes of a column, and what they leave of it.
inline void choose_codes(Tile& tile, const Lanes& weight, const Lanes& carry, float diagonal, Lanes& code,
                         Lanes& change) {
  constexpr float kShift = 12582912.0f;
  const Lanes wanted = (weight + carry * (1.0f / diagonal)) * tile.inverse;
  const Lanes above = wanted > tile.lowest ? wanted : tile.lowest;  // a NaN becomes the lowest
  const Lanes within = above < tile.highest ? above : tile.highest;
  const Lanes q = (within + kShift) - kShift;
  code = q + tile.zero;
  change = weight - tile.scale * q;
  const Lanes left = carry + change * diagonal;
  tile.error += left * left;
}

/// The carries of columns [from, to) take in the changes of columns [first, last), one after another.
template <int64_t kCount>
inline void carry_on(const Lanes* change, const float* factor, int64_t cols, int64_t first, int64_t last,
                     int64_t at, Lanes* carry) {
  Lanes sums[kCount];
  for (int64_t i = 0; i < kCount; ++i) sums[i] = carry[at + i];
  for (int64_t j = first; j < last; ++j) {
    const Lanes d = change[j];
    const float* row = factor + j * cols + at;
    for (int64_t i = 0; i < kCount; ++i) sums[i] += d * row[i];
  }
  for (int64_t i = 0; i < kCount; ++i) carry[at + i] = sums[i];
}

/// What each candidate would leave of a row's columns if none made up for another, sixteen at a time: the sum
/// of its magnitudes to the power of 2, 3 or 4.
void weigh(const PlaneProblem& problem, int32_t power, int64_t first, int64_t rows) {
  const int64_t cols = problem.cols, per = problem.candidates;
  for (int64_t row = first; row < first + rows; ++row) {
    const float *weight = problem.weight + row * cols, *carry = problem.carry + row * cols;
    for (int64_t t = 0; t < per; t += kProblems) {
      float scale[kProblems], inverse[kProblems], lowest[kProblems], highest[kProblems], error[kProblems];
      for (int64_t l = 0; l < kProblems; ++l) {
        const int64_t at = row * per + (t + l < per ? t + l : per - 1);
        scale[l] = problem.scale[at];
        inverse[l] = 1.0f / scale[l];
        lowest[l] = problem.qmin - problem.zero[at];
        highest[l] = problem.qmax - problem.zero[at];
        error[l] = 0.0f;
      }
      for (int64_t j = 0; j < cols; ++j) {
        const float diagonal = problem.factor[j * cols + j];
        const float wanted = weight[j] + carry[j] * (1.0f / diagonal);
        for (int64_t l = 0; l < kProblems; ++l) {
          const float q = nearest_even(clamped(wanted * inverse[l], lowest[l], highest[l]));
          const float left = (wanted - scale[l] * q) * diagonal;
          const float square = left * left;
          error[l] += power == 2 ? square : power == 3 ? square * (left < 0 ? -left : left) : square * square;
        }
      }
      for (int64_t l = 0; l < kProblems && t + l < per; ++l) problem.error[row * per + t + l] = error[l];
    }
  }
}

/// All columns of a tile; weights, carries, codes and changes stand transposed, [cols][16].
inline void round_tile(const PlaneProblem& problem, Tile& tile, Lanes* weight, Lanes* carry, Lanes* code,
                       Lanes* change) {
  const int64_t cols = problem.cols;
  for (int64_t l = 0; l < kProblems; ++l) {
    const float *w = problem.weight + tile.row[l] * cols, *c = problem.carry + tile.row[l] * cols;
    for (int64_t k = 0; k < cols; ++k) weight[k][l] = w[k], carry[k][l] = c[k];
  }
  tile.error = Lanes{};
  load_scales(tile, problem, 0);
  for (int64_t first = 0; first < cols; first += kColumns) {
    const int64_t last = first + kColumns < cols ? first + kColumns : cols;
    for (int64_t j = first; j < last; ++j) {
      if (problem.by_column && j > 0) load_scales(tile, problem, j);
      const float* row = problem.factor + j * cols;
      choose_codes(tile, weight[j], carry[j], row[j], code[j], change[j]);
      for (int64_t k = j + 1; k < last; ++k) carry[k] += change[j] * row[k];
    }
    int64_t k = last;
    for (; k + kAtOnce <= cols; k += kAtOnce)
      carry_on<kAtOnce>(change, problem.factor, cols, first, last, k, carry);
    for (; k < cols; ++k) carry_on<1>(change, problem.factor, cols, first, last, k, carry);
  }
}

void nearest_plane(const PlaneProblem& problem, int64_t first, int64_t rows, float* scratch) {
  const int64_t cols = problem.cols, per = problem.candidates, width = problem.by_column ? cols : 1;
  Lanes* weight = reinterpret_cast<Lanes*>(scratch);
  Lanes *carry = weight + cols, *code = carry + cols, *change = code + cols;
  const int64_t end = (first + rows) * per;
  for (int64_t start = first * per; start < end; start += kProblems) {
    Tile tile;
    for (int64_t l = 0; l < kProblems; ++l) {
      const int64_t place = start + l < end ? start + l : end - 1;
      tile.row[l] = place / per;
      tile.at[l] = place * width;
    }
    round_tile(problem, tile, weight, carry, code, change);
    for (int64_t l = 0; l < kProblems && start + l < end; ++l) {
      const int64_t row = tile.row[l], candidate = (start + l) % per;
      if (candidate != 0 && !(tile.error[l] < problem.error[row])) continue;  // the first of the least error
      problem.best[row] = static_cast<int32_t>(candidate);
      problem.error[row] = tile.error[l];
      int32_t* codes = problem.codes + row * cols;
      float* changes = problem.change + row * cols;
      for (int64_t j = 0; j < cols; ++j)
        codes[j] = static_cast<int32_t>(code[j][l]), changes[j] = change[j][l];
    }
  }
}

/// Whether any of sixteen columns from j on, which share a scale, is to move: most are not, and are passed
/// over.
inline bool any_moves(const DescentProblem& problem, int64_t j, float s, float z, const int32_t* codes,
                      const float* gradient) {
  int moves = 0;
  for (int64_t l = 0; l < kColumns; ++l) {
    const float diagonal = problem.diagonal[j + l], q = static_cast<float>(codes[j + l]) - z;
    const float wanted = clamped(q + gradient[j + l] / (diagonal * s), problem.qmin - z, problem.qmax - z);
    moves |= static_cast<int>(nearest_even(wanted) != q);
  }
  return moves != 0;
}

/// Changes of some columns of a row, and what they do to its gradient elsewhere.
struct Moves {
  int64_t count = 0, column[kColumns];
  float by[kColumns];
};

/// Columns [from, to) of the gradient take in the moves, one after another.
inline void take_in(const DescentProblem& problem, const Moves& moves, int64_t from, int64_t to,
                    float* gradient) {
  constexpr int64_t kVectors = 4;
  int64_t k = from;
  for (; k + kVectors * kProblems <= to; k += kVectors * kProblems) {
    Lanes sums[kVectors], row[kVectors];
    std::memcpy(sums, gradient + k, sizeof sums);
    for (int64_t i = 0; i < moves.count; ++i) {
      std::memcpy(row, problem.gram + moves.column[i] * problem.cols + k, sizeof row);
      for (int64_t v = 0; v < kVectors; ++v) sums[v] -= moves.by[i] * row[v];
    }
    std::memcpy(gradient + k, sums, sizeof sums);
  }
  for (; k < to; ++k) {
    for (int64_t i = 0; i < moves.count; ++i)
      gradient[k] -= moves.by[i] * problem.gram[moves.column[i] * problem.cols + k];
  }
}

/// Columns [first, last) of a row; returns how many codes changed.
inline int64_t settle_columns(const DescentProblem& problem, const float* scale, const float* zero,
                              int64_t first, int64_t last, int32_t* codes, float* gradient) {
  const bool one_scale = problem.group % kColumns == 0 && last - first == kColumns;
  const float s_first = scale[first / problem.group], z_first = zero[first / problem.group];
  if (one_scale && !any_moves(problem, first, s_first, z_first, codes, gradient)) return 0;
  Moves moves;
  for (int64_t j = first; j < last; ++j) {
    const float diagonal = problem.diagonal[j], s = one_scale ? s_first : scale[j / problem.group],
                z = one_scale ? z_first : zero[j / problem.group];
    if (!(diagonal > 0.0f)) continue;
    const float q = static_cast<float>(codes[j]) - z;  // gradient = d G with d = w - s q
    const float wanted = clamped(q + gradient[j] / (diagonal * s), problem.qmin - z, problem.qmax - z);
    // A step must gain: one that only swaps two equal codes would never end.
    const float next = nearest_even(wanted), step = next - q;
    if (step == 0.0f) continue;
    const float by = s * step;
    if (!(by * (by * diagonal - 2.0f * gradient[j]) < 0.0f)) continue;
    for (int64_t k = first; k < last; ++k) gradient[k] -= by * problem.gram[j * problem.cols + k];
    codes[j] += static_cast<int32_t>(step);
    moves.column[moves.count] = j;
    moves.by[moves.count++] = by;
  }
  if (moves.count > 0) {
    take_in(problem, moves, 0, first, gradient);
    take_in(problem, moves, last, problem.cols, gradient);
  }
  return moves.count;
}

/// At most 64 rows, each until a sweep changes nothing.
void descend(const DescentProblem& problem, int64_t first, int64_t count) {
  const int64_t cols = problem.cols, groups = (cols + problem.group - 1) / problem.group;
  bool active[64];
  for (int64_t r = 0; r < count; ++r) active[r] = true;
  for (int32_t i = 0; i < problem.sweeps; ++i) {
    int64_t changed[64] = {};
    for (int64_t j = 0; j < cols; j += kColumns) {
      const int64_t last = j + kColumns < cols ? j + kColumns : cols;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = first + r;
        if (!active[r]) continue;
        changed[r] += settle_columns(problem, problem.scale + row * groups, problem.zero + row * groups, j,
                                     last, problem.codes + row * cols, problem.gradient + row * cols);
      }
    }
    for (int64_t r = 0; r < count; ++r) active[r] = active[r] && changed[r] > 0;
  }
}

}  // namespace
}  // namespace fewbit
