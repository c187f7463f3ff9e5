// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention of one row by one warp, straight from the formulas: for every encoding, quant length,
/// stride and table type, and touching no key but the row's own.
///
/// Tiles fall back to it. They multiply masked weights of 0 with the values of neighbouring
/// windows, where 0 · NaN is NaN; a row that came out non-finite is computed again here, so NaN and
/// infinity never leave their window and ordinary data pays for one comparison. Lanes take keys for
/// the scores and dims for the sums, all in FP32. Bound by latency: some 100 times slower than a
/// tile.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/relative_position.hpp"

namespace winnow::detail {

/// The relative indices of a pair of slots. For a bias only x is used.
struct pair_rows {
  int x = 0, y = 0, z = 0;
};

/// r_a(i, j), and whether i attends to j at all; both slots lie in one window.
__device__ __forceinline__ bool relate(const group_problem& group, int i, int j, pair_rows& rows) {
  if (group.kind == relative_kind::none) return true;
  const packed_position p_i = group.positions[i];
  const packed_position p_j = group.positions[j];
  if (group.kind == relative_kind::grid) {
    rows.x = bias_row(p_i, p_j, group.quant_length);
    return unpack_position(p_i, 2) == unpack_position(p_j, 2);
  }
  const int length = group.quant_length;
  rows.x = difference_row(unpack_position(p_i, 0), unpack_position(p_j, 0), length);
  rows.y = difference_row(unpack_position(p_i, 1), unpack_position(p_j, 1), length);
  rows.z = group.kind == relative_kind::spherical
               ? exponential_row(group.radius[i] - group.radius[j], group.inverse_a, length)
               : difference_row(unpack_position(p_i, 2), unpack_position(p_j, 2), length);
  return true;
}

/// Element d of Σ_a table[r_a, a, head], or 0 where the table is absent.
template <class T>
__device__ __forceinline__ float table_sum(const table_view& table, const pair_rows& rows, int head,
                                           int d) {
  if (table.data == nullptr) return 0.0f;
  const std::int64_t base = head * table.head_stride + d;
  return load_element<T>(table.data, table.is_float, base + rows.x * table.row_stride) +
         load_element<T>(table.data, table.is_float,
                         base + rows.y * table.row_stride + table.axis_stride) +
         load_element<T>(table.data, table.is_float,
                         base + rows.z * table.row_stride + 2 * table.axis_stride);
}

/// Σ_a by · table[r_a, a, head, d], or 0 where the table is absent. The products are apart because
/// infinity times a sum is not the sum of its products.
template <class T>
__device__ __forceinline__ float table_terms(const table_view& table, const pair_rows& rows,
                                             int head, int d, float by) {
  if (table.data == nullptr) return 0.0f;
  const std::int64_t base = head * table.head_stride + d;
  return by * load_element<T>(table.data, table.is_float, base + rows.x * table.row_stride) +
         by * load_element<T>(table.data, table.is_float,
                              base + rows.y * table.row_stride + table.axis_stride) +
         by * load_element<T>(table.data, table.is_float,
                              base + rows.z * table.row_stride + 2 * table.axis_stride);
}

/// The logit of a pair.
template <class T>
__device__ __forceinline__ float pair_logit(const forward_problem& problem,
                                            const group_problem& group, int head, const T* q, int j,
                                            const pair_rows& rows) {
  const T* k = row_of<T>(problem.k, group.order[j], head);
  const int group_head = head - group.first_head;
  float query_side = 0.0f;
  float key_side = 0.0f;
  for (int d = 0; d < problem.head_dim; ++d) {
    const float q_d = widen(q[d]) * problem.scale;
    const float k_d = widen(k[d]);
    query_side += q_d * k_d;
    if (group.position == position_encoding::contextual) {
      query_side += table_terms<T>(group.table_q, rows, group_head, d, q_d);
      key_side += table_terms<T>(group.table_k, rows, group_head, d, k_d);
    }
  }
  if (group.position == position_encoding::bias)
    key_side =
        load_element<T>(group.bias, group.bias_is_float,
                        rows.x * group.bias_row_stride + group_head * group.bias_head_stride);
  return query_side + key_side;
}

/// Computes and stores the row of `slot`. The whole warp takes part.
template <class T>
__device__ __noinline__ void attend_row(const forward_problem& problem, const group_problem& group,
                                        int head, int slot) {
  constexpr unsigned all = 0xffffffffu;
  constexpr int lane_dims = max_head_dim / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const std::int64_t token = group.order[slot];
  const int first = group.bounds[2 * std::int64_t{slot}];
  const int last = group.bounds[2 * std::int64_t{slot} + 1];
  const T* q = row_of<T>(problem.q, token, head);
  float largest = -INFINITY;
  float sum = 0.0f;
  float out[lane_dims] = {};
  for (int base = first; base < last; base += 32) {
    const int j = base + lane;
    pair_rows rows;
    const bool attends = j < last && relate(group, slot, j, rows);
    const float logit = attends ? pair_logit<T>(problem, group, head, q, j, rows) : -INFINITY;
    float chunk = logit;  // fmaxf passes over NaN, which returns through the weights
    for (int step = 16; step > 0; step /= 2)
      chunk = fmaxf(chunk, __shfl_xor_sync(all, chunk, step));
    const float raised = fmaxf(largest, chunk);
    const float factor = largest == raised ? 1.0f : expf(largest - raised);
    const float weight = logit == -INFINITY ? 0.0f : expf(logit - raised);
    largest = raised;
    float total = weight;
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(all, total, step);
    sum = sum * factor + total;
    for (float& x : out) x *= factor;
    for (unsigned left = __ballot_sync(all, attends); left != 0; left &= left - 1) {
      const int other = __ffs(static_cast<int>(left)) - 1;
      const float p = __shfl_sync(all, weight, other);
      const pair_rows r{__shfl_sync(all, rows.x, other), __shfl_sync(all, rows.y, other),
                        __shfl_sync(all, rows.z, other)};
      const T* v = row_of<T>(problem.v, group.order[base + other], head);
      for (int c = 0; c < lane_dims; ++c) {
        const int d = lane + 32 * c;
        if (d < problem.head_dim)
          out[c] += p * (widen(v[d]) + table_sum<T>(group.table_v, r, head - group.first_head, d));
      }
    }
  }
  T* target = const_cast<T*>(row_of<T>(problem.out, token, head));
  for (int c = 0; c < lane_dims; ++c) {
    const int d = lane + 32 * c;
    if (d < problem.head_dim) target[d] = narrow<T>(out[c] / sum);
  }
  if (problem.lse != nullptr && lane == 0)
    problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] =
        sum == 0.0f ? NAN : largest + logf(sum);
}

}  // namespace winnow::detail
