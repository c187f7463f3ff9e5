// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a warp knows of 16 rows of two heads, and their and their keys' products with tables: the first
/// half of contextual_heads.cuh.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_pairs.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_tokens.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, bool Radial, class Layout>
struct contextual_heads_products : contextual_block<T, 16, Radial, true, Layout> {
  using base = contextual_block<T, 16, Radial, true, Layout>;
  using base::factor_of_head;
  using base::group;
  using base::place;
  using base::problem;
  using base::shared;
  using base::words;
  using typename base::factor;
  using typename base::layout;
  using rows_of_head = typename factor::rows;
  static constexpr int heads = layout::heads;

  /// Sums of weights are rounded to half as they are, so that n weights of a row stay below 2¹⁶: in windows of up to
  /// 256 keys they begin at 2⁻⁷ for the largest logit, and may grow to 2⁸. Half has 2⁻²⁴, so that little is lost below.
  /// In longer windows weights may not become as large, and the largest logit's is larger, as the error of rounding
  /// grows with the number of keys.
  ///
  /// Radial sums count units of 2⁻¹⁶, which 32 bits hold, and 24 bits of a weight.
  struct weight_range {
    float slack, lag;  ///< as `scaled_softmax_state` has them
  };
  static constexpr int sum_bits = 16, unit_bits = 16, short_bits = 8;
  static constexpr int first_bits = -7, most_longer_bits = 5;
  /// The bits of n - 1.
  static __device__ __forceinline__ int bits_of(int n) { return 32 - __clz(n - 1); }
  /// \param longest keys of a row.
  static __device__ __forceinline__ weight_range range_of(int longest) {
    const int bits = max(bits_of(longest), short_bits);
    // What a weight may have; a maximum is whole, which takes one of them.
    const int most = sum_bits - 1 - bits;
    const int lead = min(first_bits + min(bits - short_bits, most_longer_bits), most);
    return {static_cast<float>(most - lead), static_cast<float>(-lead)};
  }
  /// Cubic windows have room for the rows' products in shared memory, and not enough registers.
  static constexpr bool stores_products = !Radial;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Of one head.
  struct head_state {
    /// Gq of rows g and g + 8 by cell, if not in shared memory.
    std::uint32_t products[2][stores_products ? 1 : words];
    lean_softmax_state softmax;
    float o[2][4];
    /// Weights by cell: pairs of halves of two rows, or floats.
    using sums_of_cells = std::conditional_t<layout::sums_halves, std::uint32_t[2], float[4]>;
    sums_of_cells cells[words];
  };
  struct heads_state {
    head_state of_head[heads];
    std::uint32_t row_cells[2][words];  ///< one-hot rows, or
    std::uint32_t positions[2][layout::axes];
    float radius[2];
    std::uint32_t unit;  ///< a matrix, of which one half tells one head's products
    /// Addresses, from the middle of the table on: of row g's sums by radial row, and of key 2t's products.
    std::uint32_t radial, key_products;
    float inverse_a;
    float inverse_scale;
    int length;
    int most_steps;  ///< of `radial_step`
    bool has_values;
    float lag;                 ///< of the tile's rows
    float most;                ///< exponent of their weights that raises no maximum
    std::uint32_t first_cell;  ///< that this lane compares keys' positions with, twice
    std::uint32_t cells[Radial ? cell_words : 1];  ///< and, of an axis, `own_cells`
  };

  /// Where this lane's part of a block of Tq or Tk is.
  __device__ __forceinline__ typename factor::element* factor_part(int i, int which) const {
    return this->template table_at<typename factor::element>(
               i % heads * layout::head_bytes + layout::tables + which * layout::table_bytes) +
           factor::element_at(i / heads, 0);
  }
  /// Tq and Tk of both heads, by the block's warps from `First` on. In loops, as what is done once takes as long as its
  /// instructions take to arrive. \param meanwhile is done before they are there.
  template <int First, class Meanwhile>
  __device__ __forceinline__ void load_factors(const Meanwhile& meanwhile) const {
    constexpr int blocks = heads * 3 * axis_blocks, step = layout::warps - First;
#pragma unroll 1
    for (int i = base::warp - First; i < blocks; i += step) {
      const int block = i / heads % axis_blocks, axis = i / heads / axis_blocks, h = i % heads;
      factor::template request<Radial>(factor_of_head(group().table_q, 0, h),
                                       factor_of_head(group().table_k, 1, h), axis, block,
                                       Radial && axis == 2, factor_part(i, 0), factor_part(i, 1));
    }
    commit_copies();
    meanwhile();
    wait_for_copies<0>();
    if constexpr (layout::scales_tables)
#pragma unroll 1
      for (int i = base::warp - First; i < blocks; i += step)
        scale(*factor_part(i, 1), 1.0f / problem.scale);
  }
  static __device__ __forceinline__ void scale(typename factor::element& own, float by) {
    for (std::uint32_t* pair : {&own.x, &own.y}) {
      T elements[2];
      memcpy(elements, pair, sizeof elements);
      *pair = pack<T>(widen(elements[0]) * by, widen(elements[1]) * by);
    }
  }
  /// What all rows of the warp have in common.
  __device__ __forceinline__ void begin_block(heads_state& state) const {
    state.has_values = group().table_v.data != nullptr;
    state.length = group().quant_length;
    state.inverse_scale = __fdividef(1.0f, problem.scale);
    const int cell = spread(place.g);
    state.first_cell = kept_in_register(position_pair(cell, cell));
    if constexpr (Radial)
#pragma unroll
      for (int word = 0; word < cell_words; ++word)
        state.cells[word] = kept_in_register(this->own_cells(word));
    if constexpr (Radial) {
      state.inverse_a = __uint_as_float(kept_by_lanes(__float_as_uint(group().inverse_a)));
      state.radial = kept_in_register(
          shared + static_cast<std::uint32_t>(layout::scratch + this->scratch_of_warp() +
                                              layout::radial_row(place.g) + 4 * state.length));
      state.key_products = kept_in_register(
          shared + static_cast<std::uint32_t>(layout::products_at(0) +
                                              layout::key_row(2 * place.t) + 4 * state.length));
      state.most_steps =
          static_cast<int>(kept_by_lanes(static_cast<std::uint32_t>((state.length << 22) - 1)));
      // Row 2t + h of the factor is head h's, key 2t's; row 2t + h + 8 key 2t + 1's.
      state.unit = kept_in_register(
          place.g / 2 == place.t ? (place.g % 2 == 0 ? 0x3c00u : 0x3c000000u) : 0u);
    }
  }

  /// `own_cells`, from registers if there are enough.
  __device__ __forceinline__ std::uint32_t cells_of(const heads_state& state, int word) const {
    if constexpr (Radial)
      return state.cells[word % cell_words];
    else
      return this->own_cells(word);
  }

  // --- Products of tokens with tables -------------------------------------------------------------

  /// The radial axis by table row, rows g and g + 8 of both heads.
  template <bool Backwards>
  __device__ __forceinline__ void multiply_radials(const factor (&tables)[heads],
                                                   const rows_of_head (&left)[heads],
                                                   std::byte* target, int eight_rows) const {
    std::uint32_t by_row[heads][2][axis_blocks];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      std::uint32_t own[1][2][row_words];
      tables[h].template multiply<Backwards>(left[h], 2, true, own);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int block = 0; block < axis_blocks; ++block) by_row[h][i][block] = own[0][i][block];
    }
    store_radials(by_row, target, eight_rows);
  }
  /// Of two blocks lanes have four neighbours, of which each is a product of one head and of the other.
  __device__ __forceinline__ void store_radials(
      const std::uint32_t (&by_row)[heads][2][axis_blocks], std::byte* target,
      int eight_rows) const {
    const auto pair = [&](int i, int block, unsigned select) {
      return __byte_perm(by_row[0][i][block], by_row[1][i][block], select);
    };
    constexpr unsigned low = 0x5410, high = 0x7632;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int block = 0; block < axis_blocks; block += 2)
        *reinterpret_cast<uint4*>(target + 16 * place.t + i * eight_rows + block * 32) = {
            pair(i, block, low), pair(i, block, high), pair(i, block + 1, low),
            pair(i, block + 1, high)};
  }
  /// 16 rows of q.
  __device__ __forceinline__ void load_queries(int tile, rows_of_head (&left)[heads]) const {
#pragma unroll
    for (int h = 0; h < heads; ++h)
      this->load_left(
          at<const std::byte>(layout::query + layout::query_tile(tile) * layout::query_bytes +
                              h * layout::tile_bytes),
          left[h]);
  }
  /// Of a lane: four words of the left factor of a product with cells.
  __device__ __forceinline__ uint4& stored_products(int h, int word) const {
    return at<uint4>(
        layout::row_products)[(h * layout::product_pairs + word / 2) * 32 + place.lane];
  }
  /// This lane's parts of row g's sums by radial row, the first of four neighbours of 16 bytes for four lanes. It is
  /// not worth a register over a tile's pieces.
  __device__ __forceinline__ uint4* sums_of_lane(const heads_state& state) const {
    const std::uint32_t first =
        state.radial - static_cast<std::uint32_t>(4 * state.length) - shared;
    return at<uint4>(static_cast<int>(first)) + place.t;
  }
  static constexpr int sums_of_eight_rows = layout::radial_row(8) / 16;
  static constexpr int lane_sums =
      layout::radial_sums_bytes / 64;  ///< such parts of a row and head
  /// Products of 16 rows whose q is there.
  /// \param length_of the lengths of the windows of rows g and g + 8.
  template <class Lengths>
  __device__ __forceinline__ void begin_products(int tile, const Lengths& length_of,
                                                 heads_state& state) const {
    const int row = tile * layout::rows + place.g;
    rows_of_head left[heads];
    load_queries(tile, left);
    const std::uint32_t codes[2] = {at<std::uint32_t>(layout::row_code)[row],
                                    at<std::uint32_t>(layout::row_code)[row + 8]};
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[1], state.length, place.t)};
    const factor tables[heads] = {factor_of_head(group().table_q, 0, 0),
                                  factor_of_head(group().table_q, 0, 1)};
    std::uint32_t products[heads][2][words];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis)
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        std::uint32_t cells[1][2][cell_words];
        this->template multiply_cells<true>(tables[h], left[h], axis, moves, cells);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int word = 0; word < cell_words; ++word)
            products[h][i][axis * cell_words + word] = cells[0][i][word];
      }
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (base::has_large(left[h], i)) products[h][i][0] = nan_halves;
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t position = position_twice(codes[i], axis);
        if constexpr (Radial) {
#pragma unroll
          for (int word = axis * cell_words; word < (axis + 1) * cell_words; ++word)
            state.row_cells[i][word] = one_hot(position, cells_of(state, word));
        } else {
          state.positions[i][axis] = position;
        }
      }
    if constexpr (Radial) begin_radial(row, left, tables, state);
    const auto longest = static_cast<int>(
        __reduce_max_sync(0xffffffffu, static_cast<unsigned>(max(length_of(0), length_of(1)))));
    const weight_range range = range_of(longest);
    state.lag = range.lag, state.most = range.slack + 1.0f - range.lag;
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      head_state& own = state.of_head[h];
#pragma unroll
      for (int word = 0; word < words; ++word) {
        if constexpr (!stores_products) {
          own.products[0][word] = products[h][0][word];
          own.products[1][word] = products[h][1][word];
        } else if (word % 2 == 0) {
          const int next = min(word + 1, words - 1);
          stored_products(h, word) = {products[h][0][word], products[h][1][word],
                                      products[h][0][next], products[h][1][next]};
        }
      }
      own.softmax = {};
#pragma unroll
      for (auto& block : own.o)
#pragma unroll
        for (float& sum : block) sum = 0.0f;
    }
    if constexpr (!layout::sums_halves) clear_cells(state);
  }
  static __device__ __forceinline__ void clear_cells(heads_state& state) {
#pragma unroll
    for (head_state& own : state.of_head)
#pragma unroll
      for (auto& block : own.cells)
#pragma unroll
        for (auto& sum : block) sum = 0;
  }
  /// The same of the radial axis. \param row this lane's row g, among the arrays of rows.
  __device__ __forceinline__ void begin_radial(int row, const rows_of_head (&left)[heads],
                                               const factor (&tables)[heads],
                                               heads_state& state) const {
    multiply_radials<true>(tables, left,
                           this->scratch() + layout::radial_row(place.g) + layout::row_radial,
                           layout::radial_row(8));
    uint4* sums = sums_of_lane(state);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < heads * lane_sums; ++n)
        sums[i * sums_of_eight_rows + 4 * n] = {0, 0, 0, 0};
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Never -0, nor then a difference of 0.
      state.radius[i] = at<float>(layout::row_radius)[row + 8 * i] + 0.0f;
    }
  }
  /// 16 keys, both heads: what their group's arrays say.
  struct key_group {
    rows_of_head left[heads];  ///< K
    std::uint32_t codes[2];    ///< of keys g and g + 8; or
    uint2 pairs[2];            ///< their positions on two axes, each twice, to compare
  };
  __device__ __forceinline__ const T* tile_of(int which, int slot, int h) const {
    return at<const T>(layout::tiles_at(slot) + (2 * h + which) * layout::tile_bytes);
  }
  template <bool Right = false>
  __device__ __forceinline__ key_group load_group(int slot) const {
    return load_group<Right>(slot, (layout::pairs_positions ? 8 : 4) * place.g);
  }
  template <bool Right = false>
  __device__ __forceinline__ key_group load_group(int slot, int own_codes) const {
    key_group result;
#pragma unroll
    for (int h = 0; h < heads; ++h)
      if constexpr (Right)
        load_matrices(result.left[h].a[0], this->matrix_rows(tile_of(0, slot, h), 0));
      else
        this->load_left(reinterpret_cast<const std::byte*>(tile_of(0, slot, h)), result.left[h]);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if constexpr (layout::pairs_positions)
        result.pairs[i] = *reinterpret_cast<const uint2*>(
            at<const std::byte>(layout::codes_at(slot) + own_codes) + 64 * i);
      else
        result.codes[i] = *reinterpret_cast<const std::uint32_t*>(
            at<const std::byte>(layout::codes_at(slot) + own_codes) + 32 * i);
    return result;
  }
  /// Where this lane's products by cell lie in a slot: where its row of `ldmatrix` would, as warps have that register.
  __device__ __forceinline__ const std::byte* cells_of_lane(int slot) const {
    return this->left_rows(at<const std::byte>(slot));
  }
  /// A linear axis of keys' products with Tk, of one head.
  __device__ __forceinline__ void multiply_axis(const factor& table, const rows_of_head& left,
                                                int axis, const std::uint32_t (&moves)[2],
                                                std::uint32_t (&products)[2][words]) const {
    std::uint32_t cells[1][2][cell_words];
    this->template multiply_cells<false>(table, left, axis, moves, cells);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (axis == 0 && base::has_large(left, i)) cells[0][i][0] = nan_halves;
#pragma unroll
      for (int word = 0; word < cell_words; ++word)
        products[i][axis * cell_words + word] = cells[0][i][word];
    }
  }
  /// Products of the keys with Tk. Those of linear axes never leave registers: by cell, they lie as the right factor
  /// of the product with one-hot rows needs them. \param sides Σ Gk of linear axes.
  __device__ __forceinline__ void multiply_keys(const heads_state& state, const key_group& own,
                                                float (&sides)[heads][2][4]) const {
    const factor tables[heads] = {factor_of_head(group().table_k, 1, 0),
                                  factor_of_head(group().table_k, 1, 1)};
    if constexpr (Radial)
      multiply_radials<false>(tables, own.left,
                              at<std::byte>(layout::key_products) + layout::key_row(place.g),
                              layout::key_row(8));
    const std::uint32_t moves[2] = {moves_of(own.codes[0], state.length, place.t),
                                    moves_of(own.codes[1], state.length, place.t)};
    std::uint32_t positions[2][layout::axes];
    if constexpr (!Radial) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int axis = 0; axis < layout::axes; ++axis) {
          positions[i][axis] = state.positions[i][axis];
          asm volatile("" : "+r"(positions[i][axis]));
        }
    }
    const auto row_cell = [&](int i, int word) {
      if constexpr (Radial)
        return state.row_cells[i][word];
      else
        return one_hot(positions[i][word / cell_words], this->own_cells(word));
    };
    std::uint32_t products[heads][2][words];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis)
#pragma unroll
      for (int h = 0; h < heads; ++h)
        multiply_axis(tables[h], own.left[h], axis, moves, products[h]);
#pragma unroll
    for (int word = 0; word + 1 < words; word += 2) {
      const std::uint32_t left[4] = {row_cell(0, word), row_cell(1, word), row_cell(0, word + 1),
                                     row_cell(1, word + 1)};
#pragma unroll
      for (int h = 0; h < heads; ++h)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          if (word == 0)
            multiply_16<half>(sides[h][b], left, products[h][b][0], products[h][b][1]);
          else
            multiply_add_16<half>(sides[h][b], left, products[h][b][word],
                                  products[h][b][word + 1]);
        }
    }
    if constexpr (words % 2 == 1) {
      constexpr int word = words - 1;
      const std::uint32_t left[2] = {row_cell(0, word), row_cell(1, word)};
#pragma unroll
      for (int h = 0; h < heads; ++h)
#pragma unroll
        for (int b = 0; b < 2; ++b)
          multiply_add_half_8(sides[h][b], left[0], left[1], products[h][b][word]);
    }
  }
};

}  // namespace winnow::detail
