// SPDX-License-Identifier: Apache-2.0
/// \file
/// How both sides of backward_long.cuh walk the other side, in pieces of 32 own rows by 16 others.
///
/// Tensor cores are to work while exponentials are computed. On the query side one stretch of code
/// without a branch holds the products S and dP of piece k + 1, and exponentials, dS and the product with
/// keys of piece k, which do not depend on each other; k therefore has one stage more than v. The key
/// side has no registers for a second piece: there exponentials stand between the products dP, and dS
/// between those of dv.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_long.cuh"

namespace winnow::detail {

/// \param key_row,value_row where the piece's keys and values begin, for this lane
/// \param last_row where the keys of the piece before begin, for this lane and a transposed load
/// \param last_from the first slot of the piece before
template <class T, int D, backward_side Side>
template <bool Scores, bool Weighs, bool Masked>
__device__ __forceinline__ void long_differentiator<T, D, Side>::run_stretch(
    std::uint32_t key_row, std::uint32_t value_row, std::uint32_t last_row, int last_from,
    float (&s)[2][2][4], float (&dp)[2][2][4], float (&last_s)[2][2][4],
    float (&last_dp)[2][2][4]) {
  constexpr int fragments = D / 16;
  constexpr int pairs = 8 / fragments;
  const float factor = problem.scale * log2_e;
  if constexpr (Masked && Weighs) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int2 window = windows()[16 * m + 8 * i + place.g];
        const int column = last_from + 2 * place.t - window.x;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (static_cast<unsigned>(column + 8 * n + c) >= static_cast<unsigned>(window.y)) {
              last_s[m][n][2 * i + c] = -INFINITY;
              last_dp[m][n][2 * i + c] = 0.0f;
            }
      }
  }
  if constexpr (Scores)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = dp[m][n][e] = 0.0f;
  std::uint32_t differences[2][4];
#pragma unroll
  for (int j = 0; j < fragments; ++j) {
    std::uint32_t k[4], v[4];
    if constexpr (Scores) {
      load_matrices(k, key_row + 32 * j);
      load_matrices(v, value_row + 32 * j);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if constexpr (Scores) {
        multiply_add_16<T>(s[m][0], first_factor[m].a[j], k[0], k[1]);
        multiply_add_16<T>(s[m][1], first_factor[m].a[j], k[2], k[3]);
      }
      if constexpr (Weighs)
#pragma unroll
        for (int pair = 0; pair < pairs / 2; ++pair) {
          const int index = j * pairs + m * (pairs / 2) + pair;
          const int row = index / 4, n = index % 4 / 2, i = index % 2;
          float ds[2];
#pragma unroll
          for (int c = 0; c < 2; ++c)
            ds[c] = exp2_fast(fmaf(last_s[row][n][2 * i + c], factor, lse[row][i])) *
                    fmaf(last_dp[row][n][2 * i + c], raise, delta[row][i]);
          differences[row][2 * n + i] = pack<T>(ds[0], ds[1]);
        }
      if constexpr (Scores) {
        multiply_add_16<T>(dp[m][0], second_factor[m].a[j], v[0], v[1]);
        multiply_add_16<T>(dp[m][1], second_factor[m].a[j], v[2], v[3]);
      }
    }
  }
  if constexpr (Weighs)
#pragma unroll
    for (int block = 0; block < math::blocks; block += 2) {
      std::uint32_t b[4];
      load_matrices_transposed(b, last_row + 16 * block);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add_16<T>(first_sum[m][block], differences[m], b[0], b[1]);
        multiply_add_16<T>(first_sum[m][block + 1], differences[m], b[2], b[3]);
      }
    }
}

template <class T, int D, backward_side Side>
__device__ __forceinline__ void long_differentiator<T, D, Side>::walk_keys(int from, int last,
                                                                           const warp_span& span,
                                                                           int next) {
  constexpr std::uint32_t row_bytes = layout::row_bytes;
  constexpr std::uint32_t tile_bytes = others * row_bytes;
  constexpr std::uint32_t piece_bytes = 16 * row_bytes;
  const std::uint32_t shared = shared_address(memory);
  const auto lane_row = static_cast<std::uint32_t>(math::score_lane() * sizeof(T));
  const auto lane_transposed =
      static_cast<std::uint32_t>((math::value_lane() + place.lane / 16 * 8) * sizeof(T));
  float s[2][2][4], dp[2][2][4];
  int pending_from = 0;           // the first slot of the piece whose products are there
  std::uint32_t pending_row = 0;  // and where its keys lie
  bool pending = false;
  int first_stage = 0, stage = 0;
  for (int tile = from; tile < last; tile += others) {
    wait_for_copies<0>();
    __syncthreads();
    if (looks_ahead && tile == from + others && next >= 0) request_next_others(next);
    const int next_first = first_stage + 1 == layout::first_stages ? 0 : first_stage + 1;
    if (tile + others < last) load_others(next_first, 1 - stage, tile + others, last);
    const std::uint32_t keys = shared + layout::first + first_stage * tile_bytes;
    const std::uint32_t values = shared + layout::second + stage * tile_bytes + lane_row;
    const int end = (min(span.last - tile, others) + 15) >> 4;
    // All rows attend to all keys of the pieces [inside, inside_end).
    const int inside = (span.all_from - tile + 15) >> 4;
    const int inside_end = (span.all_last - tile) >> 4;
    int piece = max(span.from - tile, 0) >> 4;
    while (piece < end) {
      const std::uint32_t offset = piece * piece_bytes;
      const std::uint32_t key_row = keys + lane_row + offset;
      const std::uint32_t transposed = keys + lane_transposed + offset;
      float next_s[2][2][4], next_dp[2][2][4];
      if (!pending) {
        run_stretch<true, false, false>(key_row, values + offset, 0, 0, s, dp, s, dp);
        pending = true;
      } else if (piece > inside && piece < inside_end && piece + 2 <= end) {
        std::uint32_t row = key_row;
        std::uint32_t value_row = values + offset;
        do {
          run_stretch<true, true, false>(row, value_row, pending_row, 0, next_s, next_dp, s, dp);
          pending_row = row - lane_row + lane_transposed;
          run_stretch<true, true, false>(row + piece_bytes, value_row + piece_bytes, pending_row, 0,
                                         s, dp, next_s, next_dp);
          pending_row += piece_bytes;
          row += 2 * piece_bytes;
          value_row += 2 * piece_bytes;
          piece += 2;
        } while (piece < inside_end && piece + 2 <= end);
        pending_from = tile + 16 * (piece - 1);
        continue;
      } else {
        run_stretch<true, true, true>(key_row, values + offset, pending_row, pending_from, next_s,
                                      next_dp, s, dp);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              s[m][n][e] = next_s[m][n][e];
              dp[m][n][e] = next_dp[m][n][e];
            }
      }
      pending_row = transposed;
      pending_from = tile + 16 * piece;
      ++piece;
    }
    // Now, because other warps may go on and the pending keys' stage is filled again.
    if (pending && span.last <= tile + others) {
      run_stretch<false, true, true>(0, 0, pending_row, pending_from, s, dp, s, dp);
      pending = false;
    }
    first_stage = next_first;
    stage = 1 - stage;
  }
}

/// \param query_row,grad_row where the piece's rows begin, for this lane, and `to_transposed` further
/// on for a transposed load
/// \param columns {LSE, delta} of this lane's first column
template <class T, int D, backward_side Side>
template <bool Masked>
__device__ __forceinline__ void long_differentiator<T, D, Side>::differentiate_piece(
    std::uint32_t query_row, std::uint32_t grad_row, std::uint32_t to_transposed,
    const float2* columns, int from) {
  constexpr int fragments = D / 16;
  constexpr int pairs = 8 / fragments;
  const float factor = problem.scale * log2_e;
  float p[2][2][4] = {};
  float dp[2][2][4] = {};
#pragma unroll
  for (int j = 0; j < fragments; ++j) {
    std::uint32_t b[4];
    load_matrices(b, query_row + 32 * j);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add_16<T>(p[m][0], first_factor[m].a[j], b[0], b[1]);
      multiply_add_16<T>(p[m][1], first_factor[m].a[j], b[2], b[3]);
    }
  }
  float column_lse[2][2], column_delta[2][2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float4 two = *reinterpret_cast<const float4*>(columns + 8 * n);
    column_lse[n][0] = fmaf(two.x, -log2_e, weight_shift);
    column_lse[n][1] = fmaf(two.z, -log2_e, weight_shift);
    column_delta[n][0] = -two.y * raise;
    column_delta[n][1] = -two.w * raise;
  }
  int2 window[2][2] = {};
  if constexpr (Masked)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) window[m][i] = windows()[16 * m + 8 * i + place.g];
  const auto attends = [&](int m, int n, int i, int c) {
    return static_cast<unsigned>(from + 8 * n + 2 * place.t + c - window[m][i].x) <
           static_cast<unsigned>(window[m][i].y);
  };
  // Rows of v as a left factor.
  const std::uint32_t own_row =
      shared_address(own_rows(true) + place.lane % 16 * math::stride + place.lane / 16 * 8);
  std::uint32_t weights[2][4], differences[2][4];
#pragma unroll
  for (int j = 0; j < fragments; ++j) {
    std::uint32_t b[4];
    load_matrices(b, grad_row + 32 * j);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if constexpr (shares_second) {
        std::uint32_t v[4];
        load_matrices(v, own_row + 16 * m * layout::row_bytes + 32 * j);
        multiply_add_16<T>(dp[m][0], v, b[0], b[1]);
        multiply_add_16<T>(dp[m][1], v, b[2], b[3]);
      } else {
        multiply_add_16<T>(dp[m][0], second_factor[m].a[j], b[0], b[1]);
        multiply_add_16<T>(dp[m][1], second_factor[m].a[j], b[2], b[3]);
      }
#pragma unroll
      for (int pair = 0; pair < pairs / 2; ++pair) {
        const int index = j * pairs + m * (pairs / 2) + pair;
        const int part = index / 4, n = index % 4 / 2, i = index % 2;
        float* scores = &p[part][n][2 * i];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float logit = fmaf(scores[c], factor, column_lse[n][c]);
          if (Masked && !attends(part, n, i, c)) logit = -INFINITY;
          scores[c] = exp2_fast(logit);
        }
        weights[part][2 * n + i] = pack<T>(scores[0], scores[1]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < fragments; ++j) {
    std::uint32_t b[4];
    load_matrices_transposed(b, grad_row + to_transposed + 32 * j);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add_16<T>(second_sum[m][2 * j], weights[m], b[0], b[1]);
      multiply_add_16<T>(second_sum[m][2 * j + 1], weights[m], b[2], b[3]);
#pragma unroll
      for (int pair = 0; pair < pairs / 2; ++pair) {
        const int index = j * pairs + m * (pairs / 2) + pair;
        const int part = index / 4, n = index % 4 / 2, i = index % 2;
        float ds[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float difference = fmaf(dp[part][n][2 * i + c], raise, column_delta[n][c]);
          if (Masked && !attends(part, n, i, c)) difference = 0.0f;
          ds[c] = p[part][n][2 * i + c] * difference;
        }
        differences[part][2 * n + i] = pack<T>(ds[0], ds[1]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < fragments; ++j) {
    std::uint32_t b[4];
    load_matrices_transposed(b, query_row + to_transposed + 32 * j);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add_16<T>(first_sum[m][2 * j], differences[m], b[0], b[1]);
      multiply_add_16<T>(first_sum[m][2 * j + 1], differences[m], b[2], b[3]);
    }
  }
}

template <class T, int D, backward_side Side>
__device__ __forceinline__ void long_differentiator<T, D, Side>::walk_queries(int from, int last,
                                                                              const warp_span& span,
                                                                              int next) {
  constexpr std::uint32_t row_bytes = layout::row_bytes;
  constexpr std::uint32_t tile_bytes = others * row_bytes;
  constexpr std::uint32_t piece_bytes = 16 * row_bytes;
  const auto lane_row = static_cast<std::uint32_t>(math::score_lane() * sizeof(T));
  const std::uint32_t to_transposed =
      static_cast<std::uint32_t>((math::value_lane() + place.lane / 16 * 8) * sizeof(T)) - lane_row;
  const std::uint32_t shared = shared_address(memory) + lane_row;
  int stage = 0;
  for (int tile = from; tile < last; tile += others) {
    wait_for_copies<0>();
    __syncthreads();
    if (looks_ahead && tile == from + others && next >= 0) request_next_others(next);
    if (tile + others < last) load_others(1 - stage, 1 - stage, tile + others, last);
    const int end = (min(span.last - tile, others) + 15) >> 4;
    // All rows attend to all queries of the pieces [inside, inside_end).
    const int inside = (span.all_from - tile + 15) >> 4;
    const int inside_end = (span.all_last - tile) >> 4;
    int piece = max(span.from - tile, 0) >> 4;
    std::uint32_t query_row = shared + layout::first + stage * tile_bytes + piece * piece_bytes;
    std::uint32_t grad_row = shared + layout::second + stage * tile_bytes + piece * piece_bytes;
    const float2* columns = stats(stage) + 16 * piece + 2 * place.t;
    const auto advance = [&](int pieces) {
      query_row += pieces * piece_bytes;
      grad_row += pieces * piece_bytes;
      columns += 16 * pieces;
      piece += pieces;
    };
    while (piece < end) {
      if (D <= 32 && piece >= inside && piece + 2 <= min(inside_end, end)) {
        // Two pieces at a time, to have independent work in flight.
        do {
          differentiate_piece<false>(query_row, grad_row, to_transposed, columns, 0);
          differentiate_piece<false>(query_row + piece_bytes, grad_row + piece_bytes, to_transposed,
                                     columns + 16, 0);
          advance(2);
        } while (piece + 2 <= min(inside_end, end));
      } else if (piece >= inside && piece < inside_end) {
        do {
          differentiate_piece<false>(query_row, grad_row, to_transposed, columns, 0);
          advance(1);
        } while (piece < min(inside_end, end));
      } else {
        differentiate_piece<true>(query_row, grad_row, to_transposed, columns, tile + 16 * piece);
        advance(1);
      }
    }
    stage = 1 - stage;
  }
}

}  // namespace winnow::detail
