// SPDX-License-Identifier: Apache-2.0
/// \file
/// Pieces of backward_contextual_window.cuh: a tile's queries with a tile of keys, and its keys with a tile of queries.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual_window_products.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[2], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[2], const void* row) {
  load_matrices_transposed(r, shared_address(row));
}

template <class T, bool Radial, bool Long>
struct contextual_window_pieces : contextual_window_products<T, Radial, Long> {
  using base = contextual_window_products<T, Radial, Long>;
  using base::all_lanes;
  using base::grads;
  using base::keys;
  using base::left_offset;
  using base::look_up_radial;
  using base::memory;
  using base::of_tile;
  using base::pack_places;
  using base::place;
  using base::queries;
  using base::region;
  using base::right_offset;
  using base::rows_of_tile;
  using base::sum_radial;
  using base::sum_radial_columns;
  using base::sums;
  using base::turned_cells;
  using base::warp;
  using base::weight_unit;
  using base::words;
  using typename base::key_places;
  using typename base::layout;
  using typename base::radial_places;
  using typename base::tile_tokens;
  using typename base::turn;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// The largest finite |dO| of 16 rows, as the biased exponent of a float.
  static __device__ __forceinline__ unsigned magnitude_of(const std::uint32_t (&rows)[4]) {
    constexpr unsigned infinite = std::is_same_v<T, half> ? 0x7c00u : 0x7f80u;
    unsigned largest = 0;
#pragma unroll
    for (const std::uint32_t pair : rows) largest = __vmaxu2(largest, pair & 0x7fff7fffu);
    largest = __reduce_max_sync(all_lanes, max(largest & 0xffffu, largest >> 16));
    if (largest >= infinite) {  // NaN or infinity is there: look again without them
      largest = 0;
      for (const std::uint32_t pair : rows)
        for (const unsigned x : {pair & 0x7fffu, pair >> 16 & 0x7fffu})
          if (x < infinite) largest = max(largest, x);
      largest = __reduce_max_sync(all_lanes, largest);
    }
    return __float_as_uint(unpack<T>(largest).x) >> 23;
  }

  /// A tile's sums as queries, and as keys.
  struct query_sums {
    float dq[2][4];
    float cells[2][words][4];  ///< of dS, of P
    float total[4];            ///< Σ |dS| of rows g and g + 8 in [0] and [2]
  };
  struct key_sums {
    float dk[2][4], dv[2][4];
    float cells[words][4];
    float total[4];
  };
  template <int Count>
  static __device__ __forceinline__ void clear(float (&sums)[Count][4]) {
#pragma unroll
    for (auto& block : sums)
#pragma unroll
      for (float& x : block) x = 0.0f;
  }

  static __device__ __forceinline__ void clear(float (&sum)[4]) {
#pragma unroll
    for (float& x : sum) x = 0.0f;
  }
  static __device__ __forceinline__ void copy(const float (&from)[4], float (&to)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = from[e];
  }
  static __device__ __forceinline__ void copy(const float (&from)[2][4], float (&to)[2][4]) {
    copy(from[0], to[0]);
    copy(from[1], to[1]);
  }

  /// sums += rows of weights · one-hot cells of a tile, by cell.
  __device__ __forceinline__ void add_cells(const std::uint32_t (&weights)[4], const std::byte* hot,
                                            float (&sums)[words][4]) const {
#pragma unroll
    for (int w = 0; w + 1 < words; w += 2) {
      std::uint32_t e[4];
      load_matrices_transposed(e, hot + 16 * w);
      multiply_add_16<half>(sums[w], weights, e[0], e[1]);
      multiply_add_16<half>(sums[w + 1], weights, e[2], e[3]);
    }
    if constexpr (words % 2 == 1) {
      std::uint32_t e[2];
      load_matrices_transposed(e, hot - place.lane / 16 * 16 + 16 * (words - 1));
      multiply_add_16<half>(sums[words - 1], weights, e[0], e[1]);
    }
  }
  /// The same of two weights, words w and w + 1.
  static __device__ __forceinline__ void add_cells(const std::uint32_t (&first)[4],
                                                   const std::uint32_t (&second)[4],
                                                   const std::uint32_t (&hot)[4],
                                                   float (&sums)[2][words][4], int w) {
    multiply_add_16<half>(sums[0][w], first, hot[0], hot[1]);
    multiply_add_16<half>(sums[1][w], second, hot[0], hot[1]);
    multiply_add_16<half>(sums[0][w + 1], first, hot[2], hot[3]);
    multiply_add_16<half>(sums[1][w + 1], second, hot[2], hot[3]);
  }
  __device__ __forceinline__ void add_cells(const std::uint32_t (&first)[4],
                                            const std::uint32_t (&second)[4], std::uint32_t hot,
                                            float (&sums)[2][words][4]) const {
#pragma unroll
    for (int w = 0; w + 1 < words; w += 2) {
      std::uint32_t e[4];
      load_matrices_transposed(e, hot + 16 * w);
      add_cells(first, second, e, sums, w);
    }
    if constexpr (words % 2 == 1) {
      std::uint32_t e[2];
      const auto lane = static_cast<std::uint32_t>(place.lane);
      load_matrices_transposed(e, hot - lane / 16 * 16 + 16 * (words - 1));
      multiply_add_16<half>(sums[0][words - 1], first, e[0], e[1]);
      multiply_add_16<half>(sums[1][words - 1], second, e[0], e[1]);
    }
  }
  /// The same by the cells of queries whose one-hot rows are in no memory: a lane makes its column for queries
  /// 2t, 2t + 1, 2t + 8 and 2t + 9.
  __device__ __forceinline__ void add_query_cells(const std::uint32_t (&weights)[4],
                                                  const uint2 (&codes)[2],
                                                  float (&sums)[words][4]) const {
    const int cell = spread(place.g);
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis) {
      const std::uint32_t positions[2] = {positions_of(codes[0], axis),
                                          positions_of(codes[1], axis)};
#pragma unroll
      for (int word = 0; word < cell_words; ++word) {
        const std::uint32_t column = position_pair(8 * word + cell, 8 * word + cell);
        multiply_add_16<half>(sums[axis * cell_words + word], weights,
                              one_hot(positions[0], column), one_hot(positions[1], column));
      }
    }
  }
  /// A code as `positions_of` takes it: its highest byte is that of halves to compare.
  static __device__ __forceinline__ std::uint32_t marked_code(std::uint32_t code) {
    return __byte_perm(code, 0x64u, 0x4210u);
  }
  /// Two tokens' positions on an axis, as `position_pair`.
  static __device__ __forceinline__ std::uint32_t positions_of(const uint2& codes, int axis) {
    return __byte_perm(codes.x, codes.y, 0x7430u + static_cast<unsigned>(axis) * 0x0101u);
  }
  static __device__ __forceinline__ void add_magnitudes(const std::uint32_t (&weights)[4],
                                                        float (&total)[4]) {
    const std::uint32_t ones = pack<half>(1.0f, 1.0f);
    const std::uint32_t positive[4] = {weights[0] & 0x7fff7fffu, weights[1] & 0x7fff7fffu,
                                       weights[2] & 0x7fff7fffu, weights[3] & 0x7fff7fffu};
    multiply_add_16<half>(total, positive, ones, ones);
  }

  /// What the queries of a tile take through its pieces.
  struct query_state {
    std::uint32_t q[4], grad_out[4];  ///< dO times the scale of rounding
    /// Gq and Gv, unless shared memory has room for them.
    std::uint32_t query_cells[2][layout::own_cells ? 1 : words];
    std::uint32_t value_cells[2][layout::own_cells ? 1 : words];
    /// One-hot cells, where those in shared memory are other tokens'.
    std::uint32_t hot[2][Long ? words : 1];
    float lse[2], delta[2];  ///< delta: -delta in units of dS
    bool single[2];
  };

  /// What a piece begins with: k and v of its keys, the first two words of their one-hot cells and products.
  struct piece_factors {
    std::uint32_t k[4], v[4], hot[4], gk[4];
  };
  __device__ __forceinline__ void load_factors(int j, std::uint32_t right,
                                               piece_factors& factors) const {
    if constexpr (layout::keys_together) {
      load_matrices(factors.k, right + layout::k);
      load_matrices(factors.v, right + layout::values);
    } else {
      load_matrices(factors.k, rows_of_tile(keys, j) + right_offset);
      load_matrices(factors.v, region(j) + layout::values + right_offset);
    }
    load_matrices(factors.hot, right + layout::hot);
    load_matrices(factors.gk, right + layout::key_cells);
  }

  /// The tile's queries against the keys of tile `j`; dS and P go to the warp's piece `held`.
  __device__ __forceinline__ void differentiate_piece(const turn& now, const tile_tokens& rows,
                                                      int j, int next, int held,
                                                      const key_places& keys_of_lane,
                                                      float2 (&radii)[2], query_state& state,
                                                      query_sums& sums) const {
    const std::byte* other = region(j);
    const std::uint32_t right = of_tile(keys_of_lane.right, j);
    const std::uint32_t turned = of_tile(keys_of_lane.turned, j);
    const std::byte* own_hot = region(warp) + layout::hot + turned_cells;
    float p[2][4], sides[2][4], ds[2][4];
    piece_factors factors;
    load_factors(j, right, factors);
    [[maybe_unused]] radial_places places;
    if constexpr (Radial) {
      if constexpr (!Long) base::load_radii(keys_of_lane, j, radii);
      look_up_radial(rows, j, keys_of_lane, radii, places, sides, ds);
    } else {
      clear(sides);
      clear(ds);
    }
    multiply_16<T>(p[0], state.q, factors.k[0], factors.k[1]);
    multiply_16<T>(p[1], state.q, factors.k[2], factors.k[3]);
    multiply_add_16<T>(ds[0], state.grad_out, factors.v[0], factors.v[1]);
    multiply_add_16<T>(ds[1], state.grad_out, factors.v[2], factors.v[3]);
#pragma unroll
    for (int w = 0; w + 1 < words; w += 2) {
      std::uint32_t gq[4], gv[4];
      if constexpr (layout::own_cells) {
        load_matrices(gq, own_hot - layout::hot + layout::query_cells + 16 * w);
        load_matrices(gv, own_hot - layout::hot + layout::value_cells + 16 * w);
      } else {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          gq[m] = state.query_cells[m % 2][w + m / 2];
          gv[m] = state.value_cells[m % 2][w + m / 2];
        }
      }
      std::uint32_t e[4], hot[4], gk[4];
      if constexpr (Long) {
#pragma unroll
        for (int m = 0; m < 4; ++m) e[m] = state.hot[m % 2][w + m / 2];
      } else {
        load_matrices(e, own_hot + 16 * w);
      }
      if (w == 0) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          hot[m] = factors.hot[m];
          gk[m] = factors.gk[m];
        }
      } else {
        load_matrices(hot, right + layout::hot + 16 * w);
        load_matrices(gk, right + layout::key_cells + 16 * w);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add_16<half>(p[n], gq, hot[2 * n], hot[2 * n + 1]);
        multiply_add_16<half>(ds[n], gv, hot[2 * n], hot[2 * n + 1]);
        multiply_add_16<half>(sides[n], e, gk[2 * n], gk[2 * n + 1]);
      }
    }
    if constexpr (words % 2 == 1) {
      constexpr int w = words - 1;
      const std::byte* last = other + place.lane % 16 * layout::cell_bytes + 16 * w;
      static_assert(layout::own_cells, "or take them from the state");
      const std::byte* own_last = own_hot - place.lane / 16 * 16 + 16 * w;
      std::uint32_t e[2], gq[2], gv[2], hot[2], gk[2];
      if constexpr (Long) {
        e[0] = state.hot[0][w];
        e[1] = state.hot[1][w];
      } else {
        load_matrices(e, own_last);
      }
      load_matrices(gq, own_last - layout::hot + layout::query_cells);
      load_matrices(gv, own_last - layout::hot + layout::value_cells);
      load_matrices(hot, last + layout::hot);
      load_matrices(gk, last + layout::key_cells);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add_half_8(p[n], gq[0], gq[1], hot[n]);
        multiply_add_half_8(ds[n], gv[0], gv[1], hot[n]);
        multiply_add_half_8(sides[n], e[0], e[1], gk[n]);
      }
    }
    auto* piece =
        reinterpret_cast<std::uint32_t*>(region(warp) + layout::pieces +
                                         layout::kinds_of_pieces * held * layout::piece_bytes) +
        place.lane;
    // Matrices in the order that the keys take transposed.
    const auto matrix_of = [](int m) { return m / 2 + m % 2 * 2; };
    if constexpr (layout::sums_late) {
#pragma unroll
      for (int m = 0; m < 4; ++m)
        piece[2 * layout::piece_bytes / 4 + 32 * matrix_of(m)] =
            pack_places(places[m / 2][m % 2 * 2], places[m / 2][m % 2 * 2 + 1]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) p[n][e] = fmaf(p[n][e] + sides[n][e], log2_e, state.lse[e / 2]);
    [[maybe_unused]] std::uint32_t turned_k[4], turned_hot[words / 2][4];
    if constexpr (layout::keys_together) {
      // Before additions to sums by radial row are in the queue of shared memory.
      base::load_radii(keys_of_lane, next, radii);
      load_matrices_transposed(turned_k, turned + layout::k);
#pragma unroll
      for (int w = 0; w < words / 2; ++w)
        load_matrices_transposed(turned_hot[w], turned + layout::hot + 32 * w);
    }
    // All pairs of a tile of keys in the midst of a window attend; rows that are none have no weight by
    // their LSE. The last tile of a short window may have others in its other rows.
    const int last = now.base + now.width - 1;
    if (j == last || (!Long && warp == last)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int begin = Long ? 0 : static_cast<std::int16_t>(rows.window[i]);
        const int column = 16 * (j - now.base) + 2 * place.t - begin;
        const unsigned window = Long ? static_cast<unsigned>(now.key_rows) : rows.window[i] >> 16;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int e = 2 * i + c;
            const bool attends = static_cast<unsigned>(column + 8 * n + c) < window;
            p[n][e] = attends ? p[n][e] : -INFINITY;
            ds[n][e] = attends ? ds[n][e] : 0.0f;
          }
      }
    }
#pragma unroll
    for (auto& block : p)
#pragma unroll
      for (float& x : block) x = exp2_fast(x);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float unit = weight_unit;
      if (!Long && j == last && warp == last) {
        // Where the row's window lies in this piece: delta = Σ P·dP / Σ P, not dO·O with a rounded O.
        float weights = (p[0][2 * i] + p[0][2 * i + 1]) + (p[1][2 * i] + p[1][2 * i + 1]);
        float sum = (p[0][2 * i] * ds[0][2 * i] + p[0][2 * i + 1] * ds[0][2 * i + 1]) +
                    (p[1][2 * i] * ds[1][2 * i] + p[1][2 * i + 1] * ds[1][2 * i + 1]);
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
          weights += __shfl_xor_sync(all_lanes, weights, step);
          sum += __shfl_xor_sync(all_lanes, sum, step);
        }
        const bool lies_here = static_cast<std::int16_t>(rows.window[i]) >= 16 * (now.width - 1);
        const float delta = __fdividef(sum, weights);
        // A row that is alone has dP = delta, whatever the rounding says.
        if (state.single[i]) unit = 0.0f;
        if (lies_here) state.delta[i] = rows.token[i] >= 0 ? -delta * unit : 0.0f;
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e)
          ds[n][e] = p[n][e] * fmaf(ds[n][e], unit, state.delta[i]);
    }
    if constexpr (Radial && Long) sum_radial(j, keys_of_lane, places, p, ds);

    const weight_fragment<half> gradients(ds);
    const weight_fragment<half> weights(p);
    {
      if constexpr (!layout::keys_together)
        load_matrices_transposed(turned_k, rows_of_tile(keys, j) + left_offset);
      const weight_fragment<T> left(ds);
      multiply_add_16<T>(sums.dq[0], left.a, turned_k[0], turned_k[1]);
      multiply_add_16<T>(sums.dq[1], left.a, turned_k[2], turned_k[3]);
    }
    if constexpr (layout::keys_together) {
#pragma unroll
      for (int w = 0; w < words / 2; ++w)
        add_cells(gradients.a, weights.a, turned_hot[w], sums.cells, 2 * w);
    } else {
      add_cells(gradients.a, weights.a, turned + layout::hot, sums.cells);
    }
    if constexpr (Radial) add_magnitudes(gradients.a, sums.total);
    const weight_fragment<T> values_left(p);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      piece[32 * matrix_of(m)] = gradients.a[m];
      piece[layout::piece_bytes / 4 + 32 * matrix_of(m)] = values_left.a[m];
    }
  }

  /// What a tile's keys take from the queries of another one.
  struct answer_factors {
    std::uint32_t gradients[4], weights[4];  ///< dS and P, by keys
    std::uint32_t q[4], grad_out[4];
    uint2 codes[2];  ///< of long windows, marked
  };
  /// \param held the queries' piece that is this tile's.
  __device__ __forceinline__ void load_answer(int i, int held, answer_factors& factors) const {
    const std::byte* piece = region(i) + layout::pieces +
                             layout::kinds_of_pieces * held * layout::piece_bytes + 16 * place.lane;
    load_matrices_transposed(factors.gradients, piece);
    load_matrices_transposed(factors.q, rows_of_tile(queries, i) + left_offset);
    load_matrices_transposed(factors.weights, piece + layout::piece_bytes);
    load_matrices_transposed(factors.grad_out, rows_of_tile(grads, i) + left_offset);
    if constexpr (Long) {
      const auto* codes = at<uint2>(layout::query_codes) + 8 * i + place.t;
      factors.codes[0] = codes[0];
      factors.codes[1] = codes[4];
    }
  }
  __device__ __forceinline__ void add_answer(int i, const answer_factors& factors,
                                             key_sums& sums) const {
    std::uint32_t left[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      left[m] = factors.gradients[m];
      if constexpr (!std::is_same_v<T, half>) {
        const float2 pair = unpack<half>(factors.gradients[m]);
        left[m] = pack<T>(pair.x, pair.y);
      }
    }
    multiply_add_16<T>(sums.dk[0], left, factors.q[0], factors.q[1]);
    multiply_add_16<T>(sums.dk[1], left, factors.q[2], factors.q[3]);
    multiply_add_16<T>(sums.dv[0], factors.weights, factors.grad_out[0], factors.grad_out[1]);
    multiply_add_16<T>(sums.dv[1], factors.weights, factors.grad_out[2], factors.grad_out[3]);
    if constexpr (Long)
      add_query_cells(factors.gradients, factors.codes, sums.cells);
    else
      add_cells(factors.gradients, region(i) + layout::hot + turned_cells, sums.cells);
    if constexpr (Radial) add_magnitudes(factors.gradients, sums.total);
  }
  /// The tile's keys against the queries of tile `i`, of which piece `held` is theirs.
  __device__ __forceinline__ void differentiate_keys(int i, int held, key_sums& sums) const {
    answer_factors factors;
    load_answer(i, held, factors);
    add_answer(i, factors, sums);
  }
  /// The same, and sums by radial row.
  __device__ __forceinline__ void answer_piece(int i, int held, key_sums& sums) const {
    answer_factors factors;
    load_answer(i, held, factors);
    if constexpr (layout::sums_late) {
      std::uint32_t places[4];
      load_matrices_transposed(
          places, region(i) + layout::pieces +
                      (layout::kinds_of_pieces * held + 2) * layout::piece_bytes + 16 * place.lane);
      sum_radial_columns(places, factors.gradients);
    }
    add_answer(i, factors, sums);
  }
  /// The same of two tiles, whose loads come first.
  __device__ __forceinline__ void differentiate_keys(const int (&i)[2], const int (&held)[2],
                                                     key_sums& sums) const {
    answer_factors factors[2];
    load_answer(i[0], held[0], factors[0]);
    load_answer(i[1], held[1], factors[1]);
    add_answer(i[0], factors[0], sums);
    add_answer(i[1], factors[1], sums);
  }
};

}  // namespace winnow::detail
