// SPDX-License-Identifier: Apache-2.0
#include "support/scan_workload.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include "support/npy.hpp"
#include "support/random.hpp"
#include "support/voxel.hpp"

namespace winnow::support {
namespace {

using vector3 = std::array<double, 3>;
constexpr double pi = 3.141592653589793;
constexpr double nothing = std::numeric_limits<double>::infinity();

/// An ellipsoid that rays reach into before something stops them: a crown or a bush.
struct foliage {
  vector3 centre;
  vector3 radius;
  double depth;  ///< the mean length of a ray inside
};

struct meadow {
  double phase[4];
  std::vector<foliage> plants;
};

/// Gentle waves of some decimetres.
double ground_height(const meadow& scene, double x, double y) {
  return 0.18 * std::sin(0.21 * x + scene.phase[0]) * std::cos(0.17 * y + scene.phase[1]) +
         0.10 * std::sin(0.55 * x + 0.4 * y + scene.phase[2]) + 0.02 * x * std::sin(scene.phase[3]);
}

/// Places spread evenly over a ring, so that the density falls with the distance as it does around
/// a path.
vector3 place(random_source& random, double nearest, double farthest) {
  const double distance = random.uniform(nearest, farthest);
  const double azimuth = random.uniform(0.0, 2.0 * pi);
  return {distance * std::cos(azimuth), distance * std::sin(azimuth), 0.0};
}

meadow build_meadow(const meadow_options& options, random_source& random) {
  meadow scene;
  for (double& phase : scene.phase) phase = random.uniform(0.0, 2.0 * pi);
  for (int i = 0; i < options.trees; ++i) {
    foliage crown;
    crown.centre = place(random, options.nearest_tree, options.farthest_tree);
    const double top = random.uniform(2.5, 8.0);
    const double bottom = random.uniform(-0.8, 0.8);
    crown.radius = {random.uniform(1.0, 3.0), random.uniform(1.0, 3.0), (top - bottom) / 2};
    crown.centre[2] = (top + bottom) / 2;
    crown.depth = options.tree_depth;
    scene.plants.push_back(crown);
  }
  for (int i = 0; i < options.bushes; ++i) {
    foliage bush;
    bush.centre = place(random, options.nearest_bush, 30.0);
    const double top = random.uniform(-0.9, 0.6) + options.height;
    bush.radius = {random.uniform(0.5, 2.0), random.uniform(0.5, 2.0), top};
    bush.centre[2] = -options.height;
    bush.depth = 0.5 * options.tree_depth;
    scene.plants.push_back(bush);
  }
  return scene;
}

/// Where a ray from the origin is inside an ellipsoid: [enter, leave], empty if it misses.
std::array<double, 2> inside(const foliage& plant, const vector3& direction) {
  double a = 0.0, b = 0.0, c = -1.0;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const double d = direction[axis] / plant.radius[axis];
    const double p = plant.centre[axis] / plant.radius[axis];
    a += d * d;
    b += d * p;
    c += p * p;
  }
  const double discriminant = b * b - a * c;
  if (discriminant <= 0.0 || b <= 0.0) return {nothing, 0.0};
  const double root = std::sqrt(discriminant);
  return {(b - root) / a, (b + root) / a};
}

double ground_distance(const meadow& scene, const meadow_options& options, const vector3& direction,
                       double grass) {
  if (direction[2] > -0.005) return nothing;
  double distance = options.height / -direction[2];
  for (int turn = 0; turn < 4; ++turn) {
    const double x = distance * direction[0];
    const double y = distance * direction[1];
    const double below = options.height - ground_height(scene, x, y) - grass;
    distance = std::max(below, 0.2) / -direction[2];
  }
  return distance;
}

}  // namespace

std::vector<point> simulate_meadow(const meadow_options& options) {
  random_source random(options.seed * 0x9e3779b97f4a7c15u + 1);
  const meadow scene = build_meadow(options, random);
  // Plants by the columns they may meet.
  std::vector<std::vector<const foliage*>> met(static_cast<std::size_t>(options.columns));
  for (const foliage& plant : scene.plants) {
    const double distance = std::hypot(plant.centre[0], plant.centre[1]);
    const double widest = std::max(plant.radius[0], plant.radius[1]);
    const double half = std::asin(std::min(1.0, widest / distance)) / (2 * pi) * options.columns;
    const double middle = std::atan2(plant.centre[1], plant.centre[0]) / (2 * pi) * options.columns;
    for (int i = static_cast<int>(std::floor(middle - half)); i <= middle + half + 1; ++i)
      met[static_cast<std::size_t>((i % options.columns + options.columns) % options.columns)]
          .push_back(&plant);
  }
  constexpr double highest = 16.6 * pi / 180.0;
  std::vector<point> result;
  for (int column = 0; column < options.columns; ++column) {
    const double azimuth = 2.0 * pi * column / options.columns;
    for (int beam = 0; beam < options.beams; ++beam) {
      const double elevation = highest - 2.0 * highest * beam / std::max(options.beams - 1, 1);
      const vector3 direction = {std::cos(elevation) * std::cos(azimuth),
                                 std::cos(elevation) * std::sin(azimuth), std::sin(elevation)};
      // Every ray draws the same number of times, whatever it meets.
      const double grass = options.grass * random.normal();
      const double reach = -std::log(1.0 - random.uniform());
      const double luck = random.uniform();
      const double noise = 0.015 * random.normal();
      double hit = ground_distance(scene, options, direction, grass);
      // A grazing ray returns less often the farther it goes.
      if (luck > 1.0 / (1.0 + std::pow(hit / options.ground_range, 6.0))) hit = nothing;
      for (const foliage* plant : met[static_cast<std::size_t>(column)]) {
        const auto [enter, leave] = inside(*plant, direction);
        const double stop = enter + reach * plant->depth;
        if (stop < leave && stop < hit) hit = stop;
      }
      const double range = hit + noise;
      if (!(range >= 0.8 && range <= 105.0)) continue;
      result.push_back({static_cast<float>(range * direction[0]),
                        static_cast<float>(range * direction[1]),
                        static_cast<float>(range * direction[2])});
    }
  }
  return result;
}

std::vector<scan_stage> simulate_stages(const meadow_options& options, int scans) {
  std::vector<scan_stage> stages(scan_stages);
  for (int scan = 0; scan < scans; ++scan) {
    meadow_options sensor = options;
    sensor.seed += static_cast<std::uint64_t>(scan);
    std::vector<point> voxels = simulate_meadow(sensor);
    double edge = 0.05;
    for (scan_stage& stage : stages) {
      voxels = voxelise(voxels, edge);
      edge *= 2.0;
      for (const point& voxel : voxels) {
        stage.coordinates.insert(stage.coordinates.end(), voxel.begin(), voxel.end());
        stage.batch.push_back(scan);
      }
    }
  }
  return stages;
}

std::vector<scan_stage> read_stages(const std::filesystem::path& folder) {
  std::vector<scan_stage> stages;
  for (int number = 1; number <= scan_stages; ++number) {
    const std::string name = "stage" + std::to_string(number);
    const npy_array coordinates = read_npy(folder / (name + "_coords.npy"));
    const npy_array batch = read_npy(folder / (name + "_batch.npy"));
    const auto* points = coordinates.as<float>();
    const auto* items = batch.as<std::int32_t>();
    scan_stage& stage = stages.emplace_back();
    stage.coordinates.assign(points, points + coordinates.elements());
    stage.batch.assign(items, items + batch.elements());
  }
  return stages;
}

const char* workload_source() {
  return std::getenv("WINNOW_WORKLOADS") != nullptr ? "files" : "simulated";
}

const std::vector<scan_stage>& workload_stages() {
  static const std::vector<scan_stage> stages = [] {
    const char* folder = std::getenv("WINNOW_WORKLOADS");
    return folder != nullptr ? read_stages(folder) : simulate_stages();
  }();
  return stages;
}

}  // namespace winnow::support
