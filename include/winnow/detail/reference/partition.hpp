// SPDX-License-Identifier: Apache-2.0
/// \file
/// Host builders of partitions: locate every token in parallel, sort by window, write the lists.
/// Everything is computed into temporaries first, so a failed call has written nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "winnow/detail/partition/cell.hpp"
#include "winnow/detail/partition/check.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/detail/util/parallel.hpp"
#include "winnow/detail/util/radix_sort.hpp"
#include "winnow/reference.hpp"

namespace winnow::reference {
namespace detail {

using namespace winnow::detail;

/// Three floats a token, by the caller's order.
using triples = std::vector<std::array<float, 3>>;

/// Reads the Cartesian coordinates as float, or fails on the first that is not finite.
inline status load_coordinates(const point_set& points, std::int64_t tokens, int threads,
                               triples& result) {
  result.resize(static_cast<std::size_t>(tokens));
  const auto& view = points.coordinates;
  WINNOW_TRY(parallel_ranges(tokens, threads, [&](index_range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i)
      for (int a = 0; a < 3; ++a) {
        const std::int64_t at = view.offset(i, a);
        result[i][a] = view.type == dtype::int32
                           ? static_cast<float>(static_cast<const std::int32_t*>(view.data)[at])
                           : static_cast<const float*>(view.data)[at];
      }
  }));
  const std::int64_t bad = first_where(tokens, threads, [&](std::int64_t i) {
    return !std::isfinite(result[i][0]) || !std::isfinite(result[i][1]) ||
           !std::isfinite(result[i][2]);
  });
  WINNOW_REQUIRE(bad == tokens, "coordinates: token %lld is (%g, %g, %g), must be finite",
                 static_cast<long long>(bad), result[bad][0], result[bad][1], result[bad][2]);
  return {};
}

/// Replaces Cartesian by spherical coordinates.
inline status to_spherical(int threads, triples& coordinates) {
  const auto tokens = static_cast<std::int64_t>(coordinates.size());
  WINNOW_TRY(parallel_ranges(tokens, threads, [&](index_range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      float s[3];
      spherical(coordinates[i][0], coordinates[i][1], coordinates[i][2], s);
      coordinates[i] = {s[0], s[1], s[2]};
    }
  }));
  const std::int64_t bad = first_where(
      tokens, threads, [&](std::int64_t i) { return !std::isfinite(coordinates[i][2]); });
  WINNOW_REQUIRE(bad == tokens, "coordinates: the radius of token %lld overflows float32",
                 static_cast<long long>(bad));
  return {};
}

/// Subtracts the origin, given or the minimum over all tokens, in FP32.
inline status subtract_origin(const std::optional<std::array<double, 3>>& given, int threads,
                              triples& coordinates) {
  std::array<float, 3> origin{};
  if (given) {
    for (int a = 0; a < 3; ++a) origin[a] = static_cast<float>((*given)[a]);
  } else if (!coordinates.empty()) {
    origin = coordinates[0];
    for (const auto& x : coordinates)
      for (int a = 0; a < 3; ++a) origin[a] = std::min(origin[a], x[a]);
  }
  return parallel_ranges(static_cast<std::int64_t>(coordinates.size()), threads,
                         [&](index_range range) {
                           for (std::int64_t i = range.begin; i < range.end; ++i)
                             for (int a = 0; a < 3; ++a) coordinates[i][a] -= origin[a];
                         });
}

/// Integer coordinates minus the origin: subtracted as integers, then rounded to FP32.
inline status subtract_integer_origin(const point_set& points, std::int64_t tokens,
                                      const std::optional<std::array<double, 3>>& given,
                                      int threads, triples& result) {
  const auto& view = points.coordinates;
  const auto* data = static_cast<const std::int32_t*>(view.data);
  std::array<std::int64_t, 3> origin{};
  for (int a = 0; a < 3; ++a) {
    if (given) {
      origin[a] = static_cast<std::int64_t>((*given)[a]);
    } else if (tokens > 0) {
      origin[a] = data[view.offset(0, a)];
      for (std::int64_t i = 1; i < tokens; ++i)
        origin[a] = std::min<std::int64_t>(origin[a], data[view.offset(i, a)]);
    }
  }
  result.resize(static_cast<std::size_t>(tokens));
  return parallel_ranges(tokens, threads, [&](index_range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i)
      for (int a = 0; a < 3; ++a)
        result[i][a] = static_cast<float>(data[view.offset(i, a)] - origin[a]);
  });
}

/// Cells (x, y, z, batch item) and positions of all tokens.
struct located_tokens {
  std::vector<std::array<std::int32_t, 4>> cells;
  std::vector<packed_position> positions;
};

inline status locate_all(const triples& relative, const std::int32_t* batch,
                         const axis_rule (&rules)[3], int quant_length, int threads,
                         located_tokens& result) {
  const auto tokens = static_cast<std::int64_t>(relative.size());
  const auto out_of_range = [&](std::int64_t i) {
    for (int a = 0; a < 3; ++a)
      if (!locate(relative[i][a], rules[a], quant_length).in_range) return true;
    return false;
  };
  const std::int64_t bad = first_where(tokens, threads, out_of_range);
  WINNOW_REQUIRE(bad == tokens,
                 "coordinates: token %lld lies 2^30 or more windows from the origin on some axis",
                 static_cast<long long>(bad));
  if (batch != nullptr) {
    const std::int64_t negative =
        first_where(tokens, threads, [&](std::int64_t i) { return batch[i] < 0; });
    WINNOW_REQUIRE(negative == tokens, "batch: token %lld has batch id %d, must be >= 0",
                   static_cast<long long>(negative), batch[negative]);
  }
  result.cells.resize(relative.size());
  result.positions.resize(relative.size());
  return parallel_ranges(tokens, threads, [&](index_range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      located on[3];
      for (int a = 0; a < 3; ++a) on[a] = locate(relative[i][a], rules[a], quant_length);
      result.cells[i] = {on[0].cell, on[1].cell, on[2].cell, batch != nullptr ? batch[i] : 0};
      result.positions[i] = pack_position(on[0].position, on[1].position, on[2].position);
    }
  });
}

/// One sort key a token, ordered like (batch, z, y, x): the cells in mixed radix over their
/// extents.
inline status make_keys(const std::vector<std::array<std::int32_t, 4>>& cells, int threads,
                        std::vector<keyed_token>& keys, int& bits) {
  std::array<std::int32_t, 4> low{};
  std::array<std::int32_t, 4> high{};
  if (!cells.empty()) low = high = cells[0];
  for (const auto& cell : cells)
    for (int d = 0; d < 4; ++d) {
      low[d] = std::min(low[d], cell[d]);
      high[d] = std::max(high[d], cell[d]);
    }
  std::int64_t extent[4];
  std::int64_t spanned = 1;
  for (int d = 0; d < 4; ++d) {
    extent[d] = std::int64_t{high[d]} - low[d] + 1;
    WINNOW_REQUIRE(multiply_checked(spanned, extent[d], spanned),
                   "coordinates: the windows span %lld x %lld x %lld cells of %lld batch items, "
                   "must be fewer than 2^63 in all",
                   static_cast<long long>(std::int64_t{high[0]} - low[0] + 1),
                   static_cast<long long>(std::int64_t{high[1]} - low[1] + 1),
                   static_cast<long long>(std::int64_t{high[2]} - low[2] + 1),
                   static_cast<long long>(std::int64_t{high[3]} - low[3] + 1));
  }
  for (bits = 0; bits < 63 && spanned - 1 >= std::int64_t{1} << bits;) ++bits;
  keys.resize(cells.size());
  return parallel_ranges(static_cast<std::int64_t>(cells.size()), threads, [&](index_range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      std::int64_t key = 0;
      for (int d = 3; d >= 0; --d) key = key * extent[d] + (cells[i][d] - low[d]);
      keys[i] = {static_cast<std::uint64_t>(key), static_cast<std::int32_t>(i)};
    }
  });
}

/// Slots of tokens in no window have an empty one.
inline void clear_bounds(std::int64_t assigned, std::int64_t tokens, const partition& result) {
  for (std::int64_t slot = assigned; slot < tokens; ++slot)
    result.bounds[2 * slot] = result.bounds[2 * slot + 1] = static_cast<std::int32_t>(slot);
}

/// Writes all lists from the sorted keys, of which the first `assigned` lie in windows.
/// \param positions,radius by token; null where the partition has none.
inline status write_partition(const std::vector<keyed_token>& sorted, std::int64_t assigned,
                              const packed_position* positions, const float* radius,
                              const partition& result, int threads) {
  std::vector<std::int32_t> offsets;
  for (std::int64_t i = 0; i < assigned; ++i)
    if (i == 0 || sorted[i].key != sorted[i - 1].key)
      offsets.push_back(static_cast<std::int32_t>(i));
  const auto windows = static_cast<std::int64_t>(offsets.size());
  offsets.push_back(static_cast<std::int32_t>(assigned));
  WINNOW_REQUIRE(windows <= result.max_windows,
                 "result: has room for %lld windows, the tokens lie in %lld",
                 static_cast<long long>(result.max_windows), static_cast<long long>(windows));

  const auto tokens = static_cast<std::int64_t>(sorted.size());
  WINNOW_TRY(parallel_ranges(tokens, threads, [&](index_range range) {
    for (std::int64_t slot = range.begin; slot < range.end; ++slot) {
      const std::int32_t token = sorted[slot].token;
      result.order[slot] = token;
      if (result.position != nullptr) result.position[slot] = positions[token];
      if (result.radius != nullptr) result.radius[slot] = radius[token];
    }
  }));
  std::copy(offsets.begin(), offsets.end(), result.offsets);
  std::int32_t largest = 0;
  for (std::int64_t w = 0; w < windows; ++w) {
    largest = std::max(largest, offsets[w + 1] - offsets[w]);
    for (std::int32_t slot = offsets[w]; slot < offsets[w + 1]; ++slot) {
      result.bounds[2 * std::int64_t{slot}] = offsets[w];
      result.bounds[2 * std::int64_t{slot} + 1] = offsets[w + 1];
    }
  }
  clear_bounds(assigned, tokens, result);
  *result.counts = {static_cast<std::int32_t>(windows), static_cast<std::int32_t>(tokens),
                    static_cast<std::int32_t>(assigned), largest};
  return {};
}

/// From coordinates relative to the origin to the finished partition.
inline status partition_cells(const triples& relative, const std::int32_t* batch,
                              const axis_rule (&rules)[3], const float* radius,
                              const partition& result, int threads) {
  located_tokens tokens;
  WINNOW_TRY(locate_all(relative, batch, rules, result.relative.quant_length, threads, tokens));
  std::vector<keyed_token> keys;
  int bits = 0;
  WINNOW_TRY(make_keys(tokens.cells, threads, keys, bits));
  WINNOW_TRY(radix_sort(keys, bits, threads));
  return write_partition(keys, static_cast<std::int64_t>(keys.size()), tokens.positions.data(),
                         radius, result, threads);
}

}  // namespace detail

inline status spherical_coordinates(const point_set& points, const tensor_view<float, 2>& result,
                                    int threads) noexcept {
  std::int64_t tokens = 0;
  WINNOW_TRY(detail::check_points(points, tokens));
  WINNOW_TRY(detail::check_output<2>("result", result));
  WINNOW_REQUIRE(result.shape[0] >= tokens && result.shape[1] == 3,
                 "result: shape is [%lld, %lld], must be [%lld or more, 3]",
                 static_cast<long long>(result.shape[0]), static_cast<long long>(result.shape[1]),
                 static_cast<long long>(tokens));
  return detail::guard_allocation([&]() -> status {
    detail::triples coordinates;
    WINNOW_TRY(detail::load_coordinates(points, tokens, threads, coordinates));
    WINNOW_TRY(detail::to_spherical(threads, coordinates));
    for (std::int64_t i = 0; i < tokens; ++i)
      for (int a = 0; a < 3; ++a) result(i, a) = coordinates[i][a];
    return {};
  });
}

inline status build_partition(const cubic_window& window, const point_set& points,
                              const partition& result, int threads) noexcept {
  std::int64_t tokens = 0;
  WINNOW_TRY(detail::check_points(points, tokens));
  WINNOW_TRY(detail::check_window(window, points.coordinates.type));
  WINNOW_TRY(detail::check_result(result, shape_of(window, tokens)));
  return detail::guard_allocation([&]() -> status {
    detail::axis_rule rules[3];
    detail::make_rules(window.size, window.shifted, rules);
    detail::triples relative;
    if (points.coordinates.type == dtype::int32) {
      WINNOW_TRY(detail::subtract_integer_origin(points, tokens, window.origin, threads, relative));
    } else {
      WINNOW_TRY(detail::load_coordinates(points, tokens, threads, relative));
      WINNOW_TRY(detail::subtract_origin(window.origin, threads, relative));
    }
    return detail::partition_cells(relative, points.batch, rules, nullptr, result, threads);
  });
}

inline status build_partition(const spherical_window& window, const point_set& points,
                              const partition& result, int threads) noexcept {
  std::int64_t tokens = 0;
  WINNOW_TRY(detail::check_points(points, tokens));
  WINNOW_TRY(detail::check_window(window));
  WINNOW_TRY(detail::check_result(result, shape_of(window, tokens)));
  return detail::guard_allocation([&]() -> status {
    detail::axis_rule rules[3];
    detail::make_rules(window.size, window.shifted, rules);
    if (window.wrap_theta) rules[0].wrap = detail::cells_around(window.size[0]);
    detail::triples coordinates;
    WINNOW_TRY(detail::load_coordinates(points, tokens, threads, coordinates));
    WINNOW_TRY(detail::to_spherical(threads, coordinates));
    std::vector<float> radius(coordinates.size());
    for (std::size_t i = 0; i < radius.size(); ++i) radius[i] = coordinates[i][2];
    WINNOW_TRY(detail::subtract_origin(window.origin, threads, coordinates));
    return detail::partition_cells(coordinates, points.batch, rules, radius.data(), result,
                                   threads);
  });
}

inline status build_partition(const labels_window& window, const label_set& labels,
                              const partition& result, int threads) noexcept {
  std::int64_t tokens = 0;
  WINNOW_TRY(detail::check_labels(window, labels, tokens));
  WINNOW_TRY(detail::check_result(result, [&] {
    partition_shape shape = shape_of(window, labels);
    shape.max_windows = 0;  // known only once the labels were counted
    return shape;
  }()));
  const int length = window.quant_length;
  if (labels.positions != nullptr) {
    const std::int64_t bad = detail::first_where(3 * tokens, threads, [&](std::int64_t i) {
      return labels.positions[i] < 0 || labels.positions[i] >= length;
    });
    WINNOW_REQUIRE(bad == 3 * tokens, "positions: token %lld has %d on axis %d, must be in [0, %d]",
                   static_cast<long long>(bad / 3), labels.positions[bad],
                   static_cast<int>(bad % 3), length - 1);
  }
  if (labels.radius != nullptr) {
    const std::int64_t bad = detail::first_where(
        tokens, threads, [&](std::int64_t i) { return !std::isfinite(labels.radius[i]); });
    WINNOW_REQUIRE(bad == tokens, "radius: token %lld has %g, must be finite",
                   static_cast<long long>(bad), labels.radius[bad]);
  }
  return detail::guard_allocation([&]() -> status {
    // Tokens in no window sort behind the largest possible label.
    constexpr std::uint64_t no_window = std::uint64_t{1} << 31;
    std::vector<detail::keyed_token> keys(static_cast<std::size_t>(tokens));
    std::vector<packed_position> positions;
    if (labels.positions != nullptr) positions.resize(keys.size());
    std::int64_t assigned = 0;
    for (std::int64_t i = 0; i < tokens; ++i) {
      const std::int32_t label = labels.labels[i];
      keys[i] = {label < 0 ? no_window : static_cast<std::uint64_t>(label),
                 static_cast<std::int32_t>(i)};
      assigned += label >= 0;
      if (labels.positions != nullptr) {
        const std::int32_t* p = labels.positions + 3 * i;
        positions[i] = pack_position(p[0], p[1], p[2]);
      }
    }
    WINNOW_TRY(detail::radix_sort(keys, 32, threads));
    return detail::write_partition(keys, assigned, positions.data(), labels.radius, result,
                                   threads);
  });
}

inline status build_partition(const grid_window& window, const window_selection* kept,
                              const partition& result, int threads) noexcept {
  WINNOW_TRY(detail::check_window(window));
  if (kept != nullptr) WINNOW_TRY(detail::check_selection(window, *kept));
  // Before temporaries as large as the grid; the number of windows is known only after them.
  partition_shape shape = shape_of(window, kept);
  shape.max_windows = 0;
  WINNOW_TRY(detail::check_result(result, shape));
  const std::int64_t per_image = window.windows_per_image();
  return detail::guard_allocation([&]() -> status {
    // rank: window of the batch -> its place among the computed ones, or -1.
    const std::int64_t all = window.batch * per_image;
    std::vector<std::int32_t> rank(static_cast<std::size_t>(all), -1);
    std::int32_t windows = 0;
    for (int b = 0; per_image > 0 && b < window.batch; ++b) {
      const detail::index_range ids =
          kept != nullptr ? detail::kept_range(*kept, b) : detail::index_range{0, per_image};
      for (std::int64_t i = ids.begin; i < ids.end; ++i) {
        const std::int64_t id = kept != nullptr ? kept->ids[i] : i;
        WINNOW_REQUIRE(id >= 0 && id < per_image,
                       "kept: window id %lld of image %d, must be in [0, %lld]",
                       static_cast<long long>(id), b, static_cast<long long>(per_image - 1));
        std::int32_t& place = rank[b * per_image + id];
        WINNOW_REQUIRE(place < 0, "kept: window id %lld of image %d appears twice",
                       static_cast<long long>(id), b);
        place = windows++;
      }
    }
    shape.max_windows = windows;
    WINNOW_TRY(detail::check_result(result, shape));

    const std::int32_t area = window.window * window.window;
    const std::int32_t assigned = windows * area;
    WINNOW_TRY(detail::parallel_for(all, threads, [&](std::int64_t w) {
      if (rank[w] < 0) return;
      const std::int64_t first = std::int64_t{rank[w]} * area;
      for (std::int32_t t = 0; t < area; ++t) {
        const detail::grid_token token = detail::locate_in_grid(window, w, t);
        const std::int64_t slot = first + t;
        result.order[slot] = token.token;
        result.position[slot] = token.position;
        result.bounds[2 * slot] = static_cast<std::int32_t>(first);
        result.bounds[2 * slot + 1] = static_cast<std::int32_t>(first) + area;
      }
    }));
    for (std::int64_t w = 0; w <= windows; ++w)
      result.offsets[w] = static_cast<std::int32_t>(w * area);
    std::int64_t slot = assigned;
    for (std::int64_t token = 0; token < window.tokens() && slot < window.tokens(); ++token) {
      const detail::grid_place place = detail::place_in_grid(window, token);
      if (rank[place.window] >= 0) continue;
      result.order[slot] = static_cast<std::int32_t>(token);
      result.position[slot++] = place.position;
    }
    detail::clear_bounds(assigned, window.tokens(), result);
    *result.counts = {windows, static_cast<std::int32_t>(window.tokens()), assigned,
                      windows > 0 ? area : 0};
    return {};
  });
}

}  // namespace winnow::reference
