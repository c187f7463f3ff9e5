// SPDX-License-Identifier: Apache-2.0
/// \file
/// The index arithmetic of rolled image grids, on host and device.
#pragma once

#include <cstdint>

#include "winnow/relative_position.hpp"
#include "winnow/window.hpp"

namespace winnow::detail {

struct grid_token {
  std::int32_t token;
  packed_position position;
};

struct grid_place {
  std::int64_t window;  ///< over all images
  packed_position position;
};

/// Column and row in the window, and on which side of the two seams a rolled place lies.
WINNOW_HOST_DEVICE constexpr packed_position grid_position(const grid_window& grid, int rolled_y,
                                                           int rolled_x) noexcept {
  const int below = rolled_y >= grid.height - grid.shift ? 2 : 0;
  const int right = rolled_x >= grid.width - grid.shift ? 1 : 0;
  return pack_position(rolled_x % grid.window, rolled_y % grid.window,
                       grid.shift > 0 ? below + right : 0);
}

/// The `t`-th token, in raster order, of window `w` (over all images) of a grid without padding.
WINNOW_HOST_DEVICE constexpr grid_token locate_in_grid(const grid_window& grid, std::int64_t w,
                                                       std::int32_t t) noexcept {
  const std::int32_t columns = grid.width / grid.window;
  const std::int32_t per_image = columns * (grid.height / grid.window);
  const auto image = static_cast<std::int32_t>(w / per_image);
  const auto id = static_cast<std::int32_t>(w % per_image);
  const std::int32_t rolled_y = id / columns * grid.window + t / grid.window;
  const std::int32_t rolled_x = id % columns * grid.window + t % grid.window;
  const std::int32_t y = (rolled_y + grid.shift) % grid.height;
  const std::int32_t x = (rolled_x + grid.shift) % grid.width;
  return {(image * grid.height + y) * grid.width + x, grid_position(grid, rolled_y, rolled_x)};
}

/// The inverse: which window a token lies in, and where.
WINNOW_HOST_DEVICE constexpr grid_place place_in_grid(const grid_window& grid,
                                                      std::int64_t token) noexcept {
  const std::int64_t image = token / (std::int64_t{grid.height} * grid.width);
  const auto x = static_cast<std::int32_t>(token % grid.width);
  const auto y = static_cast<std::int32_t>(token / grid.width % grid.height);
  const std::int32_t rolled_y = (y - grid.shift + grid.height) % grid.height;
  const std::int32_t rolled_x = (x - grid.shift + grid.width) % grid.width;
  const std::int32_t columns = grid.width / grid.window;
  const std::int64_t per_image = std::int64_t{columns} * (grid.height / grid.window);
  return {image * per_image + rolled_y / grid.window * columns + rolled_x / grid.window,
          grid_position(grid, rolled_y, rolled_x)};
}

}  // namespace winnow::detail
