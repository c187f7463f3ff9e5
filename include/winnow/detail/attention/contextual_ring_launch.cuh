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
  using layout = contextual_ring_layout<true>;
  forward_problem parameters = problem;
  const auto kernel = contextual_ring_kernel<T, true>;
  const cudaError_t error = allow_shared_memory(kernel, layout::bytes);
  if (error != cudaSuccess) return error;
  std::int64_t pairs = 0;
  for (int g = 0; g < problem.group_count; ++g) pairs += problem.groups[g].heads / layout::heads;
  const std::int64_t processors = std::max(1, device_attribute(cudaDevAttrMultiProcessorCount));
  const std::int64_t most = (extent.tokens + layout::pass_rows - 1) / layout::pass_rows;
  const std::int64_t shares = std::max<std::int64_t>(1, std::min(most, processors / pairs));
  const std::int64_t blocks = divide_among_blocks(parameters, shares, layout::heads);
  return launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), layout::threads, layout::bytes,
                       stream, parameters);
}

}  // namespace winnow::detail
