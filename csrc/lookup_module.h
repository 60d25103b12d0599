// Values of 16 bits through a table of all of them: any function of one bfloat16 or float16 value.
//
// Layout: table[65536], indexed by the bits of a value. Cost: two loads and a store a value, 0.3 ns where the
// values are like those of activations, whose few thousand patterns stay in the first cache; a function of
// exponentials takes some six times as long. Why not for each instruction set: gathers are no faster.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "arrays.h"
#include "threads.h"

namespace fewbit {

inline constexpr int64_t kLookupPiece = 1 << 16;

template <class Array>
void check_halves(const Array& array, const char* name) {
  if (array.dtype().bits == 16 && array.dtype().lanes == 1) return;
  refuse(std::string("`") + name + "` must have a dtype of 16 bits, not " + dtype_name(array.dtype()));
}

/// Four at a time, as the module is compiled to be small: one by one the loop takes three times as long.
inline void lookup_values(const uint16_t* __restrict table, const uint16_t* __restrict from, int64_t count,
                          uint16_t* __restrict to) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const uint16_t a = table[from[i]], b = table[from[i + 1]], c = table[from[i + 2]], d = table[from[i + 3]];
    to[i] = a, to[i + 1] = b, to[i + 2] = c, to[i + 3] = d;
  }
  for (; i < count; ++i) to[i] = table[from[i]];
}

inline void lookup(const Input& table, const Input& x, const Output& out) {
  check_halves(table, "table"), check_halves(x, "x"), check_halves(out, "out");
  check_shape(table, "table", {1 << 16});
  check_layout(x, "x", 1);
  check_shape(out, "out", shape_of(x));
  const uint16_t* known = static_cast<const uint16_t*>(table.data());
  const uint16_t* from = static_cast<const uint16_t*>(x.data());
  uint16_t* to = static_cast<uint16_t*>(out.data());
  const auto count = static_cast<int64_t>(x.size());
  const nb::gil_scoped_release free;
  parallel_for((count + kLookupPiece - 1) / kLookupPiece, [&](int64_t piece, int) {
    const int64_t first = piece * kLookupPiece;
    lookup_values(known, from + first, std::min(count - first, kLookupPiece), to + first);
  });
}

/// Adds the function to the module.
inline void lookup_module(nb::module_& m) {
  using namespace nanobind::literals;
  m.def("lookup", &lookup, "table"_a, "x"_a, "out"_a);
}

}  // namespace fewbit
