// Low-bit linear layers on shapes around every edge: integer products by their digests, products in float
// against a plain loop.
#include "lowbit.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "checks.h"
#include "lowbit_matrix.h"

namespace fewbit::checks {
namespace {

struct Layer {
  int64_t outputs, columns, group;
  int bits;
  bool has_zeros;
};

constexpr Layer kLayers[] = {{1, 1, 32, 4, false},    {17, 100, 32, 4, true},  {33, 130, 64, 2, true},
                             {16, 192, 96, 3, false}, {35, 257, 128, 8, true}, {48, 64, 64, 4, false},
                             {31, 96, 32, 3, true},   {40, 160, 160, 8, false}};
constexpr int64_t kRows[] = {0, 1, 2, 5, 8, 13, 16, 33, 50};

struct Packed {
  Memory<uint8_t> codes;
  Memory<float> scale;
  Memory<int32_t> zero;
  LowbitMatrix matrix;

  Packed(const Layer& layer, int64_t groups, Random& random)
      : codes(fill_codes(layer, random)),
        scale(fill_scales(layer.outputs * groups, random)),
        zero(fill_zeros(layer, groups, random)),
        matrix({codes.data(), false, scale.data(), zero.data(), layer.outputs, layer.columns, layer.group,
                layer.bits}) {}

  static Memory<uint8_t> fill_codes(const Layer& layer, Random& random) {
    Memory<uint8_t> values(layer.outputs * layer.columns);
    for (int64_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<uint8_t>(random.below(1 << layer.bits));
    return values;
  }
  static Memory<float> fill_scales(int64_t n, Random& random) {
    Memory<float> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(1 + random.below(64)) / 64.0f;
    return values;
  }
  static Memory<int32_t> fill_zeros(const Layer& layer, int64_t groups, Random& random) {
    Memory<int32_t> values(layer.outputs * groups);
    for (int64_t i = 0; i < values.size(); ++i) {
      values[i] =
          static_cast<int32_t>(layer.has_zeros ? random.below(1 << layer.bits) : 1 << (layer.bits - 1));
    }
    return values;
  }
};

/// Exits if a float product is further than 1e-5 of its size from a plain loop.
void check_floats(const Layer& layer, int64_t groups, Packed& packed, Memory<float>& x, Memory<float>& y,
                  int64_t rows) {
  for (int64_t at = 0; at < rows * layer.outputs; ++at) {
    const int64_t row = at / layer.outputs, output = at % layer.outputs;
    double sum = 0, size = 0;
    for (int64_t k = 0; k < layer.columns; ++k) {
      const int64_t g = output * groups + k / layer.group;
      const double weight =
          static_cast<double>(packed.scale[g]) * (packed.codes[output * layer.columns + k] - packed.zero[g]);
      sum += weight * static_cast<double>(x[row * layer.columns + k]);
      size += std::fabs(weight * static_cast<double>(x[row * layer.columns + k]));
    }
    if (std::fabs(static_cast<double>(y[at]) - sum) > 1e-5 * size) {
      std::fprintf(stderr, "a product in float is %g, not %g\n", static_cast<double>(y[at]), sum);
      std::exit(1);
    }
  }
}

void check_layer(const LowbitKernels& with, const Layer& layer, int64_t rows, Digests& digests) {
  const int64_t groups = (layer.columns + layer.group - 1) / layer.group;
  Random random(static_cast<uint64_t>(layer.outputs * 1000 + rows));
  Packed packed(layer, groups, random);
  Memory<float> x = tame(rows * layer.columns, 3), bias = tame(layer.outputs, 4), y(rows * layer.outputs);
  Memory<uint16_t> short_x = halves(rows * layer.columns, Float::bf16, 5), short_y(rows * layer.outputs);
  LowbitCall call;
  call.weights = packed.matrix.weights();
  call.rows = rows, call.x = x.data(), call.y = y.data();
  run_float(with, call);
  check_floats(layer, groups, packed, x, y, rows);
  call.bias = bias.data();
  for (const bool per_row : {false, true}) {
    call.per_row = per_row;
    run_integer(with, call);
    digests.add("lowbit", y);
  }
  call.activation = Activation::silu, call.bf16_out = true, call.y = short_y.data();
  call.row_type = RowType::bf16, call.x = short_x.data();
  run_float(with, call);
  run_integer(with, call);
  digests.add("lowbit_bf16", short_y);
}

}  // namespace

void check_lowbit(const Kernels& kernels, Digests& digests) {
  for (const Layer& layer : kLayers) {
    for (const int64_t rows : kRows) check_layer(*kernels.lowbit, layer, rows, digests);
  }
}

}  // namespace fewbit::checks
