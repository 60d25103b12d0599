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
// bits. Cost: cols / 2 vector multiply-adds for sixteen codes; a tile of 16 x 128 carries stays in the L1
// cache. Layout of descend: one row at a time; its gradient d G is updated by a row of G where a code
// changes, which is seldom. Cost: a few instructions a column, and cols multiply-adds a changed code.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace fewbit {
namespace {

inline constexpr int64_t kProblems = 16;

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
  float weight[kProblems], scale[kProblems], inverse[kProblems], zero[kProblems], change[kProblems];
  float error[kProblems];
};

inline void load_scales(Tile& tile, const PlaneProblem& problem, int64_t column) {
  for (int64_t l = 0; l < kProblems; ++l) {
    tile.scale[l] = problem.scale[tile.at[l] + column];
    tile.inverse[l] = 1.0f / tile.scale[l];
    tile.zero[l] = problem.zero[tile.at[l] + column];
  }
}

/// The codes of column j, and what they leave of it.
inline void choose_codes(Tile& tile, const float* carry, float diagonal, float qmin, float qmax,
                         float* code) {
  const float inverse_diagonal = 1.0f / diagonal;
  for (int64_t l = 0; l < kProblems; ++l) {
    const float wanted = tile.weight[l] + carry[l] * inverse_diagonal;
    const float q = nearest_even(clamped(wanted * tile.inverse[l], qmin - tile.zero[l], qmax - tile.zero[l]));
    code[l] = q + tile.zero[l];
    tile.change[l] = tile.weight[l] - tile.scale[l] * q;
    const float left = carry[l] + tile.change[l] * diagonal;
    tile.error[l] += left * left;
  }
}

/// The carries of the columns behind j take in d_j R_jk.
inline void carry_on(const Tile& tile, const float* factor_row, int64_t from, int64_t cols, float* carry) {
  for (int64_t k = from; k < cols; ++k) {
    const float r = factor_row[k];
    for (int64_t l = 0; l < kProblems; ++l) carry[k * kProblems + l] += tile.change[l] * r;
  }
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

/// All columns of a tile; codes and changes stand transposed in scratch, [cols][16].
inline void round_tile(const PlaneProblem& problem, Tile& tile, float* carry, float* code, float* change) {
  const int64_t cols = problem.cols;
  for (int64_t l = 0; l < kProblems; ++l) {
    tile.error[l] = 0.0f;
    for (int64_t k = 0; k < cols; ++k) carry[k * kProblems + l] = problem.carry[tile.row[l] * cols + k];
  }
  load_scales(tile, problem, 0);
  for (int64_t j = 0; j < cols; ++j) {
    if (problem.by_column && j > 0) load_scales(tile, problem, j);
    for (int64_t l = 0; l < kProblems; ++l) tile.weight[l] = problem.weight[tile.row[l] * cols + j];
    choose_codes(tile, carry + j * kProblems, problem.factor[j * cols + j], problem.qmin, problem.qmax,
                 code + j * kProblems);
    for (int64_t l = 0; l < kProblems; ++l) change[j * kProblems + l] = tile.change[l];
    carry_on(tile, problem.factor + j * cols, j + 1, cols, carry);
  }
}

void nearest_plane(const PlaneProblem& problem, int64_t first, int64_t rows, float* scratch) {
  const int64_t cols = problem.cols, per = problem.candidates, width = problem.by_column ? cols : 1;
  float *carry = scratch, *code = carry + cols * kProblems, *change = code + cols * kProblems;
  const int64_t end = (first + rows) * per;
  for (int64_t start = first * per; start < end; start += kProblems) {
    Tile tile;
    for (int64_t l = 0; l < kProblems; ++l) {
      const int64_t place = start + l < end ? start + l : end - 1;
      tile.row[l] = place / per;
      tile.at[l] = place * width;
    }
    round_tile(problem, tile, carry, code, change);
    for (int64_t l = 0; l < kProblems && start + l < end; ++l) {
      const int64_t row = tile.row[l], candidate = (start + l) % per;
      if (candidate != 0 && !(tile.error[l] < problem.error[row])) continue;  // the first of the least error
      problem.best[row] = static_cast<int32_t>(candidate);
      problem.error[row] = tile.error[l];
      for (int64_t j = 0; j < cols; ++j) {
        problem.codes[row * cols + j] = static_cast<int32_t>(code[j * kProblems + l]);
        problem.change[row * cols + j] = change[j * kProblems + l];
      }
    }
  }
}

/// One sweep over the columns of a row; returns how many codes changed.
inline int64_t sweep(const DescentProblem& problem, const float* scale, const float* zero, int32_t* codes,
                     float* gradient) {
  const int64_t cols = problem.cols;
  int64_t changed = 0;
  for (int64_t j = 0; j < cols; ++j) {
    const float diagonal = problem.gram[j * cols + j], s = scale[j / problem.group],
                z = zero[j / problem.group];
    if (!(diagonal > 0.0f)) continue;
    const float q = static_cast<float>(codes[j]) - z;  // gradient = d G with d = w - s q
    const float wanted = clamped(q + gradient[j] / (diagonal * s), problem.qmin - z, problem.qmax - z);
    // A step must gain: one that only swaps two equal codes would never end.
    const float next = nearest_even(wanted), step = next - q;
    if (step == 0.0f) continue;
    const float by = s * step;
    if (!(by * (by * diagonal - 2.0f * gradient[j]) < 0.0f)) continue;
    for (int64_t k = 0; k < cols; ++k) gradient[k] -= by * problem.gram[j * cols + k];
    codes[j] += static_cast<int32_t>(step);
    ++changed;
  }
  return changed;
}

void descend(const DescentProblem& problem, int64_t first, int64_t count) {
  const int64_t groups = (problem.cols + problem.group - 1) / problem.group;
  for (int64_t r = first; r < first + count; ++r) {
    for (int32_t i = 0; i < problem.sweeps; ++i) {
      if (sweep(problem, problem.scale + r * groups, problem.zero + r * groups,
                problem.codes + r * problem.cols, problem.gradient + r * problem.cols) == 0)
        break;
    }
  }
}

}  // namespace
}  // namespace fewbit
