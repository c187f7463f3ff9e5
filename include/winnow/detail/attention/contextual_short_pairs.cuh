// SPDX-License-Identifier: Apache-2.0
/// \file
/// The pairs of short windows of floats, in units whose rows are their keys (contextual_short.cuh).
///
/// Products of keys with Tk would fill the shared memory of eight warps one and a half times over. So they stay in
/// registers, 16 keys at a time, and what is kept is what they add to logits, for all rows of the unit. Then each 16 rows
/// meet all keys at once: their logits, of up to 48 keys, fit registers, so that the largest ones are known before the
/// first weight, and nothing is rescaled. 16-bit storage has contextual_short_keys.cuh.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_halves.cuh"
#include "winnow/detail/attention/contextual_pairs.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_tokens.cuh"
#include "winnow/detail/attention/contextual_weights.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <bool Keys>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::score_own(
    const own_products& products, const float (&radius)[2], const row_state& state, int other,
    float (&scores)[2][4], int (&places)[2][4]) const {
  const auto* radii = at<const float>(layout::key_radius) + other + 2 * place.t;
  const int middle =
      in_register((keeps_places ? static_cast<int>(shared) : 0) + state.radial +
                  layout::radial_sums_bytes - state.length * (4 - layout::radial_element));
  std::uint32_t positions[2][2];
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const std::uint32_t both = at<const std::uint32_t>(layout::key_place)[other + 8 * b + place.g];
    positions[b][0] = __byte_perm(both, 0, 0x1010);
    positions[b][1] = __byte_perm(both, 0, 0x3232);
  }
#pragma unroll
  for (int word = 0; word + 1 < words; word += 2) {
    std::uint32_t cells[2][2];
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        cells[b][j] = one_hot(positions[b][(word + j) / cell_words], own_cells(word + j));
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const std::uint32_t own[4] = {products[part][0][word], products[part][1][word],
                                    products[part][0][word + 1], products[part][1][word + 1]};
#pragma unroll
      for (int b = 0; b < 2; ++b) multiply_add_16<half>(scores[b], own, cells[b][0], cells[b][1]);
    }
  }
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const float2 radius_of = *reinterpret_cast<const float2*>(radii + 8 * b);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float far = e % 2 == 0 ? radius_of.x : radius_of.y;
      const float delta = Keys ? far - radius[e / 2] : radius[e / 2] - far;
      const int step = radial_step(delta, state.inverse_a, state.most_steps);
      places[b][e] = keeps_places ? middle + (step >> 20) : step;
    }
  }
  static_assert(words % 2 == 0);
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const auto address = [&](int e) {
      return keeps_places ? places[b][e] : middle + (places[b][e] >> 21);
    };
    scores[b][0] += radial_product<0>(address(0));
    scores[b][1] += radial_product<0>(address(1));
    scores[b][2] += radial_product<layout::radial_row(8)>(address(2));
    scores[b][3] += radial_product<layout::radial_row(8)>(address(3));
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::score_keys(
    const typename factor::rows& left, int key, int tiles, row_state& state) const {
  const factor table = factor_of(group().table_k, 1);
  const auto* codes = at<const std::uint32_t>(layout::key_place) + key + place.g;
  std::uint32_t moves[2];
  float radius[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // The two positions, a byte each.
    moves[i] = moves_of(__byte_perm(codes[8 * i], 0, 0x4420), state.length, place.t);
    radius[i] = at<const float>(layout::key_radius)[key + place.g + 8 * i];
  }
  own_products products{};
#pragma unroll(axes_at_once)
  for (int axis = 0; axis < layout::axes; ++axis) {
    std::uint32_t cells[parts][2][cell_words];
    multiply_cells<false>(table, left, axis, moves, cells);
    keep_axis(cells, axis, products);
  }
  multiply_radial<false>(table, left, radial_products(), layout::radial_row(8));
  __syncwarp();
  float* sides = at<float>(layout::sides) + (key + place.g) * layout::side_stride + 2 * place.t;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile, sides += 16) {
    float scores[2][4] = {};
    int places[2][4];
    score_own<true>(products, radius, state, 16 * tile, scores, places);
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(sides + 8 * b + 8 * i * layout::side_stride) = {
            scores[b][2 * i], scores[b][2 * i + 1]};
  }
  __syncwarp();  // all lanes have read the radial products
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::attend_at_once(
    const row_windows& windows, int count, row_state& state) const {
  constexpr int groups = rows / 16;
  float s[groups][2][4];
  int radial_steps[groups][2][4];
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int group = 0; group < groups; ++group) {
    const int key = 16 * group;
    if (group > 0 && key >= count) break;
    score_rows(state, key_tile(0), key, s[group]);
    score_own<false>(state.products, state.radius, state, key, s[group], radial_steps[group]);
    const float* sides = at<const float>(layout::sides) +
                         (key + 2 * place.t) * layout::side_stride + 16 * warp + place.g;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[group][b][e] = fmaf(sides[(8 * b + e % 2) * layout::side_stride + e / 2 * 8],
                              state.inverse_scale, s[group][b][e]);
    if (key + 16 >= count) {
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int own = key + 8 * b + 2 * place.t + e % 2;
          if (own < windows.first[e / 2] || own >= windows.last[e / 2]) s[group][b][e] = -INFINITY;
        }
    }
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) largest[e / 2] = fmaxf(largest[e / 2], s[group][b][e]);
  }
  __syncwarp();
  clear_radial_sums(0);
  clear_radial_sums(1);
  __syncwarp();
  const float factor = problem.scale * log2_e;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float row_logit = quad_max(largest[i]);
    state.softmax.offset[i] = row_logit == -INFINITY ? 0.0f : -row_logit * factor;
  }
#pragma unroll
  for (int group = 0; group < groups; ++group) {
    const int key = 16 * group;
    if (group > 0 && key >= count) break;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[group][b][e] = exp2_fast(fmaf(s[group][b][e], factor, state.softmax.offset[e / 2]));
    add_values(s[group], value_tile(0), key, state);
    if (state.has_values) add_weights(s[group], key, radial_steps[group], state);
  }
}

}  // namespace winnow::detail
