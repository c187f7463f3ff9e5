// SPDX-License-Identifier: Apache-2.0
/// \file
/// Float rows of 16 dims as two halves each, which is how a contextual block multiplies them: three products
/// of m16n8k16 where TF32 terms take six of m16n8k8, and no conversions where a factor is used.
///
/// Rows arrive as floats and are split where they lie, once, by the threads that have copied them: a row's
/// 64 bytes are 16 halves, then 16 halves of what those leave. Products are hi·hi + hi·lo + lo·hi. Of q and k
/// they are exact to 2⁻²² of them or 2⁻²⁵ of the other factor, as what counts in a logit is the absolute error.
/// What is left of V and Tv is kept 2¹¹ times larger and summed up on its own: half's smallest number then does
/// not show in values down to 10⁻⁵.
///
/// Values from 65,520 on become infinite and their products NaN, so that such rows are computed again without
/// tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_table.cuh"
#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ int contextual_block<T, D, Radial, Vectors, Layout>::chunk_at(
    int row, int chunk) {
  return row * layout::row_bytes + (layout::turns_halves ? chunk ^ (row >> 1 & 3) : chunk) * 16;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::split_chunks(
    std::byte* rows_, int row, int chunk) {
  const int offset = chunk_at(row, chunk);
  const uint4 key = *reinterpret_cast<const uint4*>(rows_ + offset);
  const uint4 value = *reinterpret_cast<const uint4*>(rows_ + layout::tile_bytes + offset);
  __syncwarp();
  store_halves<1>(rows_, row, chunk, key);
  store_halves<low_scale>(rows_ + layout::tile_bytes, row, chunk, value);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <int Scale>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::store_halves(
    std::byte* rows_, int row, int chunk, const uint4& bits) {
  std::uint32_t first[2], second[2];
  const auto part = [](std::uint32_t low, std::uint32_t high, std::uint32_t(&parts_)[2]) {
    const float x = __uint_as_float(low), y = __uint_as_float(high);
    parts_[0] = pack<half>(x, y);
    const float2 rounded = __half22float2(*reinterpret_cast<const half2*>(&parts_[0]));
    parts_[1] = pack<half>((x - rounded.x) * Scale, (y - rounded.y) * Scale);
  };
  part(bits.x, bits.y, first);
  part(bits.z, bits.w, second);
  rows_ += chunk % 2 * 8;
  *reinterpret_cast<uint2*>(rows_ + chunk_at(row, chunk / 2)) = {first[0], second[0]};
  *reinterpret_cast<uint2*>(rows_ + chunk_at(row, chunk / 2 + 2)) = {first[1], second[1]};
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::split_keys(
    int stage) const {
  const int chunk = thread % chunks;
  auto* own = at<std::byte>(layout::key_tiles + 2 * stage * layout::tile_bytes);
#pragma unroll
  for (int pass = 0; pass < key_passes; ++pass) {
    const int row = thread / chunks + pass * pass_rows;
    // Whole warps: the four threads of a row write each other's chunks.
    static_assert(keys % 8 == 0 && pass_rows % 8 == 0);
    if ((pass + 1) * pass_rows > keys && row >= keys) break;
    split_chunks(own, row, chunk);
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::score_halves(
    const row_state& state, const T* tile, int key, float (&s)[2][4]) const {
  const std::byte* rows_ = reinterpret_cast<const std::byte*>(tile) + key * layout::row_bytes;
  std::uint32_t halves[4], left[4];
  load_matrices(halves, rows_ + chunk_at(matrix_row, place.lane / 8 % 2));
  load_matrices(left, rows_ + chunk_at(matrix_row, place.lane / 8 % 2 + 2));
#pragma unroll
  for (int b = 0; b < 2; ++b)
    multiply_16<half>(s[b], state.q.low[0], halves[2 * b], halves[2 * b + 1]);
#pragma unroll
  for (int b = 0; b < 2; ++b)
    multiply_add_16<half>(s[b], state.q.high[0], left[2 * b], left[2 * b + 1]);
#pragma unroll
  for (int b = 0; b < 2; ++b)
    multiply_add_16<half>(s[b], state.q.high[0], halves[2 * b], halves[2 * b + 1]);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_halves(
    const float (&high)[2][4], const float (&low)[2][4], float (&o)[2][4]) {
#pragma unroll
  for (int b = 0; b < 2; ++b)
#pragma unroll
    for (int e = 0; e < 4; ++e) o[b][e] += fmaf(low[b][e], 1.0f / low_scale, high[b][e]);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_rows_of_halves(
    const split_fragment& weights, const std::byte* rows_, float (&high)[2][4],
    float (&low)[2][4]) const {
  std::uint32_t halves[4], left[4];
  load_matrices_transposed(halves, rows_ + chunk_at(place.lane % 16, place.lane / 16));
  load_matrices_transposed(left, rows_ + chunk_at(place.lane % 16, place.lane / 16 + 2));
  // A product waits for the one before it of the same block.
#pragma unroll
  for (int b = 0; b < 2; ++b)
    multiply_add_16<half>(high[b], weights.low.a, halves[2 * b], halves[2 * b + 1]);
#pragma unroll
  for (int b = 0; b < 2; ++b)
    multiply_add_16<half>(low[b], weights.high.a, left[2 * b], left[2 * b + 1]);
#pragma unroll
  for (int b = 0; b < 2; ++b)
    multiply_add_16<half>(high[b], weights.high.a, halves[2 * b], halves[2 * b + 1]);
}

}  // namespace winnow::detail
