// SPDX-License-Identifier: Apache-2.0
#include "support/lidar.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace winnow::support {
namespace {

constexpr double degree = 3.141592653589793 / 180.0;

double range_of(const point& p) {
  return std::hypot(p[0], std::hypot(p[1], p[2]));
}

class lidar : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { scan_ = new lidar_scan(simulate_lidar({})); }
  static void TearDownTestSuite() { delete scan_; }
  static const lidar_scan& scan() { return *scan_; }

 private:
  static const lidar_scan* scan_;
};
const lidar_scan* lidar::scan_ = nullptr;

TEST_F(lidar, repeats_for_a_seed_and_only_for_that) {
  EXPECT_EQ(simulate_lidar({}).points, scan().points);
  lidar_options other;
  other.seed = 1;
  EXPECT_NE(simulate_lidar(other).points, scan().points);
}

TEST_F(lidar, most_rays_meet_something) {
  const lidar_options sensor;
  const auto rays = static_cast<std::size_t>(sensor.beams * sensor.columns);
  EXPECT_EQ(scan().points.size(), scan().beams.size());
  EXPECT_GT(scan().points.size(), rays * 8 / 10);
  EXPECT_LT(scan().points.size(), rays);  // but not down the open street
}

TEST_F(lidar, points_are_finite_and_in_range) {
  const lidar_options sensor;
  for (const point& p : scan().points) {
    const double range = range_of(p);
    ASSERT_GE(range, sensor.min_range - 1e-4);
    ASSERT_LE(range, sensor.max_range + 1e-4);
    // Nothing lies under the road, but for the noise.
    ASSERT_GT(p[2], -sensor.height - 6 * sensor.noise);
  }
}

TEST_F(lidar, points_lie_on_their_beams) {
  const lidar_options sensor;
  for (std::size_t n = 0; n < scan().points.size(); ++n) {
    const point& p = scan().points[n];
    const double elevation = std::atan2(p[2], std::hypot(p[0], p[1])) / degree;
    const double step = 26.8 / (sensor.beams - 1);
    ASSERT_NEAR(elevation, 2.0 - step * scan().beams[n], 1e-3);
  }
  const std::set<std::uint16_t> seen(scan().beams.begin(), scan().beams.end());
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(sensor.beams));
}

TEST_F(lidar, sees_road_facades_and_what_stands_between) {
  const lidar_options sensor;
  std::size_t road = 0;
  std::size_t above_pavement = 0;
  std::size_t above_sensor = 0;
  for (const point& p : scan().points) {
    road += std::abs(p[2] + sensor.height) < 0.05;
    above_pavement += p[2] > -sensor.height + 0.3;
    above_sensor += p[2] > 0.1;
  }
  const std::size_t all = scan().points.size();
  EXPECT_GT(road, all / 10);
  EXPECT_GT(above_pavement, all / 10);
  EXPECT_GT(above_sensor, all / 100);
}

TEST(lidar_options, give_other_sensors) {
  lidar_options sensor;
  sensor.beams = 1;
  sensor.columns = 90;
  sensor.noise = 0.0;
  const lidar_scan scan = simulate_lidar(sensor);
  EXPECT_LE(scan.points.size(), 90u);
  EXPECT_FALSE(scan.points.empty());
  sensor.columns = 0;
  EXPECT_TRUE(simulate_lidar(sensor).points.empty());
}

}  // namespace
}  // namespace winnow::support
