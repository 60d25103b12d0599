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

}  // namespace fewbit
