// SPDX-License-Identifier: Apache-2.0
/// \file
/// Whole windows: cubic windows of 17 to 32 tokens, whose rows are their keys, of one head.
///
/// Keys are multiplied with Tk once. Their parts of the logits of all rows are kept as halves, which are the left factors
/// of products with a unit matrix that add them to the rest. Then 16 rows at a time have all their logits before the
/// first weight, as in contextual_units.cuh. Both groups of 16 keys, and of 16 rows, are a loop: straight code for them
/// would come slowly, as a warp meets few windows. K and V of the next window arrive meanwhile, and its q when this one's
/// has been used.
///
/// Only of an odd number of heads. Two heads at a time, one after the other or both at once, lost 5 to 15 %: a third
/// loop beside those of tiles and units has more instructions than the cache has room for.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_units_tiles.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_whole : contextual_units_tiles<T, Heads> {
  using base = contextual_units_tiles<T, Heads>;
  using base::all;
  using base::copy_part;
  using base::group;
  using base::place;
  using base::problem;
  using typename base::axis_cells;
  using typename base::heads_state;
  using typename base::layout;
  using typename base::rows_of_head;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  static constexpr int groups = 2;  ///< of 16 rows, or keys
  struct window_place {
    int first, count;    ///< the window's first slot, and its tokens; there is none of 0
    int set;             ///< of the rows of K and V
    std::int32_t token;  ///< of this lane's row
  };
  /// Logits of 16 rows over the scale.
  using logits = float[groups][2][4];
  /// The keys' part of them, as left factors of halves.
  using key_sides = std::uint32_t[groups][4];

  __device__ __forceinline__ void take_window(window_place& next) const {
    const int index = this->reserve(base::next_whole, 1);
    next.count = 0;
    if (index >= this->whole_count()) return;
    const int2 window = this->whole_at(index);
    next.first = window.x, next.count = window.y;
    next.set ^= 1;
    next.token = group().order[next.first + min(place.lane, next.count - 1)];
  }

  /// 16 rows. \param which K or V.
  static __device__ __forceinline__ int keys_at(int set, int which, int group_of_16) {
    return layout::whole_keys + ((set * 2 + which) * groups + group_of_16) * layout::tile_bytes;
  }
  static __device__ __forceinline__ int queries_at(int group_of_16) {
    return layout::whole_queries + group_of_16 * layout::tile_bytes;
  }
  /// Rows of the window, and zeros behind the last.
  __device__ __forceinline__ void copy_window(const window_place& next, int target, int which,
                                              std::int64_t stride) const {
    const auto lane = static_cast<unsigned>(in_register(place.lane));
    const unsigned part = lane % 2;
    const int row = static_cast<int>(lane / 2);
    const std::byte* const rows = this->pointer(static_cast<int>(part), which);
    const bool column = this->has_part();
    target += row * layout::row_bytes + static_cast<int>((part ^ lane >> 3) % 2 * 16);
#pragma unroll
    for (int i = 0; i < groups; ++i) {
      const std::int32_t token = __shfl_sync(all, next.token, 16 * i + row);
      copy_part(target + i * layout::tile_bytes, rows, token, stride,
                column && row + 16 * i < next.count);
    }
  }
  __device__ __forceinline__ void request_keys(const window_place& next) const {
    copy_window(next, keys_at(next.set, 0, 0), base::keys_, problem.k.token_stride);
    copy_window(next, keys_at(next.set, 1, 0), base::values, problem.v.token_stride);
    copy_element_async(
        this->own_address() + static_cast<std::uint32_t>(layout::whole_codes) +
            4 * static_cast<std::uint32_t>(next.set * layout::longest_whole + place.lane),
        group().positions + next.first + place.lane, place.lane < next.count);
  }
  __device__ __forceinline__ void request_queries(const window_place& next) const {
    copy_window(next, layout::whole_queries, base::queries, problem.q.token_stride);
  }
  __device__ __forceinline__ const std::uint32_t* codes_of(const window_place& now) const {
    return at<const std::uint32_t>(layout::whole_codes) + now.set * layout::longest_whole;
  }

  /// 16 keys times Tk: their part of the logits of each 16 rows.
  __device__ __forceinline__ void score_keys(const window_place& now, int keys,
                                             const heads_state& state,
                                             std::uint32_t (&sides)[groups][4]) const {
    const std::uint32_t* const codes = codes_of(now) + place.g;
    const std::uint32_t moves[2] = {moves_of(codes[16 * keys], state.length, place.t),
                                    moves_of(codes[16 * keys + 8], state.length, place.t)};
    rows_of_head k[1];
    this->load_left(at<const std::byte>(keys_at(now.set, 0, keys)), k[0]);
    float s[groups][2][4];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products[1];
      this->template multiply_axis<false>(group().table_k, 1, k, axis, moves, products);
#pragma unroll
      for (int r = 0; r < groups; ++r) {
        const std::uint32_t of_rows[2] = {codes[16 * r], codes[16 * r + 8]};
        axis_cells own;
        this->one_hot_rows(of_rows, axis, own);
        base::add_axis(own, products[0], axis == 0, s[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < groups; ++r) {
      const weight_fragment<half> side(s[r]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sides[r][i] = side.a[i];
    }
  }
  /// The logits of 16 rows over the scale, without masks. Those of the rows behind them come next.
  __device__ __forceinline__ void score_rows_of(const window_place& now, int r,
                                                const heads_state& state,
                                                key_sides (&sides)[groups], logits& s) const {
    const std::uint32_t* const codes = codes_of(now) + place.g;
    const std::uint32_t moves[2] = {moves_of(codes[16 * r], state.length, place.t),
                                    moves_of(codes[16 * r + 8], state.length, place.t)};
    // A block of the unit matrix.
    const std::uint32_t unit =
        one_hot(position_pair(2 * place.t, 2 * place.t + 1), position_pair(place.g, place.g));
    rows_of_head q[1];
    this->load_left(at<const std::byte>(queries_at(r)), q[0]);
#pragma unroll
    for (int keys = 0; keys < groups; ++keys) {
      rows_of_head k;
      this->load_left(at<const std::byte>(keys_at(now.set, 0, keys)), k);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        multiply_half_8(s[keys][b], sides[0][keys][2 * b], sides[0][keys][2 * b + 1], unit);
#pragma unroll
        for (float& sum : s[keys][b]) sum *= state.inverse_scale;
        multiply_add_16<T>(s[keys][b], q[0].a[0], k.a[0][b], k.a[0][b + 2]);
      }
    }
#pragma unroll
    for (int keys = 0; keys < groups; ++keys)
#pragma unroll
      for (int i = 0; i < 4; ++i) sides[0][keys][i] = sides[1][keys][i];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products[1];
      this->template multiply_axis<true>(group().table_q, 0, q, axis, moves, products);
#pragma unroll
      for (int keys = 0; keys < groups; ++keys) {
        const std::uint32_t of_keys[2] = {codes[16 * keys], codes[16 * keys + 8]};
        axis_cells columns;
        this->one_hot_rows(of_keys, axis, columns);
        base::add_axis(products[0], columns, false, s[keys]);
      }
    }
  }
  /// Logits of 16 rows become weights, and their results are stored.
  __device__ __forceinline__ void finish_rows_of(const window_place& now, int r, logits& s,
                                                 heads_state& state) const {
    const float scale = problem.scale * log2_e;
    const int key = 2 * place.t;
    auto& own = state.of_head[0];
    float largest[2] = {-1e30f, -1e30f};
#pragma unroll
    for (int keys = 0; keys < groups; ++keys)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (keys > 0)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (key + 16 + 8 * b + j >= now.count) s[keys][b][j] = s[keys][b][2 + j] = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2; ++i)
          largest[i] = fmaxf(largest[i], fmaxf(s[keys][b][2 * i], s[keys][b][2 * i + 1]));
      }
#pragma unroll
    for (int i = 0; i < 2; ++i) own.softmax.offset[i] = -quad_max(largest[i]) * scale;
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    weight_fragment<half> by_cell[groups][1];
#pragma unroll
    for (int keys = 0; keys < groups; ++keys) {
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[keys][b][e] = exp2_fast(fmaf(s[keys][b][e], scale, own.softmax.offset[e / 2]));
      const weight_fragment<T> weights(s[keys]);
      by_cell[keys][0] = weight_fragment<half>(s[keys]);
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
    if (state.has_values) add_values_of(now, r, by_cell, state);
    const bool wanted[2] = {16 * r + place.g < now.count, 16 * r + place.g + 8 < now.count};
    this->store_heads(at<const std::int32_t>(layout::whole_tokens) + 16 * r, wanted, state);
  }
  /// Adds weights by cell times Tv.
  __device__ __forceinline__ void add_values_of(const window_place& now, int r,
                                                const weight_fragment<half> (&weights)[groups][1],
                                                heads_state& state) const {
    const std::uint32_t* const codes = codes_of(now);
    const std::uint32_t moves[2] = {moves_of(codes[16 * r + place.g], state.length, place.t),
                                    moves_of(codes[16 * r + place.g + 8], state.length, place.t)};
    uint2 far[groups][2];
#pragma unroll
    for (int keys = 0; keys < groups; ++keys)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        far[keys][i] = *reinterpret_cast<const uint2*>(codes + 16 * keys + 8 * i + 2 * place.t);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells cells[1];
      this->template add_cells<true>(weights[0], far[0], axis, cells);
      this->template add_cells<false>(weights[1], far[1], axis, cells);
      this->add_axis_values(cells, axis, moves, state);
    }
  }

  /// Windows of the block's list, as long as there are any.
  __device__ __forceinline__ void run_whole() const {
    window_place next{0, 0, 0, 0};
    take_window(next);
    if (next.count == 0) return;
    __syncwarp();  // all lanes have done with the tiles, whose memory this was
    request_keys(next);
    request_queries(next);
    commit_copies();
    heads_state state = this->begin_state();
#pragma unroll 1
    while (next.count > 0) {
      const window_place now = next;
      wait_for_copies<0>();
      __syncwarp();  // what all lanes asked for is there, and they have done with the window before
      at<std::int32_t>(layout::whole_tokens)[place.lane] = now.token;
      take_window(next);
      key_sides sides[groups] = {};
#pragma unroll 1
      for (int keys = 0; keys < groups; ++keys) {
        std::uint32_t own[groups][4];
        score_keys(now, keys, state, own);
#pragma unroll
        for (int r = 0; r < groups; ++r)
#pragma unroll
          for (int i = 0; i < 4; ++i) sides[r][0][i] = sides[r][1][i], sides[r][1][i] = own[r][i];
      }
      if (next.count > 0) request_keys(next);
      commit_copies();
#pragma unroll 1
      for (int r = 0; r < groups; ++r) {
        logits s;
        score_rows_of(now, r, state, sides, s);
        __syncwarp();  // all lanes have read q, and what tokens they need is there
        if (r == groups - 1) {
          if (next.count > 0) request_queries(next);
          commit_copies();
        }
        finish_rows_of(now, r, s, state);
      }
    }
  }
};

}  // namespace winnow::detail
