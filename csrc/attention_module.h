// The Python side of csrc/attention.h.
//
// Layout: arrays [batch, heads, rows, values] whose values lie side by side; everything else may be strided,
// as the views are that models make of one product. Cost: that of the checks.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "dispatch.h"
#include "passes.h"

namespace fewbit {

/// Rows of the heads of an array [batch, heads, rows, values].
struct Heads {
  char* data;
  int64_t batch, heads, rows, values, batch_step, head_step, row_step, size;

  char* at(int64_t b, int64_t h) const { return data + (b * batch_step + h * head_step) * size; }
};

template <class Array>
Heads heads_of(const Array& array, const char* name, int64_t size) {
  const std::string subject = std::string("`") + name + "` ";
  if (array.device_type() != nb::device::cpu::value) refuse(subject + "must lie on the CPU");
  if (array.ndim() != 4)
    refuse(subject + "must have 4 dimensions, but has shape " + tuple_of(shape_of(array)));
  if (array.shape(3) > 1 && array.stride(3) != 1) refuse(subject + "must have its values side by side");
  const auto extent = [&](size_t i) { return static_cast<int64_t>(array.shape(i)); };
  return {static_cast<char*>(const_cast<void*>(static_cast<const void*>(array.data()))),
          extent(0),
          extent(1),
          extent(2),
          extent(3),
          array.stride(0),
          array.stride(1),
          array.stride(2),
          size};
}

struct AttentionCall {
  Heads query, key, value, out, mask;
  bool masked, causal;
  float scale;

  AttentionHead head(int64_t number) const {
    const int64_t b = number / query.heads, h = number % query.heads, shared = h / (query.heads / key.heads);
    AttentionHead one{};
    one.query = reinterpret_cast<const uint16_t*>(query.at(b, h)), one.query_row = query.row_step;
    one.key = reinterpret_cast<const uint16_t*>(key.at(b, shared)), one.key_row = key.row_step;
    one.value = reinterpret_cast<const uint16_t*>(value.at(b, shared)), one.value_row = value.row_step;
    one.mask = masked ? reinterpret_cast<const uint8_t*>(mask.at(b, h)) : nullptr,
    one.mask_row = mask.row_step;
    one.queries = query.rows, one.keys = key.rows, one.width = query.values, one.value_width = value.values;
    one.causal = causal, one.scale = scale;
    one.out = reinterpret_cast<uint16_t*>(out.at(b, h)), one.out_row = out.row_step;
    return one;
  }
};

template <class Array>
void check_bfloat(const Array& array, const char* name) {
  if (array.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && array.dtype().bits == 16)
    return;
  refuse(std::string("`") + name + "` must have dtype bfloat16, not " + dtype_name(array.dtype()));
}

inline void check_heads(const Heads& found, const char* name, const std::vector<int64_t>& wanted) {
  const std::vector<int64_t> shape{found.batch, found.heads, found.rows, found.values};
  if (shape == wanted) return;
  refuse(std::string("`") + name + "` has shape " + tuple_of(shape) + ", but " + tuple_of(wanted) +
         " is needed here");
}

inline bool attention(const Kernels& with, const Input& query, const Input& key, const Input& value,
                      const std::optional<Input>& mask, bool causal, float scale, const Output& out) {
  check_bfloat(query, "query"), check_bfloat(key, "key"), check_bfloat(value, "value"),
      check_bfloat(out, "out");
  AttentionCall call{};
  call.query = heads_of(query, "query", 2), call.key = heads_of(key, "key", 2);
  call.value = heads_of(value, "value", 2), call.out = heads_of(out, "out", 2);
  const Heads &q = call.query, &k = call.key, &v = call.value;
  if (k.heads < 1 || q.heads % k.heads != 0)
    refuse("`key` must have heads that those of `query` can share evenly");
  check_heads(k, "key", {q.batch, k.heads, k.rows, q.values});
  check_heads(v, "value", {q.batch, k.heads, k.rows, v.values});
  check_heads(call.out, "out", {q.batch, q.heads, q.rows, v.values});
  if (mask.has_value()) {
    if (mask->dtype().code != static_cast<uint8_t>(nb::dlpack::dtype_code::Bool))
      refuse("`mask` must have dtype bool");
    call.mask = heads_of(*mask, "mask", 1), call.masked = true;
    check_heads(call.mask, "mask", {q.batch, q.heads, q.rows, k.rows});
  }
  call.causal = causal, call.scale = scale;
  const nb::gil_scoped_release free;
  return passes::attention(
      with, q.batch * q.heads,
      [](const void* context, int64_t head) {
        return static_cast<const AttentionCall*>(context)->head(head);
      },
      &call);
}

/// Adds the function to the module; `active` is the table in use at each call.
inline void attention_module(nb::module_& m, const Kernels* const& active) {
  using namespace nanobind::literals;
  m.def(
      "attention",
      [&active](const Input& query, const Input& key, const Input& value, const std::optional<Input>& mask,
                bool causal, float scale, const Output& out) {
        return attention(*active, query, key, value, mask, causal, scale, out);
      },
      "query"_a, "key"_a, "value"_a, "mask"_a.none(), "causal"_a, "scale"_a, "out"_a);
}

}  // namespace fewbit
