// Runs every kernel of every instruction set that this machine has, on one thread and on several.
//
// Prints "NAME DIGEST" for each kernel, so that other processors can be compared, and fails if a set or a
// number of threads gives other bits than the portable set on one thread.
#include <cstdio>

#include "checks.h"
#include "threads.h"

namespace fewbit::checks {

Memory<float> wild(int64_t n, uint64_t seed) {
  constexpr float kSpecial[] = {0.0f,  -0.0f, 1e-45f,        -1e-45f,        1.1e-38f, 0.5f,
                                -0.5f, 1.5f,  3.4028235e38f, -3.4028235e38f, 2.5f,     127.5f};
  Random random(seed);
  Memory<float> values(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.next());
    const bool is_finite = (bits >> 23 & 255u) != 255u;
    if (random.below(2) == 0 || !is_finite) {
      values[i] = kSpecial[random.below(12)];
    } else {
      std::memcpy(&values[i], &bits, sizeof bits);
    }
  }
  return values;
}

Memory<float> tame(int64_t n, uint64_t seed) {
  Random random(seed);
  Memory<float> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = random.unit();
  return values;
}

Memory<uint16_t> halves(int64_t n, Float kind, uint64_t seed) {
  const uint16_t exponent = kind == Float::f16 ? 0x7C00 : 0x7F80;
  Random random(seed);
  Memory<uint16_t> values(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = static_cast<uint16_t>(random.next());
    values[i] = (bits & exponent) == exponent ? static_cast<uint16_t>(bits & 0x3FFF) : bits;
  }
  return values;
}

}  // namespace fewbit::checks

int main(int argc, char** argv) {
  using namespace fewbit;
  if (argc > 1 && std::string(argv[1]) == "overrun") {  // a sanitizer must stop this
    checks::Memory<uint8_t> codes(16), out(7);
    choose_kernels("portable").pack(codes.data(), codes.size(), 4, out.data());
    return 0;
  }
  int wrong = 0;
  set_threads(1);
  checks::Digests portable;
  checks::check_passes(choose_kernels("portable"), portable);
  checks::check_gptq(choose_kernels("portable"), portable);
  checks::check_lowbit(choose_kernels("portable"), portable);
  for (const auto& [name, digest] : portable.by_name()) {
    std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(digest));
  }
  for (const std::string& isa : available_isas()) {
    for (const int count : {1, 3}) {
      set_threads(count);
      checks::Digests digests;
      checks::check_passes(choose_kernels(isa), digests);
      checks::check_gptq(choose_kernels(isa), digests);
      checks::check_attention(choose_kernels(isa));
      checks::check_lowbit(choose_kernels(isa), digests);
      for (const auto& [name, digest] : digests.by_name()) {
        if (digest == portable.by_name().at(name)) continue;
        std::fprintf(stderr, "%s: %s on %d threads differs from portable\n", isa.c_str(), name.c_str(),
                     count);
        ++wrong;
      }
    }
    std::fprintf(stderr, "ran %s\n", isa.c_str());
  }
  return wrong == 0 ? 0 : 1;
}
