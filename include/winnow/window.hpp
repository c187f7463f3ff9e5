// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a window is: cubic and spherical windows of points, windows given as labels, and the grid
/// of an image. These are plain descriptions; `partition.hpp` turns them into index lists.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>

namespace winnow {

/// The largest quant length: a position must fit eight bits.
inline constexpr int max_quant_length = 256;

namespace detail {
/// A product of sizes; -1 where one is negative, the largest int64 where it overflows.
constexpr std::int64_t saturating_product(std::int64_t a, std::int64_t b) noexcept {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  if (a < 0 || b < 0) return -1;
  return a > 0 && b > most / a ? most : a * b;
}
}  // namespace detail

/// Cubes of a fixed size (Stratified Transformer, SphereFormer).
///
/// Per axis, in FP32: `u = ((x - origin) + shift) / size` with `shift = size/2` if shifted, else 0;
/// `cell = floor(u)`; `position = min(quant_length - 1, int((u - cell) * quant_length))`.
/// Windows are ordered by (batch, z, y, x), x fastest, and never cross a batch item.
struct cubic_window {
  /// Edge lengths x, y, z in the unit of the coordinates; each finite and > 0.
  std::array<float, 3> size{};
  bool shifted = false;
  /// Positions per axis, 1 to 256. Tables have `2 * quant_length - 1` rows.
  int quant_length = 1;
  /// Where cell 0 begins. Absent: the minimum over all tokens of all batch items. Given: no
  /// reduction runs and windows do not move with the data. For float32 coordinates it is rounded to
  /// float; for int32 coordinates it must be integral and fit, and is subtracted as an integer.
  std::optional<std::array<double, 3>> origin{};
};

/// The same construction on spherical coordinates (theta, beta, r) about the sensor (SphereFormer):
/// `theta = atan2(y, x) + 180°`, `beta = atan2(sqrt(x² + y²), z)`, both in degrees, `r = |x|`.
struct spherical_window {
  /// Degrees, degrees, and the unit of the coordinates; each finite and > 0.
  std::array<float, 3> size{};
  bool shifted = false;
  /// Positions per axis, 1 to 256. Tables have `2 * quant_length` rows.
  int quant_length = 1;
  /// First threshold of the radial axis's exponential split, in the unit of the coordinates; > 0.
  float exponential_a = 0.0f;
  /// As in `cubic_window`, on (theta, beta, r).
  std::optional<std::array<double, 3>> origin{};
  /// Joins the windows on both sides of theta = 0°; 360 must then be a multiple of the theta size.
  bool wrap_theta = false;
};

/// Windows given as one int32 id per token. Ids order the windows; negative ids are in no window.
struct labels_window {
  /// Positions per axis, 1 to 256; 1 when tokens come without positions.
  int quant_length = 1;
  /// With a radius per token, the third axis is the exponential split with this first threshold
  /// (> 0) and tables have `2 * quant_length` rows; without, `2 * quant_length - 1`.
  float exponential_a = 0.0f;
};

/// The windows of images (Swin, SparseViT): `batch` images of `height` × `width` tokens, row-major.
///
/// The image is rolled by `-shift` on both axes, `rolled(y, x) = image((y + shift) % height,
/// (x + shift) % width)`, and cut into `window` × `window` tiles; a window's id is its raster index
/// in the rolled image and its tokens follow in raster order. Tokens on different sides of the seam
/// that rolling makes do not attend to each other.
///
/// A partition wants height and width to be multiples of `window`. Selection pads the features
/// with zeros to the next multiple.
struct grid_window {
  int batch = 0;
  int height = 0;
  int width = 0;
  int window = 0;  ///< edge in tokens, 1 to 256
  int shift = 0;   ///< 0 to window - 1

  /// Windows down and across one (padded) image.
  [[nodiscard]] constexpr int rows() const noexcept {
    return window > 0 ? static_cast<int>((std::int64_t{height} + window - 1) / window) : 0;
  }
  [[nodiscard]] constexpr int columns() const noexcept {
    return window > 0 ? static_cast<int>((std::int64_t{width} + window - 1) / window) : 0;
  }
  /// Windows of one image.
  [[nodiscard]] constexpr std::int64_t windows_per_image() const noexcept {
    return std::int64_t{rows()} * columns();
  }
  /// Windows of all images; saturates, so that absurd sizes stay absurd.
  [[nodiscard]] constexpr std::int64_t windows() const noexcept {
    return detail::saturating_product(batch, windows_per_image());
  }
  /// Tokens of all images, padding not counted; saturates.
  [[nodiscard]] constexpr std::int64_t tokens() const noexcept {
    return detail::saturating_product(batch, std::int64_t{height} * width);
  }
};

}  // namespace winnow
