// Choice of instruction set, once at import.
//
// Layout: `compiled` lists the tables best first; the first one the processor supports wins.
// Cost: a handful of cpuid bits, read once.
// Why an environment variable: tests and bug reports must be able to run every set on one machine.
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace fewbit {

namespace portable {
extern const Kernels kernels;
}
#ifdef FEWBIT_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

bool always() { return true; }

#ifdef FEWBIT_X86
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

struct Compiled {
  const Kernels* kernels;
  bool (*runs_here)();
};

const Compiled compiled[] = {
#ifdef FEWBIT_X86
    {&avx512::kernels, has_avx512},
    {&avx2::kernels, has_avx2},
#endif
    {&portable::kernels, always},
};

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Compiled& entry : compiled) {
    if (entry.runs_here()) names.emplace_back(entry.kernels->isa);
  }
  return names;
}

const Kernels& choose_kernels() {
  const char* variable = std::getenv("FEWBIT_ISA");
  std::string wanted = variable == nullptr ? "" : variable;
  if (wanted == "reference")
    wanted = "portable";  // fewbit.kernels then takes the Python twins; ours stay unused
  for (const Compiled& entry : compiled) {
    if (entry.runs_here() && (wanted.empty() || wanted == entry.kernels->isa)) return *entry.kernels;
  }
  throw std::runtime_error("FEWBIT_ISA is '" + wanted + "', but this machine can run only " +
                           join(available_isas()) + " or reference");
}

}  // namespace fewbit
