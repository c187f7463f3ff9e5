// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of more than 16 tokens a block of contextual_units_kernel.cuh takes, dealt out by cost.
///
/// Windows in stripes of slots make blocks differ by an eighth to a quarter, as a few long windows are most of the
/// work. So each block reads where windows begin, adds up what those of more than 16 tokens cost, and takes its share
/// of the sum: neighbours in an order of threads, of which the first and the last may be cut between tiles. A thread
/// adds up what up to 32 windows cost that it has read, fours of neighbours. The order goes from warp to warp first, so
/// that of those threads whose windows the share has a part of, a dozen, each warp has about one. It lists their tiles, a
/// lane for a window. Where windows are many a block takes part in every so many-th chunk of them only, as reading all
/// of them takes more than it gains. All blocks of the same chunks come to the same sums, so that nothing is taken twice.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_units_plan.cuh"
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

  /// Costs of 16 rows' beginning and end and of 16 keys of theirs, in units of 100
  /// instructions of two heads.
  static constexpr int tile_cost = 8, group_cost = 8;
  static constexpr int most_groups = 255;  ///< of a tile, that count
  /// \param groups of 16 tokens of a window of more than 16.
  static __device__ __forceinline__ int cost_of_tile(int groups) {
    return tile_cost + group_cost * min(groups, most_groups);
  }
  static __device__ __forceinline__ int groups_of(int tokens) { return (tokens + 15) / 16; }
  __device__ __forceinline__ int2 slots_of(int window) const {
    return {group().offsets[window], group().offsets[window + 1]};
  }

  /// So much may cost what a block has on its lists at a time: nothing on them costs less than a tile of a window of two
  /// groups.
  static constexpr int most_cost =
      (layout::warps * layout::most_tiles - 4) * (tile_cost + 2 * group_cost);

  /// Which of the windows a block shares with which others.
  struct dealt_part {
    int parts, part;  ///< none: windows are not dealt out
    int cost;         ///< of the thread's windows
  };
  /// Shorter windows are those that begin in a block's stripes. Where all sizes are read it is known what each block has
  /// of them, and longer ones make up for it.
  __device__ __forceinline__ bool evens_out(const dealt_part& own) const {
    return own.parts == 1 && shares <= layout::most_evened;
  }
  /// Tokens of short windows, of each block: none yet.
  __device__ __forceinline__ void clear_shorts() const {
    const int i = base::thread_again();
    if (i < layout::most_evened) shorts()[i] = 0;
  }
  /// Reads the sizes of a part's windows, unless there are too many, and leaves what a thread's cost. All threads take
  /// part; the warps' memory is not in use yet.
  __device__ __forceinline__ dealt_part load_sizes() const {
    const int windows = group().counts->windows;
    // More parts differ by more, which matters less behind another kernel.
    const int most_parts = base::problem.place.is_first ? 2 : 4;
    int parts = (windows + layout::dealt_windows - 1) / layout::dealt_windows;
    while (parts > 1 && parts <= most_parts && shares % parts != 0) ++parts;
    if (windows == 0 || parts > most_parts || !this->are_slots_one_part() ||
        reinterpret_cast<std::uintptr_t>(group().offsets) % sizeof(int4) != 0)
      return {0, 0, 0};
    dealt_part own{parts, quotient(share, parts), 0};
    own.part = share - own.part * parts;
    own.cost = load_costs(own, windows);
    costs()[base::thread_again() % 32 * layout::warps + warp] = own.cost;
    return own;
  }
  /// Lists the tiles of the block's share, once all threads have read sizes. \param turn of as many as lists need to
  /// have room.
  __device__ __forceinline__ void deal_windows(const dealt_part& own, int turn) const {
    // The order's place of this thread is behind those of its lane's number in the warps before.
    const int lane = base::thread_again() % 32;
    int of_lane = 0, before = 0;
#pragma unroll
    for (int i = 0; i < layout::warps; i += 4) {
      const int4 four = reinterpret_cast<const int4*>(costs() + lane * layout::warps)[i / 4];
      const int each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        of_lane += each[j];
        if (i + j < warp) before += each[j];
      }
    }
    const int sum_to_lane = warp_inclusive_sum(of_lane);
    const int sum = __shfl_sync(base::all, sum_to_lane, 31);
    before += sum_to_lane - of_lane;
    const int2 own_share = share_of(own, sum);
    const int share_first = own_share.x, share_end = own_share.y;
    const int first = share_first + turn * most_cost;
    const int end = min(first + most_cost, share_end);
    std::uint32_t listed = __ballot_sync(base::all, before < end && before + own.cost > first);
#pragma unroll 1
    while (listed != 0) {
      const int reader = __ffs(static_cast<int>(listed)) - 1;
      listed &= listed - 1;
      list_windows_of(own, reader, __shfl_sync(base::all, before, reader), first, end);
    }
    if (threadIdx.x == 0)
      *counter_of(base::turns) = max(1, (share_end - share_first + most_cost - 1) / most_cost);
  }

 private:
  static constexpr int chunk = 64;                    ///< neighbouring windows of a part
  static constexpr int step = 4 * layout::threads;    ///< from four to four of a thread, in a part
  static_assert(step % chunk == 0 && layout::dealt_windows % chunk == 0);
  /// Of small numbers, in fewer instructions than the division of integers.
  static __device__ __forceinline__ int quotient(int number, int by) {
    return static_cast<int>(__fdividef(static_cast<float>(number) + 0.5f, static_cast<float>(by)));
  }
  /// So many parts of a whole, of a sum.
  static __device__ __forceinline__ int part_of(int sum, int parts, int whole) {
    const float part = static_cast<float>(parts) / static_cast<float>(whole);
    return parts == whole ? sum : static_cast<int>(static_cast<float>(sum) * part);
  }
  /// What a token of a short window costs, and one alone, as well.
  static __device__ __forceinline__ int cost_of_short(int tokens) { return tokens + tokens / 4; }
  /// Of the sum of all costs, where the block's share begins and ends: what is left of an equal share of all work.
  __device__ __forceinline__ int2 share_of(const dealt_part& own, int sum) const {
    const int sharers = quotient(shares, own.parts), sharer = quotient(share, own.parts);
    if (!evens_out(own)) return {part_of(sum, sharer, sharers), part_of(sum, sharer + 1, sharers)};
    static_assert(layout::most_evened == 4 * 32);
    const int lane = base::thread_again() % 32;
    const int4 four = reinterpret_cast<const int4*>(shorts())[lane];
    const int of_shorts[4] = {cost_of_short(four.x), cost_of_short(four.y), cost_of_short(four.z),
                              cost_of_short(four.w)};
    const int of_all = static_cast<int>(__reduce_add_sync(
        base::all,
        static_cast<unsigned>(of_shorts[0] + of_shorts[1] + of_shorts[2] + of_shorts[3])));
    const int mean = quotient(sum + of_all, shares);
    int left = 0, before_own = 0, before_next = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * lane + i < shares) left += max(mean - of_shorts[i], 0);
      if (4 * lane + i == share) before_next = left;
      if (4 * lane + i + 1 == share) before_own = left;
    }
    // Of shares in this lane.
    const int before = warp_inclusive_sum(left) - left;
    const int whole = __shfl_sync(base::all, before + left, 31);
    const int next = __shfl_sync(base::all, before + before_next, share / 4);
    const int first = __shfl_sync(base::all, before + before_own, share / 4);
    return {part_of(sum, first, whole), part_of(sum, next, whole)};
  }
  static __device__ __forceinline__ void add_shared(std::uint32_t address, int number) {
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(address), "r"(number) : "memory");
  }
  __device__ __forceinline__ int* shorts() const {
    return this->template table_at<int>(layout::dealt_shorts);
  }
  __device__ __forceinline__ int* costs() const {
    return this->template table_at<int>(layout::dealt_costs);
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
  /// What a thread's windows cost.
  __device__ __forceinline__ int load_costs(const dealt_part& own, int windows) const {
    const std::int32_t* const offsets = group().offsets;
    constexpr int batch = 4;  // loads that are under way together
    const int step_of_all = step * own.parts, last = windows & ~3;
    // Others are added to what nobody reads, as a branch would take longer.
    const unsigned longest = evens_out(own) ? layout::longest_short : 0;
    const unsigned inverse = 0xffffffffu / static_cast<unsigned>(shares) + 1;
    const std::uint32_t sums = shared_address(base::tables) + layout::dealt_shorts;
    const std::uint32_t none = sums + 4 * (layout::most_evened + base::thread_again() % 32);
    int cost = 0;
    const auto add = [&](int begin, int end) {
      cost += cost_of_window(end - begin);
      const unsigned stripe = static_cast<unsigned>(begin) / layout::stripe;
      const unsigned owner = stripe - __umulhi(stripe, inverse) * static_cast<unsigned>(shares);
      const bool is_short = static_cast<unsigned>(end - begin - 1) < longest;
      add_shared(is_short ? sums + 4 * owner : none, end - begin);
    };
#pragma unroll 1
    for (int first = first_window_of(own, base::thread_again());
         first < windows;
         first += batch * step_of_all) {
      int4 slots[batch];
      int behind[batch];
      bool has_last = false;
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int window = first + i * step_of_all;
        slots[i] = {0, 0, 0, 0};
        behind[i] = 0;
        if (window < last) {
          slots[i] = *reinterpret_cast<const int4*>(offsets + window);
          behind[i] = offsets[window + 4];
        }
        has_last = has_last || window == last;
      }
#pragma unroll
      for (int i = 0; i < batch; ++i)
        add(slots[i].x, slots[i].y), add(slots[i].y, slots[i].z), add(slots[i].z, slots[i].w),
            add(slots[i].w, behind[i]);
      if (has_last)
#pragma unroll 1
        for (int window = last; window < windows; ++window) {
          const int2 of_window = slots_of(window);
          add(of_window.x, of_window.y);
        }
    }
    return cost;
  }
  /// Lists what begins in [first, end) of the costs of the windows that a lane of this warp has read, a lane each.
  __device__ __forceinline__ void list_windows_of(const dealt_part& own, int reader, int before,
                                                  int first, int end) const {
    const int lane = base::thread_again() % 32, last = group().counts->windows;
#pragma unroll 1
    for (int window_ = first_window_of(own, 32 * warp + reader);
         window_ < last && before < end; window_ += 8 * own.parts * step) {
      const int window = min(window_ + lane / 4 * own.parts * step + lane % 4, last);
      const int2 slots = {group().offsets[window], group().offsets[min(window + 1, last)]};
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
    const int first_tile = (max(first, 0) + each - 1) / each;
    const int end_tile = groups > 1 ? min(groups, (end + each - 1) / each) : 0;
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
