// The Python side of csrc/gptq.h and csrc/gram.h: checks what comes in, as csrc/module.cpp does for the other
// kernels.
//
// Layout: one function a kernel; its contract for Python is in src/fewbit/_native.pyi.
// Cost: that of the checks; `factor` and `zero` are read once.
// Why apart from module.cpp: these have more arguments than all others together.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "arrays.h"
#include "dispatch.h"
#include "passes.h"

namespace fewbit {

inline void check_code_range(int32_t qmin, int32_t qmax) {
  if (qmin < qmax && qmin >= -kMaxZeroPoint && qmax <= kMaxZeroPoint) return;
  refuse("`qmin` and `qmax` are " + std::to_string(qmin) + " and " + std::to_string(qmax) +
         ", but must be in order and lie within +-2^20");
}

inline void check_positive(const float* values, int64_t count, int64_t step, const char* name) {
  for (int64_t i = 0; i < count; ++i) {
    if (!(values[i * step] > 0.0f)) refuse(std::string("`") + name + "` must be above 0");
  }
}

inline void check_zeros(const float* zero, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!(zero[i] >= -static_cast<float>(kMaxZeroPoint) && zero[i] <= static_cast<float>(kMaxZeroPoint)))
      refuse("`zero` must lie within +-2^20");
  }
}

/// What `weigh` and `nearest_plane` are given alike.
inline PlaneProblem plane_problem(const Input& weight, const Input& carry, const Input& factor,
                                  const Input& scale, const Input& zero, bool by_column, int32_t qmin,
                                  int32_t qmax) {
  const Shape shape = matrix_shape(weight, "weight"), scales = matrix_shape(scale, "scale");
  PlaneProblem p{};
  p.rows = shape.rows, p.cols = shape.cols, p.by_column = by_column;
  p.candidates = by_column ? 1 : scales.cols;
  p.weight = values<float>(weight, "weight", {shape.rows, shape.cols});
  p.carry = values<float>(carry, "carry", {shape.rows, shape.cols});
  p.factor = values<float>(factor, "factor", {shape.cols, shape.cols});
  p.scale = values<float>(scale, "scale", {shape.rows, by_column ? shape.cols : scales.cols});
  p.zero = values<float>(zero, "zero", {shape.rows, scales.cols});
  p.qmin = static_cast<float>(qmin), p.qmax = static_cast<float>(qmax);
  check_code_range(qmin, qmax);
  if (p.candidates < 1) refuse("`scale` holds no candidate");
  check_positive(p.factor, p.cols, p.cols + 1, "factor's diagonal");
  check_positive(p.scale, scales.rows * scales.cols, 1, "scale");
  check_zeros(p.zero, scales.rows * scales.cols);
  return p;
}

inline void weigh(const Kernels& with, const Input& weight, const Input& carry, const Input& factor,
                  const Input& scale, const Input& zero, int32_t qmin, int32_t qmax, int32_t power,
                  const Output& error) {
  if (power < 2 || power > 4) refuse("`power` is " + std::to_string(power) + ", but must be 2, 3 or 4");
  PlaneProblem p = plane_problem(weight, carry, factor, scale, zero, false, qmin, qmax);
  p.error = memory<float>(error, "error", {p.rows, p.candidates});
  const nb::gil_scoped_release free;
  passes::weigh(with, p, power);
}

inline void nearest_plane(const Kernels& with, const Input& weight, const Input& carry, const Input& factor,
                          const Input& scale, const Input& zero, bool by_column, int32_t qmin, int32_t qmax,
                          const Output& codes, const Output& change, const Output& error,
                          const Output& best) {
  PlaneProblem p = plane_problem(weight, carry, factor, scale, zero, by_column, qmin, qmax);
  p.codes = memory<int32_t>(codes, "codes", {p.rows, p.cols});
  p.change = memory<float>(change, "change", {p.rows, p.cols});
  p.error = memory<float>(error, "error", {p.rows});
  p.best = memory<int32_t>(best, "best", {p.rows});
  const nb::gil_scoped_release free;
  passes::nearest_plane(with, p);
}

inline void descend(const Kernels& with, const Input& gram, const Input& scale, const Input& zero,
                    int64_t group, int32_t qmin, int32_t qmax, int32_t sweeps, const Output& codes,
                    const Output& gradient) {
  const Shape shape = matrix_shape(codes, "codes"), scales = matrix_shape(scale, "scale");
  if (group < 1 || (shape.cols + group - 1) / group != scales.cols) {
    refuse("`group` is " + std::to_string(group) + ", which does not make " + std::to_string(scales.cols) +
           " groups of " + std::to_string(shape.cols) + " columns");
  }
  DescentProblem p{};
  p.cols = shape.cols, p.group = group, p.sweeps = sweeps;
  p.gram = values<float>(gram, "gram", {shape.cols, shape.cols});
  p.scale = values<float>(scale, "scale", {shape.rows, scales.cols});
  p.zero = values<float>(zero, "zero", {shape.rows, scales.cols});
  p.qmin = static_cast<float>(qmin), p.qmax = static_cast<float>(qmax);
  p.codes = memory<int32_t>(codes, "codes", {shape.rows, shape.cols});
  p.gradient = memory<float>(gradient, "gradient", {shape.rows, shape.cols});
  check_code_range(qmin, qmax);
  check_positive(p.scale, scales.rows * scales.cols, 1, "scale");
  check_zeros(p.zero, scales.rows * scales.cols);
  const nb::gil_scoped_release free;
  passes::descend(with, p, shape.rows);
}

inline bool gram(const Kernels& with, const Input& rows, const Output& products, const Output& sums,
                 const Output& magnitudes) {
  const Shape shape = matrix_shape(rows, "rows");
  if (float_type(rows, "rows") != Float::bf16)
    refuse("`rows` must have dtype bfloat16, not " + dtype_name(rows.dtype()));
  GramProblem g{};
  g.rows = static_cast<const uint16_t*>(rows.data());
  g.count = shape.rows, g.cols = shape.cols;
  g.is_double = products.dtype() == nb::dtype<double>();
  g.products = g.is_double
                   ? static_cast<void*>(memory<double>(products, "products", {shape.cols, shape.cols}))
                   : static_cast<void*>(memory<float>(products, "products", {shape.cols, shape.cols}));
  g.sums = memory<double>(sums, "sums", {shape.cols});
  g.magnitudes = memory<double>(magnitudes, "magnitudes", {shape.cols});
  const nb::gil_scoped_release free;
  return passes::gram(with, g);
}

/// Adds the functions to the module; `active` is the table in use at each call.
inline void gptq_module(nb::module_& m, const Kernels* const& active) {
  using namespace nanobind::literals;
  m.def(
      "weigh",
      [&active](const Input& weight, const Input& carry, const Input& factor, const Input& scale,
                const Input& zero, int32_t qmin, int32_t qmax, int32_t power, const Output& error) {
        weigh(*active, weight, carry, factor, scale, zero, qmin, qmax, power, error);
      },
      "weight"_a, "carry"_a, "factor"_a, "scale"_a, "zero"_a, "qmin"_a, "qmax"_a, "power"_a, "error"_a);
  m.def(
      "nearest_plane",
      [&active](const Input& weight, const Input& carry, const Input& factor, const Input& scale,
                const Input& zero, bool by_column, int32_t qmin, int32_t qmax, const Output& codes,
                const Output& change, const Output& error, const Output& best) {
        nearest_plane(*active, weight, carry, factor, scale, zero, by_column, qmin, qmax, codes, change,
                      error, best);
      },
      "weight"_a, "carry"_a, "factor"_a, "scale"_a, "zero"_a, "by_column"_a, "qmin"_a, "qmax"_a, "codes"_a,
      "change"_a, "error"_a, "best"_a);
  m.def(
      "descend",
      [&active](const Input& gram, const Input& scale, const Input& zero, int64_t group, int32_t qmin,
                int32_t qmax, int32_t sweeps, const Output& codes, const Output& gradient) {
        descend(*active, gram, scale, zero, group, qmin, qmax, sweeps, codes, gradient);
      },
      "gram"_a, "scale"_a, "zero"_a, "group"_a, "qmin"_a, "qmax"_a, "sweeps"_a, "codes"_a, "gradient"_a);
  m.def(
      "gram",
      [&active](const Input& rows, const Output& products, const Output& sums, const Output& magnitudes) {
        return gram(*active, rows, products, sums, magnitudes);
      },
      "rows"_a, "products"_a, "sums"_a, "magnitudes"_a);
}

}  // namespace fewbit
