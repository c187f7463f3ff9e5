// SPDX-License-Identifier: Apache-2.0
/// \file
/// Reads the positions out of a point cloud file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/input_error.hpp"
#include "support/point.hpp"

namespace winnow::support {

enum class scan_format : int {
  kitti,     ///< records of float32 x y z intensity
  nuscenes,  ///< records of float32 x y z intensity ring
  xyzrgb,    ///< records of float32 x y z r g b
  npy,       ///< [N, 3 or more] float32 or float64, x y z first
  ply        ///< ascii or binary_little_endian, x y z float or double among any other properties
};

/// The name that `--format` takes.
const char* to_string(scan_format format) noexcept;
std::optional<scan_format> scan_format_of(std::string_view name) noexcept;

struct scan {
  scan_format format = scan_format::kitti;
  std::vector<point> points;
};

/// Reads a whole file's bytes.
///
/// Without `format`, .npy and .ply are known by how they begin. Files of bare records have no
/// header: they are read as the one layout whose record size divides the file and whose columns
/// make sense throughout (rings are small integers, colours lie in 0 to 255, and so on). \param
/// name stands for the file in messages, and its extension must agree with the content. \throw
/// input_error for an empty, truncated or broken file, a non-finite coordinate, and for
///        records that fit no layout or several. Allocates in proportion to `bytes`.
scan parse_scan(std::vector<std::byte> bytes, const std::string& name,
                std::optional<scan_format> format = {});

/// \throw input_error, also for a missing file.
scan read_scan(const std::filesystem::path& path, std::optional<scan_format> format = {});

}  // namespace winnow::support
