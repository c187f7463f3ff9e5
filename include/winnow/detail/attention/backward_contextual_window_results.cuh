// SPDX-License-Identifier: Apache-2.0
/// \file
/// What leaves a tile of backward_contextual_window.cuh: sums by cell become sums by table row, which give the
/// table terms of dq and dk and the gradients of tables; rows of dq, dk and dv go to global memory.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_contextual_window_pieces.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_results : contextual_window_pieces<T, Radial, Long> {
  using base = contextual_window_pieces<T, Radial, Long>;
  using base::all_lanes;
  using base::axis_blocks;
  using base::blocks;
  using base::first_block;
  using base::gradient_points;
  using base::grads;
  using base::group;
  using base::head;
  using base::keys;
  using base::largest_sum;
  using base::left_of_keys;
  using base::left_offset;
  using base::linear;
  using base::of_keys;
  using base::of_queries;
  using base::part_of;
  using base::part_warps;
  using base::part_width;
  using base::place;
  using base::problem;
  using base::queries;
  using base::region;
  using base::row_of_head;
  using base::row_of_product;
  using base::rows_between;
  using base::rows_of_tile;
  using base::shift_of;
  using base::slot_at;
  using base::sums;
  using base::table;
  using base::tile_pitch;
  using base::tiles;
  using base::tokens_of;
  using base::warp;
  using base::weight_base;
  using base::weight_mask;
  using base::weight_points;
  using base::weight_unit;
  using base::whole;
  using base::width;
  using base::words;
  using typename base::layout;
  using typename base::tile_tokens;

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
  /// The same of the radial axis in short windows: of columns' dS.
  __device__ __forceinline__ void take_radial_columns(const float (&unit)[2],
                                                      axis_rows& rows) const {
    static_assert(layout::sums_late);
    const int* sums = reinterpret_cast<const int*>(region(warp) + layout::late_sums) +
                      place.g * layout::radial_stride + 2 * place.t;
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
  /// The same of rows' dS and P in short windows. Every other lane begins with row g + 8, so that lanes meet all banks.
  __device__ __forceinline__ void take_radial_rows(const float (&unit)[2], axis_rows& of_gradients,
                                                   axis_rows& of_weights) const {
    // The low bits of a sum of weights are those of a float again.
    const auto weight = [](int sum) {
      return fmaf(__int_as_float((sum & weight_mask) | __float_as_int(weight_base)),
                  1.0f / weight_points, -weight_base / weight_points);
    };
    const bool swaps = (place.t & 1) != 0;
    const auto* sums = reinterpret_cast<const int2*>(region(warp) + layout::late_sums) +
                       2 * place.t * 16 + place.g;
    axis_rows gradients, weights;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int2* row = sums + 8 * (swaps ? 1 - i : i);
      const float gradient_units = swaps ? unit[1 - i] : unit[i];
#pragma unroll
      for (int w = 0; w < row_words; ++w) {
        const int2 low = row[8 * w * 16];
        const int2 high = row[(8 * w + 1) * 16];
        gradients[i][w] = pack<T>(static_cast<float>(low.x) * gradient_units,
                                  static_cast<float>(high.x) * gradient_units);
        weights[i][w] = pack<T>(weight(low.y), weight(high.y));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; ++w) {
        of_gradients[i][w] = swaps ? gradients[1 - i][w] : gradients[i][w];
        of_weights[i][w] = swaps ? weights[1 - i][w] : weights[i][w];
      }
  }
  /// The same where sums lie by radial row: those of dS from `sums` on, this lane's first row's and from that the
  /// other one's.
  __device__ __forceinline__ void take_gradients(const std::byte* sums, int to_other,
                                                 const float (&unit)[2], axis_rows& rows) const {
    sums += place.t * layout::radial_step;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; ++w) {
        const std::byte* sum = sums + i * to_other + 8 * w * layout::radial_step;
        const int low = *reinterpret_cast<const int*>(sum);
        const int high = *reinterpret_cast<const int*>(sum + 4 * layout::radial_step);
        rows[i][w] = pack<T>(static_cast<float>(low) * unit[i], static_cast<float>(high) * unit[i]);
      }
  }
  __device__ __forceinline__ void take_query_gradients(const float (&unit)[2],
                                                       axis_rows& rows) const {
    take_gradients(region(warp) + layout::radial_sums + place.g * layout::query_step,
                   layout::half_step, unit, rows);
  }
  __device__ __forceinline__ void take_key_gradients(const float (&unit)[2],
                                                     axis_rows& rows) const {
    take_gradients(region(warp) + layout::column_sums + place.g / 2 * layout::sum_of_t +
                       place.g % 2 * layout::sum_of_c,
                   layout::sum_of_n, unit, rows);
  }
  __device__ __forceinline__ void take_weights(axis_rows& rows) const {
    const std::byte* sums = region(warp) + layout::weight_sums + place.g * layout::query_step +
                            place.t * layout::radial_step;
    constexpr float unit = 1.0f / static_cast<float>(base::short_weight_points);
#pragma unroll
    for (int w = 0; w < row_words; ++w) {
      const auto* sum = sums + 8 * w * layout::radial_step;
      const auto low = *reinterpret_cast<const std::uint32_t*>(sum);
      const auto high = *reinterpret_cast<const std::uint32_t*>(sum + 4 * layout::radial_step);
      rows[0][w] = pack<T>(static_cast<float>(low & 0xffffu) * unit,
                           static_cast<float>(high & 0xffffu) * unit);
      rows[1][w] =
          pack<T>(static_cast<float>(low >> 16) * unit, static_cast<float>(high >> 16) * unit);
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
  /// Sums by cell of one table become rows of sums in shared memory, where nobody reads pieces any more, and
  /// their table terms are added to `sum`: those of dq and dk; P has none.
  template <bool HasTerm>
  __device__ __forceinline__ void finish_cells(int which, const packed_cells& cells,
                                               const std::uint32_t (&code)[2],
                                               float (&sum)[2][4]) const {
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis) {
      axis_rows rows;
      move_to_rows(cells, axis, code, rows);
      if constexpr (HasTerm) add_table_term(rows, which == 0 ? of_queries : of_keys, axis, sum);
      store_sums(rows, which, axis);
    }
  }
  static __device__ __forceinline__ void give(const float (&sum)[2][4], float4* target) {
    target[0] = {sum[0][0], sum[0][1], sum[0][2], sum[0][3]};
    target[1] = {sum[1][0], sum[1][1], sum[1][2], sum[1][3]};
  }
  static __device__ __forceinline__ void take(const float4* source, float (&sum)[2][4]) {
    const float4 low = source[0], high = source[1];
    const float more[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[n][e] += more[n][e];
  }

  /// Right factors of one table's gradient: the tiles' q, dO or k, and zeros for tiles that have none.
  using part_factors = std::uint32_t[tiles][4];
  template <int Tiles>
  __device__ __forceinline__ void load_part_factors(int which, int used,
                                                    std::uint32_t (&right)[Tiles][4]) const {
    const int of = which == 0 ? queries : which == 1 ? grads : keys;
    const std::byte* rows = rows_of_tile(of, 0) + (of == keys ? left_of_keys() : left_offset);
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      load_matrices_transposed(right[tile], rows + tile * tile_pitch(of));
      if (tile >= layout::least_tiles)
#pragma unroll
        for (std::uint32_t& pair : right[tile]) pair = tile < used ? pair : 0;
    }
  }
  /// product = 16 rows of one table's gradient, of `used` tiles.
  template <int Tiles>
  __device__ __forceinline__ void multiply_part(int which, int block, int used,
                                                const std::uint32_t (&right)[Tiles][4],
                                                float (&product)[2][4]) const {
    const std::byte* left = sums(0, which) + block * 32 +
                            (place.lane % 8 + place.lane / 16 * 8) * layout::sum_bytes +
                            ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
    // Two chains of products where there are many tiles, and registers for them.
    constexpr int chains = Radial && Tiles > 4 ? 2 : 1;
    float sums_of_chains[chains][2][4];
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
      std::uint32_t a[4];
      // Not what lies where there are no sums, which may be NaN.
      load_matrices_transposed(a, left + (tile < used ? tile : 0) * layout::region_bytes);
      auto& sum = sums_of_chains[tile % chains];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (tile < chains)
          multiply_16<T>(sum[n], a, right[tile][2 * n], right[tile][2 * n + 1]);
        else
          multiply_add_16<T>(sum[n], a, right[tile][2 * n], right[tile][2 * n + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        product[n][e] = chains == 2 ? sums_of_chains[0][n][e] + sums_of_chains[chains - 1][n][e]
                                    : sums_of_chains[0][n][e];
  }
  /// \param target one table's part; null: not wanted
  __device__ __forceinline__ void add_rows(float* target, int block, float by,
                                           const float (&product)[2][4]) const {
    if (target == nullptr) return;
    const bool by_cell = layout::by_radial_row || linear(block / axis_blocks);
    const int between = rows_between(by_cell) * part_width;
    float* sum = target + (16 * block + row_of_product(by_cell)) * part_width + 2 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        add_in_memory(sum + i * between + 8 * n, product[n][2 * i] * by,
                      product[n][2 * i + 1] * by);
  }
  /// Adds what a turn's tiles give to the block's part of tables' gradients, 16 rows of all three tables at a
  /// time: their chains of products do not wait for each other. \param release called when this warp needs no
  /// rows of tiles any more. \tparam First the first table.
  /// \tparam End behind the last. \tparam Tiles that may have been used.
  template <int First, int End, int Tiles, class Release>
  __device__ __forceinline__ void add_to_parts(int used_by_queries, int used_by_keys, float lower,
                                               const Release& release) const {
    const float by[3] = {problem.scale * lower, weight_unit, lower};
    const int used[3] = {used_by_queries, used_by_queries, used_by_keys};
    std::uint32_t right[3][Tiles][4];
#pragma unroll
    for (int which = First; which < End; ++which)
      load_part_factors(which, used[which], right[which]);
    release();
    int from = 0;
#pragma unroll 1
    for (; from + part_warps <= blocks; from += part_warps) {
      float product[3][2][4];
#pragma unroll
      for (int which = First; which < End; ++which)
        multiply_part(which, from + first_block(which), used[which], right[which], product[which]);
#pragma unroll
      for (int which = First; which < End; ++which)
        add_rows(part_of(which), from + first_block(which), by[which], product[which]);
    }
#pragma unroll
    for (int which = First; which < End; ++which) {
      const int block = from + first_block(which);
      if (block >= blocks) continue;
      float product[2][4];
      multiply_part(which, block, used[which], right[which], product);
      add_rows(part_of(which), block, by[which], product);
    }
  }

  /// The same of three warps of short windows, each with a table: its right factors are loaded once, and three blocks of
  /// an axis do not wait for each other either.
  __device__ __forceinline__ void add_to_part(int used, float lower,
                                              const part_factors& right) const {
    static_assert(part_warps == 3 || layout::tiles != 4);
    const int which = warp;
    float* const target = part_of(which);
    if (target == nullptr) return;
    const float by = which == 0 ? problem.scale * lower : which == 1 ? weight_unit : lower;
#pragma unroll 1
    for (int block = 0; block < blocks; block += axis_blocks) {
      float product[axis_blocks][2][4];
#pragma unroll
      for (int i = 0; i < axis_blocks; ++i)
        multiply_part(which, block + i, used, right, product[i]);
#pragma unroll
      for (int i = 0; i < axis_blocks; ++i) add_rows(target, block + i, by, product[i]);
    }
  }

  /// A gradient's rows in shared memory, where nobody needs the tile's one-hot cells any more: so each lane writes
  /// half a row, of the token whose half it has copied.
  __device__ __forceinline__ std::byte* staged_rows(int which) const {
    return region(warp) + layout::hot + which * layout::row_bytes;
  }
  __device__ __forceinline__ void stage_rows(int which, float by, const float (&sum)[2][4]) const {
    std::byte* target = staged_rows(which) + place.g * layout::cell_bytes + 4 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        *reinterpret_cast<std::uint32_t*>(target + i * 8 * layout::cell_bytes + 16 * n) =
            pack<T>(sum[n][2 * i] * by, sum[n][2 * i + 1] * by);
  }
  __device__ __forceinline__ void write_rows(const row_view& view, int which, std::int32_t token,
                                             unsigned skip) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    const bool wanted =
        view.data != nullptr && token >= 0 && (skip >> row & 1u) == 0 && column < problem.head_dim;
    if (wanted)
      *reinterpret_cast<uint4*>(row_of_head(view, token) + column) =
          *reinterpret_cast<const uint4*>(staged_rows(which) + row * layout::cell_bytes +
                                          place.lane % 2 * 16);
  }
  /// Adds what a row of a gradient has in this lane's columns, if it is wanted.
  __device__ __forceinline__ void add_what_is_there(const T* row, bool wanted,
                                                    float2 (&sum)[2]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (!wanted || 8 * n >= problem.head_dim) continue;
      const float2 old =
          unpack<T>(*reinterpret_cast<const std::uint32_t*>(row + 8 * n + 2 * place.t));
      sum[n].x += old.x;
      sum[n].y += old.y;
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
      T* target = row_of_head(view, max(tokens[i], 0));
      float2 own[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) own[n] = {sum[n][2 * i] * by, sum[n][2 * i + 1] * by};
      if (problem.accumulate) add_what_is_there(target, wanted, own);
      // Neighbouring lanes swap, so that each has four columns.
      const std::uint32_t first = pack<T>(own[0].x, own[0].y);
      const std::uint32_t second = pack<T>(own[1].x, own[1].y);
      const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? first : second, 1);
      const int column = (odd ? 8 : 0) + place.t / 2 * 4;
      if (wanted && column < problem.head_dim)
        *reinterpret_cast<uint2*>(target + column) = {odd ? other : first, odd ? second : other};
    }
  }
  /// The tile's rows of which one of some sums is not finite, as bits.
  template <class... Sums>
  __device__ __forceinline__ unsigned broken_rows(const std::int32_t (&tokens)[2],
                                                  const Sums&... sums) const {
    bool broken[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;  // becomes NaN or infinite with any that is
      const auto look_at = [&](const float(&sum)[2][4]) {
#pragma unroll
        for (int n = 0; n < 2; ++n) probe += sum[n][2 * i] + sum[n][2 * i + 1];
      };
      (look_at(sums), ...);
      broken[i] = !(probe * 0.0f == 0.0f) && tokens[i] >= 0;
    }
    if (!__any_sync(all_lanes, broken[0] || broken[1])) return 0;
    unsigned rows = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned lanes = __ballot_sync(all_lanes, broken[i]);
#pragma unroll 1
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) rows |= 1u << (g + 8 * i);
    }
    return rows;
  }
  template <backward_side Side, class Tile>
  __device__ __forceinline__ void differentiate_again(const Tile& tile, unsigned rows) const {
    for (; rows != 0; rows &= rows - 1)
      differentiate_row<T, Side>(whole, group, head,
                                 slot_at(tile, __ffs(static_cast<int>(rows)) - 1), {});
  }

  /// Gradients of a tile's queries. Rows that are not finite are computed again.
  /// \param tile a turn, or the tile's first slot.
  template <class Tile>
  __device__ __forceinline__ void store_queries(const Tile& tile, const tile_tokens& rows, float by,
                                                const float (&dq)[2][4]) const {
    std::int32_t tokens[2];
    tokens_of(rows, tokens);
    const unsigned broken = broken_rows(tokens, dq);
    if (layout::keys_together && !problem.accumulate) {
      stage_rows(0, by, dq);
      __syncwarp();
      write_rows(problem.grad_q, 0, rows.copied, broken);
    } else {
      store(problem.grad_q, tokens, by, broken, dq);
    }
    differentiate_again<backward_side::query>(tile, broken);
  }
  template <class Tile>
  __device__ __forceinline__ void store_keys(const Tile& tile, const tile_tokens& rows,
                                             float by_key, float by_value, const float (&dk)[2][4],
                                             const float (&dv)[2][4]) const {
    std::int32_t tokens[2];
    tokens_of(rows, tokens);
    const unsigned broken = broken_rows(tokens, dk, dv);
    if (layout::keys_together && !problem.accumulate) {
      stage_rows(1, by_key, dk);
      stage_rows(2, by_value, dv);
      __syncwarp();
      write_rows(problem.grad_k, 1, rows.copied, broken);
      write_rows(problem.grad_v, 2, rows.copied, broken);
    } else {
      store(problem.grad_k, tokens, by_key, broken, dk);
      store(problem.grad_v, tokens, by_value, broken, dv);
    }
    differentiate_again<backward_side::key>(tile, broken);
  }
  /// The same where a tile's queries are its keys.
  template <class Tile>
  __device__ __forceinline__ void store_tile(const Tile& tile, const tile_tokens& rows,
                                             float by_query, float by_key, float by_value,
                                             const float (&dq)[2][4], const float (&dk)[2][4],
                                             const float (&dv)[2][4]) const {
    const unsigned broken = broken_rows(rows.token, dq, dk, dv);
    store(problem.grad_q, rows.token, by_query, broken, dq);
    store(problem.grad_k, rows.token, by_key, broken, dk);
    store(problem.grad_v, rows.token, by_value, broken, dv);
#pragma unroll 1
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_whole_row<T>(whole, group, head,
                                 slot_at(tile, __ffs(static_cast<int>(left)) - 1));
  }
};

}  // namespace winnow::detail
