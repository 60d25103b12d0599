// All kernels of one instruction set: this file is compiled once per set (CMakeLists.txt), each time with
// other -m flags and with FEWBIT_ISA naming the namespace.
//
// Layout: one kernel a header, plain loops that the compiler turns into vector code.
// Cost: the code is there once per instruction set, about 40 KB each.
// Why everything in those headers is in an anonymous namespace and uses no function template of the standard
// library: such a template compiled here for AVX-512 would have a name the linker may share with the portable
// copy, and an old processor would then meet an instruction it does not know.
#include "attention.h"
#include "dispatch.h"
#include "gptq.h"
#include "gram.h"
#include "histogram.h"
#include "kl_search.h"
#include "minmax.h"
#include "minmax_quantize.h"
#include "mse_search.h"
#include "pack.h"
#include "peak.h"
#include "quantize.h"
#include "rebin.h"
#include "refine_clip.h"
#include "unpack.h"

#define FEWBIT_TEXT_(name) #name
#define FEWBIT_TEXT(name) FEWBIT_TEXT_(name)

namespace fewbit::FEWBIT_ISA {

extern const LowbitKernels lowbit_kernels;  // csrc/lowbit_kernels.cpp
extern const Kernels kernels;               // declared first: a const is otherwise private to this file
const Kernels kernels = {
    FEWBIT_TEXT(FEWBIT_ISA),
    minmax_rows,
    quantize_rows,
    quantize_rows_dynamic,
    dequantize_rows,
    histogram_rows,
    mse_search_rows,
    minmax_quantize_rows,
    refine_clip_rows,
    peak,
    read_memory,
    rebin_rows,
    log_sums,
    kl_divergences,
    pack,
    unpack,
    weigh,
    nearest_plane,
    descend,
    gram_pack,
    gram_square,
    attention_pack_keys,
    attention_pack_values,
    attention_queries,
    &lowbit_kernels,
};

}  // namespace fewbit::FEWBIT_ISA
