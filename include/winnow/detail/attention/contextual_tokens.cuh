// SPDX-License-Identifier: Apache-2.0
/// \file
/// The products of a contextual block's tokens with tables: Gq of the warp's own rows, once, and Gk of a
/// turn's keys, which all warps share.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_table.cuh"
#include "winnow/detail/attention/contextual_weights.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/shared_memory.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ auto contextual_block<T, D, Radial, Vectors, Layout>::factor_of(
    const table_view& table, int which) const -> factor {
  return {table, group_head * static_cast<int>(table.head_stride), problem.head_dim,
          2 * (group().quant_length - 1),
          table_at<typename factor::element>(layout::tables + which * layout::table_bytes)};
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ auto contextual_block<T, D, Radial, Vectors, Layout>::factor_of_head(
    const table_view& table, int which, int h) const -> factor {
  return {table, (group_head + h) * static_cast<int>(table.head_stride), problem.head_dim,
          2 * (group().quant_length - 1),
          table_at<typename factor::element>(h * layout::head_bytes + layout::tables +
                                             which * layout::table_bytes)};
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::load_value_tables(
    int threads) const {
  contextual_block of_head = *this;
#pragma unroll
  for (int h = 0; h < layout::heads; ++h) {
    of_head.load_value_table(0, 3, threads);
    ++of_head.group_head;
    of_head.tables += layout::head_bytes;
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ bool contextual_block<T, D, Radial, Vectors, Layout>::has_large(
    const typename factor::rows& left, int i) {
  bool large = false;
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    large = large || is_large<T>(left.a[step][i], left.a[step][i + 2]);
  return large;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <bool Backwards>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::multiply_cells(
    const factor& table, const typename factor::rows& left, int axis,
    const std::uint32_t (&moves)[2], std::uint32_t (&cells)[parts][2][cell_words]) const {
  if constexpr (in_halves) {
    // Half of the rows' products are no cell's, so that it takes less to split them behind their move.
    float products[axis_blocks][4], by_row[2][2 * row_words];
    table.template multiply_axis<Backwards>(left, axis, false, products);
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block)
#pragma unroll
      for (int e = 0; e < 4; ++e) by_row[e / 2][2 * block + e % 2] = products[block][e];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const row_shift shift{moves[i] >> (8 * axis)};
      float moved[2 * cell_words];
      shift.to_cells(by_row[i], moved, place.t);
#pragma unroll
      for (int word = 0; word < cell_words; ++word) {
        std::uint32_t pair[parts];
        split(moved[2 * word], moved[2 * word + 1], pair);
#pragma unroll
        for (int part = 0; part < parts; ++part) cells[part][i][word] = pair[part];
      }
    }
  } else {
    std::uint32_t by_row[parts][2][row_words];
    table.template multiply<Backwards>(left, axis, false, by_row);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const row_shift shift{moves[i] >> (8 * axis)};
#pragma unroll
      for (int part = 0; part < parts; ++part)
        shift.to_cells(by_row[part][i], cells[part][i], place.t);
    }
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <bool Backwards>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::multiply_radial(
    const factor& table, const typename factor::rows& left, std::byte* target,
    int eight_rows) const {
  target += 2 * place.t * layout::radial_element;
  if constexpr (parts == 1) {
    std::uint32_t by_row[1][2][row_words];
    table.template multiply<Backwards>(left, 2, true, by_row);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int block = 0; block < axis_blocks; ++block)
        *reinterpret_cast<std::uint32_t*>(target + i * eight_rows + block * 16) =
            by_row[0][i][block];
  } else if constexpr (in_halves) {
    float products[axis_blocks][4];
    table.template multiply_axis<Backwards>(left, 2, true, products);
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(target + i * eight_rows + block * 32) = {
            products[block][2 * i], products[block][2 * i + 1]};
  } else {
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block) {
      float product[4];
      table.template multiply<Backwards>(left, 2, block, true, product);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(target + i * eight_rows + block * 32) = {product[2 * i],
                                                                            product[2 * i + 1]};
    }
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <int Behind>
__device__ __forceinline__ float contextual_block<T, D, Radial, Vectors, Layout>::radial_product(
    int offset) const {
  const std::uint32_t address = (keeps_places ? 0 : shared) + static_cast<std::uint32_t>(offset);
  if constexpr (parts == 1) {
    return __half2float(__ushort_as_half(load_shared_half<Behind>(address)));
  } else {
    float product;
    asm volatile("ld.shared.f32 %0, [%1 + %2];" : "=f"(product) : "r"(address), "n"(Behind));
    return product;
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::load_left(
    const std::byte* rows_, typename factor::rows& left) const {
  if constexpr (layout::turns_rows)
    load_matrices(left.a[0], left_rows(rows_));
  else if constexpr (in_halves) {
    load_matrices(left.high[0], rows_ + chunk_at(place.lane % 16, place.lane / 16));
    load_matrices(left.low[0], rows_ + chunk_at(place.lane % 16, place.lane / 16 + 2));
  } else
    left.load(reinterpret_cast<const T*>(rows_));
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::begin_rows(
    const turn& now, row_state& state) const {
  const auto* query = at<const std::byte>(query_offset(now)) + warp * 16 * layout::row_bytes;
  typename factor::rows left;
  if constexpr (in_halves)
    left.template load<true>(reinterpret_cast<const T*>(query));
  else
    load_left(query, left);
  if constexpr (layout::turns_rows || in_halves)
    state.q = left;
  else
    state.q.load(reinterpret_cast<const T*>(query));
  begin_products(now, left, state);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::keep_axis(
    const std::uint32_t (&cells)[parts][2][cell_words], int axis, own_products& products) {
#pragma unroll
  for (int part = 0; part < parts; ++part)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int word = 0; word < cell_words; ++word) {
        if constexpr (loops_axes) {
          products[part][i][word] = products[part][i][cell_words + word];
          products[part][i][cell_words + word] = cells[part][i][word];
        } else {
          products[part][i][axis * cell_words + word] = cells[part][i][word];
        }
      }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::begin_products(
    const turn& now, const typename factor::rows& left, row_state& state) const {
  const int row = first_row(now) + place.g;
  const std::uint32_t codes[2] = {at<std::uint32_t>(layout::row_code)[row],
                                  at<std::uint32_t>(layout::row_code)[row + 8]};
  const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                  moves_of(codes[1], state.length, place.t)};
  const factor table = factor_of(group().table_q, 0);
#pragma unroll(axes_at_once)
  for (int axis = 0; axis < layout::axes; ++axis) {
    std::uint32_t cells[parts][2][cell_words];
    multiply_cells<true>(table, left, axis, moves, cells);
    keep_axis(cells, axis, state.products);
    if constexpr (!attends_at_once) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t position = position_twice(codes[i], axis);
        if constexpr (keeps_row_cells) {
#pragma unroll
          for (int word = axis * cell_words; word < (axis + 1) * cell_words; ++word)
            state.row_cells[i][word] = one_hot(position, own_cells(word));
        } else {
          state.positions[i][axis] = position;
        }
      }
    }
  }
  if constexpr (parts == 1) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (has_large(left, i)) state.products[0][i][0] = nan_halves;
  }
  if constexpr (Radial) {
    multiply_radial<true>(table, left, radial_products(), layout::radial_row(8));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (!attends_at_once) clear_radial_sums(i);
      // Never -0, nor then a difference of 0.
      state.radius[i] = at<float>(layout::row_radius)[row + 8 * i] + 0.0f;
      if constexpr (attends_at_once) {
        state.fixed_point[i] = fixed_start_short;
      } else {
        const int2 window = at<int2>(layout::row_bounds)[row + 8 * i];
        state.fixed_point[i] =
            window.y - window.x <= short_window ? fixed_start_short : fixed_start;
      }
    }
  }
  state.softmax = scaled_softmax_state();
#pragma unroll
  for (auto& block : state.o)
#pragma unroll
    for (float& sum : block) sum = 0.0f;
  if constexpr (sums_directly) {
#pragma unroll
    for (auto& block : state.low)
#pragma unroll
      for (float& sum : block) sum = 0.0f;
  }
#pragma unroll
  for (auto& block : state.cells)
#pragma unroll
    for (float& sum : block) sum = 0.0f;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::place_key(
    int key, std::uint32_t code) const {
  if constexpr (layout::packs_places) {
    at<std::uint32_t>(layout::key_place)[key] = __byte_perm(code, 0x64u, 0x4140u);
  } else {
    std::uint32_t cells[layout::axes];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis) {
      cells[axis] = position_twice(code, axis);
      at<std::uint16_t>(layout::key_cells)[axis * keys + key] =
          static_cast<std::uint16_t>(cells[axis]);
    }
    if constexpr (Radial)
      at<key_cells>(layout::key_place)[key] = {cells[0], cells[1]};
    else
      at<key_cells>(layout::key_place)[key] = {cells[0], cells[1], cells[2], 0};
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::prepare_keys(
    const turn& now, int stage) const {
  const int count = count_of(now);
  const auto* codes = at<const std::uint32_t>(layout::key_code) + stage * keys;
  static_assert(keys <= threads && rows <= threads);
  if (const int key = thread; key < keys) place_key(key, key < count ? codes[key] : 0);
  // 16 keys and all axes at a time, as long as that keeps all warps busy, then axis by axis.
  const int groups = (count + 15) / 16;
  int whole = 0;
  if constexpr (multiplies_axes_at_once) {
    whole = min((groups + 1) / warps * warps, groups);
#pragma unroll 1
    for (int first = warp; first < whole; first += warps) {
      const key_group keys_of_group = load_group(first, stage);
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) multiply_keys(keys_of_group, axis);
    }
  }
#pragma unroll 1
  for (int item = 3 * whole + warp; item < 3 * groups; item += warps)
    multiply_keys(load_group(item / 3, stage), item % 3);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ auto contextual_block<T, D, Radial, Vectors, Layout>::load_group(
    int group_of_turn, int stage) const -> key_group {
  key_group result;
  load_left(
      reinterpret_cast<const std::byte*>(key_tile(stage)) + group_of_turn * 16 * layout::row_bytes,
      result.left);
  const int key = group_of_turn * 16 + place.g;
  const auto* codes = at<const std::uint32_t>(layout::key_code) + stage * keys + key;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    result.moves[i] = moves_of(codes[8 * i], group().quant_length, place.t);
  result.target = at<std::byte>(layout::key_products) + key * layout::key_stride;
  return result;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::multiply_keys(
    const key_group& own, int axis) const {
  const factor table = factor_of(group().table_k, 1);
  if (Radial && axis == 2) {
    multiply_radial<false>(table, own.left, own.target + parts * 2 * layout::cells,
                           8 * layout::key_stride);
    return;
  }
  std::uint32_t cells[parts][2][cell_words];
  multiply_cells<false>(table, own.left, axis, own.moves, cells);
  if constexpr (parts == 1) {
    if (axis == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (has_large(own.left, i)) cells[0][i][0] = nan_halves;
    }
  }
#pragma unroll
  for (int part = 0; part < parts; ++part)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int word = 0; word < cell_words; ++word)
        *reinterpret_cast<std::uint32_t*>(
            own.target + i * 8 * layout::key_stride + part * 2 * layout::cells +
            (axis * cell_words + word) * 16 + 4 * place.t) = cells[part][i][word];
}

}  // namespace winnow::detail
