// SPDX-License-Identifier: Apache-2.0
/// \file
/// Moves between table rows and cells through a warp's own memory, of 16 rows of two heads with spherical windows.
///
/// On a linear axis a row's cell c takes table row c + s, with a distance s of the row. What lies in shared memory by
/// table row is read from s on, and what is stored from s on lies there by table row, which takes half of the
/// instructions of moves in registers (`row_shift`). A row has as many bytes for it as for its sums by radial row,
/// in whose place it lies while those are not there yet, or no longer.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

template <class T, bool Radial, class Layout>
struct contextual_heads_moves : contextual_block<T, 16, Radial, true, Layout> {
  using base = contextual_block<T, 16, Radial, true, Layout>;
  using base::place;
  using base::shared;
  using base::words;
  using typename base::layout;
  static constexpr int heads = layout::heads;
  static constexpr int axes = layout::axes;
  static constexpr int eight_rows = layout::radial_row(8);
  static constexpr int chunks = heads * layout::radial_sums_bytes / 64;  ///< of a row, of four lanes
  static_assert(!Radial ||
                (heads == 2 && axes == 2 && 2 * axes * tile_rows == layout::radial_sums_bytes));

  /// A row's distance on each axis, a byte each.
  static __device__ __forceinline__ std::uint32_t distances(std::uint32_t code, int quant_length) {
    return static_cast<std::uint32_t>(quant_length - 1) * 0x010101u - code;
  }
  /// Addresses in the warp's memory. They are not worth registers over a tile's pieces.
  struct row_places {
    std::uint32_t row;       ///< where row g begins
    std::uint32_t parts;     ///< this lane's parts of row g: the first of four neighbours of 16 bytes for four lanes
    std::uint32_t matrices;  ///< this lane's row of four matrices: rows 0 to 7, 8 to 15, and both 16 bytes further
  };
  /// \param row where row g begins.
  __device__ __forceinline__ row_places places_of_rows(std::uint32_t row) const {
    const int lane = in_register(place.lane);
    const int matrix_row = layout::radial_row(lane % 16) + lane / 16 * 16;
    return {row, row + static_cast<std::uint32_t>(16 * place.t),
            shared + static_cast<std::uint32_t>(layout::scratch + this->scratch_of_warp() +
                                                matrix_row)};
  }
  /// `__byte_perm` of a selector that needs no mask.
  static __device__ __forceinline__ std::uint32_t select_bytes(std::uint32_t low,
                                                               std::uint32_t high,
                                                               std::uint32_t select) {
    std::uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(select));
    return bytes;
  }
  static __device__ __forceinline__ std::uint32_t load_word(std::uint32_t address) {
    std::uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
  }
  static __device__ __forceinline__ void store_word(std::uint32_t address, std::uint32_t word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
  }
  static __device__ __forceinline__ uint4 load_part(std::uint32_t address) {
    uint4 part;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(part.x), "=r"(part.y), "=r"(part.z), "=r"(part.w)
                 : "r"(address)
                 : "memory");
    return part;
  }
  /// 16 rows' sums by radial row, or what lies in their place.
  static __device__ __forceinline__ void clear_sums(const row_places& own) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int chunk = 0; chunk < chunks; ++chunk)
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                         own.parts + static_cast<std::uint32_t>(i * eight_rows + chunk * 64)),
                     "r"(0)
                     : "memory");
  }

  // --- Products, by table row in halves -----------------------------------------------------------

  /// Lanes take six neighbouring cells of an axis: two of them, as `own_cells` has others.
  __device__ __forceinline__ std::uint32_t product_cells(int word) const {
    const int first = word % cell_words * 2 + 2 * cell_words * place.t;
    return position_pair(first, first + 1);
  }
  /// A head's products with all axes, whose columns are table rows in their order.
  static __device__ __forceinline__ void store_products(
      const row_places& places, int h, const std::uint32_t (&by_row)[axes][1][2][row_words]) {
#pragma unroll
    for (int axis = 0; axis < axes; ++axis)
#pragma unroll
      for (int block = 0; block < row_words; block += 2) {
        const auto& own = by_row[axis][0];
        store_matrices({own[0][block], own[1][block], own[0][block + 1], own[1][block + 1]},
                       places.matrices +
                           static_cast<std::uint32_t>(96 * (axes * h + axis) + 16 * block));
      }
  }
  /// \param moves `distances` of rows g and g + 8.
  __device__ __forceinline__ void load_products(const row_places& places,
                                                const std::uint32_t (&moves)[2],
                                                std::uint32_t (&products)[heads][2][words]) const {
    const std::uint32_t row =
        places.row + static_cast<std::uint32_t>(4 * cell_words * place.t);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int axis = 0; axis < axes; ++axis) {
        const std::uint32_t even = in_register(moves[i] & (0xfeu << (8 * axis)));
        const std::uint32_t first = row + (axis == 0 ? 2 * even : even >> (8 * axis - 1)) +
                                    static_cast<std::uint32_t>(i * eight_rows);
        // From an odd one on, cells lie across words.
        const std::uint32_t select = axis == 0 ? choose<1>(moves[i], 0x5432u, 0x3210u)
                                               : choose<256>(moves[i], 0x5432u, 0x3210u);
#pragma unroll
        for (int h = 0; h < heads; ++h) {
          std::uint32_t pairs[cell_words + 1];
#pragma unroll
          for (int n = 0; n <= cell_words; ++n)
            pairs[n] =
                load_word(first + static_cast<std::uint32_t>((h * axes + axis) * 96 + 4 * n));
#pragma unroll
          for (int n = 0; n < cell_words; ++n)
            products[h][i][axis * cell_words + n] = select_bytes(pairs[n], pairs[n + 1], select);
        }
      }
  }

  // --- Weights, pairs of both heads by table row --------------------------------------------------

  /// To where zeros are. \param weight_of a cell's weight: of a head, word, and element.
  template <class Weights>
  __device__ __forceinline__ void store_weights(const row_places& places,
                                                const std::uint32_t (&moves)[2],
                                                const Weights& weight_of) const {
    const std::uint32_t row = places.row + static_cast<std::uint32_t>(4 * place.t);
#pragma unroll
    for (int axis = 0; axis < axes; ++axis)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t distance = in_register(moves[i] & (0xffu << (8 * axis)));
        const std::uint32_t first = row + (axis == 0 ? 4 * distance : distance >> (8 * axis - 2)) +
                                    static_cast<std::uint32_t>(i * eight_rows);
#pragma unroll
        for (int word = 0; word < cell_words; ++word)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int own = axis * cell_words + word;
            store_word(
                first + static_cast<std::uint32_t>(axis * 4 * tile_rows + 32 * word + 16 * e),
                pack<T>(weight_of(0, own, 2 * i + e), weight_of(1, own, 2 * i + e)));
          }
      }
  }
  /// Left factors of 16 table rows of an axis, whose order is that of `spread`.
  static __device__ __forceinline__ void load_weights(const row_places& places, int axis, int step,
                                                      weight_fragment<T> (&weights)[heads]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::uint32_t pairs[4];
      load_matrices(pairs, places.matrices + static_cast<std::uint32_t>(axis * 4 * tile_rows +
                                                                        64 * step + 32 * j));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        weights[0].a[2 * j + i] = __byte_perm(pairs[i], pairs[2 + i], 0x5410);
        weights[1].a[2 * j + i] = __byte_perm(pairs[i], pairs[2 + i], 0x7632);
      }
    }
  }
};

}  // namespace winnow::detail
