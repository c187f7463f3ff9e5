// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of more than 16 tokens a block of contextual_units_kernel.cuh takes, dealt out by cost.
///
/// Windows in stripes of slots make blocks differ by an eighth to a quarter, as a few long windows are most of the
/// work. So each block reads where windows begin, adds up what those of more than 16 tokens cost, and takes its share
/// of the sum, in the order of the threads that have read them: a thread reads four neighbouring windows a round. The
/// first and the last of a share's windows may be cut between tiles. Where windows are many it takes part in every
/// other chunk of them only, as reading all of them takes more than it gains. All blocks of the same chunks come to the
/// same sums, so that nothing is taken twice.
///
/// A thread keeps what its windows cost together. Those whose windows the share has a part of, a dozen of them, are
/// listed, and a warp for each looks at its windows again, a lane each.
///
/// Behind another kernel of the call blocks begin one after the other, as multiprocessors have done with that one. Those
/// that begin first, which are the first ones, then take more.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_units_plan.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_deal : contextual_units_plan<T, Heads> {
  using base = contextual_units_plan<T, Heads>;
  using base::counter_of;
  using base::group;
  using base::share;
  using base::shares;
  using base::warp;
  using typename base::layout;

  /// Costs of 16 rows' beginning and end and of 16 keys of theirs, in units of 100
  /// instructions of two heads.
  static constexpr int tile_cost = 8, group_cost = 8;
  static_assert(tile_cost == group_cost);  // or cost_of_four would be another sum
  /// So much more than the mean the first block takes where another kernel is before, and so much less the last one.
  /// Of many windows more are short, and those are not dealt out.
  static __device__ __forceinline__ float first_more(int parts) { return parts > 1 ? 0.3f : 0.16f; }
  /// What a window costs, by its groups of 16 tokens behind the first one; nothing, if there is none.
  static __device__ __forceinline__ int cost_of(int more_groups) {
    return more_groups > 0 ? tile_cost * (more_groups + 1) * (more_groups + 2) : 0;
  }
  static __device__ __forceinline__ int more_groups_of(int tokens) {
    return max(tokens - 1, 0) / 16;
  }

  /// A thread that has read windows of which the block has a part.
  struct dealt_thread {
    int thread, before;  ///< what the windows before its first one cost
  };
  static_assert(sizeof(dealt_thread) == 8);
  /// So much may cost what a block has on its lists at a time: nothing on them costs less than a tile of a window of two
  /// groups.
  static constexpr int most_cost =
      (layout::warps * layout::most_tiles - 4) * (tile_cost + 2 * group_cost);

  /// Which of the windows a block shares with which others.
  struct dealt_part {
    int rounds;  ///< in which threads read four windows each; none: windows are not dealt out
    int parts, part;
    int cost, before;  ///< of the windows that this thread has read, and of those of the warp's lanes before it
  };
  static constexpr int windows_of_round = 4 * layout::threads;
  /// The first of four windows, from the number of one in a part on.
  __device__ __forceinline__ static int window_of_part(const dealt_part& own, int number) {
    return (number / chunk * own.parts + own.part) * chunk + number % chunk;
  }
  /// Which windows the block deals out with others: all, every other chunk, or, if there are too many, none.
  __device__ __forceinline__ dealt_part find_part() const {
    const int windows = group().counts->windows;
    // Or what follows from it would be kept for the block's next turn.
    const int shares = in_register(base::shares);
    const int parts = windows > layout::dealt_windows ? 2 : 1;
    // Groups behind a window's first one fit eight bits.
    if (windows == 0 || windows > 2 * layout::dealt_windows || shares % parts != 0 ||
        group().counts->largest > 16 * 253 || this->parts() > 1 ||
        reinterpret_cast<std::uintptr_t>(group().offsets) % sizeof(int4) != 0)
      return {0, 1, 0, 0, 0};
    const int chunks = (windows + parts * chunk - 1) / (parts * chunk);
    return {(chunks * chunk + windows_of_round - 1) / windows_of_round, parts, share % parts, 0, 0};
  }
  /// Where the windows of some rounds begin.
  static constexpr int batch = 8;
  using dealt_slots = int[batch][5];
  __device__ __forceinline__ void load_slots(const dealt_part& own, int first_round,
                                             dealt_slots& slots) const {
    const std::int32_t* const offsets = group().offsets;
    const int windows = group().counts->windows;
    const int thread = in_register(static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < batch; ++i) {
#pragma unroll
      for (int& slot : slots[i]) slot = 0;
      if (first_round + i >= own.rounds) continue;
      const int window =
          window_of_part(own, (first_round + i) * windows_of_round + 4 * thread);
      if (window + 4 <= windows) {
        const int4 four = *reinterpret_cast<const int4*>(offsets + window);
        slots[i][0] = four.x, slots[i][1] = four.y, slots[i][2] = four.z, slots[i][3] = four.w;
        slots[i][4] = offsets[window + 4];
      } else {
#pragma unroll
        for (int j = 0; j < 5; ++j) slots[i][j] = offsets[min(window + j, windows)];
      }
    }
  }
  static __device__ __forceinline__ int cost_of_batch(const dealt_slots& slots) {
    int cost = 0;
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      std::uint32_t groups = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        groups |= static_cast<std::uint32_t>(more_groups_of(slots[i][j + 1] - slots[i][j]))
                  << (8 * j);
      cost += cost_of_four(groups);
    }
    return tile_cost * cost;
  }
  /// Adds up what the thread's windows cost, and all of its warp's. \param slots of its first rounds.
  __device__ __forceinline__ void add_costs(dealt_part& own, const dealt_slots& slots) const {
    own.cost = cost_of_batch(slots);
#pragma unroll 1
    for (int round = batch; round < own.rounds; round += batch) {
      dealt_slots further;
      load_slots(own, round, further);
      own.cost += cost_of_batch(further);
    }
    own.before = sum_before(own.cost);
    if (base::place.lane == 31)
      this->template table_at<int>(layout::warp_costs)[warp] = own.before + own.cost;
  }
  /// Lists the tiles of the block's share, once all threads have added up costs. \param turn of as many as lists need
  /// to have room.
  __device__ __forceinline__ void deal_windows(const dealt_part& own, int turn) const {
    const int* const sums = this->template table_at<const int>(layout::warp_costs);
    int before = own.before, sum = 0;
#pragma unroll
    for (int i = 0; i < layout::warps; ++i) {
      if (i < warp) before += sums[i];
      sum += sums[i];
    }
    const float slope = base::problem.place.is_first ? 0.0f : first_more(own.parts);
    const int sharers = shares / own.parts, sharer = share / own.parts;
    const float each = __frcp_rn(static_cast<float>(sharers));
    // Rounded as it says, so that a share ends where the next one begins.
    const auto cut = [&](int i) {
      const float x = __fmul_rn(static_cast<float>(i), each);
      const float of_all = __fmaf_rn(slope, __fmaf_rn(-x, x, x), x);
      return i == sharers ? sum : __float2int_rz(__fmul_rn(static_cast<float>(sum), of_all));
    };
    const int share_end = cut(sharer + 1), share_cost = share_end - cut(sharer);
    const int first = share_end - share_cost + turn * most_cost;
    const int end = min(first + most_cost, share_end);
    auto* const list = this->template table_at<dealt_thread>(layout::dealt_list);
    if (before < end && before + own.cost > first)
      list[atomicAdd(counter_of(base::dealt), 1)] = {static_cast<int>(threadIdx.x), before};
    if (threadIdx.x == 0)
      *counter_of(base::turns) = max(1, (share_cost + most_cost - 1) / most_cost);
    __syncthreads();
#pragma unroll 1
    for (int i = warp; i < *counter_of(base::dealt); i += layout::warps)
      list_windows_of(own, list[i], first, end);
  }

 private:
  static constexpr int chunk = 64;  ///< neighbouring windows of a part
  /// The sum over the lanes before this one.
  static __device__ __forceinline__ int sum_before(int number) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    int sum = number;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(base::all, sum, distance);
      if (lane >= distance) sum += other;
    }
    return sum - number;
  }
  /// What four windows cost, in units: with c groups behind the first one (c + 1) (c + 2) = c (c + 3) + 2 if c > 0.
  static __device__ __forceinline__ int cost_of_four(std::uint32_t groups) {
    constexpr std::uint32_t threes = 0x03030303u, most = 0x7f7f7f7fu;
    const std::uint32_t present = (((groups & most) + most) | groups) & ~most;
    return static_cast<int>(__dp4a(groups, groups + threes, 2u * __popc(present)));
  }
  /// Lists what begins in [first, end) of the costs of a thread's windows, a lane each.
  __device__ __forceinline__ void list_windows_of(const dealt_part& own, const dealt_thread& thread,
                                                  int first, int end) const {
    const std::int32_t* const offsets = group().offsets;
    const int windows = group().counts->windows, lane = base::place.lane;
    int before = thread.before;
#pragma unroll 1
    for (int round = 0; round < own.rounds; round += batch) {
      const int window = window_of_part(
          own, (round + lane / 4) * windows_of_round + 4 * thread.thread + lane % 4);
      const int2 slots = {offsets[min(window, windows)], offsets[min(window + 1, windows)]};
      const int cost = cost_of(more_groups_of(slots.y - slots.x));
      const int own_before = before + sum_before(cost);
      if (cost > 0) list_window(slots, cost, own_before, first, end);
      before = __shfl_sync(base::all, own_before + cost, 31);
    }
  }
  /// Lists the tiles of a window that begin in [first, end) of the costs. \param before what the windows before cost.
  __device__ __forceinline__ void list_window(const int2& window, int cost, int before, int first,
                                              int end) const {
    const int groups = more_groups_of(window.y - window.x) + 1;
    const int each = cost / groups;
    const int first_tile = (max(first - before, 0) + each - 1) / each;
    const int end_tile = min(groups, (end - before + each - 1) / each);
    if (first_tile >= end_tile) return;
    const bool is_long = window.y - window.x > base::many_keys;
    const auto listed = static_cast<unsigned>(
        atomicAdd(counter_of(base::listed),
                  (end_tile - first_tile) << (is_long ? base::long_shift : base::tile_shift)));
    const int place = is_long ? static_cast<int>(listed >> base::long_shift)
                              : base::tiles_of(static_cast<int>(listed));
    for (int i = 0; i < end_tile - first_tile; ++i) {
      const int row = window.x + 16 * (first_tile + i);
      this->tile_at(is_long, place + i) = {row, min(row + 16, window.y), window.x, window.y};
    }
  }
};

}  // namespace winnow::detail
