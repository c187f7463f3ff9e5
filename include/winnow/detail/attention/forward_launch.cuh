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
#include "winnow/detail/attention/forward_window_kernel.cuh"
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

/// The windows of groups of short ones: a block for each multiprocessor.
template <class T, int D>
cudaError_t launch_windows(const forward_problem& problem, std::int64_t tokens,
                           cudaStream_t stream) noexcept {
  using layout = forward_window_layout<D>;
  forward_problem parameters = problem;
  const int columns = divide_heads(parameters, layout::heads);
  const int ranges = static_cast<int>(divide_up<std::int64_t>(tokens, layout::range));
  const int most_bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int warps = std::clamp((most_bytes - layout::block_bytes) / layout::warp_bytes, 1,
                               int{layout::most_warps});
  const int blocks = std::max(1, device_attribute(cudaDevAttrMultiProcessorCount));
  const auto kernel = attend_windows_kernel<T, D>;
  cudaError_t error = share_multiprocessors(kernel);
  if (error != cudaSuccess) return error;
  const std::size_t bytes = static_cast<std::size_t>(warps) * layout::warp_bytes;
  error = allow_shared_memory(kernel, bytes);
  if (error != cudaSuccess) return error;
  return launch_kernel(kernel, dim3(static_cast<unsigned>(std::min(blocks, ranges))), 32 * warps,
                       bytes, stream, parameters, columns, ranges);
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
    parameters.place = {true, true};
    // Short windows first: where there are none, blocks that find that out are few. Then what takes longest.
    if constexpr (layout::takes_windows)
      if (takes_windows) {
        error = launch_windows<T, D>(parameters, extent.tokens, stream);
        parameters.place.is_first = false;
      }
    if constexpr (forward_long_layout<D>::exists)
      if (has_long_tiles) {
        if (error == cudaSuccess) error = launch_long_forward<T, D>(parameters, extent, stream);
        parameters.place.is_first = false;
      }
    if (error == cudaSuccess && !parameters.place.is_first) error = share_multiprocessors(kernel);
    if (error == cudaSuccess)
      error = launch_kernel(kernel, grid, layout::tuning.threads(), bytes, stream, parameters);
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
