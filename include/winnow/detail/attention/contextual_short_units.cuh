// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a warp of contextual_short.cuh takes, and how it arrives: units, and their rows. What is known of a unit's slots
/// comes by cp.async a unit ahead, its keys while the unit before ends, its queries straight into registers.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_short_list.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_short_units : contextual_short_list<T, Radial> {
  using base = contextual_short_list<T, Radial>;
  using base::all;
  using base::group;
  using base::group_head;
  using base::place;
  using base::problem;
  using base::shared;
  using typename base::layout;
  static constexpr int query_words = sizeof(T) == 4 ? 8 : 4;  ///< of a tile, a lane's

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Whole windows in neighbouring slots.
  struct unit {
    int slot;    ///< the first
    int count;   ///< 0: there is none
    int buffer;  ///< where the arrays of its rows begin
    std::uint32_t
        marks;  ///< of up to 16 rows: bit s: a window starts in row s, or the last has ended
  };
  /// The next unit on the list. Asks for what is known of its slots.
  __device__ __forceinline__ unit take_unit(int buffer, int total) const {
    int index = 0;
    if (place.lane == 0) index = atomicAdd(this->counter_of(base::next_unit), 1);
    index = __shfl_sync(all, index, 0);
    if (index >= *this->counter_of(base::listed)) return {0, 0, 0, 0};
    const auto [slot, marks] =
        this->template table_at<const typename base::listed_unit>(layout::list)[index];
    const int count = marks >> base::count_shift != 0 ? static_cast<int>(marks >> base::count_shift)
                                                      : 31 - __clz(static_cast<int>(marks));
    const unit result{slot, count, buffer, marks};
    request_slots(result, total);
    return result;
  }
  __device__ __forceinline__ void request_slots(const unit& now, int total) const {
#pragma unroll
    for (int pass = 0; pass < (layout::rows + 31) / 32; ++pass) {
      const int row = place.lane + 32 * pass;
      const bool inside = (pass + 1) * 32 <= layout::rows || row < layout::rows;
      const bool valid = now.slot + row < total;
      const auto source = static_cast<std::uint32_t>(now.slot + row);
      const auto target = static_cast<std::uint32_t>(now.buffer + row);
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
      const std::uint32_t target =
          shared + static_cast<std::uint32_t>(layout::key_tiles + row_of_pass * layout::row_bytes +
                                              (place.lane ^ row_of_pass >> 2) % 2 * 16);
#pragma unroll
      for (int pass = 0; pass < layout::rows / 16; ++pass) {
        if (16 * pass >= now.count) break;
        const int row = 16 * pass + row_of_pass;
        const bool valid = row < now.count && column;
        const std::int32_t token = tokens[row];
        const std::uint32_t offset = 16 * pass * layout::row_bytes;
        copy_async(target + offset, row_at(pointer(keys), token, problem.k.token_stride), valid);
        copy_async(target + layout::tile_bytes + offset,
                   row_at(pointer(values), token, problem.v.token_stride), valid);
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
  /// Asks for the rows of a unit whose arrays have been asked for.
  __device__ __forceinline__ void request_rows(const unit& now,
                                               std::uint32_t (&q)[query_words]) const {
    if (now.count == 0) return;
    wait_for_copies<0>();
    __syncwarp();
    request_keys(now);
    load_queries(now, 0, q);
  }
};

}  // namespace winnow::detail
