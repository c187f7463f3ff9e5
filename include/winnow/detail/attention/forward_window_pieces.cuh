// SPDX-License-Identifier: Apache-2.0
/// \file
/// Plain attention of the longer windows of groups of short ones, for 16-bit storage.
///
/// A piece is what a warp computes: up to 16 rows of windows of more than `capacity` and up to `longest`
/// tokens, of one head. Pieces are few, and take longer than a range of short windows, so a block looks for its
/// own before anything else, and its warps take them first.
///
/// Where things live: the rows of q, and k and v of as many tokens as have room, in the warp's own shared
/// memory; softmax and results in registers, over steps of 32 keys. Results leave through the place of q.
///
/// NaN and infinity: as in forward_window.cuh.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// Is a window a longer one that is computed in pieces?
template <int D>
__device__ __forceinline__ bool has_pieces(int2 window) {
  const int length = window.y - window.x;
  return length > forward_window_layout<D>::capacity && length <= forward_window_layout<D>::longest;
}

template <class T, int D>
struct piece_attender {
  using layout = forward_window_layout<D>;
  using rows = shared_rows<T, D>;
  static constexpr int blocks = rows::blocks;
  static constexpr int vectors = rows::vectors;
  /// Rows move in passes of the warp, lane i vector i % vectors of a token.
  static constexpr int pass_rows = 32 / vectors;
  static constexpr int step_bytes = pass_rows * rows::row_bytes;
  static_assert(pass_rows % 8 == 0, "places of vectors repeat every 8 rows");
  static constexpr unsigned all = 0xffffffffu;

  const forward_problem& problem;
  const group_problem& group;
  std::uint32_t memory;  ///< the warp's
  int head;
  lane_place place;

  /// Where this lane's vector of token 0 lies.
  [[nodiscard]] __device__ __forceinline__ char* vector_of(int array) const {
    return advance(problem.packed[array].data + place.lane % vectors * 16, head,
                   problem.packed[array].head_bytes);
  }
  [[nodiscard]] __device__ __forceinline__ int own_row(int pass) const {
    return pass * pass_rows + place.lane / vectors;
  }
  [[nodiscard]] __device__ __forceinline__ std::int32_t token_of(int row) const {
    return load_shared_int(memory + static_cast<std::uint32_t>(layout::row_tokens + 4 * row));
  }

  /// The rows of slots [from, to) that are in such windows; at most two have any.
  __device__ __forceinline__ void run(int from, int to) const {
    const auto* bounds = reinterpret_cast<const int2*>(group.bounds);
#pragma unroll 1
    for (int slot = from; slot < to;) {
      const int2 window = bounds[slot];
      const int end = min(window.y, to);
      if (has_pieces<D>(window)) attend(window, slot, end - slot);
      slot = end;
    }
  }

  /// `count` rows from slot `first` on, all of one window.
  __device__ __forceinline__ void attend(int2 window, int first, int count) const {
    const bool inside = place.lane % vectors * 8 < problem.head_dim;
    const std::uint32_t own_vector = memory + rows::at(own_row(0), place.lane % vectors);
    __syncwarp();  // all lanes are done with what lies there
    if (place.lane < count)
      store_shared(memory + static_cast<std::uint32_t>(layout::row_tokens + 4 * place.lane),
                   static_cast<std::uint32_t>(group.order[first + place.lane]));
#pragma unroll
    for (int pass = 0; pass < layout::rows / pass_rows; ++pass)
      if (own_row(pass) < count)
        copy_async(own_vector + static_cast<std::uint32_t>(pass * step_bytes),
                   advance(vector_of(0), group.order[first + own_row(pass)],
                           problem.packed[0].token_bytes),
                   inside);
    const float factor = problem.scale * log2_e;
    typename rows::query q;
    softmax_state softmax;
    float o[blocks][4] = {};
#pragma unroll 1
    for (int from = window.x; from < window.y; from += layout::keys) {
      const int present = min(layout::keys, window.y - from);
      load_keys(from, present, own_vector, inside);
      if (from == window.x) q.load(memory + rows::left_at(min(place.lane % 16, count - 1)));
#pragma unroll 1
      for (int base = 0; base < present; base += 32) step(base, present, factor, q, softmax, o);
      __syncwarp();
    }
    const bool broken = store(count, softmax, o, own_vector, inside);
    // At the end, where nothing else lives, the call costs no registers.
    if (__any_sync(all, broken)) repair(first, count);
  }

  /// Brings the keys and values of slots [from, from + present), and waits for all copies.
  __device__ __forceinline__ void load_keys(int from, int present, std::uint32_t own_vector,
                                            bool inside) const {
    constexpr int passes = (layout::keys + pass_rows - 1) / pass_rows;
    char* const keys = vector_of(1);
    char* const values = vector_of(2);
    std::int32_t token[passes];
#pragma unroll
    for (int pass = 0; pass < passes; ++pass)
      if (own_row(pass) < present) token[pass] = group.order[from + own_row(pass)];
#pragma unroll
    for (int pass = 0; pass < passes; ++pass)
      if (own_row(pass) < present) {
        const std::uint32_t target = own_vector + static_cast<std::uint32_t>(pass * step_bytes);
        copy_async(target + layout::key_rows,
                   advance(keys, token[pass], problem.packed[1].token_bytes), inside);
        copy_async(target + layout::value_rows,
                   advance(values, token[pass], problem.packed[2].token_bytes), inside);
      }
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
  }

  /// Keys [base, base + 32) of `present` ones. Rows past the last repeat it.
  __device__ __forceinline__ void step(int base, int present, float factor,
                                       const typename rows::query& q, softmax_state& softmax,
                                       float (&o)[blocks][4]) const {
    float s[2][2][4];
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int first = base + 16 * u;
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[u][b][e] = first + 8 * b + 2 * place.t + (e & 1) < present ? 0.0f : -INFINITY;
      rows::scores(
          q,
          memory + layout::key_rows + rows::right_at(min(first + rows::right_row(), present - 1)),
          s[u]);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) largest[e / 2] = fmaxf(largest[e / 2], s[u][b][e]);
    }
    for (float& logit : largest) logit *= factor;
    if (!softmax.holds(largest)) {
      float by[2];
      if (softmax.raise(largest, by)) scale_rows(by, o);
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[u][b][e] = exp2_fast(fmaf(s[u][b][e], factor, softmax.offset[e / 2]));
      rows::values(weight_fragment<T>(s[u]),
                   memory + layout::key_rows +
                       rows::left_at(min(base + 16 * u + place.lane % 16, present - 1)),
                   layout::value_rows - layout::key_rows, o, softmax.sum);
    }
  }

  /// \return is a vector of this lane's not finite?
  __device__ __forceinline__ bool store(int count, const softmax_state& softmax,
                                        const float (&o)[blocks][4], std::uint32_t own_vector,
                                        bool inside) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 8 * r + place.g;
      if (row >= count) continue;
      const std::uint32_t target =
          memory + rows::at(row, 0) + static_cast<std::uint32_t>(4 * place.t);
      const float inverse = reciprocal(softmax.sum[2 * r]);
#pragma unroll
      for (int b = 0; b < blocks; ++b)
        store_shared(target ^ static_cast<std::uint32_t>(16 * b),
                     pack<T>(o[b][2 * r] * inverse, o[b][2 * r + 1] * inverse));
      if (problem.lse != nullptr && place.t == 0)
        problem.lse[token_of(row) * problem.lse_token_stride + head * problem.lse_head_stride] =
            softmax.log_sum(r);
    }
    __syncwarp();
    std::uint32_t probe = 0;
    char* const target = vector_of(3);
#pragma unroll
    for (int pass = 0; pass < layout::rows / pass_rows; ++pass)
      if (inside && own_row(pass) < count) {
        const uint4 x =
            load_shared_vector(own_vector + static_cast<std::uint32_t>(pass * step_bytes));
        add_to_probe<T>(x, probe);
        *reinterpret_cast<uint4*>(
            advance(target, token_of(own_row(pass)), problem.packed[3].token_bytes)) = x;
      }
    return finds_broken(probe);
  }

  /// Computes the rows again that are not finite.
  __device__ __forceinline__ void repair(int first, int count) const {
    __syncwarp();
    for (int row = first; row < first + count; ++row) {
      const bool inside = place.lane * 8 < problem.head_dim;
      const char* const target =
          advance(advance(problem.packed[3].data + 16 * (inside ? place.lane : 0), head,
                          problem.packed[3].head_bytes),
                  group.order[row], problem.packed[3].token_bytes);
      const uint4 x = *reinterpret_cast<const uint4*>(target);
      if (__any_sync(all, inside && probe_vector<T>(x) != 0))
        attend_row<T>(problem, group, head, row);
    }
  }
};

}  // namespace winnow::detail
