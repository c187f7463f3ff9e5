// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of an image are computed: the result of SparseViT's window activation pruning, of
/// a threshold or of a mask.
///
/// The calls for host memory are in `reference.hpp`.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "winnow/status.hpp"
#include "winnow/tensor.hpp"
#include "winnow/window.hpp"

namespace winnow {

/// The kept windows of each image, in memory that the caller owns.
///
/// Image b's windows are `ids[b * stride + 0 … kept - 1]` when every image keeps the same number
/// (`offsets` is null), and `ids[offsets[b] … offsets[b + 1] - 1]` when the number is known only to
/// the memory (ragged). An id is the window's raster index within its image.
struct window_selection {
  int images = 0;
  /// Windows per image that the ids refer to.
  std::int64_t windows = 0;
  /// [images, stride] uniform; [capacity] ragged.
  std::int32_t* ids = nullptr;
  /// [images + 1] when ragged, else null.
  std::int32_t* offsets = nullptr;
  /// Uniform: ids per image in memory and how many of them are kept.
  std::int64_t stride = 0;
  std::int64_t kept = 0;

  [[nodiscard]] constexpr bool ragged() const noexcept { return offsets != nullptr; }
  /// An upper bound of the kept windows of all images.
  [[nodiscard]] constexpr std::int64_t max_windows() const noexcept {
    return images * (ragged() ? windows : kept);
  }
};

/// Windows that a prune ratio leaves per image: `int(windows * (1 - ratio))` in double; 0 is legal.
/// \param ratio in [0, 1]; NaN and values outside give -1.
[[nodiscard]] inline std::int64_t kept_windows(std::int64_t windows, double ratio) noexcept {
  if (!(ratio >= 0.0 && ratio <= 1.0) || windows < 0) return -1;
  return static_cast<std::int64_t>(static_cast<double>(windows) * (1.0 - ratio));
}

/// A uniform selection over `ids[images * kept]`.
[[nodiscard]] constexpr window_selection uniform_selection(int images, std::int64_t windows,
                                                           std::int64_t kept,
                                                           std::int32_t* ids) noexcept {
  return {images, windows, ids, nullptr, kept, kept};
}

/// A ragged selection over `ids[images * windows]` and `offsets[images + 1]`.
[[nodiscard]] constexpr window_selection ragged_selection(int images, std::int64_t windows,
                                                          std::int32_t* ids,
                                                          std::int32_t* offsets) noexcept {
  return {images, windows, ids, offsets, 0, 0};
}

/// The `kept` most important windows of a uniform selection: a later block of the same stage and
/// shift parity reuses the ranking of the first. Shares the ids; copies nothing.
/// \return invalid_argument if the selection is ragged or holds fewer windows.
inline status prefix(const window_selection& selection, std::int64_t kept,
                     window_selection& result) noexcept {
  WINNOW_REQUIRE(!selection.ragged(), "selection: a ragged selection has no common prefix");
  WINNOW_REQUIRE(kept >= 0 && kept <= selection.kept,
                 "kept: %lld, but the ranking holds the %lld most important windows of each image",
                 static_cast<long long>(kept), static_cast<long long>(selection.kept));
  result = selection;
  result.kept = kept;
  return {};
}

}  // namespace winnow
