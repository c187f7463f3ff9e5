// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>

#include "winnow/detail/selection/validate.hpp"
#include "winnow/detail/util/load.hpp"
#include "winnow/detail/util/parallel.hpp"
#include "winnow/reference.hpp"

namespace winnow::reference {
namespace detail {

using namespace winnow::detail;

/// Calls `body(token)` for the image's tokens in a window, in raster order of the rolled image.
/// Padding is left out.
template <class Body>
void for_each_token(const grid_window& grid, std::int64_t id, Body&& body) {
  const std::int64_t padded_height = std::int64_t{grid.rows()} * grid.window;
  const std::int64_t padded_width = std::int64_t{grid.columns()} * grid.window;
  const std::int64_t top = id / grid.columns() * grid.window + grid.shift;
  const std::int64_t left = id % grid.columns() * grid.window + grid.shift;
  for (int row = 0; row < grid.window; ++row) {
    const std::int64_t y = (top + row) % padded_height;
    if (y >= grid.height) continue;
    for (int column = 0; column < grid.window; ++column) {
      const std::int64_t x = (left + column) % padded_width;
      if (x < grid.width) body(y * grid.width + x);
    }
  }
}

/// Σ |x| over one token's channels.
template <class Accumulator>
Accumulator sum_of_magnitudes(const tensor_view<const void, 3>& features, std::int64_t image,
                              std::int64_t token) {
  // Summing piece by piece needs no allocation and loses fewer bits than one long sum.
  constexpr std::int64_t piece_size = 64;
  Accumulator values[piece_size];
  Accumulator total = 0;
  for (std::int64_t c = 0; c < features.shape[2]; c += piece_size) {
    const std::int64_t count = std::min(piece_size, features.shape[2] - c);
    load_row(features.data, features.type, features.offset(image, token) + c, count, values);
    Accumulator sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum += std::abs(values[i]);
    total += sum;
  }
  return total;
}

/// Writes the windows for which `keep(image, id)` holds, ids ascending.
template <class Keep>
void write_ragged(const window_selection& result, Keep&& keep) {
  std::int32_t count = 0;
  result.offsets[0] = 0;
  for (int image = 0; image < result.images; ++image) {
    for (std::int64_t id = 0; id < result.windows; ++id)
      if (keep(image, id)) result.ids[count++] = static_cast<std::int32_t>(id);
    result.offsets[image + 1] = count;
  }
}

}  // namespace detail

template <class Accumulator>
status window_importance(const grid_window& grid, const tensor_view<const void, 3>& features,
                         const tensor_view<float, 2>& importance, int threads) noexcept {
  WINNOW_TRY(detail::check_importance(grid, features, importance));
  WINNOW_REQUIRE(threads >= 0, "threads: %d, must be >= 0", threads);

  const std::int64_t windows = grid.windows_per_image();
  const auto channels = static_cast<Accumulator>(features.shape[2]);
  return detail::parallel_for(grid.batch * windows, threads, [&](std::int64_t task) {
    const std::int64_t image = task / windows;
    Accumulator sum_of_squares = 0;
    detail::for_each_token(grid, task % windows, [&](std::int64_t token) {
      const Accumulator mean =
          detail::sum_of_magnitudes<Accumulator>(features, image, token) / channels;
      sum_of_squares += mean * mean;
    });
    importance(image, task % windows) = static_cast<float>(std::sqrt(sum_of_squares));
  });
}

inline status select_most_important(const tensor_view<const float, 2>& importance,
                                    const window_selection& result) noexcept {
  WINNOW_TRY(detail::check_input<2>("importance", importance));
  const std::int64_t windows = importance.shape[1];
  WINNOW_TRY(detail::check_uniform_result<2>(result, importance.shape[0], windows, "importance",
                                             importance));
  if (result.max_windows() == 0) return {};

  const std::unique_ptr<std::int32_t[]> ranking(new (std::nothrow) std::int32_t[windows]);
  if (!ranking)
    return status::failure(status_code::out_of_memory, "a temporary of %lld ids",
                           static_cast<long long>(windows));
  for (int image = 0; image < result.images; ++image) {
    const auto more_important = [&](std::int32_t a, std::int32_t b) {
      const float x = importance(image, a);
      const float y = importance(image, b);
      if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
      return x > y || (!(y > x) && a < b);
    };
    std::iota(ranking.get(), ranking.get() + windows, 0);
    std::partial_sort(ranking.get(), ranking.get() + result.kept, ranking.get() + windows,
                      more_important);
    std::copy_n(ranking.get(), result.kept, result.ids + image * result.stride);
  }
  return {};
}

inline status select_above(const tensor_view<const float, 2>& importance, float threshold,
                           const window_selection& result) noexcept {
  WINNOW_TRY(detail::check_input<2>("importance", importance));
  WINNOW_REQUIRE(!std::isnan(threshold), "threshold: is NaN, must be a number");
  WINNOW_TRY(detail::check_ragged_result<2>(result, importance.shape[0], importance.shape[1],
                                            "importance", importance));
  detail::write_ragged(result, [&](int image, std::int64_t id) {
    return !(importance(image, id) < threshold);  // so NaN is kept
  });
  return {};
}

inline status select_window_mask(const tensor_view<const std::uint8_t, 2>& mask,
                                 const window_selection& result) noexcept {
  WINNOW_TRY(detail::check_input<2>("mask", mask));
  WINNOW_TRY(detail::check_ragged_result<2>(result, mask.shape[0], mask.shape[1], "mask", mask));
  detail::write_ragged(result, [&](int image, std::int64_t id) { return mask(image, id) != 0; });
  return {};
}

inline status select_token_mask(const grid_window& grid,
                                const tensor_view<const std::uint8_t, 2>& mask,
                                const window_selection& result) noexcept {
  WINNOW_TRY(detail::check_grid(grid));
  WINNOW_TRY(detail::check_input<2>("mask", mask));
  WINNOW_TRY(detail::check_covers_grid("mask", mask, grid));
  WINNOW_TRY(
      detail::check_ragged_result<2>(result, grid.batch, grid.windows_per_image(), "mask", mask));
  detail::write_ragged(result, [&](int image, std::int64_t id) {
    bool any = false;
    detail::for_each_token(grid, id,
                           [&](std::int64_t token) { any = any || mask(image, token) != 0; });
    return any;
  });
  return {};
}

}  // namespace winnow::reference
