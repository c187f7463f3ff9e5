// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows of more than 16 tokens a block of contextual_units_kernel.cuh takes, dealt out by cost.
///
/// Windows in stripes of slots make blocks differ by an eighth to a quarter, as a few long windows are most of the
/// work. Where windows are not too many, each block reads where all of them begin, adds up what those of more than
/// 16 tokens cost, and takes its share of the sum: neighbouring windows, of which the first and the last may be cut
/// between tiles.
/// All blocks come to the same sums, so that nothing is taken twice.
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
  static constexpr int most_groups = 255;  ///< of a tile, that count
  /// \param groups of 16 tokens of a window of more than 16.
  static __device__ __forceinline__ int cost_of_tile(int groups) {
    return tile_cost + group_cost * min(groups, most_groups);
  }
  static __device__ __forceinline__ int cost_of(int groups) {
    if (groups < 2) return 0;
    return groups * cost_of_tile(groups);
  }
  static __device__ __forceinline__ int groups_of(int tokens) { return (tokens + 15) / 16; }

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
    if (windows > layout::dealt_windows || this->parts() > 1) return 0;
    const int own_windows =
        (windows + span * layout::threads - 1) / (span * layout::threads) * span;
    load_groups(windows, own_windows * layout::threads);
    return own_windows;
  }
  /// Lists the block's part of windows and tiles, unless lists have no room for it, once all threads have read
  /// sizes. \return whether it did.
  __device__ __forceinline__ bool deal_windows(int own_windows) const {
    if (own_windows == 0) return false;
    const int thread = static_cast<int>(threadIdx.x);
    int own_cost = 0;
    const auto* const own_groups =
        this->template table_at<const uint4>(layout::window_groups) + thread * own_windows / span;
    const auto for_each_own = [&](const auto& visit) {
#pragma unroll 1
      for (int i = 0; i < own_windows / span; ++i) {
        const uint4 eight = own_groups[i];
        const std::uint32_t pairs[] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int j = 0; j < span; ++j)
          visit(i * span + j, cost_of(static_cast<int>(pairs[j / 2] >> (j % 2 * 16) & 0xffffu)));
      }
    };
    for_each_own([&](int, int cost) { own_cost += cost; });
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
    const int first = static_cast<int>(std::int64_t{sum} * share / shares);
    const int end = static_cast<int>(std::int64_t{sum} * (share + 1) / shares);
    if (sum / shares >= most_cost) return false;
    auto* const list = this->template table_at<dealt_window>(layout::dealt_list);
    if (before < end && before + own_cost > first)
      for_each_own([&](int i, int cost) {
        if (cost > 0 && before < end && before + cost > first)
          list[atomicAdd(counter_of(base::dealt), 1)] = {thread * own_windows + i, before};
        before += cost;
      });
    __syncthreads();
    for (int i = thread; i < *counter_of(base::dealt); i += layout::threads)
      list_part(list[i], first, end);
    return true;
  }

 private:
  static constexpr int span = 8;  ///< windows of a thread that are read together
  /// Leaves how many groups of 16 tokens windows have, zeros behind the last.
  __device__ __forceinline__ void load_groups(int windows, int padded) const {
    const std::int32_t* const offsets = group().offsets;
    auto* const groups = this->template table_at<std::uint16_t>(layout::window_groups);
    constexpr int batch = 8;  // loads that are under way together
#pragma unroll 1
    for (int begin = static_cast<int>(threadIdx.x); begin < padded;
         begin += batch * layout::threads) {
      int2 slots[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int window = min(begin + i * layout::threads, windows - 1);
        slots[i] = {offsets[window], offsets[window + 1]};
      }
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int window = begin + i * layout::threads;
        groups[window] = window < windows
                             ? static_cast<std::uint16_t>(groups_of(slots[i].y - slots[i].x))
                             : std::uint16_t{0};
      }
    }
  }
  /// Lists what begins in [first, end) of the costs.
  __device__ __forceinline__ void list_part(const dealt_window& own, int first, int end) const {
    const int2 window = {group().offsets[own.window], group().offsets[own.window + 1]};
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
