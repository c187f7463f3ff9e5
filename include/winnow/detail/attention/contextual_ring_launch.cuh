// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches the contextual forward kernel of spherical windows on compute capability 9.0.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/contextual_ring_kernel.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/forward_launch.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T>
cudaError_t launch_contextual_ring(const forward_problem& problem, const launch_extent& extent,
                                   cudaStream_t stream) noexcept {
  using layout = contextual_ring_layout;
  std::int64_t heads = 0;
  for (int g = 0; g < problem.group_count; ++g) heads += problem.groups[g].heads;
  return launch_block_each<layout>(contextual_ring_kernel<T>, problem,
                                   std::max(1, device_attribute(cudaDevAttrMultiProcessorCount)),
                                   heads, extent.tokens, layout::share_rows, stream);
}

}  // namespace winnow::detail
