// G += xᵀ x: sums of products of every two columns, of which only one half is computed.
//
// Layout: x[rows][cols] float32, row-major; packed into panels of kPanel columns, panel[rows][kPanel], padded
// with zeros. Cost: rows * cols * (cols + kPanel) operations, half of what a general product does, at 70 to
// 85% of the multiply-adds the processor can do. Why panels: a row's neighbours lie next to each other in
// them, so that the inner loop reads one stream a panel, whatever the number of columns. Why float sums of at
// most kFloatRows rows, which are then added up in double: the error is that of 512 float additions however
// long the data, and adding up costs two percent. A tile's sums run over the rows in their order, whoever
// computes it.
#pragma once

#include <cstdint>
#include <cstring>

#include "dispatch.h"
#include "simd.h"

namespace fewbit {
namespace {

constexpr int64_t kInnerRows = 128, kFloatRows = 512;  // two panels of kInnerRows rows lie in the first cache

#if defined(__AVX512BW__)
constexpr int kGramVectors = 3, kGramHeight = 8;
#elif defined(__AVX2__)
constexpr int kGramVectors = 2, kGramHeight = 6;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kGramVectors = 4, kGramHeight = 6;
#else
constexpr int kGramVectors = 2, kGramHeight = 4;
#endif
constexpr int kGramWidth = kGramVectors * Simd::kLanes;
static_assert(kPanel % kGramWidth == 0 && kPanel % kGramHeight == 0);

/// sums[kGramHeight][kGramWidth], kPanel apart, += products of some columns of panel a with some of panel b.
inline void add_products(const float* a, const float* b, int64_t rows, float* sums) {
  Simd::Float acc[kGramHeight][kGramVectors];
  for (int i = 0; i < kGramHeight; ++i) {
    for (int v = 0; v < kGramVectors; ++v) acc[i][v] = Simd::load(sums + i * kPanel + v * Simd::kLanes);
  }
  for (int64_t r = 0; r < rows; ++r, a += kPanel, b += kPanel) {
    Simd::Float right[kGramVectors];
    for (int v = 0; v < kGramVectors; ++v) right[v] = Simd::load(b + v * Simd::kLanes);
    for (int i = 0; i < kGramHeight; ++i) {
      const Simd::Float left = Simd::floats(a[i]);
      for (int v = 0; v < kGramVectors; ++v) acc[i][v] = Simd::fma(left, right[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kGramHeight; ++i) {
    for (int v = 0; v < kGramVectors; ++v) Simd::store(sums + i * kPanel + v * Simd::kLanes, acc[i][v]);
  }
}

/// Columns `first` to `first + kPanel - 1` of x as a panel.
void pack_panel(const float* x, int64_t rows, int64_t cols, int64_t first, float* panel) {
  const int64_t held = cols - first < kPanel ? cols - first : kPanel;
  for (int64_t r = 0; r < rows; ++r, panel += kPanel) {
    std::memcpy(panel, x + r * cols + first, static_cast<size_t>(held) * sizeof *x);
    for (int64_t c = held; c < kPanel; ++c) panel[c] = 0.0f;
  }
}

/// tile[kPanel][kPanel] = the products of two panels of `rows` rows.
void multiply_panels(const float* a, const float* b, int64_t rows, double* tile) {
  alignas(64) float sums[kPanel * kPanel];
  for (int64_t k = 0; k < kPanel * kPanel; ++k) tile[k] = 0.0;
  for (int64_t begin = 0; begin < rows; begin += kFloatRows) {
    const int64_t end = rows - begin < kFloatRows ? rows : begin + kFloatRows;
    std::memset(sums, 0, sizeof sums);
    for (int64_t r = begin; r < end; r += kInnerRows) {
      const int64_t inner = end - r < kInnerRows ? end - r : kInnerRows;
      for (int64_t j = 0; j < kPanel; j += kGramWidth) {
        for (int64_t i = 0; i < kPanel; i += kGramHeight) {
          add_products(a + r * kPanel + i, b + r * kPanel + j, inner, sums + i * kPanel + j);
        }
      }
    }
    for (int64_t k = 0; k < kPanel * kPanel; ++k) tile[k] += static_cast<double>(sums[k]);
  }
}

}  // namespace
}  // namespace fewbit
