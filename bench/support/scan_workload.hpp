// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tokens of SphereFormer's five stages on a batch of six LiDAR scans: read from a folder of
/// .npy files, or from simulated scans, so that no benchmark needs a data set.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "support/point.hpp"

namespace winnow::support {

/// What the sensor stands in: a meadow with trees and bushes, as seen by 64 beams over 33.2°.
/// The defaults were fitted to scans of an off-road vehicle; `scan_workload_test` holds the figures.
struct meadow_options {
  std::uint64_t seed = 0;  ///< decides where everything stands, and the noise
  int beams = 64;          ///< from 16.6° above the horizon to 16.6° below
  int columns = 2048;
  double height = 1.0;         ///< of the sensor above the ground, metres
  double grass = 0.007;        ///< standard deviation of the height at which grass stops a ray
  double ground_range = 27.0;  ///< where half of the rays that graze the ground do not return
  int trees = 17;
  double nearest_tree = 24.0;
  double farthest_tree = 37.5;
  double tree_depth = 2.6;  ///< how far rays reach into a crown, on average
  int bushes = 67;
  double nearest_bush = 7.73;
};

/// One turn of the sensor, in the order of firing; sensor at the origin, z up, metres.
std::vector<point> simulate_meadow(const meadow_options& options);

/// The tokens of a stage, grouped by scan.
struct scan_stage {
  std::vector<float> coordinates;   ///< [N, 3]
  std::vector<std::int32_t> batch;  ///< [N]
  [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(batch.size()); }
};

inline constexpr int scan_stages = 5;
/// W1 is the first so many tokens of stage 1.
inline constexpr std::int64_t w1_tokens = 268720;

/// Stages 1 to 5 of simulated scans: voxels of 5 cm, then means of twice the edge at each stage.
/// \param options of the first scan; the others take the seeds that follow.
std::vector<scan_stage> simulate_stages(const meadow_options& options = {}, int scans = 6);

/// Stages 1 to 5 as `folder`/stage1_coords.npy (float32 [N, 3]) and stage1_batch.npy (int32 [N]) …
/// \throw input_error as `read_npy`.
std::vector<scan_stage> read_stages(const std::filesystem::path& folder);

/// The stages in the folder that WINNOW_WORKLOADS names, or simulated ones without it; made once.
const std::vector<scan_stage>& workload_stages();
/// "files" or "simulated".
const char* workload_source();

}  // namespace winnow::support
