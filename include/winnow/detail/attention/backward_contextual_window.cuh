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
/// What is here: the turns of a block, and how a tile begins and ends. Shared memory, tables and the choice of
/// windows are in backward_contextual_window_block.cuh, a tile's products in
/// backward_contextual_window_pieces.cuh, what leaves it in backward_contextual_window_results.cuh.
///
/// Bound by the latency of dependent instructions: registers and shared memory allow 8 warps a multiprocessor
/// with the radial axis and 12 without, and a warp issues an instruction in six cycles.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_contextual_window_results.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_differentiator : contextual_window_results<T, Radial, Long> {
  using base = contextual_window_results<T, Radial, Long>;
  using base::add_to_parts;
  using base::all_lanes;
  using base::begin_block;
  using base::clear;
  using base::clear_parts;
  using base::copy;
  using base::copy_rows;
  using base::differentiate_keys;
  using base::differentiate_piece;
  using base::finish_sums;
  using base::grads;
  using base::group;
  using base::head;
  using base::keys;
  using base::left_offset;
  using base::load_keys;
  using base::load_queries;
  using base::magnitude_of;
  using base::memory;
  using base::multiply_axis;
  using base::multiply_cells;
  using base::of_keys;
  using base::of_queries;
  using base::of_values;
  using base::pack_cells;
  using base::part;
  using base::place;
  using base::plan_turn;
  using base::planned_turn;
  using base::problem;
  using base::queries;
  using base::region;
  using base::rows_of_tile;
  using base::see_starts;
  using base::share_of_block;
  using base::store_cells;
  using base::store_keys;
  using base::store_queries;
  using base::sums;
  using base::takes_part;
  using base::tiles;
  using base::warp;
  using base::weight_shift;
  using base::weight_unit;
  using base::whole;
  using base::width;
  using base::words;
  using typename base::cursor;
  using typename base::key_sums;
  using typename base::layout;
  using typename base::packed_cells;
  using typename base::query_state;
  using typename base::query_sums;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// This lane's half of a row of O, for windows of several pieces; zeros where there is none.
  [[nodiscard]] __device__ __forceinline__ uint4 load_out(const turn& now,
                                                          const tile_tokens& rows) const {
    const int column = place.lane % 2 * width;
    if (!(Long || now.width > 1) || rows.copied < 0 || column >= problem.head_dim)
      return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(row_of<T>(problem.out, rows.copied, head) + column);
  }
  /// delta = dO·O of the tile's rows, for windows of several pieces.
  __device__ __forceinline__ void measure_delta(const turn& now, const tile_tokens& rows,
                                                const uint4& out) const {
    const int row = place.lane / 2;
    const uint4 grad =
        *reinterpret_cast<const uint4*>(rows_of_tile(grads, warp) + row * layout::row_bytes +
                                        ((place.lane & 1) ^ (row >> 2 & 1)) * 16);
    const std::uint32_t x[4] = {out.x, out.y, out.z, out.w};
    const std::uint32_t y[4] = {grad.x, grad.y, grad.z, grad.w};
    float dot = 0.0f;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 o = unpack<T>(x[w]);
      const float2 g = unpack<T>(y[w]);
      dot = fmaf(g.x, o.x, fmaf(g.y, o.y, dot));
    }
    dot += __shfl_xor_sync(all_lanes, dot, 1);
    if (place.lane % 2 == 0) {
      at<float>(layout::deltas)[16 * warp + row] = dot;
      if (rows.copied >= 0) problem.delta[head * problem.max_tokens + now.first + row] = dot;
    }
  }

  /// One-hot cells of rows g and g + 8.
  __device__ __forceinline__ void mark_cells(const std::uint32_t (&code)[2],
                                             std::uint32_t (&hot)[2][words]) const {
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t position = position_twice(code[i], axis);
#pragma unroll
        for (int w = 0; w < cell_words; ++w)
          hot[i][axis * cell_words + w] =
              one_hot(position, position_pair(8 * w + place.t, 8 * w + place.t + 4));
      }
  }
  /// Before the block's magnitudes are known: cells of the keys and their products. In short windows the
  /// rows are queries and keys.
  __device__ __forceinline__ void begin_tile(const turn& now, const tile_tokens& rows,
                                             const tile_tokens& others, query_state& state) const {
    std::byte* own = region(warp);
    const uint4 out = load_out(now, rows);
    std::uint32_t hot[2][words];
    mark_cells(others.code, hot);
    store_cells(own + layout::hot, hot);
    if constexpr (Long) {
      mark_cells(rows.code, state.hot);
      if (place.t == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          at<std::uint32_t>(layout::query_codes)[16 * warp + place.g + 8 * i] = rows.code[i];
    }
    if constexpr (Radial) {
      auto* sums = reinterpret_cast<uint4*>(own + layout::radial_sums);
      for (int i = place.lane; i < layout::radial_bytes / 16; i += 32) sums[i] = {0, 0, 0, 0};
      if (place.t == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          at<float>(layout::radius)[16 * warp + place.g + 8 * i] = others.radius[i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      state.lse[i] = INFINITY;
      if (rows.token[i] >= 0)
        state.lse[i] =
            problem.lse[rows.token[i] * problem.lse_token_stride + head * problem.lse_head_stride];
      state.single[i] = rows.window[i] >> 16 == 1;
    }
    wait_for_copies<0>();
    __syncwarp();
    load_matrices(state.q, rows_of_tile(queries, warp) + left_offset);
    load_matrices(state.grad_out, rows_of_tile(grads, warp) + left_offset);
    const unsigned magnitude = magnitude_of(state.grad_out);
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = magnitude;
    if (Long || now.width > 1) measure_delta(now, rows, out);

    std::uint32_t k[4];
    load_matrices(k, rows_of_tile(keys, warp) + left_offset);
    std::uint32_t cells[2][words];
    multiply_cells(k, of_keys, others.code, cells);
    store_cells(own + layout::key_cells, cells);
    if constexpr (Radial) {
      std::uint32_t product[2][row_words];
      multiply_axis(k, of_keys, 2, product);
      std::byte* target =
          own + layout::key_radial + place.g * layout::key_radial_stride * 2 + 4 * place.t;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < row_words; ++w)
          *reinterpret_cast<std::uint32_t*>(target + i * 8 * layout::key_radial_stride * 2 +
                                            16 * w) = product[i][w];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) state.lse[i] = fmaf(state.lse[i], -log2_e, weight_shift);
  }
  /// The tile's products as queries; `raise` is the scale of dO.
  __device__ __forceinline__ void begin_queries(const turn& now, const tile_tokens& rows,
                                                float raise, query_state& state) const {
#pragma unroll
    for (std::uint32_t& pair : state.grad_out) {
      const float2 x = unpack<T>(pair);
      pair = pack<T>(x.x * raise, x.y * raise);
    }
    if constexpr (layout::own_cells) {
      std::uint32_t cells[2][words];
      multiply_cells(state.q, of_queries, rows.code, cells);
      store_cells(region(warp) + layout::query_cells, cells);
      multiply_cells(state.grad_out, of_values, rows.code, cells);
      store_cells(region(warp) + layout::value_cells, cells);
      __syncwarp();
    } else {
      multiply_cells(state.q, of_queries, rows.code, state.query_cells);
      multiply_cells(state.grad_out, of_values, rows.code, state.value_cells);
    }
    if constexpr (Radial) {
      std::uint32_t of_q[2][row_words], of_v[2][row_words];
      multiply_axis(state.q, of_queries, 2, of_q);
      multiply_axis(state.grad_out, of_values, 2, of_v);
      std::byte* target = region(warp) + layout::query_radial +
                          place.g * layout::query_radial_stride * 4 + 8 * place.t;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < row_words; ++w)
          *reinterpret_cast<uint2*>(target + i * 8 * layout::query_radial_stride * 4 + 32 * w) = {
              __byte_perm(of_q[i][w], of_v[i][w], 0x5410u),
              __byte_perm(of_q[i][w], of_v[i][w], 0x7632u)};
      __syncwarp();
    }
    if (Long || now.width > 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        state.delta[i] =
            at<float>(layout::deltas)[16 * warp + place.g + 8 * i] * (-raise * weight_unit);
    }
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
  /// All warps meet, those with rows and those without in different places of the code: not `bar.sync`, which
  /// promises that it is one.
  static __device__ __forceinline__ void meet() {
    asm volatile("barrier.sync 0;" ::: "memory");
  }
  /// Between what short windows' queries leave and what their keys take: windows of one tile need no other
  /// warp, and where a turn has others, all meet. The warp with most pieces comes last anyway.
  static __device__ __forceinline__ void meet_tiles(const turn& now) {
    if (now.shared)
      meet();
    else
      __syncwarp();
  }

  /// What a tile's keys have from the turns so far.
  struct key_gradients {
    float dk[2][4], dv[2][4];
  };

  /// The pieces of a turn: queries leave dS and P to the keys.
  __device__ __forceinline__ void differentiate_pieces(const turn& now, const tile_tokens& rows,
                                                       float lower, query_state& state,
                                                       query_sums& sums) const {
#pragma unroll 1
    for (int j = now.base; j < now.base + now.width; ++j)
      differentiate_piece(now, rows, j, j, lower, state, sums);
  }
  /// The same of long windows, half of the keys at a time: others for each tile of queries, so that all keys
  /// have work.
  __device__ __forceinline__ void differentiate_half(const turn& now, const tile_tokens& rows,
                                                     int half, float lower, query_state& state,
                                                     query_sums& of_queries,
                                                     key_sums& of_keys) const {
    const int middle = (now.width + 1) / 2;
    const int from = half == 0 ? 0 : middle;
    const int to = half == 0 ? middle : now.width;
    if (warp < now.used) {
#pragma unroll 1
      for (int step = from; step < to; ++step) {
        const int j = warp + step;
        differentiate_piece(now, rows, j < now.width ? j : j - now.width, step - from, lower, state,
                            of_queries);
      }
    }
    meet();
    if (warp < now.width) {
#pragma unroll 1
      for (int i = 0; i < now.used; ++i) {
        const int step = warp >= i ? warp - i : warp - i + now.width;
        if (step >= from && step < to) differentiate_keys(i, step - from, of_keys);
      }
    }
    meet();
  }

  /// A turn of a warp without rows.
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
  /// This warp's tile, up to the sums of tables.
  /// \param kept of long windows.
  __device__ __forceinline__ void differentiate(int number, const turn& now,
                                                const tile_tokens& rows, const tile_tokens& others,
                                                key_gradients& kept) const {
    float dq[2][4], dk[2][4], dv[2][4], row_total[4], column_total[4];
    packed_cells cells[3];
    const auto take_queries = [&](const query_sums& sums) {
      pack_cells(sums.cells[0], cells[0]);
      pack_cells(sums.cells[1], cells[1]);
      copy(sums.dq, dq);
      copy(sums.total, row_total);
    };
    const auto clear_queries = [&](query_sums& sums) {
      clear(sums.dq);
      clear(sums.cells[0]);
      clear(sums.cells[1]);
      clear(sums.total);
    };
    const auto clear_keys = [&](key_sums& sums) {
      clear(sums.dk);
      clear(sums.dv);
      clear(sums.cells);
      clear(sums.total);
    };
    const auto take_keys = [&](key_sums& sums) {
      pack_cells(sums.cells, cells[2]);
#pragma unroll
      for (auto& block : sums.dk)
#pragma unroll
        for (float& x : block) x *= problem.scale;
      copy(sums.dk, dk);
      copy(sums.dv, dv);
      copy(sums.total, column_total);
    };
    query_state state;
    begin_tile(now, rows, others, state);
    meet();
    const rounding_scale scale = scale_of_block();
    begin_queries(now, rows, scale.up, state);
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
        differentiate_pieces(now, rows, scale.down, state, sums);
        take_queries(sums);
      }
      meet_tiles(now);
      {
        key_sums sums;
        clear_keys(sums);
#pragma unroll 1
        for (int i = now.base; i < now.base + now.width; ++i) differentiate_keys(i, warp, sums);
        take_keys(sums);
      }
      meet_tiles(now);
    }
    finish_sums(rows.code, others.code, cells, row_total, column_total, dq, dk);
    meet();
    const float lower = scale_of_block().down;
    if constexpr (Long) {
      scale_sum(dq, problem.scale * lower);
      scale_sum(dk, lower);
      scale_sum(dv, weight_unit);
      if (warp < now.used) {
        auto* sum = at<float4>(layout::dq + now.number * layout::dq_bytes) + place.lane;
        if (!now.first_of_queries) add_to(dq, sum[0], sum[32]);
        sum[0] = {dq[0][0], dq[0][1], dq[0][2], dq[0][3]};
        sum[32] = {dq[1][0], dq[1][1], dq[1][2], dq[1][3]};
      }
      if (!now.first_of_keys) {
        add_to(dk, kept.dk);
        add_to(dv, kept.dv);
      }
      copy(dk, kept.dk);
      copy(dv, kept.dv);
      if (now.last_of_queries) store_queries(now.first, rows, 1.0f, dq);
      if (now.last_of_keys) store_keys(now.first_key, others, 1.0f, 1.0f, dk, dv);
    } else {
      const int first =
          planned_turn(number).first;  // read again, which is less than to have kept it
      store_queries(first, rows, problem.scale * lower, dq);
      store_keys(first, rows, lower, weight_unit, dk, dv);
    }
  }
  static __device__ __forceinline__ void scale_sum(float (&sum)[2][4], float by) {
#pragma unroll
    for (auto& block : sum)
#pragma unroll
      for (float& x : block) x *= by;
  }
  static __device__ __forceinline__ void add_to(float (&sum)[2][4], const float (&more)[2][4]) {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[n][e] += more[n][e];
  }
  static __device__ __forceinline__ void add_to(float (&sum)[2][4], const float4& low,
                                                const float4& high) {
    add_to(sum, {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}});
  }
  /// Plans turns: the warp that most often has no rows in one.
  static constexpr int planner = tiles - 1;

  __device__ __forceinline__ void run() const {
    if (Long && group.counts->largest <= contextual_short_capacity) {
      clear_parts();
      return;
    }
    cursor next =
        share_of_block(Long ? problem.parts_per_head - problem.short_parts : problem.short_parts);
    begin_block();
    if constexpr (!Long) {
      see_starts(next);
      if (warp == planner) at<int2>(layout::waiting)[place.lane] = {0, 0};
    }
    if (warp == planner) plan_turn(0, next);
    __syncthreads();
    turn now = planned_turn(0);
    tile_tokens rows = load_queries(now);
    tile_tokens others;
    if constexpr (Long) others = load_keys(now, rows);
    key_gradients kept;
    __syncthreads();
    for (int number = 0; now.used > 0; ++number) {
      const bool takes = takes_part(now);
      if (takes) copy_rows(rows, Long ? others : rows);
      // While rows arrive.
      if (warp == planner) plan_turn(number + 1, next);
      if (takes)
        differentiate(number, now, rows, Long ? others : rows, kept);
      else
        stand_by(now);
      const int used = now.used;
      const int used_by_keys = now.used_by_keys();
      now = planned_turn(number + 1);
      rows = load_queries(now);
      if constexpr (Long) others = load_keys(now, rows);
      add_to_parts(used, used_by_keys, scale_of_block().down);
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
