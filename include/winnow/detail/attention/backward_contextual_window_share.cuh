// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which short windows a block of backward_contextual_window.cuh has: neighbouring ones that cost all blocks of
/// a head the same, as scans are dense in places.
///
/// A kernel before the others sums prices up over 1,024 ranges of neighbouring windows, a warp a range. Then a block
/// finds its first window and its last one: two of its warps look for the range in which the sum of prices reaches
/// the block's share, and then for the window.
///
/// Bound by latency: three loads, one behind the other.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_packing.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// Windows of a range whose prices are summed up.
__device__ __forceinline__ int windows_of_priced_range(int windows) {
  return max(divide_up(divide_up(windows, contextual_priced_ranges), 32) * 32, 32);
}
/// What a short window takes: instructions of a warp.
template <bool Radial>
__device__ __forceinline__ std::uint32_t price_of_window(int length) {
  const int tiles_of_window = (length + 15) / 16;
  if (length > contextual_short_capacity) return 4;
  if (!Radial && length == 1) return 10;
  if (tiles_of_window <= 1) return (Radial ? 30 : 43) * length;
  return tiles_of_window == 2   ? (Radial ? 1860 : 1200)
         : tiles_of_window == 3 ? (Radial ? 3080 : 2800)
                                : (Radial ? 5600 : 3500);
}
/// Of one warp: loads `Count` times 32 windows at a time.
template <bool Radial, int Count>
__device__ __forceinline__ void load_prices(const group_problem& group, int first, int end,
                                            std::uint32_t (&prices)[Count]) {
  int lengths[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int window = first + 32 * i + lane_id();
    lengths[i] = window < end ? group.offsets[window + 1] - group.offsets[window] : 0;
  }
#pragma unroll
  for (int i = 0; i < Count; ++i) prices[i] = price_of_window<Radial>(lengths[i]);
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
  const int windows = group.counts->windows;
  const int size = windows_of_priced_range(windows);
  const int first = static_cast<int>(min(std::int64_t{range} * size, std::int64_t{windows}));
  const int end = static_cast<int>(min(std::int64_t{first} + size, std::int64_t{windows}));
  std::uint32_t sum = 0;
  constexpr int at_once = 4;
  for (int window = first; window < end; window += 32 * at_once) {
    std::uint32_t prices[at_once];
    load_prices<Radial>(group, window, end, prices);
    for (const std::uint32_t price : prices) sum += price;
  }
  sum = __reduce_add_sync(all_lanes, sum);
  if (lane_id() == 0) problem.prices[index * contextual_priced_ranges + range] = sum;
}

template <class T, bool Radial, bool Long>
struct contextual_window_share : contextual_window_packing<T, Radial, Long> {
  using base = contextual_window_packing<T, Radial, Long>;
  using base::all_lanes;
  using base::group;
  using base::group_index;
  using base::place;
  using base::problem;

  /// Of lanes where it is so.
  static __device__ __forceinline__ int last_lane(bool is_so) {
    return 31 - __clz(static_cast<int>(__ballot_sync(all_lanes, is_so)));
  }
  /// The window before which prices add up to `number` shares of `shares`, by one warp.
  [[nodiscard]] __device__ __forceinline__ int find_share(int number, int shares) const {
    constexpr int own_ranges = contextual_priced_ranges / 32;
    const std::uint32_t* prices = problem.prices + group_index * contextual_priced_ranges;
    // A lane sums up 32 ranges; then each has one of those among which the share begins.
    std::uint64_t own = 0;
#pragma unroll
    for (int i = 0; i < own_ranges / 4; ++i) {
      const uint4 four = reinterpret_cast<const uint4*>(prices + place.lane * own_ranges)[i];
      own += (std::uint64_t{four.x} + four.y) + (std::uint64_t{four.z} + four.w);
    }
    // Sums times `shares` and the sum of all times `number` compare without a division.
    const auto weighted = [&](std::uint64_t price) {
      return price * static_cast<unsigned>(shares);
    };
    std::uint64_t through = warp_inclusive_sum(own);
    const std::uint64_t wanted =
        __shfl_sync(all_lanes, through, 31) * static_cast<unsigned>(number);
    const int lane = last_lane(weighted(through - own) <= wanted);
    std::uint64_t before = __shfl_sync(all_lanes, through - own, lane);
    own = prices[lane * own_ranges + place.lane];
    through = warp_inclusive_sum(own);
    before += through - own;
    const int range_of_lane = last_lane(weighted(before) <= wanted);
    const std::uint64_t left = wanted - weighted(__shfl_sync(all_lanes, before, range_of_lane));
    const int range = lane * own_ranges + range_of_lane;
    const int windows = group.counts->windows;
    const int size = windows_of_priced_range(windows);
    int window = static_cast<int>(min(std::int64_t{range} * size, std::int64_t{windows}));
    const int end = static_cast<int>(min(std::int64_t{window} + size, std::int64_t{windows}));
    std::uint32_t sum = 0;
    constexpr int at_once = 3;
    for (int first = window; first < end; first += 32 * at_once) {
      std::uint32_t own_prices[at_once];
      load_prices<Radial>(group, first, end, own_prices);
      std::uint32_t sums[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) sums[i] = warp_inclusive_sum(own_prices[i]);
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        const bool is_before = first + 32 * i + place.lane < end && weighted(sum + sums[i]) <= left;
        window += __popc(__ballot_sync(all_lanes, is_before));
        sum += __shfl_sync(all_lanes, sums[i], 31);
      }
    }
    return window;
  }
};

}  // namespace winnow::detail
