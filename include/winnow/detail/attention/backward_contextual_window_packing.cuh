// SPDX-License-Identifier: Apache-2.0
/// \file
/// How short windows fill the tiles of a turn of backward_contextual_window.cuh.
///
/// A turn costs the same whether its tiles have 16 rows each or one, so what counts is that tiles are full. Up to
/// 32 windows wait, one a lane of the warp that plans. The largest that fits into the turn's tiles comes first
/// and begins a tile; the rows that are left of its last tile go to smaller ones, the largest that fits first
/// again. So rows of a tile are those of windows from anywhere among some hundred slots, and a plan names the
/// slot of each row. Where windows begin is loaded while the turn before fills.
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
  using base::group;
  using base::place;
  using base::tiles;
  using typename base::layout;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Do windows of one token go without tiles?
  static constexpr bool takes_singles_out = !Radial && !Long;

  /// Of long windows those that are next: whose first probe lies in slots [from, until). Every 64th slot is a probe,
  /// so that a long window has one. First those that are cut into chunks, then others, in a range of their own.
  struct cursor {
    int from, until;
    bool cut = Long;
    bool mixed = false;  ///< both in one range
    // The window whose turns are under way, its tile of queries that is next, and which of the last 32 probes
    // have others:
    int window = 0, length = 0;
    int tile = 0;
    unsigned found = 0;
  };
  static __device__ __forceinline__ int plan_of(int number) {
    return layout::plans + number % layout::plan_count * layout::plan_bytes;
  }
  /// Short windows [from, until) are next, in shared memory; of 32 of these where they begin and end.
  [[nodiscard]] __device__ __forceinline__ int2 load_windows(const int2& next) const {
    const int window = next.x + place.lane;
    return window < next.y ? int2{group.offsets[window], group.offsets[window + 1]} : int2{0, 0};
  }
  /// Adds them to those that wait, of which each lane has one or none: its first slot and its rows. By one warp.
  /// \return how many wait
  __device__ __forceinline__ int add_waiting(const int2& bounds_of_window, int2& next,
                                             int2& waits) const {
    const unsigned lower_lanes = (1u << place.lane) - 1;
    const int count = bounds_of_window.y - bounds_of_window.x;
    const bool is_short = count > (takes_singles_out ? 1 : 0) && count <= contextual_short_capacity;
    const unsigned found = __ballot_sync(all_lanes, is_short);
    const unsigned free = __ballot_sync(all_lanes, waits.y == 0);
    // Free lanes say which they are, one behind the other, and windows take the lane of the same number.
    auto* lanes = at<std::uint8_t>(layout::free_lanes);
    auto* waiting = at<int2>(layout::waiting);
    if (waits.y == 0) lanes[__popc(free & lower_lanes)] = static_cast<std::uint8_t>(place.lane);
    waiting[place.lane] = waits;
    __syncwarp();
    const int number = __popc(found & lower_lanes);
    const int room = __popc(free);
    const bool is_left = is_short && number >= room;
    if (is_short && !is_left) waiting[lanes[number]] = {bounds_of_window.x, count};
    // The windows for which no lane was free are the next ones again.
    const unsigned left = __ballot_sync(all_lanes, is_left);
    next.x += left == 0 ? 32 : __ffs(static_cast<int>(left)) - 1;
    __syncwarp();
    waits = waiting[place.lane];
    return 32 - room + min(room, __popc(found));
  }
  /// Adds the next windows until enough wait: so many that there is a choice, and that they fill a turn, if lanes
  /// are enough for that. \param windows the first ones.
  __device__ __forceinline__ void await_enough(int2 windows, int2 next, int2 waits) const {
    constexpr int enough = tiles > 4 ? 24 : 20, enough_rows = 20 * tiles;
#pragma unroll 1
    while (true) {
      const int count = add_waiting(windows, next, waits);
      if (next.x >= next.y || count == 32) break;
      if (count > enough && __reduce_add_sync(all_lanes, waits.y) >= enough_rows) break;
      windows = load_windows(next);
    }
    if (place.lane == 0) *at<int2>(layout::next_windows) = next;
    __syncwarp();
  }
  __device__ __forceinline__ void begin_planning(const int2& next) const {
    await_enough(load_windows(next), next, {0, 0});
  }
  /// Fills a turn with windows that wait, by one warp. Those that come next arrive meanwhile.
  ///
  /// Each step takes the largest window that fits, one maximum over the lanes and hardly more: its lane keeps in mind
  /// where its rows begin, and all lanes write their rows down together when the turn is full.
  __device__ __forceinline__ void plan_turn(int number) const {
    const int plan = plan_of(number);
    const int2 next = *at<int2>(layout::next_windows);
    const int2 windows = load_windows(next);
    int2 waits = at<int2>(layout::waiting)[place.lane];
    // The lane is there to tell windows of the same size apart.
    constexpr unsigned one_row = 32;
    unsigned size = waits.y > 0 ? one_row * waits.y + place.lane : 0;
    constexpr int nowhere = 16 * tiles;
    int first_row = nowhere;
    int used = 0, widest = 0;
    int4 tile = {
        0, 0, 0,
        0};  // what this lane writes down: rows, the first tile with keys, how many there are
    // Takes the largest window of fewer than `room` / one_row rows, which begin with `row`. \return its size; 0: none
    const auto take = [&](unsigned room, int row) {
      const unsigned own = size < room ? size : 0;
      const unsigned largest = __reduce_max_sync(all_lanes, own);
      const bool is_own = own == largest && largest >= one_row;
      first_row = is_own ? row : first_row;
      size = is_own ? 0 : size;
      return largest & ~(one_row - 1);
    };
#pragma unroll 1
    while (used < tiles) {
      unsigned taken = take(one_row * (16 * (tiles - used) + 1), 16 * used);
      if (taken == 0) break;
      // Others fit into the tiles that the first window takes.
      const int width = static_cast<int>((taken + one_row * 15) / (one_row * 16));
      int row = 16 * used;
      unsigned room = one_row * (16 * width + 1);
#pragma unroll 1
      do {
        room -= taken;
        row += static_cast<int>(taken / one_row);
        taken = take(room, row);
      } while (taken != 0);
      const bool is_own = place.lane >= used && place.lane < used + width;
      tile.x = is_own ? min(16, row - 16 * place.lane) : tile.x;
      tile.y = is_own ? used : tile.y;
      tile.z = is_own ? width : tile.z;
      widest = max(widest, width);
      used += width;
    }
    if (place.lane < tiles) at<int4>(plan)[place.lane] = tile;
    if (place.lane == 0) *at<int2>(plan + layout::plan_used) = {used, widest};
    write_rows(at<int>(plan + layout::plan_slots), waits.x, first_row);
    if (first_row < nowhere) waits.y = 0;
    await_enough(windows, next, waits);
  }
  /// Writes down the slots of a turn's rows, of which this lane's window has those from `first_row` on until the
  /// next one's. Rows behind a tile's last one have any slot.
  __device__ __forceinline__ void write_rows(int* slots, int first_slot, int first_row) const {
    if (first_row < 16 * tiles) slots[first_row] = first_slot - first_row;
    constexpr int words = divide_up(16 * tiles, 32);
    unsigned begins[words];
#pragma unroll
    for (int word = 0; word < words; ++word)
      begins[word] =
          __reduce_or_sync(all_lanes, first_row / 32 == word ? 1u << (first_row & 31) : 0);
    __syncwarp();
    // The last beginning that is not behind a row. Row 0 begins a window, unless there is none at all.
    const unsigned until_lane = 0xffffffffu >> (31 - place.lane);
    int slot[words];
    int last = 0;
#pragma unroll
    for (int word = 0; word < words; ++word) {
      const auto last_of = [&](unsigned bits) {
        return bits != 0 ? 32 * word + 31 - __clz(static_cast<int>(bits)) : last;
      };
      slot[word] = slots[last_of(begins[word] & until_lane)] + 32 * word + place.lane;
      last = last_of(begins[word]);
    }
    __syncwarp();
#pragma unroll
    for (int word = 0; word < words; ++word) slots[32 * word + place.lane] = slot[word];
  }
};

}  // namespace winnow::detail
