// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of more than 16 tokens a block of contextual_units_kernel.cuh takes, dealt out by cost.
///
/// Windows in stripes of slots make blocks differ by an eighth to a quarter, as a few long windows are most of the
/// work. So each block reads where windows begin, adds up what those of more than 16 tokens cost, and takes its share
/// of the sum: neighbouring windows, of which the first and the last may be cut between tiles. A thread adds up 8 to 32
/// windows; those threads whose windows the share has a part of are listed, a dozen, and a warp for each lists tiles, a
/// lane for a window. Where windows are many it takes part in every so many-th chunk of them only, as reading all of
/// them takes more than it gains. All blocks of the same chunks come to the same sums, so that nothing is taken twice.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_shares.cuh"
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
  static_assert(tile_cost == group_cost);  // or cost_of_eight would be another sum
  static constexpr int most_groups = 255;  ///< of a tile, that count
  /// \param groups of 16 tokens of a window of more than 16.
  static __device__ __forceinline__ int cost_of_tile(int groups) {
    return tile_cost + group_cost * min(groups, most_groups);
  }
  static __device__ __forceinline__ int groups_of(int tokens) { return (tokens + 15) / 16; }
  __device__ __forceinline__ int2 slots_of(int window) const {
    return {group().offsets[window], group().offsets[window + 1]};
  }

  /// A thread's windows of which the block has a part.
  struct dealt_windows {
    int first, before;  ///< the number of the first one, and what the windows before it cost
  };
  static_assert(sizeof(dealt_windows) == 8 && layout::dealt_windows <= 32 * layout::threads);
  /// So much may cost what a block has on its lists at a time: nothing on them costs less than a tile of a window of two
  /// groups.
  static constexpr int most_cost =
      (layout::warps * layout::most_tiles - 4) * (tile_cost + 2 * group_cost);

  /// Which of the windows a block shares with which others.
  struct dealt_part {
    int windows;  ///< of each thread, by number; none: windows are not dealt out
    int parts, part;
  };
  /// The first of eight windows, from the number of one in a part on.
  __device__ __forceinline__ static int window_of_part(const dealt_part& own, int number) {
    return (number / chunk * own.parts + own.part) * chunk + number % chunk;
  }
  /// Reads the sizes of a part's windows, unless there are too many. All threads take part; the warps' memory is not in
  /// use yet.
  __device__ __forceinline__ dealt_part load_sizes() const {
    const int windows = group().counts->windows;
    // More parts differ by more, which matters less behind another kernel.
    const int most_parts = base::problem.place.is_first ? 2 : 4;
    int parts = (windows + layout::dealt_windows - 1) / layout::dealt_windows;
    while (parts > 1 && parts <= most_parts && shares % parts != 0) ++parts;
    if (windows == 0 || parts > most_parts || this->parts() > 1 ||
        reinterpret_cast<std::uintptr_t>(group().offsets) % sizeof(int4) != 0)
      return {0, 1, 0};
    const int chunks = (windows + parts * chunk - 1) / (parts * chunk);
    const dealt_part own{(chunks * chunk + 8 * layout::threads - 1) / (8 * layout::threads) * 8,
                         parts, share % parts};
    load_codes(own, windows);
    return own;
  }
  /// Lists the tiles of the block's share, once all threads have read sizes. \param turn of as many as lists need to
  /// have room.
  __device__ __forceinline__ void deal_windows(const dealt_part& own, int turn) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int first_number = thread * own.windows;
    const auto* const own_codes =
        this->template table_at<const std::uint32_t>(layout::window_codes) + first_number / 8;
    int own_cost = 0;
#pragma unroll 1
    for (int i = 0; i < own.windows / 8; ++i)
      own_cost += cost_of_eight(own_codes[i], window_of_part(own, first_number + 8 * i));
    int before = warp_inclusive_sum(own_cost);
    int* const sums = this->template table_at<int>(layout::warp_costs);
    if (base::place.lane == 31) sums[warp] = before;
    __syncthreads();
    before -= own_cost;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < layout::warps; ++i) {
      if (i < warp) before += sums[i];
      sum += sums[i];
    }
    const int sharers = shares / own.parts, sharer = share / own.parts;
    const int share_end = share_begin(sum, sharer + 1, sharers);
    const int share_cost = share_end - share_begin(sum, sharer, sharers);
    const int first = share_end - share_cost + turn * most_cost;
    const int end = min(first + most_cost, share_end);
    auto* const list = this->template table_at<dealt_windows>(layout::dealt_list);
    if (before < end && before + own_cost > first)
      list[atomicAdd(counter_of(base::dealt), 1)] = {first_number, before};
    __syncthreads();
#pragma unroll 1
    for (int i = warp; i < *counter_of(base::dealt); i += layout::warps)
      list_windows_of(own, list[i], first, end);
    if (thread == 0) *counter_of(base::turns) = max(1, (share_cost + most_cost - 1) / most_cost);
  }

 private:
  static constexpr int chunk = 64;  ///< neighbouring windows of a part
  /// The code of a window: groups of 16 tokens behind its first one, in four bits, or so many that they are counted
  /// again.
  static constexpr std::uint32_t many_groups = 15;
  /// Calls `visit` with each of eight windows that has more than 16 tokens, and its cost.
  template <class Visit>
  __device__ __forceinline__ void for_each_long(std::uint32_t codes, int first,
                                                const Visit& visit) const {
#pragma unroll 1
    while (codes != 0) {
      const int shift = (__ffs(static_cast<int>(codes)) - 1) & ~3;
      const std::uint32_t code = codes >> shift & many_groups;
      codes &= ~(many_groups << shift);
      const int window = first + shift / 4;
      int groups = static_cast<int>(code) + 1;
      if (code == many_groups) {
        const int2 slots = slots_of(window);
        groups = groups_of(slots.y - slots.x);
      }
      visit(window, groups * cost_of_tile(groups));
    }
  }
  /// What eight windows cost: with c = groups - 1 > 0 each 8 (c + 1) (c + 2) = 8 (c (c + 3) + 2).
  __device__ __forceinline__ int cost_of_eight(std::uint32_t codes, int first) const {
    constexpr std::uint32_t ones = 0x11111111u, nibbles = 0x0f0f0f0fu, threes = 0x03030303u;
    int cost = 0;
    if ((codes & codes >> 1 & codes >> 2 & codes >> 3 & ones) != 0) {
      for_each_long(codes, first, [&](int, int of_window) { cost += of_window; });
      return cost;
    }
    const std::uint32_t even = codes & nibbles, odd = codes >> 4 & nibbles;
    const unsigned sum = __dp4a(even, even + threes, __dp4a(odd, odd + threes, 0u));
    return static_cast<int>(
        tile_cost * (sum + 2u * __popc((codes | codes >> 1 | codes >> 2 | codes >> 3) & ones)));
  }
  /// Leaves the codes of a part's windows, zeros behind the last.
  __device__ __forceinline__ void load_codes(const dealt_part& own, int windows) const {
    const std::int32_t* const offsets = group().offsets;
    auto* const codes = this->template table_at<std::uint16_t>(layout::window_codes);
    const int fours = own.windows * layout::threads / 4;
    constexpr int batch = 8;  // loads that are under way together
#pragma unroll 1
    for (int begin = static_cast<int>(threadIdx.x); begin < fours;
         begin += batch * layout::threads) {
      int slots[batch][5];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int window = window_of_part(own, 4 * (begin + i * layout::threads));
        if (window + 4 <= windows) {
          const int4 four = *reinterpret_cast<const int4*>(offsets + window);
          slots[i][0] = four.x, slots[i][1] = four.y, slots[i][2] = four.z, slots[i][3] = four.w;
          slots[i][4] = offsets[window + 4];
        } else {
#pragma unroll
          for (int j = 0; j < 5; ++j) slots[i][j] = offsets[min(window + j, windows)];
        }
      }
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int four = begin + i * layout::threads;
        int code = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          code |= max(min((slots[i][j + 1] - slots[i][j] - 1) >> 4, int{many_groups}), 0)
                  << (4 * j);
        if (four < fours) codes[four] = static_cast<std::uint16_t>(code);
      }
    }
  }
  /// Lists what begins in [first, end) of the costs of a thread's windows, a lane each.
  __device__ __forceinline__ void list_windows_of(const dealt_part& own,
                                                  const dealt_windows& windows, int first,
                                                  int end) const {
    const int lane = base::place.lane, last = group().counts->windows;
    const int window = lane < own.windows ? window_of_part(own, windows.first + lane) : last;
    const int2 slots = {group().offsets[min(window, last)], group().offsets[min(window + 1, last)]};
    const int groups = groups_of(slots.y - slots.x);
    const int each = cost_of_tile(groups), cost = groups > 1 ? groups * each : 0;
    const int before = windows.before + warp_inclusive_sum(cost) - cost;
    const int first_tile = (max(first - before, 0) + each - 1) / each;
    const int end_tile = groups > 1 ? min(groups, (end - before + each - 1) / each) : 0;
    if (first_tile >= end_tile) return;
    const bool is_long = slots.y - slots.x > base::many_keys;
    const auto listed = static_cast<unsigned>(
        atomicAdd(counter_of(base::listed),
                  (end_tile - first_tile) << (is_long ? base::long_shift : base::tile_shift)));
    const int place = is_long ? static_cast<int>(listed >> base::long_shift)
                              : base::tiles_of(static_cast<int>(listed));
    for (int i = 0; i < end_tile - first_tile; ++i) {
      const int row = slots.x + 16 * (first_tile + i);
      this->tile_at(is_long, place + i) = {row, min(row + 16, slots.y), slots.x, slots.y};
    }
  }
};

}  // namespace winnow::detail
