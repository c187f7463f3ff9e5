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

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_window_block {
  using layout = contextual_window_layout<Radial>;
  static constexpr int tiles = layout::tiles;
  static constexpr int threads = 32 * tiles;
  static constexpr int capacity = 16 * tiles;
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
  /// Row g + 8·i of a block of sums, in the table's axis; there may be no such row.
  [[nodiscard]] __device__ __forceinline__ int row_of_sums(int which, int block, int i) const {
    const int g = place.g;
    const bool by_cell = linear(block / axis_blocks);
    const int row = block % axis_blocks * 16 + 8 * (g >> 1 & 1) +
                    (by_cell ? 4 * (g & 1) + (g >> 2) + 2 * i : 2 * (g >> 2) + (g & 1) + 4 * i);
    return which < 2 && by_cell ? 2 * (length - 1) - row : row;
  }
  __device__ __forceinline__ float* part_of(int which) const {
    float* base = which == 0   ? entry.parts.table_q
                  : which == 1 ? entry.parts.table_v
                               : entry.parts.table_k;
    if (base == nullptr) return nullptr;
    return base + (std::int64_t{group_head} * problem.parts_per_head + part) * 3 * table_rows *
                      problem.head_dim;
  }
  __device__ __forceinline__ void begin_block() const {
    stage_table(of_queries, group.table_q);
    stage_table(of_keys, group.table_k);
    stage_table(of_values, group.table_v);
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target == nullptr) continue;
      for (int i = static_cast<int>(threadIdx.x); i < 3 * table_rows * problem.head_dim;
           i += threads)
        target[i] = 0.0f;
    }
  }

  // --- Which rows ------------------------------------------------------------------------------

  /// Four tiles, and this warp's.
  struct turn {
    int first = 0;  ///< slot of the tile's first row
    int count = 0;  ///< its rows; 0: the warp has none
    int base = 0;   ///< the tiles [base, base + width) hold its windows
    int width = 0;
    int used = 0;               ///< tiles that hold rows; 0: the block has done all
    bool long_windows = false;  ///< some window takes several tiles
  };
  /// Which windows are next: those from slot `from` on that start before slot `until`.
  struct cursor {
    int number;  ///< of the range
    int from, until;
  };
  /// Plans a turn with the next windows of the range, by one warp. \return tiles with rows
  __device__ __forceinline__ int fill_tiles(cursor& next) const {
    const int from = next.from;
    const int until = next.until;
    // Bit s: in slot from + 1 + s starts a window, or the last has ended there.
    std::uint64_t starts = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = from + 1 + 32 * half + place.lane;
      const bool mark = slot < assigned ? bounds[slot].x == slot : slot == assigned;
      starts |= std::uint64_t{__ballot_sync(all_lanes, mark)} << (32 * half);
    }
    if (until - from <= 64) {
      // Of the starts from `until` on, the first ends this range's last window.
      const int bit = until - from - 1;
      const std::uint64_t behind = starts >> bit << bit;
      starts = (starts ^ behind) | (behind & (0 - behind));
    }
    int done = 0;
    int used = 0;
    bool long_windows = false;
    int4 tile = {0, 0, 0, 0};  // the one that this lane writes down
    while (used < tiles && done < 64 && from + done < until) {
      const unsigned near = static_cast<unsigned>(starts >> done) & 0xffffu;
      int count = 32 - __clz(static_cast<int>(near));
      int needed = 1;
      if (near == 0) {
        count = bounds[from + done].y - (from + done);
        needed = (count + 15) / 16;
        if (count > capacity) {
          done += count;
          continue;
        }
        if (used + needed > tiles) break;
        long_windows = true;
      }
      const int own = place.lane - used;
      if (own >= 0 && own < needed)
        tile = {from + done + 16 * own, min(16, count - 16 * own), used, needed};
      used += needed;
      done += count;
    }
    if (place.lane < tiles) at<int4>(layout::plan)[place.lane] = tile;
    if (place.lane == 0) *at<int2>(layout::plan_used) = {used, long_windows ? 1 : 0};
    next.from = from + done;
    return used;
  }
  /// Plans the next turn, by one warp.
  __device__ __forceinline__ void plan_turn(cursor& next, int range) const {
    do {
      while (next.from >= next.until) {
        next.number += problem.parts_per_head;
        const std::int64_t first = std::int64_t{next.number} * range;
        if (first >= assigned) {
          if (place.lane == 0) *at<int2>(layout::plan_used) = {0, 0};
          return;
        }
        next.until = static_cast<int>(min(first + range, std::int64_t{assigned}));
        const int2 window = bounds[first];
        next.from = window.x == first ? window.x : window.y;
      }
    } while (fill_tiles(next) == 0);
  }
  [[nodiscard]] __device__ __forceinline__ turn planned_turn() const {
    const int2 all = *at<int2>(layout::plan_used);
    if (all.x == 0) return {};
    const int4 tile = at<int4>(layout::plan)[warp];
    return {tile.x, tile.y, tile.z, tile.w, all.x, all.y != 0};
  }

  /// What a warp knows of its rows before they are there.
  struct tile_tokens {
    std::int32_t copied;    ///< the token whose row this lane copies half of; -1: none
    std::int32_t token[2];  ///< of rows g and g + 8
    std::uint32_t code[2];
    int begin[2], end[2];  ///< columns of their windows, from the first row of tile `base` on
    float radius[2];
  };
  __device__ __forceinline__ tile_tokens load_tokens(const turn& now) const {
    tile_tokens result;
    const int copied = place.lane / 2;
    result.copied = copied < now.count ? order[now.first + copied] : -1;
    const int origin = now.first - 16 * (warp - now.base);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      const bool there = row < now.count;
      const int slot = now.first + row;
      result.token[i] = there ? order[slot] : -1;
      result.code[i] = there ? group.positions[slot] : 0;
      const int2 window = there ? bounds[slot] : int2{origin, origin};
      result.begin[i] = window.x - origin;
      result.end[i] = window.y - origin;
      result.radius[i] = Radial && there ? group.radius[slot] + 0.0f : 0.0f;  // no -0
    }
    return result;
  }
  __device__ __forceinline__ void copy_rows(const tile_tokens& rows) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    const bool there = rows.copied >= 0 && column < problem.head_dim;
    const std::int64_t token = max(rows.copied, 0);
    const int target = row * layout::row_bytes + ((place.lane & 1) ^ (row >> 2 & 1)) * 16;
    const auto copy = [&](std::byte* tile, const row_view& view) {
      copy_async(tile + target, row_of<T>(view, token, head) + (there ? column : 0), there);
    };
    copy(rows_of_tile(queries, warp), problem.q);
    copy(rows_of_tile(keys, warp), problem.k);
    copy(rows_of_tile(grads, warp), problem.grad_out);
    copy(region(warp) + layout::values, problem.v);
    commit_copies();
  }
};

}  // namespace winnow::detail
