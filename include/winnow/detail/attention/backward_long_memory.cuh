// SPDX-License-Identifier: Apache-2.0
/// \file
/// How the tiles of backward_long.cuh read and write: tiles of the other side, own rows, delta, and
/// gradients.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_long.cuh"

namespace winnow::detail {

template <class T, int D, backward_side Side>
__device__ __forceinline__ void long_differentiator<T, D, Side>::load_others(int first_stage,
                                                                             int stage, int from,
                                                                             int last) {
  const int thread = static_cast<int>(threadIdx.x);
  const row_view& first = query_side ? problem.k : problem.q;
  const row_view& second = query_side ? problem.v : problem.grad_out;
  const bool inside = thread % chunks * width < problem.head_dim;
  // Strides of vectors in bytes fit 32 bits here.
  const auto first_stride = static_cast<std::int32_t>(first.token_stride * sizeof(T));
  const auto second_stride = static_cast<std::int32_t>(second.token_stride * sizeof(T));
  // Addresses would be kept over the walk, in registers that it needs.
  int own_head = head;
  asm volatile("" : "+r"(own_head));
  const char* first_base = column_of(first, own_head);
  const char* second_base = column_of(second, own_head);
  const int lane_offset = thread / chunks * math::stride + thread % chunks * width;
  const std::uint32_t first_target = shared_address(other_first(first_stage) + lane_offset);
  const std::uint32_t second_target = shared_address(other_second(stage) + lane_offset);
  constexpr std::uint32_t row_bytes = math::stride * sizeof(T);
#pragma unroll
  for (int pass = 0; pass < passes; ++pass) {
    const int own_row = thread / chunks + pass * (threads / chunks);
    const bool there = from + own_row < last && inside;
    const std::int64_t token = other_tokens(stage)[own_row];
    const std::uint32_t row = pass * (threads / chunks) * row_bytes;
    copy_async(first_target + row, first_base + token * first_stride, there);
    copy_async(second_target + row, second_base + token * second_stride, there);
  }
  if constexpr (!query_side)
    if (thread < others) {
      const bool valid = from + thread < last;
      const std::int64_t token = other_tokens(stage)[thread];
      float2* target_stats = stats(stage) + thread;
      copy_word(&target_stats->x,
                problem.lse + token * problem.lse_token_stride + own_head * problem.lse_head_stride,
                valid);
      copy_word(&target_stats->y,
                problem.delta + own_head * problem.max_tokens + (valid ? from + thread : 0), valid);
    }
  request_tokens(1 - stage, from + others, last);
  commit_copies();
}

template <class T, int D, backward_side Side>
__device__ __forceinline__ void long_differentiator<T, D, Side>::load_own(row_vectors& outs) const {
  const row_view& first = query_side ? problem.q : problem.k;
  const row_view& second = query_side ? problem.grad_out : problem.v;
  const int column = place.lane % chunks * width;
  const bool inside = column < problem.head_dim;
#pragma unroll
  for (int pass = 0; pass < chunks; ++pass) {
    const int row = row_of_pass(pass);
    const bool there = first_slot + row < assigned && inside;
    const std::int64_t token = there ? own_tokens()[row] : 0;
    const int target = row * math::stride + column;
    copy_async(own_rows(false) + target, row_of<T>(first, token, head) + column, there);
    copy_async(own_rows(true) + target, row_of<T>(second, token, head) + column, there);
    if constexpr (query_side) {
      outs[pass] = {0, 0, 0, 0};
      if (there)
        outs[pass] = *reinterpret_cast<const uint4*>(row_of<T>(problem.out, token, head) + column);
    }
  }
}

template <class T, int D, backward_side Side>
__device__ __forceinline__ unsigned long_differentiator<T, D, Side>::measure_queries(
    const row_vectors& outs) const {
  const int column = place.lane % chunks * width;
  unsigned largest[2] = {0, 0};  // of the upper and the lower 16 rows
#pragma unroll
  for (int pass = 0; pass < chunks; ++pass) {
    const int row = row_of_pass(pass);
    const uint4 grads =
        *reinterpret_cast<const uint4*>(own_rows(true) + row * math::stride + column);
    float dot = measure_vectors<T>(grads, outs[pass], largest[pass * rows_a_pass / 16]);
#pragma unroll
    for (int step = chunks / 2; step > 0; step /= 2) dot += __shfl_xor_sync(all_lanes, dot, step);
    if (place.lane % chunks == 0) {
      own_deltas()[row] = dot;
      // Those of shorter windows are another kernel's, beside this one.
      if ((own >> row & 1u) != 0) problem.delta[head * problem.max_tokens + first_slot + row] = dot;
    }
  }
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    largest[part] = __reduce_max_sync(all_lanes, largest[part]) >> 23;
    // Of a part that warpgroups take it is theirs.
    if (place.lane == 0 && first_slot + 16 * part < assigned && (!has_warpgroups || own != 0))
      problem.magnitude[head * problem.magnitude_stride + first_slot / 16 + part] =
          static_cast<std::uint8_t>(largest[part]);
  }
  __syncwarp();
  return max(largest[0], largest[1]);
}

template <class T, int D, backward_side Side>
__device__ __forceinline__ unsigned long_differentiator<T, D, Side>::broken_rows() const {
  unsigned broken = 0;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;
#pragma unroll
      for (int b = 0; b < math::blocks; ++b) {
        probe += (first_sum[m][b][2 * i] + first_sum[m][b][2 * i + 1]) * 0.0f;
        if constexpr (!query_side)
          probe += (second_sum[m][b][2 * i] + second_sum[m][b][2 * i + 1]) * 0.0f;
      }
      const unsigned lanes = __ballot_sync(all_lanes, !(probe == 0.0f));
      if (lanes == 0) continue;
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (16 * m + 8 * i + g);
    }
  return broken;
}

template <class T, int D, backward_side Side>
__device__ __forceinline__ void long_differentiator<T, D, Side>::store(
    const row_view& view, T* staging, float by, unsigned which,
    const float (&sum)[2][math::blocks][4]) const {
  if (view.data == nullptr) return;
  const int dim = problem.head_dim;
  if (problem.accumulate) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 16 * m + 8 * i + place.g;
        if ((which >> row & 1u) == 0) continue;
        T* target = gradient_row<T>(view, own_tokens()[row], head) + 2 * place.t;
#pragma unroll
        for (int b = 0; b < math::blocks; ++b) {
          if (b * 8 >= dim) break;
          store_gradient(target + b * 8, sum[m][b][2 * i] * by, true);
          store_gradient(target + b * 8 + 1, sum[m][b][2 * i + 1] * by, true);
        }
      }
    return;
  }
  // Through shared memory, so that rows leave as vectors.
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int b = 0; b < math::blocks; ++b)
        *reinterpret_cast<std::uint32_t*>(staging + (16 * m + 8 * i + place.g) * math::stride +
                                          b * 8 + 2 * place.t) =
            pack<T>(sum[m][b][2 * i] * by, sum[m][b][2 * i + 1] * by);
  __syncwarp();
  const int column = place.lane % chunks * width;
#pragma unroll
  for (int row = place.lane / chunks; row < 32; row += rows_a_pass) {
    if (column >= dim || (which >> row & 1u) == 0) continue;
    const std::int64_t token = own_tokens()[row];
    *reinterpret_cast<uint4*>(gradient_row<T>(view, token, head) + column) =
        *reinterpret_cast<const uint4*>(staging + row * math::stride + column);
  }
}

}  // namespace winnow::detail
