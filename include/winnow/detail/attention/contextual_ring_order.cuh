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

  [[nodiscard]] __device__ __forceinline__ int count() const {
    const int units = (assigned + Layout::pass_rows - 1) / Layout::pass_rows;
    return (units - share + shares - 1) / shares;
  }
  /// The keys of a pass, if there is that pass.
  [[nodiscard]] __device__ __forceinline__ int size_of(int pass) const {
    if (pass >= min(count(), Layout::most_listed)) return 0;
    const int row = (share + pass * shares) * Layout::pass_rows;
    return bounds[min(row + Layout::pass_rows, assigned) - 1].y - bounds[row].x;
  }
  /// By all threads of the block, which meet. \param size of the pass with the thread's number. \param sizes room for
  /// one of each pass. \param order of the passes. \return how many passes are in it: all, or none, as there are too
  /// many.
  __device__ __forceinline__ int list(int size, int* sizes, std::uint16_t* order) const {
    const int passes = count();
    if (passes > Layout::most_listed) return 0;
    const int own = static_cast<int>(threadIdx.x);
    if (own < passes) sizes[own] = size;
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
