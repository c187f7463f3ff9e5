// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which short windows a block of backward_contextual_window.cuh has: neighbouring slots that cost all blocks of
/// a head the same, as scans are dense in places.
///
/// A token costs its share of its window's price. A kernel before the others sums prices up over 1,024 ranges of
/// neighbouring slots, a warp a range. Then a block finds its first slot and its last one: two of its warps look
/// for the range in which the sum of prices reaches the block's share, and then for the slot.
///
/// Bound by latency: three loads, one behind the other.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_packing.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// Slots of a range whose prices are summed up.
__device__ __forceinline__ int slots_of_priced_range(int assigned) {
  return max(divide_up(divide_up(assigned, contextual_priced_ranges), 32) * 32, 32);
}
/// A token's share of what its short window takes: instructions of a warp.
template <bool Radial>
__device__ __forceinline__ std::uint32_t price_of_token(const int2& window) {
  const int length = window.y - window.x;
  const int tiles_of_window = (length + 15) / 16;
  if (length > contextual_short_capacity) return 4;
  if (!Radial && length == 1) return 3;
  if (tiles_of_window == 1) return Radial ? 28 : 43;
  const int price = tiles_of_window == 2   ? (Radial ? 1860 : 1200)
                    : tiles_of_window == 3 ? 2800
                                           : (Radial ? 6300 : 3500);
  return static_cast<std::uint32_t>(
      __fdividef(static_cast<float>(price), static_cast<float>(length)));
}
/// Of one warp: loads `Count` times 32 slots at a time.
template <bool Radial, int Count>
__device__ __forceinline__ void load_prices(const group_problem& group, int first, int end,
                                            std::uint32_t (&prices)[Count]) {
  const int2* bounds = reinterpret_cast<const int2*>(group.bounds);
  int2 windows[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int slot = first + 32 * i + lane_id();
    windows[i] = slot < end ? bounds[slot] : int2{0, 0};
  }
#pragma unroll
  for (int i = 0; i < Count; ++i)
    prices[i] = windows[i].y > 0 ? price_of_token<Radial>(windows[i]) : 0;
}

inline constexpr int pricing_threads = 256;
inline constexpr int pricing_blocks_of_group = contextual_priced_ranges / (pricing_threads / 32);

/// Blocks of all groups of a launch, one behind the other.
template <bool Radial>
__global__ void __launch_bounds__(pricing_threads)
    price_contextual_windows_kernel(const __grid_constant__ backward_problem problem) {
  wait_for_predecessor();
  admit_successor();
  const int block = static_cast<int>(blockIdx.x);
  const int index = block / pricing_blocks_of_group;
  const int range = block % pricing_blocks_of_group * (pricing_threads / 32) + warp_id();
  const group_problem& group = problem.groups[index].problem;
  const int assigned = group.counts->assigned;
  const int size = slots_of_priced_range(assigned);
  const int first = static_cast<int>(min(std::int64_t{range} * size, std::int64_t{assigned}));
  const int end = static_cast<int>(min(std::int64_t{first} + size, std::int64_t{assigned}));
  std::uint32_t sum = 0;
  for (int slot = first; slot < end; slot += 32 * 12) {
    std::uint32_t prices[12];
    load_prices<Radial>(group, slot, end, prices);
    for (const std::uint32_t price : prices) sum += price;
  }
  sum = __reduce_add_sync(all_lanes, sum);
  if (lane_id() == 0) problem.prices[index * contextual_priced_ranges + range] = sum;
}

template <class T, bool Radial, bool Long>
struct contextual_window_share : contextual_window_packing<T, Radial, Long> {
  using base = contextual_window_packing<T, Radial, Long>;
  using base::all_lanes;
  using base::assigned;
  using base::bounds;
  using base::group;
  using base::group_index;
  using base::part;
  using base::place;
  using base::problem;

  /// The slot before which prices add up to `number` shares of `shares`, by one warp.
  [[nodiscard]] __device__ __forceinline__ int begin_of_share(int number, int shares) const {
    constexpr int own_ranges = contextual_priced_ranges / 32;
    const auto* prices = reinterpret_cast<const uint4*>(
        problem.prices + group_index * contextual_priced_ranges + place.lane * own_ranges);
    std::uint32_t own[own_ranges];
    std::uint64_t through = 0;
#pragma unroll
    for (int i = 0; i < own_ranges / 4; ++i) {
      const uint4 four = prices[i];
      own[4 * i] = four.x, own[4 * i + 1] = four.y;
      own[4 * i + 2] = four.z, own[4 * i + 3] = four.w;
    }
#pragma unroll
    for (const std::uint32_t price : own) through += price;
    std::uint64_t before = through;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const std::uint64_t below = __shfl_up_sync(all_lanes, through, step);
      if (place.lane >= step) through += below;
    }
    before = through - before;
    const std::uint64_t all = __shfl_sync(all_lanes, through, 31);
    const std::uint64_t wanted =
        all * static_cast<unsigned>(number) / static_cast<unsigned>(shares);
    const int lane = 31 - __clz(static_cast<int>(__ballot_sync(all_lanes, before <= wanted)));
    int range = 0;
    std::uint64_t before_range = before;
#pragma unroll
    for (int i = 0; i < own_ranges; ++i) {
      if (before <= wanted) range = i, before_range = before;
      before += own[i];
    }
    range = __shfl_sync(all_lanes, range, lane) + lane * own_ranges;
    const std::uint64_t left = wanted - __shfl_sync(all_lanes, before_range, lane);
    const int size = slots_of_priced_range(assigned);
    int slot = static_cast<int>(min(std::int64_t{range} * size, std::int64_t{assigned}));
    const int end = static_cast<int>(min(std::int64_t{slot} + size, std::int64_t{assigned}));
    std::uint32_t sum = 0;
    constexpr int at_once = 10;
    for (int first = slot; first < end; first += 32 * at_once) {
      std::uint32_t own_prices[at_once];
      load_prices<Radial>(group, first, end, own_prices);
      std::uint32_t sums[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) sums[i] = warp_inclusive_sum(own_prices[i]);
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const bool is_before = first + 32 * i + place.lane < end && sum + sums[i] <= left;
        slot += __popc(__ballot_sync(all_lanes, is_before));
        sum += __shfl_sync(all_lanes, sums[i], 31);
      }
    }
    return slot;
  }
  /// The first slot of a window that starts in the block's share, and behind the last one. By one warp.
  /// \param side 0: the first; 1: behind the last
  [[nodiscard]] __device__ __forceinline__ int find_share(int side, int shares) const {
    const int slot = begin_of_share(part + side, shares);
    if (side == 1 || slot >= assigned) return slot;
    const int2 window = bounds[slot];
    return window.x < slot ? window.y : slot;
  }
};

}  // namespace winnow::detail
