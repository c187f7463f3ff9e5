// SPDX-License-Identifier: Apache-2.0
/// \file
/// How a tile of backward_contextual_window.cuh begins: its rows and their products with tables.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_results.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_rows : contextual_window_results<T, Radial, Long> {
  using base = contextual_window_results<T, Radial, Long>;
  using base::all_lanes;
  using base::grads;
  using base::head;
  using base::keys;
  using base::left_of_keys;
  using base::left_offset;
  using base::magnitude_of;
  using base::memory;
  using base::multiply_axis;
  using base::multiply_cells;
  using base::of_keys;
  using base::of_queries;
  using base::of_values;
  using base::place;
  using base::problem;
  using base::queries;
  using base::radii_of;
  using base::region;
  using base::row_of_head;
  using base::rows_of_tile;
  using base::slot_at;
  using base::store_cells;
  using base::store_products;
  using base::sums;
  using base::tokens_of;
  using base::warp;
  using base::weight_shift;
  using base::weight_unit;
  using base::width;
  using base::words;
  using typename base::layout;
  using typename base::query_state;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// This lane's half of a row of O, for short windows of several pieces; zeros where there is none.
  [[nodiscard]] __device__ __forceinline__ uint4 load_out(const turn& now,
                                                          const tile_tokens& rows) const {
    const int column = place.lane % 2 * width;
    static_assert(!Long);
    if (now.width <= 1 || rows.copied < 0 || column >= problem.head_dim) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(row_of_head(problem.out, rows.copied) + column);
  }
  [[nodiscard]] __device__ __forceinline__ float* own_deltas() const {
    // Any other expression for long windows makes them spill.
    if constexpr (!layout::sums_late) return at<float>(layout::deltas) + 16 * warp;
    return at<float>(layout::deltas + warp * layout::next_tile);
  }
  /// delta = dO·O of the tile's rows, for windows of several pieces.
  __device__ __forceinline__ void measure_delta(const turn& now, const tile_tokens& rows,
                                                uint4 out) const {
    const int row = place.lane / 2;
    const int half_row = row * layout::row_bytes + ((place.lane & 1) ^ (row >> 2 & 1)) * 16;
    const uint4 grad = *reinterpret_cast<const uint4*>(rows_of_tile(grads, warp) + half_row);
    if constexpr (Long)
      out = *reinterpret_cast<const uint4*>(memory + layout::outs + warp * layout::tile_bytes +
                                            half_row);
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
      own_deltas()[row * layout::token_stride] = dot;
      if (Long && rows.copied >= 0)
        problem.delta[head * problem.max_tokens + slot_at(now, row)] = dot;
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
  template <int From, int To>
  __device__ __forceinline__ void clear_sums() const {
    auto* sums = reinterpret_cast<uint4*>(region(warp) + From);
#pragma unroll
    for (int i = place.lane; i < (To - From) / 16; i += 32) sums[i] = {0, 0, 0, 0};
  }
  /// LSE of rows g and g + 8; infinity where there is none.
  __device__ __forceinline__ void load_lse(const tile_tokens& rows, float (&lse)[2]) const {
    std::int32_t tokens[2];
    tokens_of(rows, tokens);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      lse[i] = INFINITY;
      if (tokens[i] >= 0)
        lse[i] = problem.lse[tokens[i] * problem.lse_token_stride + head * problem.lse_head_stride];
    }
  }
  /// What queries need that does not come with their rows.
  __device__ __forceinline__ void begin_queries(const tile_tokens& rows, query_state& state) const {
    load_lse(rows, state.lse);
    mark_queries(rows, state);
  }
  /// The same but for LSE.
  __device__ __forceinline__ void mark_queries(const tile_tokens& rows, query_state& state) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) state.single[i] = rows.window[i] >> 16 == 1;
    if constexpr (Long) {
      clear_sums<layout::radial_sums, layout::column_sums>();
      mark_cells(rows.code, state.hot);
      if (place.t == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          at<std::uint32_t>(layout::query_codes)[16 * warp + place.g + 8 * i] =
              base::marked_code(rows.code[i]);
    }
  }
  /// The same of keys.
  __device__ __forceinline__ void begin_keys(const tile_tokens& rows) const {
    std::byte* own = region(warp);
    std::uint32_t hot[2][words];
    mark_cells(rows.code, hot);
    store_cells(own + layout::hot, hot);
    if constexpr (Long)
      clear_sums<layout::column_sums, layout::column_sums + layout::gradient_sum_bytes>();
    if constexpr (Radial) {
      if (place.t == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          radii_of(warp)[(place.g + 8 * i) * layout::token_stride] = rows.radius[i];
    }
  }
  /// Waits for the rows that this warp copies, all but v.
  static __device__ __forceinline__ void await_rows() {
    wait_for_copies<1>();
    __syncwarp();
  }
  /// Before other warps take v.
  static __device__ __forceinline__ void await_values() {
    wait_for_copies<0>();
  }
  /// Takes the tile's rows of q and dO, before the block's magnitudes are known.
  __device__ __forceinline__ void take_rows(const turn& now, const tile_tokens& rows,
                                            const uint4& out, query_state& state) const {
    load_matrices(state.q, rows_of_tile(queries, warp) + left_offset);
    scale_pairs<T>(state.q, problem.scale);
    load_matrices(state.grad_out, rows_of_tile(grads, warp) + left_offset);
    const unsigned magnitude = magnitude_of(state.grad_out);
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = magnitude;
    if (Long || now.width > 1) measure_delta(now, rows, out);
#pragma unroll
    for (int i = 0; i < 2; ++i) state.lse[i] = fmaf(state.lse[i], -log2_e, weight_shift);
  }
  __device__ __forceinline__ void multiply_keys(const std::uint32_t (&code)[2]) const {
    std::byte* own = region(warp);
    std::uint32_t k[4];
    load_matrices(k, rows_of_tile(keys, warp) + left_of_keys());
    store_products(k, of_keys, code, own + layout::key_cells);
    if constexpr (Radial) {
      std::uint32_t product[2][row_words];
      multiply_axis(k, of_keys, 2, product);
      std::byte* target = own + layout::key_radial + place.g * layout::product_of_c +
                          (layout::by_radial_row ? layout::key_radial_step : 4) * place.t;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < row_words; ++w) {
          std::byte* word = target + i * layout::product_of_n + 8 * w * layout::key_radial_step;
          if constexpr (layout::by_radial_row) {
            *reinterpret_cast<std::uint16_t*>(word) = static_cast<std::uint16_t>(product[i][w]);
            *reinterpret_cast<std::uint16_t*>(word + 4 * layout::key_radial_step) =
                static_cast<std::uint16_t>(product[i][w] >> 16);
          } else {
            *reinterpret_cast<std::uint32_t*>(word) = product[i][w];
          }
        }
    }
  }
  /// Products of queries by radial row, which wait for those of dO.
  using radial_products = std::uint32_t[2][Radial ? row_words : 1];
  __device__ __forceinline__ void multiply_queries(const std::uint32_t (&code)[2],
                                                   query_state& state,
                                                   radial_products& radial) const {
    if constexpr (layout::own_cells) {
      store_products(state.q, of_queries, code, region(warp) + layout::query_cells);
    } else {
      multiply_cells(state.q, of_queries, code, state.query_cells);
    }
    if constexpr (Radial) multiply_axis(state.q, of_queries, 2, radial);
  }
  /// Products of dO, whose scale is `raise`.
  __device__ __forceinline__ void multiply_gradients(const turn& now, const tile_tokens& rows,
                                                     float raise, query_state& state,
                                                     const radial_products& radial) const {
    scale_pairs<T>(state.grad_out, raise);
    if constexpr (layout::own_cells) {
      store_products(state.grad_out, of_values, rows.code, region(warp) + layout::value_cells);
    } else {
      multiply_cells(state.grad_out, of_values, rows.code, state.value_cells);
    }
    if constexpr (Radial) {
      radial_products of_v;
      multiply_axis(state.grad_out, of_values, 2, of_v);
      std::byte* target = region(warp) + layout::query_radial + place.g * layout::query_step +
                          (layout::by_radial_row ? place.t * layout::radial_step : 8 * place.t);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < row_words; ++w) {
          std::byte* word = target + i * layout::half_step + 8 * w * layout::radial_step;
          const uint2 pair = {__byte_perm(radial[i][w], of_v[i][w], 0x5410u),
                              __byte_perm(radial[i][w], of_v[i][w], 0x7632u)};
          if constexpr (layout::by_radial_row) {
            *reinterpret_cast<std::uint32_t*>(word) = pair.x;
            *reinterpret_cast<std::uint32_t*>(word + 4 * layout::radial_step) = pair.y;
          } else {
            *reinterpret_cast<uint2*>(word) = pair;
          }
        }
    }
    __syncwarp();
    if (Long || now.width > 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        state.delta[i] =
            own_deltas()[(place.g + 8 * i) * layout::token_stride] * (-raise * weight_unit);
    }
  }
};

}  // namespace winnow::detail
