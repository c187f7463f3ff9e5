// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a warp of contextual_short.cuh takes, and how it arrives: ranges of slots, the units in them, and
/// a unit's rows. What is known of a range's slots comes by cp.async a range ahead, a unit's keys while the
/// unit before ends, its queries straight into registers.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_short_units
    : contextual_block<T, 16, Radial, true, contextual_short_layout<Radial, sizeof(T)>> {
  using base = contextual_block<T, 16, Radial, true, contextual_short_layout<Radial, sizeof(T)>>;
  using base::group;
  using base::group_head;
  using base::place;
  using base::problem;
  using base::share;
  using base::shared;
  using base::shares;
  using typename base::layout;
  static constexpr unsigned all = 0xffffffffu;
  static constexpr int query_words = sizeof(T) == 4 ? 8 : 4;  ///< of a tile, a lane's
  static constexpr int slots = layout::slots;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Whole windows in neighbouring slots.
  struct unit {
    int slot;             ///< the first
    int count;            ///< 0: there is none, below: not known yet
    int buffer;           ///< the first slot's place in the arrays
    std::uint32_t marks;  ///< bit s: a window starts in the unit's slot s, or the last has ended
  };
  /// Where the warp is among its slots.
  struct cursor {
    int from;              ///< the range's first slot
    int coming;            ///< the next range's
    int parity;            ///< of the range's arrays
    bool has_next;         ///< the next range's arrays are under way
    std::uint32_t starts;  ///< bit s: a window starts in slot s of the range
    int offset;            ///< of the next window
    int end;               ///< behind the last one
    int2 window;           ///< that this lane's slot of the next range lies in
  };

  /// The block's warps take its ranges as they come: what a range needs differs much.
  __device__ __forceinline__ int take_range(int total) const {
    int number = 0;
    if (place.lane == 0) number = atomicAdd(this->template table_at<int>(layout::next_range), 1);
    return range_at(__shfl_sync(all, number, 0), total);
  }
  /// Where a range of the block's begins.
  __device__ __forceinline__ int range_at(int number, int total) const {
    const std::int64_t from = (std::int64_t{number} * shares + share) * std::int64_t{layout::range};
    return static_cast<int>(min(from, std::int64_t{total}));
  }
  /// Each warp begins with a range of its own, and asks for it before there are tables.
  __device__ __forceinline__ cursor first_range(int total) const {
    cursor next{0, range_at(this->warp, total), 1, true, 0, 32, 0, {-1, 0}};
    request_slots(next, total);
    return next;
  }
  /// Asks for what is known of the next range's slots.
  __device__ __forceinline__ void request_slots(cursor& next, int total) const {
    const int from = next.coming;
    const int parity = next.parity ^ 1;
    next.window = {-1, 0};
    if (from + place.lane < total)
      next.window = reinterpret_cast<const int2*>(group().bounds)[from + place.lane];
#pragma unroll
    for (int pass = 0; pass < (slots + 31) / 32; ++pass) {
      const int slot = place.lane + 32 * pass;
      const bool inside = (pass + 1) * 32 <= slots || slot < slots;
      const bool valid = from + slot < total;
      const auto source = static_cast<std::uint32_t>(from + slot);
      const auto target = static_cast<std::uint32_t>(parity * slots + slot);
      copy_async_if<4>(inside, shared + layout::row_order + 4 * target, group().order + source,
                       valid);
      copy_async_if<4>(inside, shared + layout::row_code + 4 * target, group().positions + source,
                       valid);
      if constexpr (Radial)
        copy_async_if<4>(inside, shared + layout::row_radius + 4 * target, group().radius + source,
                         valid);
    }
    commit_copies();
  }
  /// Finds the windows of a range whose arrays have arrived.
  __device__ __forceinline__ void enter_range(cursor& next) const {
    next.starts = __ballot_sync(all, next.window.x == next.from + place.lane);
    next.offset = next.starts == 0 ? 32 : __ffs(static_cast<int>(next.starts)) - 1;
    next.end =
        __shfl_sync(all, next.window.y, 31 - __clz(static_cast<int>(next.starts | 1u))) - next.from;
  }
  /// The next unit. \param waits may it ask for arrays, over those of the last unit?
  __device__ __forceinline__ unit advance(cursor& next, bool waits, int total) const {
    while (true) {
      if (const std::uint32_t starts = next.offset < 32 ? next.starts >> next.offset : 0;
          starts != 0) {
        const std::uint32_t later = starts >> 1;
        const std::uint32_t near = later & 0xffffu;
        int count = next.end - next.offset;
        if (count > 16 && later != 0)
          count = near != 0 ? 32 - __clz(static_cast<int>(near)) : __ffs(static_cast<int>(later));
        const unit result{next.from + next.offset, count, next.parity * slots + next.offset,
                          starts | 1u << min(count, 31)};
        next.offset += count;
        if (count <= layout::rows) return result;
      }
      if (next.offset < 32 && next.starts >> next.offset != 0) continue;
      if (next.coming >= total) return {0, 0, 0, 0};
      if (!next.has_next) {
        if (!waits) return {0, -1, 0, 0};
        request_slots(next, total);
      }
      next.from = next.coming;
      next.coming = take_range(total);
      next.parity ^= 1;
      next.has_next = false;
      wait_for_copies<0>();
      __syncwarp();
      enter_range(next);
    }
  }

  /// Where this lane's parts of rows begin. In registers there is no room for that, and to compute it takes
  /// as many instructions as everything else about a unit's rows.
  enum { queries, keys, values, results, lse };
  __device__ __forceinline__ std::byte* pointer(int which) const {
    return this->template table_at<std::byte*>(
        layout::pointers)[place.t * layout::pointers_of_lane + which];
  }
  /// By the first lanes of the block.
  __device__ __forceinline__ void store_pointers() const {
    const int lane = static_cast<int>(threadIdx.x);
    if (lane >= 4) return;
    const int head = group().first_head + group_head;
    const auto store = [&](int which, const row_view& view, int column) {
      const T* row = static_cast<const T*>(view.data) + head * view.head_stride + column;
      this->template table_at<const T*>(layout::pointers)[lane * layout::pointers_of_lane + which] =
          row;
    };
    if constexpr (layout::in_halves) {
      store(queries, problem.q, 2 * lane);
      store(keys, problem.k, 4 * lane);
      store(values, problem.v, 4 * lane);
      store(results, problem.out, 2 * lane);
    } else {
      store(queries, problem.q, 4 * lane);
      store(keys, problem.k, lane % 2 * 8);
      store(values, problem.v, lane % 2 * 8);
      store(results, problem.out, lane % 2 * 8 + lane / 2 * 4);
    }
    this->template table_at<float*>(layout::pointers)[lane * layout::pointers_of_lane + lse] =
        problem.lse == nullptr ? nullptr : problem.lse + head * problem.lse_head_stride;
  }
  /// The address of a token's row.
  static __device__ __forceinline__ const std::byte* row_at(const std::byte* base,
                                                            std::int32_t token,
                                                            std::int64_t stride) {
    const std::byte* row;
    asm("mad.wide.s32 %0, %1, %2, %3;"
        : "=l"(row)
        : "r"(token), "r"(static_cast<std::int32_t>(stride * int{sizeof(T)})), "l"(base));
    return row;
  }
  /// Asks for a unit's keys, and zeros up to the end of its last tile.
  __device__ __forceinline__ void request_keys(const unit& now) const {
    const auto* tokens = at<const std::int32_t>(layout::row_order) + now.buffer;
    if constexpr (layout::in_halves) {
      const bool column = 4 * place.t < problem.head_dim;
      const std::byte* const key_rows = pointer(keys);
      const std::byte* const value_rows = pointer(values);
      const std::uint32_t target =
          shared + static_cast<std::uint32_t>(layout::key_tiles + base::chunk_at(place.g, place.t));
#pragma unroll
      for (int pass = 0; pass < layout::rows / 8; ++pass) {
        if (pass % 2 == 0 && 8 * pass >= now.count) break;
        const int row = 8 * pass + place.g;
        const bool valid = row < now.count && column;
        const std::int32_t token = tokens[row];
        const std::uint32_t tile = target + 8 * pass * layout::row_bytes;
        copy_async(tile, row_at(key_rows, token, problem.k.token_stride), valid);
        copy_async(tile + layout::tile_bytes, row_at(value_rows, token, problem.v.token_stride),
                   valid);
      }
    } else {
      const bool column = place.lane % 2 * 8 < problem.head_dim;
      const int row_of_pass = place.lane / 2;
      const std::uint32_t row_target =
          shared + static_cast<std::uint32_t>(layout::key_tiles + row_of_pass * layout::row_bytes);
      const std::uint32_t key_target = row_target + place.lane % 2 * 16;
      const std::uint32_t value_target =
          row_target + layout::tile_bytes + (place.lane ^ row_of_pass >> 2) % 2 * 16;
#pragma unroll
      for (int pass = 0; pass < layout::rows / 16; ++pass) {
        if (16 * pass >= now.count) break;
        const int row = 16 * pass + row_of_pass;
        const bool valid = row < now.count && column;
        const std::int32_t token = tokens[row];
        const std::uint32_t offset = 16 * pass * layout::row_bytes;
        copy_async(key_target + offset, row_at(pointer(keys), token, problem.k.token_stride),
                   valid);
        copy_async(value_target + offset, row_at(pointer(values), token, problem.v.token_stride),
                   valid);
      }
    }
    commit_copies();
  }
  /// The queries of a tile of a unit, four neighbouring dims a lane.
  __device__ __forceinline__ void load_queries(const unit& now, int tile,
                                               std::uint32_t (&q)[query_words]) const {
    const auto* tokens = at<const std::int32_t>(layout::row_order) + now.buffer + 16 * tile;
    // Rows behind the last are some tokens', too.
    const std::int32_t rows_[2] = {tokens[place.g], tokens[place.g + 8]};
    const std::byte* const base_ = pointer(queries);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::byte* own = row_at(base_, rows_[i], problem.q.token_stride);
      if constexpr (layout::in_halves) {
        const auto* row = reinterpret_cast<const uint2*>(own);
        const uint2 first = __ldg(row);
        const uint2 second = problem.head_dim > 8 ? __ldg(row + 4) : uint2{0, 0};
        q[4 * i] = first.x, q[4 * i + 1] = first.y;
        q[4 * i + 2] = second.x, q[4 * i + 3] = second.y;
      } else {
        const bool column = 4 * place.t < problem.head_dim;
        const uint2 dims = column ? __ldg(reinterpret_cast<const uint2*>(own)) : uint2{0, 0};
        q[i] = dims.x, q[i + 2] = dims.y;
      }
    }
  }
  /// The slots [first, last) of a row's window, in a unit of one tile.
  static __device__ __forceinline__ int2 window_of(std::uint32_t marks, int row) {
    return {31 - __clz(static_cast<int>(marks & ((2u << row) - 1))),
            row + __ffs(static_cast<int>(marks >> (row + 1)))};
  }
  /// The next unit, and asks for its rows.
  __device__ __forceinline__ unit follow(cursor& next, bool waits, int total,
                                         std::uint32_t (&q)[query_words]) const {
    const unit result = advance(next, waits, total);
    if (result.count > 0) {
      request_keys(result);
      load_queries(result, 0, q);
    }
    return result;
  }
};

}  // namespace winnow::detail
