// Checks of the arrays that come in from Python: device, alignment, memory order, dtype and shape.
//
// Layout: `Input` and `Output` are arrays of NumPy, torch or any library that speaks DLPack, taken without a
// copy. Cost: a few comparisons an array. Why here and not in nanobind's signatures: a mismatch there lists
// overloads; a user needs one sentence that names the argument and what it should have been.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dispatch.h"

namespace fewbit {

namespace nb = nanobind;

using Input = nb::ndarray<nb::ro>;
using Output = nb::ndarray<>;

[[noreturn]] inline void refuse(const std::string& sentence) { throw nb::value_error(sentence.c_str()); }

inline std::string dtype_name(nb::dlpack::dtype dtype) {
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  const std::string bits = std::to_string(dtype.bits);
  if (code == nb::dlpack::dtype_code::Int) return "int" + bits;
  if (code == nb::dlpack::dtype_code::UInt) return "uint" + bits;
  if (code == nb::dlpack::dtype_code::Float) return "float" + bits;
  if (code == nb::dlpack::dtype_code::Bfloat) return "bfloat" + bits;
  if (code == nb::dlpack::dtype_code::Bool) return "bool";
  return "another dtype of " + bits + " bits";
}

inline std::string tuple_of(const std::vector<int64_t>& extents) {
  std::string text;
  for (const int64_t extent : extents) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + text + (extents.size() == 1 ? ",)" : ")");
}

template <class Array>
std::vector<int64_t> shape_of(const Array& array) {
  std::vector<int64_t> extents;
  for (size_t i = 0; i < array.ndim(); ++i) extents.push_back(static_cast<int64_t>(array.shape(i)));
  return extents;
}

/// The array lies on the CPU, aligned and in C order, and has `ndim` dimensions. (An unaligned one, as a view
/// into a file can be, would make vector code fault.)
template <class Array>
void check_layout(const Array& array, const char* name, size_t ndim) {
  const std::string subject = std::string("`") + name + "` ";
  if (array.device_type() != nb::device::cpu::value) refuse(subject + "must lie on the CPU");
  if (array.ndim() != ndim) {
    refuse(subject + "must have " + std::to_string(ndim) + " dimensions, but has shape " +
           tuple_of(shape_of(array)));
  }
  if (array.size() != 0 && reinterpret_cast<uintptr_t>(array.data()) % array.itemsize() != 0) {
    refuse(subject + "must start at a multiple of its element size in memory; copy it first");
  }
  int64_t expected = 1;
  for (size_t i = ndim; i-- > 0;) {
    if (array.size() != 0 && array.shape(i) != 1 && array.stride(i) != expected) {
      refuse(subject +
             "must be contiguous in C order; call .contiguous() or numpy.ascontiguousarray() first");
    }
    expected *= static_cast<int64_t>(array.shape(i));
  }
}

template <class Array>
void check_shape(const Array& array, const char* name, const std::vector<int64_t>& shape) {
  check_layout(array, name, shape.size());
  if (shape_of(array) == shape) return;
  refuse(std::string("`") + name + "` has shape " + tuple_of(shape_of(array)) + ", but " + tuple_of(shape) +
         " is needed here");
}

template <class T, class Array>
void check_dtype(const Array& array, const char* name) {
  if (array.dtype() == nb::dtype<T>()) return;
  refuse(std::string("`") + name + "` must have dtype " + dtype_name(nb::dtype<T>()) + ", not " +
         dtype_name(array.dtype()));
}

/// The values of an input of dtype T and the given shape.
template <class T>
const T* values(const Input& array, const char* name, const std::vector<int64_t>& shape) {
  check_shape(array, name, shape);
  check_dtype<T>(array, name);
  return static_cast<const T*>(array.data());
}

/// The memory of an output of dtype T and the given shape.
template <class T>
T* memory(const Output& array, const char* name, const std::vector<int64_t>& shape) {
  check_shape(array, name, shape);
  check_dtype<T>(array, name);
  return static_cast<T*>(array.data());
}

template <class Array>
Shape matrix_shape(const Array& array, const char* name) {
  check_layout(array, name, 2);
  return {static_cast<int64_t>(array.shape(0)), static_cast<int64_t>(array.shape(1))};
}

template <class Array>
Code code_type(const Array& array, const char* name) {
  const nb::dlpack::dtype dtype = array.dtype();
  if (dtype == nb::dtype<int8_t>()) return Code::i8;
  if (dtype == nb::dtype<uint8_t>()) return Code::u8;
  if (dtype == nb::dtype<int16_t>()) return Code::i16;
  if (dtype == nb::dtype<uint16_t>()) return Code::u16;
  refuse(std::string("`") + name + "` must have dtype int8, uint8, int16 or uint16, not " +
         dtype_name(dtype));
}

inline Float float_type(const Input& array, const char* name) {
  const nb::dlpack::dtype dtype = array.dtype();
  const bool is_float = dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float);
  const bool is_bfloat = dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat);
  if (is_float && dtype.bits == 32) return Float::f32;
  if (is_float && dtype.bits == 16) return Float::f16;
  if (is_bfloat && dtype.bits == 16) return Float::bf16;
  refuse(std::string("`") + name + "` must have dtype float32, float16 or bfloat16, not " +
         dtype_name(dtype));
}

}  // namespace fewbit
