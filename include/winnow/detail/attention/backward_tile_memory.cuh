// SPDX-License-Identifier: Apache-2.0
/// \file
/// How the tiles of backward_tile.cuh read and write: rows on both sides, delta, gradients, and the
/// sums of the bias gradient.
#pragma once

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/backward_tile.cuh"

namespace winnow::detail {

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::load_tokens(int from,
                                                                                       int last) {
#pragma unroll
  for (int pass = 0; pass < passes; ++pass) {
    const int there = from + (pass * threads + static_cast<int>(threadIdx.x)) / chunks;
    tokens[pass] = there < last ? group.order[there] : -1;
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::copy_vector(
    T* target, const row_view& view, std::int64_t token, int column) const {
  const bool valid = token >= 0 && column < problem.head_dim;
  const T* source = static_cast<const T*>(view.data);
  if (valid) source = row_of<T>(view, token, head) + column;
  if (view.vectors || !valid) {
    copy_async(target, source, valid);
  } else {
#pragma unroll
    for (int e = 0; e < width; ++e) target[e] = source[e];
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::load_others(int stage,
                                                                                       int from,
                                                                                       int next,
                                                                                       int last) {
  const row_view& first_view = query_side ? problem.k : problem.q;
  const row_view& second_view = query_side ? problem.v : problem.grad_out;
#pragma unroll
  for (int pass = 0; pass < passes; ++pass) {
    const int i = pass * threads + static_cast<int>(threadIdx.x);
    if (vectors % threads != 0 && i >= vectors) break;
    const int row = i / chunks;
    const int column = i % chunks * width;
    const int offset = row * math::stride + column;
    copy_vector(other(stage, false) + offset, first_view, tokens[pass], column);
    copy_vector(other(stage, true) + offset, second_view, tokens[pass], column);
    if (column == 0) {
      const bool valid = tokens[pass] >= 0;
      if constexpr (!query_side) {
        copy_word_async(at<float>(layout::other_lse) + stage * layout::column_stride + row,
                        valid ? lse_of(tokens[pass]) : problem.lse, valid);
        copy_word_async(at<float>(layout::other_delta) + stage * layout::column_stride + row,
                        problem.delta + head * problem.max_tokens + (valid ? from + row : 0),
                        valid);
      }
      if (grid) {
        at<std::uint32_t>(layout::other_codes)[stage * layout::column_stride + row] =
            valid ? grid_code(group.positions[from + row], group.quant_length) : 0;
      }
    }
  }
  commit_copies();
  load_tokens(next, last);
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::load_out(
    out_rows& result) const {
  constexpr int rows_a_pass = 32 / chunks;
#pragma unroll
  for (int pass = 0; pass < row_passes; ++pass) {
    const int tile_row = warp * 16 + pass * rows_a_pass + lane / chunks;
    const int column = lane % chunks * width;
    result.vectors[pass] = {0, 0, 0, 0};
    if (tile_row >= count || column >= problem.head_dim) continue;
    const T* out = row_of<T>(problem.out, group.order[first_slot + tile_row], head) + column;
    if (problem.out.vectors) {
      result.vectors[pass] = *reinterpret_cast<const uint4*>(out);
    } else {
      T elements[width];
#pragma unroll
      for (int e = 0; e < width; ++e) elements[e] = out[e];
      memcpy(&result.vectors[pass], elements, sizeof elements);
    }
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::measure_queries(
    const out_rows& outs) const {
  constexpr int rows_a_pass = 32 / chunks;
  unsigned largest = 0;
#pragma unroll
  for (int pass = 0; pass < row_passes; ++pass) {
    const int row = pass * rows_a_pass + lane / chunks;
    const int column = lane % chunks * width;
    const int tile_row = warp * 16 + row;
    float dot = 0.0f;
    if (tile_row < count && column < problem.head_dim) {
      const T* grad_out = own(true) + row * math::stride + column;
      T elements[width];
      memcpy(elements, &outs.vectors[pass], sizeof elements);
#pragma unroll
      for (int e = 0; e < width; ++e) {
        const float g = widen(grad_out[e]);
        dot += g * widen(elements[e]);
        const unsigned bits = __float_as_uint(g) & 0x7fffffffu;
        if (bits < 0x7f800000u) largest = max(largest, bits);
      }
    }
#pragma unroll
    for (int step = chunks / 2; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
    if (lane % chunks == 0 && tile_row < count) {
      at<float2>(layout::own_stats)[tile_row].y = dot;
      problem.delta[head * problem.max_tokens + first_slot + tile_row] = dot;
    }
  }
  if constexpr (narrow_factors) {
    largest = __reduce_max_sync(0xffffffffu, largest) >> 23;
    if (lane == 0) {
      at<unsigned>(layout::magnitude)[warp] = largest;
      if (warp * 16 < count)
        problem.magnitude[head * problem.magnitude_stride + first_slot / 16 + warp] =
            static_cast<std::uint8_t>(largest);
    }
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::find_magnitude(
    int from, int last) const {
  if constexpr (narrow_factors) {
    unsigned largest = 0;
    const std::uint8_t* magnitudes = problem.magnitude + head * problem.magnitude_stride;
    for (int i = from / 16 + static_cast<int>(threadIdx.x); i <= (last - 1) / 16; i += threads)
      largest = max(largest, static_cast<unsigned>(magnitudes[i]));
    largest = __reduce_max_sync(0xffffffffu, largest);
    if (lane == 0) at<unsigned>(layout::magnitude)[warp] = largest;
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::place_rows() {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + place.g + 8 * i;
    slot[i] = row < count ? first_slot + row : -1;
    begin[i] = end[i] = 0;
    code[i] = 0;
    lse[i] = delta[i] = 0.0f;
    single[i] = false;
    if (slot[i] < 0) continue;
    const int2 window = reinterpret_cast<const int2*>(group.bounds)[slot[i]];
    begin[i] = window.x;
    end[i] = window.y;
    single[i] = window.y - window.x == 1;
    if (grid) code[i] = grid_code(group.positions[slot[i]], group.quant_length);
    if constexpr (query_side) lse[i] = weight_shift - *lse_of(group.order[slot[i]]) * log2_e;
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
template <int Blocks>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::store(
    const row_view& view, T* staging, float by, unsigned skip,
    const float (&sum)[Blocks][4]) const {
  if (view.data == nullptr) return;
  const int dim = problem.head_dim;
  if (problem.accumulate || !view.vectors) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (slot[i] < 0 || (skip >> (place.g + 8 * i) & 1u) != 0) continue;
      T* target = gradient_row<T>(view, group.order[slot[i]], head) + 2 * place.t;
#pragma unroll
      for (int b = 0; b < Blocks; ++b) {
        if (b * 8 >= dim) break;
        store_gradient(target + b * 8, sum[b][2 * i] * by, problem.accumulate);
        store_gradient(target + b * 8 + 1, sum[b][2 * i + 1] * by, problem.accumulate);
      }
    }
    return;
  }
  // Through shared memory, so that rows leave as vectors.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int b = 0; b < Blocks; ++b) {
      T* target = staging + (place.g + 8 * i) * math::stride + b * 8 + 2 * place.t;
      if constexpr (sizeof(T) == 4)
        *reinterpret_cast<float2*>(target) = {sum[b][2 * i] * by, sum[b][2 * i + 1] * by};
      else
        *reinterpret_cast<std::uint32_t*>(target) =
            pack<T>(sum[b][2 * i] * by, sum[b][2 * i + 1] * by);
    }
  __syncwarp();
  constexpr int rows_a_pass = 32 / chunks;
#pragma unroll
  for (int pass = 0; pass < 16 / rows_a_pass; ++pass) {
    const int row = pass * rows_a_pass + lane / chunks;
    const int column = lane % chunks * width;
    if (warp * 16 + row >= count || column >= dim || (skip >> row & 1u) != 0) continue;
    const std::int64_t token = group.order[first_slot + warp * 16 + row];
    *reinterpret_cast<uint4*>(gradient_row<T>(view, token, head) + column) =
        *reinterpret_cast<const uint4*>(staging + row * math::stride + column);
  }
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ unsigned tile_differentiator<T, D, Position, Side>::broken_rows() const {
  float probe[2] = {0.0f, 0.0f};  // becomes NaN with any NaN or infinity
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (const auto& block : first_sum) probe[i] += (block[2 * i] + block[2 * i + 1]) * 0.0f;
#pragma unroll
    for (const auto& block : second_sum) probe[i] += (block[2 * i] + block[2 * i + 1]) * 0.0f;
  }
  unsigned broken = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned lanes = __ballot_sync(0xffffffffu, !(probe[i] == 0.0f) && slot[i] >= 0);
    if (lanes == 0) continue;
    for (int g = 0; g < 8; ++g)
      if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (g + 8 * i);
  }
  return broken;
}

template <class T, int D, position_encoding Position, backward_side Side>
__device__ __forceinline__ void tile_differentiator<T, D, Position, Side>::add_to_bias(
    const float (&ds)[2][4], const std::uint32_t* codes, int from, int last) {
  const int edge = group.quant_length;
  const int table_rows = (2 * edge - 1) * (2 * edge - 1);
  float* piece = at<float>(layout::bias) + (1 + 2 * tuning.warps) * table_rows +
                 warp * 16 * layout::piece_stride;
  float* sums = at<float>(layout::bias) + (1 + 2 * warp + lane / 16) * table_rows;
#pragma unroll
  for (int b = 0; b < 2; ++b)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      piece[(place.g + e / 2 * 8) * layout::piece_stride + b * 8 + 2 * place.t + (e & 1)] =
          ds[b][e] * lower;
  __syncwarp();
  const std::uint32_t key_code = codes[lane % 16];
  const int key_slot = from + lane % 16;
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    // Row 8·(lane / 16) + step: the lane of the same g and this half's i holds what it needs.
    const int source = step * 4;
    const std::uint32_t codes_of[2] = {__shfl_sync(0xffffffffu, code[0], source),
                                       __shfl_sync(0xffffffffu, code[1], source)};
    const int begins[2] = {__shfl_sync(0xffffffffu, begin[0], source),
                           __shfl_sync(0xffffffffu, begin[1], source)};
    const int ends[2] = {__shfl_sync(0xffffffffu, end[0], source),
                         __shfl_sync(0xffffffffu, end[1], source)};
    const bool lower_half = lane >= 16;
    const std::uint32_t difference = (lower_half ? codes_of[1] : codes_of[0]) - key_code +
                                     static_cast<std::uint32_t>((edge - 1) * 2 * edge);
    if (key_slot < last && key_slot >= (lower_half ? begins[1] : begins[0]) &&
        key_slot < (lower_half ? ends[1] : ends[0]) && difference < backward_seam)
      sums[difference] += piece[(lane / 16 * 8 + step) * layout::piece_stride + lane % 16];
    __syncwarp();
  }
}

}  // namespace winnow::detail
