// A matrix cut into pieces for csrc/threads.h, by its shape alone.
//
// Layout: a piece is some whole rows, or a stretch of one row where a row is longer than a piece; either way
// it is contiguous. Cost: two divisions a piece. Why a number of values and not of pieces: a piece should be
// worth some ten microseconds whatever the matrix, and one that small leaves the other threads nothing to
// wait for.
#pragma once

#include <cstdint>

#include "threads.h"
#include "types.h"

namespace fewbit {
namespace {

struct Part {
  int64_t row, rows, col, cols;
};

/// Calls body(part, slot) for parts of about `values` values that cover the matrix; an empty matrix has none.
template <class Body>
void for_parts(Shape shape, int64_t values, const Body& body, int most = threads()) {
  if (shape.rows == 0 || shape.cols == 0) return;
  const int64_t width = shape.cols < values ? shape.cols : values;
  const int64_t height = shape.cols < values ? values / shape.cols : 1;
  const int64_t across = (shape.cols + width - 1) / width, down = (shape.rows + height - 1) / height;
  parallel_for(
      across * down,
      [&](int64_t piece, int slot) {
        const int64_t row = piece / across * height, col = piece % across * width;
        const int64_t rows = shape.rows - row < height ? shape.rows - row : height;
        const int64_t cols = shape.cols - col < width ? shape.cols - col : width;
        body(Part{row, rows, col, cols}, slot);
      },
      most);
}

/// Calls body(first, rows, slot) for runs of whole rows of about `values` values together, rows without
/// values too.
template <class Body>
void for_rows(Shape shape, int64_t values, const Body& body, int most = threads()) {
  const int64_t height = shape.cols < values ? values / (shape.cols < 1 ? 1 : shape.cols) : 1;
  parallel_for((shape.rows + height - 1) / height,
               [&](int64_t piece, int slot) {
                 const int64_t first = piece * height;
                 body(first, shape.rows - first < height ? shape.rows - first : height, slot);
               },
               most);
}

}  // namespace
}  // namespace fewbit
