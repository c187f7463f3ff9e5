// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches one instantiation of the backward kernels.
#pragma once

#include <cuda_runtime.h>

#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/backward_tile.cuh"

namespace winnow::detail {

template <class T, int D, position_encoding Position>
cudaError_t launch_backward_tiles(const backward_problem& problem, const backward_extent& extent,
                                  backward_side side, cudaStream_t stream) noexcept {
  if constexpr (Position == position_encoding::contextual && !contextual_tiles_fit(sizeof(T), D)) {
    return cudaErrorNotSupported;  // the dispatch sends such groups row by row
  } else {
    using layout = backward_layout<sizeof(T), D, Position>;
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
