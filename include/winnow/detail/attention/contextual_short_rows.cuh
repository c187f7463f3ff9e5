// SPDX-License-Identifier: Apache-2.0
/// \file
/// Rows of the few windows that are too long for contextual_short.cuh's units, by one warp each: a lane takes a key, and
/// everything it needs of it as vectors. A kernel of their own would take as long for a single window as its block needs
/// to begin. Some eight times as expensive as a row of a unit, and ten times faster than exact_row.cuh, which
/// takes rows that come out with elements that are not finite.
#pragma once

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// 16 elements, of which the first `dim` count; `load` brings 16 bytes from an offset on.
template <class T, class Load>
__device__ __forceinline__ void load_sixteen(int dim, const Load& load, float (&x)[16]) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int first = 0; first < 16; first += width) {
    const uint4 bits = first < dim ? load(first) : uint4{0, 0, 0, 0};
    T elements[width];
    memcpy(elements, &bits, sizeof bits);
#pragma unroll
    for (int e = 0; e < width; ++e) x[first + e] = widen(elements[e]);
  }
}
template <class T>
__device__ __forceinline__ void load_row(const row_view& view, std::int64_t token, int head,
                                         int dim, float (&x)[16]) {
  const T* row = row_of<T>(view, token, head);
  load_sixteen<T>(
      dim, [&](int first) { return *reinterpret_cast<const uint4*>(row + first); }, x);
}
/// Adds Σ_a table[r_a, a, head]. \tparam Stored as vectors of T, so that no load waits for a condition.
template <class T, bool Stored>
__device__ __forceinline__ void add_table_rows(const table_view& table, const pair_rows& rows,
                                               int head, int dim, float (&x)[16]) {
  if (!Stored && table.data == nullptr) return;
  const int rows_of_axes[3] = {rows.x, rows.y, rows.z};
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const std::int64_t offset =
        rows_of_axes[axis] * table.row_stride + axis * table.axis_stride + head * table.head_stride;
    float own[16];
    load_sixteen<T>(
        dim,
        [&](int first) {
          if constexpr (Stored)
            return *reinterpret_cast<const uint4*>(static_cast<const T*>(table.data) + offset +
                                                   first);
          else
            return load_table_vector<T>(table, offset + first);
        },
        own);
#pragma unroll
    for (int d = 0; d < 16; ++d) x[d] += own[d];
  }
}

/// \tparam Stored all 16 dims and all tables, as vectors of T.
template <class T, bool Stored>
__device__ __forceinline__ void attend_row_of(const forward_problem& problem,
                                              const group_problem& group, int head, int slot) {
  constexpr unsigned all = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int group_head = head - group.first_head, dim = Stored ? 16 : problem.head_dim;
  const std::int64_t token = group.order[slot];
  const int2 window = reinterpret_cast<const int2*>(group.bounds)[slot];
  float q[16];
  load_row<T>(problem.q, token, head, dim, q);
  // Each lane's sums count from its own largest logit.
  float largest = -INFINITY, sum = 0.0f;
  float out[16] = {};
#pragma unroll 1
  for (int other = window.x + lane; other < window.y; other += 32) {
    const std::int64_t key = group.order[other];
    pair_rows rows;
    relate(group, slot, other, rows);
    float k[16], of_keys[16] = {}, v[16];
    load_row<T>(problem.k, key, head, dim, k);
    load_row<T>(problem.v, key, head, dim, v);
    add_table_rows<T, Stored>(group.table_k, rows, group_head, dim, of_keys);
    add_table_rows<T, Stored>(group.table_v, rows, group_head, dim, v);
    float key_side = 0.0f, query_side = 0.0f;
#pragma unroll
    for (int d = 0; d < 16; ++d) key_side = fmaf(k[d], of_keys[d], key_side);
    add_table_rows<T, Stored>(group.table_q, rows, group_head, dim, k);
#pragma unroll
    for (int d = 0; d < 16; ++d) query_side = fmaf(q[d], k[d], query_side);
    const float logit = fmaf(query_side, problem.scale, key_side);
    const float raised = fmaxf(largest, logit);
    const float factor = raised == largest ? 1.0f : __expf(largest - raised);
    const float weight = __expf(logit - raised);
    largest = raised;
    sum = fmaf(sum, factor, weight);
#pragma unroll
    for (int d = 0; d < 16; ++d) out[d] = fmaf(out[d], factor, weight * v[d]);
  }
  float top = largest;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(all, top, step));
  const float factor = largest == -INFINITY ? 0.0f : __expf(largest - top);
  sum *= factor;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(all, sum, step);
#pragma unroll
  for (float& x : out) x *= factor;
    // Half of the lanes keep half of the dims, and so on: lanes 2d and 2d + 1 end up with halves of dim d.
#pragma unroll
  for (int round = 0; round < 4; ++round) {
    const int half = 8 >> round;
    const bool upper = (lane & 2 * half) != 0;
#pragma unroll
    for (int d = 0; d < 8; ++d) {
      if (d >= half) continue;
      const float first = out[d], second = out[d + half];
      out[d] = (upper ? second : first) + __shfl_xor_sync(all, upper ? first : second, 2 * half);
    }
  }
  const float result = (out[0] + __shfl_xor_sync(all, out[0], 1)) / sum;
  if (__any_sync(all, lane / 2 < dim && !(fabsf(result) < INFINITY))) {
    attend_row<T>(problem, group, head, slot);
    return;
  }
  T* target = const_cast<T*>(row_of<T>(problem.out, token, head));
  if (lane % 2 == 0 && lane / 2 < dim) target[lane / 2] = narrow<T>(result);
  if (problem.lse != nullptr && lane == 0)
    problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] =
        top + logf(sum);
}

/// Computes and stores the row of `slot`; rows are vectors. The whole warp takes part.
template <class T>
__device__ __noinline__ void attend_row_by_keys(const forward_problem& problem,
                                                const group_problem& group, int head, int slot) {
  const auto is_stored = [](const table_view& table) {
    return table.data != nullptr && table.vectors && !table.is_float;
  };
  if (problem.head_dim == 16 && is_stored(group.table_q) && is_stored(group.table_k) &&
      is_stored(group.table_v))
    attend_row_of<T, true>(problem, group, head, slot);
  else
    attend_row_of<T, false>(problem, group, head, slot);
}

}  // namespace winnow::detail
