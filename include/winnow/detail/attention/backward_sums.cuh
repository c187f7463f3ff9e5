// SPDX-License-Identifier: Apache-2.0
/// \file
/// The last step of table gradients: parts in, gradients out.
///
/// A block computes 32 elements of one head's table. Its warps, eight of them, each sum up every
/// eighth part of those elements, one element a lane, in order; then one warp adds the eight sums, in
/// order. Bound by reading the parts once, consecutive lanes consecutive elements.
///
/// No other header includes this one, so that it is compiled once and not with every instance.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <int Warps>
__global__ void __launch_bounds__(32 * Warps)
    sum_parts_kernel(const __grid_constant__ parts_sums all) {
  wait_for_predecessor();
  __shared__ float partial[Warps][32];
  const parts_sum& job = all.sums[blockIdx.y];
  const std::int64_t size = std::int64_t{job.axes} * job.rows * job.dim;
  const std::int64_t blocks_per_head = (size + 31) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t block = blockIdx.x; block < blocks_per_head * job.heads; block += gridDim.x) {
    const std::int64_t head = block / blocks_per_head;
    const std::int64_t element = block % blocks_per_head * 32 + lane;
    const std::int64_t d = element % job.dim;
    const std::int64_t row = element / job.dim % job.rows;
    const std::int64_t axis = element / job.dim / job.rows;
    const std::int64_t place = axis < job.backward_axes ? job.last - row : row;
    float sum = 0.0f;
    if (element < size && place >= 0) {
      const std::int64_t part_size = std::int64_t{job.axes} * job.row_pitch * job.dim_pitch;
      const float* parts = job.parts + head * job.count * part_size +
                           (axis * job.row_pitch + place) * job.dim_pitch + d;
#pragma unroll 8
      for (int part = warp; part < job.count; part += Warps) sum += parts[part * part_size];
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && element < size) {
      for (int w = 1; w < Warps; ++w) sum += partial[w][lane];
      float* target =
          job.target + row * job.row_stride + axis * job.axis_stride + head * job.head_stride + d;
      *target = all.accumulate ? *target + sum : sum;
    }
    __syncthreads();
  }
}

template <int Warps>
cudaError_t launch_parts_sums(const parts_sums& sums, cudaStream_t stream) noexcept {
  if (sums.count == 0) return cudaSuccess;
  std::int64_t blocks = 1;
  for (int s = 0; s < sums.count; ++s) {
    const parts_sum& job = sums.sums[s];
    const std::int64_t size = std::int64_t{job.axes} * job.rows * job.dim;
    blocks = std::max(blocks, (size + 31) / 32 * job.heads);
  }
  return launch_kernel(sum_parts_kernel<Warps>,
                       dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 16)),
                            static_cast<unsigned>(sums.count)),
                       32 * Warps, 0, stream, sums);
}

}  // namespace winnow::detail
