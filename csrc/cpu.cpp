// See csrc/cpu.h. Bits: Intel SDM volume 2A, CPUID; volume 1, 13.1 for XCR0; Linux
// Documentation/arch/x86/xstate.rst for the permission to use AMX's tiles.
#include "cpu.h"

#include <algorithm>
#include <cstdint>

#include "types.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define FEWBIT_CPUID 1
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fewbit {
namespace {

#ifdef FEWBIT_CPUID
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned part) {
  Registers r;
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
}

/// The register states that the operating system saves.
uint64_t saved_states() {
  if ((cpuid(1, 0).c >> 27 & 1) == 0) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

/// Linux gives a process AMX's tiles when it asks for them; threads made later inherit that.
bool tiles_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<std::string> detect() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
  const uint64_t saved = saved_states();
  const bool has_ymm = (saved & 0x6) == 0x6, has_zmm = has_ymm && (saved & 0xE0) == 0xE0;
  const bool has_tiles =
      has_zmm && (saved & 0x60000) == 0x60000 && (seven.d >> 24 & 1) != 0 && tiles_granted();
  std::vector<std::string> names;
  const auto add = [&](const char* name, bool usable, unsigned bits, int bit) {
    if (usable && (bits >> bit & 1) != 0) names.emplace_back(name);
  };
  add("avx2", has_ymm, seven.b, 5);
  add("fma", has_ymm, one.c, 12);
  add("f16c", has_ymm, one.c, 29);
  add("avx_vnni", has_ymm, more.a, 4);
  add("avx512f", has_zmm, seven.b, 16);
  add("avx512dq", has_zmm, seven.b, 17);
  add("avx512bw", has_zmm, seven.b, 30);
  add("avx512vl", has_zmm, seven.b, 31);
  add("avx512_vbmi", has_zmm, seven.c, 1);
  add("avx512_vnni", has_zmm, seven.c, 11);
  add("avx512_bf16", has_zmm, more.a, 5);
  add("avx512_fp16", has_zmm, seven.d, 23);
  add("amx_tile", has_tiles, seven.d, 24);
  add("amx_int8", has_tiles, seven.d, 25);
  add("amx_bf16", has_tiles, seven.d, 22);
  return names;
}
#elif defined(__aarch64__)
std::vector<std::string> detect() {
  std::vector<std::string> names{"asimd"};
#if defined(__linux__)
  const unsigned long capabilities = getauxval(AT_HWCAP);
  if ((capabilities >> 20 & 1) != 0) names.emplace_back("asimddp");
#elif defined(__APPLE__)
  names.emplace_back("asimddp");  // every processor of Apple's that runs macOS
#endif
  return names;
}
#else
std::vector<std::string> detect() { return {}; }
#endif

/// Whether the processor names itself AuthenticAMD, or HygonGenuine, which has the same cores.
bool is_amd() {
#ifdef FEWBIT_CPUID
  const unsigned name = cpuid(0, 0).b;
  return name == 0x68747541u || name == 0x6F677948u;
#else
  return false;
#endif
}

bool has(std::initializer_list<const char*> wanted) {
  const std::vector<std::string> names = cpu_features();
  return std::all_of(wanted.begin(), wanted.end(), [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  });
}

}  // namespace

const bool asks_ahead = !is_amd();

std::vector<std::string> cpu_features() {
  static const std::vector<std::string> names = detect();
  return names;
}

bool cpu_runs(const std::string& isa) {
  if (isa == "portable") return true;
  if (isa == "neon") return has({"asimddp"});
  if (!has({"avx2", "fma", "f16c"})) return false;
  if (isa == "avx2") return true;
  if (isa == "avxvnni") return has({"avx_vnni"});
  if (!has({"avx512f", "avx512dq", "avx512bw", "avx512vl"})) return false;
  if (isa == "avx512") return true;
  if (!has({"avx512_vnni", "avx512_vbmi"})) return false;
  if (isa == "avx512vnni") return true;
  return isa == "amx" && has({"amx_tile", "amx_int8", "amx_bf16"});
}

}  // namespace fewbit
