// SPDX-License-Identifier: Apache-2.0
/// \file
/// The end of a contextual block's rows: sums of weights by cell become sums by table row, meet Tv, and
/// the result is stored.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_halves.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_table.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::load_value_table(
    int first, int count, int threads) const {
  const table_view& table = group().table_v;
  if (table.data == nullptr) return;
  const int last = 2 * (group().quant_length - 1);
  const int first_chunk = static_cast<int>(threadIdx.x);
  const int column = first_chunk % chunks * width;
  for (int i = first_chunk / chunks; i < count * tile_rows; i += threads / chunks) {
    const int axis = first + i / tile_rows;
    const int row = i % tile_rows;
    const bool radial_axis = Radial && axis == 2;
    // Lanes take radial rows 4t and 4t + 1, then 4t + 2 and 4t + 3.
    const int radial_row =
        layout::sums_neighbours ? row / 16 * 16 + row % 8 / 2 * 4 + row / 8 % 2 * 2 + row % 2 : row;
    const int source = radial_axis ? radial_row : last - (row / 8 * 8 + spread(row % 8));
    const std::int64_t offset = source * table.row_stride + axis * table.axis_stride +
                                group_head * table.head_stride + column;
    uint4 bits = {0, 0, 0, 0};
    if (source >= 0 && source <= (radial_axis ? last + 1 : last) && column < problem.head_dim)
      bits = load_table_vector<T>(table, offset);
    if constexpr (in_halves)
      store_halves<low_scale>(table_at<std::byte>(layout::value_table), i, column / width, bits);
    else
      *reinterpret_cast<uint4*>(table_at<T>(layout::value_table) + i * value_stride +
                                (turns_values ? column ^ (i >> 2 & 1) * 8 : column)) = bits;
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_head_table(
    const std::uint32_t (&w)[2][row_words], int axis, int h, float (&o)[2][4]) const {
  const T* table = table_at<const T>(h * layout::head_bytes + layout::value_table) +
                   (axis * tile_rows + place.lane % 16) * value_stride;
  if constexpr (turns_values) table += (place.lane >> 2 & 1) * (place.lane < 16 ? 8 : -8);
#pragma unroll
  for (int step = 0; step < tile_rows / 16; ++step) {
    weight_fragment<T> weights;
#pragma unroll
    for (int j = 0; j < 4; ++j) weights.a[j] = w[j % 2][2 * step + j / 2];
    multiply_rows<T, 2>(weights, table + 16 * step * value_stride, o);
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::add_table(
    const std::uint32_t (&w)[weight_parts][2][row_words], int axis, row_state& state) const {
  const int first_axis = layout::tuning.value_axes == 1 ? 0 : axis;
  if constexpr (in_halves) {
    const std::byte* rows_ =
        table_at<const std::byte>(layout::value_table) + first_axis * layout::axis_bytes;
    float high[2][4] = {}, low[2][4] = {};
#pragma unroll
    for (int step = 0; step < tile_rows / 16; ++step) {
      split_fragment weights;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        weights.high.a[j] = w[0][j % 2][2 * step + j / 2];
        weights.low.a[j] = w[weight_parts - 1][j % 2][2 * step + j / 2];
      }
      const std::byte* rows_of_step = rows_ + 16 * step * layout::row_bytes;
      if constexpr (sums_directly)
        add_rows_of_halves(weights, rows_of_step, state.o, state.low);
      else
        add_rows_of_halves(weights, rows_of_step, high, low);
    }
    if constexpr (!sums_directly) add_halves(high, low, state.o);
  } else {
    static_assert(!turns_values);
    const T* table = table_at<const T>(layout::value_table) + first_axis * tile_rows * math::stride;
#pragma unroll
    for (int step = 0; step < tile_rows / 16; ++step) {
      if constexpr (sizeof(T) == 4) {
        // Halves are TF32 values.
        const auto pair = [&](int b, int i, bool second) {
          const float2 high =
              __half22float2(*reinterpret_cast<const half2*>(&w[0][i][2 * step + b]));
          const float2 low = __half22float2(
              *reinterpret_cast<const half2*>(&w[weight_parts - 1][i][2 * step + b]));
          return second ? tf32_pair(high.y, low.y) : tf32_pair(high.x, low.x);
        };
        const tf32_pair p[2][4] = {
            {pair(0, 0, false), pair(0, 1, false), pair(0, 0, true), pair(0, 1, true)},
            {pair(1, 0, false), pair(1, 1, false), pair(1, 0, true), pair(1, 1, true)}};
        const float* first = table + (16 * step + 2 * place.t) * math::stride + place.g;
        const float* const rows_of_step[2][2] = {
            {first, first + math::stride}, {first + 8 * math::stride, first + 9 * math::stride}};
        math::values_of(p, rows_of_step, state.o);
      } else {
        weight_fragment<T> weights;
#pragma unroll
        for (int j = 0; j < 4; ++j) weights.a[j] = w[0][j % 2][2 * step + j / 2];
        multiply_rows<T, math::blocks>(
            weights, table + (16 * step + place.lane % 16) * math::stride, state.o);
      }
    }
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::round_weights(
    float low, float high, std::uint32_t (&parts_)[weight_parts]) {
  if constexpr (sizeof(T) == 4)
    split(low, high, parts_);
  else
    parts_[0] = pack<T>(low, high);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::complete_sums(
    const turn& now, row_state& state) const {
  state.softmax.template finish<math::lane_sums && !sums_directly>();
  float by[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) by[i] = reciprocal(state.softmax.sum[2 * i]);
  const auto normalize = [&] { scale_rows(by, state.o); };
  constexpr bool early = sizeof(T) == 4 && !sums_directly;
  if constexpr (early) normalize();
  if (group().table_v.data != nullptr) {
    const auto* codes = at<const std::uint32_t>(layout::row_code) + first_row(now) + place.g;
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[8], state.length, place.t)};
#pragma unroll(loops_axes ? 1 : 3)
    for (int axis = 0; axis < 3; ++axis) {
      if constexpr (layout::tuning.value_axes == 1) {
        __syncthreads();
        load_value_table(axis, 1);
        __syncthreads();
      }
      std::uint32_t w[weight_parts][2][row_words];
      if (Radial && axis == 2) {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float unit = (early ? by[i] : 1.0f) * inverse_power(state.fixed_point[i]);
#pragma unroll
          for (int word = 0; word < row_words; ++word) {
            const uint2 sums = *reinterpret_cast<const uint2*>(
                radial_sums() + i * (layout::radial_row(8) / 4) + 8 * word + 2 * place.t);
            std::uint32_t pair[weight_parts];
            round_weights(from_fixed(sums.x, unit), from_fixed(sums.y, unit), pair);
#pragma unroll
            for (int part = 0; part < weight_parts; ++part) w[part][i][word] = pair[part];
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const row_shift shift{moves[i] >> (8 * axis)};
          std::uint32_t cells[weight_parts][cell_words];
#pragma unroll
          for (int word = 0; word < cell_words; ++word) {
            // Of an axis that is radial there are no cells.
            const auto& sums =
                state.cells[loops_axes ? word : min(axis * cell_words + word, words - 1)];
            std::uint32_t pair[weight_parts];
            round_weights(early ? sums[2 * i] * by[i] : sums[2 * i],
                          early ? sums[2 * i + 1] * by[i] : sums[2 * i + 1], pair);
#pragma unroll
            for (int part = 0; part < weight_parts; ++part) cells[part][word] = pair[part];
          }
#pragma unroll
          for (int part = 0; part < weight_parts; ++part) shift.to_rows(cells[part], w[part][i]);
        }
        if constexpr (loops_axes) {
#pragma unroll
          for (int word = 0; word < cell_words; ++word)
#pragma unroll
            for (int e = 0; e < 4; ++e) state.cells[word][e] = state.cells[cell_words + word][e];
        }
      }
      add_table(w, axis, state);
    }
  }
  if constexpr (sums_directly) {
    constexpr float nothing[2][4] = {};
    add_halves(nothing, state.low, state.o);
  }
  if constexpr (!early) normalize();
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ bool contextual_block<T, D, Radial, Vectors, Layout>::finish_rows(
    const turn& now, row_state& state) const {
  complete_sums(now, state);
  return store(now, state);
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ void contextual_block<T, D, Radial, Vectors, Layout>::store_columns(
    T* target, std::uint32_t low, std::uint32_t high) {
  if constexpr (Vectors) {
    *reinterpret_cast<uint2*>(target) = {low, high};
  } else {
    const std::uint32_t bits[2] = {low, high};
    T elements[8 / sizeof(T)];
    memcpy(elements, bits, sizeof bits);
    for (int e = 0; e < static_cast<int>(8 / sizeof(T)); ++e) target[e] = elements[e];
  }
}

template <class T, int D, bool Radial, bool Vectors, class Layout>
__device__ __forceinline__ bool contextual_block<T, D, Radial, Vectors, Layout>::store(
    const turn& now, const row_state& state) const {
  const int own = min(16, min(rows, assigned - now.row) - warp * 16);
  if (own <= 0) return false;
  const int head = group().first_head + group_head;
  const auto* tokens = at<const std::int32_t>(layout::row_order) + first_row(now);
  bool finite = true;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = place.g + 8 * i;
    bool wanted = row < own;
    if constexpr (leaves_short) {
      const int2 window = at<const int2>(layout::row_bounds)[first_row(now) + row];
      wanted = wanted && window.y - window.x >= shortest;
    }
    const std::int64_t token = tokens[row];
    T* target = static_cast<T*>(const_cast<void*>(problem.out.data)) +
                head * problem.out.head_stride + token * problem.out.token_stride;
    float zero = 0.0f;
#pragma unroll
    for (const auto& block : state.o) zero += block[2 * i] * 0.0f + block[2 * i + 1] * 0.0f;
    finite = finite && (zero == 0.0f || !wanted);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int block = 0; block < math::blocks; ++block)
        if (wanted && 8 * block < problem.head_dim)
          store_columns(target + 8 * block + 2 * place.t, __float_as_uint(state.o[block][2 * i]),
                        __float_as_uint(state.o[block][2 * i + 1]));
    } else {
      // Neighbouring lanes swap, so that one has four columns of this block and one of the next.
      const bool odd = place.t % 2 == 1;
#pragma unroll
      for (int block = 0; block < math::blocks; block += 2) {
        const std::uint32_t first = pack<T>(state.o[block][2 * i], state.o[block][2 * i + 1]);
        const std::uint32_t second =
            pack<T>(state.o[block + 1][2 * i], state.o[block + 1][2 * i + 1]);
        const std::uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
        const int column = 8 * (block + (odd ? 1 : 0));
        if (wanted && column < problem.head_dim)
          store_columns(target + column + place.t / 2 * 4, odd ? other : first,
                        odd ? second : other);
      }
    }
    if (problem.lse != nullptr && place.t == 0 && wanted)
      problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] =
          state.softmax.log_sum(i);
  }
  return __any_sync(0xffffffffu, !finite);
}

}  // namespace winnow::detail
