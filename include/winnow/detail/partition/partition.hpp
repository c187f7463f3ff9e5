// SPDX-License-Identifier: Apache-2.0
/// \file
/// Memory layout of a partition. One routine serves the size and the binding.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "winnow/partition.hpp"

namespace winnow {
namespace detail {

/// Hands out consecutive, 256-byte aligned pieces of one block. With a null base it only counts.
class memory_carver {
 public:
  explicit memory_carver(void* base) noexcept : base_(static_cast<std::byte*>(base)) {}

  template <class T>
  T* take(std::int64_t count) noexcept {
    std::byte* piece = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  [[nodiscard]] std::size_t used() const noexcept { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

inline bool is_legal(const partition_shape& shape) noexcept {
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  return shape.max_tokens >= 0 && shape.max_tokens <= limit && shape.max_windows >= 0 &&
         shape.max_windows <= limit;
}

inline std::size_t lay_out(const partition_shape& shape, void* memory, partition& result) noexcept {
  memory_carver carver(memory);
  result.max_tokens = shape.max_tokens;
  result.max_windows = shape.max_windows;
  result.relative = shape.relative;
  result.counts = carver.take<partition_counts>(1);
  result.order = carver.take<std::int32_t>(shape.max_tokens);
  result.offsets = carver.take<std::int32_t>(shape.max_windows + 1);
  result.bounds = carver.take<std::int32_t>(2 * shape.max_tokens);
  const bool positioned = shape.relative.kind != relative_kind::none;
  result.position = positioned ? carver.take<packed_position>(shape.max_tokens) : nullptr;
  const bool radial = shape.relative.kind == relative_kind::spherical;
  result.radius = radial ? carver.take<float>(shape.max_tokens) : nullptr;
  return carver.used();
}

}  // namespace detail

inline status check_flags(const partition_counts& counts) noexcept {
  constexpr const char* meanings[] = {
      "coordinates: a coordinate or radius is not finite",
      "batch: a batch id is negative",
      "coordinates: a token lies 2^30 or more windows from the origin on some axis",
      "bounds: a token lies outside of them",
      "coordinates: cells and batch items span 2^63 or more windows",
      "result: the tokens lie in more windows than it has room for",
      "num_tokens: is negative or larger than N",
      "positions: a position is outside [0, quant_length)",
      "kept: a window id is outside the image's windows",
      "kept: a window id appears twice",
      "kept: the offsets are no ranges of the image's windows"};
  int flag = 0;
  for (const char* meaning : meanings)
    WINNOW_REQUIRE((counts.flags >> flag++ & 1u) == 0, "%s (flags 0x%x)", meaning, counts.flags);
  WINNOW_REQUIRE(counts.flags == 0, "counts: unknown flags 0x%x", counts.flags);
  return {};
}

inline partition_shape shape_of(const cubic_window& window, std::int64_t max_tokens) noexcept {
  return {max_tokens, max_tokens, {relative_kind::differences, window.quant_length, 0.0f}};
}

inline partition_shape shape_of(const spherical_window& window, std::int64_t max_tokens) noexcept {
  return {max_tokens,
          max_tokens,
          {relative_kind::spherical, window.quant_length, window.exponential_a}};
}

inline partition_shape shape_of(const labels_window& window, const label_set& labels) noexcept {
  const relative_kind kind = labels.positions == nullptr ? relative_kind::none
                             : labels.radius == nullptr  ? relative_kind::differences
                                                         : relative_kind::spherical;
  const float first_threshold = kind == relative_kind::spherical ? window.exponential_a : 0.0f;
  return {labels.tokens, labels.tokens, {kind, window.quant_length, first_threshold}};
}

inline partition_shape shape_of(const grid_window& window, const window_selection* kept) noexcept {
  const std::int64_t windows = kept != nullptr ? kept->max_windows() : window.windows();
  return {window.tokens(), windows, {relative_kind::grid, window.window, 0.0f}};
}

inline std::size_t partition_bytes(const partition_shape& shape) noexcept {
  partition unused;
  return detail::is_legal(shape) ? detail::lay_out(shape, nullptr, unused) : 0;
}

inline status bind_partition(const partition_shape& shape, void* memory, std::size_t bytes,
                             partition& result) noexcept {
  WINNOW_REQUIRE(
      detail::is_legal(shape), "shape: %lld tokens and %lld windows, each must be in [0, 2^31 - 1]",
      static_cast<long long>(shape.max_tokens), static_cast<long long>(shape.max_windows));
  WINNOW_REQUIRE(memory != nullptr, "memory: is null");
  WINNOW_REQUIRE(reinterpret_cast<std::uintptr_t>(memory) % 16 == 0,
                 "memory: address %p is not aligned to 16 bytes", memory);
  const std::size_t needed = partition_bytes(shape);
  if (bytes < needed)
    return status::failure(status_code::workspace_too_small, "bytes: %zu, the partition needs %zu",
                           bytes, needed);
  detail::lay_out(shape, memory, result);
  return {};
}

}  // namespace winnow
