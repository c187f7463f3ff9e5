// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of an image are computed: the result of SparseViT's window activation pruning, of
/// a threshold or of a mask.
///
/// The calls for host memory are in `reference.hpp`, those for device memory at the end of this file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "winnow/status.hpp"
#include "winnow/tensor.hpp"
#include "winnow/window.hpp"

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

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
  /// An upper bound of the kept windows of all images; saturates.
  [[nodiscard]] constexpr std::int64_t max_windows() const noexcept {
    return detail::saturating_product(images, ragged() ? windows : kept);
  }
};

/// Windows that a prune ratio leaves per image: `int(windows * (1 - ratio))` in double; 0 is legal.
/// \param windows in [0, 2⁵³], so that a double holds it; values outside give -1.
/// \param ratio in [0, 1]; NaN and values outside give -1.
[[nodiscard]] inline std::int64_t kept_windows(std::int64_t windows, double ratio) noexcept {
  if (!(ratio >= 0.0 && ratio <= 1.0) || windows < 0 || windows > std::int64_t{1} << 53) return -1;
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

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA

/// \name Selection on the device
///
/// The same selections as the host calls of `reference.hpp` make, except where two importances are
/// within 1e-6 of each other: sums are taken in another order. All data is device memory.
///
/// A call submits a few kernels to `stream` and returns. It never allocates, synchronises or reads
/// device memory on the host, so it can be captured in a CUDA graph. Results repeat bit for bit.
/// Arguments are checked before anything is submitted: invalid_argument, unsupported,
/// workspace_too_small, or cuda_error if a launch is refused. Outputs alias no input. Workspaces are
/// device memory aligned to 16 bytes, null where 0 bytes are enough.
/// @{

/// Importance of windows: the L2 norm, over a window's tokens, of the mean over channels of |x|.
/// Source: SparseViT, window activation magnitude. Accumulates in FP32.
///
/// \param grid height and width of the features; padding up to a multiple of the window counts 0.
/// \param features [B, height·width, C], float32, float16 or bfloat16, inner stride 1. Rows of whole
///        16-byte pieces at aligned addresses are read fastest.
/// \param importance [B, windows_per_image()], inner stride 1.
status window_importance(const grid_window& grid, const tensor_view<const void, 3>& features,
                         const tensor_view<float, 2>& importance, cudaStream_t stream) noexcept;

/// The `result.kept` most important windows of each image, most important first; ties to the lower
/// id; NaN counts as most important. `result` is uniform and says how many are kept. Later blocks
/// take a `prefix` of it.
/// \return also unsupported for 2^31 or more windows in all images, if one has more than 8192.
status select_most_important(const tensor_view<const float, 2>& importance,
                             const window_selection& result, void* workspace,
                             std::size_t workspace_bytes, cudaStream_t stream) noexcept;
/// 0 up to 8192 windows an image.
[[nodiscard]] std::size_t select_most_important_workspace_bytes(std::int64_t images,
                                                                std::int64_t windows) noexcept;

/// The windows with importance >= threshold, or NaN, ids ascending. `result` is ragged.
status select_above(const tensor_view<const float, 2>& importance, float threshold,
                    const window_selection& result, void* workspace, std::size_t workspace_bytes,
                    cudaStream_t stream) noexcept;
[[nodiscard]] std::size_t select_above_workspace_bytes(std::int64_t images,
                                                       std::int64_t windows) noexcept;

/// The windows whose byte in `mask` [B, windows] is not 0, ids ascending. `result` is ragged.
status select_window_mask(const tensor_view<const std::uint8_t, 2>& mask,
                          const window_selection& result, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept;
[[nodiscard]] std::size_t select_window_mask_workspace_bytes(std::int64_t images,
                                                             std::int64_t windows) noexcept;

/// The windows with any token whose byte in `mask` [B, height·width] is not 0, ids ascending.
/// `result` is ragged.
status select_token_mask(const grid_window& grid, const tensor_view<const std::uint8_t, 2>& mask,
                         const window_selection& result, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept;
[[nodiscard]] std::size_t select_token_mask_workspace_bytes(const grid_window& grid) noexcept;

/// @}

#endif

}  // namespace winnow
