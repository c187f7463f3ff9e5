// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches one instantiation of the backward kernels.
#pragma once

#include <cuda_runtime.h>

#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/backward_tile.cuh"
#include "winnow/detail/attention/backward_window.cuh"

namespace winnow::detail {

/// Short windows, all gradients in one pass.
template <class T, int D>
cudaError_t launch_backward_windows(const backward_problem& problem, cudaStream_t stream) noexcept {
  bool wanted = false;
  for (int g = 0; g < problem.group_count; ++g) wanted |= problem.groups[g].one_pass > 0;
  if (!wanted) return cudaSuccess;
  constexpr std::int64_t slots = window_range * window_warps;
  const std::int64_t blocks = (problem.max_tokens + slots - 1) / slots;
  if (blocks == 0) return cudaSuccess;
  backward_problem parameters = problem;
  void* arguments[] = {&parameters};
  return cudaLaunchKernel(differentiate_windows_kernel<T, D>,
                          dim3(static_cast<unsigned>(problem.heads * blocks)),
                          dim3(32 * window_warps), arguments, 0, stream);
}

template <class T, int D, position_encoding Position>
cudaError_t launch_backward_tiles(const backward_problem& problem, const backward_extent& extent,
                                  backward_side side, cudaStream_t stream) noexcept {
  if constexpr (Position == position_encoding::contextual && !contextual_tiles_fit(sizeof(T), D)) {
    return cudaErrorNotSupported;  // the dispatch sends such groups row by row
  } else {
    using layout = backward_layout<sizeof(T), D, Position>;
    if constexpr (Position == position_encoding::none && one_pass_capacity(sizeof(T), D) > 0)
      if (side == backward_side::query) {
        const cudaError_t error = launch_backward_windows<T, D>(problem, stream);
        if (error != cudaSuccess) return error;
      }
    const auto kernel = side == backward_side::query
                            ? differentiate_tiles_kernel<T, D, Position, backward_side::query>
                            : differentiate_tiles_kernel<T, D, Position, backward_side::key>;
    const std::size_t bytes = layout::bytes(side, extent);
    if (bytes > 48 * 1024) {
      const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      if (error != cudaSuccess) return error;
    }
    backward_problem parameters = problem;
    void* arguments[] = {&parameters};
    return cudaLaunchKernel(kernel,
                            dim3(static_cast<unsigned>(problem.heads * problem.blocks_per_head)),
                            dim3(layout::tuning.threads()), arguments, bytes, stream);
  }
}

template <class T>
cudaError_t launch_backward_rows(const backward_problem& problem, backward_side side,
                                 cudaStream_t stream) noexcept {
  const auto kernel = side == backward_side::query
                          ? differentiate_rows_kernel<T, backward_side::query>
                          : differentiate_rows_kernel<T, backward_side::key>;
  backward_problem parameters = problem;
  void* arguments[] = {&parameters};
  return cudaLaunchKernel(kernel,
                          dim3(static_cast<unsigned>(problem.heads * problem.blocks_per_head)),
                          dim3(32), arguments, 0, stream);
}

}  // namespace winnow::detail
