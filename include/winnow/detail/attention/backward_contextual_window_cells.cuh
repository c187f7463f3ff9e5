// SPDX-License-Identifier: Apache-2.0
/// \file
/// One-hot cells of backward_contextual_window.cuh in registers: of a warp's own rows, and of a tile's rows whose
/// positions are in shared memory. Comparing takes an instruction for two cells, where loading takes a quarter of
/// one and a wavefront each.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_radial.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_cells : contextual_window_radial<T, Radial, Long> {
  using base = contextual_window_radial<T, Radial, Long>;
  using base::memory;
  using base::place;
  using base::words;
  using typename base::layout;

  /// One-hot cells of rows g and g + 8.
  __device__ __forceinline__ void mark_cells(const std::uint32_t (&code)[2],
                                             std::uint32_t (&hot)[2][words]) const {
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t position = position_twice(code[i], axis);
#pragma unroll
        for (int w = 0; w < cell_words; ++w)
          hot[i][axis * cell_words + w] =
              one_hot(position, position_pair(8 * w + place.t, 8 * w + place.t + 4));
      }
  }
  /// Positions of a tile's rows, in shared memory.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t* codes_of(int tile) const {
    return reinterpret_cast<std::uint32_t*>(memory + layout::query_codes +
                                            tile * layout::next_tile);
  }
  __device__ __forceinline__ void store_codes(int tile, const std::uint32_t (&code)[2]) const {
    if (place.t == 0)
#pragma unroll
      for (int i = 0; i < 2; ++i) codes_of(tile)[place.g + 8 * i] = code[i];
  }
  /// Of rows 2t, 2t + 1, 2t + 8 and 2t + 9.
  __device__ __forceinline__ void load_columns(int tile, uint2 (&codes)[2]) const {
    const auto* own = reinterpret_cast<const uint2*>(codes_of(tile)) + place.t;
    codes[0] = own[0];
    codes[1] = own[4];
  }
  /// Two tokens' positions on an axis, as `position_pair`.
  static __device__ __forceinline__ std::uint32_t positions_of(const uint2& codes, int axis) {
    const unsigned select = static_cast<unsigned>(axis) * 0x0101u + 0x0400u;
    return (__byte_perm(codes.x, codes.y, select) & 0x00ff00ffu) | position_pair(0, 0);
  }
  /// Hands out one-hot cells of such rows, 8 cells at a time, as right factors: a lane makes its column.
  /// \param take (word, rows 2t and 2t + 1, rows 2t + 8 and 2t + 9)
  template <class Take>
  __device__ __forceinline__ void mark_columns(const uint2 (&codes)[2], const Take& take) const {
    const int cell = spread(place.g);
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis) {
      const std::uint32_t positions[2] = {positions_of(codes[0], axis),
                                          positions_of(codes[1], axis)};
#pragma unroll
      for (int word = 0; word < cell_words; ++word) {
        const std::uint32_t column = position_pair(8 * word + cell, 8 * word + cell);
        take(axis * cell_words + word, one_hot(positions[0], column),
             one_hot(positions[1], column));
      }
    }
  }
  /// sums += rows of weights · one-hot cells of rows that are in no memory.
  __device__ __forceinline__ void add_query_cells(const std::uint32_t (&weights)[4],
                                                  const uint2 (&codes)[2],
                                                  float (&sums)[words][4]) const {
    mark_columns(codes, [&](int word, std::uint32_t low, std::uint32_t high) {
      multiply_add_16<half>(sums[word], weights, low, high);
    });
  }
  /// The same of two weights.
  __device__ __forceinline__ void add_key_cells(const std::uint32_t (&first)[4],
                                                const std::uint32_t (&second)[4],
                                                const uint2 (&codes)[2],
                                                float (&sums)[2][words][4]) const {
    mark_columns(codes, [&](int word, std::uint32_t low, std::uint32_t high) {
      multiply_add_16<half>(sums[0][word], first, low, high);
      multiply_add_16<half>(sums[1][word], second, low, high);
    });
  }
};

}  // namespace winnow::detail
