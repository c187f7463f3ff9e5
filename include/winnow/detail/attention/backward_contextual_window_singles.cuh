// SPDX-License-Identifier: Apache-2.0
/// \file
/// Windows of one token in backward_contextual_window.cuh, on linear axes.
///
/// Such a window has P = 1 and dS = 0: dv is dO, dq and dk are 0, and of the tables' gradients only row L - 1 of
/// dTv grows, on each axis by dO. That needs no tile: a thread takes a token, and a block sums up its dO. A
/// seventh of the tokens of a scan's first cubic windows are alone.
///
/// Tokens with elements that are not finite, which O and LSE tell of q, k and v, are computed row by row, and make
/// the tables' row NaN.
///
/// A warp lists them first: so three loads, one behind the other, serve a lane's two tokens. Bound by their
/// latency, and by instructions that come from far, as each block runs this once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual_window_rows.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_singles : contextual_window_rows<T, Radial, Long> {
  using base = contextual_window_rows<T, Radial, Long>;
  using base::all_lanes;
  using base::group;
  using base::head;
  using base::length;
  using base::order;
  using base::part_of;
  using base::part_width;
  using base::place;
  using base::problem;
  using base::tiles;
  using base::warp;
  using base::whole;
  using base::width;
  using typename base::layout;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// What a warp leaves in shared memory: sums of dO, and 0 or NaN.
  static constexpr int sums_of_warp = part_width + 1;

  __device__ __forceinline__ uint4 load_half(const row_view& view, std::int32_t token,
                                             int half) const {
    if (half * width >= problem.head_dim) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(row_of<T>(view, max(token, 0), head) + half * width);
  }
  __device__ __forceinline__ void store_half(const row_view& view, std::int32_t token, int half,
                                             const uint4& bits) const {
    if (view.data == nullptr || half * width >= problem.head_dim) return;
    *reinterpret_cast<uint4*>(gradient_row<T>(view, token, head) + half * width) = bits;
  }
  __device__ __forceinline__ void store_single(std::int32_t token, const uint4 (&grad)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (problem.accumulate) {
        if (problem.grad_v.data == nullptr) continue;
        const uint4 old = load_half(problem.grad_v, token, half);
        const auto sum = [](std::uint32_t x, std::uint32_t y) {
          const float2 first = unpack<T>(x), second = unpack<T>(y);
          return pack<T>(first.x + second.x, first.y + second.y);
        };
        store_half(problem.grad_v, token, half,
                   {sum(old.x, grad[half].x), sum(old.y, grad[half].y), sum(old.z, grad[half].z),
                    sum(old.w, grad[half].w)});
        continue;
      }
      store_half(problem.grad_q, token, half, {0, 0, 0, 0});
      store_half(problem.grad_k, token, half, {0, 0, 0, 0});
      store_half(problem.grad_v, token, half, grad[half]);
    }
  }

  /// Up to 64 windows of one token, by one warp. \param listed their slots and tokens.
  __device__ __forceinline__ void differentiate_listed(const int2* listed, int count,
                                                       float (&sums)[part_width],
                                                       float& poison) const {
    constexpr int at_once = 2;
    constexpr unsigned infinite = std::is_same_v<T, half> ? 0x7c00u : 0x7f80u;
    std::int32_t token[at_once];
    uint4 grad[at_once][2], out[at_once][2];
    float lse[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int number = 32 * i + place.lane;
      token[i] = number < count ? listed[number].y : -1;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        grad[i][half] = load_half(problem.grad_out, token[i], half);
        out[i][half] = load_half(problem.out, token[i], half);
      }
      lse[i] =
          problem.lse[max(token[i], 0) * problem.lse_token_stride + head * problem.lse_head_stride];
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      unsigned largest = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        for (const uint4& bits : {grad[i][half], out[i][half]})
          for (const unsigned pair : {bits.x, bits.y, bits.z, bits.w})
            largest = __vmaxu2(largest, pair & 0x7fff7fffu);
      const bool finite = max(largest & 0xffffu, largest >> 16) < infinite && lse[i] * 0.0f == 0.0f;
      if (token[i] >= 0 && finite) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned pairs[] = {grad[i][half].x, grad[i][half].y, grad[i][half].z,
                                    grad[i][half].w};
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const float2 x = unpack<T>(pairs[w]);
            sums[8 * half + 2 * w] += x.x;
            sums[8 * half + 2 * w + 1] += x.y;
          }
        }
        store_single(token[i], grad[i]);
      }
      unsigned broken = __ballot_sync(all_lanes, token[i] >= 0 && !finite);
      if (broken != 0) poison = NAN;
#pragma unroll 1
      for (; broken != 0; broken &= broken - 1) {
        const int slot = listed[32 * i + __ffs(static_cast<int>(broken)) - 1].x;
        differentiate_whole_row<T>(whole, group, head, slot);
      }
    }
  }
  /// Half of the lanes sum up half of the columns, and so on: in the end lanes 2d and 2d + 1 have column d.
  template <int Columns>
  __device__ __forceinline__ void fold(float (&sums)[part_width]) const {
    const bool upper = (place.lane & 2 * Columns) != 0;
#pragma unroll
    for (int d = 0; d < Columns; ++d) {
      const float other =
          __shfl_xor_sync(all_lanes, upper ? sums[d] : sums[d + Columns], 2 * Columns);
      sums[d] = (upper ? sums[d + Columns] : sums[d]) + other;
    }
    if constexpr (Columns > 1) fold<Columns / 2>(sums);
  }
  /// The warp that plans does so meanwhile.
  static constexpr int single_warps = tiles - 1;
  /// Windows that a warp looks at, at a time, over 32.
  static constexpr int seen_at_once = 5;
  static constexpr int lists = layout::regions + 1024;  // int2 [single_warps][32 · seen_at_once]
  static_assert(4 * single_warps * sums_of_warp <= 1024);
  static_assert(lists + 8 * single_warps * 32 * seen_at_once <= layout::bytes);

  /// Those of windows [from, until) that have one token, a warp's share of them. Ends before a barrier that
  /// `give_singles` waits for.
  __device__ __forceinline__ void differentiate_singles(const int2& windows) const {
    float sums[part_width] = {};
    float poison = 0.0f;
    constexpr int step = 32 * seen_at_once;
    int2* list = at<int2>(lists) + warp * step;
#pragma unroll 1
    for (int first = windows.x + warp * step; first < windows.y; first += single_warps * step) {
      int2 own[seen_at_once];  // slot and token; none: a negative one
#pragma unroll
      for (int i = 0; i < seen_at_once; ++i) {
        const int window = first + 32 * i + place.lane;
        const bool there = window < windows.y;
        own[i] = {there ? group.offsets[window] : 0, there ? group.offsets[window + 1] : 0};
      }
#pragma unroll
      for (int i = 0; i < seen_at_once; ++i)
        own[i].y = own[i].y - own[i].x == 1 ? order[own[i].x] : -1;
      int found = 0;
#pragma unroll
      for (int i = 0; i < seen_at_once; ++i) {
        const unsigned lanes = __ballot_sync(all_lanes, own[i].y >= 0);
        if (own[i].y >= 0) list[found + __popc(lanes & ((1u << place.lane) - 1))] = own[i];
        found += __popc(lanes);
      }
      __syncwarp();
#pragma unroll 1
      for (int next = 0; next < found; next += 64)
        differentiate_listed(list + next, found - next, sums, poison);
      __syncwarp();
    }
    fold<part_width / 2>(sums);
    sums[0] += __shfl_xor_sync(all_lanes, sums[0], 1);
    float* target = at<float>(layout::regions) + warp * sums_of_warp;
    target[place.lane / 2] = sums[0];
    if (place.lane == 0) target[part_width] = poison;
  }
  /// Begins the block's parts, which are empty, with what windows of one token add.
  __device__ __forceinline__ void give_singles() const {
    const int axis = static_cast<int>(threadIdx.x) / part_width;
    const int d = static_cast<int>(threadIdx.x) % part_width;
    if (axis >= 3) return;
    const float* sums = at<float>(layout::regions);
    float of_weights = 0.0f, poison = 0.0f;
#pragma unroll
    for (int w = 0; w < single_warps; ++w) {
      of_weights += sums[w * sums_of_warp + d];
      poison += sums[w * sums_of_warp + part_width];
    }
    const int place_in_part = (axis * tile_rows + length - 1) * part_width + d;
    const float values[] = {poison, of_weights + poison, poison};
#pragma unroll
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target != nullptr) target[place_in_part] = values[which];
    }
  }
};

}  // namespace winnow::detail
