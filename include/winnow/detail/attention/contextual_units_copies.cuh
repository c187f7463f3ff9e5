// SPDX-License-Identifier: Apache-2.0
/// \file
/// How rows of q, K and V come into the memory of a warp of contextual_units_kernel.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_units_deal.cuh"
#include "winnow/detail/attention/contextual_units_layout.hpp"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_copies : contextual_units_deal<T, Heads> {
  using base = contextual_units_deal<T, Heads>;
  using base::group;
  using base::group_head;
  using base::place;
  using base::problem;
  using typename base::layout;
  static constexpr int heads = Heads;

  /// 16 rows of q, K or V of a head, as they arrived.
  enum { queries, keys_, values, results, lse = results + heads };
  static __device__ __forceinline__ int rows_at(int slot, int which, int h) {
    return layout::steps + slot * layout::step_bytes + (which * heads + h) * layout::tile_bytes;
  }
  /// The address of a slot. Where a lane finds what is in it is that and a number of its own, one register, and a number
  /// that instructions hold.
  __device__ __forceinline__ std::uint32_t slot_at(int slot) const {
    return this->own_address() + static_cast<std::uint32_t>(slot * layout::step_bytes);
  }
  /// Where this lane's row of `ldmatrix` is in 16 rows, whose matrices count column by column.
  __device__ __forceinline__ std::uint32_t left_row() const {
    const auto lane = static_cast<std::uint32_t>(place.lane);
    return lane % 16 * layout::row_bytes + (lane / 16 ^ lane >> 2) % 2 * 16;
  }
  /// Rows of 16 bytes that a lane copies: half a row of a head. Two passes take 16 rows of two heads.
  static constexpr int row_parts = 2 * heads;
  static constexpr int passes = heads, rows_of_pass = 16 / passes;
  __device__ __forceinline__ const std::byte* pointer(int lane_of_quad, int which) const {
    return this->template table_at<const std::byte*>(
        layout::pointers)[lane_of_quad * layout::pointers_of_lane + which];
  }
  __device__ __forceinline__ const std::byte* source(int which) const {
    return pointer(static_cast<unsigned>(place.lane) % row_parts, which);
  }
  /// By a warp.
  __device__ __forceinline__ void store_pointers() const {
    const int lane = place.lane;
    if (lane >= 4) return;
    auto* const own =
        this->template table_at<const void*>(layout::pointers) + lane * layout::pointers_of_lane;
    const int first_head = group().first_head + group_head;
    const int head = first_head + lane % row_parts / 2;
    const auto store = [&](int which, const row_view& view, int head_of_row, int column) {
      own[which] = static_cast<const T*>(view.data) + head_of_row * view.head_stride + column;
    };
    store(queries, problem.q, head, lane % 2 * 8);
    store(keys_, problem.k, head, lane % 2 * 8);
    store(values, problem.v, head, lane % 2 * 8);
#pragma unroll
    for (int h = 0; h < heads; ++h)
      store(results + h, problem.out, first_head + h, lane % 2 * 8 + lane / 2 * 4);
    own[lse] = problem.lse + head * problem.lse_head_stride;
  }
  __device__ __forceinline__ void copy_part(int target, const std::byte* rows, std::int32_t token,
                                            std::int64_t stride, bool valid) const {
    const std::byte* source;
    asm("mad.wide.s32 %0, %1, %2, %3;"
        : "=l"(source)
        : "r"(token), "r"(static_cast<std::int32_t>(stride * int{sizeof(T)})), "l"(rows));
    copy_async(this->own_address() + static_cast<std::uint32_t>(target), source, valid);
  }
  /// This lane's row of the first pass.
  __device__ __forceinline__ int own_row() const {
    return static_cast<int>(static_cast<unsigned>(place.lane) / row_parts);
  }
  /// Where this lane's part of it goes.
  __device__ __forceinline__ int own_part() const {
    // There are no registers to keep it in.
    const auto lane = static_cast<unsigned>(in_register(place.lane));
    const unsigned row = lane / row_parts, part = lane % row_parts;
    return static_cast<int>(part / 2 * layout::tile_bytes + row * layout::row_bytes +
                            (part ^ row >> 2) % 2 * 16);
  }
  __device__ __forceinline__ bool has_part() const {
    return static_cast<int>(static_cast<unsigned>(place.lane) % 2 * 8) < problem.head_dim;
  }
  /// Asks for a unit's rows, and zeros behind the last.
  __device__ __forceinline__ void request_unit(const std::byte* unit, int slot) const {
    const int target = own_part();
    const bool column = has_part();
    const std::byte* const rows[3] = {source(queries), source(keys_), source(values)};
    const int count = 31 - __clz(*reinterpret_cast<const int*>(unit + layout::unit_marks));
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = own_row() + rows_of_pass * pass;
      const bool valid = column && row < count;
      const std::int32_t token =
          reinterpret_cast<const std::int32_t*>(unit + layout::unit_tokens)[row];
      const int own = target + rows_of_pass * pass * layout::row_bytes;
      copy_part(rows_at(slot, queries, 0) + own, rows[queries], token, problem.q.token_stride,
                valid);
      copy_part(rows_at(slot, keys_, 0) + own, rows[keys_], token, problem.k.token_stride, valid);
      copy_part(rows_at(slot, values, 0) + own, rows[values], token, problem.v.token_stride, valid);
    }
  }
};

}  // namespace winnow::detail
