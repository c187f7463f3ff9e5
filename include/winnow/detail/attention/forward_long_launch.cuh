// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches a kernel of long windows; forward_long.cuh and forward_long_wgmma.cuh have one each.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/forward_launch.hpp"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// Sets heads_per_block, and each group's first column. \return how many columns there are.
inline int divide_heads(forward_problem& problem, int heads_per_block) noexcept {
  problem.heads_per_block = heads_per_block;
  int columns = 0;
  for (int g = 0; g < problem.group_count; ++g) {
    group_problem& group = problem.groups[g];
    group.first_index = columns;
    columns += (group.heads + heads_per_block - 1) / heads_per_block;
  }
  return columns;
}

/// Kernels that run beside each other on a multiprocessor have to agree on how much of its memory is shared.
template <class Kernel>
cudaError_t share_multiprocessors(Kernel kernel) noexcept {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

/// One wave of blocks for an H200, each of many items: with a few more or less they end together.
template <class Layout, class Kernel>
cudaError_t launch_long_items(Kernel kernel, const forward_problem& problem,
                              const launch_extent& extent, cudaStream_t stream) noexcept {
  constexpr std::int64_t blocks = 132 * Layout::min_blocks;
  const std::int64_t tiles = divide_up<std::int64_t>(extent.tokens, Layout::rows);
  forward_problem parameters = problem;
  int columns = 0;
  std::int64_t least_time = INT64_MAX;
  for (int heads = 1; heads <= Layout::most_heads; heads *= 2) {
    forward_problem divided = problem;
    const int divisions = divide_heads(divided, heads);
    // Blocks take items in rounds. An item's beginning takes as long as a quarter of a head. What is left
    // for a last round may come head by head.
    const std::int64_t rounds = divisions * tiles / blocks;
    const std::int64_t left = divisions * tiles % blocks;
    const std::int64_t together = left > 0 ? 4 * heads + 1 : 0;
    const std::int64_t apart = divide_up(left * heads, blocks) * 5;
    const std::int64_t time = rounds * (4 * heads + 1) + std::min(together, apart);
    if (time >= least_time) continue;
    least_time = time;
    parameters = divided;
    columns = divisions;
    if (rounds > 0 && apart < together) parameters.whole_items = rounds * blocks;
  }
  cudaError_t error = share_multiprocessors(kernel);
  if (error != cudaSuccess) return error;
  error = allow_shared_memory(kernel, Layout::bytes);
  if (error != cudaSuccess) return error;
  return launch_kernel(kernel, dim3(static_cast<unsigned>(std::min(blocks, columns * tiles))),
                       32 * Layout::warps, Layout::bytes, stream, parameters, tiles, columns);
}

}  // namespace winnow::detail
