// SPDX-License-Identifier: Apache-2.0
/// \file
/// Relative indices: which table row a pair of tokens selects on each axis.
///
/// Every function runs on host and device and gives the same integer on both.
#pragma once

#include <cstdint>

#include "winnow/detail/util/fp32.hpp"
#include "winnow/storage.hpp"
#include "winnow/window.hpp"

namespace winnow {

/// Three positions in one word: x in bits 0-7, y in 8-15, z in 16-23.
///
/// In a grid partition x and y are the column and row inside the window and z is the seam region:
/// only tokens of equal region attend to each other.
using packed_position = std::uint32_t;

WINNOW_HOST_DEVICE constexpr packed_position pack_position(int x, int y, int z) noexcept {
  return static_cast<std::uint32_t>(x) | static_cast<std::uint32_t>(y) << 8 |
         static_cast<std::uint32_t>(z) << 16;
}
WINNOW_HOST_DEVICE constexpr int unpack_position(packed_position position, int axis) noexcept {
  return static_cast<int>((position >> (8 * axis)) & 0xffu);
}

/// Row of an axis whose index is a difference of positions: `p_i - p_j + L - 1`, in [0, 2L-2].
WINNOW_HOST_DEVICE constexpr int difference_row(int p_i, int p_j, int quant_length) noexcept {
  return p_i - p_j + quant_length - 1;
}

/// Row of the radial axis, in [0, 2L-1].
///
/// `delta = r_i - r_j` in FP32. With n the number of thresholds a, 2a, 4a, 6a, 10a, 14a, 22a, 30a …
/// that |delta| reaches, the row is `L + n` for delta >= 0 and `L - 1 - n` otherwise, clamped. The
/// thresholds are where the exponent or the leading fraction bit of `|delta|/a + 2` changes, so n is
/// read off the float's bits; a |delta| that this FP32 sum rounds up to a threshold reaches it.
/// Source: the exponential split of SphereFormer.
/// \param inverse_a `1.0f / a`, rounded once.
WINNOW_HOST_DEVICE inline int exponential_row(float delta, float inverse_a,
                                              int quant_length) noexcept {
  const float magnitude = delta < 0.0f ? -delta : delta;
  const int n =
      static_cast<int>(detail::float_bits(detail::multiply_add(magnitude, inverse_a, 2.0f)) >> 22) -
      256;
  const int row = delta < 0.0f ? quant_length - 1 - n : quant_length + n;
  return row < 0 ? 0 : row > 2 * quant_length - 1 ? 2 * quant_length - 1 : row;
}

/// Row of Swin's bias table: `(y_i - y_j + w - 1)(2w - 1) + (x_i - x_j + w - 1)`.
WINNOW_HOST_DEVICE constexpr int bias_row(packed_position i, packed_position j,
                                          int window) noexcept {
  return difference_row(unpack_position(i, 1), unpack_position(j, 1), window) * (2 * window - 1) +
         difference_row(unpack_position(i, 0), unpack_position(j, 0), window);
}

/// How the positions of a partition become table rows.
enum class relative_kind : int {
  none,         ///< no positions: only plain attention
  differences,  ///< three axes of differences (cubic windows, labels with positions)
  spherical,  ///< two axes of differences and the radial axis (spherical windows, labels + radius)
  grid        ///< Swin's two-dimensional index and the seam
};

struct relative_position {
  relative_kind kind = relative_kind::none;
  /// Positions per axis; the window edge for a grid.
  int quant_length = 1;
  /// First threshold of the radial axis; spherical only.
  float exponential_a = 0.0f;

  /// Rows per axis of contextual tables; 0 where there are none.
  [[nodiscard]] constexpr int table_rows() const noexcept {
    return kind == relative_kind::differences ? 2 * quant_length - 1
           : kind == relative_kind::spherical ? 2 * quant_length
                                              : 0;
  }
  /// Rows of the bias table; 0 where there is none.
  [[nodiscard]] constexpr int bias_rows() const noexcept {
    return kind == relative_kind::grid ? (2 * quant_length - 1) * (2 * quant_length - 1) : 0;
  }
};

}  // namespace winnow
