// SPDX-License-Identifier: Apache-2.0
/// \file
/// How short windows fill the tiles of a turn of backward_contextual_window.cuh.
///
/// A turn costs the same whether its tiles have 16 rows each or one, so what counts is that tiles are full. Up to
/// 32 windows wait, one a lane of the warp that plans. The largest that fits into the turn's tiles comes first
/// and begins a tile; the rows that are left of its last tile go to smaller ones, the largest that fits first
/// again. So rows of a tile are those of windows from anywhere among some hundred slots, and a plan names the
/// slot of each row.
///
/// A window of up to 16 tokens lies in one tile. Linear axes leave windows of one token to
/// backward_contextual_window_singles.cuh.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_block.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_packing : contextual_window_block<T, Radial, Long> {
  using base = contextual_window_block<T, Radial, Long>;
  using base::all_lanes;
  using base::assigned;
  using base::bounds;
  using base::place;
  using base::tiles;
  using typename base::layout;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Do windows of one token go without tiles?
  static constexpr bool takes_singles_out = !Radial && !Long;

  /// Which windows are next: those that start in slots [from, until), or long ones whose first probe lies
  /// there. Every 64th slot is a probe, so that a long window has one. Of long windows first those that are
  /// cut into chunks, then others, in a range of their own.
  struct cursor {
    int from, until;
    bool cut = Long;
    bool mixed = false;  ///< both in one range
    /// Where the windows of slots from + lane and 32 slots on end: loaded a turn ahead.
    int ends[2] = {0, 0};
    // The long window whose turns are under way, its tile of queries that is next, and which of the last 32 probes
    // have others:
    int window = 0, length = 0;
    int tile = 0;
    unsigned found = 0;
  };
  static __device__ __forceinline__ int plan_of(int number) {
    return layout::plans + number % layout::plan_count * layout::plan_bytes;
  }
  /// Looks at the next 64 slots, of which the first begins a window.
  __device__ __forceinline__ void see_ends(cursor& next) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = next.from + 32 * half + place.lane;
      next.ends[half] = slot < assigned ? bounds[slot].y : assigned;
    }
  }
  /// Adds short windows that start in the next 64 slots to those that wait, of which each lane has one or
  /// none, by one warp.
  /// \param list in shared memory, for 64 windows.
  __device__ __forceinline__ void add_waiting(std::uint16_t* list, cursor& next,
                                              int2& waits) const {
    const unsigned lower_lanes = (1u << place.lane) - 1;
    int found = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = next.from + 32 * half + place.lane;
      const int end = next.ends[half];
      int before = __shfl_up_sync(all_lanes, end, 1);
      const int last_of_half = half == 0 ? 0 : __shfl_sync(all_lanes, next.ends[0], 31);
      if (place.lane == 0) before = last_of_half;
      const int count = end - slot;
      const bool waits_now = slot < next.until && end != before &&
                             count <= contextual_short_capacity &&
                             (!takes_singles_out || count > 1);
      const unsigned lanes = __ballot_sync(all_lanes, waits_now);
      if (waits_now)
        list[found + __popc(lanes & lower_lanes)] =
            static_cast<std::uint16_t>(count << 8 | (32 * half + place.lane));
      found += __popc(lanes);
    }
    __syncwarp();
    const unsigned free = __ballot_sync(all_lanes, waits.y == 0);
    const int number = __popc(free & lower_lanes);
    const int from = next.from;
    if (waits.y == 0 && number < found) waits = {from + (list[number] & 0xff), list[number] >> 8};
    // The windows for which no lane was free are the next ones again.
    const int taken = __popc(free);
    const int last = min(next.until - from, 64) - 1;
    next.from = __shfl_sync(all_lanes, last < 32 ? next.ends[0] : next.ends[1], last & 31);
    if (taken < found) next.from = from + (list[taken] & 0xff);
    __syncwarp();
    see_ends(next);
  }
  /// Takes the largest window of at most `rows` rows from those that wait. \return its slot and its rows; 0:
  /// there is none
  __device__ __forceinline__ int2 take_largest(int rows, int2& waits) const {
    const unsigned own = waits.y <= rows ? static_cast<unsigned>(waits.y << 5 | place.lane) : 0u;
    const unsigned largest = __reduce_max_sync(all_lanes, own);
    const int lane = static_cast<int>(largest & 31u);
    const int slot = __shfl_sync(all_lanes, waits.x, lane);
    const int count = static_cast<int>(largest >> 5);
    if (place.lane == lane && count > 0) waits.y = 0;
    return {slot, count};
  }
  /// Fills a turn with windows that wait, by one warp. `tile` is the one that this lane writes down: its rows, the
  /// first tile with keys of its windows, and how many there are. \return tiles
  __device__ __forceinline__ int fill_turn(int plan, cursor& next, int4& tile) const {
    constexpr int enough = 24;
    int* slots = at<int>(plan + layout::plan_slots);
    int2 waits = at<int2>(layout::waiting)[place.lane];
    while (next.from < next.until && __popc(__ballot_sync(all_lanes, waits.y > 0)) <= enough)
      add_waiting(reinterpret_cast<std::uint16_t*>(slots), next, waits);
    int used = 0;
    while (used < tiles) {
      const int2 first = take_largest(16 * (tiles - used), waits);
      if (first.y == 0) break;
      const int width = (first.y + 15) / 16;
      int* rows = slots + 16 * used;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 32 * half + place.lane;
        if (row < first.y) rows[row] = first.x + row;
      }
      int filled = first.y;
      while (filled < 16 * width) {
        const int2 more = take_largest(16 * width - filled, waits);
        if (more.y == 0) break;
        if (place.lane < more.y) rows[filled + place.lane] = more.x + place.lane;
        filled += more.y;
      }
      const int own = place.lane - used;
      if (own >= 0 && own < width) tile = {min(16, filled - 16 * own), used, width, 0};
      used += width;
    }
    at<int2>(layout::waiting)[place.lane] = waits;
    return used;
  }
};

}  // namespace winnow::detail
