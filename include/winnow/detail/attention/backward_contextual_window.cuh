// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of windows with contextual position encoding in one pass, for 16-bit storage and head dim 16.
///
/// What one block computes: neighbouring windows, of one head, in turns of four tiles of 16 rows, one a warp; with the
/// radial axis of six.
///
/// Here are short windows, of up to 64 tokens: a tile holds as many whole windows as fit it, from some hundred
/// neighbours; a longer window takes several tiles of one turn, and others the last one's rest. Long windows, of up to
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
/// of its tile and leaves dS and P of its pieces in shared memory, then it is the keys. With the radial axis it leaves
/// the table rows of pairs, too, and sums by these come in between, where one-hot cells and products were.
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
/// backward_contextual_window_rows.cuh, its products with tables in backward_contextual_window_products.cuh, its pieces
/// in backward_contextual_window_pieces.cuh and, on the radial axis, in backward_contextual_window_radial.cuh, what
/// leaves it in backward_contextual_window_results.cuh.
///
/// Bound by the latency of dependent instructions, and by shared memory, whose pipe is busy for 65 to 75 % of the
/// time: registers and shared memory allow 12 warps a multiprocessor, and a warp issues an instruction in six cycles.
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
  using base::answer_piece;
  using base::await_rows;
  using base::await_tables;
  using base::await_values;
  using base::begin_keys;
  using base::begin_planning;
  using base::clear;
  using base::copy;
  using base::copy_rows;
  using base::copy_values;
  using base::differentiate_piece;
  using base::differentiate_singles;
  using base::extent_of_turn;
  using base::find_share;
  using base::finish_cells;
  using base::give_singles;
  using base::load_lse;
  using base::load_out;
  using base::load_part_factors;
  using base::load_queries;
  using base::mark_queries;
  using base::meet;
  using base::memory;
  using base::multiply_gradients;
  using base::multiply_keys;
  using base::multiply_queries;
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
  using base::store_sums;
  using base::store_tile;
  using base::sum_radial_rows;
  using base::sums;
  using base::take_radial_columns;
  using base::take_rows;
  using base::takes_part;
  using base::tiles;
  using base::warp;
  using base::weight_unit;
  using typename base::axis_rows;
  using typename base::key_sums;
  using typename base::layout;
  using typename base::packed_cells;
  using typename base::part_factors;
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
  __device__ __forceinline__ void meet_tiles(const turn& now) const {
    if (extent_of_turn(now.number).y > 1)
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
  /// Radial sums of the tile's rows, dS and P, when all of its pieces are there.
  __device__ __forceinline__ void take_radial_rows(const turn& now, const float (&total)[4],
                                                   axis_rows& of_gradients,
                                                   axis_rows& of_weights) const {
    base::template clear_late_sums<layout::row_sums_bytes>();
#pragma unroll 1
    for (int held = 0; held < now.width; ++held) sum_radial_rows(held);
    __syncwarp();
    float unit[2];
    radial_units(total, unit);
    base::take_radial_rows(unit, of_gradients, of_weights);
    __syncwarp();
  }
  /// What a tile's queries need of global memory beside rows.
  struct query_scalars {
    float lse[2];
    uint4 out;  ///< this lane's half of a row of O
  };
  __device__ __forceinline__ query_scalars load_scalars(const turn& now,
                                                        const tile_tokens& rows) const {
    query_scalars result;
    load_lse(rows, result.lse);
    result.out = load_out(now, rows);
    return result;
  }
  /// This warp's tile, up to the sums of tables.
  __device__ __forceinline__ void differentiate(const turn& now, const tile_tokens& rows,
                                                const query_scalars& scalars) const {
    float dq[2][4], dk[2][4], dv[2][4];
    packed_cells cells[3];
    float row_total[4], column_total[4];
    query_state state;
    state.lse[0] = scalars.lse[0];
    state.lse[1] = scalars.lse[1];
    begin_keys(rows);
    mark_queries(rows, state);
    await_rows();
    take_rows(now, rows, scalars.out, state);
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
        differentiate_piece(now, rows, j, j, j - now.base, places, radii, state, sums);
      take_queries(sums);
    }
    meet_tiles(now);
    [[maybe_unused]] axis_rows of_gradients, of_weights;
    if constexpr (Radial) {
      take_radial_rows(now, row_total, of_gradients, of_weights);
      add_table_term(of_gradients, base::of_queries, 2, dq);
      base::template clear_late_sums<layout::column_sums_bytes>();
    }
    {
      key_sums sums;
      clear_keys(sums);
      const int end = now.base + now.width;
#pragma unroll 1
      for (int i = now.base; i < end; ++i) answer_piece(i, warp - now.base, sums);
      take_keys(sums);
    }
    [[maybe_unused]] axis_rows of_columns;
    if constexpr (Radial) {
      __syncwarp();
      float unit[2];
      radial_units(column_total, unit);
      take_radial_columns(unit, of_columns);
      add_table_term(of_columns, base::of_keys, 2, dk);
    }
    meet_tiles(now);
    if constexpr (Radial) {
      store_sums(of_gradients, 0, 2);
      store_sums(of_weights, 1, 2);
      store_sums(of_columns, 2, 2);
    }
    finish_cells<true>(0, cells[0], rows.code, dq);
    finish_cells<false>(1, cells[1], rows.code, dq);
    finish_cells<true>(2, cells[2], rows.code, dk);
    meet();
    const float lower = scale_of_block().down;
    store_tile(now, rows, problem.scale * lower, lower, weight_unit, dq, dk, dv);
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
    // Two warps look for the block's share. Tables do not depend on the kernel that sums up prices.
    base::template begin_block<64>();
    wait_for_predecessor();
    admit_successor();
    auto* share = at<int>(layout::deltas);
    if (warp < 2) {
      const int window = find_share(part + warp, problem.short_parts);
      if (place.lane == 0) share[warp] = window;
    }
    await_tables();
    __syncthreads();
    const int2 windows = *reinterpret_cast<const int2*>(share);
    if (warp == planner) {
      begin_planning(windows);
#pragma unroll 1
      for (int number = 0; number < 2; ++number) plan_turn(number);
    } else if constexpr (base::takes_singles_out) {
      differentiate_singles(windows);
    }
    __syncthreads();
    if constexpr (base::takes_singles_out) give_singles();
    turn now = planned_turn(0);
    tile_tokens rows = load_queries(now);
    query_scalars scalars = {};
    __syncthreads();
    if (copies_early && takes_part(now)) {
      copy_rows(rows, rows);
      scalars = load_scalars(now, rows);
    }
#pragma unroll 1
    for (int number = 0; now.used > 0; ++number) {
      const bool takes = takes_part(now);
      if (takes) {
        if constexpr (!copies_early) {
          copy_rows(rows, rows);
          scalars = load_scalars(now, rows);
        }
        copy_values(rows);
        differentiate(now, rows, scalars);
      } else {
        stand_by(now);
      }
      const int used = extent_of_turn(number).x;
      now = planned_turn(number + 1);
      rows = load_queries(now);
      const auto begin_next = [&] {
        if constexpr (!copies_early) return;
        meet();
        if (!takes_part(now)) return;
        copy_rows(rows, rows);
        scalars = load_scalars(now, rows);
      };
      if (warp < part_warps) {
        if constexpr (Radial) {
          base::template add_to_parts<0, 3, tiles>(used, used, scale_of_block().down, begin_next);
        } else {
          part_factors right;
          load_part_factors(warp, used, right);
          begin_next();
          add_to_part(used, scale_of_block().down, right);
        }
      } else {
        begin_next();
        plan_turn(number + 2);
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
  if constexpr (Long) admit_successor();
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
