// Low-bit layers for Python: checks what comes in, gives up the interpreter lock, runs the layer.
//
// Layout: one class; its contract is in src/fewbit/_native.pyi.
// Cost: three arrays a call.
// Why a class: the packed weights are memory of our own, on huge pages, that no tensor library should see or
// copy.
#include "lowbit_module.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "lowbit.h"
#include "lowbit_matrix.h"

namespace fewbit {
namespace {

const Kernels* const* table = nullptr;

constexpr int64_t kMostGroup = 32768;  // 128 * 255 * 32768 < 2^31: no sum overflows

void check_packing(int64_t group, int64_t bits) {
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    refuse("`bits` is " + std::to_string(bits) + ", but must be 2, 3, 4 or 8");
  }
  if (group < 32 || group % 32 != 0 || group > kMostGroup) {
    refuse("`group` is " + std::to_string(group) + ", but must be a multiple of 32 up to 32768");
  }
}

void construct(LowbitMatrix* self, const Input& codes, const Input& scale,
               const std::optional<Input>& zero_point, int64_t group, int bits, bool sums) {
  check_packing(group, bits);
  const Shape shape = matrix_shape(codes, "codes");
  const Code type = code_type(codes, "codes");
  if (type != Code::i8 && type != Code::u8) refuse("`codes` must have dtype int8 or uint8");
  const int64_t groups = (shape.cols + group - 1) / group;
  LowbitSource source{static_cast<const uint8_t*>(codes.data()),
                      type == Code::i8,
                      values<float>(scale, "scale", {shape.rows, groups}),
                      nullptr,
                      shape.rows,
                      shape.cols,
                      group,
                      bits,
                      sums};
  if (zero_point) source.zero_point = values<int32_t>(*zero_point, "zero_point", {shape.rows, groups});
  const nb::gil_scoped_release free;
  new (self) LowbitMatrix(source);
}

Activation activation_of(const std::string& name) {
  constexpr const char* kNames[] = {"", "relu", "silu", "gelu", "gelu_tanh"};
  for (int i = 0; i < 5; ++i) {
    if (name == kNames[i]) return static_cast<Activation>(i);
  }
  refuse("`activation` is '" + name + "', but must be relu, silu, gelu, gelu_tanh or empty");
}

/// Checks that all calls share: x [M, K], bias [N], out [M, N].
LowbitCall begin(const LowbitMatrix& matrix, const Input& x, const std::optional<Input>& bias,
                 const Output& out, const std::string& activation) {
  LowbitCall call;
  call.weights = matrix.weights();
  const Shape shape = matrix_shape(x, "x");
  check_shape(x, "x", {shape.rows, call.weights.columns});
  check_shape(out, "out", {shape.rows, call.weights.outputs});
  call.rows = shape.rows;
  call.x = x.data();
  call.y = out.data();
  call.bf16_out = static_cast<nb::dlpack::dtype_code>(out.dtype().code) == nb::dlpack::dtype_code::Bfloat;
  if (!call.bf16_out) check_dtype<float>(out, "out");
  if (bias) call.bias = values<float>(*bias, "bias", {call.weights.outputs});
  call.activation = activation_of(activation);
  return call;
}

RowType float_rows_of(const Input& x) {
  const Float type = float_type(x, "x");
  if (type == Float::f16) refuse("`x` must have dtype float32 or bfloat16, not float16");
  return type == Float::f32 ? RowType::f32 : RowType::bf16;
}

void linear_float(const LowbitMatrix& matrix, const Input& x, const std::optional<Input>& bias,
                  const Output& out, const std::string& activation) {
  LowbitCall call = begin(matrix, x, bias, out, activation);
  call.row_type = float_rows_of(x);
  const nb::gil_scoped_release free;
  run_float(*(*table)->lowbit, call);
}

void linear_dynamic(const LowbitMatrix& matrix, const Input& x, int qmax, bool per_row,
                    const std::optional<Input>& bias, const Output& out, const std::string& activation) {
  LowbitCall call = begin(matrix, x, bias, out, activation);
  call.row_type = float_rows_of(x);
  if (qmax < 1 || qmax > 127) refuse("`qmax` is " + std::to_string(qmax) + ", but must be from 1 to 127");
  call.qmax = qmax;
  call.per_row = per_row;
  const nb::gil_scoped_release free;
  run_integer(*(*table)->lowbit, call);
}

/// x and out by their addresses, for callers that know type and shape: arrays of a library cost some 5 us
/// each to take in. `qmax` 0 is for products in float, `bias` 0 for none.
void linear_at(const LowbitMatrix& matrix, uintptr_t x, int64_t rows, bool bf16, int qmax, bool per_row,
               uintptr_t bias, uintptr_t out) {
  const uintptr_t unit = bf16 ? 2 : 4;
  if (x % unit != 0 || out % unit != 0 || bias % 4 != 0) {
    refuse("`x` must start at a multiple of its element size in memory; copy it first");
  }
  LowbitCall call;
  call.weights = matrix.weights();
  call.rows = rows;
  call.row_type = bf16 ? RowType::bf16 : RowType::f32;
  call.x = reinterpret_cast<const void*>(x);
  call.bf16_out = bf16;
  call.y = reinterpret_cast<void*>(out);
  call.bias = reinterpret_cast<const float*>(bias);
  call.qmax = qmax;
  call.per_row = per_row;
  const nb::gil_scoped_release free;
  if (qmax == 0) {
    run_float(*(*table)->lowbit, call);
  } else {
    run_integer(*(*table)->lowbit, call);
  }
}

void linear_codes(const LowbitMatrix& matrix, const Input& x, const Input& scale,
                  const std::optional<Input>& zero_point, const std::optional<Input>& bias, const Output& out,
                  const std::string& activation) {
  LowbitCall call = begin(matrix, x, bias, out, activation);
  const Code type = code_type(x, "x");
  if (type != Code::i8 && type != Code::u8) refuse("`x` must have dtype int8 or uint8");
  call.row_type = type == Code::i8 ? RowType::i8 : RowType::u8;
  check_layout(scale, "scale", 1);
  const int64_t scales = static_cast<int64_t>(scale.size());
  if (scales != 1 && scales != call.rows) {
    refuse("`scale` has " + std::to_string(scales) + " values, but must have one or as many as `x` has rows");
  }
  call.row_scale = values<float>(scale, "scale", {scales});
  call.per_row = scales != 1;
  if (zero_point) call.row_zero = values<int32_t>(*zero_point, "zero_point", {scales});
  const int32_t zero[1] = {0};
  // Unsigned codes are moved by 128, which is a zero point where there was none.
  if (call.row_zero == nullptr && call.row_type == RowType::u8) {
    if (call.per_row) refuse("`zero_point` is needed where uint8 rows have scales of their own");
    call.row_zero = zero;
  }
  if (call.row_zero != nullptr && call.weights.sums == nullptr) {
    refuse("`x` has zero points, so the matrix must be made with `sums`");
  }
  const nb::gil_scoped_release free;
  run_integer(*(*table)->lowbit, call);
}

}  // namespace

void bind_lowbit(nb::module_& m, const Kernels* const* active) {
  using namespace nanobind::literals;  // NOLINT: for "name"_a
  table = active;
  nb::class_<LowbitMatrix>(m, "LowbitMatrix")
      .def("__init__", &construct, "codes"_a, "scale"_a, "zero_point"_a.none(), "group"_a, "bits"_a,
           "sums"_a = false)
      .def_prop_ro("nbytes", &LowbitMatrix::bytes)
      .def("linear_float", &linear_float, "x"_a, "bias"_a.none(), "out"_a, "activation"_a = "")
      .def("linear_dynamic", &linear_dynamic, "x"_a, "qmax"_a, "per_row"_a, "bias"_a.none(), "out"_a,
           "activation"_a = "")
      .def("linear_at", &linear_at, "x"_a, "rows"_a, "bf16"_a, "qmax"_a, "per_row"_a, "bias"_a, "out"_a)
      .def("linear_codes", &linear_codes, "x"_a, "scale"_a, "zero_point"_a.none(), "bias"_a.none(), "out"_a,
           "activation"_a = "");
}

}  // namespace fewbit
