// Attention against double precision, in memory of exact sizes, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "checks.h"
#include "passes.h"

namespace fewbit::checks {
namespace {

float float_of(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// bfloat16 within (-1, 1).
Memory<uint16_t> small_halves(int64_t n, uint64_t seed) {
  Memory<float> values = tame(n, seed);
  Memory<uint16_t> halves(n);
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    halves[i] = static_cast<uint16_t>(bits >> 16);
  }
  return halves;
}

struct Case {
  int64_t queries, keys, width, value_width;
  bool causal, masked;
};

bool sees(const AttentionHead& h, int64_t q, int64_t k) {
  return h.mask != nullptr ? h.mask[q * h.mask_row + k] != 0 : !h.causal || k <= q;
}

double wanted(const AttentionHead& h, int64_t q, int64_t column) {
  double total = 0.0, sum = 0.0;
  for (int64_t k = 0; k < h.keys; ++k) {
    if (!sees(h, q, k)) continue;
    double score = 0.0;
    for (int64_t d = 0; d < h.width; ++d)
      score +=
          static_cast<double>(float_of(h.query[q * h.query_row + d])) * float_of(h.key[k * h.key_row + d]);
    const double share = std::exp(score * h.scale);
    total += share, sum += share * float_of(h.value[k * h.value_row + column]);
  }
  return total == 0.0 ? 0.0 : sum / total;
}

void check(const Kernels& with, const Case& c) {
  Memory<uint16_t> query = small_halves(c.queries * c.width, 41), key = small_halves(c.keys * c.width, 42),
                   value = small_halves(c.keys * c.value_width, 43), out(c.queries * c.value_width);
  Memory<uint8_t> mask(c.queries * c.keys);
  Random random(44);
  for (int64_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<uint8_t>(random.below(3) == 0);
  AttentionHead head{};
  head.query = query.data(), head.key = key.data(), head.value = value.data(), head.out = out.data();
  head.query_row = head.key_row = c.width, head.value_row = head.out_row = c.value_width;
  head.mask = c.masked ? mask.data() : nullptr, head.mask_row = c.keys, head.causal = c.causal;
  head.queries = c.queries, head.keys = c.keys, head.width = c.width, head.value_width = c.value_width;
  head.scale = 2.5f;
  const auto at = [](const void* context, int64_t) { return *static_cast<const AttentionHead*>(context); };
  if (!passes::attention(with, 1, at, &head)) return;
  for (int64_t q = 0; q < c.queries; ++q) {
    for (int64_t d = 0; d < c.value_width; ++d) {
      const double off = float_of(out[q * c.value_width + d]) - wanted(head, q, d);
      if (std::fabs(off) < 0.01) continue;
      std::fprintf(stderr, "%s: attention is off by %g at query %lld of %lld\n", with.isa, off,
                   static_cast<long long>(q), static_cast<long long>(c.queries));
      std::exit(1);
    }
  }
}

}  // namespace

void check_attention(const Kernels& with) {
  for (const Case& c : std::vector<Case>{{1, 1, 1, 1, false, false},
                                         {3, 40, 5, 33, true, false},
                                         {33, 17, 64, 15, true, false},
                                         {70, 70, 31, 40, false, true},
                                         {5, 600, 32, 16, false, false},
                                         {40, 300, 34, 48, false, true}})
    check(with, c);
}

}  // namespace fewbit::checks
