// SPDX-License-Identifier: Apache-2.0
/// \file
/// Units of short cubic windows, whose 16 rows are their keys, two heads at a time, or one.
///
/// Both heads share positions, masks, one-hot rows and the distances that products move by; so do a token's row and
/// its key. All logits are there before the first weight, so that weights are at most 1 and nothing is rescaled. In
/// half, sums of weights by cell round to half where they are made, as 16 weights of at most 1 fit it; what is
/// normalised is the result. Products of an axis are used up before those of the next one are made, which leaves
/// registers for twelve warps.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_result.cuh"
#include "winnow/detail/attention/contextual_units_cells.cuh"
#include "winnow/detail/attention/contextual_units_layout.hpp"
#include "winnow/detail/attention/contextual_units_moves.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units : contextual_units_cells<T, Heads> {
  using base = contextual_units_cells<T, Heads>;
  using base::all;
  using base::factor_of_head;
  using base::group;
  using base::group_head;
  using base::heads;
  using base::keys_;
  using base::lse;
  using base::place;
  using base::pointer;
  using base::problem;
  using base::queries;
  using base::results;
  using base::row_parts;
  using base::rows_at;
  using base::values;
  using typename base::factor;
  using typename base::layout;
  using rows_of_head = typename factor::rows;

  struct head_state {
    scaled_softmax_state softmax;
    float o[2][4];
  };
  struct heads_state {
    head_state of_head[heads];
    int length;
    bool has_values;
    bool are_short;  ///< windows, for tiles
  };
  __device__ __forceinline__ heads_state begin_state() const {
    heads_state state;
    state.length = group().quant_length;
    state.has_values = group().table_v.data != nullptr;
    return state;
  }

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  __device__ __forceinline__ void load_rows(int slot, int which, int h, rows_of_head& left) const {
    this->load_left(at<const std::byte>(rows_at(slot, which, h)), left);
  }
  using pair = std::conditional_t<std::is_same_v<T, half>, half2, __nv_bfloat162>;
  /// Rows of q as factors, times the scale, which the keys' products with Tk go without. Nothing is rounded if it is a
  /// power of two. NaN where an element is too large for products in halves.
  __device__ __forceinline__ void scale_queries(rows_of_head& left) const {
    bool is_large[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) is_large[i] = base::has_large(left, i);
    const bool is_power_of_two = (__float_as_uint(problem.scale) & 0x7fffffu) == 0;
    const std::uint32_t scale = pack<T>(problem.scale, problem.scale);
    if (is_power_of_two) {
#pragma unroll
      for (std::uint32_t& word : left.a[0])
        *reinterpret_cast<pair*>(&word) =
            __hmul2(*reinterpret_cast<pair*>(&word), *reinterpret_cast<const pair*>(&scale));
    } else {
      scale_pairs<T>(left.a[0], problem.scale);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (is_large[i]) left.a[0][i] = nan_halves;
  }

  /// V of 16 keys, as the right factor of weights: pairs of registers are eight columns.
  __device__ __forceinline__ void load_values(int slot, int h, std::uint32_t (&b)[4]) const {
    load_matrices_transposed(b, this->left_rows(at<const std::byte>(rows_at(slot, values, h))));
  }

  /// Asks for the tables of all heads; all warps of the block take part. What a block does once takes about as long as
  /// its instructions take to arrive, so they are few, in loops.
  __device__ __forceinline__ void request_tables() const {
    using element = typename factor::element;
#pragma unroll 1
    for (int i = base::warp; i < heads * 3 * axis_blocks; i += layout::warps) {
      const int block = i / heads, h = i % heads, axis = block / axis_blocks;
      element* const of_q =
          this->template table_at<element>(h * layout::head_bytes + layout::tables) +
          factor::element_at(block, 0);
      factor::request(factor_of_head(group().table_q, 0, h), factor_of_head(group().table_k, 1, h),
                      axis, block % axis_blocks, false, of_q,
                      of_q + layout::table_bytes / sizeof(element));
    }
    static_assert(layout::threads >= 2 * 3 * tile_rows);
    const table_view& values = group().table_v;
    const int i = static_cast<int>(threadIdx.x) / 2, axis = i / tile_rows, row = i % tile_rows;
    if (i >= 3 * tile_rows) return;
    const int column = static_cast<int>(threadIdx.x) % 2 * 8;
    const int source = 2 * (group().quant_length - 1) - (row / 8 * 8 + spread(row % 8));
    const bool valid = values.data != nullptr && source >= 0 && column < problem.head_dim;
    const int chunk = static_cast<int>(threadIdx.x) ^ (base::turns_values ? i >> 2 : 0);
    std::int64_t offset = source * values.row_stride + axis * values.axis_stride +
                          group_head * values.head_stride + column;
#pragma unroll 1
    for (int h = 0; h < heads; ++h, offset += values.head_stride) {
      auto* const target = reinterpret_cast<uint4*>(
          this->template table_at<T>(h * layout::head_bytes + layout::value_table) +
          i * base::value_stride + chunk % 2 * 8);
      if (values.is_float || !values.vectors)
        *target = valid ? load_table_vector<T>(values, offset) : uint4{0, 0, 0, 0};
      else
        copy_async(target, static_cast<const T*>(values.data) + offset, valid);
    }
  }

  // --- A unit -----------------------------------------------------------------------------------------

  /// An axis of one-hot rows of tokens g and g + 8, for factors whose lanes hold columns 2t and 2t + 1.
  using axis_cells = std::uint32_t[2][cell_words];
  __device__ __forceinline__ void one_hot_rows(const std::uint32_t (&codes)[2], int axis,
                                               axis_cells& cells) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // As position_twice does, but the high bytes are those of a register that there is anyway.
      const std::uint32_t position = __byte_perm(codes[i], this->own_cells(0),
                                                 0x5050u + 0x0101u * static_cast<unsigned>(axis));
#pragma unroll
      for (int word = 0; word < cell_words; ++word)
        cells[i][word] = one_hot(position, this->own_cells(word));
    }
  }
  /// An axis of products by cell of both heads, of keys or backwards of queries. NaN where an element of a key is too
  /// large for them.
  template <bool Backwards>
  __device__ __forceinline__ void multiply_axis(const table_view& table, int which,
                                                const rows_of_head (&left)[heads], int axis,
                                                const std::uint32_t (&moves)[2],
                                                axis_cells (&cells)[heads]) const {
    std::uint32_t by_row[heads][1][2][row_words];
#pragma unroll
    for (int h = 0; h < heads; ++h)
      factor_of_head(table, which, h).template multiply<Backwards>(left[h], axis, false, by_row[h]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (heads == 2)
        row_shift_of_heads(moves[i], axis)
            .to_cells(by_row[0][0][i], by_row[1][0][i], cells[0][i], cells[1][i], place.t);
      else
        row_shift{moves[i] >> (8 * axis)}.to_cells(by_row[0][0][i], cells[0][i], place.t);
    }
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (!Backwards && axis == 0 && base::has_large(left[h], i)) cells[h][i][0] = nan_halves;
  }
  /// The first axis may leave its third register of cells to the second one, as a product of 16 cells takes as long as
  /// one of eight. For that one head's warps have no registers.
  static constexpr bool leaves = heads == 2;
  struct cells_left {
    std::uint32_t rows[heads][2], columns[heads][2];
  };
  /// Adds an axis of a head's 16 rows, by cell, times 16 columns.
  template <bool Leaves>
  static __device__ __forceinline__ void add_axis(const axis_cells& rows, const axis_cells& columns,
                                                  int axis, bool is_first, int h, cells_left& left,
                                                  float (&s)[2][4]) {
    const std::uint32_t sixteen[4] = {rows[0][0], rows[1][0], rows[0][1], rows[1][1]};
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (is_first)
        multiply_16<half>(s[b], sixteen, columns[b][0], columns[b][1]);
      else
        multiply_add_16<half>(s[b], sixteen, columns[b][0], columns[b][1]);
    }
    if (Leaves && axis == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) left.rows[h][i] = rows[i][2], left.columns[h][i] = columns[i][2];
      return;
    }
    const std::uint32_t both[4] = {left.rows[h][0], left.rows[h][1], rows[0][2], rows[1][2]};
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (Leaves && axis == 1)
        multiply_add_16<half>(s[b], both, left.columns[h][b], columns[b][2]);
      else
        multiply_add_half_8(s[b], rows[0][2], rows[1][2], columns[b][2]);
    }
  }
  /// The logits of a unit, without masks.
  __device__ __forceinline__ void score_unit(const heads_state& state, int slot,
                                             const std::uint32_t* all_codes,
                                             const std::uint32_t (&moves)[2],
                                             float (&s)[heads][2][4]) const {
    const std::uint32_t codes[2] = {all_codes[place.g], all_codes[place.g + 8]};
    rows_of_head q[heads], k[heads];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      load_rows(slot, keys_, h, k[h]);
      load_rows(slot, queries, h, q[h]);
      scale_queries(q[h]);
    }
    axis_cells own[3];
    cells_left left;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products[heads];
      one_hot_rows(codes, axis, own[axis]);
      multiply_axis<false>(group().table_k, 1, k, axis, moves, products);
#pragma unroll
      for (int h = 0; h < heads; ++h)
        add_axis<leaves>(own[axis], products[h], axis, axis == 0, h, left, s[h]);
    }
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int b = 0; b < 2; ++b)
        multiply_add_16<T>(s[h][b], q[h].a[0], k[h].a[0][b], k[h].a[0][b + 2]);
    // As right factors they are pairs of other registers. For two heads it takes no more to compare again than to move
    // them.
    const auto* const volatile_codes = reinterpret_cast<const volatile std::uint32_t*>(all_codes);
    const std::uint32_t again[2] = {volatile_codes[place.g], volatile_codes[place.g + 8]};
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products[heads];
      if constexpr (heads == 2) one_hot_rows(again, axis, own[axis]);
      multiply_axis<true>(group().table_q, 0, q, axis, moves, products);
#pragma unroll
      for (int h = 0; h < heads; ++h)
        add_axis<leaves>(products[h], own[axis], axis, false, h, left, s[h]);
    }
  }
  /// Computes a unit whose rows are there.
  __device__ __forceinline__ void attend_unit(const std::byte* unit, int slot,
                                              heads_state& state) const {
    const auto* all_codes = reinterpret_cast<const std::uint32_t*>(unit + layout::unit_codes);
    const std::uint32_t marks = *reinterpret_cast<const std::uint32_t*>(unit + layout::unit_marks);
    const std::uint32_t codes[2] = {all_codes[place.g], all_codes[place.g + 8]};
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[1], state.length, place.t)};
    float s[heads][2][4];
    score_unit(state, slot, all_codes, moves, s);
    const int count = 31 - __clz(static_cast<int>(marks));
    bool wanted[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      wanted[i] = row < count;
      const int2 window = base::window_of(marks, row);
      const std::uint32_t own = (bits_from(window.x) & ~bits_from(window.y)) >> (2 * place.t);
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        s[h][0][2 * i] = (own & 1u) != 0 ? s[h][0][2 * i] : -INFINITY;
        s[h][0][2 * i + 1] = (own & 2u) != 0 ? s[h][0][2 * i + 1] : -INFINITY;
        s[h][1][2 * i] = (own & 0x100u) != 0 ? s[h][1][2 * i] : -INFINITY;
        s[h][1][2 * i + 1] = (own & 0x200u) != 0 ? s[h][1][2 * i + 1] : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float largest = quad_max(lane_max(s[h], i));
        // Of rows behind the last, finite.
        const float offset = -fmaxf(largest, -1e30f) * log2_e;
        state.of_head[h].softmax.offset[i] = offset;
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            s[h][b][2 * i + j] = exp2_fast(fmaf(s[h][b][2 * i + j], log2_e, offset));
      }
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      auto& own = state.of_head[h];
      const weight_fragment<T> weights(s[h]);
      std::uint32_t b[4];
      load_values(slot, h, b);
      multiply_16<T>(own.softmax.sum, weights.a, ones, ones);
      multiply_16<T>(own.o[0], weights.a, b[0], b[1]);
      multiply_16<T>(own.o[1], weights.a, b[2], b[3]);
    }
    if (state.has_values) {
      // Read again: to keep the distances of all axes until here takes registers that there are not.
      const auto* again = reinterpret_cast<const volatile std::uint32_t*>(all_codes);
      const std::uint32_t back[2] = {moves_of(again[place.g], state.length, place.t),
                                     moves_of(again[place.g + 8], state.length, place.t)};
      typename base::key_places keys;
      this->find_keys(again[place.lane % 16], keys);
      weight_fragment<half> weights[heads];
#pragma unroll
      for (int h = 0; h < heads; ++h) weights[h] = weight_fragment<half>(s[h]);
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        axis_cells cells[heads];
        this->template add_cells<true>(weights, keys[axis], cells);
        add_axis_values(cells, axis, back, state);
      }
    }
    store_heads(reinterpret_cast<const std::int32_t*>(unit + layout::unit_tokens), wanted, state);
  }
  /// Normalises and stores 16 rows.
  __device__ __forceinline__ void store_heads(const std::int32_t* tokens, const bool (&wanted)[2],
                                              heads_state& state) const {
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      auto& own = state.of_head[h];
      const float by[2] = {reciprocal(own.softmax.sum[0]), reciprocal(own.softmax.sum[2])};
      scale_rows(by, own.o);
    }
    const bool odd = place.t % 2 == 1;
    const bool column = odd <= (problem.head_dim > 8);
    bool bad = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t words[heads][2], zero = 0;
#pragma unroll
      for (int h = 0; h < heads; ++h)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const auto& o = state.of_head[h].o[b];
          words[h][b] = pack<T>(o[2 * i], o[2 * i + 1]);
          const std::uint32_t nothing = 0;
          *reinterpret_cast<pair*>(&zero) =
              __hfma2(*reinterpret_cast<const pair*>(&words[h][b]),
                      *reinterpret_cast<const pair*>(&nothing), *reinterpret_cast<pair*>(&zero));
        }
      bad = bad || (wanted[i] && (zero & 0x7fff7fffu) != 0);
      const std::int32_t token = tokens[place.g + 8 * i];
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        // Neighbouring lanes swap, so that each has four columns.
        const std::uint32_t other = __shfl_xor_sync(all, odd ? words[h][0] : words[h][1], 1);
        std::byte* target = const_cast<std::byte*>(pointer(place.t, results + h));
        asm("mad.wide.s32 %0, %1, %2, %0;"
            : "+l"(target)
            : "r"(token),
              "r"(static_cast<std::int32_t>(problem.out.token_stride * int{sizeof(T)})));
        if (wanted[i] && column)
          *reinterpret_cast<uint2*>(target) = {odd ? other : words[h][0],
                                               odd ? words[h][1] : other};
      }
    }
    if (bad) *this->counter_of(base::bad_rows) = 1;
    if (problem.lse != nullptr) {
      // The quad's lanes have rows g and g + 8 of the first head, then of the second one.
      const auto& first = state.of_head[0].softmax;
      const auto& second = state.of_head[heads - 1].softmax;
      const bool is_first = place.t < 2;
      const float sum = odd ? (is_first ? first.sum[2] : second.sum[2])
                            : (is_first ? first.sum[0] : second.sum[0]);
      const float offset = odd ? (is_first ? first.offset[1] : second.offset[1])
                               : (is_first ? first.offset[0] : second.offset[0]);
      std::byte* target = const_cast<std::byte*>(pointer(place.t, lse));
      asm("mad.wide.s32 %0, %1, %2, %0;"
          : "+l"(target)
          : "r"(tokens[place.g + 8 * (place.t & 1)]),
            "r"(static_cast<std::int32_t>(problem.lse_token_stride * 4)));
      if ((odd ? wanted[1] : wanted[0]) && place.t < row_parts)
        *reinterpret_cast<float*>(target) = (__log2f(sum) - offset) * ln_2;
    }
  }
  /// An axis of weights by cell, of both heads, added to `cells`; of T other than half they have to be converted.
  /// \param keys where their one-hot rows are.
  template <bool First>
  __device__ __forceinline__ void add_cells(const weight_fragment<half> (&weights)[heads],
                                            std::uint32_t keys, axis_cells (&cells)[heads]) const {
    axis_cells columns;
    base::load_columns(keys, columns);
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int word = 0; word < cell_words; ++word) {
        std::uint32_t sums[2];
        multiply_half(sums, weights[h].a, columns[0][word], columns[1][word],
                      First ? 0 : cells[h][0][word], First ? 0 : cells[h][1][word]);
        cells[h][0][word] = sums[0], cells[h][1][word] = sums[1];
      }
  }
  /// Adds an axis of weights by cell times Tv.
  __device__ __forceinline__ void add_axis_values(axis_cells (&cells)[heads], int axis,
                                                  const std::uint32_t (&moves)[2],
                                                  heads_state& state) const {
    if constexpr (!std::is_same_v<T, half>) {
#pragma unroll
      for (auto& of_head : cells)
#pragma unroll
        for (auto& of_row : of_head)
#pragma unroll
          for (std::uint32_t& word : of_row) {
            const float2 both = __half22float2(*reinterpret_cast<const half2*>(&word));
            word = pack<T>(both.x, both.y);
          }
    }
    std::uint32_t by_row[heads][2][row_words];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (heads == 2)
        row_shift_of_heads(moves[i], axis)
            .to_rows(cells[0][i], cells[1][i], by_row[0][i], by_row[1][i]);
      else
        row_shift{moves[i] >> (8 * axis)}.to_rows(cells[0][i], by_row[0][i]);
    }
#pragma unroll
    for (int h = 0; h < heads; ++h) this->add_head_table(by_row[h], axis, h, state.of_head[h].o);
  }
};

}  // namespace winnow::detail
