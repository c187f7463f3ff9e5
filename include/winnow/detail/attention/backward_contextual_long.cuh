// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of windows of 65 to 320 tokens with contextual position encoding in one pass: what
/// backward_contextual_window.cuh does for short windows, with eight tiles a block.
///
/// All tiles of a turn are of one window, as queries and as keys: a warp has a tile of both. A window of more
/// than eight tiles is cut into chunks, and a turn is a pair of them: first all chunks of keys with the first
/// chunk of queries. So what a tile of queries has, products with tables and sums by cell in registers and
/// radial sums in shared memory, is made and sorted into tables once, and stays while keys come and go. Keys
/// begin and end with every turn; what they have of dk and dv waits in local memory, in each thread for itself.
///
/// A turn: products of the rows that are new; then the pieces, as queries; then the same pieces as keys; sums by cell become sums by table
/// row; and rows of the next turn arrive while those are added to the tables' gradients. Their tokens came during the
/// turn, by the warp that plans. A turn that spills registers is 2 to 6 % slower: little L1 is left beside so much
/// shared memory.
///
/// Shared memory of a tile: what is of its queries and what is of its keys lie apart, since either may end alone.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_long_turns.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/contextual_products.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_long_differentiator : contextual_long_turns<T, Radial> {
  using base = contextual_long_turns<T, Radial>;
  using base::add_table_term;
  using base::await_rows;
  using base::await_values;
  using base::begin_block;
  using base::begin_keys;
  using base::begin_queries;
  using base::clear;
  using base::clear_parts;
  using base::copy_rows;
  using base::copy_tokens;
  using base::copy_values;
  using base::differentiate_keys;
  using base::differentiate_piece;
  using base::finish_cells;
  using base::give;
  using base::group;
  using base::meet;
  using base::multiply_gradients;
  using base::multiply_keys;
  using base::multiply_queries;
  using base::pack_cells;
  using base::place;
  using base::plan_queries;
  using base::planned_turn;
  using base::problem;
  using base::radial_units;
  using base::scale_of_block;
  using base::scale_sum;
  using base::share_of_block;
  using base::store_keys;
  using base::store_queries;
  using base::store_sums;
  using base::take;
  using base::take_key_gradients;
  using base::take_keys;
  using base::take_query_gradients;
  using base::take_rows;
  using base::take_tokens;
  using base::take_weights;
  using base::takes_part;
  using base::tiles;
  using base::warp;
  using base::weight_unit;
  using typename base::axis_rows;
  using typename base::cursor;
  using typename base::key_places;
  using typename base::key_sums;
  using typename base::layout;
  using typename base::packed_cells;
  using typename base::query_state;
  using typename base::query_sums;
  using typename base::radial_products;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// What a tile of keys in each of a window's chunks has from the turns so far.
  static constexpr int most_chunks = (layout::capacity / 16 + tiles - 1) / tiles;
  struct key_gradients {
    float4 sums[most_chunks][4];
  };
  /// Takes dk and dv of earlier turns, and leaves them to later ones.
  static __device__ __forceinline__ void keep_keys(const turn& now, key_gradients& kept,
                                                   float (&dk)[2][4], float (&dv)[2][4]) {
    float4(&sums)[4] = kept.sums[now.chunk];
    if (!now.first_of_keys()) {
      take(sums, dk);
      take(sums + 2, dv);
    }
    if (!now.last_of_keys()) {
      give(dk, sums);
      give(dv, sums + 2);
    }
  }

  /// The tile's pieces as queries, which begin with the keys of this tile's number, if they are so many.
  __device__ __forceinline__ void take_pieces(const turn& now, const tile_tokens& rows,
                                              query_state& state, query_sums& sums) const {
    const key_places places = base::places_of_keys();
    int j = warp < now.width ? warp : warp - now.width;
    float2 radii[2];
    if constexpr (Radial) base::load_radii(places, j, radii);
#pragma unroll 1
    for (int held = 0; held < now.width; ++held) {
      const int next = j + 1 < now.width ? j + 1 : 0;
      differentiate_piece(now, rows, j, next, held, places, radii, state, sums);
      j = next;
    }
  }
  /// The same pieces as keys, two at a time. Of chunks of more queries than keys, two tiles may go with the same
  /// keys in one step.
  __device__ __forceinline__ void answer_pieces(const turn& now, key_sums& sums) const {
    const auto before = [&](int i) { return i > 0 ? i - 1 : now.width - 1; };
    const int used = warp < now.width ? now.used : 0;
#pragma unroll 1
    for (int more = 0; more < used; more += now.width) {
      int i = warp;
#pragma unroll 1
      for (int step = 0; step < now.width;) {
        const int next = before(i);
        const bool both = step + 1 < now.width && max(i, next) + more < used;
        if (both)
          differentiate_keys({i + more, next + more}, {step, step + 1}, sums);
        else if (i + more < used)
          differentiate_keys(i + more, step, sums);
        i = both ? before(next) : next;
        step += both ? 2 : 1;
      }
    }
  }

  /// Keys that are done with these queries: sums by table row, and dk.
  __device__ __forceinline__ void finish_keys(const tile_tokens& others, key_sums& sums,
                                              float (&dk)[2][4]) const {
    packed_cells cells;
    pack_cells(sums.cells, cells);
    base::copy(sums.dk, dk);
    scale_sum(dk, problem.scale);
    if constexpr (Radial) {
      float unit[2];
      axis_rows by_row;
      radial_units(sums.total, unit);
      take_key_gradients(unit, by_row);
      __syncwarp();
      add_table_term(by_row, base::of_keys, 2, dk);
      store_sums(by_row, 2, 2);
    }
    finish_cells<true>(2, cells, others.code, dk);
  }
  /// Queries that have met all keys.
  __device__ __forceinline__ void finish_queries(const tile_tokens& rows, query_sums& sums) const {
    packed_cells cells[2];
    pack_cells(sums.cells[0], cells[0]);
    pack_cells(sums.cells[1], cells[1]);
    if constexpr (Radial) {
      float unit[2];
      axis_rows of_gradients, of_weights;
      radial_units(sums.total, unit);
      take_query_gradients(unit, of_gradients);
      take_weights(of_weights);
      __syncwarp();
      add_table_term(of_gradients, base::of_queries, 2, sums.dq);
      store_sums(of_gradients, 0, 2);
      store_sums(of_weights, 1, 2);
    }
    finish_cells<true>(0, cells[0], rows.code, sums.dq);
    finish_cells<false>(1, cells[1], rows.code, sums.dq);
  }
  static __device__ __forceinline__ void clear_queries(query_sums& sums) {
    clear(sums.dq);
    clear(sums.cells[0]);
    clear(sums.cells[1]);
    clear(sums.total);
  }
  /// This warp's tiles in a turn.
  __device__ __forceinline__ void differentiate(const turn& now, const tile_tokens& rows,
                                                const tile_tokens& others, query_state& state,
                                                query_sums& of_queries, key_gradients& kept) const {
    if (now.first_of_queries()) begin_queries(rows, state);
    begin_keys(others);
    await_rows();
    if (now.first_of_queries()) take_rows(now, rows, {}, state);
    multiply_keys(others.code);
    await_values();
    meet();
    const rounding_scale scale = scale_of_block();
    if (now.first_of_queries()) {
      radial_products radial;
      multiply_queries(rows.code, state, radial);
      multiply_gradients(now, rows, scale.up, state, radial);
      clear_queries(of_queries);
    }
    if (warp < now.used) take_pieces(now, rows, state, of_queries);
    meet();
    key_sums of_keys;
    clear(of_keys.dk);
    clear(of_keys.dv);
    clear(of_keys.cells);
    clear(of_keys.total);
    answer_pieces(now, of_keys);
    meet();
    float dk[2][4];
    finish_keys(others, of_keys, dk);
    const bool done = now.last_of_queries() && warp < now.used;
    if (done) finish_queries(rows, of_queries);
    meet();
    const float lower = scale_of_block().down;
    if (done) store_queries(now.first, rows, problem.scale * lower, of_queries.dq);
    scale_sum(dk, lower);
    scale_sum(of_keys.dv, weight_unit);
    keep_keys(now, kept, dk, of_keys.dv);
    if (now.last_of_keys()) store_keys(now.first_key, others, 1.0f, 1.0f, dk, of_keys.dv);
  }

  /// A turn of a warp whose tile has no rows.
  __device__ __forceinline__ void stand_by(const turn& now) const {
    if (now.first_of_queries() && place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = 0;
    meet();
#pragma unroll 1
    for (int i = 0; i < 2; ++i) meet();
    // Tokens of the next turn.
    await_values();
    meet();
  }
  /// Most turns have so many tiles at most, which give less to add to parts.
  static constexpr int few_tiles = 6;
  /// Plans the next turn and loads its tokens.
  __device__ __forceinline__ void begin_turn(int number, int chunk) const {
    const auto plan = base::plan_keys(number, chunk);
    base::give_plan(plan);
    copy_tokens(plan);
  }
  /// Plans turns: the warp that most often has no rows in one.
  static constexpr int planner = tiles - 1;

  __device__ __forceinline__ void run() const {
    if (group.counts->largest <= contextual_short_capacity) {
      clear_parts();
      return;
    }
    {
      const cursor next = share_of_block();
      begin_block();
      base::await_tables();
      if (warp == planner) {
        if (place.lane == 0) *at<cursor>(layout::next_window) = next;
        __syncwarp();
        plan_queries(0);
        __syncwarp();
        begin_turn(0, 0);
        await_values();
      }
    }
    __syncthreads();
    int number = 0;
    turn now = planned_turn();
    tile_tokens rows = take_tokens(0, now.count);
    tile_tokens others = take_keys(now, rows);
    __syncthreads();  // the planner goes on to the next turn's
    if (takes_part(now)) copy_rows(rows, others);
    query_state state;
    query_sums of_queries;
    key_gradients kept;
#pragma unroll 1
    while (now.used > 0) {
      if (takes_part(now)) copy_values(others);
      // While rows arrive.
      if (warp == planner) {
        if (now.first_of_queries()) plan_queries(number + 1);
        __syncwarp();
        begin_turn(number + (now.last_of_queries() ? 1 : 0),
                   now.last_of_queries() ? 0 : now.chunk + 1);
      }
      if (takes_part(now))
        differentiate(now, rows, others, state, of_queries, kept);
      else
        stand_by(now);
      const int used = now.used;
      const int used_by_keys = now.width;
      const bool queries_end = now.last_of_queries();
      if (queries_end) ++number;
      now = planned_turn();
      if (queries_end) rows = take_tokens(0, now.count);
      others = take_keys(now, rows);
      const float lower = scale_of_block().down;
      const auto begin_next = [&] {
        meet();
        if (takes_part(now)) copy_rows(rows, others, queries_end);
      };
      const auto begin_between = [&] {
        if (!queries_end) begin_next();
      };
      if (used_by_keys <= few_tiles)
        base::template add_to_parts<2, 3, few_tiles>(used, used_by_keys, lower, begin_between);
      else
        base::template add_to_parts<2, 3, tiles>(used, used_by_keys, lower, begin_between);
      if (queries_end && used <= few_tiles)
        base::template add_to_parts<0, 2, few_tiles>(used, used_by_keys, lower, begin_next);
      else if (queries_end)
        base::template add_to_parts<0, 2, tiles>(used, used_by_keys, lower, begin_next);
      if (queries_end) {
        // Nobody needs these any more: so their registers are free while tables' gradients are added up.
        state = {};
        clear_queries(of_queries);
      }
      __syncthreads();
    }
  }
};

}  // namespace winnow::detail
