// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a contextual block sums up by its weights: O, the weights by the cells of their keys, and by
/// radial row. The first two are matrix products in registers. The radial row is no function of the
/// key's place, so its weights are added up in shared memory, in fixed point: integer sums are the same in
/// any order.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_halves.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_table.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_values(
    const float (&p)[2][4], const T* tile, int key, row_state& state) const {
  if constexpr (in_halves) {
    const split_fragment weights(p);
    const auto* rows_ = reinterpret_cast<const std::byte*>(tile) + key * layout::row_bytes;
    if constexpr (sums_directly) {
      add_rows_of_halves(weights, rows_, state.o, state.low);
      const std::uint32_t ones = pack<half>(1.0f, 1.0f);
      multiply_add_16<half>(state.softmax.sum, weights.low.a, ones, ones);
      multiply_add_16<half>(state.softmax.sum, weights.high.a, ones, ones);
    } else {
      float high[2][4] = {}, low[2][4] = {};
      add_rows_of_halves(weights, rows_, high, low);
      add_halves(high, low, state.o);
#pragma unroll
      for (int e = 0; e < 4; ++e) state.softmax.sum[e / 2 * 2] += p[0][e] + p[1][e];
    }
  } else if constexpr (sizeof(T) == 4) {
    math::values_at(p, tile + key * math::stride + math::value_lane(), state.o, state.softmax.sum);
  } else {
    const weight_fragment<T> weights(p);
    const std::byte* row = matrix_rows(tile, key);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      std::uint32_t b[4];
      load_matrices_transposed(b, row + step * 32);
      multiply_add_16<T>(state.o[2 * step], weights.a, b[0], b[2]);
      multiply_add_16<T>(state.o[2 * step + 1], weights.a, b[1], b[3]);
    }
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    multiply_add_16<T>(state.softmax.sum, weights.a, ones, ones);
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::rescale(
    const float (&by)[2], row_state& state) const {
  scale_rows(by, state.o);
  if constexpr (sums_directly) scale_rows(by, state.low);
  scale_rows(by, state.cells);
  // Radial sums stay as they are: units shrink by the same power of two. What is smaller than 2⁻⁶⁴
  // of a weight does not count.
  if constexpr (Radial) {
#pragma unroll
    for (int i = 0; i < 2; ++i) state.fixed_point[i] *= inverse_power(fmaxf(by[i], 0x1p-64f));
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ float contextual_block<T, D, Radial, Vectors, Layout>::inverse_power(
    float power) {
  return __uint_as_float(0x7f000000u - __float_as_uint(power));
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::shift_sums(
    std::uint32_t* sums, float by) const {
  const int shift = min(127 - static_cast<int>(__float_as_uint(by) >> 23), 31);
  const std::uint32_t half_unit = (1u << shift) >> 1;
  constexpr std::uint32_t counted = lags ? 0xffffffu : 0xffffffffu;
#pragma unroll
  for (int r = 4 * place.t; r < tile_rows; r += 16) {
    auto& four = *reinterpret_cast<uint4*>(sums + r);
    const uint4 sum = four;
    four = {((sum.x & counted) + half_unit) >> shift, ((sum.y & counted) + half_unit) >> shift,
            ((sum.z & counted) + half_unit) >> shift, ((sum.w & counted) + half_unit) >> shift};
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::rescale_radial(
    float first, float second) const {
  __syncwarp();
  shift_sums(radial_sums(), first);
  shift_sums(radial_sums() + layout::radial_row(8) / 4, second);
  __syncwarp();
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::clear_radial_sums(
    int i) const {
#pragma unroll
  for (int r = 4 * place.t; r < tile_rows; r += 16)
    *reinterpret_cast<uint4*>(radial_sums() + i * (layout::radial_row(8) / 4) + r) = {0, 0, 0, 0};
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::keep_fixed_point(
    row_state& state) const {
  float units[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) units[i] = state.softmax.sum[2 * i] * state.fixed_point[i];
  if (!__any_sync(0xffffffffu, fmaxf(units[0], units[1]) >= fixed_limit)) return;
  float by[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Float: lanes have shares of the sum.
    if constexpr (math::lane_sums) units[i] = quad_max(units[i]);
    // To an eighth to a quarter of the limit.
    by[i] = units[i] >= fixed_limit ? __uint_as_float(__float_as_uint(fixed_limit) + (125u << 23) -
                                                      (__float_as_uint(units[i]) & 0x7f800000u))
                                    : 1.0f;
    state.fixed_point[i] *= by[i];
  }
  rescale_radial(by[0], by[1]);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_shared(
    int offset, std::uint32_t weight) const {
  asm volatile("red.shared.add.u32 [%0], %1;\n" ::"r"((keeps_places ? 0 : shared) +
                                                      static_cast<std::uint32_t>(offset)),
               "r"(weight)
               : "memory");
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ float contextual_block<T, D, Radial, Vectors, Layout>::from_fixed(
    std::uint32_t sum, float unit) {
  if constexpr (lags)
    return fmaf(__uint_as_float(__byte_perm(sum, 0x4b000000u, 0x7210u)), unit, -0x1p23f * unit);
  else
    return __uint2float_rn(sum) * unit;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ std::uint32_t contextual_block<T, D, Radial, Vectors, Layout>::fixed(
    float weight, float scale) {
  if constexpr (lags)
    return __float_as_uint(fmaf(weight, scale, 0x1p23f));
  else
    return __float2uint_rn(weight * scale);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_weights(
    const float (&p)[2][4], int key, const int (&radial_steps)[2][4], row_state& state) const {
  // Factors whose lanes hold column g of keys 2t and 2t + 1.
  std::uint32_t pairs[2][layout::axes];
#pragma unroll
  for (int axis = 0; axis < layout::axes; ++axis)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if constexpr (layout::packs_places) {
        const uint2 places = *reinterpret_cast<const uint2*>(
            at<const std::uint32_t>(layout::key_place) + key + 8 * b + 2 * place.t);
        pairs[b][axis] = __byte_perm(places.x, places.y, axis == 0 ? 0x5410u : 0x7632u);
      } else {
        pairs[b][axis] = *reinterpret_cast<const std::uint32_t*>(
            at<const std::uint16_t>(layout::key_cells) + axis * keys + key + 8 * b + 2 * place.t);
      }
    }
  using fragment = std::conditional_t<sizeof(T) == 4, split_fragment, weight_fragment<half>>;
  const fragment weights(p);
  const auto cells_of = [&](int b, int word) {
    const int first = word % cell_words * 8 + spread(place.g);
    return one_hot(pairs[b][word / cell_words], position_pair(first, first));
  };
  if constexpr (sums_directly) {
#pragma unroll
    for (int word = 0; word < words; ++word) {
      const std::uint32_t first = cells_of(0, word);
      const std::uint32_t second = cells_of(1, word);
      multiply_add_16<half>(state.cells[word], weights.low.a, first, second);
      multiply_add_16<half>(state.cells[word], weights.high.a, first, second);
    }
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int word = 0; word < words; ++word) {
      // Tensor cores cut sums off instead of rounding them, so they sum 16 keys only.
      float sum[4];
      const std::uint32_t first = cells_of(0, word);
      const std::uint32_t second = cells_of(1, word);
      multiply_16<half>(sum, weights.low.a, first, second);
      multiply_add_16<half>(sum, weights.high.a, first, second);
#pragma unroll
      for (int e = 0; e < 4; ++e) state.cells[word][e] += sum[e];
    }
  } else {
#pragma unroll
    for (int word = 0; word < words; ++word)
      multiply_add_16<half>(state.cells[word], weights.a, cells_of(0, word), cells_of(1, word));
  }
  if constexpr (Radial) {
    if constexpr (!attends_at_once) keep_fixed_point(state);
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        add_shared((keeps_places ? radial_steps[b][e] - layout::radial_sums_bytes
                                 : state.radial + (radial_steps[b][e] >> 20)) +
                       e / 2 * layout::radial_row(8),
                   fixed(p[b][e], state.fixed_point[e / 2]));
  }
}

}  // namespace winnow::detail
