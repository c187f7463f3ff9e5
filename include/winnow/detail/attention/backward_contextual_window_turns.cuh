// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows a block of backward_contextual_window.cuh has, and which of them its warps work on in a turn.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_share.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_turns : contextual_window_share<T, Radial, Long> {
  using base = contextual_window_share<T, Radial, Long>;
  using base::all_lanes;
  using base::assigned;
  using base::bounds;
  using base::grads;
  using base::group;
  using base::keys;
  using base::memory;
  using base::order;
  using base::part;
  using base::place;
  using base::plan_of;
  using base::problem;
  using base::queries;
  using base::region;
  using base::row_of_head;
  using base::rows_of_tile;
  using base::threads;
  using base::tiles;
  using base::warp;
  using base::width;
  using typename base::cursor;
  using typename base::layout;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// What the block's warps work on at a time, and this warp's share of it. Short windows: its queries
  /// are also its keys. Long windows: backward_contextual_long_turns.cuh.
  struct turn {
    int count = 0;  ///< the tile's rows; 0: the warp has none
    int base = 0;   ///< the tiles [base, base + width) hold its windows' keys
    int width = 0;
    int used = 0;    ///< tiles that hold queries; 0: the block has done all
    int number = 0;  ///< of short windows' turn
    // Of long windows:
    int first = 0;                     ///< slot of the tile's first row
    int key_rows = 0;                  ///< of all tiles of keys
    int first_key = 0, key_count = 0;  ///< this warp's keys
    int chunk = 0;                     ///< of keys
    unsigned ends = 15;                ///< in one register:
    /// Among the turns of these queries, or keys.
    [[nodiscard]] __device__ __forceinline__ bool first_of_queries() const {
      return (ends & 1) != 0;
    }
    [[nodiscard]] __device__ __forceinline__ bool last_of_queries() const {
      return (ends & 2) != 0;
    }
    [[nodiscard]] __device__ __forceinline__ bool first_of_keys() const { return (ends & 4) != 0; }
    [[nodiscard]] __device__ __forceinline__ bool last_of_keys() const { return (ends & 8) != 0; }
  };
  /// Does a long window take several turns?
  static __device__ __forceinline__ bool is_cut(const int2& window) {
    return window.y - window.x > 16 * tiles;
  }
  /// Is the window in `slot` long, and the slot its first probe?
  [[nodiscard]] __device__ __forceinline__ static bool is_first_probe(int slot,
                                                                      const int2& window) {
    const int length = window.y - window.x;
    return length > contextual_short_capacity && length <= layout::capacity &&
           slot - window.x < contextual_short_capacity;
  }
  /// Of a long window, in about 430 cycles, as measured with the radial axis: each chunk of queries meets each chunk
  /// of keys, and the time of these turns grows with their tiles. Later turns of the same queries are cheaper.
  static __device__ __forceinline__ constexpr std::uint32_t long_cost(int tiles_of_window) {
    constexpr int cost_of_queries = 24, cost_of_keys = -4, cost_of_piece = 7;
    const int chunks = (tiles_of_window + tiles - 1) / tiles;
    return static_cast<std::uint32_t>(
        chunks * (cost_of_queries + chunks * cost_of_keys + tiles_of_window * cost_of_piece));
  }
  /// About the time that the long window in a probed slot takes: all of it for its first probe.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t cost_at(int slot) const {
    const int2 window = bounds[slot];
    return is_first_probe(slot, window) ? long_cost((window.y - window.x + 15) / 16) : 0;
  }
  /// A value's sums in all threads before this one, and in all of them. All threads take part.
  __device__ __forceinline__ uint2 sum_before(std::uint32_t own) const {
    const std::uint32_t through = warp_inclusive_sum(own);
    auto* totals = at<std::uint32_t>(layout::deltas);
    __syncthreads();
    if (place.lane == 31) totals[warp] = through;
    __syncthreads();
    uint2 result = {through - own, 0};
#pragma unroll
    for (int w = 0; w < tiles; ++w) {
      if (w < warp) result.x += totals[w];
      result.y += totals[w];
    }
    return result;
  }
  /// What lies before a block's share of windows [0], and before its end [1].
  struct share {
    int probes[2];
    std::uint32_t cost[2];
  };
  /// Divides windows that cost `all` among the blocks of a head, which have others that cost `given` before this
  /// block's share and before its end. All threads take part, each with `count` probes that cost `own`, after
  /// what costs `before`.
  template <class Cost>
  __device__ __forceinline__ share divide(std::uint64_t all, const std::uint32_t (&given)[2],
                                          int count, std::uint32_t before, std::uint32_t own,
                                          const Cost& cost_of) const {
    share here = {};
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const std::uint64_t end =
          all * static_cast<unsigned>(min((part + side) * problem.heads, problem.long_whole));
      const auto is_before = [&](std::uint32_t cost) {
        return (std::uint64_t{cost} + given[side]) * static_cast<unsigned>(problem.long_whole) <
               end;
      };
      // Windows belong where their middle is. Most threads have all of theirs on one side.
      if (is_before(before + own)) {
        here.probes[side] = count;
        here.cost[side] = own;
      } else if (is_before(before)) {
        std::uint32_t sum = 0;
        for (int i = 0; i < count; ++i) {
          const std::uint32_t cost = cost_of(i);
          if (!is_before(before + sum + cost / 2)) break;
          ++here.probes[side];
          sum += cost;
        }
        here.cost[side] = sum;
      }
    }
    auto* sums = at<share>(layout::plans);
    if (threadIdx.x == 0) *sums = {};
    __syncthreads();
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int probes = __reduce_add_sync(all_lanes, here.probes[side]);
      const std::uint32_t cost = __reduce_add_sync(all_lanes, here.cost[side]);
      if (place.lane == 0) {
        atomicAdd(sums->probes + side, probes);
        atomicAdd(sums->cost + side, cost);
      }
    }
    __syncthreads();
    const share result = *sums;
    __syncthreads();
    return result;
  }
  /// Which long windows are this block's: all blocks of a head get neighbouring slots of the same cost, but for the
  /// last one. All threads take part.
  ///
  /// A long window that is cut may be a tenth of a block's work. So blocks share these first, and then the
  /// others so that all have the same to do, if there are enough of them.
  [[nodiscard]] __device__ __forceinline__ cursor share_of_block() const {
    constexpr int step = contextual_short_capacity;
    const int probes = divide_up(assigned, step);
    const int each = divide_up(probes, threads);
    const int first = static_cast<int>(threadIdx.x) * each;
    const int count = max(min(each, probes - first), 0);
    const auto cost_of = [&](int i, bool cut, bool all) {
      const int slot = (first + i) * step;
      return all || is_cut(bounds[slot]) == cut ? cost_at(slot) : 0;
    };
    std::uint32_t own_cut = 0, own_whole = 0;
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      own_cut += cost_of(i, true, false);
      own_whole += cost_of(i, false, false);
    }
    const uint2 cut = sum_before(own_cut);
    const uint2 whole_windows = sum_before(own_whole);
    const std::uint64_t all = std::uint64_t{cut.y} + whole_windows.y;
    // A block's share of windows that are cut exceeds the mean by at most one of them.
    const int most = (min(group.counts->largest, layout::capacity) + 15) / 16;
    const int blocks_of_head = problem.parts_per_head - problem.short_parts;
    const bool levels = whole_windows.y >= static_cast<unsigned>(blocks_of_head) * long_cost(most);
    share of_cut = {};
    share of_whole;
    if (levels) {
      of_cut = divide(cut.y, {0, 0}, count, cut.x, own_cut,
                      [&](int i) { return cost_of(i, true, false); });
      of_whole = divide(all, of_cut.cost, count, whole_windows.x, own_whole,
                        [&](int i) { return cost_of(i, false, false); });
    } else {
      of_whole = divide(all, {0, 0}, count, cut.x + whole_windows.x, own_cut + own_whole,
                        [&](int i) { return cost_of(i, false, true); });
    }
    if (threadIdx.x == 0)
      *at<int2>(layout::whole_windows) = {min(of_whole.probes[0] * step, assigned),
                                          min(of_whole.probes[1] * step, assigned)};
    __syncthreads();
    return {min(of_cut.probes[0] * step, assigned), min(of_cut.probes[1] * step, assigned), true,
            !levels};
  }
  /// Of a planned turn of short windows the tiles that hold queries, and the largest width of all tiles. Read where it
  /// is needed: shared memory is nearer than a spilled register.
  [[nodiscard]] __device__ __forceinline__ int2 extent_of_turn(int number) const {
    return *at<int2>(plan_of(number) + layout::plan_used);
  }
  [[nodiscard]] __device__ __forceinline__ turn planned_turn(int number) const {
    const int used = extent_of_turn(number).x;
    const int4 tile = at<int4>(plan_of(number))[warp];
    return {tile.x, tile.y, tile.z, used, number};
  }
  /// Has this warp rows in a turn?
  [[nodiscard]] __device__ __forceinline__ bool takes_part(const turn& now) const {
    return Long ? warp < max(now.used, now.width) : now.count > 0;
  }

  /// What a warp knows of its rows before they are there.
  struct tile_tokens {
    std::int32_t copied;               ///< the token whose row this lane copies half of; -1: none
    std::int32_t token[Long ? 1 : 2];  ///< of short windows' rows g and g + 8; see `tokens_of`
    std::uint32_t code[2];             ///< of rows g and g + 8
    /// Columns of their windows, from the first row of tile `base` on: the first in the lower half, how many
    /// in the upper.
    std::uint32_t window[2];
    float radius[2];
  };
  /// The tokens of rows g and g + 8. In long windows, which have few registers, other lanes have them.
  static __device__ __forceinline__ void tokens_of(const tile_tokens& rows,
                                                   std::int32_t (&tokens)[2]) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (Long)
        tokens[i] = __shfl_sync(all_lanes, rows.copied, 2 * (lane / 4 + 8 * i));
      else
        tokens[i] = rows.token[i];
    }
  }
  /// The slot of a row of this warp's tile, of a turn or from the tile's first slot on.
  [[nodiscard]] __device__ __forceinline__ int slot_at(const turn& now, int row) const {
    if constexpr (Long)
      return now.first + row;
    else
      return at<int>(plan_of(now.number) + layout::plan_slots)[16 * warp + row];
  }
  [[nodiscard]] static __device__ __forceinline__ int slot_at(int first, int row) {
    return first + row;
  }
  /// Of short windows; backward_contextual_long_turns.cuh has those of long ones.
  __device__ __forceinline__ tile_tokens load_queries(const turn& now) const {
    static_assert(!Long);
    const int count = now.count;
    const int column = 16 * (warp - now.base);  // of the tile's first row
    tile_tokens result;
    const int copied = place.lane / 2;
    result.copied = copied < count ? order[slot_at(now, copied)] : -1;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      const bool there = row < count;
      const int slot = there ? slot_at(now, row) : 0;
      result.token[i] = there ? order[slot] : -1;
      result.code[i] = there ? group.positions[slot] : 0;
      const int own_column = column + row;
      const int2 window = there ? bounds[slot] : int2{slot, slot};
      result.window[i] = (static_cast<std::uint32_t>(window.y - window.x) << 16) |
                         (static_cast<std::uint32_t>(own_column - slot + window.x) & 0xffffu);
      result.radius[i] = Radial && there ? group.radius[slot] + 0.0f : 0.0f;  // no -0
    }
    return result;
  }
  /// Starts loading the rows of queries and keys, which may be the same: q, k and dO, and O of long windows.
  __device__ __forceinline__ void copy_rows(const tile_tokens& rows, const tile_tokens& others,
                                            bool with_queries = true) const {
    if (with_queries) copy(rows_of_tile(queries, warp), problem.q, rows.copied);
    copy_keys(rows_of_tile(keys, warp), problem.k, others.copied);
    if (with_queries) copy(rows_of_tile(grads, warp), problem.grad_out, rows.copied);
    if (Long && with_queries)
      copy(memory + layout::outs + warp * layout::tile_bytes, problem.out, rows.copied);
    commit_copies();
  }
  /// And v, whose place may have held sums.
  __device__ __forceinline__ void copy_values(const tile_tokens& others) const {
    copy_keys(region(warp) + layout::values, problem.v, others.copied);
    commit_copies();
  }

 private:
  __device__ __forceinline__ void copy(std::byte* tile, const row_view& view,
                                       std::int32_t token) const {
    const int row = place.lane / 2;
    copy_half(tile + row * layout::row_bytes + ((place.lane & 1) ^ (row >> 2 & 1)) * 16, view,
              token);
  }
  __device__ __forceinline__ void copy_keys(std::byte* tile, const row_view& view,
                                            std::int32_t token) const {
    if constexpr (layout::keys_together)
      copy_half(tile + place.lane / 2 * layout::cell_bytes + place.lane % 2 * 16, view, token);
    else
      copy(tile, view, token);
  }
  __device__ __forceinline__ void copy_half(std::byte* target, const row_view& view,
                                            std::int32_t token) const {
    const int column = place.lane % 2 * width;
    const bool there = token >= 0 && column < problem.head_dim;
    copy_async(target, row_of_head(view, max(token, 0)) + (there ? column : 0), there);
  }
};

}  // namespace winnow::detail
