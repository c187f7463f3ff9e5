// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of more than 16 tokens a block of contextual_units_kernel.cuh takes, dealt out by cost.
///
/// Windows in stripes of slots make blocks differ by an eighth to a quarter, as a few long windows are most of the
/// work. So each block reads where windows begin, adds up what those of more than 16 tokens cost, and takes its share
/// of the sum: neighbours in an order of threads, of which the first and the last may be cut between tiles. A thread
/// adds up what up to 44 windows cost, fours of neighbours. The order goes from warp to warp first, so that each warp
/// has about one of the dozen threads whose windows the share has a part of. It lists their tiles, a lane for a window.
/// Where windows are many a block takes part in every so many-th chunk of them only, as reading all of them takes more
/// than it gains. All blocks of the same chunks come to the same sums, so that nothing is taken twice.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_units_plan.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

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

  /// Costs of 16 rows' beginning and end and of 16 keys of theirs, in units of 100 instructions of two heads.
  static constexpr int tile_cost = 8, group_cost = 8;
  static constexpr int most_groups = 255;  ///< of a tile, that count
  /// \param groups of 16 tokens of a window of more than 16.
  static __device__ __forceinline__ int cost_of_tile(int groups) {
    return tile_cost + group_cost * min(groups, most_groups);
  }
  static __device__ __forceinline__ int groups_of(int tokens) { return (tokens + 15) / 16; }

  /// So much may cost what a block has on its lists at a time: nothing on them costs less than a tile of a window of two
  /// groups.
  static constexpr int most_cost =
      (layout::warps * layout::most_tiles - 4) * (tile_cost + 2 * group_cost);

  /// Which of the windows a block shares with which others.
  struct dealt_part {
    int parts, part;  ///< none: windows are not dealt out
  };
  /// Asks where a part's windows begin, unless there are too many. All threads take part; the warps' memory is not in use
  /// yet.
  __device__ __forceinline__ dealt_part request_windows() const {
    const int windows = group().counts->windows;
    // More parts differ by more, which matters less behind another kernel.
    const int most_parts = base::problem.place.is_first ? 2 : 4;
    int parts = windows <= layout::dealt_windows
                    ? 1
                    : (windows + layout::part_windows - 1) / layout::part_windows;
    while (parts > 1 && parts <= most_parts && shares % parts != 0) ++parts;
    if (windows == 0 || parts > most_parts || !this->are_slots_one_part() ||
        reinterpret_cast<std::uintptr_t>(group().offsets) % sizeof(int4) != 0)
      return {0, 0};
    const dealt_part own{parts, share - small_quotient(share, parts) * parts};
    const std::int32_t* const offsets = group().offsets;
    const int thread = base::thread_again();
    std::uint32_t target = shared_address(base::tables) + layout::dealt_slots + 16 * thread;
    std::uint32_t behind = shared_address(base::tables) + layout::dealt_ends + 4 * thread;
#pragma unroll 1
    for (int window = first_window_of(own, thread); window < windows; window += step * parts) {
      // There are `windows` + 1 of them.
      copy_first_async(target, offsets + window, min(4 * (windows + 1 - window), 16));
      copy_element_async(behind, offsets + window + 4, window + 4 <= windows);
      target += 16 * layout::threads, behind += 4 * layout::threads;
    }
    return own;
  }
  /// Lists the tiles of the block's share, once all threads' copies have arrived. \param turn of as many as lists need to
  /// have room.
  __device__ __forceinline__ void deal_windows(const dealt_part& own, int turn) const {
    const int thread = base::thread_again(), lane = thread % 32;
    const int windows = group().counts->windows;
    int own_cost = 0;
#pragma unroll 1
    for (int window = first_window_of(own, thread), four = thread; window < windows;
         window += step * own.parts, four += layout::threads) {
      const int4 slots = this->template table_at<const int4>(layout::dealt_slots)[four];
      const int begins[5] = {slots.x, slots.y, slots.z, slots.w,
                             this->template table_at<const int>(layout::dealt_ends)[four]};
#pragma unroll
      for (int i = 0; i < 4; ++i) own_cost += cost_of_window(begins[i + 1] - begins[i]);
    }
    int* const costs = this->template table_at<int>(layout::dealt_costs) + lane * layout::warps;
    costs[warp] = own_cost;
    __syncthreads();
    // The order's place of this thread is behind those of its lane's number in the warps before.
    int of_lane = 0, before = 0;
#pragma unroll 1
    for (int i = 0; i < layout::warps; ++i) {
      if (i == warp) before = of_lane;
      of_lane += costs[i];
    }
    const int sum_to_lane = warp_inclusive_sum(of_lane);
    const int sum = __shfl_sync(base::all, sum_to_lane, 31);
    before += sum_to_lane - of_lane;
    const int sharers = small_quotient(shares, own.parts),
              sharer = small_quotient(share, own.parts);
    const int share_first = begin_of_share(sum, sharer, sharers);
    const int share_end = begin_of_share(sum, sharer + 1, sharers);
    const int first = share_first + turn * most_cost;
    const int end = min(first + most_cost, share_end);
    std::uint32_t listed = __ballot_sync(base::all, before < end && before + own_cost > first);
#pragma unroll 1
    while (listed != 0) {
      const int reader = __ffs(static_cast<int>(listed)) - 1;
      listed &= listed - 1;
      list_windows_of(own, reader, __shfl_sync(base::all, before, reader), first, end);
    }
    if (thread == 0)
      *counter_of(base::turns) = max(1, (share_end - share_first + most_cost - 1) / most_cost);
  }

 private:
  static constexpr int chunk = 64;                  ///< neighbouring windows of a part
  static constexpr int step = 4 * layout::threads;  ///< from four to four of a thread, in a part
  static_assert(step % chunk == 0 && layout::dealt_windows <= 16 * step);
  /// How many tiles of a window begin before a place in its cost.
  static __device__ __forceinline__ int tiles_before(int place, int each) {
    return static_cast<int>(
        __fdividef(static_cast<float>(place + each - 1), static_cast<float>(each)));
  }
  /// The first of a thread's fours of windows.
  static __device__ __forceinline__ int first_window_of(const dealt_part& own, int thread) {
    const int number = 4 * thread;
    return (number / chunk * own.parts + own.part) * chunk + number % chunk;
  }
  static __device__ __forceinline__ int cost_of_window(int tokens) {
    const int groups = groups_of(tokens);
    return groups > 1 ? groups * cost_of_tile(groups) : 0;
  }
  /// Lists what begins in [first, end) of the costs of the windows that a lane of this warp has asked for, a lane each.
  __device__ __forceinline__ void list_windows_of(const dealt_part& own, int reader, int before,
                                                  int first, int end) const {
    const int lane = base::thread_again() % 32, thread = 32 * warp + reader;
    const int last = group().counts->windows;
    int four = thread + lane / 4 * layout::threads;
#pragma unroll 1
    for (int first_window = first_window_of(own, thread); first_window < last;
         first_window += 8 * own.parts * step, four += 8 * layout::threads) {
      const auto* const begins =
          this->template table_at<const int>(layout::dealt_slots) + 4 * four + lane % 4;
      int2 slots{0, 0};
      if (first_window + lane / 4 * own.parts * step + lane % 4 < last) {
        slots.x = begins[0];
        slots.y =
            lane % 4 < 3 ? begins[1] : this->template table_at<const int>(layout::dealt_ends)[four];
      }
      const int groups = groups_of(slots.y - slots.x);
      const int each = cost_of_tile(groups), cost = groups > 1 ? groups * each : 0;
      const int behind = before + warp_inclusive_sum(cost);
      list_tiles_of(slots, groups, each, first - (behind - cost), end - (behind - cost));
      before = __shfl_sync(base::all, behind, 31);
    }
  }
  /// Lists a window's tiles that begin in [first, end) of its cost.
  __device__ __forceinline__ void list_tiles_of(int2 slots, int groups, int each, int first,
                                                int end) const {
    const int first_tile = tiles_before(max(first, 0), each);
    const int end_tile = groups > 1 ? min(groups, tiles_before(end, each)) : 0;
    if (first_tile >= end_tile) return;
    const bool is_long = slots.y - slots.x > base::many_keys;
    const auto listed = static_cast<unsigned>(
        atomicAdd(counter_of(base::listed),
                  (end_tile - first_tile) << (is_long ? base::long_shift : base::tile_shift)));
    const int place = is_long ? static_cast<int>(listed >> base::long_shift)
                              : base::tiles_of(static_cast<int>(listed));
#pragma unroll 1
    for (int i = 0; i < end_tile - first_tile; ++i) {
      const int row = slots.x + 16 * (first_tile + i);
      this->tile_at(is_long, place + i) = {row, min(row + 16, slots.y), slots.x, slots.y};
    }
  }
};

}  // namespace winnow::detail
