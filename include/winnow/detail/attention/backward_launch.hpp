// SPDX-License-Identifier: Apache-2.0
/// \file
/// The seam between the host's dispatch of the backward call and the kernels that nvcc compiled.
/// Needs the CUDA toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include "winnow/detail/attention/backward_problem.hpp"

namespace winnow::detail {

/// One gradient of a table: `count` parts to sum up in order for each element.
struct parts_sum {
  const float* parts = nullptr;  ///< [heads][count][axes][row_pitch][dim_pitch]
  float* target = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t axis_stride = 0;
  std::int64_t head_stride = 0;
  int count = 0;
  int heads = 0;
  int axes = 0;
  int rows = 0;
  int dim = 0;
  int row_pitch = 0;
  int dim_pitch = 0;
  /// On the first axes row r is in place `last` - r of a part; what would be before the first is 0.
  int backward_axes = 0;
  int last = 0;
};

struct parts_sums {
  int count = 0;
  bool accumulate = false;
  parts_sum sums[4 * max_head_groups];
};
static_assert(sizeof(parts_sums) <= 4000, "kernel parameters end at 4 KB");

/// Defined in backward_launch.cuh; instantiated by the build, or by whoever uses winnow::headers.
/// Where `problem.one_pass` is set, the query side's launch brings everything that takes one pass.
/// \tparam D padded head dim: 16, 32, 64 or 128.
template <class T, int D, position_encoding Position>
cudaError_t launch_backward_tiles(const backward_problem& problem, const backward_extent& extent,
                                  backward_side side, cudaStream_t stream) noexcept;
/// Tiles that is_wgmma_tile names; defined in backward_wgmma_launch.cuh, for the target sm_90a.
template <class T, int D>
cudaError_t launch_wgmma_backward(const backward_problem& problem, backward_side side,
                                  cudaStream_t stream) noexcept;
template <class T>
cudaError_t launch_backward_rows(const backward_problem& problem, backward_side side,
                                 cudaStream_t stream) noexcept;

/// Warps that share the parts of an element; they decide on the order of the sum.
inline constexpr int summing_warps = 8;

/// Sums up the parts of all tables of a call. Defined in backward_sums.cuh.
template <int Warps>
cudaError_t launch_parts_sums(const parts_sums& sums, cudaStream_t stream) noexcept;

}  // namespace winnow::detail
