// SPDX-License-Identifier: Apache-2.0
/// \file
/// The kernel of groups of short windows.
///
/// What a block computes: its share of the ranges of 32 slots, for all columns of two heads (one at D = 32). There is
/// a block for each multiprocessor. Its warps take the ranges as they come, and wait for each other but
/// once, at the beginning: a block for each range took 1.8 µs of a warp's place before it began, a fifth of the
/// time. Who takes what does not change a result.
///
/// While a warp computes a range (forward_window.cuh), bounds and tokens of its next one are on their way.
///
/// Longer windows of such groups come first, in pieces that all warps share (forward_window_pieces.cuh), as they
/// take longest. A block finds those that start in its ranges at once, half a range a thread.
///
/// Where no group has short windows the blocks end at once: one each multiprocessor, in a microsecond.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/forward_window.cuh"
#include "winnow/detail/attention/forward_window_pieces.cuh"
#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// A block's share of the slots of all groups: every n-th range. Windows cost alike where they are near
/// each other, and blocks take turns, so that none has ranges of one kind alone.
/// \return the number of a range, past the last one where there is none
__device__ __forceinline__ int range_of_block(int turn) {
  const auto blocks = static_cast<int>(gridDim.x);
  int block = static_cast<int>(blockIdx.x) + (turn & 63);
  while (block >= blocks) block -= blocks;
  return turn * blocks + block;
}

/// The next number, the same for a warp's lanes. \param tickets the address of how many have been taken
__device__ __forceinline__ int take_ticket(std::uint32_t tickets) {
  int ticket = 0;
  if (lane_id() == 0)
    asm volatile("atom.shared.add.u32 %0, [%1], 1;" : "=r"(ticket) : "r"(tickets) : "memory");
  return __shfl_sync(all_lanes, ticket, 0);
}

/// The pieces of longer windows in a block's ranges.
template <class T, int D>
struct piece_list {
  using layout = forward_window_layout<D>;
  int count;
  int taken;
  int first_slots[32 * layout::most_warps];

  /// All threads of a block, for the `assigned` slots of group `g`. A thread looks at half a range at a time.
  __device__ __forceinline__ void attend_all(const forward_problem& problem, int g, int assigned,
                                             std::uint32_t memory) {
    static_assert(2 * layout::rows == layout::range);
    const group_problem& group = problem.groups[g];
    const auto* bounds = reinterpret_cast<const int2*>(group.bounds);
#pragma unroll 1
    for (int first_half = 0;
         std::int64_t{range_of_block(first_half / 2)} * layout::range < assigned;
         first_half += static_cast<int>(blockDim.x)) {
      __syncthreads();  // all warps are done with the list
      if (threadIdx.x == 0) count = taken = 0;
      __syncthreads();
      const int half = first_half + static_cast<int>(threadIdx.x);
      const std::int64_t from =
          std::int64_t{range_of_block(half / 2)} * layout::range + half % 2 * layout::rows;
      const std::int64_t to = min(from + layout::rows, std::int64_t{assigned});
      if (from < to && (has_pieces<D>(bounds[from]) || has_pieces<D>(bounds[to - 1])))
        first_slots[atomicAdd(&count, 1)] = static_cast<int>(from);
      __syncthreads();
#pragma unroll 1
      for (;;) {
        const int next = take_ticket(shared_address(&taken));
        const int place = next / group.heads;
        if (place >= count) break;
        const int slot = first_slots[place];
        piece_attender<T, D>{problem, group, memory, group.first_head + next % group.heads}.run(
            slot, min(slot + layout::rows, assigned));
      }
    }
  }
};

/// How a warp of a block of `attend_windows_kernel` goes from range to range.
template <class T, int D>
struct window_walk {
  using layout = forward_window_layout<D>;

  const forward_problem& problem;
  int columns;              ///< of heads
  int ranges;               ///< of slots
  std::uint32_t memory;     ///< the block's
  std::uint32_t addresses;  ///< `window_vectors`
  const int* assigned;      ///< slots of a group; 0: not taken here

  /// What a warp is about to do: the windows of a column that start in `range` slots.
  struct item {
    int from;  ///< negative: there are no more ranges
    int column;
  };
  /// Found again each time, so that little is kept over a range.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t own_memory() const {
    int warp = warp_id();
    asm volatile("" : "+r"(warp));
    return memory + static_cast<std::uint32_t>(warp * layout::warp_bytes);
  }
  /// \param which of the warp's two
  [[nodiscard]] __device__ __forceinline__ std::uint32_t list(int which) const {
    return own_memory() +
           static_cast<std::uint32_t>(layout::row_bytes + which * layout::list_bytes);
  }
  [[nodiscard]] __device__ __forceinline__ item item_of(int which) const {
    const int2 words = load_shared_pair(list(which) + layout::item);
    return {words.x, words.y};
  }
  [[nodiscard]] __device__ __forceinline__ int group_of(int column) const {
    int g = 0;
    while (g + 1 < problem.group_count && column >= problem.groups[g + 1].first_index) ++g;
    return g;
  }
  [[nodiscard]] __device__ __forceinline__ window_attender<T, D> attender(int column, int g,
                                                                          int which) const {
    const group_problem& group = problem.groups[g];
    const int head = (column - group.first_index) * layout::heads;
    return {problem,
            group,
            own_memory(),
            list(which),
            addresses,
            group.first_head + head,
            min(layout::heads, group.heads - head)};
  }

  __device__ __forceinline__ void request(int ticket, int which) const {
    item next = {0, 0};
    if (columns > 1) {
      const int turn = ticket / columns;
      next.column = ticket - turn * columns;
      ticket = turn;
    }
    const int range = range_of_block(ticket);
    next.from = range < ranges ? range * layout::range : -1;
    if (lane_id() == 0) {
      store_shared(list(which) + layout::item, static_cast<std::uint32_t>(next.from));
      store_shared(list(which) + layout::item + 4, static_cast<std::uint32_t>(next.column));
    }
    if (next.from >= 0)
      attender(next.column, group_of(next.column), which).request_range(next.from);
    commit_copies();
  }

  /// Until there are no ranges any more. The first one has been requested.
  __device__ __forceinline__ void run(std::uint32_t tickets) const {
    __syncwarp();
#pragma unroll 1
    for (int which = 0;; which ^= 1) {
      item now = item_of(which);
      if (now.from < 0) break;
      // What the next range's addresses are comes while this one is computed.
      request(take_ticket(tickets), which ^ 1);
      wait_for_copies<1>();
      __syncwarp();
      int g = group_of(now.column);
      const bool broken = attender(now.column, g, which).run(now.from, assigned[g]);
      // Where nothing else lives, the call costs no registers.
      if (__any_sync(all_lanes, broken)) {
        now = item_of(which);
        g = group_of(now.column);
        attender(now.column, g, which).repair(now.from, assigned[g]);
      }
      __syncwarp();  // all lanes have read the range's bounds and tokens
    }
  }
};

/// The short windows of groups of short ones. Grid: as many blocks as run at once. Their warps take turns of
/// ranges and columns of heads as they come.
template <class T, int D>
__global__ void __launch_bounds__(32 * forward_window_layout<D>::most_warps, 1)
    attend_windows_kernel(const __grid_constant__ forward_problem problem, int columns,
                          int ranges) {
  begin_beside(problem.place);
  using layout = forward_window_layout<D>;
  extern __shared__ __align__(128) std::byte aligned_memory[];
  __shared__ int tickets;
  __shared__ int assigned[max_head_groups];
  __shared__ window_vectors<T, D> vectors;
  __shared__ piece_list<T, D> pieces;
  const window_walk<T, D> walk{
      problem, columns, ranges, shared_address(aligned_memory), shared_address(&vectors), assigned};
  // Before it is known whether that is wanted, so that one latency serves both.
  walk.request(warp_id(), 0);
  int own_assigned = 0;
  bool own_longer = false;
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < problem.group_count && takes_windows<D>(problem, problem.groups[thread])) {
    own_assigned = problem.groups[thread].counts->assigned;
    own_longer = problem.groups[thread].counts->largest > layout::capacity;
  }
  if (thread < max_head_groups) assigned[thread] = own_assigned;
  if (thread == 0) tickets = static_cast<int>(blockDim.x / 32);
  vectors.fill(problem, thread);
  if (__syncthreads_or(own_assigned) != 0) {
    if (__syncthreads_or(own_longer) != 0)
#pragma unroll 1
      for (int g = 0; g < problem.group_count; ++g)
        pieces.attend_all(problem, g, assigned[g], walk.own_memory());
    walk.run(shared_address(&tickets));
  }
  end_beside(problem.place, blockIdx.x == 0);
}

}  // namespace winnow::detail
