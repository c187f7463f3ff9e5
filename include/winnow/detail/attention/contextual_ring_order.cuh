// SPDX-License-Identifier: Apache-2.0
/// \file
/// In which order a block of contextual_ring_kernel.cuh takes its passes: those with the most keys first. In the order of
/// slots the last pass of a team may be one of the longest, while the other teams have ended.
///
/// A thread reads the bounds of a pass, and counts the passes that come before it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace winnow::detail {

/// The passes of a block are every `shares`-th one from `share` on.
template <class Layout>
struct ring_order {
  const int2* bounds;
  int assigned;
  int share, shares;

  /// By all threads of the block, which meet. \param sizes room for one of each pass. \param order of the passes.
  /// \return how many passes are in it: all, or none, as there are too many.
  __device__ __forceinline__ int list(int* sizes, std::uint16_t* order) const {
    const int units = (assigned + Layout::pass_rows - 1) / Layout::pass_rows;
    const int passes = (units - share + shares - 1) / shares;
    if (passes > Layout::most_listed) return 0;
    const int own = static_cast<int>(threadIdx.x);
    int size = 0;
    if (own < passes) {
      const int row = (share + own * shares) * Layout::pass_rows;
      size = bounds[min(row + Layout::pass_rows, assigned) - 1].y - bounds[row].x;
      sizes[own] = size;
    }
    __syncthreads();
    if (own < passes) {
      int rank = 0;
      for (int other = 0; other < passes; ++other)
        rank += sizes[other] > size || (sizes[other] == size && other < own) ? 1 : 0;
      order[rank] = static_cast<std::uint16_t>(own);
    }
    return passes;
  }
};

}  // namespace winnow::detail
