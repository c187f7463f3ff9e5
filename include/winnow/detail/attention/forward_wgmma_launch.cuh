// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches the forward kernel of long windows on compute capability 9.0.
#pragma once

#include <cuda_runtime.h>

#include "winnow/detail/attention/forward_launch.hpp"
#include "winnow/detail/attention/forward_long_launch.cuh"
#include "winnow/detail/attention/forward_long_wgmma.cuh"

namespace winnow::detail {

template <class T, int D>
cudaError_t launch_wgmma_forward(const forward_problem& problem, const launch_extent& extent,
                                 cudaStream_t stream) noexcept {
  using layout = forward_wgmma_layout<D>;
  return launch_long_items<layout>(attend_long_wgmma_kernel<T, layout>, problem, extent, stream);
}

}  // namespace winnow::detail
