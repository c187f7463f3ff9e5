// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which windows a block of backward_contextual_window.cuh has, and which of them its warps work on in a turn.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_block.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_turns : contextual_window_block<T, Radial, Long> {
  using base = contextual_window_block<T, Radial, Long>;
  using base::all_lanes;
  using base::assigned;
  using base::bounds;
  using base::grads;
  using base::group;
  using base::head;
  using base::keys;
  using base::order;
  using base::part;
  using base::place;
  using base::problem;
  using base::queries;
  using base::region;
  using base::rows_of_tile;
  using base::threads;
  using base::tiles;
  using base::warp;
  using base::width;
  using typename base::layout;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// What the block's warps work on at a time, and this warp's share of it. Short windows: its queries
  /// are also its keys. Long windows: of one window up to eight tiles of queries and as many of keys, and a
  /// warp has a tile of both.
  struct turn {
    int first = 0;  ///< slot of the tile's first row
    int count = 0;  ///< its rows; 0: the warp has none
    int base = 0;   ///< the tiles [base, base + width) hold its windows' keys
    int width = 0;
    int used = 0;    ///< tiles that hold queries; 0: the block has done all
    int widest = 0;  ///< the largest width of all tiles
    // Of long windows:
    int first_key = 0, key_count = 0;                      ///< this warp's keys
    int number = 0;                                        ///< of the tile of queries in its window
    bool first_of_queries = true, last_of_queries = true;  ///< among the turns of these queries
    bool first_of_keys = true, last_of_keys = true;
    [[nodiscard]] __device__ __forceinline__ int used_by_keys() const {
      return Long ? width : used;
    }
  };
  /// Which windows are next: those that start in slots [from, until), or long ones whose first probe lies
  /// there. Every 64th slot is a probe, so that a long window has one. Of long windows first those that are
  /// cut into chunks, then others, in a range of their own.
  struct cursor {
    int from, until;
    bool cut = Long;
    bool mixed = false;  ///< both in one range
    /// Where the windows of slots from + 1 + lane and 32 slots on start: loaded a turn ahead.
    int starts[2] = {0, 0};
    // The long window whose turns are under way:
    int window = 0, length = 0;
    int query_chunk = 0, key_chunk = 0;
  };
  /// Looks at the next 64 slots.
  __device__ __forceinline__ void see_starts(cursor& next) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = next.from + 1 + 32 * half + place.lane;
      next.starts[half] = slot < assigned ? bounds[slot].x : assigned;
    }
  }
  /// Adds short windows that start in the next 64 slots to those that wait, of which each lane has one or
  /// none, by one warp: windows that share a tile are one. No 64 slots have more than nine.
  __device__ __forceinline__ void add_waiting(cursor& next, int2& waits) const {
    const int from = next.from;
    const int until = next.until;
    // Bit s: in slot from + 1 + s starts a window, or the last has ended there.
    std::uint64_t starts = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool mark = next.starts[half] == from + 1 + 32 * half + place.lane;
      starts |= std::uint64_t{__ballot_sync(all_lanes, mark)} << (32 * half);
    }
    if (until - from <= 64) {
      // Of the starts from `until` on, the first ends this range's last window.
      const int bit = until - from - 1;
      const std::uint64_t behind = starts >> bit << bit;
      starts = (starts ^ behind) | (behind & (0 - behind));
    }
    unsigned free = __ballot_sync(all_lanes, waits.y == 0);
    int done = 0;
    while (done < 64 && from + done < until) {
      const std::uint64_t left = starts >> done;
      const unsigned near = static_cast<unsigned>(left) & 0xffffu;
      int count = 32 - __clz(static_cast<int>(near));
      if (near == 0) {
        count = __ffsll(static_cast<long long>(left));
        if (count == 0) {  // ends behind the 64 slots
          if (done > 0) break;
          count = bounds[from].y - from;
        }
      }
      if (count <= contextual_short_capacity) {
        if (place.lane == __ffs(static_cast<int>(free)) - 1) waits = {from + done, count};
        free &= free - 1;
      }
      done += count;
    }
    next.from = from + done;
    see_starts(next);
  }
  /// Fills a turn with windows that wait, those of most tiles first, by one warp. `tile` is the one that this
  /// lane writes down. \return tiles
  __device__ __forceinline__ int fill_tiles(int2& waits, int4& tile) const {
    int used = 0;
    while (used < tiles) {
      const unsigned needed = static_cast<unsigned>(waits.y + 15) / 16;
      const unsigned most =
          __reduce_max_sync(all_lanes, needed <= static_cast<unsigned>(tiles - used) ? needed : 0u);
      if (most == 0) break;
      const int lane = __ffs(static_cast<int>(__ballot_sync(all_lanes, needed == most))) - 1;
      const int first = __shfl_sync(all_lanes, waits.x, lane);
      const int count = __shfl_sync(all_lanes, waits.y, lane);
      const int width = static_cast<int>(most);
      const int own = place.lane - used;
      if (own >= 0 && own < width)
        tile = {first + 16 * own, min(16, count - 16 * own), used, width};
      if (place.lane == lane) waits.y = 0;
      used += width;
    }
    return used;
  }
  /// Long windows go in chunks of up to eight tiles.
  struct chunks {
    int count, tiles;  ///< tiles of all but the last
  };
  static __device__ __forceinline__ chunks chunks_of(int length) {
    const int all = (length + 15) / 16;
    const int count = (all + tiles - 1) / tiles;
    return {count, (all + count - 1) / count};
  }
  /// Does a long window take several turns?
  static __device__ __forceinline__ bool is_cut(const int2& window) {
    return window.y - window.x > 16 * tiles;
  }
  /// Goes on to the next pair of chunks, or to the range's next long window. \return is there one?
  __device__ __forceinline__ bool next_chunks(cursor& next) const {
    if (next.length > 0) {
      const int count = chunks_of(next.length).count;
      if (++next.query_chunk == count) {
        next.query_chunk = 0;
        ++next.key_chunk;
      }
      if (next.key_chunk < count) return true;
      next.length = 0;
    }
    constexpr int step = contextual_short_capacity;
    while (next.from < next.until || next.cut) {
      if (next.from >= next.until) {
        const int2 whole_windows = *at<int2>(layout::whole_windows);
        next.from = whole_windows.x;
        next.until = whole_windows.y;
        next.cut = false;
      }
      const int slot = next.from + step * place.lane;
      const int2 window = slot < next.until ? bounds[slot] : int2{0, 0};
      const unsigned found = __ballot_sync(
          all_lanes, is_first_probe(slot, window) && (next.mixed || is_cut(window) == next.cut));
      if (found == 0) {
        next.from += 32 * step;
        continue;
      }
      const int lane = __ffs(static_cast<int>(found)) - 1;
      next.window = __shfl_sync(all_lanes, window.x, lane);
      next.length = __shfl_sync(all_lanes, window.y - window.x, lane);
      next.query_chunk = next.key_chunk = 0;
      next.from += step * (lane + 1);
      return true;
    }
    return false;
  }
  static __device__ __forceinline__ int plan_of(int number) {
    return layout::plans + number % layout::plan_count * layout::plan_bytes;
  }
  /// Plans a turn, by one warp.
  __device__ __forceinline__ void plan_turn(int number, cursor& next) const {
    const int plan = plan_of(number);
    int used = 0;
    int widest = 0;
    if constexpr (Long) {
      used = next_chunks(next) ? 1 : 0;
      if (place.lane == 0)
        *at<int4>(plan) = {next.window, next.length, next.query_chunk, next.key_chunk};
    } else {
      constexpr int enough = 20;
      int2 waits = at<int2>(layout::waiting)[place.lane];
      while (next.from < next.until && __popc(__ballot_sync(all_lanes, waits.y > 0)) <= enough)
        add_waiting(next, waits);
      int4 tile = {0, 0, 0, 0};
      used = fill_tiles(waits, tile);
      at<int2>(layout::waiting)[place.lane] = waits;
      if (place.lane < tiles) at<int4>(plan)[place.lane] = tile;
      widest = __reduce_max_sync(all_lanes, tile.w);
    }
    if (place.lane == 0) *at<int2>(plan + layout::plan_used) = {used, widest};
  }
  /// Is the window in `slot` long, and the slot its first probe?
  [[nodiscard]] __device__ __forceinline__ static bool is_first_probe(int slot,
                                                                      const int2& window) {
    const int length = window.y - window.x;
    return length > contextual_short_capacity && length <= layout::capacity &&
           slot - window.x < contextual_short_capacity;
  }
  /// Of a long window, in pieces.
  static __device__ __forceinline__ constexpr std::uint32_t long_cost(int chunk_count,
                                                                      int tiles_of_window) {
    constexpr int cost_of_turn = 7;
    return static_cast<std::uint32_t>(chunk_count * (chunk_count * cost_of_turn + tiles_of_window));
  }
  /// About the time that the window in a probed slot takes: all of it for its first probe, or where short
  /// windows are probed here and there, its share for a token.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t cost_at(int slot) const {
    const int2 window = bounds[slot];
    const int length = window.y - window.x;
    const int tiles_of_window = (length + 15) / 16;
    if constexpr (Long) {
      if (!is_first_probe(slot, window)) return 0;
      const int count = chunks_of(length).count;
      return long_cost(count, tiles_of_window);
    } else {
      // Instructions of a warp, of the share of a turn that the window takes.
      if (length > contextual_short_capacity) return 4;
      if (tiles_of_window == 1) return 59;
      const int cost = tiles_of_window == 2   ? 1860
                       : tiles_of_window == 3 ? (Radial ? 3800 : 3270)
                                              : 4840;
      return static_cast<std::uint32_t>(cost / length);
    }
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
  __device__ __forceinline__ share divide(int blocks_of_head, std::uint64_t all,
                                          const std::uint32_t (&given)[2], int count,
                                          std::uint32_t before, std::uint32_t own,
                                          const Cost& cost_of) const {
    share here = {};
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const std::uint64_t end = all * static_cast<unsigned>(part + side);
      const auto is_before = [&](std::uint32_t cost) {
        return (std::uint64_t{cost} + given[side]) * static_cast<unsigned>(blocks_of_head) < end;
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
  /// Which windows are this block's: all blocks of a head get neighbouring slots of the same cost. All threads
  /// take part.
  ///
  /// A long window that is cut may be a tenth of a block's work. So blocks share these first, and then the
  /// others so that all have the same to do, if there are enough of them.
  [[nodiscard]] __device__ __forceinline__ cursor share_of_block(int blocks_of_head) const {
    const int step =
        Long ? contextual_short_capacity : max(16, divide_up(assigned, layout::most_probes));
    const int probes = divide_up(assigned, step);
    const int each = divide_up(probes, threads);
    const int first = static_cast<int>(threadIdx.x) * each;
    const int count = max(min(each, probes - first), 0);
    if constexpr (Long) {
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
      const bool levels = whole_windows.y >= static_cast<unsigned>(blocks_of_head) *
                                                 long_cost((most + tiles - 1) / tiles, most);
      share of_cut = {};
      share of_whole;
      if (levels) {
        of_cut = divide(blocks_of_head, cut.y, {0, 0}, count, cut.x, own_cut,
                        [&](int i) { return cost_of(i, true, false); });
        of_whole = divide(blocks_of_head, all, of_cut.cost, count, whole_windows.x, own_whole,
                          [&](int i) { return cost_of(i, false, false); });
      } else {
        of_whole = divide(blocks_of_head, all, {0, 0}, count, cut.x + whole_windows.x,
                          own_cut + own_whole, [&](int i) { return cost_of(i, false, true); });
      }
      if (threadIdx.x == 0)
        *at<int2>(layout::whole_windows) = {min(of_whole.probes[0] * step, assigned),
                                            min(of_whole.probes[1] * step, assigned)};
      __syncthreads();
      return {min(of_cut.probes[0] * step, assigned), min(of_cut.probes[1] * step, assigned), true,
              !levels};
    } else {
      auto* costs = at<std::uint16_t>(layout::regions) + first;
      std::uint32_t own = 0;
#pragma unroll 16
      for (int i = 0; i < count; ++i) {
        const std::uint32_t cost = cost_at((first + i) * step);
        costs[i] = static_cast<std::uint16_t>(cost);
        own += cost;
      }
      const uint2 sums = sum_before(own);
      const share found = divide(blocks_of_head, sums.y, {0, 0}, count, sums.x, own,
                                 [&](int i) { return costs[i]; });
      cursor result{min(found.probes[0] * step, assigned), min(found.probes[1] * step, assigned)};
      if (result.from < result.until) {
        const int2 window = bounds[result.from];
        if (window.x < result.from) result.from = window.y;
      }
      return result;
    }
  }
  [[nodiscard]] __device__ __forceinline__ turn planned_turn(int number) const {
    const int place_of_plan = plan_of(number);
    const auto [used, widest] = *at<int2>(place_of_plan + layout::plan_used);
    if (used == 0) return {};
    if constexpr (!Long) {
      const int4 tile = at<int4>(place_of_plan)[warp];
      return {tile.x, tile.y, tile.z, tile.w, used, widest};
    } else {
      const int4 plan = *at<int4>(place_of_plan);
      const chunks parts = chunks_of(plan.y);
      const int end = plan.x + plan.y;
      const int chunk = 16 * parts.tiles;
      const int queries_from = plan.x + plan.z * chunk;
      const int keys_from = plan.x + plan.w * chunk;
      const int queries_end = min(queries_from + chunk, end);
      const int keys_end = min(keys_from + chunk, end);
      turn result;
      result.first = queries_from + 16 * warp;
      result.count = min(max(queries_end - result.first, 0), 16);
      result.used = (queries_end - queries_from + 15) / 16;
      result.width = result.widest = (keys_end - keys_from + 15) / 16;
      result.first_key = keys_from + 16 * warp;
      result.key_count = min(max(keys_end - result.first_key, 0), 16);
      result.number = plan.z * parts.tiles + warp;
      result.first_of_queries = plan.w == 0;
      result.last_of_queries = plan.w == parts.count - 1;
      result.first_of_keys = plan.z == 0;
      result.last_of_keys = plan.z == parts.count - 1;
      return result;
    }
  }
  /// Has this warp rows in a turn?
  [[nodiscard]] __device__ __forceinline__ bool takes_part(const turn& now) const {
    return Long ? warp < max(now.used, now.width) : now.count > 0;
  }

  /// What a warp knows of its rows before they are there.
  struct tile_tokens {
    std::int32_t copied;    ///< the token whose row this lane copies half of; -1: none
    std::int32_t token[2];  ///< of rows g and g + 8
    std::uint32_t code[2];
    /// Columns of their windows, from the first row of tile `base` on: the first in the lower half, how many
    /// in the upper.
    std::uint32_t window[2];
    float radius[2];
  };
  __device__ __forceinline__ tile_tokens load_tokens(int first, int count, int origin) const {
    tile_tokens result;
    const int copied = place.lane / 2;
    result.copied = copied < count ? order[first + copied] : -1;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      const bool there = row < count;
      const int slot = first + row;
      result.token[i] = there ? order[slot] : -1;
      result.code[i] = there ? group.positions[slot] : 0;
      const int2 window = there ? bounds[slot] : int2{origin, origin};
      result.window[i] = (static_cast<std::uint32_t>(window.y - window.x) << 16) |
                         (static_cast<std::uint32_t>(window.x - origin) & 0xffffu);
      result.radius[i] = Radial && there ? group.radius[slot] + 0.0f : 0.0f;  // no -0
    }
    return result;
  }
  __device__ __forceinline__ tile_tokens load_queries(const turn& now) const {
    return load_tokens(now.first, now.count,
                       Long ? now.first_key - 16 * warp : now.first - 16 * (warp - now.base));
  }
  /// The same of keys, of which only where they are in their window may differ if they are the queries.
  __device__ __forceinline__ tile_tokens load_keys(const turn& now,
                                                   const tile_tokens& as_queries) const {
    return now.first_key == now.first ? as_queries : load_tokens(now.first_key, now.key_count, 0);
  }
  /// Starts loading the rows of queries and keys, which may be the same: q, k and dO.
  __device__ __forceinline__ void copy_rows(const tile_tokens& rows,
                                            const tile_tokens& others) const {
    copy(rows_of_tile(queries, warp), problem.q, rows.copied);
    copy(rows_of_tile(keys, warp), problem.k, others.copied);
    copy(rows_of_tile(grads, warp), problem.grad_out, rows.copied);
    commit_copies();
  }
  /// And v, whose place may have held sums.
  __device__ __forceinline__ void copy_values(const tile_tokens& others) const {
    copy(region(warp) + layout::values, problem.v, others.copied);
    commit_copies();
  }

 private:
  __device__ __forceinline__ void copy(std::byte* tile, const row_view& view,
                                       std::int32_t token) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    const int target = row * layout::row_bytes + ((place.lane & 1) ^ (row >> 2 & 1)) * 16;
    const bool there = token >= 0 && column < problem.head_dim;
    copy_async(tile + target,
               row_of<T>(view, std::int64_t{max(token, 0)}, head) + (there ? column : 0), there);
  }
};

}  // namespace winnow::detail
