// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of short windows with contextual position encoding in one pass, for 16-bit storage and head
/// dim 16.
///
/// What one block computes: the windows of up to 64 tokens that start in ranges of slots, of one head,
/// four tiles of 16 rows at a time, one a warp. A tile holds as many whole windows as fit it; a longer
/// window takes several tiles of one turn. So pairs meet only tiles of their own window, each pair once:
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
/// Sums of tables leave for the block's part in global memory, each element by one thread in order. Windows
/// longer than 64 tokens are left to backward_contextual.cuh, which adds to the same parts.
///
/// What is here: the turns of a block, how a tile begins and ends, and the gradients of tables. Shared memory,
/// tables and the choice of windows are in backward_contextual_window_block.cuh, a tile's products in
/// backward_contextual_window_pieces.cuh.
///
/// Bound by instructions: about 2,650 for a tile with one piece.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_contextual_window_pieces.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_window_differentiator : contextual_window_pieces<T, Radial> {
  using base = contextual_window_pieces<T, Radial>;
  using base::all_lanes;
  using base::assigned;
  using base::axis_blocks;
  using base::begin_block;
  using base::blocks;
  using base::clear;
  using base::copy;
  using base::copy_rows;
  using base::differentiate_keys;
  using base::differentiate_piece;
  using base::first_block;
  using base::gradient_points;
  using base::grads;
  using base::group;
  using base::head;
  using base::keys;
  using base::largest_sum;
  using base::left_offset;
  using base::length;
  using base::linear;
  using base::load_tokens;
  using base::magnitude_of;
  using base::memory;
  using base::multiply_axis;
  using base::multiply_cells;
  using base::of_keys;
  using base::of_queries;
  using base::of_values;
  using base::part;
  using base::part_of;
  using base::place;
  using base::plan_turn;
  using base::planned_turn;
  using base::problem;
  using base::queries;
  using base::region;
  using base::row_of_sums;
  using base::rows_of_tile;
  using base::shift_of;
  using base::store_cells;
  using base::sums;
  using base::table;
  using base::table_rows;
  using base::tiles;
  using base::warp;
  using base::weight_points;
  using base::weight_shift;
  using base::weight_unit;
  using base::whole;
  using base::width;
  using base::words;
  using typename base::cursor;
  using typename base::key_sums;
  using typename base::layout;
  using typename base::query_state;
  using typename base::query_sums;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Sums by cell, in T: of rows g and g + 8.
  using packed_cells = std::uint32_t[2][words];
  static __device__ __forceinline__ void pack_cells(const float (&cells)[words][4],
                                                    packed_cells& packed) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < words; ++w) packed[i][w] = pack<T>(cells[w][2 * i], cells[w][2 * i + 1]);
  }
  /// Sums by table row: of rows g and g + 8 six words of one axis.
  using axis_rows = std::uint32_t[2][row_words];
  __device__ __forceinline__ void move_to_rows(const packed_cells& packed, int axis,
                                               const std::uint32_t (&code)[2],
                                               axis_rows& rows) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t cells[cell_words];
#pragma unroll
      // Of an axis that is radial there are no cells.
      for (int w = 0; w < cell_words; ++w)
        cells[w] = packed[i][min(axis * cell_words + w, words - 1)];
      shift_of(code[i], axis).to_rows(cells, rows[i]);
    }
  }
  /// The same of the radial axis. \param which of the rows' dS, their P, the columns' dS.
  __device__ __forceinline__ void take_radial(int which, const float (&unit)[2],
                                              axis_rows& rows) const {
    const int* sums = reinterpret_cast<const int*>(region(warp) + layout::radial_sums) +
                      (16 * which + place.g) * layout::radial_stride + 2 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; ++w) {
        const int2 pair =
            *reinterpret_cast<const int2*>(sums + i * 8 * layout::radial_stride + 8 * w);
        rows[i][w] =
            pack<T>(static_cast<float>(pair.x) * unit[i], static_cast<float>(pair.y) * unit[i]);
      }
  }
  /// sum += rows · table.
  __device__ __forceinline__ void add_table_term(const axis_rows& rows, int which, int axis,
                                                 float (&sum)[2][4]) const {
    const std::byte* right = table(which) + axis * tile_rows * layout::row_bytes + left_offset;
#pragma unroll
    for (int w = 0; w < row_words; w += 2) {
      const std::uint32_t left[4] = {rows[0][w], rows[1][w], rows[0][w + 1], rows[1][w + 1]};
      std::uint32_t b[4];
      load_matrices_transposed(b, right + w * 8 * layout::row_bytes);
      multiply_add_16<T>(sum[0], left, b[0], b[1]);
      multiply_add_16<T>(sum[1], left, b[2], b[3]);
    }
  }
  __device__ __forceinline__ void store_sums(const axis_rows& rows, int which, int axis) const {
    std::byte* target = sums(warp, which) + place.g * layout::sum_bytes + axis * tile_rows * 2 +
                        (8 * place.t ^ (place.g >> 2) * 16);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; w += 2)
        *reinterpret_cast<uint2*>(target + i * 8 * layout::sum_bytes + 16 * w) = {rows[i][w],
                                                                                  rows[i][w + 1]};
  }
  /// What a row's radial sums are multiplied by; NaN where they may have overflown.
  static __device__ __forceinline__ void radial_units(const float (&total)[4], float (&unit)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) unit[i] = total[2 * i] < largest_sum ? 1.0f / gradient_points : NAN;
  }
  /// Table terms of dq and dk, and the rows of sums to shared memory, where nobody reads pieces any more.
  /// `cells` and `totals` are those of dS, of P and of dS of the columns; P has no total.
  __device__ __forceinline__ void finish_sums(const std::uint32_t (&code)[2],
                                              const packed_cells (&cells)[3],
                                              const float (&row_total)[4],
                                              const float (&column_total)[4], float (&dq)[2][4],
                                              float (&dk)[2][4]) const {
    axis_rows radial[3];
    if constexpr (Radial) {
      float unit[2];
      radial_units(row_total, unit);
      take_radial(0, unit, radial[0]);
      radial_units(column_total, unit);
      take_radial(2, unit, radial[2]);
      const float weight_units[2] = {1.0f / weight_points, 1.0f / weight_points};
      take_radial(1, weight_units, radial[1]);
      __syncwarp();
    }
#pragma unroll
    for (int which = 0; which < 3; ++which)
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        axis_rows rows;
        if (linear(axis)) {
          move_to_rows(cells[which], axis, code, rows);
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int w = 0; w < row_words; ++w) rows[i][w] = radial[which][i][w];
        }
        if (which == 0) add_table_term(rows, of_queries, axis, dq);
        if (which == 2) add_table_term(rows, of_keys, axis, dk);
        store_sums(rows, which, axis);
      }
  }

  /// Adds what `used` tiles give to the block's part of tables' gradients.
  __device__ __forceinline__ void add_to_parts(int used, float lower) const {
#pragma unroll
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target == nullptr) continue;
      target += 2 * place.t;
      const std::byte* rows = rows_of_tile(which == 0   ? queries
                                           : which == 1 ? grads
                                                        : keys,
                                           0) +
                              left_offset;
      std::uint32_t right[tiles][4];
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile)
        if (tile < used) load_matrices_transposed(right[tile], rows + tile * layout::tile_bytes);
      const std::byte* left = sums(0, which) +
                              (place.lane % 8 + place.lane / 16 * 8) * layout::sum_bytes +
                              ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
      const float by = which == 0 ? problem.scale * lower : which == 1 ? weight_unit : lower;
#pragma unroll 1
      for (int block = first_block(which); block < blocks; block += tiles) {
        float product[2][4];
        clear(product);
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          if (tile >= used) break;
          std::uint32_t a[4];
          load_matrices_transposed(a, left + tile * layout::region_bytes + block * 32);
          multiply_add_16<T>(product[0], a, right[tile][0], right[tile][1]);
          multiply_add_16<T>(product[1], a, right[tile][2], right[tile][3]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = row_of_sums(which, block, i);
          if (static_cast<unsigned>(row) >= static_cast<unsigned>(table_rows)) continue;
          float* sum = target + (block / axis_blocks * table_rows + row) * problem.head_dim;
          add_in_memory(sum, product[0][2 * i] * by, product[0][2 * i + 1] * by);
          if (problem.head_dim > 8)
            add_in_memory(sum + 8, product[1][2 * i] * by, product[1][2 * i + 1] * by);
        }
      }
    }
  }

  /// Writes rows of a gradient, sums times `by`, or adds to them; rows in `skip` are left to others.
  __device__ __forceinline__ void store(const row_view& view, const std::int32_t (&tokens)[2],
                                        float by, unsigned skip, const float (&sum)[2][4]) const {
    if (view.data == nullptr) return;
    const bool odd = (place.t & 1) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool wanted = tokens[i] >= 0 && (skip >> (place.g + 8 * i) & 1u) == 0;
      T* target = gradient_row<T>(view, max(tokens[i], 0), head);
      if (problem.accumulate) {
        if (!wanted) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n)
          if (8 * n < problem.head_dim)
#pragma unroll
            for (int c = 0; c < 2; ++c)
              store_gradient(target + 8 * n + 2 * place.t + c, sum[n][2 * i + c] * by, true);
        continue;
      }
      // Neighbouring lanes swap, so that each has four columns.
      const std::uint32_t first = pack<T>(sum[0][2 * i] * by, sum[0][2 * i + 1] * by);
      const std::uint32_t second = pack<T>(sum[1][2 * i] * by, sum[1][2 * i + 1] * by);
      const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? first : second, 1);
      const int column = (odd ? 8 : 0) + place.t / 2 * 4;
      if (wanted && column < problem.head_dim)
        *reinterpret_cast<uint2*>(target + column) = {odd ? other : first, odd ? second : other};
    }
  }
  /// The tile's rows whose sums are not finite, as bits.
  __device__ __forceinline__ unsigned broken_rows(const float (&first)[2][4],
                                                  const float (&second)[2][4],
                                                  const std::int32_t (&tokens)[2]) const {
    bool broken[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;  // becomes NaN with any NaN or infinity
#pragma unroll
      for (int n = 0; n < 2; ++n)
        probe += (first[n][2 * i] + first[n][2 * i + 1]) * 0.0f +
                 (second[n][2 * i] + second[n][2 * i + 1]) * 0.0f;
      broken[i] = !(probe == 0.0f) && tokens[i] >= 0;
    }
    if (!__any_sync(all_lanes, broken[0] || broken[1])) return 0;
    unsigned rows = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned lanes = __ballot_sync(all_lanes, broken[i]);
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) rows |= 1u << (g + 8 * i);
    }
    return rows;
  }

  /// delta = dO·O of the tile's rows, for windows of several pieces.
  __device__ __forceinline__ void measure_delta(const turn& now, const tile_tokens& rows) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    float dot = 0.0f;
    if (rows.copied >= 0 && column < problem.head_dim) {
      const uint4 out =
          *reinterpret_cast<const uint4*>(row_of<T>(problem.out, rows.copied, head) + column);
      const uint4 grad =
          *reinterpret_cast<const uint4*>(rows_of_tile(grads, warp) + row * layout::row_bytes +
                                          ((place.lane & 1) ^ (row >> 2 & 1)) * 16);
      const std::uint32_t x[4] = {out.x, out.y, out.z, out.w};
      const std::uint32_t y[4] = {grad.x, grad.y, grad.z, grad.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 o = unpack<T>(x[w]);
        const float2 g = unpack<T>(y[w]);
        dot = fmaf(g.x, o.x, fmaf(g.y, o.y, dot));
      }
    }
    dot += __shfl_xor_sync(all_lanes, dot, 1);
    if (place.lane % 2 == 0) {
      at<float>(layout::deltas)[16 * warp + row] = dot;
      if (rows.copied >= 0) problem.delta[head * problem.max_tokens + now.first + row] = dot;
    }
  }

  /// Before the block's magnitudes are known: cells of the rows, and their products as keys.
  __device__ __forceinline__ void begin_tile(const turn& now, const tile_tokens& rows,
                                             query_state& state) const {
    std::byte* own = region(warp);
    std::uint32_t hot[2][words];
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t position = position_twice(rows.code[i], axis);
#pragma unroll
        for (int w = 0; w < cell_words; ++w)
          hot[i][axis * cell_words + w] =
              one_hot(position, position_pair(8 * w + place.t, 8 * w + place.t + 4));
      }
    store_cells(own + layout::hot, hot);
    if constexpr (Radial) {
      auto* sums = reinterpret_cast<uint4*>(own + layout::radial_sums);
      for (int i = place.lane; i < layout::radial_bytes / 16; i += 32) sums[i] = {0, 0, 0, 0};
      if (place.t == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          at<float>(layout::radius)[16 * warp + place.g + 8 * i] = rows.radius[i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      state.lse[i] = 0.0f;
      if (rows.token[i] >= 0)
        state.lse[i] =
            problem.lse[rows.token[i] * problem.lse_token_stride + head * problem.lse_head_stride];
      state.single[i] = rows.end[i] - rows.begin[i] == 1;
    }
    wait_for_copies<0>();
    __syncwarp();
    load_matrices(state.q, rows_of_tile(queries, warp) + left_offset);
    load_matrices(state.grad_out, rows_of_tile(grads, warp) + left_offset);
    const unsigned magnitude = magnitude_of(state.grad_out);
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = magnitude;
    if (now.width > 1) measure_delta(now, rows);

    std::uint32_t k[4];
    load_matrices(k, rows_of_tile(keys, warp) + left_offset);
    std::uint32_t cells[2][words];
    multiply_cells(k, of_keys, rows.code, cells);
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
    if (now.width > 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        state.delta[i] =
            at<float>(layout::deltas)[16 * warp + place.g + 8 * i] * (-raise * weight_unit);
    }
  }

  /// The block's scale of rounding, once all warps know their magnitudes.
  [[nodiscard]] __device__ __forceinline__ rounding_scale scale_of_block() const {
    const uint4 largest = *at<uint4>(layout::magnitudes);
    return rounding_scale(max(max(largest.x, largest.y), max(largest.z, largest.w)));
  }
  /// A barrier that warps with and without rows reach in different places, which `__syncthreads` does not
  /// allow.
  static __device__ __forceinline__ void meet_all() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * layout::tiles) : "memory");
  }
  /// A barrier between the tiles of a window.
  static __device__ __forceinline__ void meet(const turn& now) {
    if (now.long_windows)
      meet_all();
    else
      __syncwarp();
  }

  /// This warp's tile, up to the sums of tables.
  __device__ __forceinline__ void differentiate(const turn& now, const tile_tokens& rows) const {
    float dq[2][4], dk[2][4], dv[2][4], row_total[4], column_total[4];
    packed_cells cells[3];
    {
      query_state state;
      begin_tile(now, rows, state);
      meet_all();
      const rounding_scale scale = scale_of_block();
      begin_queries(now, rows, scale.up, state);
      query_sums sums;
      clear(sums.dq);
      clear(sums.cells[0]);
      clear(sums.cells[1]);
      clear(sums.total);
#pragma unroll 1
      for (int j = now.base; j < now.base + now.width; ++j)
        differentiate_piece(now, rows, j, scale.down, state, sums);
      pack_cells(sums.cells[0], cells[0]);
      pack_cells(sums.cells[1], cells[1]);
      copy(sums.dq, dq);
      copy(sums.total, row_total);
    }
    meet(now);
    {
      key_sums sums;
      clear(sums.dk);
      clear(sums.dv);
      clear(sums.cells);
      clear(sums.total);
#pragma unroll 1
      for (int i = now.base; i < now.base + now.width; ++i) differentiate_keys(i, sums);
      pack_cells(sums.cells, cells[2]);
#pragma unroll
      for (auto& block : sums.dk)
#pragma unroll
        for (float& x : block) x *= problem.scale;
      copy(sums.dk, dk);
      copy(sums.dv, dv);
      copy(sums.total, column_total);
    }
    meet(now);
    finish_sums(rows.code, cells, row_total, column_total, dq, dk);
    meet_all();
    const float lower = scale_of_block().down;
    const unsigned queries_left = broken_rows(dq, dq, rows.token);
    const unsigned keys_left = broken_rows(dk, dv, rows.token);
    store(problem.grad_q, rows.token, problem.scale * lower, queries_left, dq);
    store(problem.grad_k, rows.token, lower, keys_left, dk);
    store(problem.grad_v, rows.token, weight_unit, keys_left, dv);
    for (unsigned left = queries_left; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::query>(whole, group, head,
                                                 now.first + __ffs(static_cast<int>(left)) - 1, {});
    for (unsigned left = keys_left; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::key>(whole, group, head,
                                               now.first + __ffs(static_cast<int>(left)) - 1, {});
  }
  /// What a warp without rows does meanwhile.
  __device__ __forceinline__ void stand_by(const turn& now) const {
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = 0;
    meet_all();
    meet(now);
    meet(now);
    meet_all();
  }

  __device__ __forceinline__ void run() const {
    begin_block();
    // All blocks get the same number of ranges, of one length.
    const std::int64_t share = std::int64_t{problem.parts_per_head} * contextual_window_range;
    const std::int64_t turns = max((assigned + share - 1) / share, std::int64_t{1});
    const std::int64_t ranges = turns * problem.parts_per_head;
    const int range = static_cast<int>((assigned + ranges - 1) / ranges);
    cursor next{part - problem.parts_per_head, 0, 0};
    if (warp == 0) plan_turn(next, range);
    __syncthreads();
    turn now = planned_turn();
    tile_tokens rows = load_tokens(now);
    __syncthreads();
    while (now.used > 0) {
      if (now.count > 0) copy_rows(rows);
      // While rows arrive.
      if (warp == 0) plan_turn(next, range);
      if (now.count > 0)
        differentiate(now, rows);
      else
        stand_by(now);
      const int used = now.used;
      now = planned_turn();
      rows = load_tokens(now);
      add_to_parts(used, scale_of_block().down);
      __syncthreads();
    }
  }
};

/// Heads are the fastest index of the grid.
template <class T, bool Radial>
__global__ void __launch_bounds__(32 * contextual_window_layout<Radial>::tiles,
                                  contextual_window_layout<Radial>::min_blocks)
    differentiate_contextual_windows_kernel(const __grid_constant__ backward_problem problem,
                                            const __grid_constant__ backward_rows rows) {
  extern __shared__ __align__(16) std::byte memory[];
  const block_place where(problem);
  const backward_group& entry = problem.groups[where.group];
  contextual_window_differentiator<T, Radial>{rows,   problem,          entry,     entry.problem,
                                              memory, where.group_head, where.part}
      .run();
}

}  // namespace winnow::detail
