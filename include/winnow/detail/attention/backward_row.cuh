// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of one row by one warp, straight from the formulas: for every encoding, quant length,
/// stride and table type, and touching no token but those of the row's own window.
///
/// What one block computes: its one warp takes rows one after the other, query rows (dq, and what they
/// add to dTq, dTv and dB) or key rows (dk, dv, dTk). 32 keys (queries) at a time, each lane
/// computes P and dS of one pair; then the pairs go one by one and lanes take dims. In registers lie
/// the row's sums; sums of tables lie in global memory, one part a block, which nobody else touches.
///
/// Bound by latency: some 50 times slower than a tile. It serves what tiles have no room for (long
/// quant lengths, wide tables), and it computes again the rows that came out non-finite there: tiles
/// multiply weights of 0 with the rows of neighbouring windows, where 0 · NaN is NaN. So NaN and
/// infinity never leave their window, and ordinary data pays for one comparison.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_problem.hpp"
#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// The memory a warp sums table gradients into: [axis][row][head_dim], or [row] for the bias.
struct row_parts {
  float* first = nullptr;   ///< dTq on the query side, dTk on the key side
  float* second = nullptr;  ///< dTv
  float* bias = nullptr;
};

/// P and dS of the pair of slots (i, j), which lie in one window and attend.
struct pair_weights {
  float p = 0.0f;
  float ds = 0.0f;
};

template <class T>
__device__ __forceinline__ pair_weights weigh_pair(const backward_problem& problem,
                                                   const group_problem& group, int head, int i,
                                                   int j, const pair_rows& rows) {
  const std::int64_t query = group.order[i];
  const std::int64_t key = group.order[j];
  const T* q = row_of<T>(problem.q, query, head);
  const T* k = row_of<T>(problem.k, key, head);
  const T* v = row_of<T>(problem.v, key, head);
  const T* grad_out = row_of<T>(problem.grad_out, query, head);
  const int group_head = head - group.first_head;
  const bool contextual = group.position == position_encoding::contextual;
  float query_side = 0.0f;
  float key_side = 0.0f;
  float dp = 0.0f;
  for (int d = 0; d < problem.head_dim; ++d) {
    const float k_d = widen(k[d]);
    float met_by_query = k_d;
    float value = widen(v[d]);
    if (contextual) {
      met_by_query += table_sum<T>(group.table_q, rows, group_head, d);
      key_side += k_d * table_sum<T>(group.table_k, rows, group_head, d);
      value += table_sum<T>(group.table_v, rows, group_head, d);
    }
    query_side += widen(q[d]) * met_by_query;
    dp += widen(grad_out[d]) * value;
  }
  float logit = query_side * problem.scale + key_side;
  if (group.position == position_encoding::bias)
    logit += load_element<T>(group.bias, group.bias_is_float,
                             rows.x * group.bias_row_stride + group_head * group.bias_head_stride);
  const float lse = problem.lse[query * problem.lse_token_stride + head * problem.lse_head_stride];
  pair_weights result;
  result.p = expf(logit - lse);
  // A token alone in its window has dP = delta, but for the rounding of O.
  const bool single =
      group.bounds[2 * std::int64_t{i} + 1] - group.bounds[2 * std::int64_t{i}] == 1;
  result.ds = result.p * (dp - (single ? dp : problem.delta[head * problem.max_tokens + i]));
  return result;
}

/// Writes a gradient's element, or adds to it.
template <class T>
__device__ __forceinline__ void store_gradient(T* target, float value, bool accumulate) {
  *target = narrow<T>(accumulate ? widen(*target) + value : value);
}

template <class T>
__device__ __forceinline__ T* gradient_row(const row_view& view, std::int64_t token, int head) {
  return const_cast<T*>(row_of<T>(view, token, head));
}

/// part[axis][r_axis][dim] += by · x for the three axes, this lane's dims.
__device__ __forceinline__ void add_to_tables(float* part, const pair_rows& rows, int table_rows,
                                              int dim, int d, float value) {
  part[std::int64_t{rows.x} * dim + d] += value;
  part[(std::int64_t{table_rows} + rows.y) * dim + d] += value;
  part[(2 * std::int64_t{table_rows} + rows.z) * dim + d] += value;
}

/// Computes the gradients of the row of `slot` and stores them; adds to `parts` what is not null.
/// The whole warp takes part. The deltas of the window are in memory.
template <class T, backward_side Side>
__device__ __noinline__ void differentiate_row(const backward_problem& problem,
                                               const group_problem& group, int head, int slot,
                                               row_parts parts) {
  constexpr unsigned all = 0xffffffffu;
  constexpr int lane_dims = max_head_dim / 32;
  constexpr bool query_side = Side == backward_side::query;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int dim = problem.head_dim;
  const int group_head = head - group.first_head;
  const std::int64_t token = group.order[slot];
  const int first = group.bounds[2 * std::int64_t{slot}];
  const int last = group.bounds[2 * std::int64_t{slot} + 1];
  const int table_rows = 2 * group.quant_length - (group.kind == relative_kind::spherical ? 0 : 1);
  const bool contextual = group.position == position_encoding::contextual;
  const table_view& own_table = query_side ? group.table_q : group.table_k;
  float first_sum[lane_dims] = {};   // dq or dk
  float second_sum[lane_dims] = {};  // dv
  for (int base = first; base < last; base += 32) {
    const int other = base + lane;
    pair_rows rows;
    const int i = query_side ? slot : other;
    const int j = query_side ? other : slot;
    const bool attends = other < last && relate(group, i, j, rows);
    pair_weights weights;
    if (attends) weights = weigh_pair<T>(problem, group, head, i, j, rows);
    // A query's keys have different rows of the bias table, so no two lanes add to one element.
    if (parts.bias != nullptr && attends) parts.bias[rows.x] += weights.ds;
    __syncwarp();
    for (unsigned left = __ballot_sync(all, attends); left != 0; left &= left - 1) {
      const int source = __ffs(static_cast<int>(left)) - 1;
      const float p = __shfl_sync(all, weights.p, source);
      const float ds = __shfl_sync(all, weights.ds, source);
      const pair_rows r{__shfl_sync(all, rows.x, source), __shfl_sync(all, rows.y, source),
                        __shfl_sync(all, rows.z, source)};
      const std::int64_t other_token = group.order[base + source];
      const T* met = row_of<T>(query_side ? problem.k : problem.q, other_token, head);
      for (int c = 0; c < lane_dims; ++c) {
        const int d = lane + 32 * c;
        if (d >= dim) break;
        // dq = s Σ dS (k + Tq); dk = Σ dS (s q + Tk)
        float term = widen(met[d]) * (query_side ? 1.0f : problem.scale);
        if (contextual) term += table_sum<T>(own_table, r, group_head, d);
        first_sum[c] += ds * term;
        if constexpr (!query_side)
          second_sum[c] += p * widen(row_of<T>(problem.grad_out, other_token, head)[d]);
        if (parts.first != nullptr) {
          const float own = query_side ? widen(row_of<T>(problem.q, token, head)[d]) * problem.scale
                                       : widen(row_of<T>(problem.k, token, head)[d]);
          add_to_tables(parts.first, r, table_rows, dim, d, ds * own);
        }
        if (parts.second != nullptr)
          add_to_tables(parts.second, r, table_rows, dim, d,
                        p * widen(row_of<T>(problem.grad_out, token, head)[d]));
      }
    }
  }
  const row_view& first_view = query_side ? problem.grad_q : problem.grad_k;
  for (int c = 0; c < lane_dims; ++c) {
    const int d = lane + 32 * c;
    if (d >= dim) break;
    if (first_view.data != nullptr)
      store_gradient(gradient_row<T>(first_view, token, head) + d,
                     query_side ? first_sum[c] * problem.scale : first_sum[c], problem.accumulate);
    if (!query_side && problem.grad_v.data != nullptr)
      store_gradient(gradient_row<T>(problem.grad_v, token, head) + d, second_sum[c],
                     problem.accumulate);
  }
}

/// delta of a row, to memory. The whole warp takes part.
template <class T>
__device__ __forceinline__ void measure_row(const backward_problem& problem,
                                            const group_problem& group, int head, int slot) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const std::int64_t token = group.order[slot];
  const T* grad_out = row_of<T>(problem.grad_out, token, head);
  const T* out = row_of<T>(problem.out, token, head);
  float delta = 0.0f;
  for (int d = lane; d < problem.head_dim; d += 32) delta += widen(grad_out[d]) * widen(out[d]);
  for (int step = 16; step > 0; step /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, step);
  if (lane == 0) problem.delta[head * problem.max_tokens + slot] = delta;
  __syncwarp();
}
/// Both sides of a row whose window's deltas are not in memory.
template <class T>
__device__ __noinline__ void differentiate_whole_row(const backward_problem& problem,
                                                     const group_problem& group, int head,
                                                     int slot) {
  const int end = group.bounds[2 * std::int64_t{slot} + 1];
  for (int other = group.bounds[2 * std::int64_t{slot}]; other < end; ++other)
    measure_row<T>(problem, group, head, other);
  differentiate_row<T, backward_side::query>(problem, group, head, slot, {});
  differentiate_row<T, backward_side::key>(problem, group, head, slot, {});
}

/// Zeroes this side's gradients of a token in no window. The whole warp takes part.
template <class T, backward_side Side>
__device__ __forceinline__ void zero_row(const backward_problem& problem, std::int64_t token,
                                         int head) {
  const row_view* views[] = {Side == backward_side::query ? &problem.grad_q : &problem.grad_k,
                             Side == backward_side::query ? nullptr : &problem.grad_v};
  for (const row_view* view : views) {
    if (view == nullptr || view->data == nullptr) continue;
    for (int d = static_cast<int>(threadIdx.x) & 31; d < problem.head_dim; d += 32)
      gradient_row<T>(*view, token, head)[d] = narrow<T>(0.0f);
  }
}

/// Which group and head a block of a launch serves: heads are the fastest index of the grid, so that
/// the slices of a token's row meet in the cache.
struct block_place {
  int group = 0;
  int group_head = 0;
  int part;  ///< the block's number among those of its head
  __device__ __forceinline__ explicit block_place(const backward_problem& problem)
      : part(static_cast<int>(blockIdx.x) / problem.heads) {
    const int index = static_cast<int>(blockIdx.x) % problem.heads;
    while (group + 1 < problem.group_count &&
           index >= problem.groups[group + 1].problem.first_index)
      ++group;
    group_head = index - problem.groups[group].problem.first_index;
  }
};

/// A block is one warp and takes every `blocks_per_head`-th slot of its head.
template <class T, backward_side Side>
__global__ void __launch_bounds__(32)
    differentiate_rows_kernel(const __grid_constant__ backward_problem problem) {
  const block_place place(problem);
  const backward_group& entry = problem.groups[place.group];
  const group_problem& group = entry.problem;
  const int head = group.first_head + place.group_head;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int dim = problem.head_dim;
  const int table_rows = 2 * group.quant_length - (group.kind == relative_kind::spherical ? 0 : 1);

  const auto part_of = [&](float* base, std::int64_t size) {
    if (base == nullptr) return base;
    float* part =
        base + (std::int64_t{place.group_head} * problem.blocks_per_head + place.part) * size;
    for (std::int64_t e = lane; e < size; e += 32) part[e] = 0.0f;
    return part;
  };
  row_parts parts;
  const std::int64_t size = std::int64_t{3} * table_rows * dim;
  if constexpr (Side == backward_side::query) {
    const int edge = 2 * group.quant_length - 1;
    parts.first = part_of(entry.parts.table_q, size);
    parts.second = part_of(entry.parts.table_v, size);
    parts.bias = part_of(entry.parts.bias, std::int64_t{edge} * edge);
  } else {
    parts.first = part_of(entry.parts.table_k, size);
  }
  __syncwarp();

  const int assigned = group.counts->assigned;
  for (int slot = place.part; slot < assigned; slot += problem.blocks_per_head) {
    if constexpr (Side == backward_side::query) {
      measure_row<T>(problem, group, head, slot);
    }
    differentiate_row<T, Side>(problem, group, head, slot, parts);
  }
  if (problem.zero_unassigned && !problem.accumulate)
    for (int slot = assigned + place.part; slot < group.counts->tokens;
         slot += problem.blocks_per_head)
      zero_row<T, Side>(problem, group.order[slot], head);
}

}  // namespace winnow::detail
