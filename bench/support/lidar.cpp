// SPDX-License-Identifier: Apache-2.0
#include "support/lidar.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "support/random.hpp"

namespace winnow::support {
namespace {

using vector3 = std::array<double, 3>;
constexpr double degree = 3.141592653589793 / 180.0;
constexpr double nothing = std::numeric_limits<double>::infinity();

struct box {
  vector3 low, high;
};

/// A vertical cylinder; its top is too high or too small to matter.
struct pole {
  double x, y, radius, top;
};

/// Everything in the street's frame: x along the street, the sensor above the origin, z = 0 at the
/// sensor.
struct street {
  double road;  ///< z of the road
  std::vector<box> boxes;
  std::vector<pole> poles;
};

constexpr double street_end = 110.0;
constexpr double kerb = 5.6;  ///< distance of the pavement from the middle of the road

void add_facades(street& result, random_source& random, int side) {
  for (double x = -street_end; x < street_end;) {
    const double length = random.uniform(9.0, 22.0);
    const double front = random.uniform(8.5, 10.5);
    const double top = result.road + random.uniform(6.0, 18.0);
    const double depth = 12.0;
    result.boxes.push_back({{x, side > 0 ? front : -front - depth, result.road},
                            {x + length, side > 0 ? front + depth : -front, top}});
    // Some houses stand apart, and behind the gap the view is free.
    x += length + (random.uniform() < 0.3 ? random.uniform(2.0, 7.0) : 0.0);
  }
}

void add_car(street& result, random_source& random, double x, double y) {
  const double length = random.uniform(3.7, 4.8);
  const double half_width = random.uniform(0.82, 0.95);
  const double waist = result.road + random.uniform(0.8, 1.0);
  const double roof = waist + random.uniform(0.5, 0.8);
  result.boxes.push_back(
      {{x, y - half_width, result.road + 0.2}, {x + length, y + half_width, waist}});
  result.boxes.push_back({{x + 0.25 * length, y - 0.9 * half_width, waist},
                          {x + 0.85 * length, y + 0.9 * half_width, roof}});
}

void add_parked_cars(street& result, random_source& random, int side) {
  for (double x = -street_end; x < street_end; x += random.uniform(5.5, 7.5)) {
    if (random.uniform() < 0.45) add_car(result, random, x, side * random.uniform(4.3, 4.6));
  }
}

void add_moving_cars(street& result, random_source& random, int side) {
  for (double x = -street_end; x < street_end; x += random.uniform(18.0, 40.0)) {
    // Not where the sensor's own car is.
    if (std::abs(x) > 9.0) add_car(result, random, x, side * random.uniform(1.5, 1.8));
  }
}

void add_poles(street& result, random_source& random, int side) {
  for (double x = -street_end; x < street_end; x += random.uniform(12.0, 22.0)) {
    const double radius = random.uniform(0.06, 0.14);
    const double top = result.road + random.uniform(3.0, 8.0);
    result.poles.push_back({x, side * (kerb + 0.5), radius, top});
  }
}

street build_street(random_source& random, double sensor_height) {
  street result;
  result.road = -sensor_height;
  for (const int side : {-1, 1}) {
    const double inner = side * kerb;
    const double outer = side * 40.0;
    result.boxes.push_back({{-street_end, std::min(inner, outer), result.road - 1.0},
                            {street_end, std::max(inner, outer), result.road + 0.12}});
    add_facades(result, random, side);
    add_parked_cars(result, random, side);
    add_moving_cars(result, random, side);
    add_poles(result, random, side);
  }
  return result;
}

// The distance at which a ray from the origin meets each thing; `nothing` if it does not.

double distance_to(const box& target, const vector3& direction) {
  double enter = 0.0;
  double leave = nothing;
  for (int axis = 0; axis < 3; ++axis) {
    // A component of zero gives infinities of the right sign, unless the origin lies on a face.
    const double inverse = 1.0 / direction[axis];
    const double one = target.low[axis] * inverse;
    const double other = target.high[axis] * inverse;
    enter = std::max(enter, std::min(one, other));
    leave = std::min(leave, std::max(one, other));
  }
  return enter > 0.0 && enter <= leave ? enter : nothing;
}

double distance_to(const pole& target, const vector3& direction) {
  const double a = direction[0] * direction[0] + direction[1] * direction[1];
  const double b = target.x * direction[0] + target.y * direction[1];
  const double c = target.x * target.x + target.y * target.y - target.radius * target.radius;
  const double discriminant = b * b - a * c;
  if (discriminant < 0.0 || b <= 0.0) return nothing;
  const double distance = (b - std::sqrt(discriminant)) / a;
  return distance * direction[2] <= target.top ? distance : nothing;
}

double first_hit(const street& scene, const vector3& direction) {
  double nearest = direction[2] < 0.0 ? scene.road / direction[2] : nothing;
  for (const box& target : scene.boxes) nearest = std::min(nearest, distance_to(target, direction));
  for (const pole& target : scene.poles)
    nearest = std::min(nearest, distance_to(target, direction));
  return nearest;
}

}  // namespace

lidar_scan simulate_lidar(const lidar_options& options) {
  random_source random(options.seed);
  const street scene = build_street(random, options.height);
  const double heading = random.uniform(0.0, 360.0) * degree;

  constexpr double highest = 2.0 * degree;
  constexpr double lowest = -24.8 * degree;
  const double step = options.beams > 1 ? (highest - lowest) / (options.beams - 1) : 0.0;

  lidar_scan result;
  const std::size_t rays =
      static_cast<std::size_t>(options.columns) * static_cast<std::size_t>(options.beams);
  result.points.reserve(rays);
  result.beams.reserve(rays);
  for (int column = 0; column < options.columns; ++column) {
    const double azimuth = 360.0 * degree * column / options.columns;
    const double street_azimuth = azimuth - heading;
    for (int beam = 0; beam < options.beams; ++beam) {
      const double elevation = highest - step * beam;
      const double level = std::cos(elevation);
      const double up = std::sin(elevation);
      const double hit = first_hit(
          scene, {level * std::cos(street_azimuth), level * std::sin(street_azimuth), up});
      // A ray that meets nothing still draws its noise, so that one hit more or less, for a
      // rounding, does not change the noise of the others.
      const double range = hit + options.noise * random.normal();
      if (!(range >= options.min_range && range <= options.max_range)) continue;
      result.points.push_back({static_cast<float>(range * level * std::cos(azimuth)),
                               static_cast<float>(range * level * std::sin(azimuth)),
                               static_cast<float>(range * up)});
      result.beams.push_back(static_cast<std::uint16_t>(beam));
    }
  }
  return result;
}

}  // namespace winnow::support
