// SPDX-License-Identifier: Apache-2.0
/// \file
/// Argument checks of selection. They read no element, so calls on host and on device memory share
/// them.
#pragma once

#include <cstdint>
#include <limits>

#include "winnow/detail/util/check_view.hpp"
#include "winnow/selection.hpp"

namespace winnow::detail {

/// A grid whose windows have int32 ids. Padding is allowed.
inline status check_grid(const grid_window& grid) noexcept {
  WINNOW_REQUIRE(grid.batch >= 0, "grid.batch: %d, must be >= 0", grid.batch);
  WINNOW_REQUIRE(grid.height >= 0, "grid.height: %d, must be >= 0", grid.height);
  WINNOW_REQUIRE(grid.width >= 0, "grid.width: %d, must be >= 0", grid.width);
  WINNOW_REQUIRE(grid.window >= 1 && grid.window <= max_quant_length,
                 "grid.window: %d, must be in [1, %d]", grid.window, max_quant_length);
  WINNOW_REQUIRE(grid.shift >= 0 && grid.shift < grid.window, "grid.shift: %d, must be in [0, %d]",
                 grid.shift, grid.window - 1);
  WINNOW_REQUIRE(grid.windows_per_image() <= std::numeric_limits<std::int32_t>::max(),
                 "grid: %d x %d tokens make %lld windows of edge %d, ids allow 2^31 - 1",
                 grid.height, grid.width, static_cast<long long>(grid.windows_per_image()),
                 grid.window);
  return {};
}

/// `view` is [batch, height·width, ...] of the grid.
template <int Rank>
status check_covers_grid(const char* name, const tensor_layout<Rank>& view,
                         const grid_window& grid) noexcept {
  const std::int64_t tokens = std::int64_t{grid.height} * grid.width;
  WINNOW_REQUIRE(view.shape[0] == grid.batch, "%s: shape[0] is %lld, but grid.batch is %d", name,
                 static_cast<long long>(view.shape[0]), grid.batch);
  WINNOW_REQUIRE(view.shape[1] == tokens,
                 "%s: shape[1] is %lld, but the grid has %d x %d = %lld tokens", name,
                 static_cast<long long>(view.shape[1]), grid.height, grid.width,
                 static_cast<long long>(tokens));
  return {};
}

/// The addresses from the first to the last byte of a non-empty view, gaps included.
struct byte_range {
  std::uintptr_t begin;
  std::uintptr_t end;
};

template <int Rank>
byte_range memory_of(const tensor_view<const void, Rank>& view) noexcept {
  std::int64_t first = 0;
  std::int64_t last = 0;
  for (int d = 0; d < Rank; ++d)
    (view.stride[d] < 0 ? first : last) += (view.shape[d] - 1) * view.stride[d];
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  const auto element = static_cast<std::int64_t>(size_of(view.type));
  // The element itself comes last: int64 need not hold the address behind it.
  return {
      address + static_cast<std::uintptr_t>(first * element),
      address + static_cast<std::uintptr_t>(last * element) + static_cast<std::uintptr_t>(element)};
}

/// The memory of `output` does not meet that of `input`. Gaps of strided views count, too: outputs
/// of selection are never woven into its inputs.
template <int OutputRank, int InputRank>
status check_disjoint(const char* output_name, const tensor_view<const void, OutputRank>& output,
                      const char* input_name,
                      const tensor_view<const void, InputRank>& input) noexcept {
  if (is_empty(output) || is_empty(input)) return {};
  const byte_range a = memory_of(output);
  const byte_range b = memory_of(input);
  WINNOW_REQUIRE(a.end <= b.begin || b.end <= a.begin, "%s: its memory at %p overlaps %s at %p",
                 output_name, output.data, input_name, input.data);
  return {};
}

/// The arguments of `window_importance`.
inline status check_importance(const grid_window& grid, const tensor_view<const void, 3>& features,
                               const tensor_view<float, 2>& importance) noexcept {
  WINNOW_TRY(check_grid(grid));
  WINNOW_TRY(check_input("features", features));
  WINNOW_REQUIRE(features.type == dtype::float32 || features.type == dtype::float16 ||
                     features.type == dtype::bfloat16 || features.type == dtype::float64,
                 "features: dtype %s, must be float32, float16, bfloat16 or float64",
                 to_string(features.type));
  WINNOW_TRY(check_covers_grid("features", features, grid));
  WINNOW_REQUIRE(features.shape[2] >= 1, "features: shape[2] is 0, must be at least one channel");
  WINNOW_TRY(check_output<2>("importance", importance));
  const std::int64_t windows = grid.windows_per_image();
  WINNOW_REQUIRE(importance.shape[0] == grid.batch && importance.shape[1] == windows,
                 "importance: shape is [%lld, %lld], must be [%d, %lld]",
                 static_cast<long long>(importance.shape[0]),
                 static_cast<long long>(importance.shape[1]), grid.batch,
                 static_cast<long long>(windows));
  return check_disjoint<2>("importance", importance, "features", features);
}

/// The result refers to the images and windows of its input.
inline status check_refers_to(const window_selection& result, std::int64_t images,
                              std::int64_t windows) noexcept {
  WINNOW_REQUIRE(result.images == images, "result.images: %d, but the input has %lld images",
                 result.images, static_cast<long long>(images));
  WINNOW_REQUIRE(result.windows == windows,
                 "result.windows: %lld, but the input has %lld windows per image",
                 static_cast<long long>(result.windows), static_cast<long long>(windows));
  WINNOW_REQUIRE(windows <= std::numeric_limits<std::int32_t>::max(),
                 "result.windows: %lld, ids allow 2^31 - 1", static_cast<long long>(windows));
  return {};
}

/// A uniform selection that may be written.
template <int Rank>
status check_uniform_result(const window_selection& result, std::int64_t images,
                            std::int64_t windows, const char* input_name,
                            const tensor_view<const void, Rank>& input) noexcept {
  WINNOW_REQUIRE(!result.ragged(), "result.offsets: must be null, the selection has to be uniform");
  WINNOW_TRY(check_refers_to(result, images, windows));
  WINNOW_REQUIRE(result.kept >= 0 && result.kept <= windows,
                 "result.kept: %lld, must be in [0, %lld], the windows of an image",
                 static_cast<long long>(result.kept), static_cast<long long>(windows));
  tensor_layout<2> layout = packed_layout({images, result.kept});
  layout.stride[0] = result.stride;
  const tensor_view<std::int32_t, 2> ids(result.ids, layout);
  WINNOW_TRY(check_output<2>("result.ids", ids));
  return check_disjoint<2, Rank>("result.ids", ids, input_name, input);
}

/// A ragged selection that may be written.
template <int Rank>
status check_ragged_result(const window_selection& result, std::int64_t images,
                           std::int64_t windows, const char* input_name,
                           const tensor_view<const void, Rank>& input) noexcept {
  WINNOW_REQUIRE(result.ragged(), "result.offsets: is null, the selection has to be ragged");
  WINNOW_TRY(check_refers_to(result, images, windows));
  WINNOW_REQUIRE(images * windows <= std::numeric_limits<std::int32_t>::max(),
                 "result: %lld images of %lld windows, offsets allow 2^31 - 1 windows in all",
                 static_cast<long long>(images), static_cast<long long>(windows));
  const tensor_view<std::int32_t, 1> ids(result.ids, {images * windows});
  const tensor_view<std::int32_t, 1> offsets(result.offsets, {images + 1});
  WINNOW_TRY(check_output<1>("result.ids", ids));
  WINNOW_TRY(check_output<1>("result.offsets", offsets));
  WINNOW_TRY(check_disjoint<1, 1>("result.ids", ids, "result.offsets", offsets));
  WINNOW_TRY(check_disjoint<1, Rank>("result.ids", ids, input_name, input));
  return check_disjoint<1, Rank>("result.offsets", offsets, input_name, input);
}

}  // namespace winnow::detail
