// SPDX-License-Identifier: Apache-2.0
/// \file
/// Partitions for tests, built by the host twins from random tokens.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "winnow/reference.hpp"

namespace winnow::test {

/// Fails the running test with the status's message.
#define WINNOW_ASSERT_OK(...)                                   \
  do {                                                          \
    const ::winnow::status winnow_status = (__VA_ARGS__);       \
    ASSERT_TRUE(winnow_status.ok()) << winnow_status.message(); \
  } while (false)

/// Points in a box, batch ids in any order.
struct random_points {
  std::vector<float> coordinates;
  std::vector<std::int32_t> batch;

  random_points(std::int64_t tokens, int batch_items, float extent, std::uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::uniform_real_distribution<float> place(-extent, extent);
    std::uniform_int_distribution<std::int32_t> item(0, batch_items - 1);
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (int a = 0; a < 3; ++a) coordinates.push_back(place(engine));
      batch.push_back(item(engine));
    }
  }

  [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(batch.size()); }
  [[nodiscard]] point_set view() const {
    return {tensor_view<const float, 2>(coordinates.data(), {tokens(), 3}), batch.data(), nullptr};
  }
};

template <class Window>
reference::host_partition partition_points(const Window& window, const point_set& points) {
  reference::host_partition result(shape_of(window, points.coordinates.shape[0]));
  const status built = reference::build_partition(window, points, result.view());
  EXPECT_TRUE(built.ok()) << built.message();
  return result;
}

inline reference::host_partition partition_labels(const labels_window& window,
                                                  const label_set& labels) {
  reference::host_partition result(shape_of(window, labels));
  const status built = reference::build_partition(window, labels, result.view());
  EXPECT_TRUE(built.ok()) << built.message();
  return result;
}

inline reference::host_partition partition_grid(const grid_window& window,
                                                const window_selection* kept = nullptr) {
  reference::host_partition result(shape_of(window, kept));
  const status built = reference::build_partition(window, kept, result.view());
  EXPECT_TRUE(built.ok()) << built.message();
  return result;
}

/// Windows of the given sizes over consecutive tokens, without positions.
inline reference::host_partition partition_sizes(const std::vector<int>& sizes) {
  std::vector<std::int32_t> labels;
  for (std::size_t w = 0; w < sizes.size(); ++w)
    labels.insert(labels.end(), static_cast<std::size_t>(sizes[w]), static_cast<std::int32_t>(w));
  label_set set;
  set.labels = labels.data();
  set.tokens = static_cast<std::int64_t>(labels.size());
  return partition_labels({}, set);
}

}  // namespace winnow::test
