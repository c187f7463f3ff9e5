// SPDX-License-Identifier: Apache-2.0
/// \file
/// The forward kernel.
///
/// What a block computes: up to four heads, one after the other, of 32 to 128 consecutive slots, 16
/// a warp. Slots are sorted by window, so the keys these rows need are one range: from the start of
/// the first row's window to the end of the last row's. The block walks that range in key tiles;
/// each warp walks the part that its own 16 rows need and masks keys by the windows of its rows. No
/// window is padded and no schedule is built: short windows cost about 16·(16 + n) pairs a tile, and
/// a window of 50,000 tokens is the same loop with more turns, where keys are shared by the block
/// and masks vanish. Tiles inside of long windows, plain and of 16 bits, are left to forward_long.cuh.
///
/// Where things live: Q's fragments, the result O and the softmax state in registers (float: Q in
/// shared memory); K and V in shared memory, rows padded by 16 bytes against bank conflicts, in two
/// stages: one is computed on while cp.async fills the other through `order`. A turn is one tile of
/// one head and has one barrier, so that the next head's first tile loads behind the last one's
/// arithmetic. The position encoding is a policy with its own registers and shared memory
/// (encoding.cuh); contextual encoding has a kernel of its own (contextual_kernel.cuh).
///
/// Groups that have hardly any but short windows, without a position encoding, have a kernel of their
/// own (forward_window_kernel.cuh), which leaves to this one windows that are far longer; rows of others are
/// passed over. Both, and that of long windows, are launched, since only the device knows which groups those
/// are; blocks of groups that are not theirs end at once, and the kernels run beside each other
/// (`begin_beside`). Where there are many tokens blocks ask for 32 tiles at once: one after the other took a tenth
/// of a call of long windows.
///
/// What bounds it: for short windows, latency and the instructions around the products, so the first
/// loads go out together, registers are few enough for 24 warps a multiprocessor, and heads vary
/// fastest in the grid, which lets the heads of one token meet in L2. For long windows,
/// exponentials at head dim 16, shared memory and tensor cores above. Code that is seldom needed
/// (rows off 16 bytes, rows that are not finite) is in other instantiations or at the very end: in
/// the loop it cost registers, and the loop a third of its speed.
///
/// NaN and infinity: a masked weight is exactly 0, but 0 · NaN is not. Rows that come out non-finite
/// are computed again by exact_row.cuh, which touches no foreign key.
///
/// Why warps and not warpgroups: 16 rows waste the least on short windows, and the same code runs
/// on every architecture from sm_80.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_block.cuh"
#include "winnow/detail/attention/forward_long.cuh"
#include "winnow/detail/attention/forward_window.cuh"
#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/zero_rows.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// The group and the heads of a block's column.
struct forward_column {
  const group_problem& group;
  int first_head;  ///< among the group's
  int heads;

  static __device__ __forceinline__ const group_problem& find(const forward_problem& problem,
                                                              int column) {
    int g = 0;
    while (g + 1 < problem.group_count && column >= problem.groups[g + 1].first_index) ++g;
    return problem.groups[g];
  }
  __device__ __forceinline__ forward_column(const forward_problem& problem, int column)
      : group(find(problem, column)),
        first_head((column - group.first_index) * problem.heads_per_block),
        heads(min(problem.heads_per_block, group.heads - first_head)) {}
};

/// Rows [64 · number, 64 · number + 64), or as many as a block has, of windows that are longer than
/// `passed_over`.
template <class T, int D, position_encoding Position, bool Vectors>
__device__ __forceinline__ void attend_block(const forward_problem& problem,
                                             const group_problem& group, int first_head, int heads,
                                             std::int64_t number, int passed_over,
                                             std::byte* memory) {
  using layout = forward_layout<sizeof(T), D, Position>;
  const std::int64_t start = number * layout::rows;
  if (start >= group.max_tokens) return;
  const int first = static_cast<int>(start);
  const int stored = static_cast<int>(min(std::int64_t{layout::rows}, group.max_tokens - start));

  // All of the first loads at once, so that one latency serves them.
  const auto* slots = reinterpret_cast<const int2*>(group.bounds) + start;
  const int assigned = group.counts->assigned;
  const int present = group.counts->tokens;
  const int range_first = slots[0].x;
  int range_last = slots[stored - 1].y;
  int2 own_bounds = {0, 0};
  std::int32_t own_token = 0;
  const int row = static_cast<int>(threadIdx.x);
  if (row < stored) {
    own_bounds = slots[row];
    own_token = group.order[start + row];
  }
  const int active = max(0, min(assigned - first, layout::rows));
  if (active < stored && active > 0) range_last = slots[active - 1].y;
  // Rows past the last token in a window attend to nothing.
  if (row >= active || own_bounds.y - own_bounds.x <= passed_over) own_bounds = {0, 0};
  auto* tokens = reinterpret_cast<std::int32_t*>(memory + layout::query_order);
  if (row < layout::rows) {
    reinterpret_cast<int2*>(memory + layout::bounds)[row] = own_bounds;
    tokens[row] = own_token;
  }
  if (problem.zero_unassigned && active < stored) {
    __syncthreads();
    for (int h = 0; h < heads; ++h)
      zero_rows<T>(problem, group.first_head + first_head + h, tokens, active,
                   max(active, min(present - first, layout::rows)));
  }
  if (active == 0) return;
  if constexpr (!Vectors || Position != position_encoding::none)
    if (group.path == encoding_path::rows) {
      const int begin = row / 32 * 16;
      for (int h = 0; h < heads; ++h)
        for (int r = begin; r < min(begin + 16, active); ++r)
          attend_row<T>(problem, group, group.first_head + first_head + h, first + r);
      return;
    }
  forward_block<T, D, Position, Vectors> block{
      problem, group,  memory,      first_head, heads,
      first,   active, range_first, range_last, shared_address(memory)};
  block.run();
}

/// Is there anything for forward_block.cuh to do in the tile of `Rows` slots from `start` on? Not where
/// forward_long.cuh takes it, nor where only short windows and no tokens without one are.
template <int D, int Rows>
__device__ __forceinline__ bool wants_tile(const forward_problem& problem,
                                           const group_problem& group, std::int64_t start,
                                           int passed_over) {
  static_assert(long_tile % Rows == 0);
  const int assigned = group.counts->assigned;
  if (start >= group.max_tokens) return false;
  if (problem.zero_unassigned && start + Rows > assigned) return true;
  if (start >= assigned) return false;
  if (group.has_long_tiles && group.counts->largest >= forward_long_layout<D>::window) {
    const std::int64_t tile = start / long_tile * long_tile;
    if (tile + long_tile <= assigned && is_long_tile<D>(group, tile)) return false;
  }
  if (passed_over == 0) return true;
  // Longer windows cover the middle of a tile or one of its ends.
  bool wanted = false;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const std::int64_t slot = start + min(i * (Rows / 2), Rows - 1);
    if (slot < assigned) {
      const int2 window = reinterpret_cast<const int2*>(group.bounds)[slot];
      wanted |= window.y - window.x > passed_over;
    }
  }
  return wanted;
}

/// Every n-th tile of rows, for n blocks, of which this one has number `block`. Lanes look at 32 of its
/// tiles at once.
template <class T, int D>
__device__ __forceinline__ void walk_tiles(const forward_problem& problem,
                                           const forward_column& column, int passed_over, int block,
                                           int blocks, std::byte* memory) {
  using layout = forward_layout<sizeof(T), D, position_encoding::none>;
  const group_problem& group = column.group;
#pragma unroll 1
  for (std::int64_t first = block; first * layout::rows < group.max_tokens;
       first += 32 * std::int64_t{blocks}) {
    const std::int64_t seen = first + static_cast<std::int64_t>(threadIdx.x & 31) * blocks;
#pragma unroll 1
    for (unsigned wanted = __ballot_sync(
             0xffffffffu,
             wants_tile<D, layout::rows>(problem, group, seen * layout::rows, passed_over));
         wanted != 0; wanted &= wanted - 1) {
      const std::int64_t turn = __ffs(static_cast<int>(wanted)) - 1;
      attend_block<T, D, position_encoding::none, true>(problem, group, column.first_head,
                                                        column.heads, first + turn * blocks,
                                                        passed_over, memory);
      __syncthreads();
    }
  }
}

/// Grid: x the columns of heads of the launch, y and z the blocks of rows, y first.
/// \tparam Walks a block takes several tiles of rows, and y is all there is.
template <class T, int D, position_encoding Position, bool Vectors, bool Walks>
__global__ void __launch_bounds__(forward_layout<sizeof(T), D, Position>::tuning.threads(),
                                  forward_layout<sizeof(T), D, Position>::tuning.min_blocks)
    attention_forward_kernel(const __grid_constant__ forward_problem problem) {
  begin_beside(problem.place);
  using layout = forward_layout<sizeof(T), D, Position>;
  extern __shared__ __align__(128) std::byte aligned_memory[];
  const forward_column column(problem, static_cast<int>(blockIdx.x));
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  bool wanted = true;
  int passed_over = 0;
  if constexpr (Vectors && layout::takes_windows)
    if (takes_windows<D>(problem, column.group)) {
      passed_over = forward_window_layout<D>::longest;
      wanted = column.group.counts->largest > passed_over || problem.zero_unassigned;
    }
  if constexpr (Walks) {
    if (wanted)
      walk_tiles<T, D>(problem, column, passed_over, static_cast<int>(blockIdx.y),
                       static_cast<int>(gridDim.y), aligned_memory);
  } else {
    if constexpr (Vectors && layout::walks_tiles)
      wanted = wanted && wants_tile<D, layout::rows>(problem, column.group, block * layout::rows,
                                                     passed_over);
    if (wanted)
      attend_block<T, D, Position, Vectors>(problem, column.group, column.first_head, column.heads,
                                            block, passed_over, aligned_memory);
  }
  end_beside(problem.place, block == 0 && blockIdx.x == 0);
}

}  // namespace winnow::detail
