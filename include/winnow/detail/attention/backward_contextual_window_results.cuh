// SPDX-License-Identifier: Apache-2.0
/// \file
/// What leaves a tile of backward_contextual_window.cuh: sums by cell become sums by table row, which give the
/// table terms of dq and dk and the gradients of tables; rows of dq, dk and dv go to global memory.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_contextual_window_pieces.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_results : contextual_window_pieces<T, Radial, Long> {
  using base = contextual_window_pieces<T, Radial, Long>;
  using base::all_lanes;
  using base::axis_blocks;
  using base::blocks;
  using base::first_block;
  using base::gradient_points;
  using base::grads;
  using base::group;
  using base::head;
  using base::keys;
  using base::largest_sum;
  using base::left_offset;
  using base::linear;
  using base::of_keys;
  using base::of_queries;
  using base::part_of;
  using base::part_width;
  using base::place;
  using base::problem;
  using base::queries;
  using base::region;
  using base::row_of_product;
  using base::rows_between;
  using base::rows_of_tile;
  using base::shift_of;
  using base::sums;
  using base::table;
  using base::tiles;
  using base::warp;
  using base::weight_points;
  using base::weight_unit;
  using base::whole;
  using base::words;
  using typename base::layout;
  using typename base::tile_tokens;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Sums by cell, in T: of rows g and g + 8.
  using packed_cells = std::uint32_t[2][words];
  static __device__ __forceinline__ void pack_cells(const float (&cells)[words][4],
                                                    packed_cells& packed) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < words; ++w) packed[i][w] = pack<T>(cells[w][2 * i], cells[w][2 * i + 1]);
  }
  /// Sums by table row: of rows g and g + 8 six words of one axis.
  using axis_rows = std::uint32_t[2][row_words];
  __device__ __forceinline__ void move_to_rows(const packed_cells& packed, int axis,
                                               const std::uint32_t (&code)[2],
                                               axis_rows& rows) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t cells[cell_words];
#pragma unroll
      // Of an axis that is radial there are no cells.
      for (int w = 0; w < cell_words; ++w)
        cells[w] = packed[i][min(axis * cell_words + w, words - 1)];
      shift_of(code[i], axis).to_rows(cells, rows[i]);
    }
  }
  /// The same of the radial axis. \param which of the rows' dS, their P, the columns' dS.
  __device__ __forceinline__ void take_radial(int which, const float (&unit)[2],
                                              axis_rows& rows) const {
    const int* sums = reinterpret_cast<const int*>(region(warp) + layout::radial_sums) +
                      (16 * which + place.g) * layout::radial_stride + 2 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; ++w) {
        const int2 pair =
            *reinterpret_cast<const int2*>(sums + i * 8 * layout::radial_stride + 8 * w);
        rows[i][w] =
            pack<T>(static_cast<float>(pair.x) * unit[i], static_cast<float>(pair.y) * unit[i]);
      }
  }
  /// sum += rows · table.
  __device__ __forceinline__ void add_table_term(const axis_rows& rows, int which, int axis,
                                                 float (&sum)[2][4]) const {
    const std::byte* right = table(which) + axis * tile_rows * layout::row_bytes + left_offset;
#pragma unroll
    for (int w = 0; w < row_words; w += 2) {
      const std::uint32_t left[4] = {rows[0][w], rows[1][w], rows[0][w + 1], rows[1][w + 1]};
      std::uint32_t b[4];
      load_matrices_transposed(b, right + w * 8 * layout::row_bytes);
      multiply_add_16<T>(sum[0], left, b[0], b[1]);
      multiply_add_16<T>(sum[1], left, b[2], b[3]);
    }
  }
  __device__ __forceinline__ void store_sums(const axis_rows& rows, int which, int axis) const {
    std::byte* target = sums(warp, which) + place.g * layout::sum_bytes + axis * tile_rows * 2 +
                        (8 * place.t ^ (place.g >> 2) * 16);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; w += 2)
        *reinterpret_cast<uint2*>(target + i * 8 * layout::sum_bytes + 16 * w) = {rows[i][w],
                                                                                  rows[i][w + 1]};
  }
  /// What a row's radial sums are multiplied by; NaN where they may have overflown.
  static __device__ __forceinline__ void radial_units(const float (&total)[4], float (&unit)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) unit[i] = total[2 * i] < largest_sum ? 1.0f / gradient_points : NAN;
  }
  /// Table terms of dq and dk, and the rows of sums to shared memory, where nobody reads pieces any more.
  /// `cells` and `totals` are those of dS, of P and of dS of the columns; P has no total.
  __device__ __forceinline__ void finish_sums(const std::uint32_t (&code)[2],
                                              const std::uint32_t (&key_code)[2],
                                              const packed_cells (&cells)[3],
                                              const float (&row_total)[4],
                                              const float (&column_total)[4], float (&dq)[2][4],
                                              float (&dk)[2][4]) const {
    axis_rows radial[3];
    if constexpr (Radial) {
      float unit[2];
      radial_units(row_total, unit);
      take_radial(0, unit, radial[0]);
      radial_units(column_total, unit);
      take_radial(2, unit, radial[2]);
      const float weight_units[2] = {1.0f / weight_points, 1.0f / weight_points};
      take_radial(1, weight_units, radial[1]);
      __syncwarp();
    }
#pragma unroll
    for (int which = 0; which < 3; ++which)
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        axis_rows rows;
        if (linear(axis)) {
          move_to_rows(cells[which], axis, which == 2 ? key_code : code, rows);
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int w = 0; w < row_words; ++w) rows[i][w] = radial[which][i][w];
        }
        if (which == 0) add_table_term(rows, of_queries, axis, dq);
        if (which == 2) add_table_term(rows, of_keys, axis, dk);
        store_sums(rows, which, axis);
      }
  }

  /// Adds what `used` tiles give to the block's part of one table's gradient.
  __device__ __forceinline__ void add_to_part(int which, int used, float by) const {
    float* target = part_of(which);
    if (target == nullptr) return;
    target += 2 * place.t;
    const std::byte* rows = rows_of_tile(which == 0   ? queries
                                         : which == 1 ? grads
                                                      : keys,
                                         0) +
                            left_offset;
    std::uint32_t right[tiles][4];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
      if (tile < used) load_matrices_transposed(right[tile], rows + tile * layout::tile_bytes);
    const std::byte* left = sums(0, which) +
                            (place.lane % 8 + place.lane / 16 * 8) * layout::sum_bytes +
                            ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
#pragma unroll 1
    for (int block = first_block(which); block < blocks; block += tiles) {
      float product[2][4];
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        if (tile > 0 && tile >= used) continue;
        std::uint32_t a[4];
        load_matrices_transposed(a, left + tile * layout::region_bytes + block * 32);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (tile == 0)
            multiply_16<T>(product[n], a, right[tile][2 * n], right[tile][2 * n + 1]);
          else
            multiply_add_16<T>(product[n], a, right[tile][2 * n], right[tile][2 * n + 1]);
        }
      }
      const bool by_cell = linear(block / axis_blocks);
      const int between = rows_between(by_cell) * part_width;
      float* sum = target + (16 * block + row_of_product(by_cell)) * part_width;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          add_in_memory(sum + i * between + 8 * n, product[n][2 * i] * by,
                        product[n][2 * i + 1] * by);
    }
  }
  /// Adds what a turn's tiles give to the block's part of tables' gradients.
  __device__ __forceinline__ void add_to_parts(int used_by_queries, int used_by_keys,
                                               float lower) const {
    add_to_part(0, used_by_queries, problem.scale * lower);
    add_to_part(1, used_by_queries, weight_unit);
    add_to_part(2, used_by_keys, lower);
  }

  /// Writes rows of a gradient, sums times `by`, or adds to them; rows in `skip` are left to others.
  __device__ __forceinline__ void store(const row_view& view, const std::int32_t (&tokens)[2],
                                        float by, unsigned skip, const float (&sum)[2][4]) const {
    if (view.data == nullptr) return;
    const bool odd = (place.t & 1) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool wanted = tokens[i] >= 0 && (skip >> (place.g + 8 * i) & 1u) == 0;
      T* target = gradient_row<T>(view, max(tokens[i], 0), head);
      if (problem.accumulate) {
        if (!wanted) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n)
          if (8 * n < problem.head_dim)
#pragma unroll
            for (int c = 0; c < 2; ++c)
              store_gradient(target + 8 * n + 2 * place.t + c, sum[n][2 * i + c] * by, true);
        continue;
      }
      // Neighbouring lanes swap, so that each has four columns.
      const std::uint32_t first = pack<T>(sum[0][2 * i] * by, sum[0][2 * i + 1] * by);
      const std::uint32_t second = pack<T>(sum[1][2 * i] * by, sum[1][2 * i + 1] * by);
      const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? first : second, 1);
      const int column = (odd ? 8 : 0) + place.t / 2 * 4;
      if (wanted && column < problem.head_dim)
        *reinterpret_cast<uint2*>(target + column) = {odd ? other : first, odd ? second : other};
    }
  }
  /// The tile's rows whose sums are not finite, as bits.
  __device__ __forceinline__ unsigned broken_rows(const float (&first)[2][4],
                                                  const float (&second)[2][4],
                                                  const std::int32_t (&tokens)[2]) const {
    bool broken[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;  // becomes NaN with any NaN or infinity
#pragma unroll
      for (int n = 0; n < 2; ++n)
        probe += (first[n][2 * i] + first[n][2 * i + 1]) * 0.0f +
                 (second[n][2 * i] + second[n][2 * i + 1]) * 0.0f;
      broken[i] = !(probe == 0.0f) && tokens[i] >= 0;
    }
    if (!__any_sync(all_lanes, broken[0] || broken[1])) return 0;
    unsigned rows = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned lanes = __ballot_sync(all_lanes, broken[i]);
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) rows |= 1u << (g + 8 * i);
    }
    return rows;
  }

  /// Gradients of a tile's queries, which begin in slot `first`. Rows that are not finite are computed again.
  __device__ __forceinline__ void store_queries(int first, const tile_tokens& rows, float by,
                                                const float (&dq)[2][4]) const {
    const unsigned broken = broken_rows(dq, dq, rows.token);
    store(problem.grad_q, rows.token, by, broken, dq);
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::query>(whole, group, head,
                                                 first + __ffs(static_cast<int>(left)) - 1, {});
  }
  __device__ __forceinline__ void store_keys(int first, const tile_tokens& rows, float by_key,
                                             float by_value, const float (&dk)[2][4],
                                             const float (&dv)[2][4]) const {
    const unsigned broken = broken_rows(dk, dv, rows.token);
    store(problem.grad_k, rows.token, by_key, broken, dk);
    store(problem.grad_v, rows.token, by_value, broken, dv);
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::key>(whole, group, head,
                                               first + __ffs(static_cast<int>(left)) - 1, {});
  }
};

}  // namespace winnow::detail
