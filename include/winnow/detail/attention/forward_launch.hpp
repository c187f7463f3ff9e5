// SPDX-License-Identifier: Apache-2.0
/// \file
/// The seam between the host's dispatch and the kernels that nvcc compiled.
/// Needs the CUDA toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

/// What sizes a launch.
struct launch_extent {
  std::int64_t tokens = 0;
  int heads = 0;
  int bias_rows = 0;  ///< of the largest bias table
};

/// Defined in forward_launch.cuh; instantiated by the build, or by whoever uses winnow::headers.
/// \tparam D padded head dim: 16, 32, 64 or 128.
template <class T, int D, position_encoding Position>
cudaError_t launch_forward(const forward_problem& problem, const launch_extent& extent,
                           cudaStream_t stream) noexcept;

}  // namespace winnow::detail
