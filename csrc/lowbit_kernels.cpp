// The low-bit kernels of one instruction set: compiled once for each (CMakeLists.txt), as csrc/kernels.cpp
// is, and for the same reason with everything in anonymous namespaces.
#include "lowbit.h"

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"      // of the passes' headers some helpers serve here
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own _mm512_undefined_*
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "lowbit_float.h"
#include "lowbit_integer.h"
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#include "lowbit_float_tiles.h"
#include "lowbit_tiles.h"
#define FEWBIT_TILES 1
#endif

#define FEWBIT_TEXT_(name) #name
#define FEWBIT_TEXT(name) FEWBIT_TEXT_(name)

namespace fewbit::FEWBIT_ISA {

extern const LowbitKernels lowbit_kernels;
const LowbitKernels lowbit_kernels = {
    .isa = FEWBIT_TEXT(FEWBIT_ISA),
    .prepare_integer = prepare_integer,
    .prepare_float = prepare_float,
    .integer = integer,
    .floating = floating,
#ifdef FEWBIT_TILES
    .integer_tile_rows = kIntegerTileRows,
    .float_tile_rows = kFloatTileRows,
    .prepare_tiles_float = prepare_tiles_float,
    .integer_tiles = integer_tiles,
    .float_tiles = float_tiles,
#endif
};

}  // namespace fewbit::FEWBIT_ISA
