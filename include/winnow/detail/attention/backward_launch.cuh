// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches one instantiation of the backward kernels.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "winnow/detail/attention/backward_contextual.cuh"
#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/backward_tile.cuh"

namespace winnow::detail {

template <class T, int D, position_encoding Position>
cudaError_t launch_backward_tiles(const backward_problem& problem, const backward_extent& extent,
                                  backward_side side, cudaStream_t stream) noexcept {
  const bool of_queries = side == backward_side::query;
  void (*kernel)(backward_problem) = nullptr;
  std::size_t bytes = 0;
  int threads = 0;
  if constexpr (Position != position_encoding::contextual) {
    using layout = backward_layout<sizeof(T), D, Position>;
    kernel = of_queries ? differentiate_tiles_kernel<T, D, Position, backward_side::query>
                        : differentiate_tiles_kernel<T, D, Position, backward_side::key>;
    bytes = layout::bytes(side, extent);
    threads = layout::tuning.threads();
  } else if constexpr (contextual_tiles_fit(dtype_of<T>, D)) {
    const auto choose = [&](auto radial) {
      using query_layout = contextual_layout<sizeof(T), D, backward_side::query, radial.value>;
      using key_layout = contextual_layout<sizeof(T), D, backward_side::key, radial.value>;
      kernel = of_queries
                   ? differentiate_contextual_kernel<T, D, backward_side::query, radial.value>
                   : differentiate_contextual_kernel<T, D, backward_side::key, radial.value>;
      bytes = of_queries ? query_layout::bytes : key_layout::bytes;
      threads = query_layout::tuning.threads();
    };
    if (extent.radial)
      choose(std::true_type{});
    else
      choose(std::false_type{});
  } else {
    return cudaErrorNotSupported;  // the dispatch sends such groups row by row
  }
  if (bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  backward_problem parameters = problem;
  void* arguments[] = {&parameters};
  return cudaLaunchKernel(kernel,
                          dim3(static_cast<unsigned>(problem.heads * problem.blocks_per_head)),
                          dim3(static_cast<unsigned>(threads)), arguments, bytes, stream);
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
