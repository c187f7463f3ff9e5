// SPDX-License-Identifier: Apache-2.0
/// \file
/// A ray-cast LiDAR scan of a procedural street, so that nothing here needs a data set.
#pragma once

#include <cstdint>
#include <vector>

#include "support/point.hpp"

namespace winnow::support {

struct lidar_options {
  /// Decides the street, the sensor's heading and the noise.
  std::uint64_t seed = 0;
  int beams = 64;            ///< from 2° above the horizon down to 24.8° below
  int columns = 1800;        ///< firings of all beams in one turn
  double height = 1.8;       ///< of the sensor above the road, metres
  double min_range = 0.9;    ///< metres
  double max_range = 100.0;  ///< metres
  double noise = 0.015;      ///< standard deviation of the range, metres
};

struct lidar_scan {
  /// In the order of firing: a column of beams after the other. The sensor is at the origin, z up.
  std::vector<point> points;
  /// The beam of each point, 0 the uppermost.
  std::vector<std::uint16_t> beams;
};

/// One turn of the sensor in a street with ground, pavements, façades, poles and cars. Rays that
/// meet nothing within range give no point. The same seed gives the same scan.
lidar_scan simulate_lidar(const lidar_options& options);

}  // namespace winnow::support
