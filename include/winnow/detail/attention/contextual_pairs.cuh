// SPDX-License-Identifier: Apache-2.0
/// \file
/// The pairs of a contextual block: 16 rows of a warp against 16 keys at a time. All logits but the radial
/// axis' are matrix products, of one-hot rows as well; the radial axis looks two products up.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_halves.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ std::uint32_t contextual_block<T, D, Radial, Vectors, Layout>::own_cells(
    int word) const {
  const int first = word % cell_words * 8 + place.t;
  return position_pair(first, first + 4);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ const std::byte*
contextual_block<T, D, Radial, Vectors, Layout>::matrix_rows(const T* tile, int key) const {
  return reinterpret_cast<const std::byte*>(tile) + (key + matrix_row) * layout::row_bytes +
         token_column;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::score_rows(
    const row_state& state, const T* tile, int key, float (&s)[2][4]) const {
  if constexpr (in_halves) {
    score_halves(state, tile, key, s);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (auto& block : s)
#pragma unroll
      for (float& score : block) score = 0.0f;
    math::scores_at(state.q, tile + key * math::stride + math::score_lane(), s);
  } else {
    const std::byte* row = matrix_rows(tile, key);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      std::uint32_t b[4];
      load_matrices(b, row + step * 32);
      if (step == 0) {
        multiply_16<T>(s[0], state.q.a[0], b[0], b[1]);
        multiply_16<T>(s[1], state.q.a[0], b[2], b[3]);
      } else {
        multiply_add_16<T>(s[0], state.q.a[step], b[0], b[1]);
        multiply_add_16<T>(s[1], state.q.a[step], b[2], b[3]);
      }
    }
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::score_cells(
    const row_state& state, int key, float (&scores)[2][4], float (&sides)[2][4]) const {
  key_cells places[2];
#pragma unroll
  for (int b = 0; b < 2; ++b)
    places[b] = at<const key_cells>(layout::key_place)[key + 8 * b + place.g];
  const auto key_cell = [&](int b, int word) {
    const int axis = word / cell_words;
    std::uint32_t position = axis == 0 ? places[b].x : places[b].y;
    if constexpr (!Radial) position = axis == 2 ? places[b].z : position;
    return one_hot(position, own_cells(word));
  };
  std::uint32_t positions[2][layout::axes];
  if constexpr (!keeps_row_cells) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int axis = 0; axis < layout::axes; ++axis) {
        positions[i][axis] = state.positions[i][axis];
        asm volatile("" : "+r"(positions[i][axis]));
      }
  }
  const auto row_cell = [&](int i, int word) {
    if constexpr (keeps_row_cells)
      return state.row_cells[i][word];
    else
      return one_hot(positions[i][word / cell_words], own_cells(word));
  };
  const std::byte* row = at<const std::byte>(layout::key_products) +
                         (key + matrix_row) * layout::key_stride + matrix_column;
#pragma unroll
  for (int word = 0; word + 1 < words; word += 2) {
    const std::uint32_t left[4] = {row_cell(0, word), row_cell(1, word), row_cell(0, word + 1),
                                   row_cell(1, word + 1)};
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const std::uint32_t own[4] = {state.products[part][0][word], state.products[part][1][word],
                                    state.products[part][0][word + 1],
                                    state.products[part][1][word + 1]};
#pragma unroll
      for (int b = 0; b < 2; ++b)
        multiply_add_16<half>(scores[b], own, key_cell(b, word), key_cell(b, word + 1));
      std::uint32_t right[4];
      load_matrices(right, row + part * 2 * layout::cells + word * 16);
      if (word == 0 && part == 0) {
        multiply_16<half>(sides[0], left, right[0], right[1]);
        multiply_16<half>(sides[1], left, right[2], right[3]);
      } else {
        multiply_add_16<half>(sides[0], left, right[0], right[1]);
        multiply_add_16<half>(sides[1], left, right[2], right[3]);
      }
    }
  }
  if constexpr (words % 2 == 1) {
    constexpr int word = words - 1;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      // Of what comes behind the last word nothing is used.
      std::uint32_t right[4];
      load_matrices(right, row + part * 2 * layout::cells + word * 16);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        multiply_add_half_8(scores[b], state.products[part][0][word], state.products[part][1][word],
                            key_cell(b, word));
        multiply_add_half_8(sides[b], row_cell(0, word), row_cell(1, word), right[2 * b]);
      }
    }
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ auto contextual_block<T, D, Radial, Vectors, Layout>::windows_of(
    const turn& now) const -> row_windows {
  row_windows windows{};
  const int own = min(16, min(rows, assigned - now.row) - warp * 16);
  if (own <= 0) return windows;
  const int count = count_of(now);
  const int2* bounds = at<const int2>(layout::row_bounds) + first_row(now);
  const int2 top = bounds[0];
  const int2 bottom = bounds[own - 1];
  windows.lowest = max(top.x - now.key, 0);
  windows.highest = min(bottom.y - now.key, count);
  windows.common_first = bottom.x - now.key;
  windows.common_last = own == 16 ? min(top.y - now.key, count) : 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int2 row = bounds[place.g + 8 * i];
    windows.first[i] = row.x - now.key;
    windows.last[i] = min(row.y - now.key, count);
  }
  return windows;
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
template <bool Interior>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::attend(
    const row_windows& windows, int key, int begin, int stage, row_state& state) const {
  // Bit 8b + e: does the row attend to the key of element e of block b?
  std::uint32_t attended = 0;
  if constexpr (!Interior) {
    const int own = key + 2 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      attended += (bits_from(max(max(windows.first[i], begin) - own, 0)) &
                   ~bits_from(max(windows.last[i] - own, 0)) & 0x303u)
                  << (2 * i);
  }
  float s[2][4], sides[2][4];
  score_rows(state, key_tile(stage), key, s);
  score_cells(state, key, s, sides);
  int radial_steps[2][4];
  if constexpr (Radial) score_radial(state, key, stage, s, sides, radial_steps);
  // Logits over the scale, which is positive.
  float largest[2];
#pragma unroll
  for (int b = 0; b < 2; ++b)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool attends = Interior || (attended >> (8 * b + e) & 1) != 0;
      s[b][e] = attends ? fmaf(sides[b][e], state.inverse_scale, s[b][e]) : -INFINITY;
      largest[e / 2] = b == 0 && e % 2 == 0 ? s[b][e] : fmaxf(largest[e / 2], s[b][e]);
    }
  const float factor = problem.scale * log2_e;
  if (!state.softmax.holds(largest)) {
    float by[2];
    if (state.softmax.raise(largest, factor, state.slack, lags ? state.slack : 0.0f, by))
      rescale(by, state);
  }
#pragma unroll
  for (int b = 0; b < 2; ++b)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      s[b][e] = exp2_fast(fmaf(s[b][e], factor, state.softmax.offset[e / 2]));
  add_values(s, value_tile(stage), key, state);
  if (state.has_values) add_weights(s, key, radial_steps, state);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::score_radial(
    const row_state& state, int key, int stage, float (&scores)[2][4], float (&sides)[2][4],
    int (&radial_steps)[2][4]) const {
  // Float: the address itself, which is as far from the sum's as of any other pair.
  const int gq = in_register(state.radial + layout::radial_sums_bytes -
                             state.length * (4 - layout::radial_element) +
                             (keeps_places ? static_cast<int>(shared) : 0));
  const int gk = in_register((keeps_places ? static_cast<int>(shared) : 0) +
                             (key + 2 * place.t) * layout::key_stride + layout::key_products +
                             parts * 2 * layout::cells + state.length * layout::radial_element);
  const float* radii = at<const float>(layout::key_radius) + stage * keys + key + 2 * place.t;
  const auto add = [&](auto pair_constant, const float2(&radii_of)[2]) {
    // Key 8b + j of this lane, row g + 8i.
    constexpr int pair = decltype(pair_constant)::value;
    constexpr int b = pair / 4, i = pair / 2 % 2, j = pair % 2;
    const float radius = j == 0 ? radii_of[b].x : radii_of[b].y;
    const int step = radial_step(state.radius[i] - radius, state.inverse_a, state.most_steps);
    const int offset = step >> (layout::radial_element == 2 ? 21 : 20);
    radial_steps[b][2 * i + j] = keeps_places ? gq + offset : step;
    scores[b][2 * i + j] += radial_product<i * layout::radial_row(8)>(gq + offset);
    sides[b][2 * i + j] += radial_product<(8 * b + j) * layout::key_stride>(gk + offset);
  };
  const float2 own[2] = {*reinterpret_cast<const float2*>(radii),
                         *reinterpret_cast<const float2*>(radii + 8)};
  add(std::integral_constant<int, 0>(), own);
  add(std::integral_constant<int, 1>(), own);
  add(std::integral_constant<int, 2>(), own);
  add(std::integral_constant<int, 3>(), own);
  add(std::integral_constant<int, 4>(), own);
  add(std::integral_constant<int, 5>(), own);
  add(std::integral_constant<int, 6>(), own);
  add(std::integral_constant<int, 7>(), own);
}

}  // namespace winnow::detail
