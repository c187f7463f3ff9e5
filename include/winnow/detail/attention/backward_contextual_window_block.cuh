// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a block of backward_contextual_window.cuh has: places in shared memory, the tables there, its parts
/// of their gradients, and which windows are next.
#pragma once

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/backward_contextual_layout.hpp"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_block {
  using layout = contextual_window_layout<Radial, Long>;
  static constexpr int tiles = layout::tiles;
  static constexpr int threads = 32 * tiles;
  static constexpr int words = layout::cell_axes * cell_words;  ///< of a lane for a row of cells
  static constexpr int width = 8;                               ///< elements of a vector
  static constexpr unsigned all_lanes = 0xffffffffu;
  /// P times 2^this is rounded: P of rare keys is below half's normal numbers.
  static constexpr float weight_shift = 10.0f;
  static constexpr float weight_unit = 0x1p-10f;
  /// Fixed point of radial sums: as in backward_contextual_tables.cuh.
  static constexpr float weight_points = 0x1p20f;
  static constexpr float gradient_points = 0x1p17f;
  static constexpr float largest_sum = 0x1p13f;
  enum { queries, keys, grads };

  const backward_rows& problem;
  const backward_problem& whole;  ///< for rows that are computed again
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int group_head;
  int part;  ///< the block's number among those of its head
  int head = group.first_head + group_head;
  int length = group.quant_length;
  int table_rows = 2 * length - (Radial ? 0 : 1);
  int assigned = group.counts->assigned;
  const std::int32_t* order = group.order;
  const int2* bounds = reinterpret_cast<const int2*>(group.bounds);
  int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0);
  lane_place place;
  /// Where this lane's rows of 32 bytes begin for `ldmatrix`: of left factors and transposed right ones,
  /// and of right ones.
  int left_offset =
      place.lane % 16 * layout::row_bytes + (place.lane / 16 ^ (place.lane >> 2 & 1)) * 16;
  int right_offset = (place.lane / 16 * 8 + place.lane % 8) * layout::row_bytes +
                     ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
  /// The same of rows of cells, two words at a time.
  int turned_cells = place.lane % 16 * layout::cell_bytes + place.lane / 16 * 16;
  int right_cells =
      (place.lane / 16 * 8 + place.lane % 8) * layout::cell_bytes + (place.lane >> 3 & 1) * 16;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  /// Of q, k or dO.
  __device__ __forceinline__ std::byte* rows_of_tile(int which, int tile) const {
    return memory + layout::rows + (which * tiles + tile) * layout::tile_bytes;
  }
  /// Everything else of a tile.
  __device__ __forceinline__ std::byte* region(int tile) const {
    return memory + layout::regions + tile * layout::region_bytes;
  }
  static constexpr int of_queries = 0, of_keys = 1, of_values = 2;
  __device__ __forceinline__ std::byte* table(int which) const {
    return memory + layout::tables + which * layout::table_bytes;
  }
  /// The sums by table row of dTq, dTv and dTk, of a tile.
  __device__ __forceinline__ std::byte* sums(int tile, int which) const {
    return region(tile) + (which == 2 ? layout::key_sums : which * layout::sums_bytes);
  }
  static __device__ __forceinline__ bool linear(int axis) { return axis < layout::cell_axes; }

  // --- Tables ----------------------------------------------------------------------------------

  /// Table row of `place_of` an axis in shared memory: linear axes in the order of row_shift, and
  /// backwards in Tq and Tv, so that cells ascend with rows.
  [[nodiscard]] __device__ __forceinline__ int row_at(int which, int axis, int place_of) const {
    if (!linear(axis)) return place_of;
    const int row = (place_of & ~7) + spread(place_of & 7);
    return which == of_keys ? row : 2 * (length - 1) - row;
  }
  __device__ __forceinline__ void stage_table(int which, const table_view& view) const {
    for (int i = static_cast<int>(threadIdx.x); i < 3 * tile_rows * 2; i += threads) {
      const int position = i / 2;
      const int d = i % 2 * width;
      const int axis = position / tile_rows;
      const int row = row_at(which, axis, position % tile_rows);
      uint4 bits = {0, 0, 0, 0};
      if (view.data != nullptr && row >= 0 && row < table_rows && d < problem.head_dim)
        bits = load_table_vector<T>(view, row * view.row_stride + axis * view.axis_stride +
                                              group_head * view.head_stride + d);
      *reinterpret_cast<uint4*>(table(which) + position * layout::row_bytes +
                                ((i % 2) ^ (position >> 2 & 1)) * 16) = bits;
    }
  }

  /// Sums of dTq, dTv and dTk come in blocks of 16 table rows, three an axis. A warp adds up every fourth
  /// block, the same ones in all turns.
  static constexpr int axis_blocks = tile_rows / 16;
  static constexpr int blocks = 3 * axis_blocks;
  [[nodiscard]] __device__ __forceinline__ int first_block(int which) const {
    return (warp + which) % tiles;
  }
  /// Of which row of its block's 16 row g of a product is the sum; that of row g + 8 is `rows_between` on.
  [[nodiscard]] __device__ __forceinline__ int row_of_product(bool by_cell) const {
    const int g = place.g;
    return 8 * (g >> 1 & 1) + (by_cell ? 4 * (g & 1) + (g >> 2) : 2 * (g >> 2) + (g & 1));
  }
  static __device__ __forceinline__ int rows_between(bool by_cell) { return by_cell ? 2 : 4; }
  /// A part has padded rows, ascending by cell as the sums do.
  static constexpr int part_width = 16;
  static constexpr int part_size = 3 * tile_rows * part_width;
  __device__ __forceinline__ float* part_of(int which) const {
    float* base = which == 0   ? entry.parts.table_q
                  : which == 1 ? entry.parts.table_v
                               : entry.parts.table_k;
    if (base == nullptr) return nullptr;
    // All parts of a launch together take at most `table_parts_limit`.
    const int first = Long ? problem.short_parts : 0;
    return base + (group_head * problem.parts_per_head + first + part) * part_size;
  }
  __device__ __forceinline__ void begin_block() const {
    stage_table(of_queries, group.table_q);
    stage_table(of_keys, group.table_k);
    stage_table(of_values, group.table_v);
    clear_parts();
  }
  __device__ __forceinline__ void clear_parts() const {
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target == nullptr) continue;
      for (int i = static_cast<int>(threadIdx.x); i < part_size / 4; i += threads)
        reinterpret_cast<float4*>(target)[i] = {0.0f, 0.0f, 0.0f, 0.0f};
    }
  }

  // --- Which rows ------------------------------------------------------------------------------

  /// What the block's warps work on at a time, and this warp's share of it. Short windows: its queries
  /// are also its keys. Long windows: of one window up to eight tiles of queries and as many of keys, and a
  /// warp has a tile of both.
  struct turn {
    int first = 0;  ///< slot of the tile's first row
    int count = 0;  ///< its rows; 0: the warp has none
    int base = 0;   ///< the tiles [base, base + width) hold its windows' keys
    int width = 0;
    int used = 0;         ///< tiles that hold queries; 0: the block has done all
    bool shared = false;  ///< Of short windows: has one of them several tiles?
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
  /// there. Every 64th slot is a probe, so that a long window has one.
  struct cursor {
    int from, until;
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
    for (; next.from < next.until; next.from += 32 * step) {
      const int slot = next.from + step * place.lane;
      const int2 window = slot < next.until ? bounds[slot] : int2{0, 0};
      const unsigned found = __ballot_sync(all_lanes, is_first_probe(slot, window));
      if (found == 0) continue;
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
    return layout::plans + (Long ? 0 : number % 2 * layout::plan_bytes);
  }
  /// Plans a turn, by one warp.
  __device__ __forceinline__ void plan_turn(int number, cursor& next) const {
    const int plan = plan_of(number);
    int used = 0;
    bool shared = false;
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
      shared = __any_sync(all_lanes, tile.w > 1);
    }
    if (place.lane == 0) *at<int2>(plan + layout::plan_used) = {used, shared ? 1 : 0};
  }
  /// Is the window in `slot` long, and the slot its first probe?
  [[nodiscard]] __device__ __forceinline__ static bool is_first_probe(int slot,
                                                                      const int2& window) {
    const int length = window.y - window.x;
    return length > contextual_short_capacity && length <= layout::capacity &&
           slot - window.x < contextual_short_capacity;
  }
  /// About the time that the window in a probed slot takes: all of it for its first probe, or where short
  /// windows are probed here and there, its share for a token.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t cost_at(int slot) const {
    const int2 window = bounds[slot];
    const int length = window.y - window.x;
    const int tiles_of_window = (length + 15) / 16;
    if constexpr (Long) {
      constexpr int cost_of_turn = 5;  // in pieces
      if (!is_first_probe(slot, window)) return 0;
      const int count = chunks_of(length).count;
      return static_cast<std::uint32_t>(count * (count * cost_of_turn + tiles_of_window));
    } else {
      // Instructions of a warp, of the share of a turn that the window takes.
      if (length > contextual_short_capacity) return 4;
      if (tiles_of_window == 1) return 59;
      const int cost = tiles_of_window == 2 ? 1860 : tiles_of_window == 3 ? 3800 : 4840;
      return static_cast<std::uint32_t>(cost / length);
    }
  }
  /// Which windows are this block's: all blocks of a head get neighbouring slots of the same cost. All threads
  /// take part.
  [[nodiscard]] __device__ __forceinline__ cursor share_of_block(int blocks_of_head) const {
    const int step =
        Long ? contextual_short_capacity : max(16, divide_up(assigned, layout::most_probes));
    const int probes = divide_up(assigned, step);
    const int each = divide_up(probes, threads);
    const int first = static_cast<int>(threadIdx.x) * each;
    auto* costs = at<std::uint16_t>(layout::regions) + first;
    std::uint32_t own = 0;
#pragma unroll 8
    for (int i = 0; i < each; ++i) {
      const std::uint32_t cost = first + i < probes ? cost_at((first + i) * step) : 0;
      if constexpr (!Long) costs[i] = static_cast<std::uint16_t>(cost);
      own += cost;
    }
    const std::uint32_t through = warp_inclusive_sum(own);
    auto* totals = at<std::uint32_t>(layout::deltas);
    int* counts =
        at<int>(layout::plans);  // of probes before this block's share, and before its end
    if (place.lane == 31) totals[warp] = through;
    if (threadIdx.x < 2) counts[threadIdx.x] = 0;
    __syncthreads();
    std::uint32_t before = through - own;
    std::uint64_t all = 0;
#pragma unroll
    for (int w = 0; w < tiles; ++w) {
      if (w < warp) before += totals[w];
      all += totals[w];
    }
    const std::uint64_t start = all * static_cast<unsigned>(part);
    const std::uint64_t end = start + all;
    int before_start = 0, before_end = 0;
    for (int i = 0; i < each && first + i < probes; ++i) {
      const std::uint32_t cost = Long ? cost_at((first + i) * step) : costs[i];
      const std::uint64_t middle =
          std::uint64_t{before + cost / 2} * static_cast<unsigned>(blocks_of_head);
      before += cost;
      before_start += middle < start ? 1 : 0;
      before_end += middle < end ? 1 : 0;
    }
    before_start = __reduce_add_sync(all_lanes, before_start);
    before_end = __reduce_add_sync(all_lanes, before_end);
    if (place.lane == 0) {
      atomicAdd(counts, before_start);
      atomicAdd(counts + 1, before_end);
    }
    __syncthreads();
    cursor result{min(counts[0] * step, assigned), min(counts[1] * step, assigned)};
    if (!Long && result.from < result.until) {
      const int2 window = bounds[result.from];
      if (window.x < result.from) result.from = window.y;
    }
    __syncthreads();
    return result;
  }
  [[nodiscard]] __device__ __forceinline__ turn planned_turn(int number) const {
    const int place_of_plan = plan_of(number);
    const auto [used, shared] = *at<int2>(place_of_plan + layout::plan_used);
    if (used == 0) return {};
    if constexpr (!Long) {
      const int4 tile = at<int4>(place_of_plan)[warp];
      return {tile.x, tile.y, tile.z, tile.w, used, shared != 0};
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
      result.width = (keys_end - keys_from + 15) / 16;
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
  /// Starts loading the rows of queries and keys, which may be the same.
  __device__ __forceinline__ void copy_rows(const tile_tokens& rows,
                                            const tile_tokens& others) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    const int target = row * layout::row_bytes + ((place.lane & 1) ^ (row >> 2 & 1)) * 16;
    const auto copy = [&](std::byte* tile, const row_view& view, std::int32_t token) {
      const bool there = token >= 0 && column < problem.head_dim;
      copy_async(tile + target,
                 row_of<T>(view, std::int64_t{max(token, 0)}, head) + (there ? column : 0), there);
    };
    copy(rows_of_tile(queries, warp), problem.q, rows.copied);
    copy(rows_of_tile(keys, warp), problem.k, others.copied);
    copy(rows_of_tile(grads, warp), problem.grad_out, rows.copied);
    copy(region(warp) + layout::values, problem.v, others.copied);
    commit_copies();
  }
};

}  // namespace winnow::detail
