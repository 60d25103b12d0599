// What this processor and its operating system can run.
//
// Layout: one question an instruction set, and the list of features for people. Cost: some `cpuid`, asked
// once. Why not __builtin_cpu_supports: compilers know different lists of names, and none asks the system for
// AMX's state.
#pragma once

#include <string>
#include <vector>

namespace fewbit {

/// Whether code built for a set of CMakeLists.txt ("avx512vnni", "neon", ...) runs here; "portable" always
/// does.
bool cpu_runs(const std::string& isa);

/// Features that matter here, as Linux spells them ("avx512_vnni", "amx_int8", "asimddp").
std::vector<std::string> cpu_features();

/// Whether a kernel that multiplies one row, so waits for memory, should ask for weights ahead of its
/// arithmetic. Not on AMD's processors: on a Zen 4 their own prefetching reads 4-bit weights at 30 GB/s a
/// core, where asking gave 18 to 25. With more rows asking helps there, too.
extern const bool asks_ahead;

}  // namespace fewbit
