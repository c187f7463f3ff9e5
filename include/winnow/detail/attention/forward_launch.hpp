// SPDX-License-Identifier: Apache-2.0
/// \file
/// The seam between the host's dispatch and the kernels that nvcc compiled.
/// Needs the CUDA toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "winnow/detail/attention/forward_wgmma_layout.hpp"
#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

struct launch_extent;
using forward_launcher = cudaError_t (*)(const forward_problem&, const launch_extent&,
                                         cudaStream_t) noexcept;

/// What sizes a launch.
struct launch_extent {
  std::int64_t tokens = 0;
  int heads = 0;
  int bias_rows = 0;  ///< of the largest bias table
  /// Takes long windows on compute capability 9.0; null: was not compiled.
  forward_launcher hopper_launch = nullptr;
  /// The same of spherical windows with contextual encoding.
  forward_launcher hopper_spherical_launch = nullptr;
};

/// Defined in forward_launch.cuh; instantiated by the build, or by whoever uses winnow::headers.
/// \tparam D padded head dim: 16, 32, 64 or 128.
template <class T, int D, position_encoding Position>
cudaError_t launch_forward(const forward_problem& problem, const launch_extent& extent,
                           cudaStream_t stream) noexcept;

/// Defined in forward_wgmma_launch.cuh; instantiated by the build where it compiles for sm_90a.
template <class T, int D>
cudaError_t launch_wgmma_forward(const forward_problem& problem, const launch_extent& extent,
                                 cudaStream_t stream) noexcept;

/// Does `launch_contextual_ring` exist for groups of heads that are all even in number?
constexpr bool takes_contextual_ring(std::size_t element_bytes, int head_dim) {
  return element_bytes == 2 && head_dim == 16;
}
/// Defined in contextual_ring_launch.cuh; instantiated by the build where it compiles for sm_90a.
template <class T>
cudaError_t launch_contextual_ring(const forward_problem& problem, const launch_extent& extent,
                                   cudaStream_t stream) noexcept;

}  // namespace winnow::detail
