// SPDX-License-Identifier: Apache-2.0
#include "eval/inputs.hpp"

#include <cmath>
#include <limits>

#include "support/input_error.hpp"
#include "support/lidar.hpp"
#include "support/npy.hpp"
#include "support/random.hpp"
#include "support/voxel.hpp"

namespace winnow::eval {
namespace {

using support::point;

std::vector<std::int32_t> read_batch_ids(const std::string& path, std::size_t tokens) {
  const support::npy_array array = support::read_npy(path);
  if (array.shape.size() != 1 || static_cast<std::size_t>(array.shape[0]) != tokens) {
    throw support::input_error(path, "has shape " + support::shape_text(array.shape) +
                                         ", the coordinates have " + std::to_string(tokens) +
                                         " tokens");
  }
  const bool is_integer =
      array.element == support::npy_element::int32 || array.element == support::npy_element::int64;
  if (!is_integer) {
    throw support::input_error(path, std::string("has elements ") +
                                         support::descriptor_of(array.element) +
                                         ", batch ids need <i4 or <i8");
  }
  std::vector<std::int32_t> batch;
  batch.reserve(tokens);
  for (const double id : array.to_doubles()) {
    if (!(id >= 0.0 && id <= std::numeric_limits<std::int32_t>::max())) {
      throw support::input_error(
          path, "token " + std::to_string(batch.size()) + ": batch id is not in 0 to 2^31 - 1");
    }
    batch.push_back(static_cast<std::int32_t>(id));
  }
  return batch;
}

token_set read_ready_tokens(const options& asked) {
  token_set result;
  result.source = *asked.coordinates;
  result.coordinates = support::read_scan(*asked.coordinates, support::scan_format::npy).points;
  if (asked.batch_ids) {
    result.batch = read_batch_ids(*asked.batch_ids, result.coordinates.size());
  } else {
    result.batch.assign(result.coordinates.size(), 0);
  }
  result.points = result.size();
  return result;
}

/// The augmentations of a training batch: yaw, scale, noise.
std::vector<point> augmented(const std::vector<point>& points, support::random_source& random) {
  const double yaw = random.uniform(0.0, 2.0 * 3.141592653589793);
  const double scale = random.uniform(0.95, 1.05);
  const double cosine = scale * std::cos(yaw);
  const double sine = scale * std::sin(yaw);
  std::vector<point> result;
  result.reserve(points.size());
  for (const point& p : points) {
    const double turned[] = {cosine * p[0] - sine * p[1], sine * p[0] + cosine * p[1],
                             scale * p[2]};
    point& added = result.emplace_back();
    for (int axis = 0; axis < 3; ++axis)
      added[axis] = static_cast<float>(turned[axis] + 0.01 * random.normal());
  }
  return result;
}

token_set voxelise_scan(const options& asked) {
  token_set result;
  std::vector<point> points;
  if (asked.scan) {
    support::scan scan = support::read_scan(*asked.scan, asked.format);
    result.source = *asked.scan + " (" + to_string(scan.format) + ")";
    points = std::move(scan.points);
  } else {
    support::lidar_options sensor;
    sensor.seed = asked.seed;
    points = support::simulate_lidar(sensor).points;
    result.source = "simulated LiDAR, " + std::to_string(sensor.beams) + " beams, seed " +
                    std::to_string(asked.seed);
  }
  support::random_source random(asked.seed + 1);
  for (int copy = 0; copy < asked.copies; ++copy) {
    const std::vector<point> voxels =
        support::voxelise(copy == 0 ? points : augmented(points, random), asked.voxel);
    result.coordinates.insert(result.coordinates.end(), voxels.begin(), voxels.end());
    result.batch.resize(result.coordinates.size(), copy);
    result.points += static_cast<std::int64_t>(points.size());
  }
  return result;
}

}  // namespace

token_set load_tokens(const options& asked) {
  token_set result = asked.coordinates ? read_ready_tokens(asked) : voxelise_scan(asked);
  result.available = result.size();
  if (asked.max_tokens && *asked.max_tokens < result.available) {
    const auto kept = static_cast<std::size_t>(*asked.max_tokens);
    result.coordinates.resize(kept);
    result.batch.resize(kept);
  }
  return result;
}

}  // namespace winnow::eval
