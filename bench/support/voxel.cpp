// SPDX-License-Identifier: Apache-2.0
#include "support/voxel.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "support/input_error.hpp"

namespace winnow::support {
namespace {

constexpr int bits_per_axis = 21;

struct keyed_point {
  std::uint64_t cell;
  std::size_t index;
};

/// The points sorted by cell, points of one cell in their own order.
std::vector<keyed_point> sort_by_cell(const std::vector<point>& points, double size) {
  std::array<double, 3> low{};
  for (int axis = 0; axis < 3; ++axis) {
    const auto [least, most] =
        std::minmax_element(points.begin(), points.end(),
                            [&](const point& a, const point& b) { return a[axis] < b[axis]; });
    low[axis] = std::floor((*least)[axis] / size);
    const double cells = std::floor((*most)[axis] / size) - low[axis] + 1;
    if (!(cells <= 1 << bits_per_axis)) {
      char message[120];
      std::snprintf(message, sizeof message, "the points span %.3g voxels of %g m along %c", cells,
                    size, "xyz"[axis]);
      throw input_error("voxel size", message);
    }
  }
  std::vector<keyed_point> keyed;
  keyed.reserve(points.size());
  for (std::size_t n = 0; n < points.size(); ++n) {
    std::uint64_t cell = 0;
    for (int axis = 2; axis >= 0; --axis) {
      const double index = std::floor(points[n][axis] / size) - low[axis];
      cell = cell << bits_per_axis | static_cast<std::uint64_t>(index);
    }
    keyed.push_back({cell, n});
  }
  std::sort(keyed.begin(), keyed.end(), [](const keyed_point& a, const keyed_point& b) {
    return a.cell != b.cell ? a.cell < b.cell : a.index < b.index;
  });
  return keyed;
}

}  // namespace

std::vector<point> voxelise(const std::vector<point>& points, double size) {
  if (points.empty()) return {};
  const std::vector<keyed_point> keyed = sort_by_cell(points, size);

  struct voxel {
    std::size_t first_point;
    point mean;
  };
  std::vector<voxel> voxels;
  for (std::size_t begin = 0, end; begin < keyed.size(); begin = end) {
    std::array<double, 3> sum{};
    for (end = begin; end < keyed.size() && keyed[end].cell == keyed[begin].cell; ++end) {
      for (int axis = 0; axis < 3; ++axis) sum[axis] += points[keyed[end].index][axis];
    }
    voxel& added = voxels.emplace_back();
    added.first_point = keyed[begin].index;
    for (int axis = 0; axis < 3; ++axis) {
      added.mean[axis] = static_cast<float>(sum[axis] / static_cast<double>(end - begin));
    }
  }
  std::sort(voxels.begin(), voxels.end(),
            [](const voxel& a, const voxel& b) { return a.first_point < b.first_point; });

  std::vector<point> means;
  means.reserve(voxels.size());
  for (const voxel& each : voxels) means.push_back(each.mean);
  return means;
}

}  // namespace winnow::support
