// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tables of the contextual backward kernels share: places in shared memory, the tables
/// there, and the block's part of their gradients.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual_layout.hpp"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// Adds to two neighbouring floats in global memory without waiting for them.
__device__ __forceinline__ void add_in_memory(float* pair, float x, float y) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};\n" ::"l"(pair), "f"(x), "f"(y) : "memory");
#else
  asm volatile("red.global.add.f32 [%0], %1;\n" ::"l"(pair), "f"(x) : "memory");
  asm volatile("red.global.add.f32 [%0], %1;\n" ::"l"(pair + 1), "f"(y) : "memory");
#endif
}

template <class T, int D, backward_side Side, bool Radial>
struct contextual_memory {
  using layout = contextual_gradient_layout<sizeof(T), D, Side, Radial>;
  using math = tile_math<T, D>;
  /// Of tokens and tables.
  using product = std::conditional_t<sizeof(T) == 2, half, float>;
  static constexpr int warps = layout::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr int own_count = layout::own_tables;
  static constexpr int steps = 3 * tile_rows / 16;  ///< of products over table rows

  const backward_problem& problem;
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int group_head, warp, lane;
  lane_place place;
  int length, table_rows;
  float* parts[own_count];  ///< the block's part of dTq and dTv, or of dTk

  __device__ __forceinline__ contextual_memory(const backward_problem& problem_,
                                               const backward_group& entry_, int group_head_,
                                               std::byte* memory_)
      : problem(problem_),
        entry(entry_),
        group(entry_.problem),
        memory(memory_),
        group_head(group_head_),
        warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) & 31),
        length(entry_.problem.quant_length),
        table_rows(2 * length - (Radial ? 0 : 1)) {}

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ __forceinline__ product* own_cells(int which) const {
    return at<product>(layout::own_cells) + which * rows * layout::cell_stride;
  }
  __device__ __forceinline__ product* other_cells(int which) const {
    return at<product>(layout::other_cells) + which * others * layout::cell_stride;
  }
  /// Tq, Tk, Tv.
  __device__ __forceinline__ T* table(int which) const {
    return at<T>(layout::tables + which * layout::table_bytes);
  }
  static constexpr int of_queries = 0, of_keys = 1, of_values = 2;
  __device__ __forceinline__ T* sums(int which) const {
    return at<T>(layout::sums) + which * rows * layout::sum_stride;
  }
  [[nodiscard]] __device__ __forceinline__ const table_view& own_view() const {
    return query_side ? group.table_q : group.table_k;
  }
  [[nodiscard]] __device__ __forceinline__ bool linear(int axis) const {
    return axis < layout::cell_axes;
  }

  /// Tables as rows of T for the block's life, padded with zeros, linear axes of Tq and Tv backwards;
  /// and the block's parts of their gradients as zeros, each element by the thread that adds to it. Where
  /// short windows go in one pass, the parts have what those gave.
  __device__ __forceinline__ void begin_block(int part) {
    const table_view* views[] = {&group.table_q, &group.table_k, &group.table_v};
    constexpr int width = 16 / static_cast<int>(sizeof(T));
    constexpr int chunks = D / width;
#pragma unroll
    for (int which = 0; which < 3; ++which) {
      const table_view& view = *views[which];
      T* target = table(which);
      for (int i = static_cast<int>(threadIdx.x); i < 3 * tile_rows * chunks; i += threads) {
        const int column = i / chunks;
        const int d = i % chunks * width;
        const int axis = column / tile_rows;
        int row = column % tile_rows;
        if (which != of_keys && linear(axis)) row = 2 * (length - 1) - row;
        uint4 bits = {0, 0, 0, 0};
        if (view.data != nullptr && row >= 0 && row < table_rows && d < problem.head_dim)
          bits = load_table_vector<T>(view, row * view.row_stride + axis * view.axis_stride +
                                                group_head * view.head_stride + d);
        *reinterpret_cast<uint4*>(target + column * math::stride + d) = bits;
      }
    }
    float* bases[] = {query_side ? entry.parts.table_q : entry.parts.table_k, entry.parts.table_v};
#pragma unroll
    for (int which = 0; which < own_count; ++which) {
      parts[which] = bases[which];
      if (parts[which] == nullptr) continue;
      parts[which] +=
          (std::int64_t{group_head} * problem.parts_per_head + part) * 3 * tile_rows * D;
      if (problem.one_pass > 0) continue;
      for (int step = first_step(which); step < steps; step += warps)
        for (int i = 0; i < 2; ++i)
          for (int block = 0; block * 8 < problem.head_dim; ++block)
            *reinterpret_cast<float2*>(part_row(parts[which], step, i) + block * 8) = {0.0f, 0.0f};
    }
  }

  /// A warp adds to every `warps`-th 16 rows of the block's tables, counted through them.
  [[nodiscard]] __device__ __forceinline__ int first_step(int which) const {
    return (warp + which * (warps - steps % warps)) % warps;
  }
  /// This lane's place in the part of row g + 8i of 16 rows. Parts have their rows as tables have them here:
  /// also what is no row of a table.
  __device__ __forceinline__ float* part_row(float* part, int step, int i) const {
    return part + (step * 16 + place.g + 8 * i) * D + 2 * place.t;
  }

  /// Adds a product of 16 table rows times `by` to the part.
  __device__ __forceinline__ void add_product(int which, int step,
                                              const float (&product)[math::blocks][4],
                                              float by) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* target = part_row(parts[which], step, i);
#pragma unroll
      for (int block = 0; block < math::blocks; ++block)
        if (block * 8 < problem.head_dim)
          add_in_memory(target + block * 8, product[block][2 * i] * by,
                        product[block][2 * i + 1] * by);
    }
  }
};

}  // namespace winnow::detail
