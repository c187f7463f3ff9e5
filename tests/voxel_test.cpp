// SPDX-License-Identifier: Apache-2.0
#include "support/voxel.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>

#include "support/input_error.hpp"
#include "support/random.hpp"

namespace winnow::support {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(voxelise, nothing_gives_nothing) {
  EXPECT_THAT(voxelise({}, 0.05), IsEmpty());
}

TEST(voxelise, averages_each_voxel_in_order_of_first_points) {
  const std::vector<point> points = {
      {1.25f, 0, 0}, {-0.25f, 0, 0}, {1.75f, 0.5f, 0}, {0.25f, 0, 0}, {1.5f, 0.25f, 0.75f}};
  // -0.25 and 0.25 lie on two sides of a border.
  EXPECT_THAT(voxelise(points, 1.0),
              ElementsAre(point{1.5f, 0.25f, 0.25f}, point{-0.25f, 0, 0}, point{0.25f, 0, 0}));
}

TEST(voxelise, agrees_with_a_map_of_cells) {
  constexpr double size = 0.3;
  random_source random(3);
  std::vector<point> points(5000);
  for (point& p : points) {
    for (float& coordinate : p) coordinate = static_cast<float>(random.uniform(-2.0, 2.0));
  }
  std::map<std::array<double, 3>, std::vector<point>> cells;
  for (const point& p : points)
    cells[{std::floor(p[0] / size), std::floor(p[1] / size), std::floor(p[2] / size)}].push_back(p);

  const std::vector<point> voxels = voxelise(points, size);
  ASSERT_EQ(voxels.size(), cells.size());
  for (const point& voxel : voxels) {
    // A mean lies in its own cell, up to rounding, which these numbers do not meet.
    const auto cell = cells.find(
        {std::floor(voxel[0] / size), std::floor(voxel[1] / size), std::floor(voxel[2] / size)});
    ASSERT_NE(cell, cells.end());
    for (int axis = 0; axis < 3; ++axis) {
      double mean = 0.0;
      for (const point& p : cell->second) mean += p[axis];
      EXPECT_NEAR(voxel[axis], mean / static_cast<double>(cell->second.size()), 1e-6);
    }
    cells.erase(cell);
  }
}

TEST(voxelise, refuses_a_span_that_keys_cannot_hold) {
  const std::vector<point> points = {{0, 0, 0}, {0, 2e6f, 0}};
  EXPECT_EQ(voxelise(points, 1.0).size(), 2u);
  try {
    voxelise(points, 0.05);
    FAIL() << "accepted";
  } catch (const input_error& error) {
    EXPECT_STREQ(error.what(), "voxel size: the points span 4e+07 voxels of 0.05 m along y");
  }
  EXPECT_THROW(voxelise({{0, 0, -3e38f}, {0, 0, 3e38f}}, 1e-300), input_error);
}

}  // namespace
}  // namespace winnow::support
