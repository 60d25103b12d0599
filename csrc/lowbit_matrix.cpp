// Packing. See csrc/lowbit_matrix.h and csrc/lowbit_layout.h.
#include "lowbit_matrix.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "threads.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fewbit {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
constexpr int64_t kTile = 16, kBlock = 32;

size_t whole(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

/// The bits of a scale in a 16-bit type that holds it exactly, or -1. Subnormal halves are left to float32.
int32_t exact_half(float v) {
  const uint32_t bits = bits_of(v);
  const int32_t exponent = static_cast<int32_t>(bits >> 23 & 255) - 112;
  if (v == 0.0f) return 0;
  if ((bits & 0x1FFFu) != 0 || exponent < 1 || exponent > 30) return -1;
  return static_cast<int32_t>((bits >> 16 & 0x8000u) | static_cast<uint32_t>(exponent) << 10 |
                              (bits >> 13 & 0x3FFu));
}

int32_t exact_bfloat(float v) {
  return (bits_of(v) & 0xFFFFu) == 0 ? static_cast<int32_t>(bits_of(v) >> 16) : -1;
}

ScaleType narrowest(const float* scale, int64_t n) {
  bool half = true, bfloat = true;
  for (int64_t i = 0; i < n && (half || bfloat); ++i) {
    half = half && exact_half(scale[i]) >= 0;
    bfloat = bfloat && exact_bfloat(scale[i]) >= 0;
  }
  return half ? ScaleType::f16 : (bfloat ? ScaleType::bf16 : ScaleType::f32);
}

void store_scale(ScaleType type, float v, int64_t at, void* scales) {
  if (type == ScaleType::f32) {
    static_cast<float*>(scales)[at] = v;
  } else {
    const int32_t bits = type == ScaleType::f16 ? exact_half(v) : exact_bfloat(v);
    static_cast<uint16_t*>(scales)[at] = static_cast<uint16_t>(bits);
  }
}

/// Puts the code of step s (k = 4 s .. 4 s + 3), at byte `at` of its line, into a block of zeroed lines.
void put(uint8_t* block, int bits, int step, size_t at, uint32_t code) {
  const auto line = [&](int number) -> uint8_t& { return block[static_cast<size_t>(number) * kLine + at]; };
  switch (bits) {
    case 8:
      line(step) = static_cast<uint8_t>(code);
      return;
    case 4:
      line(step / 2) = static_cast<uint8_t>(line(step / 2) | code << 4 * (step % 2));
      return;
    case 3: {
      const int number = step / 3, field = step % 3;
      const uint32_t there = field == 2 ? code >> 1 << 6 : code << 3 * field;
      line(number) = static_cast<uint8_t>(line(number) | there);
      if (field == 2) line(2) = static_cast<uint8_t>(line(2) | (code & 1) << (6 + number));
      return;
    }
    default:
      line(step / 4) = static_cast<uint8_t>(line(step / 4) | code << 2 * (step % 4));
  }
}

/// Reads the source as unsigned codes and zero points; what lies beyond it is a weight of 0.
class Reader {
 public:
  Reader(const LowbitSource& source, int64_t groups)
      : source_(source), groups_(groups), bias_(source.is_signed ? 1 << (source.bits - 1) : 0) {}

  int32_t zero(int64_t output, int64_t group) const {
    if (output >= source_.outputs || source_.zero_point == nullptr) return bias_;
    return source_.zero_point[output * groups_ + group] + bias_;
  }
  float scale(int64_t output, int64_t group) const {
    return output < source_.outputs ? source_.scale[output * groups_ + group] : 0.0f;
  }
  int32_t code(int64_t output, int64_t k) const {
    if (output >= source_.outputs || k >= source_.columns) return zero(output, k / source_.group);
    const uint8_t byte = source_.codes[output * source_.columns + k];
    return (source_.is_signed ? static_cast<int8_t>(byte) : static_cast<int32_t>(byte)) + bias_;
  }
  bool fits(int32_t code) const { return code >= 0 && code < 1 << source_.bits; }

 private:
  const LowbitSource& source_;
  int64_t groups_;
  int32_t bias_;
};

/// Where a matrix's parts lie in its memory.
struct Parts {
  uint8_t* codes;
  void* scales;
  uint8_t* zeros;
  int32_t* sums;  // or null
};

/// Packs one group of a tile's codes and adds up each output's; false if something does not fit.
bool pack_group(const Reader& from, const LowbitWeights& w, int64_t tile, int64_t group, uint8_t* block,
                int64_t (&sums)[kTile]) {
  bool fits = true;
  for (int64_t k = group * w.group; k < (group + 1) * w.group; k += kBlock) {
    for (int64_t n = 0; n < kTile; ++n) {
      for (int i = 0; i < kBlock; ++i) {
        const int32_t code = from.code(tile * kTile + n, k + i);
        fits = fits && from.fits(code);
        sums[n] += code;
        put(block, w.bits, i / 4, static_cast<size_t>(4 * n + i % 4), static_cast<uint32_t>(code));
      }
    }
    block += w.bits * static_cast<int64_t>(kLine);
  }
  return fits;
}

bool pack_tile(const Reader& from, const LowbitWeights& w, int64_t tile, const Parts& to) {
  bool fits = true;
  for (int64_t g = 0; g < w.groups; ++g) {
    int64_t sums[kTile] = {};
    fits = pack_group(from, w, tile, g, to.codes + tile * w.tile_bytes() + g * w.group * 2 * w.bits, sums) &&
           fits;
    for (int64_t n = 0; n < kTile; ++n) {
      const int64_t at = (tile * w.groups + g) * kTile + n;
      const int32_t zero = from.zero(tile * kTile + n, g);
      fits = fits && from.fits(zero);
      to.zeros[at] = static_cast<uint8_t>(zero);
      store_scale(w.scale_type, from.scale(tile * kTile + n, g), at, to.scales);
      if (to.sums != nullptr) to.sums[at] = static_cast<int32_t>(sums[n] - zero * w.group);
    }
  }
  return fits;
}

bool all_equal(const uint8_t* values, size_t n) {
  for (size_t i = 1; i < n; ++i) {
    if (values[i] != values[0]) return false;
  }
  return true;
}

}  // namespace

LowbitMemory::LowbitMemory(size_t bytes) : bytes_(whole(bytes == 0 ? 1 : bytes, kLine)) {
#if defined(__linux__)
  if (bytes_ >= kHugePage) {
    bytes_ = whole(bytes_, kHugePage);
    // One huge page more, so that a multiple of its size lies within; what is over is given back.
    void* raw = mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    uint8_t* begin = static_cast<uint8_t*>(raw);
    const size_t before =
        whole(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
    data_ = begin + before;
    if (before > 0) munmap(begin, before);
    if (before < kHugePage) munmap(data_ + bytes_, kHugePage - before);
    madvise(data_, bytes_, MADV_HUGEPAGE);
    mapped_ = true;
    return;
  }
#endif
  data_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t(kLine)));
  std::memset(data_, 0, bytes_);
}

LowbitMemory::~LowbitMemory() {
#if defined(__linux__)
  if (mapped_) {
    munmap(data_, bytes_);
    return;
  }
#endif
  ::operator delete(data_, std::align_val_t(kLine));
}

LowbitMatrix::LowbitMatrix(const LowbitSource& source) {
  LowbitWeights& w = weights_;
  w.outputs = source.outputs, w.columns = source.columns, w.bits = source.bits, w.group = source.group;
  w.groups = (source.columns + source.group - 1) / source.group, w.padded = w.groups * source.group;
  w.tiles = (source.outputs + kTile - 1) / kTile;
  w.scale_type = narrowest(source.scale, source.outputs * w.groups);
  const size_t each = static_cast<size_t>(w.tiles * w.groups * kTile);
  const size_t code_bytes = static_cast<size_t>(w.tiles * w.tile_bytes());
  const size_t scale_bytes = whole(each * (w.scale_type == ScaleType::f32 ? 4 : 2), kLine);
  const size_t sum_bytes = source.with_sums ? whole(each * sizeof(int32_t), kLine) : 0;
  // Whether all zero points are one is known after packing only, so there is room for them.
  memory_ = std::make_unique<LowbitMemory>(code_bytes + scale_bytes + sum_bytes + each);
  uint8_t* memory = memory_->data();
  const Parts parts{memory, memory + code_bytes, memory + code_bytes + scale_bytes + sum_bytes,
                    sum_bytes == 0 ? nullptr : reinterpret_cast<int32_t*>(memory + code_bytes + scale_bytes)};
  const Reader reader(source, w.groups);
  std::atomic<bool> fits{true};
  parallel_for(w.tiles, [&](int64_t tile, int) {
    if (!pack_tile(reader, w, tile, parts)) fits = false;
  });
  if (!fits) {
    throw std::invalid_argument("a code or zero point does not fit " + std::to_string(source.bits) + " bits");
  }
  w.codes = parts.codes, w.scales = parts.scales, w.sums = parts.sums;
  if (all_equal(parts.zeros, each)) {
    w.zero = each == 0 ? 0 : parts.zeros[0];
  } else {
    w.zeros = parts.zeros;
  }
}

}  // namespace fewbit
