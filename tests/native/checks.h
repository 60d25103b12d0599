// What the checks share: inputs that are the same on every processor, memory without a spare byte, digests.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "dispatch.h"

namespace fewbit::checks {

/// splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  /// Within (-1, 1), in steps of 2^-24.
  float unit() { return static_cast<float>(below(1 << 25) - (1 << 24)) / static_cast<float>(1 << 24); }

 private:
  uint64_t state_;
};

/// n values on the heap: a sanitizer sees the first byte before and after. Filled with a pattern, so that
/// what a kernel leaves unwritten shows.
template <class T>
class Memory {
 public:
  explicit Memory(int64_t n) : size_(n), values_(new T[static_cast<size_t>(n)]) {
    std::memset(static_cast<void*>(values_.get()), 0x5A, static_cast<size_t>(n) * sizeof(T));
  }
  T* data() { return values_.get(); }
  T& operator[](int64_t i) { return values_[static_cast<size_t>(i)]; }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  std::unique_ptr<T[]> values_;
};

/// FNV-1a of everything a kernel wrote, by the kernel's name.
class Digests {
 public:
  template <class T>
  void add(const std::string& name, Memory<T>& memory) {
    uint64_t& hash = by_name_.try_emplace(name, 0xCBF29CE484222325u).first->second;
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(memory.data());
    for (size_t i = 0; i < static_cast<size_t>(memory.size()) * sizeof(T); ++i) {
      hash = (hash ^ bytes[i]) * 0x100000001B3u;
    }
  }
  const std::map<std::string, uint64_t>& by_name() const { return by_name_; }

 private:
  std::map<std::string, uint64_t> by_name_;
};

/// Floats of every magnitude: ties, signed zeros, subnormals, extremes.
Memory<float> wild(int64_t n, uint64_t seed);
/// Floats within (-1, 1).
Memory<float> tame(int64_t n, uint64_t seed);
/// The same as 16-bit floats, by cutting or by a table of finite patterns.
Memory<uint16_t> halves(int64_t n, Float kind, uint64_t seed);

// One function a family of kernels: runs all of them on shapes around every edge.
void check_passes(const Kernels& kernels, Digests& digests);
void check_gptq(const Kernels& kernels, Digests& digests);
void check_attention(const Kernels& kernels);
void check_lowbit(const Kernels& kernels, Digests& digests);

}  // namespace fewbit::checks
