// SPDX-License-Identifier: Apache-2.0
/// \file
/// From a coordinate to its cell and position: the FP32 arithmetic of design section "windows",
/// one token and axis at a time, the same on host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "winnow/detail/util/fp32.hpp"
#include "winnow/relative_position.hpp"
#include "winnow/window.hpp"

namespace winnow::detail {

/// Cells have to lie within ±2³⁰ of the origin.
inline constexpr float cell_limit = 1073741824.0f;

/// How the cells of one axis are cut.
struct axis_rule {
  float size = 1.0f;
  float shift = 0.0f;     ///< size / 2 when shifted
  std::int32_t wrap = 0;  ///< cells around the circle, 0: no circle
};

struct located {
  std::int32_t cell = 0;
  std::int32_t position = 0;
  bool in_range = false;
};

/// \param relative the coordinate minus the origin, in FP32.
WINNOW_HOST_DEVICE inline located locate(float relative, const axis_rule& rule,
                                         int quant_length) noexcept {
  const float u = divide(add(relative, rule.shift), rule.size);
  located result;
  result.in_range = u > -cell_limit && u < cell_limit;  // false for NaN
  if (!result.in_range) return result;
  const float cell = floorf(u);
  const int position = static_cast<int>(multiply(add(u, -cell), static_cast<float>(quant_length)));
  result.cell = static_cast<std::int32_t>(cell);
  // u - cell rounds to 1 for u just below 0.
  result.position = position < quant_length ? position : quant_length - 1;
  if (rule.wrap > 0) {
    result.cell %= rule.wrap;
    if (result.cell < 0) result.cell += rule.wrap;
  }
  return result;
}

/// (theta, beta, r), angles in degrees. theta is clamped to [0, 360], which only FP32's pi > π
/// would leave.
WINNOW_HOST_DEVICE inline void spherical(float x, float y, float z, float (&result)[3]) noexcept {
  constexpr float degrees = 57.2957795f;
  const float xx_yy = multiply_add(y, y, multiply(x, x));
  const float theta = multiply_add(atan2f(y, x), degrees, 180.0f);
  result[0] = theta < 0.0f ? 0.0f : theta > 360.0f ? 360.0f : theta;
  result[1] = multiply(atan2f(square_root(xx_yy), z), degrees);
  result[2] = square_root(multiply_add(z, z, xx_yy));
}

/// Cells around the circle for windows of `degrees`; 0 if 360 is not a multiple of it.
inline std::int32_t cells_around(float degrees) noexcept {
  const double cells = 360.0 / static_cast<double>(degrees);
  const double whole = std::nearbyint(cells);
  const bool fits = whole >= 1.0 && whole < 1e9 && std::fabs(cells - whole) < 1e-5 * whole;
  return fits ? static_cast<std::int32_t>(whole) : 0;
}

}  // namespace winnow::detail
