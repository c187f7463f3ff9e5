// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a block of contextual_units_kernel.cuh has to do: it looks at its slots and lists the windows in them.
///
/// A block's slots are stripes of 16, every so many-th, as scans are dense in places. Windows that start in a
/// stripe are the block's if they are short. Those of one token are listed. Those of up to 16 go to units of 16 rows,
/// each warp's windows to units of its own: the largest first, each to the first one that has room. Longer
/// windows are cut into tiles of 16 rows, counted from their start, each a piece of work of its own, and belong to
/// the stripe where the tile starts.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_units_layout.hpp"
#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_plan
    : contextual_block<T, 16, false, true, contextual_units_layout<Heads>> {
  using base = contextual_block<T, 16, false, true, contextual_units_layout<Heads>>;
  using base::assigned;
  using base::group;
  using base::place;
  using base::share;
  using base::shares;
  using base::tables;
  using base::warp;
  using layout = contextual_units_layout<Heads>;
  static constexpr unsigned all = 0xffffffffu;

  /// The slots [first, last) of a row's window in a unit.
  static __device__ __forceinline__ int2 window_of(std::uint32_t marks, int row) {
    return {31 - __clz(static_cast<int>(marks & ((2u << row) - 1))),
            row + __ffs(static_cast<int>(marks >> (row + 1)))};
  }
  enum counter {
    listed,  ///< of a part's windows of one token, tiles, and those with many keys, in bits of their own
    next_tile,
    next_single,
    counters,
    bad_rows = counters,  ///< has some row an element that is not finite?
    turns  ///< of the block, which has a part of its slots in each, or of what it is dealt
  };
  static constexpr int tile_shift = 12, long_shift = 22;
  static_assert(layout::warps * layout::most_single < 1 << tile_shift &&
                layout::warps * layout::most_tiles < 1 << (32 - long_shift) &&
                tile_shift + 10 == long_shift);
  __device__ __forceinline__ int* counter_of(int which) const {
    return this->template table_at<int>(layout::counters) + which;
  }
  /// How many windows of one token the part has, how many tiles with many keys, and others.
  __device__ __forceinline__ int single_count() const {
    return *counter_of(listed) & ((1 << tile_shift) - 1);
  }
  static __device__ __forceinline__ int tiles_of(int listed_) {
    return listed_ >> tile_shift & ((1 << (long_shift - tile_shift)) - 1);
  }
  __device__ __forceinline__ int tile_count() const { return tiles_of(*counter_of(listed)); }
  __device__ __forceinline__ int long_count() const {
    return static_cast<int>(static_cast<unsigned>(*counter_of(listed)) >> long_shift);
  }
  /// Tiles with many keys come first, the others from the list's end on.
  __device__ __forceinline__ int4& tile_at(bool is_long, int index) const {
    return this->template table_at<int4>(
        layout::tiles)[is_long ? index : layout::warps * layout::most_tiles - 1 - index];
  }
  __device__ __forceinline__ std::byte* unit_at(int unit) const {
    return this->template table_at<std::byte>(layout::units) + unit * layout::unit_bytes;
  }
  /// This thread's number, read again. What is addressed with it before and behind a part's work would else be kept in
  /// registers during that.
  static __device__ __forceinline__ int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }
  /// Where the warp's memory begins. The base's copy of it would take another register.
  __device__ __forceinline__ std::uint32_t own_address() const {
    return shared_address(base::memory);
  }
  /// Adds to a number in the block's memory, for the whole warp. \return what it was before.
  __device__ __forceinline__ int reserve_at(int offset, int count) const {
    int first = 0;
    if (place.lane == 0)
      asm volatile("atom.shared.add.u32 %0, [%1], %2;"
                   : "=r"(first)
                   : "r"(shared_address(tables) + static_cast<std::uint32_t>(offset)), "r"(count)
                   : "memory");
    return __shfl_sync(all, first, 0);
  }
  __device__ __forceinline__ int reserve(int which, int count) const {
    return reserve_at(layout::counters + 4 * which, count);
  }
  /// A lane's slot of a round, of a part of the block's slots.
  __device__ __forceinline__ std::uint32_t slot_of(int part, int round, int lane) const {
    const int stripe =
        ((part * layout::rounds + round) * layout::warps + warp) * 2 + lane / layout::stripe;
    return static_cast<std::uint32_t>(stripe * shares + share) * layout::stripe +
           static_cast<std::uint32_t>(lane % layout::stripe);
  }
  /// Slots of a part, of all blocks of the head.
  __device__ __forceinline__ std::uint32_t slots_of_part() const {
    return static_cast<std::uint32_t>(layout::rounds * layout::warps * 2 * layout::stripe * shares);
  }
  __device__ __forceinline__ bool are_slots_one_part() const {
    return static_cast<std::uint32_t>(assigned) <= slots_of_part();
  }
  __device__ __forceinline__ int parts() const {
    const std::uint32_t slots = slots_of_part();
    return static_cast<int>((static_cast<std::uint32_t>(assigned) + slots - 1) / slots);
  }

  /// The windows that this lane's slots lie in; none where there is no slot.
  using slot_windows = int2[layout::rounds];
  __device__ __forceinline__ void load_windows(int part, slot_windows& windows) const {
    const auto* bounds = reinterpret_cast<const int2*>(group().bounds);
#pragma unroll
    for (int round = 0; round < layout::rounds; ++round) {
      const std::uint32_t slot = slot_of(part, round, place.lane);
      windows[round] = int2{0, 0};
      if (slot < static_cast<std::uint32_t>(assigned)) windows[round] = bounds[slot];
    }
  }
  /// Lists the windows of one token that start in the slots of a part.
  __device__ __forceinline__ void list_singles(int part, const slot_windows& windows) const {
    int own = 0;
#pragma unroll
    for (int round = 0; round < layout::rounds; ++round)
      if (windows[round].y - windows[round].x == 1) ++own;
    const int sum = warp_inclusive_sum(own);
    const int count = __shfl_sync(all, sum, 31);
    int single = (reserve(listed, count) & ((1 << tile_shift) - 1)) + sum - own;
    auto* const singles = this->template table_at<std::int32_t>(layout::singles);
#pragma unroll
    for (int round = 0; round < layout::rounds; ++round)
      if (windows[round].y - windows[round].x == 1) singles[single++] = windows[round].x;
  }
  /// Lists the tiles that start in the slots of a part.
  __device__ __forceinline__ void list_tiles(int part, const slot_windows& windows) const {
    std::uint32_t tiles[layout::rounds], longs[layout::rounds];
    int count = 0;
#pragma unroll
    for (int round = 0; round < layout::rounds; ++round) {
      const int slot = static_cast<int>(slot_of(part, round, place.lane));
      const int size = windows[round].y - windows[round].x;
      const bool is_tile = size > layout::longest_short && (slot - windows[round].x) % 16 == 0;
      tiles[round] = __ballot_sync(all, is_tile && size <= many_keys);
      longs[round] = __ballot_sync(all, is_tile && size > many_keys);
      count += (__popc(tiles[round]) << tile_shift) + (__popc(longs[round]) << long_shift);
    }
    const auto first = static_cast<unsigned>(reserve(listed, count));
    int tile = tiles_of(static_cast<int>(first));
    int long_tile = static_cast<int>(first >> long_shift);
    const std::uint32_t before = ~bits_from(place.lane), own = 1u << place.lane;
#pragma unroll
    for (int round = 0; round < layout::rounds; ++round) {
      const int slot = static_cast<int>(slot_of(part, round, place.lane));
      const int2 window = windows[round];
      if (const bool is_long = (longs[round] & own) != 0; is_long || (tiles[round] & own) != 0)
        tile_at(is_long, is_long ? long_tile + __popc(longs[round] & before)
                                 : tile + __popc(tiles[round] & before)) = {
            slot, min(slot + 16, window.y), window.x, window.y};
      tile += __popc(tiles[round]);
      long_tile += __popc(longs[round]);
    }
  }
  static constexpr int many_keys = 48;

  /// Puts the warp's short windows into units, which all warps then may take. They see none before its number is stored,
  /// behind all that units hold. \param windows of the part.
  __device__ __forceinline__ void pack_units(int part, const slot_windows& windows) const {
    unsigned keys[layout::rounds];
#pragma unroll
    for (int round = 0; round < layout::rounds; ++round) {
      const int slot = static_cast<int>(slot_of(part, round, place.lane));
      const int2 window = windows[round];
      const int size = window.y - window.x;
      keys[round] = size <= layout::longest_short && size > 1 && window.x == slot
                        ? static_cast<unsigned>(size << 8 | round << 5 | place.lane)
                        : 0u;
    }
    const int units = pack(part, keys);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
    if (place.lane == 0)
      asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(count_of_units(warp)), "r"(units)
                   : "memory");
  }
  /// Address of how many units a warp has packed, which says that they are there; behind it, how many of them
  /// are taken.
  __device__ __forceinline__ std::uint32_t count_of_units(int of_warp) const {
    return shared_address(tables) + static_cast<std::uint32_t>(layout::unit_counts + 8 * of_warp);
  }
  /// Takes a unit of this warp, or of another one. \return where it is in the block's memory, or 0.
  __device__ __forceinline__ int take_unit() const {
    while (true) {
      const bool left = place.lane < layout::warps && load_acquire(count_of_units(place.lane) + 4) <
                                                          load_acquire(count_of_units(place.lane));
      const std::uint32_t of_warps = __ballot_sync(all, left);
      if (of_warps == 0) return 0;
      // From this one on, and around.
      const std::uint32_t from_own = of_warps & bits_from(warp);
      const int owner = __ffs(static_cast<int>(from_own != 0 ? from_own : of_warps)) - 1;
      const int index = reserve_at(layout::unit_counts + 8 * owner + 4, 1);
      if (index < __shfl_sync(all, left ? load_acquire(count_of_units(place.lane)) : 0, owner))
        return layout::units + (owner * layout::most_units + index) * layout::unit_bytes;
    }
  }

 private:
  /// Puts the warp's windows into units, the largest first, each into the first unit that has room; a lane for each
  /// unit knows what is in it. \param keys of windows that start in this lane's slots: their size, then where they
  /// start; or 0. \return how many units there are.
  __device__ __forceinline__ int pack(int part, unsigned (&keys)[layout::rounds]) const {
    static_assert(layout::most_units <= 32);
    // The lane's largest window comes first.
#pragma unroll
    for (int last = layout::rounds - 1; last > 0; --last)
#pragma unroll
      for (int i = 0; i < last; ++i) {
        const unsigned larger = max(keys[i], keys[i + 1]);
        keys[i + 1] = min(keys[i], keys[i + 1]);
        keys[i] = larger;
      }
    int used = 0;
    std::uint32_t marks = 0;
    const int lane = place.lane;
    // Slots of windows are known to fit 32 bits.
    const auto half_step = static_cast<std::uint32_t>(shares * layout::stripe);
    const std::uint32_t first_slot = slot_of(part, 0, 0) + lane;
    const std::int32_t* order = group().order;
    const packed_position* positions = group().positions;
    const std::uint32_t units = shared_address(unit_at(warp * layout::most_units));
    while (true) {
      const unsigned best = __reduce_max_sync(all, keys[0]);
      if (best == 0) break;
      if (keys[0] == best) {
#pragma unroll
        for (int i = 0; i + 1 < layout::rounds; ++i) keys[i] = keys[i + 1];
        keys[layout::rounds - 1] = 0;
      }
      const int size = static_cast<int>(best >> 8);
      const int unit = __ffs(static_cast<int>(__ballot_sync(all, used + size <= 16))) - 1;
      const int first = __shfl_sync(all, used, unit);
      if (lane == unit) {
        marks |= 1u << used;
        used += size;
      }
      const std::uint32_t slot =
          first_slot + (best & 15) +
          half_step * ((best >> 5 & 7) * 2 * layout::warps + (best >> 4 & 1));
      const std::uint32_t target =
          units + static_cast<std::uint32_t>(unit * layout::unit_bytes + 4 * (first + lane));
      if (lane < size) {
        copy_element_async(target + layout::unit_tokens, order + slot, true);
        copy_element_async(target + layout::unit_codes, positions + slot, true);
      }
    }
    if (used > 0)
      store_shared(
          units + static_cast<std::uint32_t>(lane * layout::unit_bytes + layout::unit_marks),
          marks | 1u << used);
    return __popc(__ballot_sync(all, used > 0));
  }
};

}  // namespace winnow::detail
