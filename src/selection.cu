// SPDX-License-Identifier: Apache-2.0
// Selection on the device, compiled once.
#include "winnow/selection.hpp"

#include "winnow/detail/selection/compact.cuh"
#include "winnow/detail/selection/importance.cuh"
#include "winnow/detail/selection/rank.cuh"
#include "winnow/detail/selection/validate.hpp"
#include "winnow/detail/util/check_workspace.hpp"

namespace winnow {
namespace {

/// Do 32 bits number the windows of all images?
bool can_number(std::int64_t images, std::int64_t windows) noexcept {
  std::int64_t total = 0;
  return images >= 0 && windows >= 0 && detail::multiply_checked(images, windows, total) &&
         total <= std::numeric_limits<std::int32_t>::max();
}

/// Bytes of a word for each tile of a ragged selection; 0 for one that no call makes.
std::size_t ragged_bytes(std::int64_t images, std::int64_t windows) noexcept {
  if (!can_number(images, windows)) return 0;
  const std::int64_t total = images * windows;
  return static_cast<std::size_t>(detail::compact_tiles(total)) * sizeof(std::uint32_t);
}

/// Compacts the windows that `keep` holds for.
template <class Predicate>
status select_ragged(const window_selection& result, const Predicate& keep, void* workspace,
                     std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  WINNOW_TRY(detail::check_workspace(workspace, workspace_bytes,
                                     ragged_bytes(result.images, result.windows)));
  return detail::launch_compact(result, keep, static_cast<std::uint32_t*>(workspace), stream);
}

/// The workspace of a token mask: counts of tiles, then a byte a window.
struct token_mask_memory {
  std::uint32_t* counts = nullptr;
  std::uint8_t* marks = nullptr;
  std::size_t bytes = 0;

  token_mask_memory(const grid_window& grid, void* workspace) noexcept {
    detail::memory_carver carver(workspace);
    counts = carver.take<std::uint32_t>(detail::compact_tiles(grid.windows()));
    marks = carver.take<std::uint8_t>(grid.windows());
    bytes = carver.used();
  }
};

}  // namespace

status window_importance(const grid_window& grid, const tensor_view<const void, 3>& features,
                         const tensor_view<float, 2>& importance, cudaStream_t stream) noexcept {
  WINNOW_TRY(detail::check_importance(grid, features, importance));
  switch (features.type) {
    case dtype::float32:
      return detail::launch_importance<float>(grid, features, importance, stream);
    case dtype::float16:
      return detail::launch_importance<half>(grid, features, importance, stream);
    case dtype::bfloat16:
      return detail::launch_importance<bfloat16>(grid, features, importance, stream);
    default:
      return status::failure(status_code::unsupported,
                             "features: dtype %s, must be float32, float16 or bfloat16",
                             to_string(features.type));
  }
}

std::size_t select_most_important_workspace_bytes(std::int64_t images,
                                                  std::int64_t windows) noexcept {
  if (!can_number(images, windows)) return 0;
  detail::key_sorter unused{};
  return detail::lay_out(nullptr, images, windows, unused);
}

status select_most_important(const tensor_view<const float, 2>& importance,
                             const window_selection& result, void* workspace,
                             std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  WINNOW_TRY(detail::check_input<2>("importance", importance));
  const std::int64_t images = importance.shape[0];
  const std::int64_t windows = importance.shape[1];
  WINNOW_TRY(detail::check_uniform_result<2>(result, images, windows, "importance", importance));
  if (windows > detail::counted_windows && !can_number(images, windows))
    return status::failure(status_code::unsupported,
                           "importance: %lld images of %lld windows, must be fewer than 2^31 "
                           "windows in all",
                           static_cast<long long>(images), static_cast<long long>(windows));
  WINNOW_TRY(detail::check_workspace(workspace, workspace_bytes,
                                     select_most_important_workspace_bytes(images, windows)));
  return detail::launch_rank(importance, result, workspace, stream);
}

std::size_t select_above_workspace_bytes(std::int64_t images, std::int64_t windows) noexcept {
  return ragged_bytes(images, windows);
}

status select_above(const tensor_view<const float, 2>& importance, float threshold,
                    const window_selection& result, void* workspace, std::size_t workspace_bytes,
                    cudaStream_t stream) noexcept {
  WINNOW_TRY(detail::check_input<2>("importance", importance));
  WINNOW_REQUIRE(!std::isnan(threshold), "threshold: is NaN, must be a number");
  WINNOW_TRY(detail::check_ragged_result<2>(result, importance.shape[0], importance.shape[1],
                                            "importance", importance));
  const detail::is_above keep{importance.data, importance.stride[0], threshold};
  return select_ragged(result, keep, workspace, workspace_bytes, stream);
}

std::size_t select_window_mask_workspace_bytes(std::int64_t images, std::int64_t windows) noexcept {
  return ragged_bytes(images, windows);
}

status select_window_mask(const tensor_view<const std::uint8_t, 2>& mask,
                          const window_selection& result, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  WINNOW_TRY(detail::check_input<2>("mask", mask));
  WINNOW_TRY(detail::check_ragged_result<2>(result, mask.shape[0], mask.shape[1], "mask", mask));
  const detail::is_marked keep{mask.data, mask.stride[0]};
  return select_ragged(result, keep, workspace, workspace_bytes, stream);
}

std::size_t select_token_mask_workspace_bytes(const grid_window& grid) noexcept {
  return detail::check_grid(grid).ok() ? token_mask_memory(grid, nullptr).bytes : 0;
}

status select_token_mask(const grid_window& grid, const tensor_view<const std::uint8_t, 2>& mask,
                         const window_selection& result, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  WINNOW_TRY(detail::check_grid(grid));
  WINNOW_TRY(detail::check_input<2>("mask", mask));
  WINNOW_TRY(detail::check_covers_grid("mask", mask, grid));
  WINNOW_TRY(
      detail::check_ragged_result<2>(result, grid.batch, grid.windows_per_image(), "mask", mask));
  WINNOW_TRY(
      detail::check_workspace(workspace, workspace_bytes, select_token_mask_workspace_bytes(grid)));
  const token_mask_memory memory(grid, workspace);
  const std::int64_t windows = grid.windows();
  if (windows > 0) {
    constexpr int threads = 256;
    const std::int64_t blocks = detail::divide_up<std::int64_t>(windows, threads / 32);
    WINNOW_TRY(detail::launch("mark windows", detail::mark_windows_kernel<threads>,
                              dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, 65536))),
                              threads, stream, grid, grid.rows(), grid.columns(), mask.data,
                              mask.stride[0], memory.marks));
  }
  const detail::is_marked keep{memory.marks, grid.windows_per_image()};
  return detail::launch_compact(result, keep, memory.counts, stream);
}

}  // namespace winnow
