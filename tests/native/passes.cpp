// Every pass of csrc/passes.h on shapes around every edge.
#include "passes.h"

#include "checks.h"

namespace fewbit::checks {
namespace {

constexpr Shape kShapes[] = {{0, 7},   {3, 0},  {1, 1},   {2, 15},   {3, 16},
                             {17, 33}, {5, 64}, {9, 129}, {2, 1500}, {1, 66000}};
constexpr Code kCodes[] = {Code::i8, Code::u8, Code::i16, Code::u16};
constexpr Bounds kBounds[] = {{-128, 127}, {0, 255}, {-32768, 32767}, {0, 65535}};

Memory<float> scales(int64_t rows) {
  constexpr float kChoices[] = {1.0f, 0.25f, 0.01f, 3.0f, 1.1754944e-38f, 1e-30f, 1e30f};
  Memory<float> values(rows);
  for (int64_t r = 0; r < rows; ++r) values[r] = kChoices[r % 7];
  return values;
}

Memory<int32_t> zero_points(int64_t rows, Bounds bounds) {
  const int32_t choices[] = {0, bounds.qmin, bounds.qmax, 3, -7, 1 << 20};
  Memory<int32_t> values(rows);
  for (int64_t r = 0; r < rows; ++r) values[r] = choices[r % 6];
  return values;
}

void check_codes(const Kernels& with, Shape shape, Digests& digests) {
  const int64_t n = shape.rows * shape.cols;
  Memory<float> x = wild(n, 1), scale = scales(shape.rows), back(n);
  for (int k = 0; k < 4; ++k) {
    Memory<int32_t> zero_point = zero_points(shape.rows, kBounds[k]);
    Memory<uint8_t> codes(n * size_of(kCodes[k]));
    const auto quantize = [&](const void* from, Float kind) {
      passes::quantize_rows(with, from, kind, shape, scale.data(), zero_point.data(), kBounds[k],
                            codes.data(), kCodes[k]);
      digests.add("quantize_rows", codes);
    };
    quantize(halves(n, Float::f16, 2).data(), Float::f16);
    quantize(halves(n, Float::bf16, 3).data(), Float::bf16);
    quantize(x.data(), Float::f32);
    passes::dequantize_rows(with, codes.data(), kCodes[k], shape, scale.data(), zero_point.data(),
                            back.data());
    digests.add("dequantize_rows", back);
  }
  Memory<int8_t> dynamic(n);
  passes::quantize_rows_dynamic(with, x.data(), shape, 127, dynamic.data(), scale.data());
  digests.add("quantize_rows_dynamic", dynamic);
  digests.add("quantize_rows_dynamic", scale);
}

void check_ranges(const Kernels& with, Shape shape, Digests& digests) {
  const int64_t n = shape.rows * shape.cols;
  Memory<float> x = wild(n, 4), ends(2 * shape.rows), inverse = scales(shape.rows);
  const auto minmax = [&](const void* from, Float kind) {
    passes::minmax_rows(with, from, kind, shape, ends.data());
    digests.add("minmax_rows", ends);
  };
  minmax(x.data(), Float::f32);
  minmax(halves(n, Float::f16, 5).data(), Float::f16);
  minmax(halves(n, Float::bf16, 6).data(), Float::bf16);
  for (const int64_t bins : {1, 7, 512}) {
    Memory<int64_t> counts(shape.rows * bins);
    std::memset(static_cast<void*>(counts.data()), 0, static_cast<size_t>(counts.size()) * 8);
    passes::histogram_rows(with, x.data(), shape, inverse.data(), bins, counts.data());
    digests.add("histogram_rows", counts);
  }
  Memory<int64_t> grown(64), exponent(1);
  std::memset(static_cast<void*>(grown.data()), 0, 64 * 8);
  exponent[0] = -60;
  Memory<float> tamed = tame(n, 8), low(1), high(1);
  low[0] = high[0] = 0.0f;
  if (n > 0)
    passes::histogram_grow(with, tamed.data(), n, 64, grown.data(), exponent.data(), &low[0], &high[0]);
  digests.add("histogram_grow", grown);
  digests.add("histogram_grow", exponent);
  digests.add("histogram_grow", high);
}

void check_search(const Kernels& with, Shape shape, Digests& digests) {
  Memory<float> x = tame(shape.rows * shape.cols, 7), lo(shape.rows), hi(shape.rows);
  Memory<float> fractions(19), moves(5);
  for (int64_t i = 0; i < fractions.size(); ++i) fractions[i] = 1.0f - 0.05f * static_cast<float>(i);
  for (int64_t i = 0; i < moves.size(); ++i) moves[i] = 0.5f + 0.25f * static_cast<float>(i);
  for (const bool symmetric : {true, false}) {
    passes::mse_search_rows(with, x.data(), shape, fractions.data(), fractions.size(), symmetric, {-8, 7},
                            lo.data(), hi.data());
    digests.add("mse_search_rows", lo);
    digests.add("mse_search_rows", hi);
  }
  passes::refine_clip_rows(with, x.data(), shape, moves.data(), moves.size(), 3, 0.99f, {-8, 7}, lo.data(),
                           hi.data());
  digests.add("refine_clip_rows", lo);
  digests.add("refine_clip_rows", hi);
}

void check_one_pass(const Kernels& with, Shape shape, Digests& digests) {
  const int64_t n = shape.rows * shape.cols;
  Memory<float> x = tame(n, 8), scale(shape.rows);
  Memory<uint16_t> half = halves(n, Float::f16, 9), bfloat = halves(n, Float::bf16, 10);
  Memory<int32_t> zero_point(shape.rows);
  const auto run = [&](const void* from, Float kind, Rule rule, int bits) {
    Memory<uint8_t> out((n * bits + 7) / 8);
    if (!passes::minmax_quantize_rows(with, from, kind, shape, rule, bits, scale.data(),
                                      rule.symmetric ? nullptr : zero_point.data(), out.data())) {
      return;  // what was written is of no use
    }
    digests.add("minmax_quantize_rows", out);
    digests.add("minmax_quantize_rows", scale);
    digests.add("minmax_quantize_rows", zero_point);
  };
  for (int bits = 2; bits <= 8; ++bits) {
    const Bounds bounds{-(1 << (bits - 1)), (1 << (bits - 1)) - 1};
    run(x.data(), Float::f32, {bounds, bits % 2 == 0, Float::f16}, bits);
    run(x.data(), Float::f32, {bounds, false, Float::bf16}, 8);
    run(half.data(), Float::f16, {bounds, true, Float::f32}, bits);
    run(bfloat.data(), Float::bf16, {bounds, false, Float::f32}, bits);
  }
}

void check_histograms(const Kernels& with, int64_t bins, int64_t levels, Digests& digests) {
  Random random(12);
  Memory<int64_t> counts(3 * bins), doublings(3);
  Memory<double> weights(bins), found(20);
  Memory<int64_t> start(20), stop(20);
  for (int64_t k = 0; k < 3 * bins; ++k) counts[k] = random.below(1 << 20);
  for (int64_t k = 0; k < bins; ++k) weights[k] = static_cast<double>(random.below(3) * random.below(1000));
  for (int64_t r = 0; r < 3; ++r) doublings[r] = 4 * r;
  for (int64_t w = 0; w < 20; ++w) {
    start[w] = random.below(bins - levels + 1);
    stop[w] = start[w] + levels + random.below(bins - levels - start[w] + 1);
  }
  passes::rebin_rows(with, counts.data(), {3, bins}, doublings.data());
  digests.add("rebin_rows", counts);
  passes::kl_divergences(with, weights.data(), bins, start.data(), stop.data(), 20, levels, 1e-4,
                         found.data());
  digests.add("kl_divergences", found);
}

void check_packing(const Kernels& with, int64_t count, Digests& digests) {
  Random random(11);
  Memory<uint8_t> codes(count);
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(random.next());
  for (int bits = 1; bits <= 8; ++bits) {
    Memory<uint8_t> stream((count * bits + 7) / 8), back(count);
    passes::pack(with, codes.data(), count, bits, stream.data());
    digests.add("pack", stream);
    for (const bool is_signed : {false, true}) {
      passes::unpack(with, stream.data(), count, bits, is_signed, back.data());
      digests.add("unpack", back);
    }
  }
}

}  // namespace

void check_passes(const Kernels& with, Digests& digests) {
  for (const Shape shape : kShapes) {
    check_codes(with, shape, digests);
    check_ranges(with, shape, digests);
    check_search(with, shape, digests);
    check_one_pass(with, shape, digests);
  }
  check_histograms(with, 1, 1, digests);
  check_histograms(with, 700, 9, digests);
  check_histograms(with, 513, 128, digests);
  for (const int64_t count : {0, 1, 7, 8, 9, 64, 1001, 65536, 65543}) check_packing(with, count, digests);
}

}  // namespace fewbit::checks
