// SPDX-License-Identifier: Apache-2.0
/// \file
/// Checks of a builder's arguments that need no look at the tokens.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "winnow/detail/partition/cell.hpp"
#include "winnow/detail/partition/grid.hpp"
#include "winnow/detail/selection/validate.hpp"
#include "winnow/detail/util/check_view.hpp"
#include "winnow/detail/util/parallel.hpp"
#include "winnow/partition.hpp"

namespace winnow::detail {

inline constexpr std::int64_t max_tokens = std::numeric_limits<std::int32_t>::max();

/// The number of tokens, where a pointer to it is given in host memory.
inline status read_count(const std::int32_t* pointer, std::int64_t capacity,
                         std::int64_t& tokens) noexcept {
  WINNOW_REQUIRE(capacity >= 0 && capacity <= max_tokens, "tokens: %lld, must be in [0, 2^31 - 1]",
                 static_cast<long long>(capacity));
  tokens = pointer != nullptr ? *pointer : capacity;
  WINNOW_REQUIRE(tokens >= 0 && tokens <= capacity, "num_tokens: %lld, must be in [0, %lld]",
                 static_cast<long long>(tokens), static_cast<long long>(capacity));
  return {};
}

/// \param tokens receives the number of tokens, `num_tokens` being host memory.
inline status check_points(const point_set& points, std::int64_t& tokens) noexcept {
  const auto& view = points.coordinates;
  WINNOW_REQUIRE(view.type == dtype::float32 || view.type == dtype::int32,
                 "coordinates: dtype is %s, must be float32 or int32", to_string(view.type));
  WINNOW_TRY(check_input("coordinates", view));
  WINNOW_REQUIRE(view.shape[1] == 3, "coordinates: shape is [%lld, %lld], must be [N, 3]",
                 static_cast<long long>(view.shape[0]), static_cast<long long>(view.shape[1]));
  return read_count(points.num_tokens, view.shape[0], tokens);
}

inline status check_quant_length(int quant_length) noexcept {
  WINNOW_REQUIRE(quant_length >= 1 && quant_length <= max_quant_length,
                 "quant_length: %d, must be in [1, %d]", quant_length, max_quant_length);
  return {};
}

inline status check_size(const std::array<float, 3>& size) noexcept {
  for (int a = 0; a < 3; ++a)
    WINNOW_REQUIRE(std::isfinite(size[a]) && size[a] > 0.0f,
                   "size: %g on axis %d, must be finite and > 0", size[a], a);
  return {};
}

inline status check_exponential(float a) noexcept {
  WINNOW_REQUIRE(std::isfinite(a) && a > 0.0f && std::isfinite(1.0f / a),
                 "exponential_a: %g, must be > 0, finite, and have a finite reciprocal", a);
  return {};
}

inline status check_origin(const std::optional<std::array<double, 3>>& origin,
                           dtype coordinates) noexcept {
  for (int a = 0; origin && a < 3; ++a) {
    const double x = (*origin)[a];
    if (coordinates == dtype::int32)
      WINNOW_REQUIRE(x == std::floor(x) && std::fabs(x) <= 2147483648.0,
                     "origin: %g on axis %d, must be an integer of 32 bits like the coordinates", x,
                     a);
    else
      WINNOW_REQUIRE(std::fabs(x) <= static_cast<double>(std::numeric_limits<float>::max()),
                     "origin: %g on axis %d, must be finite in float32", x, a);
  }
  return {};
}

inline status check_window(const cubic_window& window, dtype coordinates) noexcept {
  WINNOW_TRY(check_size(window.size));
  WINNOW_TRY(check_quant_length(window.quant_length));
  return check_origin(window.origin, coordinates);
}

inline status check_window(const spherical_window& window) noexcept {
  WINNOW_TRY(check_size(window.size));
  WINNOW_TRY(check_quant_length(window.quant_length));
  WINNOW_TRY(check_exponential(window.exponential_a));
  WINNOW_REQUIRE(!window.wrap_theta || cells_around(window.size[0]) > 0,
                 "size: theta windows of %g degrees, with wrap_theta 360 must be a multiple of it",
                 window.size[0]);
  return check_origin(window.origin, dtype::float32);
}

inline status check_window(const grid_window& grid) noexcept {
  WINNOW_TRY(check_grid(grid));
  WINNOW_REQUIRE(grid.height % grid.window == 0,
                 "grid.height: %d, must be a multiple of the window edge %d", grid.height,
                 grid.window);
  WINNOW_REQUIRE(grid.width % grid.window == 0,
                 "grid.width: %d, must be a multiple of the window edge %d", grid.width,
                 grid.window);
  WINNOW_REQUIRE(grid.tokens() <= max_tokens,
                 "grid: %d images of %d x %d tokens, must be fewer than 2^31 tokens in all",
                 grid.batch, grid.height, grid.width);
  return {};
}

inline status check_labels(const labels_window& window, const label_set& labels,
                           std::int64_t& tokens) noexcept {
  WINNOW_TRY(read_count(labels.num_tokens, labels.tokens, tokens));
  WINNOW_REQUIRE(labels.labels != nullptr || labels.tokens == 0, "labels: is null");
  WINNOW_TRY(check_quant_length(window.quant_length));
  WINNOW_REQUIRE(labels.radius == nullptr || labels.positions != nullptr,
                 "radius: is given without positions");
  if (labels.radius != nullptr) WINNOW_TRY(check_exponential(window.exponential_a));
  return {};
}

/// The places in `ids` of image b's kept windows; reads `offsets`, which must be host memory.
inline index_range kept_range(const window_selection& kept, int image) noexcept {
  if (kept.ragged()) return {kept.offsets[image], kept.offsets[image + 1]};
  return {image * kept.stride, image * kept.stride + kept.kept};
}

/// A selection in host memory against the grid it is used with; ids are not looked at.
inline status check_selection(const grid_window& grid, const window_selection& kept) noexcept {
  WINNOW_REQUIRE(kept.images == grid.batch, "kept: selects from %d images, the grid has %d",
                 kept.images, grid.batch);
  WINNOW_REQUIRE(kept.windows == grid.windows_per_image(),
                 "kept: selects from %lld windows an image, the grid has %lld",
                 static_cast<long long>(kept.windows),
                 static_cast<long long>(grid.windows_per_image()));
  if (kept.ragged()) {
    for (int b = 0; b < kept.images; ++b) {
      const index_range range = kept_range(kept, b);
      WINNOW_REQUIRE(range.begin >= 0 && range.size() >= 0 && range.size() <= kept.windows,
                     "kept: image %d keeps the ids [%lld, %lld), must be at most %lld windows", b,
                     static_cast<long long>(range.begin), static_cast<long long>(range.end),
                     static_cast<long long>(kept.windows));
    }
    WINNOW_REQUIRE(kept.ids != nullptr || kept.images == 0 || kept.offsets[kept.images] == 0,
                   "kept: ids is null");
  } else {
    WINNOW_REQUIRE(kept.kept >= 0 && kept.kept <= kept.windows && kept.kept <= kept.stride,
                   "kept: %lld windows an image, must be in [0, %lld]",
                   static_cast<long long>(kept.kept),
                   static_cast<long long>(std::min(kept.windows, kept.stride)));
    WINNOW_REQUIRE(kept.ids != nullptr || kept.images * kept.kept == 0, "kept: ids is null");
  }
  return {};
}

/// Does the partition have the memory and the kind that `shape` asks for?
inline status check_result(const partition& result, const partition_shape& shape) noexcept {
  WINNOW_REQUIRE(result.counts != nullptr && result.order != nullptr && result.offsets != nullptr &&
                     result.bounds != nullptr,
                 "result: has no memory; bind_partition gives it some");
  const relative_position& has = result.relative;
  const relative_position& wants = shape.relative;
  WINNOW_REQUIRE(
      has.kind == wants.kind && has.quant_length == wants.quant_length &&
          has.exponential_a == wants.exponential_a &&
          (wants.kind == relative_kind::none || result.position != nullptr) &&
          (wants.kind != relative_kind::spherical || result.radius != nullptr),
      "result: was bound for other positions (quant length %d) than the window's (quant length %d)",
      has.quant_length, wants.quant_length);
  WINNOW_REQUIRE(result.max_tokens >= shape.max_tokens && result.max_tokens <= max_tokens,
                 "result: has room for %lld tokens, needs %lld",
                 static_cast<long long>(result.max_tokens),
                 static_cast<long long>(shape.max_tokens));
  WINNOW_REQUIRE(
      result.max_windows >= shape.max_windows || shape.relative.kind != relative_kind::grid,
      "result: has room for %lld windows, needs %lld", static_cast<long long>(result.max_windows),
      static_cast<long long>(shape.max_windows));
  return {};
}

/// The rules of three axes before any wrapping.
inline void make_rules(const std::array<float, 3>& size, bool shifted,
                       axis_rule (&rules)[3]) noexcept {
  for (int a = 0; a < 3; ++a) rules[a] = {size[a], shifted ? size[a] / 2.0f : 0.0f, 0};
}

}  // namespace winnow::detail
