// SPDX-License-Identifier: Apache-2.0
/// \file
/// From points to voxels, the tokens of a point cloud network.
#pragma once

#include <vector>

#include "support/point.hpp"

namespace winnow::support {

/// The mean position of the points in each non-empty voxel, voxels in the order of their first
/// point. Cell borders lie at multiples of `size`.
/// \param points finite.
/// \param size edge of a voxel in metres, > 0.
/// \throw input_error if the points span more than 2²¹ voxels on an axis.
std::vector<point> voxelise(const std::vector<point>& points, double size);

}  // namespace winnow::support
