// The Python side of low-bit layers: the class LowbitMatrix of fewbit._native (src/fewbit/_native.pyi).
#pragma once

#include <nanobind/nanobind.h>

#include "dispatch.h"

namespace fewbit {

/// `active` points to the table in use, which a test may change between calls.
void bind_lowbit(nanobind::module_& m, const Kernels* const* active);

}  // namespace fewbit
