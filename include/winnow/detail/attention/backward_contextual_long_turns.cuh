// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the warps of a block of backward_contextual_long.cuh work on in a turn.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_rows.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_long_turns : contextual_window_rows<T, Radial, true> {
  using base = contextual_window_rows<T, Radial, true>;
  using base::all_lanes;
  using base::bounds;
  using base::group;
  using base::is_cut;
  using base::is_first_probe;
  using base::order;
  using base::place;
  using base::plan_of;
  using base::tiles;
  using base::warp;
  using typename base::cursor;
  using typename base::layout;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// A window goes in chunks of equal size, of up to eight tiles.
  struct chunks {
    int count, tiles;  ///< tiles of all but the last
  };
  static __device__ __forceinline__ chunks chunks_of(int length) {
    const int all = (length + 15) / 16;
    const int count = (all + tiles - 1) / tiles;
    return {count, (all + count - 1) / count};
  }
  /// Goes on to the next chunk of queries, or to the range's next long window. \return is there one?
  __device__ __forceinline__ bool next_queries(cursor& next) const {
    if (next.length > 0) {
      next.tile += chunks_of(next.length).tiles;
      if (16 * next.tile < next.length) return true;
      next.length = 0;
    }
    constexpr int step = contextual_short_capacity;
    while (next.found == 0) {
      if (next.from >= next.until) {
        if (!next.cut) return false;
        const int2 whole_windows = *at<int2>(layout::whole_windows);
        next.from = whole_windows.x;
        next.until = whole_windows.y;
        next.cut = false;
        continue;
      }
      const int slot = next.from + step * place.lane;
      const int2 window = slot < next.until ? bounds[slot] : int2{0, 0};
      at<int2>(layout::probes)[place.lane] = window;
      next.found = __ballot_sync(
          all_lanes, is_first_probe(slot, window) && (next.mixed || is_cut(window) == next.cut));
      next.from += 32 * step;
      __syncwarp();
    }
    const int2 window = at<int2>(layout::probes)[__ffs(static_cast<int>(next.found)) - 1];
    next.found &= next.found - 1;
    next.window = window.x;
    next.length = window.y - window.x;
    next.tile = 0;
    return true;
  }
  /// Plans the turns of a chunk of queries, by one warp.
  __device__ __forceinline__ void plan_queries(int number) const {
    cursor next = *at<cursor>(layout::next_window);
    __syncwarp();
    const bool found = next_queries(next);
    if (place.lane == 0) {
      const chunks parts = chunks_of(next.length);
      *at<int4>(plan_of(number)) = {next.window, found ? next.length : 0, next.tile,
                                    parts.count << 16 | parts.tiles};
      *at<cursor>(layout::next_window) = next;
    }
  }
  /// What all warps know of a turn.
  struct turn_plan {
    int queries_from, query_rows;  ///< the first slot, and how many
    int keys_from, key_rows;
    int chunk;  ///< of keys
    unsigned ends;
  };
  /// A chunk of queries with one of keys.
  [[nodiscard]] __device__ __forceinline__ turn_plan plan_keys(int number, int chunk) const {
    const auto [window, length, first_tile, of_chunks] = *at<int4>(plan_of(number));
    if (length == 0) return {};
    const chunks parts{of_chunks >> 16, of_chunks & 0xffff};
    const int rows = 16 * parts.tiles;
    const int keys_from = rows * chunk;
    const int queries_from = 16 * first_tile;
    return {window + queries_from,
            min(rows, length - queries_from),
            window + keys_from,
            min(rows, length - keys_from),
            chunk,
            (chunk == 0 ? 1u : 0) | (chunk == parts.count - 1 ? 2u : 0) |
                (first_tile == 0 ? 4u : 0) | (queries_from + rows >= length ? 8u : 0)};
  }
  /// For all warps. Those of the turn before have it.
  __device__ __forceinline__ void give_plan(const turn_plan& plan) const {
    if (place.lane != 0) return;
    at<int4>(layout::next_turn)[0] = {plan.queries_from, plan.query_rows, plan.keys_from,
                                      plan.key_rows};
    at<int2>(layout::next_turn)[2] = {plan.chunk, static_cast<int>(plan.ends)};
  }
  [[nodiscard]] __device__ __forceinline__ turn planned_turn() const {
    const auto [queries_from, query_rows, keys_from, key_rows] = at<int4>(layout::next_turn)[0];
    const auto [chunk, ends] = at<int2>(layout::next_turn)[2];
    turn result;
    result.used = (query_rows + 15) / 16;
    result.first = queries_from + 16 * warp;
    result.count = min(max(query_rows - 16 * warp, 0), 16);
    result.key_rows = key_rows;
    result.width = (key_rows + 15) / 16;
    result.first_key = keys_from + 16 * warp;
    result.key_count = min(max(key_rows - 16 * warp, 0), 16);
    result.chunk = chunk;
    result.ends = static_cast<unsigned>(ends);
    return result;
  }
  /// Are a turn's keys its queries?
  [[nodiscard]] static __device__ __forceinline__ bool meets_itself(const turn& now) {
    return now.first_key == now.first && now.width == now.used;
  }
  /// Starts loading the tokens of a turn's tiles, by one warp, while the turn before is under way.
  __device__ __forceinline__ void copy_tokens(const turn_plan& next) const {
    const auto copy = [&](int side, int from, int count) {
#pragma unroll 1
      for (int i = place.lane; i < count; i += 32) {
        const int slot = from + i;
        const std::uint32_t target =
            shared_address(at<std::uint32_t>(layout::next_tokens) + 3 * 16 * tiles * side + i);
        copy_async_if<4>(true, target, order + slot, true);
        copy_async_if<4>(true, target + 4 * 16 * tiles, group.positions + slot, true);
        if constexpr (Radial)
          copy_async_if<4>(true, target + 8 * 16 * tiles, group.radius + slot, true);
      }
    };
    if ((next.ends & 1) != 0) copy(0, next.queries_from, next.query_rows);
    if (next.keys_from != next.queries_from || next.key_rows != next.query_rows)
      copy(1, next.keys_from, next.key_rows);
    commit_copies();
  }
  /// Takes what `copy_tokens` has loaded. \param side 0: queries; 1: keys.
  [[nodiscard]] __device__ __forceinline__ tile_tokens take_tokens(int side, int count) const {
    const auto* tokens = at<std::uint32_t>(layout::next_tokens) + 3 * 16 * tiles * side + 16 * warp;
    tile_tokens result = {};
    const int copied = place.lane / 2;
    result.copied = copied < count ? static_cast<std::int32_t>(tokens[copied]) : -1;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      const bool there = row < count;
      result.code[i] = there ? tokens[16 * tiles + row] : 0;
      if constexpr (Radial)  // no -0
        result.radius[i] = there ? __uint_as_float(tokens[2 * 16 * tiles + row]) + 0.0f : 0.0f;
    }
    return result;
  }
  /// The tokens of a tile of keys, which may be the queries.
  [[nodiscard]] __device__ __forceinline__ tile_tokens take_keys(const turn& now,
                                                                 const tile_tokens& rows) const {
    return meets_itself(now) ? rows : take_tokens(1, now.key_count);
  }
};

}  // namespace winnow::detail
