// SPDX-License-Identifier: Apache-2.0
/// \file
/// Tiles of 16 rows in cubic windows that are longer than a unit, two heads at a time: they walk their window's keys in
/// groups of 16, whose products with Tk stay in registers, and keep a running softmax. A group's rows arrive while
/// the one before is attended to.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_units.cuh"
#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_tiles : contextual_units<T, Heads> {
  using base = contextual_units<T, Heads>;
  using base::copy_part;
  using base::group;
  using base::heads;
  using base::keys_;
  using base::passes;
  using base::place;
  using base::problem;
  using base::queries;
  using base::rows_at;
  using base::rows_of_pass;
  using base::values;
  using typename base::axis_cells;
  using typename base::heads_state;
  using typename base::layout;
  using typename base::rows_of_head;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Sums of weights by cell are halves, so they meet Tv before they could exceed those: weights are at most
  /// 2^(slack + 1 - lag), and 512 times 2⁶ or 128 times 2⁸ is a half. In short windows that is when all keys have been
  /// met, and others may exceed the first group's largest logit by so much that it hardly ever is raised. Its weight is
  /// 2^-lag, and n·2⁻²⁵ over that is what rounding n weights to half can lose.
  struct weight_limits {
    float slack, lag;
  };
  static __device__ __forceinline__ weight_limits limits_of(bool are_short) {
    return are_short ? weight_limits{10.0f, 5.0f} : weight_limits{4.0f, -3.0f};
  }
  static constexpr int short_window = 512, groups_of_sums = 8;

  /// Where a warp is among the groups of keys of its tiles.
  struct tile_place {
    int row, row_end;  ///< the tile's; there is none where they are the same
    int key, end;      ///< the group's first key, and the window's end
    int first;         ///< is it of the tile's groups? A bool takes more instructions
    int slot;          ///< of the group
    int tile;          ///< of the rows
    std::int32_t key_tokens[base::passes], row_tokens[base::passes];  ///< that this lane copies
  };
  struct tile_state {
    axis_cells cells[3][heads];  ///< weights by cell, rounded to half with every group
  };

  __device__ __forceinline__ void take_tile(tile_place& next) const {
    const int index = this->reserve(base::next_tile, 1);
    const int of_long = this->long_count();
    const int count = of_long + this->tile_count();
    next.row = next.row_end = 0;
    if (index >= count) return;
    const bool is_long = index < of_long;
    const int4 tile = this->tile_at(is_long, is_long ? index : index - of_long);
    next.row = tile.x, next.row_end = tile.y;
    next.key = tile.z, next.end = tile.w;
    next.first = 1;
    next.tile ^= 1;
  }
  /// Reads the tokens of a tile's first group, and those of the tile.
  __device__ __forceinline__ void load_tokens(tile_place& next) const {
    if (next.first == 0) return;
    const std::int32_t* order = group().order;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = this->own_row() + rows_of_pass * pass;
      next.key_tokens[pass] = order[min(next.key + row, next.end - 1)];
      next.row_tokens[pass] = order[min(next.row + row, next.row_end - 1)];
    }
  }
  /// Those of a later one have come with the group before.
  __device__ __forceinline__ void find_tokens(const tile_place& now, tile_place& next) const {
    if (next.first != 0) return;
    const std::uint32_t own = this->slot_at(now.slot) + 4 * this->own_row();
    next.key_tokens[0] = static_cast<std::int32_t>(load_shared_word<layout::later_token>(own));
    if constexpr (passes == 2)
      next.key_tokens[passes - 1] =
          static_cast<std::int32_t>(load_shared_word<layout::later_token + 4 * rows_of_pass>(own));
  }
  /// Asks for a group of keys, and for the rows of a tile with its first one.
  __device__ __forceinline__ void request_group(const tile_place& next) const {
    const int target = this->own_part();
    const bool column = this->has_part();
    const std::byte* const keys = this->source(keys_);
    const std::byte* const all_values = this->source(values);
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = this->own_row() + rows_of_pass * pass;
      const bool valid = column && next.key + row < next.end;
      const int own = target + rows_of_pass * pass * layout::row_bytes;
      copy_part(rows_at(next.slot, keys_, 0) + own, keys, next.key_tokens[pass],
                problem.k.token_stride, valid);
      copy_part(rows_at(next.slot, values, 0) + own, all_values, next.key_tokens[pass],
                problem.v.token_stride, valid);
    }
    const auto lane = static_cast<std::uint32_t>(place.lane);
    // Half of the lanes copy positions, the others the next group's tokens.
    const auto* const source =
        lane < 16 ? group().positions : reinterpret_cast<const std::uint32_t*>(group().order);
    copy_element_async(this->slot_at(next.slot) + layout::key_code + 4 * lane,
                       source + next.key + lane, next.key + place.lane < next.end);
    if (next.first == 0) return;
    const std::byte* const rows = this->source(queries);
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = this->own_row() + rows_of_pass * pass;
      copy_part(rows_at(next.tile, queries, 0) + target + rows_of_pass * pass * layout::row_bytes,
                rows, next.row_tokens[pass], problem.q.token_stride,
                column && next.row + row < next.row_end);
    }
    const bool has_row = next.row + place.lane < next.row_end;
    copy_async_if<4>(lane < 16, this->slot_at(next.tile) + layout::row_code + 4 * lane,
                     group().positions + next.row + lane, has_row);
    copy_async_if<4>(lane < 16, this->slot_at(next.tile) + layout::row_token + 4 * lane,
                     group().order + next.row + lane, has_row);
  }
  __device__ __forceinline__ void advance(tile_place& next) const {
    next.first = 0;
    next.key += 16;
    next.slot ^= 1;
    if (next.key >= next.end) take_tile(next);
    load_tokens(next);
  }

  /// Of a lane: an axis of the rows' products, as the left factor of 16 cells, then what is left of all axes.
  __device__ __forceinline__ uint4& sixteen_cells_at(int h, int axis) const {
    return at<uint4>(layout::products + h * layout::products_bytes + axis * 512)[place.lane];
  }
  __device__ __forceinline__ uint4& cells_left_at(int h) const {
    return sixteen_cells_at(h, 3);
  }
  __device__ __forceinline__ uint2& eight_cells_at(int h) const {
    return at<uint2>(layout::products + h * layout::products_bytes + 4 * 512)[place.lane];
  }
  /// Leaves them as they are when they are loaded again. All lanes have loaded theirs.
  __device__ __forceinline__ void store_queries(int tile, int h, const rows_of_head& q) const {
    std::byte* const rows = at<std::byte>(rows_at(tile, queries, h)) + place.g * layout::row_bytes +
                            place.g / 4 * 16 + 4 * place.t;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      *reinterpret_cast<std::uint32_t*>(rows + j % 2 * 8 * layout::row_bytes +
                                        (j / 2) * (16 - place.g / 4 * 32)) = q.a[0][j];
  }
  /// Positions of tokens g and g + 8 of a slot's rows or keys.
  template <int Where>
  __device__ __forceinline__ void load_codes(int slot, std::uint32_t (&codes)[2]) const {
    const std::uint32_t own = this->slot_at(slot) + 4 * place.g;
    codes[0] = load_shared_word<Where>(own), codes[1] = load_shared_word<Where + 32>(own);
  }
  __device__ __forceinline__ void begin_tile(int tile, heads_state& state, tile_state& own) const {
    std::uint32_t codes[2];
    load_codes<layout::row_code>(tile, codes);
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[1], state.length, place.t)};
    rows_of_head q[heads];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      this->load_rows(tile, queries, h, q[h]);
      this->scale_queries(q[h]);
      __syncwarp();
      store_queries(tile, h, q[h]);
    }
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products[heads];
      this->template multiply_axis<true>(group().table_q, 0, q, axis, moves, products);
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        const axis_cells& cells = products[h];
        sixteen_cells_at(h, axis) = {cells[0][0], cells[1][0], cells[0][1], cells[1][1]};
        if (axis < 2)
          reinterpret_cast<uint2*>(&cells_left_at(h))[axis] = {cells[0][2], cells[1][2]};
        else
          eight_cells_at(h) = {cells[0][2], cells[1][2]};
      }
    }
    begin_sums(state, own);
  }
  static __device__ __forceinline__ void begin_sums(heads_state& state, tile_state& own) {
    clear(own);
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      state.of_head[h].softmax = scaled_softmax_state();
#pragma unroll
      for (auto& block : state.of_head[h].o)
#pragma unroll
        for (float& sum : block) sum = 0.0f;
    }
  }
  /// Logits of a group, without masks.
  __device__ __forceinline__ void score_group(const tile_place& now, const heads_state& state,
                                              float (&s)[heads][2][4]) const {
    std::uint32_t codes[2], of_rows[2];
    load_codes<layout::key_code>(now.slot, codes);
    load_codes<layout::row_code>(now.tile, of_rows);
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[1], state.length, place.t)};
    const std::uint32_t key_row = this->slot_at(now.slot) + this->left_row(),
                        query_row = this->slot_at(now.tile) + this->left_row();
    rows_of_head k[heads];
#pragma unroll
    for (int h = 0; h < heads; ++h) load_matrices(k[h].a[0], key_row + rows_at(0, keys_, h));
    typename base::cells_left left;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells own, products[heads];
      this->one_hot_rows(of_rows, axis, own);
      this->template multiply_axis<false>(group().table_k, 1, k, axis, moves, products);
#pragma unroll
      for (int h = 0; h < heads; ++h)
        base::template add_axis<base::leaves>(own, products[h], axis, axis == 0, h, left, s[h]);
    }
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      rows_of_head q;
      load_matrices(q.a[0], query_row + rows_at(0, queries, h));
#pragma unroll
      for (int b = 0; b < 2; ++b)
        multiply_add_16<T>(s[h][b], q.a[0], k[h].a[0][b], k[h].a[0][b + 2]);
    }
    std::uint32_t eight[heads][3][2];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      const uint4 of_two = cells_left_at(h);
      const uint2 of_third = eight_cells_at(h);
      eight[h][0][0] = of_two.x, eight[h][0][1] = of_two.y;
      eight[h][1][0] = of_two.z, eight[h][1][1] = of_two.w;
      eight[h][2][0] = of_third.x, eight[h][2][1] = of_third.y;
    }
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells columns;
      this->one_hot_rows(codes, axis, columns);
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        const uint4 sixteen = sixteen_cells_at(h, axis);
        const axis_cells products = {{sixteen.x, sixteen.z, eight[h][axis][0]},
                                     {sixteen.y, sixteen.w, eight[h][axis][1]}};
        base::template add_axis<base::leaves>(products, columns, axis, false, h, left, s[h]);
      }
    }
  }
  /// Raises rows' maxima if logits exceed them by more than the slack. All rows' steps go together, as each waits for
  /// the one before.
  __device__ __forceinline__ void raise(const float (&s)[heads][2][4], heads_state& state,
                                        tile_state& own) const {
    float largest[heads][2];
    bool exceeds = false;
#pragma unroll
    for (int h = 0; h < heads; ++h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) largest[h][i] = lane_max(s[h], i);
      exceeds |= state.of_head[h].softmax.exceeds(largest[h]);
    }
    if (!__any_sync(base::all, exceeds)) return;
    const weight_limits limits = limits_of(state.are_short);
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) largest[h][i] = quad_max(largest[h][i]);
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      float by[2];
      if (!state.of_head[h].softmax.raise_rows(largest[h], log2_e, ln_2, limits.slack, limits.lag,
                                               by))
        continue;
      scale_rows(by, state.of_head[h].o);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const half2 both = __float2half2_rn(by[i]);
#pragma unroll
        for (auto& of_axis : own.cells)
#pragma unroll
          for (std::uint32_t& word : of_axis[h][i])
            *reinterpret_cast<half2*>(&word) = __hmul2(*reinterpret_cast<half2*>(&word), both);
      }
    }
  }
  __device__ __forceinline__ void attend_group(const tile_place& now, heads_state& state,
                                               tile_state& own) const {
    float s[heads][2][4];
    score_group(now, state, s);
    if (now.key + 16 > now.end) {
      const int key = now.key + 2 * place.t;
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (key + 8 * b + j >= now.end) {
#pragma unroll
            for (int h = 0; h < heads; ++h) s[h][b][j] = s[h][b][2 + j] = -INFINITY;
          }
    }
    raise(s, state, own);
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[h][b][e] = exp2_fast(fmaf(s[h][b][e], log2_e, state.of_head[h].softmax.offset[e / 2]));
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    const std::uint32_t key_row = this->slot_at(now.slot) + this->left_row();
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      auto& of_head = state.of_head[h];
      const weight_fragment<T> weights(s[h]);
      std::uint32_t v[4];
      load_matrices_transposed(v, key_row + rows_at(0, values, h));
      multiply_add_16<T>(of_head.o[0], weights.a, v[0], v[1]);
      multiply_add_16<T>(of_head.o[1], weights.a, v[2], v[3]);
      multiply_add_16<T>(of_head.softmax.sum, weights.a, ones, ones);
    }
    if (!state.has_values) return;
    typename base::key_places keys;
    this->find_keys(
        load_shared_word<layout::key_code>(this->slot_at(now.slot) + place.lane % 16 * 4), keys);
    weight_fragment<half> weights[heads];
#pragma unroll
    for (int h = 0; h < heads; ++h) weights[h] = weight_fragment<half>(s[h]);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      this->template add_cells<false>(weights, keys[axis], own.cells[axis]);
  }
  /// Adds the weights by cell times Tv.
  __device__ __forceinline__ void add_sums(int tile, heads_state& state, tile_state& own) const {
    std::uint32_t codes[2];
    load_codes<layout::row_code>(tile, codes);
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[1], state.length, place.t)};
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) this->add_axis_values(own.cells[axis], axis, moves, state);
  }
  static __device__ __forceinline__ void clear(tile_state& own) {
#pragma unroll
    for (auto& of_axis : own.cells)
#pragma unroll
      for (auto& of_head : of_axis)
#pragma unroll
        for (auto& of_row : of_head)
#pragma unroll
          for (std::uint32_t& word : of_row) word = 0;
  }

  /// Tiles of the block's list, as long as there are any.
  __device__ __forceinline__ void run_tiles() const {
    heads_state state = this->begin_state();
    state.are_short = group().counts->largest <= short_window;
    tile_state own;
    // Else they would count as in use ever since the last part's tiles.
    begin_sums(state, own);
    // The first turn has no group yet, only a next one: less code arrives before it is asked for.
    tile_place next{0, 0, 0, 0, 0, 0, 0, {}, {}};
#pragma unroll 1
    do {
      const tile_place now = next;
      advance(next);
      wait_for_copies<0>();
      __syncwarp();  // what all lanes asked for is there, and they have done with the group before
      find_tokens(now, next);
      if (now.first != 0) begin_tile(now.tile, state, own);
      __syncwarp();  // q is there, times the scale
      if (next.row != next.row_end) request_group(next);
      commit_copies();
      if (now.row == now.row_end) continue;
      attend_group(now, state, own);
      const bool is_last = now.key + 16 >= now.end;
      if (state.has_values &&
          (is_last || (!state.are_short && now.key / 16 % groups_of_sums == groups_of_sums - 1))) {
        add_sums(now.tile, state, own);
        if (!is_last) clear(own);
      }
      if (is_last) {
        const bool wanted[2] = {now.row + place.g < now.row_end,
                                now.row + place.g + 8 < now.row_end};
        this->store_heads(at<const std::int32_t>(layout::row_token + now.tile * layout::step_bytes),
                          wanted, state);
      }
    } while (next.row != next.row_end);
  }
};

}  // namespace winnow::detail
