// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of windows with contextual position encoding in one pass, for 16-bit storage and head dim 16.
///
/// What one block computes: the windows that start in a range of slots, of one head, in turns of several
/// tiles of 16 rows, one a warp.
///
/// Short windows, of up to 64 tokens: four tiles a turn. A tile holds as many whole windows as fit it; a
/// longer window takes several tiles of one turn. Long windows, of up to 320: eight tiles a turn, all of one
/// window, as queries and as keys. A window of more than eight tiles is cut into chunks of equal size, and
/// each pair of chunks is a turn: first all chunks of queries with the first chunk of keys. Then dk and dv
/// stay in registers until the next chunk of keys, and dq in shared memory.
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
/// work of others where the scan is dense. Some twenty of its short windows wait at a time, and a turn takes
/// what fills it, largest first: a turn takes as long as its largest window, whatever else is in it.
///
/// What is here: the turns of a block. Shared memory and tables are in backward_contextual_window_block.cuh, the
/// choice of windows in backward_contextual_window_turns.cuh, how a tile begins in
/// backward_contextual_window_rows.cuh, its products in backward_contextual_window_pieces.cuh, what leaves it in
/// backward_contextual_window_results.cuh.
///
/// Bound by the latency of dependent instructions: registers and shared memory allow 8 warps a multiprocessor
/// with the radial axis and 12 without, and a warp issues an instruction in six cycles.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_contextual_window_rows.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_differentiator : contextual_window_rows<T, Radial, Long> {
  using base = contextual_window_rows<T, Radial, Long>;
  using base::add_table_term;
  using base::add_to;
  using base::add_to_parts;
  using base::await_rows;
  using base::await_values;
  using base::begin_block;
  using base::begin_keys;
  using base::begin_queries;
  using base::clear;
  using base::clear_parts;
  using base::copy;
  using base::copy_rows;
  using base::copy_values;
  using base::differentiate_keys;
  using base::differentiate_piece;
  using base::finish_cells;
  using base::give;
  using base::group;
  using base::load_factors;
  using base::load_keys;
  using base::load_out;
  using base::load_queries;
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
  using base::plans_meanwhile;
  using base::problem;
  using base::radial_units;
  using base::see_starts;
  using base::share_of_block;
  using base::store_keys;
  using base::store_queries;
  using base::store_sums;
  using base::sums;
  using base::take;
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
  using typename base::piece_factors;
  using typename base::query_state;
  using typename base::query_sums;
  using typename base::radial_products;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// The block's scale of rounding, once all warps know their magnitudes.
  [[nodiscard]] __device__ __forceinline__ rounding_scale scale_of_block() const {
    unsigned largest = 0;
#pragma unroll
    for (int tile = 0; tile < tiles; tile += 4) {
      const uint4 four = at<uint4>(layout::magnitudes)[tile / 4];
      largest = max(largest, max(max(four.x, four.y), max(four.z, four.w)));
    }
    return rounding_scale(largest);
  }
  /// All warps meet, those with and without rows, or the one that plans, in different places of the code: not `bar.sync`, which
  /// promises that it is one.
  static __device__ __forceinline__ void meet() {
    asm volatile("barrier.sync 0;" ::: "memory");
  }
  /// Between what short windows' queries leave and what their keys take: windows of one tile need no other
  /// warp, and where a turn has others, all meet. The warp with most pieces comes last anyway.
  static __device__ __forceinline__ void meet_tiles(const turn& now) {
    if (now.widest > 1)
      meet();
    else
      __syncwarp();
  }

  /// What a tile's keys have from the turns so far.
  struct key_gradients {
    float dk[2][4], dv[2][4];
  };

  static __device__ __forceinline__ void scale_sum(float (&sum)[2][4], float by) {
#pragma unroll
    for (auto& block : sum)
#pragma unroll
      for (float& x : block) x *= by;
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
  /// With which tile of keys a tile of queries goes in a step: others for each, so that all keys have work.
  [[nodiscard]] __device__ __forceinline__ int keys_of_step(const turn& now, int step) const {
    const int j = warp + step;
    const int end = now.base + now.width;
    return j < end ? j : j - now.width < end ? j - now.width : j - 2 * now.width;
  }
  /// Which queries go with this tile's keys in a step.
  [[nodiscard]] __device__ __forceinline__ int queries_of_step(const turn& now, int step) const {
    const int i = warp - step;
    return i >= 0 ? i : i + now.width;
  }
  /// Of long windows: adds what their queries have from the turns so far.
  __device__ __forceinline__ void take_kept_queries(const turn& now, float (&dq)[2][4]) const {
    if (warp >= now.used) return;
    auto* sum = at<float4>(layout::dq + now.number * layout::tile_floats) + place.lane;
    if (!now.first_of_queries) take(sum, dq);
    give(dq, sum);
  }
  __device__ __forceinline__ void take_kept_keys(const turn& now, float lower, key_gradients& kept,
                                                 float (&dk)[2][4], float (&dv)[2][4]) const {
    scale_sum(dk, lower);
    scale_sum(dv, weight_unit);
    if (!now.first_of_keys) {
      add_to(dk, kept.dk);
      add_to(dv, kept.dv);
    }
    copy(dk, kept.dk);
    copy(dv, kept.dv);
  }

  /// The pieces of long windows, half of the keys at a time: others for each tile of queries, so that all keys
  /// have work.
  __device__ __forceinline__ void differentiate_half(const turn& now, const tile_tokens& rows,
                                                     int half, float lower, query_state& state,
                                                     query_sums& of_queries,
                                                     key_sums& of_keys) const {
    const int middle = (now.width + 1) / 2;
    const int from = half == 0 ? 0 : middle;
    const int to = half == 0 ? middle : now.width;
    if (warp < now.used) {
      piece_factors factors;
      if constexpr (base::loads_ahead)
        if (from < to) load_factors(keys_of_step(now, from), factors);
#pragma unroll 1
      for (int step = from; step < to; ++step)
        differentiate_piece(now, rows, keys_of_step(now, step),
                            keys_of_step(now, min(step + 1, to - 1)), step - from, lower, factors,
                            state, of_queries);
    }
    meet();
    if (warp < now.width) {
      // Of chunks of more queries than keys, two tiles may go with the same keys in one step.
#pragma unroll 1
      for (int more = 0; more < now.used; more += now.width)
#pragma unroll 1
        for (int step = from; step < to;) {
          const int i = queries_of_step(now, step) + more;
          const int next = queries_of_step(now, step + 1) + more;
          const bool both = step + 1 < to && i < now.used && next < now.used;
          if (both)
            differentiate_keys({i, next}, {step - from, step + 1 - from}, of_keys);
          else if (i < now.used)
            differentiate_keys(i, step - from, of_keys);
          step += both ? 2 : 1;
        }
    }
    meet();
  }
  /// This warp's tile, up to the sums of tables.
  /// \param kept of long windows.
  __device__ __forceinline__ void differentiate(int number, const turn& now,
                                                const tile_tokens& rows, const tile_tokens& others,
                                                key_gradients& kept) const {
    float dq[2][4], dk[2][4], dv[2][4];
    packed_cells cells[3];
    float row_total[4], column_total[4];
    query_state state;
    const uint4 out = load_out(now, rows);
    begin_keys(others);
    begin_queries(rows, state);
    await_rows();
    take_rows(now, rows, out, state);
    multiply_keys(others.code);
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
    if constexpr (Long) {
      query_sums of_queries;
      key_sums of_keys;
      clear_queries(of_queries);
      clear_keys(of_keys);
#pragma unroll 1
      for (int half = 0; half < 2; ++half)
        differentiate_half(now, rows, half, scale.down, state, of_queries, of_keys);
      take_queries(of_queries);
      take_keys(of_keys);
    } else {
      {
        query_sums sums;
        clear_queries(sums);
        const int last = now.base + now.width - 1;
        piece_factors factors;
#pragma unroll 1
        for (int j = now.base; j <= last; ++j)
          differentiate_piece(now, rows, j, min(j + 1, last), j, scale.down, factors, state, sums);
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
    }
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
    finish_cells<true>(2, cells[2], others.code, dk);
    meet();
    const float lower = scale_of_block().down;
    if constexpr (Long) {
      scale_sum(dq, problem.scale * lower);
      take_kept_queries(now, dq);
      if (now.last_of_queries) store_queries(now.first, rows, 1.0f, dq);
      take_kept_keys(now, lower, kept, dk, dv);
      if (now.last_of_keys) store_keys(now.first_key, others, 1.0f, 1.0f, dk, dv);
    } else {
      const int first =
          planned_turn(number).first;  // read again, which is less than to have kept it
      store_queries(first, rows, problem.scale * lower, dq);
      store_keys(first, rows, lower, weight_unit, dk, dv);
    }
  }

  /// A turn of a warp whose tile has no rows.
  __device__ __forceinline__ void stand_by(const turn& now) const {
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = 0;
    meet();
#pragma unroll 1
    for (int i = 0; i < (Long ? 4 : 2); ++i) {
      if constexpr (Long)
        meet();
      else
        meet_tiles(now);
    }
    meet();
  }
  /// Plans turns: the warp that most often has no rows in one.
  static constexpr int planner = tiles - 1;
  /// Do the next turn's rows arrive while tables are summed up?
  static constexpr bool copies_early = Long || !Radial;

  __device__ __forceinline__ void run() const {
    if (Long && group.counts->largest <= contextual_short_capacity) {
      clear_parts();
      return;
    }
    cursor next =
        share_of_block(Long ? problem.parts_per_head - problem.short_parts : problem.short_parts);
    begin_block();
    if constexpr (!Long) see_starts(next);
    if (warp == planner) {
      if constexpr (!Long) at<int2>(layout::waiting)[place.lane] = {0, 0};
      plan_turn(0, next);
      if constexpr (plans_meanwhile) plan_turn(1, next);
    }
    __syncthreads();
    turn now = planned_turn(0);
    tile_tokens rows = load_queries(now);
    tile_tokens others;
    if constexpr (Long) others = load_keys(now, rows);
    key_gradients kept;
    __syncthreads();
    if (copies_early && takes_part(now)) copy_rows(rows, Long ? others : rows);
    for (int number = 0; now.used > 0; ++number) {
      const bool takes = takes_part(now);
      if (!copies_early && takes) copy_rows(rows, Long ? others : rows);
      if (takes) copy_values(Long ? others : rows);
      // While rows arrive.
      if (!plans_meanwhile && warp == planner) plan_turn(number + 1, next);
      if (takes)
        differentiate(number, now, rows, Long ? others : rows, kept);
      else
        stand_by(now);
      const int used = now.used;
      const int used_by_keys = now.used_by_keys();
      now = planned_turn(number + 1);
      rows = load_queries(now);
      if constexpr (Long) others = load_keys(now, rows);
      const auto begin_next = [&] {
        if constexpr (!copies_early) return;
        if constexpr (plans_meanwhile)
          meet();
        else
          __syncthreads();
        if (takes_part(now)) copy_rows(rows, Long ? others : rows);
      };
      if (warp < part_warps) {
        add_to_parts(used, used_by_keys, scale_of_block().down, begin_next);
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
  contextual_window_differentiator<T, Radial, Long>{
      rows, problem, entry, entry.problem, memory, where.group_head, where.part}
      .run();
  if (Long && blockIdx.x == 0) wait_for_predecessor();
}

}  // namespace winnow::detail
