// The Python module fewbit._native: checks what comes in, gives up the interpreter lock, calls the pass with
// the chosen kernel.
//
// Layout: one function a kernel; its contract for Python is in src/fewbit/_native.pyi.
// Cost: about a microsecond an array for nanobind's DLPack exchange; no copies.
// Why outputs are arguments: the caller owns the memory, so torch and NumPy allocate it their own way.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "attention_module.h"
#include "cpu.h"
#include "dispatch.h"
#include "gptq_module.h"
#include "lookup_module.h"
#include "lowbit_module.h"
#include "passes.h"
#include "threads.h"

namespace fewbit {
namespace {

static_assert(std::endian::native == std::endian::little, "packed codes are little-endian in memory");

const Kernels* active = nullptr;  // set when the module is imported; use_isa is for tests and benchmarks

void check_bounds(int32_t qmin, int32_t qmax, Code code) {
  const bool is_signed = code == Code::i8 || code == Code::i16;
  const int32_t bits = code == Code::i8 || code == Code::u8 ? 8 : 16;
  const int32_t least = is_signed ? -(1 << (bits - 1)) : 0, most = least + (1 << bits) - 1;
  if (qmin <= qmax && least <= qmin && qmax <= most) return;
  refuse("`qmin` and `qmax` are " + std::to_string(qmin) + " and " + std::to_string(qmax) +
         ", but must be in order and fit the codes' " + std::to_string(least) + " to " +
         std::to_string(most));
}

void check_zero_points(const int32_t* zero_point, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (zero_point[i] < -kMaxZeroPoint || zero_point[i] > kMaxZeroPoint) {
      refuse("`zp` holds " + std::to_string(zero_point[i]) + " in row " + std::to_string(i) +
             ", beyond +-2^20");
    }
  }
}

void minmax_rows(const Input& x, const Output& out) {
  const Shape shape = matrix_shape(x, "x");
  const Float kind = float_type(x, "x");
  float* to = memory<float>(out, "out", {shape.rows, 2});
  const nb::gil_scoped_release free;
  passes::minmax_rows(*active, x.data(), kind, shape, to);
}

void quantize_rows(const Input& x, const Input& scale, const Input& zp, int32_t qmin, int32_t qmax,
                   const Output& out) {
  const Shape shape = matrix_shape(x, "x");
  const Float kind = float_type(x, "x");
  const float* scales = values<float>(scale, "scale", {shape.rows});
  const int32_t* zero_points = values<int32_t>(zp, "zp", {shape.rows});
  check_shape(out, "out", {shape.rows, shape.cols});
  const Code code = code_type(out, "out");
  check_bounds(qmin, qmax, code);
  check_zero_points(zero_points, shape.rows);
  void* to = out.data();
  const nb::gil_scoped_release free;
  passes::quantize_rows(*active, x.data(), kind, shape, scales, zero_points, {qmin, qmax}, to, code);
}

void quantize_rows_dynamic(const Input& x, int32_t qmax, const Output& out, const Output& scale) {
  const Shape shape = matrix_shape(x, "x");
  const float* from = values<float>(x, "x", {shape.rows, shape.cols});
  int8_t* to = memory<int8_t>(out, "out", {shape.rows, shape.cols});
  float* scales = memory<float>(scale, "scale", {shape.rows});
  if (qmax < 1 || qmax > 127) refuse("`qmax` is " + std::to_string(qmax) + ", but must be from 1 to 127");
  const nb::gil_scoped_release free;
  passes::quantize_rows_dynamic(*active, from, shape, qmax, to, scales);
}

void dequantize_rows(const Input& codes, const Input& scale, const Input& zp, const Output& out) {
  const Shape shape = matrix_shape(codes, "codes");
  const Code code = code_type(codes, "codes");
  const float* scales = values<float>(scale, "scale", {shape.rows});
  const int32_t* zero_points = values<int32_t>(zp, "zp", {shape.rows});
  float* to = memory<float>(out, "out", {shape.rows, shape.cols});
  check_zero_points(zero_points, shape.rows);
  const nb::gil_scoped_release free;
  passes::dequantize_rows(*active, codes.data(), code, shape, scales, zero_points, to);
}

void histogram_rows(const Input& x, const Input& inv_width, const Output& counts) {
  const Shape shape = matrix_shape(x, "x");
  const float* from = values<float>(x, "x", {shape.rows, shape.cols});
  const float* widths = values<float>(inv_width, "inv_width", {shape.rows});
  const int64_t bins = matrix_shape(counts, "counts").cols;
  int64_t* to = memory<int64_t>(counts, "counts", {shape.rows, bins});
  if (bins < 1 || bins > kMaxBins) {
    refuse("`counts` has " + std::to_string(bins) + " bins a row, but must have 1 to 2^22");
  }
  const nb::gil_scoped_release free;
  passes::histogram_rows(*active, from, shape, widths, bins, to);
}

bool histogram_grow(const Input& x, const Output& counts, const Output& exponent, const Output& low,
                    const Output& high) {
  const int64_t n = matrix_shape(x, "x").cols, bins = matrix_shape(counts, "counts").cols;
  const float* from = values<float>(x, "x", {1, n});
  int64_t* to = memory<int64_t>(counts, "counts", {1, bins});
  int64_t* grown = memory<int64_t>(exponent, "exponent", {1});
  float* los = memory<float>(low, "low", {1});
  float* his = memory<float>(high, "high", {1});
  if (bins < 4 || bins > kMaxBins || !std::has_single_bit(static_cast<uint64_t>(bins))) {
    refuse("`counts` has " + std::to_string(bins) + " bins, but must have a power of two, 4 to 2^22");
  }
  if (*grown < std::countr_zero(static_cast<uint64_t>(bins)) - 128 || *grown > 128) {
    refuse("`exponent` is " + std::to_string(*grown) + ", for which no float32 is a bin's reciprocal width");
  }
  const nb::gil_scoped_release free;
  return passes::histogram_grow(*active, from, n, bins, to, grown, los, his);
}

void check_search(const float* candidates, const char* name, int64_t n, int32_t qmin, int32_t qmax) {
  if (n < 1) refuse(std::string("`") + name + "` is empty");
  for (int64_t i = 0; i < n; ++i) {
    if (!(candidates[i] > 0.0f) || !std::isfinite(candidates[i]))
      refuse(std::string("`") + name + "` must be finite and above 0");
  }
  if (qmin > 0 || qmax < 0 || qmin >= qmax || qmin < -kMaxZeroPoint || qmax > kMaxZeroPoint) {
    refuse("`qmin` and `qmax` are " + std::to_string(qmin) + " and " + std::to_string(qmax) +
           ", but must be in order, hold 0 between them and lie within +-2^20");
  }
}

void mse_search_rows(const Input& x, const Input& candidates, bool symmetric, int32_t qmin, int32_t qmax,
                     const Output& lo, const Output& hi) {
  const Shape shape = matrix_shape(x, "x");
  const float* from = values<float>(x, "x", {shape.rows, shape.cols});
  check_layout(candidates, "candidates", 1);
  const int64_t n = static_cast<int64_t>(candidates.size());
  const float* fractions = values<float>(candidates, "candidates", {n});
  check_search(fractions, "candidates", n, qmin, qmax);
  float* los = memory<float>(lo, "lo", {shape.rows});
  float* his = memory<float>(hi, "hi", {shape.rows});
  const nb::gil_scoped_release free;
  passes::mse_search_rows(*active, from, shape, fractions, n, symmetric, {qmin, qmax}, los, his);
}

Float scale_type(const std::string& name) {
  if (name == "f32") return Float::f32;
  if (name == "f16") return Float::f16;
  if (name == "bf16") return Float::bf16;
  refuse("`scale_type` is '" + name + "', but must be f32, f16 or bf16");
}

void check_bits(int32_t bits) {
  if (bits < 1 || bits > 8) refuse("`bits` is " + std::to_string(bits) + ", but must be from 1 to 8");
}

bool minmax_quantize_rows(const Input& x, int32_t qmin, int32_t qmax, const std::string& type, int32_t bits,
                          const Output& scale, const std::optional<Output>& zp, const Output& out) {
  const Shape shape = matrix_shape(x, "x");
  const Float kind = float_type(x, "x");
  check_bits(bits);
  check_bounds(qmin, qmax, qmin < 0 ? Code::i8 : Code::u8);
  if (qmin == qmax) refuse("`qmin` and `qmax` are the same");
  float* scales = memory<float>(scale, "scale", {shape.rows});
  int32_t* zero_points = zp ? memory<int32_t>(*zp, "zp", {shape.rows}) : nullptr;
  uint8_t* to = memory<uint8_t>(out, "out", {(shape.rows * shape.cols * bits + 7) / 8});
  const Rule rule{{qmin, qmax}, !zp, scale_type(type)};
  const nb::gil_scoped_release free;
  return passes::minmax_quantize_rows(*active, x.data(), kind, shape, rule, bits, scales, zero_points, to);
}

void refine_clip_rows(const Input& x, const Input& moves, int32_t rounds, float worth_another, int32_t qmin,
                      int32_t qmax, const Output& lo, const Output& hi) {
  const Shape shape = matrix_shape(x, "x");
  const float* from = values<float>(x, "x", {shape.rows, shape.cols});
  check_layout(moves, "moves", 1);
  const int64_t n = static_cast<int64_t>(moves.size());
  const float* factors = values<float>(moves, "moves", {n});
  check_search(factors, "moves", n, qmin, qmax);
  float* los = memory<float>(lo, "lo", {shape.rows});
  float* his = memory<float>(hi, "hi", {shape.rows});
  const nb::gil_scoped_release free;
  passes::refine_clip_rows(*active, from, shape, factors, n, rounds, worth_another, {qmin, qmax}, los, his);
}

void pack(const Input& codes, int32_t bits, const Output& out) {
  check_bits(bits);
  check_layout(codes, "codes", 1);
  const int64_t count = static_cast<int64_t>(codes.size());
  if (codes.dtype() != nb::dtype<int8_t>()) check_dtype<uint8_t>(codes, "codes");
  uint8_t* to = memory<uint8_t>(out, "out", {(count * bits + 7) / 8});
  const uint8_t* from = static_cast<const uint8_t*>(codes.data());
  const nb::gil_scoped_release free;
  passes::pack(*active, from, count, bits, to);
}

void rebin_rows(const Output& counts, const Input& doublings) {
  const Shape shape = matrix_shape(counts, "counts");
  int64_t* from = memory<int64_t>(counts, "counts", {shape.rows, shape.cols});
  const int64_t* grown = values<int64_t>(doublings, "doublings", {shape.rows});
  const nb::gil_scoped_release free;
  passes::rebin_rows(*active, from, shape, grown);
}

void kl_divergences(const Input& counts, const Input& start, const Input& stop, int64_t levels,
                    double smoothing, const Output& out) {
  check_layout(counts, "counts", 1);
  check_layout(start, "start", 1);
  const int64_t bins = static_cast<int64_t>(counts.size()), windows = static_cast<int64_t>(start.size());
  const double* from = values<double>(counts, "counts", {bins});
  const int64_t* starts = values<int64_t>(start, "start", {windows});
  const int64_t* stops = values<int64_t>(stop, "stop", {windows});
  double* to = memory<double>(out, "out", {windows});
  if (levels < 1 || levels > kMaxBins) refuse("`levels` must be from 1 to 2^22");
  for (int64_t w = 0; w < windows; ++w) {
    if (starts[w] < 0 || stops[w] > bins || stops[w] - starts[w] < levels) {
      refuse("window " + std::to_string(w) + " must lie in the histogram and have a bin for every level");
    }
  }
  const nb::gil_scoped_release free;
  passes::kl_divergences(*active, from, bins, starts, stops, windows, levels, smoothing, to);
}

double peak(const std::string& what, int64_t pieces, int64_t rounds) {
  const Peak unit = what == "float32" ? Peak::float32 : what == "int8" ? Peak::int8 : Peak::tiles;
  if (unit == Peak::tiles && what != "tiles")
    refuse("`what` is '" + what + "', but must be float32, int8 or tiles");
  const nb::gil_scoped_release free;
  return passes::peak(*active, unit, pieces < 0 ? 0 : pieces, rounds);
}

uint64_t read_memory(const Input& data) {
  check_layout(data, "data", 1);
  check_dtype<int64_t>(data, "data");
  const nb::gil_scoped_release free;
  return passes::read_memory(*active, static_cast<const uint64_t*>(data.data()),
                             static_cast<int64_t>(data.size()));
}

void unpack(const Input& data, int32_t bits, bool is_signed, const Output& out) {
  check_bits(bits);
  check_layout(out, "out", 1);
  const int64_t count = static_cast<int64_t>(out.size());
  if (is_signed) {
    check_dtype<int8_t>(out, "out");
  } else {
    check_dtype<uint8_t>(out, "out");
  }
  const uint8_t* from = values<uint8_t>(data, "data", {(count * bits + 7) / 8});
  uint8_t* to = static_cast<uint8_t*>(out.data());
  const nb::gil_scoped_release free;
  passes::unpack(*active, from, count, bits, is_signed, to);
}

}  // namespace
}  // namespace fewbit

NB_MODULE(_native, m) {
  using namespace nanobind::literals;          // NOLINT: for "name"_a
  fewbit::active = &fewbit::choose_kernels();  // a std::runtime_error here becomes Python's ImportError
  m.doc() = "Quantization kernels, one table for each instruction set.";
  m.def("isa", [] { return std::string(fewbit::active->isa); });
  m.def("available_isas", &fewbit::available_isas);
  m.def("use_isa", [](const std::string& isa) { fewbit::active = &fewbit::choose_kernels(isa); }, "isa"_a);
  m.def("cpu_features", &fewbit::cpu_features);
  m.def("set_threads", &fewbit::set_threads, "threads"_a);
  m.def(
      "set_team",
      [](uintptr_t entry) {
        fewbit::set_team(reinterpret_cast<fewbit::TeamEntry>(entry));  // NOLINT: an address from dlsym
      },
      "entry"_a);
  m.def("threads", &fewbit::threads);
  m.def("minmax_rows", &fewbit::minmax_rows, "x"_a, "out"_a);
  m.def("quantize_rows", &fewbit::quantize_rows, "x"_a, "scale"_a, "zp"_a, "qmin"_a, "qmax"_a, "out"_a);
  m.def("quantize_rows_dynamic", &fewbit::quantize_rows_dynamic, "x"_a, "qmax"_a, "out"_a, "scale"_a);
  m.def("dequantize_rows", &fewbit::dequantize_rows, "codes"_a, "scale"_a, "zp"_a, "out"_a);
  m.def("histogram_rows", &fewbit::histogram_rows, "x"_a, "inv_width"_a, "counts"_a);
  m.def("histogram_grow", &fewbit::histogram_grow, "x"_a, "counts"_a, "exponent"_a, "low"_a, "high"_a);
  m.def("mse_search_rows", &fewbit::mse_search_rows, "x"_a, "candidates"_a, "symmetric"_a, "qmin"_a, "qmax"_a,
        "lo"_a, "hi"_a);
  m.def("minmax_quantize_rows", &fewbit::minmax_quantize_rows, "x"_a, "qmin"_a, "qmax"_a, "scale_type"_a,
        "bits"_a, "scale"_a, "zp"_a.none(), "out"_a);
  m.def("refine_clip_rows", &fewbit::refine_clip_rows, "x"_a, "moves"_a, "rounds"_a, "worth_another"_a,
        "qmin"_a, "qmax"_a, "lo"_a, "hi"_a);
  m.def("rebin_rows", &fewbit::rebin_rows, "counts"_a, "doublings"_a);
  m.def("kl_divergences", &fewbit::kl_divergences, "counts"_a, "start"_a, "stop"_a, "levels"_a, "smoothing"_a,
        "out"_a);
  m.def("peak", &fewbit::peak, "what"_a, "pieces"_a, "rounds"_a);
  m.def("read_memory", &fewbit::read_memory, "data"_a);
  m.def("pack", &fewbit::pack, "codes"_a, "bits"_a, "out"_a);
  m.def("unpack", &fewbit::unpack, "data"_a, "bits"_a, "signed"_a, "out"_a);
  fewbit::gptq_module(m, fewbit::active);
  fewbit::attention_module(m, fewbit::active);
  fewbit::lookup_module(m);
  fewbit::bind_lowbit(m, &fewbit::active);
}
