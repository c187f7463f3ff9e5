// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a block of contextual_ring_kernel.cuh has to do: tiles of 16 rows, and the groups of 16 keys that they attend to.
///
/// A window of more than 16 tokens has tiles and groups of its own, from its first slot on. Shorter ones share a tile as
/// they follow each other, whose rows are its keys. A block takes neighbouring windows, by tiles, so that all blocks have
/// what costs the same: each reads the sizes of all windows and adds them up.
///
/// Tiles are dealt to readers in turns. A window's tiles come in batches of at most one for each reader, and a batch has
/// its groups made anew: so a reader's next tile never needs what has been made for this one, and a window may be longer
/// than the ring. In the list groups count from 0 on, batch by batch.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_ring_slots.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_short_left.cuh"
#include "winnow/detail/attention/contextual_sizes.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// A tile: its rows are slots [row, row + 16), but not from `end` on, and its keys [first, end).
struct __align__(16) ring_tile {
  int row, first, end;
  int group;  ///< of the first 16 keys
};
/// A turn of a block: as many tiles as the list has room for.
struct ring_turn {
  int tiles, groups;
  int has_more;  ///< is there another turn?
};
inline constexpr int no_group = INT_MAX;  ///< needed by who has no tile left

/// Where the list of the next turn begins.
struct ring_position {
  int window;      ///< the first of a chunk
  int cost;        ///< of all windows before it
  int tiles;       ///< of the block before it
  int first, end;  ///< the block's part of all costs
};

template <class Layout>
struct ring_list {
  static constexpr int chunk = 32;  ///< windows that a warp lists together
  static_assert(most_short_windows / size_chunk < Layout::most_chunks);

  const group_problem& group;
  std::byte* memory;
  int share, shares;
  int lane = lane_id(), warp = warp_id();
  int windows = group.counts->windows;
  /// Otherwise blocks take chunks in turns.
  bool is_dealt = reads_windows(group);
  /// Costs are in quarters of what 16 rows take with 16 keys, and so many bits less where the sum would not fit.
  int shift = max(static_cast<int>(__float_as_uint(most_cost()) >> 23) - (127 + 25), 0);

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  static __device__ __forceinline__ int groups_of(int size) {
    return static_cast<int>((static_cast<unsigned>(size) + 15) / 16);
  }
  /// Of a tile: 16 rows with so many groups of keys, and what is around them. Where a tile has but one group, readers
  /// wait for groups, and where a window has more than there are slots, groups wait for room.
  static __device__ __forceinline__ int cost_of_tile(int groups) {
    return 4 * groups + 13 + (groups == 1 ? 4 : 0) +
           (groups > Layout::slots ? groups / 2 + (groups == Layout::slots + 1 ? 4 : 0) : 0);
  }
  [[nodiscard]] __device__ __forceinline__ float most_cost() const {
    return (static_cast<float>(group.counts->assigned) * (1.0f / 16) +
            static_cast<float>(windows)) *
           static_cast<float>(cost_of_tile(groups_of(group.counts->largest)));
  }
  /// Windows of up to 16 tokens share tiles, four fifths of which they fill.
  [[nodiscard]] __device__ __forceinline__ int cost_of(int size) const {
    const int rows = size <= 16 ? size + (size >> 2) : (size + 15) & ~15;
    const int cost = (rows * (cost_of_tile(groups_of(size)) >> shift)) >> 4;
    return size > 0 ? max(cost, 1) : 0;
  }
  [[nodiscard]] __device__ __forceinline__ int cost_of(const int (&sizes)[4]) const {
    return (cost_of(sizes[0]) + cost_of(sizes[1])) + (cost_of(sizes[2]) + cost_of(sizes[3]));
  }
  /// The slots of window `first + lane`; none behind the last one.
  [[nodiscard]] __device__ __forceinline__ int2 slots_of(int first) const {
    const std::int32_t* const offsets = group.offsets;
    return {offsets[min(first + lane, windows)], offsets[min(first + lane + 1, windows)]};
  }

  /// What windows cost, chunk by chunk. By the block's first warps.
  __device__ __forceinline__ void store_costs() const {
    if (!is_dealt) return;
    auto* const costs = at<int>(Layout::chunk_costs);
    const int whole = windows / size_chunk;
    constexpr int batch = 3;  // loads that are under way together
#pragma unroll 1
    for (int first = warp; first < whole; first += batch * Layout::counters) {
      int sizes[batch][4];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int index = first + i * Layout::counters;
        load_whole(group.offsets, index, index < whole, lane, sizes[i]);
      }
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int index = first + i * Layout::counters;
        const int sum = __reduce_add_sync(all_lanes, cost_of(sizes[i]));
        if (lane == 0 && index < whole) costs[index] = sum;
      }
    }
    if (warp == Layout::counters - 1) {
      int sizes[4];
      load_sizes(group.offsets, whole, windows, lane, sizes);
      const int sum = __reduce_add_sync(all_lanes, cost_of(sizes));
      if (lane == 0) costs[whole] = sum;
    }
  }

  /// By all warps, once costs are stored.
  [[nodiscard]] __device__ __forceinline__ ring_position begin() const {
    if (!is_dealt) return {share * chunk, 0, 0, 0, INT_MAX};
    const int chunks = (windows + size_chunk - 1) / size_chunk;
    const int of_lane = (chunks + 31) / 32;
    const int* const costs = at<const int>(Layout::chunk_costs);
    const int own_first = min(lane * of_lane, chunks), own_end = min(own_first + of_lane, chunks);
    int own = 0;
#pragma unroll 1
    for (int i = own_first; i < own_end; ++i) own += costs[i];
    const int behind = warp_inclusive_sum(own);
    const int sum = __shfl_sync(all_lanes, behind, 31);
    const int first = begin_of_share(sum, share, shares);
    const int end = begin_of_share(sum, share + 1, shares);
    const bool begins = behind - own <= first && first < behind;
    int before = behind - own, index = own_first;
    if (begins)
#pragma unroll 1
      while (before + costs[index] <= first) before += costs[index++];
    const unsigned found = __ballot_sync(all_lanes, begins);
    if (found == 0) return {windows, 0, 0, 0, 0};
    const int source = __ffs(static_cast<int>(found)) - 1;
    return {__shfl_sync(all_lanes, index, source) * size_chunk,
            __shfl_sync(all_lanes, before, source), 0, first, end};
  }
  /// Of a window's tiles, how many begin before a part of its cost.
  [[nodiscard]] __device__ __forceinline__ int tiles_before(int part, int size) const {
    const int cost = cost_of(size), groups = groups_of(size);
    if (part <= 0 || cost == 0) return 0;
    if (part >= cost || groups == 1) return groups;
    const float tiles =
        __fdividef(static_cast<float>(part) * static_cast<float>(groups), static_cast<float>(cost));
    return min(__float2int_ru(tiles), groups);
  }
  /// The first turn's list. By all warps, as the rest here, which meet before they use it.
  __device__ __forceinline__ void make_first() const {
    make(begin(), 0);
  }
  /// The one of another turn.
  __device__ __forceinline__ void make_next(int number) const {
    make(*at<const ring_position>(Layout::position), number);
  }

 private:
  struct part_of_sum {
    int before, sum;  ///< of the warps before this one, and of all
  };
  /// \param which of the sums.
  [[nodiscard]] __device__ __forceinline__ part_of_sum sum_warps(int which, int of_warp) const {
    store_sum(which, of_warp);
    __syncthreads();
    return part_of(which);
  }
  __device__ __forceinline__ void store_sum(int which, int of_warp) const {
    if (lane == 0) at<int>(Layout::chunk_sums)[which * Layout::warps + warp] = of_warp;
  }
  [[nodiscard]] __device__ __forceinline__ part_of_sum part_of(int which) const {
    const int other =
        lane < Layout::warps ? at<int>(Layout::chunk_sums)[which * Layout::warps + lane] : 0;
    return {__reduce_add_sync(all_lanes, lane < warp ? other : 0),
            __reduce_add_sync(all_lanes, other)};
  }
  /// Numbers of two kinds, those of the first kind before all others. \return where this lane's begin, and how many
  /// there are.
  [[nodiscard]] __device__ __forceinline__ part_of_sum number(int which, bool is_first,
                                                              int count) const {
    const int firsts = warp_inclusive_sum(is_first ? count : 0);
    const int others = warp_inclusive_sum(is_first ? 0 : count);
    store_sum(which, __shfl_sync(all_lanes, firsts, 31));
    store_sum(which + 1, __shfl_sync(all_lanes, others, 31));
    __syncthreads();
    const part_of_sum of_firsts = part_of(which), of_others = part_of(which + 1);
    return {
        (is_first ? of_firsts.before + firsts : of_firsts.sum + of_others.before + others) - count,
        of_firsts.sum + of_others.sum};
  }
  /// In rounds, in which each warp has a chunk.
  __device__ __forceinline__ void make(ring_position next, int turn) const {
    const int first_tile = turn * Layout::most_tiles;
    const int end_tile = first_tile + Layout::most_tiles;
    auto* const list = at<ring_tile>(Layout::list) - first_tile;
    const int stride = is_dealt ? chunk : chunk * shares;
    int groups = 0;
    bool has_more = false;
    if (warp == 0 && lane < Layout::readers) at<int>(Layout::needed)[lane] = no_group;
#pragma unroll 1
    while (next.window < windows && next.cost < next.end) {
      const int2 slots = slots_of(min(next.window + warp * stride, windows));
      const int size = slots.y - slots.x;
      const int behind = warp_inclusive_sum(cost_of(size));
      const part_of_sum costs = sum_warps(0, __shfl_sync(all_lanes, behind, 31));
      const int before = next.cost + costs.before + behind - cost_of(size);
      const int begin = tiles_before(next.first - before, size);
      const int end = tiles_before(next.end - before, size);
      const bool is_here = begin < end;
      // Short windows share tiles: the last lane whose window ends within 16 slots.
      const unsigned alone = __ballot_sync(all_lanes, !is_here || size > 16);
      int last = lane;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        const int there = min(last + step, 31);
        if (__shfl_sync(all_lanes, slots.y, there) <= slots.x + 16) last = there;
      }
      const unsigned alone_behind = alone & ~lanes_below() & ~(1u << lane);
      if (alone_behind != 0) last = min(last, __ffs(static_cast<int>(alone_behind)) - 2);
      if ((alone >> lane & 1) != 0) last = lane;
      // Which lanes begin one, from the first lane on.
      unsigned begins = 1u << lane;
      int then = last + 1;
#pragma unroll
      for (int step = 0; step < 5; ++step) {
        const unsigned others = __shfl_sync(all_lanes, begins, min(then, 31));
        const int behind_those = __shfl_sync(all_lanes, then, min(then, 31));
        if (then < 32) begins |= others, then = behind_those;
      }
      begins = __shfl_sync(all_lanes, begins, 0);
      const int unit_end = __shfl_sync(all_lanes, slots.y, last);
      const int count = (begins >> lane & 1) != 0 && is_here ? end - begin : 0;
      // Tiles with many keys come first, so that readers end at about the same time.
      const int keys = groups_of(unit_end - slots.x);
      const bool is_long = keys > 5;
      const part_of_sum tiles = number(1, is_long, count);
      const int first_own = next.tiles + tiles.before;
      const int from = max(first_own, first_tile);
      const int own = max(min(first_own + count, end_tile) - from, 0);
      // As equal batches as can be.
      const int batches = (own + Layout::readers - 1) / Layout::readers;
      const int of_batch = batches > 1 ? (own + batches - 1) / batches : own;
      const part_of_sum all_groups = number(3, is_long, batches * keys);
      int group_of_batch = groups + all_groups.before, in_batch = 0;
      int row = slots.x + 16 * (begin + from - first_own);
#pragma unroll 1
      for (int i = 0; i < own; ++i, row += 16) {
        if (in_batch == of_batch) in_batch = 0, group_of_batch += keys;
        ++in_batch;
        list[from + i] = {row, slots.x, unit_end, group_of_batch};
        if (from + i < first_tile + Layout::readers)
          at<int>(Layout::needed)[from + i - first_tile] = group_of_batch;
      }
      groups += all_groups.sum;
      has_more = next.tiles + tiles.sum > end_tile;
      if (has_more) break;
      next.window += Layout::warps * stride;
      next.cost += costs.sum;
      next.tiles += tiles.sum;
    }
    if (threadIdx.x != 0) return;
    for (int i = 0; i < Layout::makers; ++i) at<int>(Layout::made)[i] = 0;
    if (turn == 0)
      create_barrier(shared_address(at<std::byte>(Layout::has_values)),
                     Layout::readers * warp_arrivals);
    for (int i = 0; i < Layout::slots; ++i) {
      const std::uint32_t slot =
          shared_address(memory) +
          static_cast<std::uint32_t>(Layout::products + i * Layout::slot_bytes);
      const auto create = [&](int barrier, int arrivals) {
        const std::uint32_t own = slot + static_cast<std::uint32_t>(barrier);
        if (turn > 0) remove_barrier(own);
        create_barrier(own, arrivals);
      };
      create(Layout::full, warp_arrivals);
      if constexpr (passes_all_groups) create(Layout::empty, Layout::readers * warp_arrivals);
    }
    *at<ring_turn>(Layout::turn) = {has_more ? Layout::most_tiles : max(next.tiles - first_tile, 0),
                                    groups, has_more ? 1 : 0};
    *at<int>(Layout::bad) = 0;
    *at<ring_position>(Layout::position) = next;
  }
};

}  // namespace winnow::detail
