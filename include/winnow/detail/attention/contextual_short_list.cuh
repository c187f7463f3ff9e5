// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows a block of contextual_short.cuh takes, and in which order.
///
/// Dealt out by number, blocks differ by an eighth, and the last unit of three tiles keeps a block busy for a sixth of
/// its time. So each block reads the sizes of all windows, adds up what they cost, and takes its share of the sum,
/// neighbouring windows. It puts them into units, as many at a time as it has threads, and its warps take those of
/// three tiles first and those of one last. Of all blocks that read them the sums are the same, so that nothing is taken
/// twice.
///
/// Rows of windows that are too long for a unit, if they are few, are dealt out one by one (contextual_short_rows.cuh).
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_short_left.cuh"
#include "winnow/detail/attention/contextual_short_rows.cuh"
#include "winnow/detail/attention/contextual_sizes.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_short_list
    : contextual_block<T, 16, Radial, true, contextual_short_layout<Radial, sizeof(T)>> {
  using base = contextual_block<T, 16, Radial, true, contextual_short_layout<Radial, sizeof(T)>>;
  using base::group;
  using base::place;
  using base::share;
  using base::shares;
  using typename base::layout;
  static constexpr unsigned all = 0xffffffffu;

  /// Neighbouring windows [first, end).
  struct window_span {
    int first, end;
  };
  /// A unit: its first slot, and if it has up to 16 tokens, which may be several windows, a bit for each of their first
  /// slots and one behind the last; else how many tokens, shifted.
  struct listed_unit {
    std::int32_t slot;
    std::uint32_t marks;
  };
  static_assert(sizeof(listed_unit) == 8);
  static constexpr int count_shift = 20;
  /// Numbers in the block's memory.
  enum counter { next_unit, listed, counted, longer, next_row, counters };
  __device__ __forceinline__ int* counter_of(int which) const {
    return this->template table_at<int>(layout::counters) + which;
  }
  static_assert(most_short_windows / 128 * 4 <= layout::warp_bytes);
  static __device__ __forceinline__ int warps() { return static_cast<int>(blockDim.x) / 32; }
  static __device__ __forceinline__ int warp_of_block() {
    return __shfl_sync(all, static_cast<int>(threadIdx.x) / 32, 0);
  }

  static constexpr int chunk = size_chunk;
  /// What a window costs, in units of ten instructions. Those of up to 16 tokens share a unit.
  static __device__ __forceinline__ int cost_of(int size) {
    const int of_unit = 190 * static_cast<int>((static_cast<unsigned>(size) + 15) / 16) - 107;
    return size <= 16 ? 9 * size : size <= layout::rows ? of_unit : 0;
  }
  static __device__ __forceinline__ int cost_of(const int (&sizes)[4]) {
    return (cost_of(sizes[0]) + cost_of(sizes[1])) + (cost_of(sizes[2]) + cost_of(sizes[3]));
  }
  /// What each chunk costs, to the block's memory; all warps take part.
  __device__ __forceinline__ void store_costs() const {
    if (!reads_windows(group())) return;
    const int windows = group().counts->windows;
    const int whole = windows / chunk;
    const int warp = warp_of_block();
    auto* const costs = this->template table_at<int>(layout::chunk_costs);
    constexpr int batch = 8;  // loads that are under way together
#pragma unroll 1
    for (int first = warp; first < whole; first += batch * warps()) {
      int sizes[batch][4];
#pragma unroll
      for (int i = 0; i < batch; ++i)
        load_whole(group().offsets, first + i * warps(), first + i * warps() < whole, place.lane,
                   sizes[i]);
      unsigned longer_chunks = 0;
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        const int sum = __reduce_add_sync(all, cost_of(sizes[i]));
        if (place.lane == 0 && first + i * warps() < whole) costs[first + i * warps()] = sum;
        longer_chunks |= has_longer(sizes[i]) ? 1u << i : 0u;
      }
      for (; longer_chunks != 0; longer_chunks &= longer_chunks - 1)
        list_longer(first + (__ffs(static_cast<int>(longer_chunks)) - 1) * warps());
    }
    if (warp == whole % warps()) {
      int sizes[4];
      load_sizes(group().offsets, whole, windows, place.lane, sizes);
      const int sum = __reduce_add_sync(all, cost_of(sizes));
      if (place.lane == 0) costs[whole] = sum;
      if (has_longer(sizes)) list_longer(whole);
    }
  }
  static __device__ __forceinline__ bool has_longer(const int (&sizes)[4]) {
    return max(max(sizes[0], sizes[1]), max(sizes[2], sizes[3])) > layout::rows;
  }
  /// Lists this lane's windows of a chunk, of which some are too long for a unit, as far as there is room.
  __device__ __forceinline__ void list_longer(int index) const {
    const int number = atomicAdd(counter_of(longer), 1);
    if (number < layout::most_longer)
      this->template table_at<int>(layout::longer)[number] = index * chunk + 4 * place.lane;
  }
  /// The block's windows, once all warps have stored costs.
  __device__ __forceinline__ window_span find_span() const {
    const int windows = group().counts->windows;
    if (!reads_windows(group()))
      return {share_begin(windows, share, shares), share_begin(windows, share + 1, shares)};
    const int chunks = (windows + chunk - 1) / chunk;
    const int of_lane = (chunks + 31) / 32;
    const int* const costs = this->template table_at<const int>(layout::chunk_costs);
    int own = 0;
    for (int i = 0; i < of_lane; ++i) {
      const int index = place.lane * of_lane + i;
      own += index < chunks ? costs[index] : 0;
    }
    const int behind = warp_inclusive_sum(own);
    const int sum = __shfl_sync(all, behind, 31);
    // The chunks in which the share begins and ends, what is before them, and their windows.
    int limits[2], chunks_of[2], before[2], sizes[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      limits[i] = share_begin(sum, share + i, shares);
      const unsigned lanes = __ballot_sync(all, behind > limits[i]);
      const int lane = lanes == 0 ? 31 : __ffs(static_cast<int>(lanes)) - 1;
      before[i] = __shfl_sync(all, behind - own, lane);
      chunks_of[i] = lane * of_lane;
      for (; chunks_of[i] < chunks; ++chunks_of[i]) {
        const int next = before[i] + costs[chunks_of[i]];
        if (next > limits[i]) break;
        before[i] = next;
      }
      load_sizes(group().offsets, chunks_of[i], windows, place.lane, sizes[i]);
    }
    int found[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // The first window before which others cost so much.
      const int of_four = cost_of(sizes[i]);
      int cost = before[i] + warp_inclusive_sum(of_four);
      const unsigned lanes = __ballot_sync(all, cost > limits[i]);
      cost -= of_four;
      int window = chunks_of[i] * chunk + 4 * place.lane;
#pragma unroll
      for (const int size : sizes[i]) {
        window += cost < limits[i] ? 1 : 0;
        cost += cost_of(size);
      }
      found[i] =
          lanes == 0 ? windows : __shfl_sync(all, window, __ffs(static_cast<int>(lanes)) - 1);
    }
    return {found[0], found[1]};
  }

  /// Lists the units of as many windows as there are threads, from `first` on; all threads take part, and meet. Those of
  /// three tiles come first.
  __device__ __forceinline__ void list_units(int first, int end) const {
    const int first_of_warp = first + 32 * warp_of_block();
    const bool has_windows = first_of_warp < end;
    int begin = 0, behind = 0, count = 0, tiles = 0;
    std::uint32_t begins = 0, before = 0;
    bool is_unit = false;
    if (has_windows) {
      const std::int32_t* const offsets = group().offsets;
      const int window = min(first_of_warp + place.lane, end);
      begin = offsets[window], behind = offsets[min(window + 1, end)];
      // How many windows from this one on fit 16 rows, all of the same warp.
      int windows = 1;
#pragma unroll
      for (int more = 8; more > 0; more /= 2) {
        const int last = place.lane + windows - 1 + more;
        if (__shfl_sync(all, behind, last & 31) - begin <= 16 && last < 32) windows += more;
      }
      // Which of the windows begin a unit: from the warp's first one on, each that the one before leads to.
      int next = place.lane + windows;
      begins = 1u << place.lane;
#pragma unroll
      for (int step = 0; step < 5; ++step) {
        const std::uint32_t further = __shfl_sync(all, begins, next & 31);
        const int behind_next = __shfl_sync(all, next, next & 31);
        if (next < 32) begins |= further, next = behind_next;
      }
      begins = __shfl_sync(all, begins, 0);
      count = __shfl_sync(all, behind, (place.lane + windows - 1) & 31) - begin;
      is_unit = (begins >> place.lane & 1) != 0 && count > 0 && count <= layout::rows;
      tiles = (count + 15) / 16;
      // Units of one to three tiles are counted in ten bits each.
      std::uint32_t of_warp = 0;
#pragma unroll
      for (int size = 1; size <= 3; ++size) {
        const std::uint32_t lanes = __ballot_sync(all, is_unit && tiles == size);
        before += __popc(lanes & ((1u << place.lane) - 1)) << (10 * (size - 1));
        of_warp += __popc(lanes) << (10 * (size - 1));
      }
      if (place.lane == 0) of_warp = atomicAdd(counter_of(counted), static_cast<int>(of_warp));
      before += __shfl_sync(all, of_warp, 0);
    }
    __syncthreads();
    const auto units = static_cast<std::uint32_t>(*counter_of(counted));
    constexpr std::uint32_t ten = 1023;
    const std::uint32_t of_three = units >> 20, of_two = units >> 10 & ten;
    if (threadIdx.x == 0) {
      *counter_of(next_unit) = 0;
      *counter_of(listed) = static_cast<int>(of_three + of_two + (units & ten));
    }
    if (has_windows) {
      const std::uint32_t index = tiles == 3   ? before >> 20
                                  : tiles == 2 ? of_three + (before >> 10 & ten)
                                               : of_three + of_two + (before & ten);
      auto* const list = this->template table_at<listed_unit>(layout::list);
      if (is_unit)
        list[index] = {begin, count <= 16 ? 1u | 1u << count
                                          : static_cast<std::uint32_t>(count) << count_shift};
      __syncwarp();
      // The others are marked in the unit that the window before them began.
      const int owner = 31 - __clz(static_cast<int>(begins & ((2u << place.lane) - 1)));
      const int distance = begin - __shfl_sync(all, begin, owner);
      const std::uint32_t index_of_owner = __shfl_sync(all, index, owner);
      if (owner != place.lane && distance < 16 && behind > begin)
        atomicOr(&list[index_of_owner].marks, 1u << distance);
    }
    __syncthreads();
  }
  /// Rows of windows that are too long for a unit, as warps come to take them: those of the block are every so
  /// many-th one, by slots.
  __device__ __forceinline__ void run_longer() const {
    const int fours = *counter_of(longer);
    if (fours == 0 || fours > layout::most_longer || !base::problem.takes_longer) return;
    const auto take = [&] {
      int number = 0;
      if (place.lane == 0) number = atomicAdd(counter_of(next_row), 1);
      return __shfl_sync(all, number, 0);
    };
    const int windows = group().counts->windows;
    int own = take(), number = 0;
#pragma unroll 1
    for (int i = 0; i < 4 * fours; ++i) {
      const int window =
          min(this->template table_at<const int>(layout::longer)[i / 4] + i % 4, windows);
      const int begin = group().offsets[window], end = group().offsets[min(window + 1, windows)];
      if (end - begin <= layout::rows) continue;
      for (int slot = begin + (share - begin % shares + shares) % shares; slot < end;
           slot += shares, ++number) {
        if (number != own) continue;
        attend_row_by_keys<T>(base::problem, group(), group().first_head + base::group_head, slot);
        own = take();
      }
    }
  }
};

}  // namespace winnow::detail
