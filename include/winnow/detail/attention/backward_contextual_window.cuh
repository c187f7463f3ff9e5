// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of windows with contextual position encoding in one pass, for 16-bit storage and head dim 16.
///
/// What one block computes: the windows that start in a range of slots, of one head, in turns of four tiles of
/// 16 rows, one a warp.
///
/// Here are short windows, of up to 64 tokens: a tile holds as many whole windows as fit it, from anywhere in the
/// range; a longer window takes several tiles of one turn, and others the last one's rest. Long windows, of up to
/// 320, have blocks of eight warps and turns of their own in backward_contextual_long.cuh; the rest is the same.
///
/// So pairs meet only tiles of their own window, each pair once:
///
///     S = q·kᵀ + Gq·Eᵀ + E·Gkᵀ      dP = dO·vᵀ + Gv·Eᵀ
///     dq = dS·k + B(dS)·Tq           dk = dSᵀ·q + B(dSᵀ)·Tk        dv = Pᵀ·dO
///     dTq = B(dS)ᵀ·q                 dTk = B(dSᵀ)ᵀ·k               dTv = B(P)ᵀ·dO
///
/// with G, E and B as in backward_contextual_tables.cuh: products of tokens and tables by the other's
/// cell, one-hot cells, and sums by table row. Each token meets each table once, where two sides need
/// seven products a token. Products move between table rows and cells in registers
/// (contextual_products.cuh), hence the order of the tables in shared memory. A warp first is the queries
/// of its tile and leaves dS and P of its pieces in shared memory, then it is the keys.
///
/// Registers: sums by cell, and with the radial axis products of the tile's queries. Shared memory:
/// tables, rows of q, k, v and dO, one-hot cells, products, pieces; later sums by table row.
///
/// Sums of tables leave for the block's part in global memory, each element by one thread in order. Blocks of
/// short and of long windows have parts of their own: long ones begin where short ones leave multiprocessors
/// idle. Still longer ones, in backward_contextual.cuh, add to the parts of short ones. Which windows a block
/// has follows from the sum of all windows' costs: ranges of equal length would give some blocks twice the
/// work of others where the scan is dense.
///
/// What is here: the turns of a block. Shared memory and tables are in backward_contextual_window_block.cuh, which
/// windows a block has in backward_contextual_window_share.cuh, how short ones fill a turn in
/// backward_contextual_window_packing.cuh, those of one token in backward_contextual_window_singles.cuh, what a warp
/// knows of a turn in backward_contextual_window_turns.cuh, how a tile begins in
/// backward_contextual_window_rows.cuh, its products in backward_contextual_window_pieces.cuh and, on the radial axis,
/// in backward_contextual_window_radial.cuh, what leaves it in backward_contextual_window_results.cuh.
///
/// Bound by the latency of dependent instructions: registers and shared memory allow 8 warps a multiprocessor
/// with the radial axis and 12 without, and a warp issues an instruction in six cycles.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual_long.cuh"
#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_contextual_window_singles.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_window_differentiator : contextual_window_singles<T, Radial, false> {
  using base = contextual_window_singles<T, Radial, false>;
  using base::add_table_term;
  using base::add_to_part;
  using base::await_rows;
  using base::await_values;
  using base::begin_block;
  using base::begin_keys;
  using base::begin_queries;
  using base::clear;
  using base::copy;
  using base::copy_rows;
  using base::copy_values;
  using base::differentiate_keys;
  using base::differentiate_piece;
  using base::differentiate_singles;
  using base::find_share;
  using base::finish_cells;
  using base::give_singles;
  using base::group;
  using base::load_out;
  using base::load_queries;
  using base::meet;
  using base::memory;
  using base::multiply_gradients;
  using base::multiply_keys;
  using base::multiply_queries;
  using base::of_keys;
  using base::of_queries;
  using base::pack_cells;
  using base::part;
  using base::part_warps;
  using base::place;
  using base::plan_turn;
  using base::planned_turn;
  using base::problem;
  using base::radial_units;
  using base::scale_of_block;
  using base::scale_sum;
  using base::see_ends;
  using base::store_keys;
  using base::store_queries;
  using base::store_sums;
  using base::sums;
  using base::take_radial;
  using base::take_rows;
  using base::takes_part;
  using base::tiles;
  using base::warp;
  using base::weight_points;
  using base::weight_unit;
  using base::width;
  using typename base::axis_rows;
  using typename base::cursor;
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

  /// Between what short windows' queries leave and what their keys take: windows of one tile need no other
  /// warp, and where a turn has others, all meet. The warp with most pieces comes last anyway.
  static __device__ __forceinline__ void meet_tiles(const turn& now) {
    if (now.widest > 1)
      meet();
    else
      __syncwarp();
  }
  static __device__ __forceinline__ void clear_keys(key_sums& sums) {
    clear(sums.dk);
    clear(sums.dv);
    clear(sums.cells);
    clear(sums.total);
  }
  static __device__ __forceinline__ void clear_queries(query_sums& sums) {
    clear(sums.dq);
    clear(sums.cells[0]);
    clear(sums.cells[1]);
    clear(sums.total);
  }
  /// Radial sums of the tile: of its rows' dS and P, and of its columns' dS.
  __device__ __forceinline__ void take_radial_sums(const float (&row_total)[4],
                                                   const float (&column_total)[4],
                                                   axis_rows& of_gradients, axis_rows& of_weights,
                                                   axis_rows& of_columns) const {
    float unit[2];
    radial_units(row_total, unit);
    take_radial(0, unit, of_gradients);
    radial_units(column_total, unit);
    take_radial(2, unit, of_columns);
    const float weight_units[2] = {1.0f / weight_points, 1.0f / weight_points};
    base::template take_radial<base::weight_mask>(1, weight_units, of_weights);
  }
  /// This warp's tile, up to the sums of tables.
  __device__ __forceinline__ void differentiate(const turn& now, const tile_tokens& rows) const {
    float dq[2][4], dk[2][4], dv[2][4];
    packed_cells cells[3];
    float row_total[4], column_total[4];
    query_state state;
    const uint4 out = load_out(now, rows);
    begin_keys(rows);
    begin_queries(rows, state);
    await_rows();
    take_rows(now, rows, out, state);
    multiply_keys(rows.code);
    await_values();
    meet();
    const rounding_scale scale = scale_of_block();
    radial_products radial;
    multiply_queries(rows.code, state, radial);
    multiply_gradients(now, rows, scale.up, state, radial);
    const auto take_queries = [&](const query_sums& sums) {
      pack_cells(sums.cells[0], cells[0]);
      pack_cells(sums.cells[1], cells[1]);
      copy(sums.dq, dq);
      copy(sums.total, row_total);
    };
    const auto take_keys = [&](key_sums& sums) {
      pack_cells(sums.cells, cells[2]);
      scale_sum(sums.dk, problem.scale);
      copy(sums.dk, dk);
      copy(sums.dv, dv);
      copy(sums.total, column_total);
    };
    {
      query_sums sums;
      clear_queries(sums);
      const int last = now.base + now.width - 1;
      const auto places = base::places_of_keys();
      float2 radii[2];
#pragma unroll 1
      for (int j = now.base; j <= last; ++j)
        differentiate_piece(now, rows, j, j, j, scale.down, places, radii, state, sums);
      take_queries(sums);
    }
    meet_tiles(now);
    {
      key_sums sums;
      clear_keys(sums);
      const int end = now.base + now.width;
#pragma unroll 1
      for (int i = now.base; i < end; ++i) differentiate_keys(i, warp, sums);
      take_keys(sums);
    }
    meet_tiles(now);
    if constexpr (Radial) {
      axis_rows of_gradients, of_weights, of_columns;
      take_radial_sums(row_total, column_total, of_gradients, of_weights, of_columns);
      __syncwarp();
      add_table_term(of_gradients, base::of_queries, 2, dq);
      add_table_term(of_columns, base::of_keys, 2, dk);
      store_sums(of_gradients, 0, 2);
      store_sums(of_weights, 1, 2);
      store_sums(of_columns, 2, 2);
    }
    finish_cells<true>(0, cells[0], rows.code, dq);
    finish_cells<false>(1, cells[1], rows.code, dq);
    finish_cells<true>(2, cells[2], rows.code, dk);
    meet();
    const float lower = scale_of_block().down;
    store_queries(now, rows, problem.scale * lower, dq);
    store_keys(now, rows, lower, weight_unit, dk, dv);
  }

  /// A turn of a warp whose tile has no rows.
  __device__ __forceinline__ void stand_by(const turn& now) const {
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = 0;
    meet();
#pragma unroll 1
    for (int i = 0; i < 2; ++i) meet_tiles(now);
    meet();
  }
  /// Plans turns: the warp that most often has no rows in one.
  static constexpr int planner = tiles - 1;
  /// Do the next turn's rows arrive while tables are summed up?
  static constexpr bool copies_early = !Radial;

  __device__ __forceinline__ void run() const {
    auto* share = at<int>(layout::waiting);
    if (warp < 2) {
      const int slot = find_share(warp, problem.short_parts);
      if (place.lane == 0) share[warp] = slot;
    }
    begin_block();
    __syncthreads();
    cursor next = {share[0], share[1]};
    see_ends(next);
    __syncthreads();
    if constexpr (base::takes_singles_out) differentiate_singles(next.from, next.until);
    if (warp == planner) {
      at<int2>(layout::waiting)[place.lane] = {0, 0};
      plan_turn(0, next);
      plan_turn(1, next);
    }
    __syncthreads();
    if constexpr (base::takes_singles_out) give_singles();
    turn now = planned_turn(0);
    tile_tokens rows = load_queries(now);
    __syncthreads();
    if (copies_early && takes_part(now)) copy_rows(rows, rows);
    while (now.used > 0) {
      const bool takes = takes_part(now);
      if (!copies_early && takes) copy_rows(rows, rows);
      if (takes) copy_values(rows);
      if (takes)
        differentiate(now, rows);
      else
        stand_by(now);
      const int used = now.used;
      const int number = now.number;
      now = planned_turn(number + 1);
      rows = load_queries(now);
      const auto begin_next = [&] {
        if constexpr (!copies_early) return;
        meet();
        if (takes_part(now)) copy_rows(rows, rows);
      };
      if (warp < part_warps) {
        add_to_part(used, scale_of_block().down, begin_next);
      } else {
        begin_next();
        plan_turn(number + 2, next);
      }
      __syncthreads();
    }
  }
};

/// Heads are the fastest index of the grid.
template <class T, bool Radial, bool Long>
__global__ void __launch_bounds__(32 * contextual_window_layout<Radial, Long>::tiles,
                                  contextual_window_layout<Radial, Long>::min_blocks)
    differentiate_contextual_windows_kernel(const __grid_constant__ backward_problem problem,
                                            const __grid_constant__ backward_rows rows) {
  extern __shared__ __align__(16) std::byte memory[];
  // Long windows begin where short ones leave multiprocessors idle, and end behind them.
  if constexpr (!Long) wait_for_predecessor();
  admit_successor();
  const block_place where(problem);
  const backward_group& entry = problem.groups[where.group];
  using differentiator = std::conditional_t<Long, contextual_long_differentiator<T, Radial>,
                                            contextual_window_differentiator<T, Radial>>;
  differentiator{rows,        problem,          entry,     entry.problem, memory,
                 where.group, where.group_head, where.part}
      .run();
  if (Long && blockIdx.x == 0) wait_for_predecessor();
}

}  // namespace winnow::detail
