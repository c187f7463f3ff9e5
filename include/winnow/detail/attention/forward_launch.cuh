// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches one instantiation of the forward kernel.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/contextual_kernel.cuh"
#include "winnow/detail/attention/forward_grid.cuh"
#include "winnow/detail/attention/forward_kernel.cuh"
#include "winnow/detail/attention/forward_launch.hpp"
#include "winnow/detail/attention/forward_long.cuh"
#include "winnow/detail/attention/forward_long_launch.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// How many heads a block computes one after the other. More of them share what heads have in common
/// and hide each other's latency; fewer fill the GPU when there are few tokens.
inline int heads_per_block(const forward_problem& problem, std::int64_t blocks_of_rows) noexcept {
  constexpr std::int64_t enough_blocks = 2000;
  int most = 1;
  for (int g = 0; g < problem.group_count; ++g) most = std::max(most, problem.groups[g].heads);
  int heads = 1;
  while (heads < 4 && 2 * heads <= most) {
    std::int64_t columns = 0;
    for (int g = 0; g < problem.group_count; ++g)
      columns += (problem.groups[g].heads + 2 * heads - 1) / (2 * heads);
    if (columns * blocks_of_rows < enough_blocks) break;
    heads *= 2;
  }
  return heads;
}

/// Sets `packed`. \return false: a step does not fit 32 bits.
inline bool pack_views(std::int64_t size, forward_problem& problem) noexcept {
  const std::int64_t limit = (std::int64_t{1} << 31) / size;
  packed_view* packed = problem.packed;
  for (const row_view* rows : {&problem.q, &problem.k, &problem.v, &problem.out}) {
    for (const std::int64_t stride : {rows->token_stride, rows->head_stride})
      if (stride >= limit || stride <= -limit) return false;
    *packed++ = {static_cast<char*>(const_cast<void*>(rows->data)),
                 static_cast<std::int32_t>(rows->token_stride * size),
                 static_cast<std::int32_t>(rows->head_stride * size)};
  }
  return true;
}

/// Marks the groups whose long tiles forward_long.cuh computes. \return are there any?
template <class T, int D, position_encoding Position>
bool mark_long_tiles(forward_problem& problem) noexcept {
  bool any = false;
  if constexpr (sizeof(T) == 2 && forward_long_layout<D>::exists &&
                Position == position_encoding::none) {
    const bool packed = problem.q.vectors && problem.k.vectors && problem.v.vectors &&
                        problem.out.vectors && pack_views(sizeof(T), problem);
    for (int g = 0; g < problem.group_count; ++g) {
      group_problem& group = problem.groups[g];
      group.has_long_tiles = packed && group.path == encoding_path::tiles &&
                             group.kind == relative_kind::none && group.max_tokens >= long_tile;
      any = any || group.has_long_tiles;
    }
  }
  return any;
}

/// Tiles in long windows, by the kernel that suits the device.
template <class T, int D>
cudaError_t launch_long_forward(const forward_problem& problem, const launch_extent& extent,
                                cudaStream_t stream) noexcept {
  if (extent.hopper_launch != nullptr && is_hopper())
    return extent.hopper_launch(problem, extent, stream);
  using layout = forward_long_layout<D>;
  return launch_long_items<layout>(attend_long_windows_kernel<T, layout>, problem, extent, stream);
}

/// Does forward_grid.cuh serve all groups of the launch? Sets what it needs to know.
template <class T, int D>
bool prepare_grid(forward_problem& problem) noexcept {
  // Bias is divided by the scale.
  if (!(problem.scale > 0x1p-40f)) return false;
  for (const row_view* rows : {&problem.q, &problem.k, &problem.v, &problem.out})
    if (!rows->vectors) return false;
  for (int g = 0; g < problem.group_count; ++g) {
    const group_problem& group = problem.groups[g];
    if (group.path != encoding_path::tiles || group.kind != relative_kind::grid ||
        !takes_grid(sizeof(T), D, group.quant_length * group.quant_length))
      return false;
  }
  return pack_views(sizeof(T), problem);
}

/// Windows of an image with bias: as many blocks as the GPU holds, each of as many windows as the
/// next.
template <class T, int D>
cudaError_t launch_windows_of_grid(const forward_problem& problem, int heads,
                                   cudaStream_t stream) noexcept {
  using layout = forward_grid_layout<D>;
  std::int64_t windows = 1;
  for (int g = 0; g < problem.group_count; ++g) {
    const group_problem& group = problem.groups[g];
    windows = std::max(windows, group.max_tokens / (group.quant_length * group.quant_length));
  }
  const std::int64_t turns = (windows * heads + layout::most_blocks - 1) / layout::most_blocks;
  const dim3 grid(static_cast<unsigned>(heads),
                  static_cast<unsigned>((windows + turns - 1) / turns));
  return launch_kernel(attend_grid_kernel<T, D>, grid, 32 * layout::tiles, layout::bytes, stream,
                       problem);
}

/// The longer windows of groups of short ones. As many blocks as find something quickly, of one head each.
template <class T, int D>
cudaError_t launch_longer_windows(const forward_problem& problem, const launch_extent& extent,
                                  std::int64_t tiles, cudaStream_t stream) noexcept {
  using layout = forward_layout<sizeof(T), D, position_encoding::none, true>;
  forward_problem parameters = problem;
  divide_heads(parameters, 1);
  const std::int64_t blocks =
      std::clamp<std::int64_t>(4 * 132 / extent.heads, 1, std::max<std::int64_t>(1, tiles / 4));
  const auto kernel = attend_longer_windows_kernel<T, D>;
  const cudaError_t error = share_multiprocessors(kernel);
  if (error != cudaSuccess) return error;
  return launch_kernel(kernel,
                       dim3(static_cast<unsigned>(extent.heads), static_cast<unsigned>(blocks)),
                       layout::tuning.threads(), layout::bytes(0), stream, parameters);
}

/// The short windows of groups of short ones.
template <class T, int D>
cudaError_t launch_windows(const forward_problem& problem, std::int64_t tokens, int columns,
                           int waves, cudaStream_t stream) noexcept {
  using layout = forward_window_layout<D>;
  const std::int64_t ranges = divide_up<std::int64_t>(tokens, layout::range);
  const int parts = columns << problem.window_part_bits;
  // Blocks begin at one a nanosecond, which is lost where there are no short windows.
  const std::int64_t most_blocks = waves * 132 * layout::min_blocks;
  const std::int64_t limit =
      std::min<std::int64_t>(65535, std::max<std::int64_t>(1, most_blocks / parts));
  const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(std::min(ranges, limit)));
  const auto kernel = attend_windows_kernel<T, D>;
  const cudaError_t error = share_multiprocessors(kernel);
  if (error != cudaSuccess) return error;
  return launch_kernel(kernel, grid, 32, layout::bytes, stream, problem);
}

template <class T, int D, position_encoding Position>
cudaError_t launch_grid_forward(const forward_problem& problem, const launch_extent& extent,
                                cudaStream_t stream) noexcept {
  using layout = forward_layout<sizeof(T), D, Position>;
  const std::int64_t blocks = (extent.tokens + layout::rows - 1) / layout::rows;
  forward_problem parameters = problem;
  if constexpr (Position == position_encoding::bias && sizeof(T) == 2 && D <= 32)
    if (prepare_grid<T, D>(parameters))
      return launch_windows_of_grid<T, D>(parameters, extent.heads, stream);
  if (layout::many_heads) parameters.heads_per_block = heads_per_block(problem, blocks);
  if constexpr (layout::takes_windows)  // in at most two parts
    parameters.heads_per_block =
        std::min(parameters.heads_per_block, 2 * forward_window_layout<D>::heads);
  const auto bias_floats = [&] {
    return static_cast<std::size_t>(extent.bias_rows) * parameters.heads_per_block;
  };
  constexpr std::size_t most_bytes = 99 * 1024;
  while (parameters.heads_per_block > 1 && layout::bytes(bias_floats()) > most_bytes / 2)
    parameters.heads_per_block /= 2;
  const int columns = divide_heads(parameters, parameters.heads_per_block);
  // Rows off 16 bytes, and groups that are computed row by row, have code of their own.
  const bool vectors = problem.q.vectors && problem.k.vectors && problem.v.vectors &&
                       problem.out.vectors &&
                       (Position != position_encoding::none || problem.scale > 0.0f);
  constexpr int wave = 132 * layout::tuning.min_blocks;  // of an H200
  // Of many tokens most tiles may be other kernels', and a block each would take long only to begin. Of
  // fewer ones blocks of a tile each end at the same time.
  const bool walks =
      layout::walks_tiles && vectors && (blocks > 5 * wave || columns * blocks > 12 * wave);
  const std::int64_t rows_of_blocks = walks ? std::max(1, 3 * wave / columns) : blocks;
  auto kernel = vectors ? attention_forward_kernel<T, D, Position, true, false>
                        : attention_forward_kernel<T, D, Position, false, false>;
  if constexpr (layout::walks_tiles)
    if (walks) kernel = attention_forward_kernel<T, D, Position, true, true>;
  const std::size_t bytes = layout::bytes(bias_floats());
  cudaError_t error = allow_shared_memory(kernel, bytes);
  if (error != cudaSuccess) return error;
  const std::int64_t limit = 65535;
  const dim3 grid(static_cast<unsigned>(columns),
                  static_cast<unsigned>(std::min(rows_of_blocks, limit)),
                  static_cast<unsigned>((rows_of_blocks + limit - 1) / limit));
  if constexpr (Position != position_encoding::none || sizeof(T) != 2) {
    return launch_kernel(kernel, grid, layout::tuning.threads(), bytes, stream, parameters);
  } else {
    // Where blocks are few, more kernels cost more than they gain.
    const bool has_long_tiles =
        columns * blocks > 2 * 132 && mark_long_tiles<T, D, Position>(parameters);
    const bool takes_windows = layout::takes_windows && vectors && columns * blocks > wave &&
                               pack_views(sizeof(T), parameters);
    parameters.takes_windows = takes_windows;
    // What takes longest begins first. Of many tokens short windows come before the tiles, as both begin
    // with thousands of blocks; so they do not where the others are more.
    parameters.place = {true, true};
    if constexpr (forward_long_layout<D>::exists)
      if (has_long_tiles) {
        error = launch_long_forward<T, D>(parameters, extent, stream);
        parameters.place.is_first = false;
      }
    const auto launch_tiles = [&] {
      if (error == cudaSuccess && (takes_windows || has_long_tiles))
        error = share_multiprocessors(kernel);
      if (error == cudaSuccess)
        error = launch_kernel(kernel, grid, layout::tuning.threads(), bytes, stream, parameters);
      parameters.place.is_first = false;
    };
    if (!takes_windows) launch_tiles();
    if constexpr (layout::takes_windows)
      if (takes_windows) {
        parameters.window_part_bits =
            parameters.heads_per_block > forward_window_layout<D>::heads ? 1 : 0;
        if (error == cudaSuccess)
          error = launch_longer_windows<T, D>(parameters, extent, blocks, stream);
        parameters.place.is_first = false;
        if (!walks) launch_tiles();
        if (error == cudaSuccess)
          error = launch_windows<T, D>(parameters, extent.tokens, columns, walks && D == 32 ? 1 : 4,
                                       stream);
        if (walks) launch_tiles();
      }
    return error;
  }
}

template <class T, int D, position_encoding Position>
cudaError_t launch_forward(const forward_problem& problem, const launch_extent& extent,
                           cudaStream_t stream) noexcept {
  if constexpr (Position == position_encoding::contextual)
    return launch_contextual_forward<T, D>(problem, extent, stream);
  else
    return launch_grid_forward<T, D, Position>(problem, extent, stream);
}

}  // namespace winnow::detail
