// SPDX-License-Identifier: Apache-2.0
/// \file
/// Partitions built on the GPU, and their comparison with those of the host twins.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "support/device.hpp"
#include "support/partitions.hpp"
#include "winnow/partition.hpp"

namespace winnow::test {

/// Points in device memory with room for `capacity` of them.
template <class T>
class device_points {
 public:
  device_points(const std::vector<T>& coordinates, const std::vector<std::int32_t>& batch,
                std::int64_t capacity = -1)
      : capacity_(capacity < 0 ? static_cast<std::int64_t>(coordinates.size() / 3) : capacity),
        coordinates_(3 * capacity_),
        batch_(capacity_),
        count_(1) {
    assign(coordinates, batch);
  }
  /// Other points, and no more than the capacity; the rest of the memory becomes poison.
  void assign(const std::vector<T>& coordinates, const std::vector<std::int32_t>& batch) {
    coordinates_.poison();
    batch_.poison();
    coordinates_.copy_from(coordinates);
    has_batch_ = !batch.empty();
    batch_.copy_from(batch);
    count_.copy_from({static_cast<std::int32_t>(coordinates.size() / 3)});
  }
  void set_count(std::int32_t count) { count_.copy_from({count}); }

  [[nodiscard]] std::int64_t capacity() const { return capacity_; }
  /// \param counted with the number of tokens in device memory.
  [[nodiscard]] point_set view(bool counted = false) const {
    return {tensor_view<const T, 2>(coordinates_.data(), {capacity_, 3}),
            has_batch_ ? batch_.data() : nullptr, counted ? count_.data() : nullptr};
  }

 private:
  std::int64_t capacity_;
  device_array<T> coordinates_;
  device_array<std::int32_t> batch_;
  device_array<std::int32_t> count_;
  bool has_batch_ = false;
};

/// Bounds that hold the points and their batch items, and not more.
inline partition_bounds box_of(const std::vector<float>& coordinates,
                               const std::vector<std::int32_t>& batch) {
  partition_bounds bounds;
  coordinate_box box;
  box.lower.fill(1e30);
  box.upper.fill(-1e30);
  for (std::size_t i = 0; i < coordinates.size(); ++i) {
    box.lower[i % 3] = std::min<double>(box.lower[i % 3], coordinates[i]);
    box.upper[i % 3] = std::max<double>(box.upper[i % 3], coordinates[i]);
  }
  if (!coordinates.empty()) bounds.box = box;
  for (std::int32_t item : batch) bounds.batch_items = std::max(bounds.batch_items, item + 1);
  return bounds;
}

/// The same points for the host twins.
template <class T>
point_set host_points(const std::vector<T>& coordinates, const std::vector<std::int32_t>& batch) {
  const auto tokens = static_cast<std::int64_t>(coordinates.size() / 3);
  return {tensor_view<const T, 2>(coordinates.data(), {tokens, 3}),
          batch.empty() ? nullptr : batch.data(), nullptr};
}

/// A partition in device memory, poisoned and guarded.
class device_partition {
 public:
  explicit device_partition(const partition_shape& shape)
      : shape_(shape), memory_(static_cast<std::int64_t>(partition_bytes(shape))) {
    const status bound = bind_partition(shape, memory_.data(), memory_.bytes(), view_);
    if (!bound.ok()) throw std::invalid_argument(bound.message());
  }
  [[nodiscard]] const partition& view() const { return view_; }
  [[nodiscard]] bool guards_intact() const { return memory_.guards_intact(); }
  void poison() { memory_.poison(); }

  /// A copy in host memory: `view()` has the same layout, including what was never written.
  class snapshot {
   public:
    snapshot(const partition_shape& shape, std::vector<std::byte> memory)
        : memory_(std::move(memory)) {
      const status bound = bind_partition(shape, memory_.data(), memory_.size(), view_);
      if (!bound.ok()) throw std::invalid_argument(bound.message());
    }
    [[nodiscard]] const partition& view() const { return view_; }
    [[nodiscard]] const partition_counts& counts() const { return *view_.counts; }
    [[nodiscard]] const std::vector<std::byte>& bytes() const { return memory_; }

   private:
    std::vector<std::byte> memory_;
    partition view_;
  };
  [[nodiscard]] snapshot read() const { return {shape_, memory_.to_host()}; }

  [[nodiscard]] bool untouched() const {
    for (std::byte byte : memory_.to_host())
      if (byte != std::byte{device_array<std::byte>::poison_byte}) return false;
    return true;
  }

 private:
  partition_shape shape_;
  device_array<std::byte> memory_;
  partition view_;
};

/// Every byte of [first, last) is poison (not checked under a memory checker).
template <class T>
::testing::AssertionResult is_poison(const T* values, std::int64_t first, std::int64_t last) {
  if (bare_arrays()) return ::testing::AssertionSuccess();
  for (std::int64_t i = first; i < last; ++i) {
    const T poison = device_array<T>::poisoned();
    if (std::memcmp(values + i, &poison, sizeof(T)) != 0)
      return ::testing::AssertionFailure() << "element " << i << " was written";
  }
  return ::testing::AssertionSuccess();
}

template <class T>
::testing::AssertionResult same(const char* name, const T* device, const T* host,
                                std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i)
    if (std::memcmp(device + i, host + i, sizeof(T)) != 0)
      return ::testing::AssertionFailure()
             << name << "[" << i << "] is " << device[i] << ", the host has " << host[i];
  return ::testing::AssertionSuccess();
}

/// Equal lists, and nothing written behind them.
inline void expect_same_partition(const partition& device, const partition& host) {
  const partition_counts& d = *device.counts;
  const partition_counts& h = *host.counts;
  EXPECT_EQ(d.flags, 0u) << check_flags(d).message();
  ASSERT_EQ(d.tokens, h.tokens);
  ASSERT_EQ(d.windows, h.windows);
  EXPECT_EQ(d.assigned, h.assigned);
  EXPECT_EQ(d.largest, h.largest);
  EXPECT_TRUE(same("order", device.order, host.order, h.tokens));
  EXPECT_TRUE(same("offsets", device.offsets, host.offsets, h.windows + 1));
  EXPECT_TRUE(same("bounds", device.bounds, host.bounds, 2 * std::int64_t{h.tokens}));
  ASSERT_EQ(device.position != nullptr, host.position != nullptr);
  ASSERT_EQ(device.radius != nullptr, host.radius != nullptr);
  if (host.position != nullptr) {
    EXPECT_TRUE(same("position", device.position, host.position, h.tokens));
  }
  if (host.radius != nullptr) {
    EXPECT_TRUE(same("radius", device.radius, host.radius, h.tokens));
  }
  EXPECT_TRUE(is_poison(device.order, h.tokens, device.max_tokens)) << "order";
  EXPECT_TRUE(is_poison(device.offsets, h.windows + 1, device.max_windows + 1)) << "offsets";
  EXPECT_TRUE(is_poison(device.bounds, 2 * std::int64_t{h.tokens}, 2 * device.max_tokens))
      << "bounds";
  if (device.position != nullptr) {
    EXPECT_TRUE(is_poison(device.position, h.tokens, device.max_tokens)) << "position";
  }
  if (device.radius != nullptr) {
    EXPECT_TRUE(is_poison(device.radius, h.tokens, device.max_tokens)) << "radius";
  }
}

/// Whatever was flagged: `order` is a permutation, windows are consecutive and not empty, bounds
/// agree with offsets, and the tokens behind them lie in no window.
inline void expect_sound(const partition& device) {
  const partition_counts& counts = *device.counts;
  ASSERT_GE(counts.tokens, 0);
  ASSERT_LE(counts.tokens, device.max_tokens);
  ASSERT_GE(counts.windows, 0);
  ASSERT_LE(counts.windows, device.max_windows);
  std::vector<bool> seen(static_cast<std::size_t>(counts.tokens), false);
  for (std::int32_t slot = 0; slot < counts.tokens; ++slot) {
    const std::int32_t token = device.order[slot];
    ASSERT_TRUE(token >= 0 && token < counts.tokens && !seen[static_cast<std::size_t>(token)])
        << "slot " << slot << " holds token " << token;
    seen[static_cast<std::size_t>(token)] = true;
  }
  ASSERT_EQ(device.offsets[0], 0);
  ASSERT_EQ(device.offsets[counts.windows], counts.assigned);
  std::int32_t largest = 0;
  for (std::int32_t w = 0; w < counts.windows; ++w) {
    const std::int32_t first = device.offsets[w];
    const std::int32_t last = device.offsets[w + 1];
    ASSERT_LT(first, last) << "window " << w;
    largest = std::max(largest, last - first);
    for (std::int32_t slot = first; slot < last; ++slot) {
      ASSERT_EQ(device.bounds[2 * std::int64_t{slot}], first) << "slot " << slot;
      ASSERT_EQ(device.bounds[2 * std::int64_t{slot} + 1], last) << "slot " << slot;
    }
  }
  EXPECT_EQ(counts.largest, largest);
  for (std::int32_t slot = counts.assigned; slot < counts.tokens; ++slot) {
    ASSERT_EQ(device.bounds[2 * std::int64_t{slot}], slot);
    ASSERT_EQ(device.bounds[2 * std::int64_t{slot} + 1], slot);
  }
}

/// Builds with a workspace of exactly the promised size, waits, and checks that nothing outside of
/// result and workspace was written.
template <class Window, class Tokens>
void build_on_device(const Window& window, const Tokens& tokens, const partition_bounds& bounds,
                     const device_partition& result) {
  const device_stream stream;
  device_array<std::byte> workspace(
      static_cast<std::int64_t>(build_partition_workspace_bytes(window, tokens, bounds)));
  ASSERT_GT(workspace.bytes(), 0u);
  WINNOW_ASSERT_OK(build_partition(window, tokens, bounds, result.view(), workspace.data(),
                                   workspace.bytes(), stream));
  stream.synchronize();
  EXPECT_TRUE(workspace.guards_intact()) << "workspace";
  EXPECT_TRUE(result.guards_intact()) << "result";
}

}  // namespace winnow::test
