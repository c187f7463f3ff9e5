// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of more than 16 tokens a block of contextual_units_kernel.cuh takes, dealt out by cost.
///
/// Windows in stripes of slots make blocks differ by an eighth to a quarter, as a few long windows are most of the
/// work. Where windows are not too many, each block reads where all of them begin, adds up what those of more than
/// 16 tokens cost, and takes its share of the sum: neighbouring windows, of which the first and the last may be cut
/// between tiles. All blocks come to the same sums, so that nothing is taken twice.
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
  static_assert(tile_cost == group_cost);  // or cost_of_eight would be another sum
  static constexpr int most_groups = 255;  ///< of a tile, that count
  /// So much more than the mean the first block takes where another kernel is before, and so much less the last one.
  static constexpr float first_more = 0.18f;
  /// \param groups of 16 tokens of a window of more than 16.
  static __device__ __forceinline__ int cost_of_tile(int groups) {
    return tile_cost + group_cost * min(groups, most_groups);
  }
  static __device__ __forceinline__ int groups_of(int tokens) { return (tokens + 15) / 16; }
  __device__ __forceinline__ int2 slots_of(int window) const {
    return {group().offsets[window], group().offsets[window + 1]};
  }

  /// A window that the block has a part of.
  struct dealt_window {
    int window, before;  ///< what the windows before it cost
  };
  static_assert(sizeof(dealt_window) == 8);
  /// So much may a block's part cost without its lists being too long: nothing on them costs less than a tile of a
  /// window of two groups.
  static constexpr int most_cost =
      (layout::warps * layout::most_tiles - 4) * (tile_cost + 2 * group_cost);

  /// Reads the windows' sizes, unless there are too many. All threads take part; the warps' memory is not in use
  /// yet. \return how many windows each thread has, if any.
  __device__ __forceinline__ int load_sizes() const {
    const int windows = group().counts->windows;
    if (windows > layout::dealt_windows || this->parts() > 1 ||
        reinterpret_cast<std::uintptr_t>(group().offsets) % sizeof(int4) != 0)
      return 0;
    const int own_windows = (windows + 8 * layout::threads - 1) / (8 * layout::threads) * 8;
    load_codes(windows, own_windows * layout::threads / 4);
    return own_windows;
  }
  /// Lists the block's part of windows and tiles, unless lists have no room for it, once all threads have read
  /// sizes. \return whether it did.
  __device__ __forceinline__ bool deal_windows(int own_windows) const {
    if (own_windows == 0) return false;
    const int thread = static_cast<int>(threadIdx.x);
    const int first_window = thread * own_windows;
    const auto* const own_codes =
        this->template table_at<const std::uint32_t>(layout::window_codes) + first_window / 8;
    int own_cost = 0;
#pragma unroll 1
    for (int i = 0; i < own_windows / 8; ++i)
      own_cost += cost_of_eight(own_codes[i], first_window + 8 * i);
    int before = own_cost;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(base::all, before, distance);
      if (base::place.lane >= distance) before += other;
    }
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
    const float slope = base::problem.place.is_first ? 0.0f : first_more;
    const auto cut = [&](int i) {
      const float x = static_cast<float>(i) / static_cast<float>(shares);
      return i == shares ? sum : static_cast<int>(static_cast<float>(sum) * (x + slope * (x - x * x)));
    };
    if (cut(1) >= most_cost) return false;
    const int first = cut(share), end = cut(share + 1);
    auto* const list = this->template table_at<dealt_window>(layout::dealt_list);
    if (before < end && before + own_cost > first)
#pragma unroll 1
      for (int i = 0; i < own_windows / 8 && before < end; ++i) {
        const int window = first_window + 8 * i;
        const int after = before + cost_of_eight(own_codes[i], window);
        if (after > first)
          for_each_long(own_codes[i], window, [&](int long_window, int cost) {
            if (before < end && before + cost > first)
              list[atomicAdd(counter_of(base::dealt), 1)] = {long_window, before};
            before += cost;
          });
        before = after;
      }
    __syncthreads();
    for (int i = thread; i < *counter_of(base::dealt); i += layout::threads)
      list_part(list[i], first, end);
    return true;
  }

 private:
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
        tile_cost *
        (sum + 2u * __popc((codes | codes >> 1 | codes >> 2 | codes >> 3) & ones)));
  }
  /// Leaves the windows' codes, zeros behind the last. \param fours of windows.
  __device__ __forceinline__ void load_codes(int windows, int fours) const {
    const std::int32_t* const offsets = group().offsets;
    auto* const codes = this->template table_at<std::uint16_t>(layout::window_codes);
    constexpr int batch = 8;  // loads that are under way together
#pragma unroll 1
    for (int begin = static_cast<int>(threadIdx.x); begin < fours;
         begin += batch * layout::threads) {
      int slots[batch][5];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int window = 4 * (begin + i * layout::threads);
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
          code |= max(min((slots[i][j + 1] - slots[i][j] - 1) >> 4, int{many_groups}), 0) << (4 * j);
        if (four < fours) codes[four] = static_cast<std::uint16_t>(code);
      }
    }
  }
  /// Lists what begins in [first, end) of the costs.
  __device__ __forceinline__ void list_part(const dealt_window& own, int first, int end) const {
    const int2 window = slots_of(own.window);
    const int groups = groups_of(window.y - window.x);
    const int cost = cost_of_tile(groups);
    const int first_tile = (max(first - own.before, 0) + cost - 1) / cost;
    const int end_tile = min(groups, (end - own.before + cost - 1) / cost);
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
