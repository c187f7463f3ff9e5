// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "support/input_error.hpp"
#include "support/point.hpp"

namespace winnow::support {

/// The x, y, z (float or double) of the vertices of a PLY file, ascii or binary_little_endian.
/// Other properties and the elements before the vertices are skipped, lists too; what follows the
/// vertices is not looked at. Source: Turk, The PLY Polygon File Format.
/// \param name stands for the file in messages.
/// \throw input_error for anything else. Allocates in proportion to `bytes`.
std::vector<point> parse_ply(std::string_view bytes, const std::string& name);

}  // namespace winnow::support
