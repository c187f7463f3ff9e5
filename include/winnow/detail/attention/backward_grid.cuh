// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of an image's windows with additive bias in one pass, for 16-bit storage and windows of up
/// to 64 tokens.
///
/// What one block computes: whole windows of one head, one after the other: dq, dk, dv of all rows, and
/// dB summed over its windows. Warp w owns the window's keys 16·w to 16·w + 15: it computes their
/// transposed scores with all queries, adds up their dk and dv, and leaves dS in shared memory, rounded.
/// After one barrier it owns the queries of the same numbers and multiplies their dS with all keys.
/// 5 products and one exponential a pair, where two sides need 7 and two.
///
/// All windows have one shape, so a pair of rows has one row of the bias table in every window: the bias
/// lies expanded in shared memory, and dS of each pair is summed up in registers over all windows of the
/// block. Only at the end are pairs sorted into rows of the table, in a fixed order.
///
/// Registers: the own keys as left factors, sums of dk and dv, sums of dS. Shared memory: q, k, v, dO
/// and dS of one window, and the bias of all pairs.
///
/// Which windows a block takes follows from its number: results repeat bit for bit, without atomics.
///
/// Bound: memory latency: a window's rows arrive while other blocks of the multiprocessor compute.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_layout.hpp"
#include "winnow/detail/attention/backward_problem.hpp"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, int D>
struct grid_differentiator {
  using layout = grid_layout<D>;
  using math = tile_math<T, D>;
  static constexpr int tiles = layout::tiles;
  static constexpr int rows = layout::rows;
  static constexpr int threads = 32 * tiles;
  static constexpr int width = 16 / static_cast<int>(sizeof(T));
  static constexpr int chunks = D / width;  ///< vectors of a row
  static constexpr int pass_rows = threads / chunks;
  static constexpr int passes = (rows + pass_rows - 1) / pass_rows;
  static constexpr int piece_stride = layout::piece_stride;
  static constexpr float weight_shift = 10.0f;
  static constexpr float weight_unit = 0x1p-10f;
  static constexpr unsigned all_lanes = 0xffffffffu;

  const backward_rows& problem;
  const backward_problem& whole;  ///< for rows that are computed again
  const backward_group& entry;
  const group_problem& group;
  const std::int32_t* order;
  const packed_position* positions;
  std::byte* memory;
  int head;
  int edge;  ///< of a window
  int size;  ///< its tokens
  int warp = static_cast<int>(threadIdx.x) / 32;
  lane_place place;
  float bias_sum[tiles][2][4] = {};  ///< Σ dS of this warp's keys and all queries, over windows

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ __forceinline__ T* array(int which) const {
    return at<T>(layout::arrays) + which * rows * math::stride;
  }
  enum { queries, keys, values, grads };

  /// The bias of all pairs times log2 e, where accumulator blocks want it; -infinity for pairs with
  /// rows behind the window's last.
  __device__ __forceinline__ void expand_bias(int group_head) const {
    for (int index = static_cast<int>(threadIdx.x); index < rows * rows; index += threads) {
      const int lane = index / 4 % 32;
      const int n = index / 128 % 2;
      const int tile = index / 256;
      const int key = tile / tiles * 16 + lane / 4 + index / 2 % 2 * 8;
      const int query = tile % tiles * 16 + n * 8 + lane % 4 * 2 + index % 2;
      float bias = -INFINITY;
      if (key < size && query < size)
        bias = log2_e * load_element<T>(group.bias, group.bias_is_float,
                                        row_of_pair(query, key) * group.bias_row_stride +
                                            group_head * group.bias_head_stride);
      at<float>(layout::bias)[index] = bias;
    }
  }
  [[nodiscard]] __device__ __forceinline__ std::int64_t row_of_pair(int query, int key) const {
    return (query / edge - key / edge + edge - 1) * (2 * edge - 1) + query % edge - key % edge +
           edge - 1;
  }

  /// Brings the window from slot `first`, its LSE, delta and regions.
  /// \return whether a seam crosses it. Ends with a barrier.
  __device__ __forceinline__ bool load(int first) const {
    const int column = static_cast<int>(threadIdx.x) % chunks * width;
    const bool inside = column < problem.head_dim;
    const row_view* views[] = {&problem.q, &problem.k, &problem.v};
    unsigned largest = 0;
    bool seam = false;
    const std::uint32_t first_region = unpack_position(positions[first], 2);
    std::int32_t tokens[passes];
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = pass * pass_rows + static_cast<int>(threadIdx.x) / chunks;
      tokens[pass] = row < size ? order[first + row] : -1;
    }
    uint4 grad[passes], out[passes];
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = pass * pass_rows + static_cast<int>(threadIdx.x) / chunks;
      const bool there = tokens[pass] >= 0 && inside;
      const std::int64_t token = max(tokens[pass], 0);
#pragma unroll
      for (int which = 0; which < 3; ++which)
        if (row < rows)
          copy_async(array(which) + row * math::stride + column,
                     row_of<T>(*views[which], token, head) + column, there);
      grad[pass] = out[pass] = {0, 0, 0, 0};
      if (there) {
        grad[pass] =
            *reinterpret_cast<const uint4*>(row_of<T>(problem.grad_out, token, head) + column);
        out[pass] = *reinterpret_cast<const uint4*>(row_of<T>(problem.out, token, head) + column);
      }
    }
    commit_copies();
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = pass * pass_rows + static_cast<int>(threadIdx.x) / chunks;
      float dot = measure_vectors<T>(grad[pass], out[pass], largest);
#pragma unroll
      for (int step = chunks / 2; step > 0; step /= 2) dot += __shfl_xor_sync(all_lanes, dot, step);
      if (row >= rows) continue;
      *reinterpret_cast<uint4*>(array(grads) + row * math::stride + column) = grad[pass];
      if (column != 0) continue;
      float2 stats = {-INFINITY, 0.0f};
      std::uint32_t region = first_region;
      if (tokens[pass] >= 0) {
        const std::int64_t token = tokens[pass];
        const float lse =
            problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride];
        stats = {weight_shift - lse * log2_e, -dot};
        region = unpack_position(positions[first + row], 2);
        problem.delta[head * problem.max_tokens + first + row] = dot;
      }
      at<float2>(layout::stats)[row] = stats;
      at<std::uint32_t>(layout::regions)[row] = region;
      seam = seam || region != first_region;
    }
    largest = __reduce_max_sync(all_lanes, largest) >> 23;
    if (place.lane == 0) at<unsigned>(layout::magnitude)[warp] = largest;
    wait_for_copies<0>();
    return __syncthreads_or(seam ? 1 : 0) != 0;
  }

  /// This warp's keys against the queries of all tiles.
  template <bool Seam>
  __device__ __forceinline__ void differentiate_keys(float raise, float lower,
                                                     float (&dk)[math::blocks][4],
                                                     float (&dv)[math::blocks][4]) {
    typename math::query key_factor, value_factor;
    key_factor.load(array(keys) + warp * 16 * math::stride);
    value_factor.load(array(values) + warp * 16 * math::stride);
    const float factor = problem.scale * log2_e;
    const std::uint32_t* regions = at<std::uint32_t>(layout::regions);
    std::uint32_t own_region[2] = {};
    if constexpr (Seam)
#pragma unroll
      for (int i = 0; i < 2; ++i) own_region[i] = regions[warp * 16 + 8 * i + place.g];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      if (16 * tile >= size) break;
      float p[2][4] = {};
      float ds[2][4] = {};
      math::scores(key_factor, array(queries), 16 * tile, rows - 1, p);
      math::scores(value_factor, array(grads), 16 * tile, rows - 1, ds);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = 16 * tile + 8 * n + 2 * place.t;
        const float4 two = *reinterpret_cast<const float4*>(at<float2>(layout::stats) + column);
        const float4 four =
            at<float4>(layout::bias)[((warp * tiles + tile) * 2 + n) * 32 + place.lane];
        const float lse[2] = {two.x, two.z};
        const float less[2] = {two.y * raise, two.w * raise};
        const float bias[4] = {four.x, four.y, four.z, four.w};
        std::uint32_t region[2] = {};
        if constexpr (Seam) region[0] = regions[column], region[1] = regions[column + 1];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float logit = fmaf(p[n][e], factor, lse[e & 1] + bias[e]);
          float difference = fmaf(ds[n][e], raise, less[e & 1]);
          if constexpr (Seam) logit = own_region[e / 2] == region[e & 1] ? logit : -INFINITY;
          p[n][e] = exp2_fast(logit);
          ds[n][e] = p[n][e] * difference;
          bias_sum[tile][n][e] = fmaf(ds[n][e], lower, bias_sum[tile][n][e]);
        }
      }
      math::values(p, array(grads), 16 * tile, rows - 1, dv);
      math::values(ds, array(queries), 16 * tile, rows - 1, dk);
      T* piece =
          at<T>(layout::pieces) + (warp * 16 + place.g) * piece_stride + 16 * tile + 2 * place.t;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          *reinterpret_cast<std::uint32_t*>(piece + 8 * i * piece_stride + 8 * n) =
              pack<T>(ds[n][2 * i], ds[n][2 * i + 1]);
    }
  }

  /// dq of this warp's queries, from everybody's dS.
  __device__ __forceinline__ void differentiate_queries(float (&dq)[math::blocks][4]) const {
    const int lane = place.lane;
    const T* piece = at<T>(layout::pieces) + (lane / 16 * 8 + lane % 8) * piece_stride + 16 * warp +
                     lane / 8 % 2 * 8;
    const T* row = array(keys) + lane % 16 * math::stride + lane / 16 * 8;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      if (16 * tile >= size) break;
      std::uint32_t a[4];
      load_matrices_transposed(a, piece + 16 * tile * piece_stride);
#pragma unroll
      for (int block = 0; block < math::blocks; block += 2) {
        std::uint32_t b[4];
        load_matrices_transposed(b, row + 16 * tile * math::stride + block * 8);
        multiply_add_16<T>(dq[block], a, b[0], b[1]);
        multiply_add_16<T>(dq[block + 1], a, b[2], b[3]);
      }
    }
  }

  /// Rows of this warp whose sums are not finite, as bits.
  [[nodiscard]] static __device__ __forceinline__ unsigned broken_rows(
      const float (&first)[math::blocks][4], const float (&second)[math::blocks][4]) {
    unsigned broken = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;
#pragma unroll
      for (int b = 0; b < math::blocks; ++b)
        probe += (first[b][2 * i] + first[b][2 * i + 1]) * 0.0f +
                 (second[b][2 * i] + second[b][2 * i + 1]) * 0.0f;
      const unsigned lanes = __ballot_sync(all_lanes, !(probe == 0.0f));
      if (lanes == 0) continue;
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (8 * i + g);
    }
    return broken;
  }

  /// Writes rows `which` of this warp, which begin in slot `first`.
  __device__ __forceinline__ void store(const row_view& view, T* staging, int first, unsigned which,
                                        float by, const float (&sum)[math::blocks][4]) const {
    if (view.data == nullptr) return;
    const int dim = problem.head_dim;
    if (problem.accumulate) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 8 * i + place.g;
        if ((which >> row & 1u) == 0) continue;
        T* target = gradient_row<T>(view, order[first + row], head) + 2 * place.t;
#pragma unroll
        for (int b = 0; b < math::blocks; ++b) {
          if (b * 8 >= dim) break;
          store_gradient(target + b * 8, sum[b][2 * i] * by, true);
          store_gradient(target + b * 8 + 1, sum[b][2 * i + 1] * by, true);
        }
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int b = 0; b < math::blocks; ++b)
        *reinterpret_cast<std::uint32_t*>(staging + (8 * i + place.g) * math::stride + b * 8 +
                                          2 * place.t) =
            pack<T>(sum[b][2 * i] * by, sum[b][2 * i + 1] * by);
    __syncwarp();
    const int column = place.lane % chunks * width;
#pragma unroll
    for (int row = place.lane / chunks; row < 16; row += 32 / chunks) {
      if (column >= dim || (which >> row & 1u) == 0) continue;
      *reinterpret_cast<uint4*>(gradient_row<T>(view, order[first + row], head) + column) =
          *reinterpret_cast<const uint4*>(staging + row * math::stride + column);
    }
  }

  __device__ __forceinline__ void differentiate(int first) {
    const bool seam = load(first);
    float raise = weight_unit, lower = 1.0f;
    if constexpr (std::is_same_v<T, half>) {
      unsigned largest = 0;
      for (int w = 0; w < tiles; ++w) largest = max(largest, at<unsigned>(layout::magnitude)[w]);
      const rounding_scale scale(largest);
      raise = scale.up * weight_unit;
      lower = scale.down;
    }
    const bool active = 16 * warp < size;
    float dk[math::blocks][4] = {};
    float dv[math::blocks][4] = {};
    if (active) {
      if (seam)
        differentiate_keys<true>(raise, lower, dk, dv);
      else
        differentiate_keys<false>(raise, lower, dk, dv);
    }
    __syncthreads();
    if (!active) return;
    const unsigned all = size - 16 * warp >= 16 ? 0xffffu : (1u << (size - 16 * warp)) - 1;
    const int own = first + 16 * warp;
    const unsigned broken_keys = broken_rows(dk, dv) & all;
    store(problem.grad_k, array(values) + 16 * warp * math::stride, own, all & ~broken_keys,
          problem.scale * lower, dk);
    store(problem.grad_v, array(grads) + 16 * warp * math::stride, own, all & ~broken_keys,
          weight_unit, dv);
    float dq[math::blocks][4] = {};
    differentiate_queries(dq);
    const unsigned broken_queries = broken_rows(dq, dq) & all;
    store(problem.grad_q, array(queries) + 16 * warp * math::stride, own, all & ~broken_queries,
          problem.scale * lower, dq);
    for (unsigned left = broken_queries; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::query>(whole, group, head,
                                                 own + __ffs(static_cast<int>(left)) - 1, {});
    for (unsigned left = broken_keys; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::key>(whole, group, head,
                                               own + __ffs(static_cast<int>(left)) - 1, {});
  }

  /// Sorts the sums of dS into rows of the table.
  __device__ __forceinline__ void write_bias(const block_place& where) const {
    if (entry.parts.bias == nullptr) return;
    float* sums = at<float>(layout::bias);  // [key][query]
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sums[(16 * warp + place.g + e / 2 * 8) * rows + 16 * tile + 8 * n + 2 * place.t +
               (e & 1)] = bias_sum[tile][n][e];
    __syncthreads();
    const int span = 2 * edge - 1;
    float* part =
        entry.parts.bias +
        (std::int64_t{where.group_head} * problem.blocks_per_head + where.part) * span * span;
    for (int r = static_cast<int>(threadIdx.x); r < span * span; r += threads) {
      const int dy = r / span - (edge - 1);
      const int dx = r % span - (edge - 1);
      float sum = 0.0f;
      for (int y = max(0, -dy); y < min(edge, edge - dy); ++y)
        for (int x = max(0, -dx); x < min(edge, edge - dx); ++x)
          sum += sums[(y * edge + x) * rows + (y + dy) * edge + x + dx];
      part[r] = sum;
    }
  }

  __device__ __forceinline__ void run(const block_place& where) {
    const int assigned = group.counts->assigned;
    const int step = problem.blocks_per_head;
    expand_bias(where.group_head);
    const int windows = assigned / size;
    for (int window = where.part; window < windows; window += step) {
      __syncthreads();
      differentiate(window * size);
    }
    if (problem.zero_unassigned && !problem.accumulate)
      for (std::int64_t slot = assigned + where.part * tiles + warp; slot < group.counts->tokens;
           slot += std::int64_t{step} * tiles) {
        zero_row<T, backward_side::query>(whole, order[slot], head);
        zero_row<T, backward_side::key>(whole, order[slot], head);
      }
    write_bias(where);
  }
};

template <class T, int D>
__global__ void __launch_bounds__(32 * grid_layout<D>::tiles, grid_layout<D>::min_blocks)
    differentiate_grid_kernel(const __grid_constant__ backward_problem problem,
                              const __grid_constant__ backward_rows rows) {
  extern __shared__ __align__(16) std::byte memory[];
  const block_place where(problem);
  const backward_group& entry = problem.groups[where.group];
  const group_problem& group = entry.problem;
  grid_differentiator<T, D>{rows,
                            problem,
                            entry,
                            group,
                            group.order,
                            group.positions,
                            memory,
                            group.first_head + where.group_head,
                            group.quant_length,
                            group.quant_length * group.quant_length}
      .run(where);
}

}  // namespace winnow::detail
