// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the turns of a contextual block bring from global memory. A turn is up to `keys` keys of a block
/// of rows, and at the first of them the rows too. Its slots are read in the partition's order a turn
/// before its copies start, and copies run while the turn before them computes.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::load_bounds(
    next_rows& next) const {
  if constexpr (leaves_short)
    if (shortest > 0) skip_short(next);
  if (next.row >= assigned) return;
  const auto* bounds = group().bounds;
  next.first_key = bounds[2 * static_cast<std::int64_t>(next.row)];
  next.end = bounds[2 * static_cast<std::int64_t>(min(next.row + rows, assigned)) - 1];
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::skip_short(
    next_rows& next) const {
  const auto* bounds = reinterpret_cast<const int2*>(group().bounds);
  const int step = shares * rows;
  while (next.row < assigned) {
    // A lane looks at each of the next 32. Windows that count have more than half of the rows, so they
    // cover one of three.
    static_assert(2 * contextual_short_layout<Radial>::rows >= rows);
    const std::int64_t row = next.row + std::int64_t{place.lane} * step;
    bool found = false;
    if (row < assigned)
      for (const int slot : {0, rows / 2, rows - 1}) {
        const int2 window = bounds[min(row + slot, std::int64_t{assigned} - 1)];
        found = found || window.y - window.x >= shortest;
      }
    const unsigned lanes = __ballot_sync(0xffffffffu, found);
    const std::int64_t skipped = lanes != 0 ? __ffs(static_cast<int>(lanes)) - 1 : 32;
    next.row = static_cast<int>(min(next.row + skipped * step, std::int64_t{assigned}));
    if (lanes != 0) return;
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ auto contextual_block<T, D, Radial, Vectors, Layout>::follow(
    const turn& now, next_rows& next) const -> turn {
  if (now.key + keys < now.end) return {now.row, now.key + keys, now.end, now.buffer, false};
  const turn result{next.row, next.first_key, next.end, now.buffer ^ 1, true};
  next.row = min(next.row + shares * rows, assigned);
  load_bounds(next);
  return result;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::load_tokens(
    const turn& now, turn_tokens& tokens) const {
  if (now.row >= assigned) return;
#pragma unroll
  for (int pass = 0; pass < key_passes; ++pass) {
    const int key = thread / chunks + pass * pass_rows;
    tokens.keys[pass] =
        key < count_of(now) ? group().order[static_cast<std::uint32_t>(now.key + key)] : 0;
  }
  if (!now.first) return;
#pragma unroll
  for (int pass = 0; pass < query_passes; ++pass) {
    const int row = now.row + thread / chunks + pass * pass_rows;
    tokens.queries[pass] =
        row < min(now.row + rows, assigned) ? group().order[static_cast<std::uint32_t>(row)] : 0;
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <int Rows, int Passes>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::copy_rows(
    int target, const std::byte* base, const std::int32_t (&tokens)[Passes], std::int64_t stride,
    int count) const {
  const int row = thread / chunks;
  if (thread % chunks * width >= problem.head_dim) count = 0;
  int column = thread % chunks;
  if constexpr (layout::turns_rows) column ^= row >> 2 & 1;
  target += row * layout::row_bytes + column * 16;
#pragma unroll
  for (int pass = 0; pass < Passes; ++pass) {
    const bool inside = (pass + 1) * pass_rows <= Rows || row + pass * pass_rows < Rows;
    const bool valid = row + pass * pass_rows < count;
    const int chunk = target + pass * pass_rows * layout::row_bytes;
    if constexpr (Vectors) {
      // Such strides fit 32 bits: see `vector_rows`.
      const std::byte* source;
      asm("mad.wide.s32 %0, %1, %2, %3;"
          : "=l"(source)
          : "r"(tokens[pass]), "r"(static_cast<std::int32_t>(stride * int{sizeof(T)})), "l"(base));
      copy_async_if<16>(inside, shared + static_cast<std::uint32_t>(chunk), source, valid);
    } else if (inside) {
      const T* source = reinterpret_cast<const T*>(base) + tokens[pass] * stride;
      for (int e = 0; e < width; ++e) at<T>(chunk)[e] = valid ? source[e] : T{};
    }
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <int Fill, class U>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::copy_array(
    int target, const U* source, int first, int count) const {
  static_assert(Fill <= threads);
  copy_async_if<sizeof(U)>(thread < Fill,
                           shared + static_cast<std::uint32_t>(target) + thread * sizeof(U),
                           source + static_cast<std::uint32_t>(first + thread), thread < count);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ const std::byte*
contextual_block<T, D, Radial, Vectors, Layout>::base_of(const row_view& view) const {
  return reinterpret_cast<const std::byte*>(static_cast<const T*>(view.data) +
                                            (group().first_head + group_head) * view.head_stride +
                                            thread % chunks * width);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::request(
    const turn& now, int stage, const turn_tokens& tokens, const row_bases& bases) const {
  if (now.row < assigned) {
    const int count = count_of(now);
    const int target = layout::key_tiles + 2 * stage * layout::tile_bytes;
    copy_rows<keys>(target, bases.k, tokens.keys, problem.k.token_stride, count);
    copy_rows<keys>(target + layout::tile_bytes, bases.v, tokens.keys, problem.v.token_stride,
                    count);
    copy_array<keys>(layout::key_code + 4 * keys * stage, group().positions, now.key, count);
    if constexpr (Radial)
      copy_array<keys>(layout::key_radius + 4 * keys * stage, group().radius, now.key, count);
    if (now.first) {
      const int active = assigned - now.row;
      copy_rows<rows>(query_offset(now), bases.q, tokens.queries, problem.q.token_stride, active);
      copy_array<rows>(layout::row_bounds + 8 * rows * now.buffer,
                       reinterpret_cast<const int2*>(group().bounds), now.row, active);
      copy_array<rows>(layout::row_order + 4 * rows * now.buffer, group().order, now.row, active);
      copy_array<rows>(layout::row_code + 4 * rows * now.buffer, group().positions, now.row,
                       active);
      if constexpr (Radial)
        copy_array<rows>(layout::row_radius + 4 * rows * now.buffer, group().radius, now.row,
                         active);
    }
  }
  commit_copies();
}

}  // namespace winnow::detail
