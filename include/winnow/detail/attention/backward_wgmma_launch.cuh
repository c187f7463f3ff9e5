// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches the backward kernels of long windows on compute capability 9.0.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/attention/backward_long_wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, int D>
cudaError_t launch_wgmma_backward(const backward_problem& problem, backward_side side,
                                  cudaStream_t stream) noexcept {
  const auto launch = [&](auto layout, auto kernel) {
    using shape = decltype(layout);
    const cudaError_t error = allow_shared_memory(kernel, shape::bytes);
    if (error != cudaSuccess) return error;
    // One wave of blocks for an H200, each of many items.
    const std::int64_t items =
        divide_up<std::int64_t>(problem.max_tokens, shape::rows) * problem.heads;
    backward_problem parameters = problem;
    parameters.place = {false, side == backward_side::query};
    return launch_kernel(kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(132, items))),
                         32 * shape::warps, shape::bytes, stream, parameters,
                         static_cast<const backward_rows&>(parameters));
  };
  using query_layout = backward_wgmma_layout<D, backward_side::query>;
  using key_layout = backward_wgmma_layout<D, backward_side::key>;
  return side == backward_side::query
             ? launch(query_layout{}, differentiate_long_wgmma_kernel<T, query_layout>)
             : launch(key_layout{}, differentiate_long_wgmma_kernel<T, key_layout>);
}

}  // namespace winnow::detail
