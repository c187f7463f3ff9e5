// SPDX-License-Identifier: Apache-2.0
/// \file
/// How blocks of the contextual forward kernels share a launch, and what they look at again at the end.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/attention/zero_rows.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// The quotient of numbers below 2²¹, in fewer instructions than the division of integers.
__device__ __forceinline__ int small_quotient(int number, int by) {
  return static_cast<int>(__fdividef(static_cast<float>(number) + 0.5f, static_cast<float>(by)));
}

/// Which part of a launch is a block's.
struct block_share {
  int group, head;
  int share, shares;  ///< of the head's blocks of rows: share, share + shares, …
};
__device__ __forceinline__ block_share share_of_block(const forward_problem& problem) {
  const int block = static_cast<int>(blockIdx.x);
  int g = 0;
  while (g + 1 < problem.group_count && block >= problem.groups[g + 1].first_index) ++g;
  const int shares = problem.groups[g].shares;
  const int index = block - problem.groups[g].first_index;
  const int head = small_quotient(index, shares);
  return {g, head, index - head * shares, shares};
}

/// Where one of equal shares of a sum begins, without an overflow.
__device__ __forceinline__ int share_begin(int sum, int share, int shares) {
  return sum / shares * share + sum % shares * share / shares;
}

/// The same in fewer instructions, rounded alike by all blocks.
__device__ __forceinline__ int begin_of_share(int sum, int share, int shares) {
  const float each = __fdividef(static_cast<float>(sum), static_cast<float>(shares));
  return share == shares ? sum : static_cast<int>(each * static_cast<float>(share));
}

/// Gives every head so many blocks, or every pair of heads. \return the number of blocks.
inline std::int64_t divide_among_blocks(forward_problem& problem, std::int64_t shares,
                                        int heads_of_block = 1) noexcept {
  std::int64_t blocks = 0;
  for (int g = 0; g < problem.group_count; ++g) {
    group_problem& group = problem.groups[g];
    group.first_index = static_cast<int>(blocks);
    group.shares = static_cast<int>(shares);
    blocks += group.heads / heads_of_block * shares;
  }
  return blocks;
}

/// Launches a block of `Layout` for each processor, which has several heads at a time, or fewer blocks where there are
/// hardly so many rows. \param heads of all groups. \param rows that make a block worthwhile.
template <class Layout, class Kernel>
cudaError_t launch_block_each(Kernel kernel, const forward_problem& problem,
                              std::int64_t processors, std::int64_t heads, std::int64_t tokens,
                              int rows, cudaStream_t stream) noexcept {
  forward_problem parameters = problem;
  const cudaError_t error = allow_shared_memory(kernel, Layout::bytes);
  if (error != cudaSuccess) return error;
  const std::int64_t most = (tokens + rows - 1) / rows;
  const std::int64_t shares =
      std::max<std::int64_t>(1, std::min(most, processors * Layout::heads / heads));
  const std::int64_t blocks = divide_among_blocks(parameters, shares, Layout::heads);
  return launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), Layout::threads, Layout::bytes,
                       stream, parameters);
}

/// Zeros for tokens in no window, if they are wanted.
template <class T>
__device__ __forceinline__ void complete_unassigned(const forward_problem& problem,
                                                    const block_share& own) {
  if (!problem.zero_unassigned) return;
  const group_problem& group = problem.groups[own.group];
  const int present = group.counts->tokens;
  constexpr int zeros = 64;
  for (std::int64_t first = group.counts->assigned + std::int64_t{own.share} * zeros;
       first < present; first += own.shares * zeros)
    zero_rows<T>(problem, group.first_head + own.head, group.order + first, 0,
                 static_cast<int>(min(std::int64_t{zeros}, present - first)));
}

/// Rows of a group that tiles have no room for, and rows that came out with elements that are not finite, as a
/// weight of 0 times a foreign NaN may have made them so: slots [begin, end), by a warp. \param shortest window that is
/// the block's; shorter ones are another kernel's.
template <class T>
__device__ __forceinline__ void correct_slots(const forward_problem& problem,
                                              const group_problem& group, int head, int begin,
                                              int end, int shortest = 0) {
  const auto* bounds = reinterpret_cast<const int2*>(group.bounds);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int slot = begin; slot < end; ++slot) {
    bool wrong = group.path == encoding_path::rows;
    if (!wrong) {
      if (bounds[slot].y - bounds[slot].x < shortest) continue;
      const T* out = row_of<T>(problem.out, group.order[slot], head);
      for (int d = lane; d < problem.head_dim; d += 32)
        wrong = wrong || widen(out[d]) * 0.0f != 0.0f;
    }
    if (__any_sync(0xffffffffu, wrong)) attend_row<T>(problem, group, head, slot);
  }
}
/// The same of what a block has. \param rows that it has at a time.
template <class T>
__device__ __forceinline__ void correct_rows(const forward_problem& problem, const block_share& own,
                                             int rows, int shortest) {
  const group_problem& group = problem.groups[own.group];
  const int assigned = group.counts->assigned;
  const int tiles = rows / 16;  // of 16 rows, a warp's
  for (int tile = static_cast<int>(threadIdx.x) / 32;; tile += static_cast<int>(blockDim.x) / 32) {
    const std::int64_t first = (own.share + std::int64_t{tile / tiles} * own.shares) * rows;
    if (first >= assigned) break;
    const int begin = static_cast<int>(first) + tile % tiles * 16;
    correct_slots<T>(problem, group, group.first_head + own.head, begin, min(begin + 16, assigned),
                     shortest);
  }
}

/// What is seldom needed: these rows, and zeros for tokens in no window.
template <class T>
__device__ __forceinline__ void complete_rows(const forward_problem& problem,
                                              const block_share& own, int rows, int shortest = 0) {
  correct_rows<T>(problem, own, rows, shortest);
  complete_unassigned<T>(problem, own);
}

}  // namespace winnow::detail
