// SPDX-License-Identifier: Apache-2.0
/// \file
/// Position encodings as policies of the forward kernel: none and bias.
///
/// A policy turns products q·k of a 16 x 16 piece into logits in base 2, -infinity where a row does
/// not attend; it may prepare shared memory for each block and key tile, and may add to the result.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/relative_position.hpp"

namespace winnow::detail {

/// What a policy sees of its block, and this lane's rows g and g + 8 of its warp's tile.
struct row_context {
  const forward_problem& problem;
  const group_problem& group;
  int slot[2];     ///< -1: the row is past the last token
  int first_head;  ///< of the block, among the group's
  int heads;       ///< of the block
};

/// A 16 x 16 piece of scores: which keys, and who attends.
struct piece_place {
  int tile_key;    ///< the piece's first key in the key tile
  int row_key[2];  ///< the slot of this lane's first key, less the first slot of its rows' windows
  std::uint32_t length[2];  ///< slots of the rows' windows, as far as they lie in the tile
  bool interior;            ///< all rows attend to all keys of the piece, as far as windows go

  /// Key of element e of block b, relative to the piece; `offset`: to the lane's first key.
  static __device__ __forceinline__ constexpr int offset(int b, int e) { return b * 8 + (e & 1); }
  static __device__ __forceinline__ int key(int b, int e) {
    return offset(b, e) + 2 * (static_cast<int>(threadIdx.x) & 3);
  }
  [[nodiscard]] __device__ __forceinline__ bool in_window(int b, int e) const {
    return static_cast<std::uint32_t>(row_key[e / 2] + offset(b, e)) < length[e / 2];
  }
};

/// None and bias. On a grid a pair is one subtraction: codes hold y·(2w-1) + x, offset on the query
/// side so that their difference is the bias row, and the seam region above it, so that a difference
/// of 2²⁰ or more says that the seam lies between.
template <class T, int D, position_encoding Position>
struct grid_encoding {
  static constexpr bool biased = Position == position_encoding::bias;
  using layout = forward_layout<sizeof(T), D, Position>;
  using math = tile_math<T, D>;
  static constexpr std::uint32_t seam = 1u << 20;
  /// Does `score` leave the scale to the exponential?
  static constexpr bool unscaled = !biased;

  const float* bias;
  std::uint32_t row_code[2];
  bool grid;
  float factor;

  __device__ __forceinline__ grid_encoding(const row_context& context, std::byte* memory)
      : bias(reinterpret_cast<const float*>(memory + layout::tail)),
        grid(context.group.kind == relative_kind::grid),
        factor(context.problem.scale * log2_e) {
    const group_problem& group = context.group;
    const int edge = group.quant_length;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      row_code[i] = grid && context.slot[i] >= 0
                        ? code(group, group.positions[context.slot[i]]) + (edge - 1) * 2 * edge
                        : 0;
    if constexpr (biased) {
      const int table_rows = bias_stride(group);
      auto* table = reinterpret_cast<float*>(memory + layout::tail);
      for (int h = 0; h < context.heads; ++h)
        for (int r = static_cast<int>(threadIdx.x); r < table_rows;
             r += static_cast<int>(blockDim.x))
          table[h * table_rows + r] =
              log2_e * load_element<T>(group.bias, group.bias_is_float,
                                       r * group.bias_row_stride +
                                           (context.first_head + h) * group.bias_head_stride);
    }
  }
  static __device__ __forceinline__ int bias_stride(const group_problem& group) {
    return (2 * group.quant_length - 1) * (2 * group.quant_length - 1);
  }

  /// Turns to the block's h-th head; all warps have passed a barrier since the constructor.
  __device__ __forceinline__ void begin_head(const row_context& context, int h, std::byte* memory,
                                             const T*) {
    if constexpr (biased)
      bias = reinterpret_cast<const float*>(memory + layout::tail) + h * bias_stride(context.group);
  }

  static __device__ __forceinline__ bool needs_codes(const group_problem& group) {
    return group.kind == relative_kind::grid;
  }
  static __device__ __forceinline__ std::uint32_t code(const group_problem& group,
                                                       packed_position position) {
    return unpack_position(position, 1) * (2 * group.quant_length - 1) +
           unpack_position(position, 0) + unpack_position(position, 2) * seam;
  }

  __device__ __forceinline__ void prepare_keys(std::byte*, int, int) {}
  /// Is there nothing to do for pieces inside of all windows?
  [[nodiscard]] __device__ __forceinline__ bool skips_interior() const {
    return !biased && !grid;
  }

  __device__ __forceinline__ void score(float (&s)[2][4], const piece_place& place,
                                        const std::uint32_t* key_code, const float*, int) {
    if (!grid) {
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!place.in_window(b, e)) s[b][e] = -INFINITY;
      return;
    }
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const std::uint32_t* code = key_code + place.tile_key + place.key(b, 0);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Codes behind the tile's last key are read and not used.
        const std::uint32_t row = row_code[e / 2] - code[e & 1];
        const bool attends = row < seam && place.in_window(b, e);
        if constexpr (biased) s[b][e] = s[b][e] * factor + (attends ? bias[row] : 0.0f);
        if (!attends) s[b][e] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void rescale(const float (&)[2]) {}
  __device__ __forceinline__ void add_weights(const float (&)[2][4], int, int, int) {}
  __device__ __forceinline__ void finish(std::byte*, const float (&)[2],
                                         float (&)[math::blocks][4]) {}
};

}  // namespace winnow::detail
