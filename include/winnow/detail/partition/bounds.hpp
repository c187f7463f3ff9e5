// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a caller's knowledge of the data says about the number of cells, and so about the width of
/// sort keys. Uses the device's own FP32 arithmetic at the ends of each range: every step of it
/// rises with the coordinate, so no token between the ends can leave the range of cells.
///
/// Needs the CUDA toolkit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "winnow/detail/partition/cell.hpp"
#include "winnow/detail/partition/check.hpp"
#include "winnow/partition.hpp"

namespace winnow::detail {

/// More cells, batch items or labels than int32 counts there cannot be.
inline constexpr std::int64_t unknown_extent = std::int64_t{1} << 31;

/// The cell of an extreme coordinate, clamped to where cells may lie. Wrapping is left out.
WINNOW_HOST_DEVICE inline std::int32_t extreme_cell(float relative, axis_rule rule) noexcept {
  rule.wrap = 0;
  const located place = locate(relative, rule, 1);
  constexpr auto limit = static_cast<std::int32_t>(cell_limit);
  return place.in_range ? place.cell : relative < 0.0f ? -limit : limit - 1;
}

inline status check_bounds(const partition_bounds& bounds) noexcept {
  WINNOW_REQUIRE(bounds.batch_items >= 0, "bounds.batch_items: %d, must be >= 0",
                 bounds.batch_items);
  WINNOW_REQUIRE(bounds.labels >= 0, "bounds.labels: %d, must be >= 0", bounds.labels);
  for (int a = 0; bounds.box && a < 3; ++a) {
    const double lower = bounds.box->lower[a];
    const double upper = bounds.box->upper[a];
    constexpr double largest = std::numeric_limits<float>::max();
    WINNOW_REQUIRE(lower >= -largest && upper <= largest && lower <= upper,
                   "bounds.box: [%g, %g] on axis %d, must be a range of finite float32", lower,
                   upper, a);
  }
  return {};
}

/// Cells from the one of `low` to the one of `high`, both relative to the origin.
inline std::int64_t cells_between(float low, float high, const axis_rule& rule) noexcept {
  if (rule.wrap > 0) return rule.wrap;
  return std::max<std::int64_t>(
      1, std::int64_t{extreme_cell(high, rule)} - extreme_cell(low, rule) + 1);
}

inline std::int64_t batch_extent(const point_set& points, const partition_bounds& bounds) noexcept {
  return points.batch == nullptr ? 1 : bounds.batch_items > 0 ? bounds.batch_items : unknown_extent;
}

/// The most cells on x, y and z, and batch items, of cubic windows.
inline void bound_extents(const cubic_window& window, const axis_rule (&rules)[3],
                          const point_set& points, const partition_bounds& bounds,
                          std::int64_t (&extents)[4]) noexcept {
  extents[3] = batch_extent(points, bounds);
  for (int a = 0; a < 3; ++a) {
    extents[a] = unknown_extent;
    if (!bounds.box) continue;
    const double lower = bounds.box->lower[a];
    const double upper = bounds.box->upper[a];
    float low = 0.0f;  // without a given origin the lowest token is the origin
    float high = 0.0f;
    if (points.coordinates.type == dtype::int32) {
      const auto whole = [](double x) {
        return static_cast<std::int64_t>(std::clamp(x, -2147483648.0, 2147483647.0));
      };
      const std::int64_t first = whole(std::ceil(lower));
      const std::int64_t origin =
          window.origin ? static_cast<std::int64_t>((*window.origin)[a]) : first;
      low = static_cast<float>(first - origin);
      high = static_cast<float>(whole(std::floor(upper)) - origin);
    } else {
      const float origin = static_cast<float>(window.origin ? (*window.origin)[a] : lower);
      low = add(static_cast<float>(lower), -origin);
      high = add(static_cast<float>(upper), -origin);
    }
    extents[a] = cells_between(low, high, rules[a]);
  }
}

/// The same of spherical windows, whose angles are always bounded.
inline void bound_extents(const spherical_window& window, const axis_rule (&rules)[3],
                          const point_set& points, const partition_bounds& bounds,
                          std::int64_t (&extents)[4]) noexcept {
  extents[3] = batch_extent(points, bounds);
  double farthest = std::numeric_limits<float>::max();
  if (bounds.box) {
    double corner[3];
    for (int a = 0; a < 3; ++a)
      corner[a] = std::max(std::fabs(bounds.box->lower[a]), std::fabs(bounds.box->upper[a]));
    // A little more than the farthest corner, for the rounding of the radius.
    farthest = std::min(farthest, 1.000001 * std::hypot(corner[0], corner[1], corner[2]));
  }
  const double last[3] = {360.0, 180.001, farthest};
  for (int a = 0; a < 3; ++a) {
    const float origin = window.origin ? static_cast<float>((*window.origin)[a]) : 0.0f;
    extents[a] = cells_between(-origin, add(static_cast<float>(last[a]), -origin), rules[a]);
  }
}

/// The width of keys in [0, product of the extents], at most 63 bits.
inline int key_bits(const std::int64_t (&extents)[4]) noexcept {
  std::int64_t span = 1;
  for (std::int64_t extent : extents)
    if (!multiply_checked(span, extent, span)) return 63;
  int bits = 1;
  while (bits < 63 && span >> bits != 0) ++bits;
  return bits;
}

}  // namespace winnow::detail
