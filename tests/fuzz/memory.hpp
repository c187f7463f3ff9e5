// SPDX-License-Identifier: Apache-2.0
/// \file
/// Memory for arguments: every array gets a block of exactly its size, so that AddressSanitizer sees
/// the first access beyond it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "byte_source.hpp"
#include "winnow/status.hpp"
#include "winnow/tensor.hpp"

namespace winnow::fuzz {

/// A broken promise of the library.
inline void require(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "promise broken: %s\n", promise);
  std::abort();
}

/// Where arrays lie. Device memory is addresses that nothing is behind and nobody may look at.
enum class memory_place { host, device };

class memory {
 public:
  explicit memory(byte_source& source, memory_place place = memory_place::host)
      : source_(source), place_(place), honest_(place == memory_place::host) {}

  [[nodiscard]] bool on_device() const { return place_ == memory_place::device; }

  /// False once an array was asked for that is too large to be there: such arguments lie about
  /// memory, which no callee can notice, so only calls that read no memory may have them. Never true
  /// of device memory.
  [[nodiscard]] bool honest() const { return honest_; }

  /// `count` elements filled by `fill()`, for a negative count none.
  template <class T, class Fill>
  T* array(std::int64_t count, Fill&& fill) {
    auto* block = static_cast<T*>(bytes(static_cast<double>(count) * sizeof(T)));
    for (std::int64_t i = 0; honest_ && i < count; ++i) block[i] = fill();
    return block;
  }

  /// A view of nearly the wanted shape and type, over memory unless the shape is absurd.
  template <int Rank>
  tensor_view<void, Rank> view(dtype type, const std::int64_t (&wanted)[Rank]) {
    return shaped(source_.rarely(64) ? static_cast<dtype>(source_.pick(9) - 1) : type, wanted);
  }
  template <class T, int Rank>
  tensor_view<T, Rank> typed_view(const std::int64_t (&wanted)[Rank]) {
    const tensor_view<void, Rank> erased = shaped(dtype_of<T>, wanted);
    return {static_cast<T*>(erased.data), erased};
  }

  /// What all arrays hold, to see whether a call wrote.
  [[nodiscard]] std::vector<std::vector<std::byte>> snapshot() const {
    std::vector<std::vector<std::byte>> result;
    for (const owned_bytes& each : blocks_)
      result.emplace_back(each.data.get(), each.data.get() + each.size);
    return result;
  }

 private:
  struct owned_bytes {
    std::unique_ptr<std::byte[]> data;
    std::size_t size;
  };

  template <int Rank>
  tensor_view<void, Rank> shaped(dtype type, const std::int64_t (&wanted)[Rank]) {
    tensor_view<void, Rank> result;
    result.type = type;
    std::int64_t step = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      result.shape[d] = source_.rarely(64) ? source_.wild_integer() : wanted[d];
      result.stride[d] = source_.rarely(64) ? source_.wild_integer() : step;
      const auto extent = static_cast<std::uint64_t>(result.shape[d] > 0 ? result.shape[d] : 1);
      const bool padded = source_.rarely();
      step =
          static_cast<std::int64_t>(static_cast<std::uint64_t>(step) * extent + (padded ? 3u : 0u));
    }
    if (source_.rarely(64)) return result;  // null
    if (!views_.empty() && source_.rarely(64)) {
      // Aliases an earlier array. It may be larger than that, so nobody may look inside.
      result.data = views_[static_cast<std::size_t>(source_.pick(static_cast<int>(views_.size())))];
      honest_ = false;
      return result;
    }
    // In double, which no shape overflows and which is exact for those that fit memory.
    double lowest = 0;
    double highest = 0;
    bool empty = false;
    for (int d = 0; d < Rank; ++d) {
      empty = empty || result.shape[d] <= 0;
      const double reach =
          (static_cast<double>(result.shape[d]) - 1) * static_cast<double>(result.stride[d]);
      (reach < 0 ? lowest : highest) += reach;
    }
    const auto element = static_cast<double>(size_of(result.type));
    auto* block = static_cast<std::byte*>(bytes(empty ? 0 : (highest - lowest + 1) * element));
    if (honest_ && !empty) block -= static_cast<std::int64_t>(lowest * element);
    if (source_.rarely(64)) {
      ++block;  // misaligned, and one byte short; one-byte elements cannot be
      honest_ = honest_ && size_of(result.type) > 1;
    }
    result.data = block;
    views_.push_back(block);
    return result;
  }

  /// A block of its own, filled from the source; a single byte where the size is absurd.
  void* bytes(double size) {
    if (on_device()) return device_bytes(size);
    constexpr double limit = 1 << 16;
    if (size > limit) honest_ = false;
    const std::size_t real = size > limit ? 1 : size < 0 ? 0 : static_cast<std::size_t>(size);
    blocks_.push_back({std::make_unique<std::byte[]>(real), real});
    // Repeating a short pattern makes more of the bytes that there are.
    const auto pattern = source_.take<std::uint32_t>();
    for (std::size_t i = 0; i < real; ++i)
      blocks_.back().data[i] = static_cast<std::byte>(pattern >> (i % 4 * 8));
    return blocks_.back().data.get();
  }

  void* device_bytes(double size) {
    const std::uintptr_t address = next_address_;
    constexpr double limit = 0x1p40;
    next_address_ += static_cast<std::uintptr_t>(std::clamp(size, 0.0, limit)) / 256 * 256 + 256;
    return reinterpret_cast<void*>(address);
  }

  byte_source& source_;
  memory_place place_;
  /// No processor that CUDA runs on maps such addresses.
  std::uintptr_t next_address_ = std::uintptr_t{0xf0} << 48;
  std::vector<owned_bytes> blocks_;
  std::vector<void*> views_;
  bool honest_;
};

/// Makes a call and checks that a failure has written nothing.
template <class Call>
status call(const memory& arguments, Call&& make) {
  const auto before = arguments.snapshot();
  status result = make();
  if (!result.ok()) {
    require(result.message()[0] != '\0', "a failure has a message");
    if (result.code() != status_code::out_of_memory)
      require(arguments.snapshot() == before, "a failed call has written nothing");
  }
  return result;
}

}  // namespace winnow::fuzz
