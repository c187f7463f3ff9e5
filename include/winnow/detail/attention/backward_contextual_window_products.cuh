// SPDX-License-Identifier: Apache-2.0
/// \file
/// Products of a tile of backward_contextual_window.cuh with tables, indexed by the other token's cell.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual_window_radial.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_products : contextual_window_radial<T, Radial, Long> {
  using base = contextual_window_radial<T, Radial, Long>;
  using base::length;
  using base::place;
  using base::right_offset;
  using base::table;
  using base::words;
  using typename base::layout;

  /// 16 rows times one axis of a table, in half: of rows g and g + 8 six words, in the table's order.
  __device__ __forceinline__ void multiply_axis(const std::uint32_t (&left)[4], int which, int axis,
                                                std::uint32_t (&product)[2][row_words]) const {
    const std::byte* right = table(which) + axis * tile_rows * layout::row_bytes + right_offset;
#pragma unroll
    for (int pair = 0; pair < row_words / 2; ++pair) {
      std::uint32_t b[4];
      load_matrices(b, right + pair * 16 * layout::row_bytes);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        std::uint32_t sum[2];
        if constexpr (std::is_same_v<T, half>) {
          multiply_half(sum, left, b[2 * n], b[2 * n + 1]);
        } else {
          float wide[4];
          multiply_16<T>(wide, left, b[2 * n], b[2 * n + 1]);
          sum[0] = pack<half>(wide[0], wide[1]);
          sum[1] = pack<half>(wide[2], wide[3]);
        }
        product[0][2 * pair + n] = sum[0];
        product[1][2 * pair + n] = sum[1];
      }
    }
  }
  __device__ __forceinline__ row_shift shift_of(std::uint32_t code, int axis) const {
    return row_shift{moves_of(code, length, place.t) >> (8 * axis)};
  }
  /// All linear axes by the other's cell.
  __device__ __forceinline__ void multiply_cells(const std::uint32_t (&left)[4], int which,
                                                 const std::uint32_t (&code)[2],
                                                 std::uint32_t (&cells)[2][words]) const {
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis) {
      std::uint32_t product[2][row_words];
      multiply_axis(left, which, axis, product);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t moved[cell_words];
        shift_of(code[i], axis).to_cells(product[i], moved, place.t);
#pragma unroll
        for (int w = 0; w < cell_words; ++w) cells[i][axis * cell_words + w] = moved[w];
      }
    }
  }
  /// The same to rows of cells in shared memory, where a lane stores what others have in registers there.
  __device__ __forceinline__ void store_products(const std::uint32_t (&left)[4], int which,
                                                 const std::uint32_t (&code)[2],
                                                 std::byte* target) const {
    target += place.g * layout::cell_bytes;
    // One copy of this code where instructions are short of room.
    constexpr int axes_at_once = !Radial && !Long ? 1 : layout::cell_axes;
#pragma unroll axes_at_once
    for (int axis = 0; axis < layout::cell_axes; ++axis) {
      std::uint32_t product[2][row_words];
      multiply_axis(left, which, axis, product);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const row_shift shift = shift_of(code[i], axis);
        std::uint32_t aligned[cell_words];
        shift.align(product[i], aligned);
        std::byte* row = target + i * 8 * layout::cell_bytes + 16 * axis * cell_words +
                         4 * shift.lane_of_cells();
#pragma unroll
        for (int w = 0; w < cell_words; ++w)
          *reinterpret_cast<std::uint32_t*>(row + 16 * w) = aligned[w];
      }
    }
  }
  /// This lane's words of rows of cells, to row g and g + 8 of `target`.
  __device__ __forceinline__ void store_cells(std::byte* target,
                                              const std::uint32_t (&cells)[2][words]) const {
    target += place.g * layout::cell_bytes + 4 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < words; ++w)
        *reinterpret_cast<std::uint32_t*>(target + i * 8 * layout::cell_bytes + 16 * w) =
            cells[i][w];
  }
};

}  // namespace winnow::detail
