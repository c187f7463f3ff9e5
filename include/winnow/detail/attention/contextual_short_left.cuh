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
/// Has contextual_short.cuh taken longer windows, too? It does if they are few. By a block of the kernel behind, which has
/// found such a window; all threads take part. \param count in shared memory.
__device__ __forceinline__ bool has_taken_longer(const forward_problem& problem,
                                                 const group_problem& group, int shortest,
                                                 int* count) {
  if (!problem.takes_longer || !reads_windows(group)) return false;
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  const auto* const fours = reinterpret_cast<const int4*>(group.offsets);
  const int windows = group.counts->windows;
  // As there, four neighbouring windows count as one.
  int longer = 0;
#pragma unroll 16
  for (int i = static_cast<int>(threadIdx.x); i < windows / 4; i += static_cast<int>(blockDim.x)) {
    const int4 slots = fours[i];
    const int behind = group.offsets[4 * i + 4];
    longer += max(max(slots.y - slots.x, slots.z - slots.y),
                  max(slots.w - slots.z, behind - slots.w)) >= shortest
                  ? 1
                  : 0;
  }
  if (threadIdx.x == 0) {
    int largest = 0;
    for (int window = windows / 4 * 4; window < windows; ++window)
      largest = max(largest, group.offsets[window + 1] - group.offsets[window]);
    longer += largest >= shortest ? 1 : 0;
  }
  if (longer > 0) atomicAdd(count, longer);
  __syncthreads();
  const bool result = *count <= contextual_short_layout<true>::most_longer;
  __syncthreads();
  return result;
}

}  // namespace winnow::detail
