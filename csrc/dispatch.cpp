// Choice of instruction set, once at import.
//
// Layout: `compiled` lists the tables best first; the first one that csrc/cpu.h says this machine runs wins.
// Cost: some cpuid, asked once.
// Why an environment variable: tests and bug reports must be able to run every set on one machine.
#include "dispatch.h"

#include <cctype>
#include <cstdlib>
#include <stdexcept>

#include "cpu.h"

// CMakeLists.txt says which sets this build has: FEWBIT_SETS is a list of SET(name), best first.
#ifndef FEWBIT_SETS
#define FEWBIT_SETS SET(portable)
#endif

namespace fewbit {

#define SET(name)               \
  namespace name {              \
  extern const Kernels kernels; \
  }
FEWBIT_SETS
#undef SET

namespace {

const Kernels* const compiled[] = {
#define SET(name) &name::kernels,
    FEWBIT_SETS
#undef SET
};

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : compiled) {
    if (cpu_runs(table->isa)) names.emplace_back(table->isa);
  }
  return names;
}

const Kernels& choose_kernels(std::string wanted) {
  if (wanted == "reference")
    wanted = "portable";  // fewbit.kernels then takes the Python twins; ours stay unused
  for (const Kernels* table : compiled) {
    if (cpu_runs(table->isa) && (wanted.empty() || wanted == table->isa)) return *table;
  }
  throw std::runtime_error("FEWBIT_ISA is '" + wanted + "', but this machine can run only " +
                           join(available_isas()) + " or reference");
}

const Kernels& choose_kernels() {
  const char* variable = std::getenv("FEWBIT_ISA");
  std::string wanted;
  for (const char* at = variable == nullptr ? "" : variable; *at != '\0'; ++at) {
    const unsigned char letter = static_cast<unsigned char>(*at);
    if (std::isspace(letter) == 0) wanted += static_cast<char>(std::tolower(letter));
  }
  return choose_kernels(wanted);
}

}  // namespace fewbit
