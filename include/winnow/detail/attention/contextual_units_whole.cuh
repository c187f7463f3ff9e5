// SPDX-License-Identifier: Apache-2.0
/// \file
/// Whole windows: cubic windows of 17 to 64 tokens (17 to 32 of an odd number of heads), one head of a window each, whose
/// rows are their keys.
///
/// Keys are multiplied with Tk once. Their parts of the logits of all rows are kept as halves, up to 64 registers of a
/// lane, which are the left factors of products with a unit matrix that add them to the rest. Then 16 rows at a time
/// have all their logits before the first weight, as in contextual_units.cuh. There are registers for one head. A tile
/// of two heads, which multiplies all keys of its window again, takes half as many instructions more.
///
/// Rows and keys are loops: straight code for all of them would come slowly, as a warp meets few windows. K and V of the
/// next window arrive meanwhile, and its q when this one's has been used.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_units_tiles.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_whole : contextual_units_tiles<T, Heads> {
  using base = contextual_units_tiles<T, Heads>;
  using base::all;
  using base::copy_part;
  using base::factor_of_head;
  using base::group;
  using base::heads;
  using base::place;
  using base::problem;
  using typename base::axis_cells;
  using typename base::factor;
  using typename base::head_state;
  using typename base::heads_state;
  using typename base::layout;
  using typename base::rows_of_head;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  static constexpr int most = layout::most_groups;  ///< of 16 rows, or keys
  static constexpr int lane_rows = (most + 1) / 2;        ///< whose tokens a lane has
  struct window_place {
    int first, count;  ///< the window's first slot, and its tokens; there is none of 0
    int head;          ///< of the block's
    int set;           ///< of the rows of K and V
    std::int32_t tokens[lane_rows];  ///< of rows lane, lane + 32
  };
  /// Logits of 16 rows over the scale.
  using logits = float[most][2][4];
  /// The keys' part of them, as left factors of halves.
  using key_sides = std::uint32_t[most][4];

  __device__ __forceinline__ void take_window(window_place& next) const {
    const int index = this->reserve(base::next_whole, 1);
    next.count = 0;
    if (index >= this->whole_count() * heads) return;
    const int2 window = this->whole_at(index / heads);
    next.first = window.x, next.count = window.y;
    next.head = index % heads;
    next.set ^= 1;
#pragma unroll
    for (int i = 0; i < lane_rows; ++i)
      next.tokens[i] = group().order[next.first + min(place.lane + 32 * i, next.count - 1)];
  }

  /// 16 rows. \param which K or V.
  static __device__ __forceinline__ int keys_at(int set, int which, int group_of_16) {
    return layout::whole_keys + ((set * 2 + which) * most + group_of_16) * layout::tile_bytes;
  }
  static __device__ __forceinline__ int queries_at(int group_of_16) {
    return layout::whole_queries + group_of_16 * layout::tile_bytes;
  }
  /// Rows of the window, and zeros behind the last.
  __device__ __forceinline__ void copy_window(const window_place& next, int target, int which,
                                              std::int64_t stride) const {
    const int lane = in_register(place.lane);
    const int row = lane / 2, part = lane % 2;
    const std::byte* const rows = this->pointer(next.head * 2 + part, which);
    const bool column = this->has_part();
    target += row * layout::row_bytes + (part ^ row >> 2) % 2 * 16;
#pragma unroll
    for (int i = 0; i < most; ++i) {
      const std::int32_t token = __shfl_sync(all, next.tokens[i / 2], i % 2 * 16 + row);
      copy_part(target + i * layout::tile_bytes, rows, token, stride,
                column && row + 16 * i < next.count);
    }
  }
  __device__ __forceinline__ void request_keys(const window_place& next) const {
    copy_window(next, keys_at(next.set, 0, 0), base::keys_, problem.k.token_stride);
    copy_window(next, keys_at(next.set, 1, 0), base::values, problem.v.token_stride);
#pragma unroll
    for (int i = 0; i < lane_rows; ++i) {
      const int row = place.lane + 32 * i;
      copy_element_async(this->own_address() + static_cast<std::uint32_t>(layout::whole_codes) +
                             4 * static_cast<std::uint32_t>(next.set * layout::longest_whole + row),
                         group().positions + next.first + row, row < next.count);
    }
  }
  __device__ __forceinline__ void request_queries(const window_place& next) const {
    copy_window(next, layout::whole_queries, base::queries, problem.q.token_stride);
  }
  __device__ __forceinline__ const std::uint32_t* codes_of(const window_place& now) const {
    return at<const std::uint32_t>(layout::whole_codes) + now.set * layout::longest_whole;
  }

  /// An axis of products by cell.
  template <bool Backwards>
  __device__ __forceinline__ void multiply_own(const factor& table, const rows_of_head& left,
                                               int axis, const std::uint32_t (&moves)[2],
                                               axis_cells& cells) const {
    std::uint32_t by_row[1][2][row_words];
    table.template multiply<Backwards>(left, axis, false, by_row);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row_shift{moves[i] >> (8 * axis)}.to_cells(by_row[0][i], cells[i], place.t);
      if (axis == 0 && base::has_large(left, i)) cells[i][0] = nan_halves;
    }
  }
  /// 16 keys times Tk: their part of the logits of each 16 rows.
  __device__ __forceinline__ void score_keys(const window_place& now, int keys,
                                             const heads_state& state,
                                             std::uint32_t (&sides)[most][4]) const {
    const std::uint32_t* const codes = codes_of(now) + place.g;
    const std::uint32_t moves[2] = {moves_of(codes[16 * keys], state.length, place.t),
                                    moves_of(codes[16 * keys + 8], state.length, place.t)};
    rows_of_head k;
    this->load_left(at<const std::byte>(keys_at(now.set, 0, keys)), k);
    const auto table = factor_of_head(group().table_k, 1, now.head);
    float s[most][2][4];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products;
      multiply_own<false>(table, k, axis, moves, products);
#pragma unroll
      for (int r = 0; r < most; ++r) {
        const std::uint32_t of_rows[2] = {codes[16 * r], codes[16 * r + 8]};
        axis_cells own;
        this->one_hot_rows(of_rows, axis, own);
        base::add_axis(own, products, axis == 0, s[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < most; ++r) {
      const weight_fragment<half> side(s[r]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sides[r][i] = side.a[i];
    }
  }
  /// The logits of 16 rows over the scale, without masks. Those of the rows behind them come next.
  __device__ __forceinline__ void score_rows_of(const window_place& now, int groups, int r,
                                                const heads_state& state,
                                                key_sides (&sides)[most], logits& s) const {
    const std::uint32_t* const codes = codes_of(now) + place.g;
    const std::uint32_t moves[2] = {moves_of(codes[16 * r], state.length, place.t),
                                    moves_of(codes[16 * r + 8], state.length, place.t)};
    // A block of the unit matrix.
    const std::uint32_t unit = one_hot(position_pair(2 * place.t, 2 * place.t + 1),
                                       position_pair(place.g, place.g));
    rows_of_head q;
    this->load_left(at<const std::byte>(queries_at(r)), q);
    for_groups(groups, [&](auto first) {
#pragma unroll
      for (int keys = decltype(first)::value; keys < decltype(first)::value + 2; ++keys) {
        rows_of_head k;
        this->load_left(at<const std::byte>(keys_at(now.set, 0, keys)), k);
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          multiply_half_8(s[keys][b], sides[0][keys][2 * b], sides[0][keys][2 * b + 1], unit);
#pragma unroll
          for (float& sum : s[keys][b]) sum *= state.inverse_scale;
          multiply_add_16<T>(s[keys][b], q.a[0], k.a[0][b], k.a[0][b + 2]);
        }
      }
    });
#pragma unroll
    for (int next = 0; next + 1 < most; ++next)
#pragma unroll
      for (int keys = 0; keys < most; ++keys)
#pragma unroll
        for (int i = 0; i < 4; ++i) sides[next][keys][i] = sides[next + 1][keys][i];
    const auto table = factor_of_head(group().table_q, 0, now.head);
    axis_cells products[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) multiply_own<true>(table, q, axis, moves, products[axis]);
    for_groups(groups, [&](auto first) {
#pragma unroll
      for (int axis = 0; axis < 3; ++axis)
#pragma unroll
        for (int keys = decltype(first)::value; keys < decltype(first)::value + 2; ++keys) {
          const std::uint32_t of_keys[2] = {codes[16 * keys], codes[16 * keys + 8]};
          axis_cells columns;
          this->one_hot_rows(of_keys, axis, columns);
          base::add_axis(products[axis], columns, false, s[keys]);
        }
    });
  }
  /// For the first two groups, and the others if there are any.
  template <class Function>
  static __device__ __forceinline__ void for_groups(int groups, const Function& function) {
    function(std::integral_constant<int, 0>());
    if constexpr (most > 2)
      if (groups > 2) function(std::integral_constant<int, 2>());
  }
  /// Logits of 16 rows become weights, and their results are stored.
  __device__ __forceinline__ void finish_rows_of(const window_place& now, int groups, int r,
                                                 logits& s, const heads_state& state) const {
    const float scale = problem.scale * log2_e;
    const int key = 2 * place.t;
    head_state own;
    float largest[2] = {-1e30f, -1e30f};
    for_groups(groups, [&](auto first) {
#pragma unroll
      for (int keys = decltype(first)::value; keys < decltype(first)::value + 2; ++keys)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          if (keys > 0)
#pragma unroll
            for (int j = 0; j < 2; ++j)
              if (key + 16 * keys + 8 * b + j >= now.count)
                s[keys][b][j] = s[keys][b][2 + j] = -INFINITY;
#pragma unroll
          for (int i = 0; i < 2; ++i)
            largest[i] = fmaxf(largest[i], fmaxf(s[keys][b][2 * i], s[keys][b][2 * i + 1]));
        }
    });
#pragma unroll
    for (int i = 0; i < 2; ++i) own.softmax.offset[i] = -quad_max(largest[i]) * scale;
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    weight_fragment<half> by_cell[most] = {};
    for_groups(groups, [&](auto first) {
#pragma unroll
      for (int keys = decltype(first)::value; keys < decltype(first)::value + 2; ++keys) {
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            s[keys][b][e] = exp2_fast(fmaf(s[keys][b][e], scale, own.softmax.offset[e / 2]));
        const weight_fragment<T> weights(s[keys]);
        by_cell[keys] = weight_fragment<half>(s[keys]);
        std::uint32_t v[4];
        this->load_values(keys_at(now.set, 1, keys), v);
        const auto add = [&](float(&sum)[4], std::uint32_t b0, std::uint32_t b1) {
          if (keys == 0)
            multiply_16<T>(sum, weights.a, b0, b1);
          else
            multiply_add_16<T>(sum, weights.a, b0, b1);
        };
        add(own.softmax.sum, ones, ones);
        add(own.o[0], v[0], v[2]);
        add(own.o[1], v[1], v[3]);
      }
    });
    if (state.has_values) add_values_of(now, groups, r, by_cell, state.length, own);
    const bool wanted[2] = {16 * r + place.g < now.count, 16 * r + place.g + 8 < now.count};
    this->store_head(at<const std::int32_t>(layout::whole_tokens) + 16 * r, wanted, now.head, own);
  }
  /// Adds weights by cell times Tv.
  __device__ __forceinline__ void add_values_of(const window_place& now, int groups, int r,
                                                const weight_fragment<half> (&weights)[most],
                                                int length, head_state& own) const {
    const std::uint32_t* const codes = codes_of(now);
    const std::uint32_t moves[2] = {moves_of(codes[16 * r + place.g], length, place.t),
                                    moves_of(codes[16 * r + place.g + 8], length, place.t)};
    axis_cells cells[3];
    for_groups(groups, [&](auto first) {
#pragma unroll
      for (int keys = decltype(first)::value; keys < decltype(first)::value + 2; ++keys) {
        const uint2 far[2] = {
            *reinterpret_cast<const uint2*>(codes + 16 * keys + 2 * place.t),
            *reinterpret_cast<const uint2*>(codes + 16 * keys + 8 + 2 * place.t)};
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
          axis_cells columns;
          this->one_hot_columns(far, axis, columns);
#pragma unroll
          for (int word = 0; word < cell_words; ++word) {
            std::uint32_t sums[2];
            multiply_half(sums, weights[keys].a, columns[0][word], columns[1][word],
                          keys == 0 ? 0 : cells[axis][0][word],
                          keys == 0 ? 0 : cells[axis][1][word]);
            cells[axis][0][word] = sums[0], cells[axis][1][word] = sums[1];
          }
        }
      }
    });
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      base::to_table_type(cells[axis]);
      std::uint32_t by_row[2][row_words];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        row_shift{moves[i] >> (8 * axis)}.to_rows(cells[axis][i], by_row[i]);
      this->add_table_rows(by_row, axis, now.head, own.o);
    }
  }

  /// Windows of the block's list, as long as there are any.
  __device__ __forceinline__ void run_whole() const {
    window_place next{0, 0, 0, 0, {}};
    take_window(next);
    if (next.count == 0) return;
    __syncwarp();  // all lanes have done with the tiles, whose memory this was
    request_keys(next);
    request_queries(next);
    commit_copies();
    const heads_state state = this->begin_state();
#pragma unroll 1
    while (next.count > 0) {
      const window_place now = next;
      const int groups = (now.count + 15) / 16;
      wait_for_copies<0>();
      __syncwarp();  // what all lanes asked for is there, and they have done with the window before
#pragma unroll
      for (int i = 0; i < lane_rows; ++i)
        at<std::int32_t>(layout::whole_tokens)[place.lane + 32 * i] = now.tokens[i];
      take_window(next);
      key_sides sides[most] = {};
#pragma unroll 1
      for (int keys = groups - 1; keys >= 0; --keys) {
        std::uint32_t own[most][4];
        score_keys(now, keys, state, own);
#pragma unroll
        for (int r = 0; r < most; ++r)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int behind = most - 1; behind > 0; --behind)
              sides[r][behind][i] = sides[r][behind - 1][i];
            sides[r][0][i] = own[r][i];
          }
      }
      if (next.count > 0) request_keys(next);
      commit_copies();
#pragma unroll 1
      for (int r = 0; r < groups; ++r) {
        logits s = {};  // else what there may not be would count as in use all along
        score_rows_of(now, groups, r, state, sides, s);
        __syncwarp();  // all lanes have read q, and what tokens they need is there
        if (r == groups - 1) {
          if (next.count > 0) request_queries(next);
          commit_copies();
        }
        finish_rows_of(now, groups, r, s, state);
      }
    }
  }
};

}  // namespace winnow::detail
