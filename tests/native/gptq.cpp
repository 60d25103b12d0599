// GPTQ's plane rounding and coordinate descent on shapes around every edge; descent must never raise the
// error that it lowers.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "checks.h"
#include "passes.h"

namespace fewbit::checks {
namespace {

constexpr Shape kShapes[] = {{1, 1}, {2, 15}, {5, 16}, {17, 33}, {33, 64}, {3, 130}};
constexpr int64_t kGroup = 32;
constexpr float kLowest = -8.0f, kHighest = 7.0f;

/// An upper triangular factor with a diagonal of at least 1.
Memory<float> triangle(int64_t cols) {
  Memory<float> factor = tame(cols * cols, 21);
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t k = 0; k < j; ++k) factor[j * cols + k] = 0.0f;
    factor[j * cols + j] = 1.0f + 0.25f * static_cast<float>(j % 5);
  }
  return factor;
}

Memory<float> steps(int64_t n, uint64_t seed) {
  Random random(seed);
  Memory<float> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(1 + random.below(32)) / 128.0f;
  return values;
}

Memory<float> zeros(int64_t n, uint64_t seed) {
  Random random(seed);
  Memory<float> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(random.below(16) - 8);
  return values;
}

void check_planes(const Kernels& with, Shape shape, int64_t candidates, bool by_column, Digests& digests) {
  const int64_t n = shape.rows * shape.cols, width = by_column ? shape.cols : candidates;
  Memory<float> weight = tame(n, 22), carry = tame(n, 23), factor = triangle(shape.cols), change(n),
                error(shape.rows), errors(shape.rows * candidates);
  Memory<float> scale = steps(shape.rows * width, 24), zero = zeros(shape.rows * width, 25);
  Memory<int32_t> codes(n), best(shape.rows);
  PlaneProblem p{};
  p.rows = shape.rows, p.cols = shape.cols, p.candidates = candidates, p.by_column = by_column;
  p.weight = weight.data(), p.carry = carry.data(), p.factor = factor.data();
  p.scale = scale.data(), p.zero = zero.data();
  p.qmin = kLowest, p.qmax = kHighest;
  p.codes = codes.data(), p.change = change.data(), p.error = error.data(), p.best = best.data();
  passes::nearest_plane(with, p);
  digests.add("nearest_plane", codes);
  digests.add("nearest_plane", change);
  digests.add("nearest_plane", error);
  digests.add("nearest_plane", best);
  if (by_column) return;
  p.error = errors.data();
  for (int32_t power = 2; power <= 4; ++power) {
    passes::weigh(with, p, power);
    digests.add("weigh", errors);
  }
}

/// d G d^T of a row, with d = w - s (q - z).
double error_of(Shape shape, int64_t row, Memory<float>& weight, Memory<float>& gram, Memory<float>& scale,
                Memory<float>& zero, Memory<int32_t>& codes, Memory<float>* gradient) {
  const int64_t cols = shape.cols, groups = (cols + kGroup - 1) / kGroup;
  Memory<double> change(cols);
  for (int64_t j = 0; j < cols; ++j) {
    const int64_t at = row * groups + j / kGroup;
    change[j] = static_cast<double>(weight[row * cols + j]) -
                static_cast<double>(scale[at]) * (codes[row * cols + j] - static_cast<double>(zero[at]));
  }
  double error = 0;
  for (int64_t k = 0; k < cols; ++k) {
    double sum = 0;
    for (int64_t j = 0; j < cols; ++j) sum += change[j] * static_cast<double>(gram[j * cols + k]);
    if (gradient != nullptr) (*gradient)[row * cols + k] = static_cast<float>(sum);
    error += sum * change[k];
  }
  return error;
}

/// G = R^T R / cols of random R: symmetric, no negative eigenvalue.
Memory<float> gram_matrix(int64_t cols) {
  Memory<float> factor = tame(cols * cols, 26), gram(cols * cols);
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      double sum = i == j ? 0.1 : 0.0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += static_cast<double>(factor[k * cols + i]) * static_cast<double>(factor[k * cols + j]) /
               static_cast<double>(cols);
      }
      gram[i * cols + j] = static_cast<float>(sum);
    }
  }
  return gram;
}

void check_descent(const Kernels& with, Shape shape, Digests& digests) {
  const int64_t n = shape.rows * shape.cols, groups = (shape.cols + kGroup - 1) / kGroup;
  Memory<float> weight = tame(n, 27), gram = gram_matrix(shape.cols), gradient(n);
  Memory<float> scale = steps(shape.rows * groups, 28), zero = zeros(shape.rows * groups, 29);
  Memory<int32_t> codes(n);
  Random random(30);
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int32_t>(random.below(16)) - 8;
  Memory<double> before(shape.rows);
  for (int64_t r = 0; r < shape.rows; ++r) {
    before[r] = error_of(shape, r, weight, gram, scale, zero, codes, &gradient);
  }
  DescentProblem p{};
  p.cols = shape.cols, p.group = kGroup, p.sweeps = 10;
  p.gram = gram.data(), p.scale = scale.data(), p.zero = zero.data();
  p.qmin = kLowest, p.qmax = kHighest;
  p.codes = codes.data(), p.gradient = gradient.data();
  passes::descend(with, p, shape.rows);
  digests.add("descend", codes);
  digests.add("descend", gradient);
  for (int64_t r = 0; r < shape.rows; ++r) {
    const double after = error_of(shape, r, weight, gram, scale, zero, codes, nullptr);
    if (after <= before[r] * (1.0 + 1e-5)) continue;
    std::fprintf(stderr, "descent went up, from %g to %g\n", before[r], after);
    std::exit(1);
  }
  for (int64_t i = 0; i < n; ++i) {
    if (codes[i] >= -8 && codes[i] <= 7) continue;
    std::fprintf(stderr, "descent left the codes' range: %d\n", codes[i]);
    std::exit(1);
  }
}

/// Sums of x x^T of small whole numbers, which are exact; memory of exact sizes, for the sanitizers.
void check_gram(const Kernels& with, Shape shape, bool is_double) {
  const int64_t n = shape.rows * shape.cols;
  Memory<uint16_t> rows(n);
  Memory<float> whole(n);
  Random random(31);
  for (int64_t i = 0; i < n; ++i) {
    whole[i] = static_cast<float>(random.below(16) - 8);
    uint32_t bits;
    std::memcpy(&bits, &whole[i], sizeof bits);
    rows[i] = static_cast<uint16_t>(bits >> 16);
  }
  const int64_t squares = shape.cols * shape.cols;
  Memory<double> wide(is_double ? squares : 0), sums(shape.cols), magnitudes(shape.cols);
  Memory<float> narrow(is_double ? 0 : squares);
  for (int64_t i = 0; i < squares; ++i) is_double ? wide[i] = 0.0 : narrow[i] = 0.0f;
  for (int64_t i = 0; i < shape.cols; ++i) sums[i] = magnitudes[i] = 0.0;
  void* products = is_double ? static_cast<void*>(wide.data()) : static_cast<void*>(narrow.data());
  if (!passes::gram(with, {rows.data(), shape.rows, shape.cols, nullptr, nullptr, sums.data(),
                           magnitudes.data(), products, is_double}))
    return;
  for (int64_t i = 0; i < shape.cols; ++i) {
    for (int64_t j = i; j < shape.cols; ++j) {
      double wanted = 0.0;
      for (int64_t r = 0; r < shape.rows; ++r) {
        wanted += static_cast<double>(whole[r * shape.cols + i]) * whole[r * shape.cols + j];
      }
      const int64_t at = i * shape.cols + j;
      const double found = is_double ? wide[at] : static_cast<double>(narrow[at]);
      if (found == wanted) continue;
      std::fprintf(stderr, "%s: gram is wrong at %lld, %lld\n", with.isa, static_cast<long long>(i),
                   static_cast<long long>(j));
      std::exit(1);
    }
  }
}

}  // namespace

void check_gptq(const Kernels& with, Digests& digests) {
  for (const Shape shape : {Shape{0, 3}, Shape{1, 1}, Shape{33, 17}, Shape{31, 300}, Shape{65, 64}}) {
    check_gram(with, shape, true);
    check_gram(with, shape, false);
  }
  for (const Shape shape : kShapes) {
    for (const int64_t candidates : {1, 3, 16, 21}) check_planes(with, shape, candidates, false, digests);
    check_planes(with, shape, 1, true, digests);
    check_descent(with, shape, digests);
  }
}

}  // namespace fewbit::checks
