// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows contextual_short.cuh takes, and which are left to the kernel behind it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

/// The shortest windows that are left to the kernel behind, of this group: 0 where all are.
template <bool Radial>
__device__ __forceinline__ int shortest_left(const forward_problem& problem,
                                             const group_problem& group) {
  constexpr int longest = contextual_short_layout<Radial>::rows;
  const partition_counts& counts = *group.counts;
  // How many are longer is unknown: a largest one that is hardly longer, and a mean that is clearly
  // shorter, stand for few.
  const bool takes = problem.takes_windows && group.path == encoding_path::tiles &&
                     (counts.largest <= longest ||
                      (counts.largest <= longest + longest / 8 &&
                       counts.assigned <= std::int64_t{counts.windows} * (longest - longest / 4)));
  return takes ? longest + 1 : 0;
}

/// Of groups of so many windows their sizes are read by every block.
inline constexpr int most_short_windows = 1 << 16;
__device__ __forceinline__ bool reads_windows(const group_problem& group) {
  return group.counts->windows <= most_short_windows &&
         reinterpret_cast<std::uintptr_t>(group.offsets) % sizeof(int4) == 0;
}
/// Does contextual_short.cuh take longer windows, too? \param rows in all of them.
__device__ __forceinline__ bool takes_longer(const group_problem& group, int rows) {
  return reads_windows(group) && std::int64_t{rows} * 64 <= group.counts->assigned;
}
/// The same by a block of the kernel behind, which has found such a window; all threads take part.
/// \param sum in shared memory.
__device__ __forceinline__ bool has_taken_longer(const group_problem& group, int shortest,
                                                 int* sum) {
  if (!reads_windows(group)) return false;
  if (threadIdx.x == 0) *sum = 0;
  __syncthreads();
  int rows = 0;
#pragma unroll 8
  for (int window = static_cast<int>(threadIdx.x); window < group.counts->windows;
       window += static_cast<int>(blockDim.x)) {
    const int size = group.offsets[window + 1] - group.offsets[window];
    rows += size >= shortest ? size : 0;
  }
  if (rows > 0) atomicAdd(sum, rows);
  __syncthreads();
  const bool result = takes_longer(group, *sum);
  __syncthreads();
  return result;
}

}  // namespace winnow::detail
