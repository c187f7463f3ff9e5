// SPDX-License-Identifier: Apache-2.0
/// \file
/// The table of a head as a factor of products (contextual_products.cuh), and floats as the halves that multiply.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// x as halves whose sum it is, to 11 bits each.
template <int Parts>
__device__ __forceinline__ void split(float low, float high, std::uint32_t (&parts)[Parts]) {
  parts[0] = pack<half>(low, high);
  if constexpr (Parts == 2) {
    const float2 rounded = __half22float2(*reinterpret_cast<const half2*>(&parts[0]));
    parts[1] = pack<half>(low - rounded.x, high - rounded.y);
  }
}

/// 16 rows of floats as left factors of halves.
template <int D>
struct split_rows {
  std::uint32_t high[D / 16][4], low[D / 16][4];
  /// \tparam Natural lanes take dims as other products of halves do, else four neighbours.
  template <bool Natural = false>
  __device__ __forceinline__ void load(const float* rows) {
    const lane_place place;
    const float* row = rows + place.g * tile_math<float, D>::stride + (Natural ? 2 : 4) * place.t;
#pragma unroll
    for (int step = 0; step < D / 16; ++step)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* own = row + i * 8 * tile_math<float, D>::stride + 16 * step;
        if constexpr (Natural) {
          const float2 first = *reinterpret_cast<const float2*>(own);
          const float2 second = *reinterpret_cast<const float2*>(own + 8);
          set(step, i, {first.x, first.y, second.x, second.y});
        } else {
          set(step, i, *reinterpret_cast<const float4*>(own));
        }
      }
  }
  /// A lane's four dims of row g + 8i.
  __device__ __forceinline__ void set(int step, int i, const float4& x) {
    std::uint32_t first[2], second[2];
    split(x.x, x.y, first);
    split(x.z, x.w, second);
    high[step][i] = first[0], high[step][2 + i] = second[0];
    low[step][i] = first[1], low[step][2 + i] = second[1];
  }
};

/// 16 x 16 weights as two halves each.
struct split_fragment {
  weight_fragment<half> high, low;
  split_fragment() = default;
  __device__ __forceinline__ explicit split_fragment(const float (&p)[2][4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t parts[2];
      split(p[j / 2][j % 2 * 2], p[j / 2][j % 2 * 2 + 1], parts);
      high.a[j] = parts[0], low.a[j] = parts[1];
    }
  }
};

/// The table of one head for products of T.
/// \tparam Staged its elements lie in shared memory, in the order in which lanes take them.
/// \tparam Neighbours staged 16-bit elements are four neighbours of a lane.
///
/// Float multiplies as two halves each, hi·hi + hi·lo + lo·hi: what counts in a logit is the absolute
/// error, and that is 2⁻²² of the product.
template <class T, int D, bool Staged, bool Neighbours = false>
struct table_factor {
  using math = tile_math<T, D>;
  static constexpr int steps = D / 16;
  static constexpr bool splits = sizeof(T) == 4;
  /// Staged 16-bit tables have the order of `ldmatrix`, so that rows are loaded by it. Else lanes take
  /// four neighbours.
  static constexpr bool matrices = Staged && !splits;
  using rows =
      std::conditional_t<splits, split_rows<D>,
                         std::conditional_t<matrices, typename math::query, typename math::factor>>;
  using element = std::conditional_t<splits, uint4, uint2>;  ///< of 16 x 8, a lane's part

  table_view table;
  int head_offset;
  int dim;
  int last;  ///< the last row of a linear axis; of the radial axis it is the next one
  const element* staged;

  /// Table row of column g of a block; rows that are no table's are never looked up, and any
  /// element serves. \tparam Fours do lanes have four neighbours of two blocks of the radial axis?
  template <bool Backwards, bool Fours = false>
  __device__ __forceinline__ int row_of(int block, bool radial_axis) const {
    const lane_place place;
    if (radial_axis) {
      const int row = Fours ? block / 2 * 16 + place.g / 2 * 4 + block % 2 * 2 + place.g % 2
                            : 8 * block + place.g;
      return min(row, last + 1);
    }
    const int row = 8 * block + spread(place.g);
    return Backwards ? max(last - row, 0) : min(row, last);
  }
  /// Where the block's table row of this lane begins, in elements.
  template <bool Backwards, bool Fours = false>
  __device__ __forceinline__ int row_begin(int axis, int block, bool radial_axis) const {
    return row_of<Backwards, Fours>(block, radial_axis) * static_cast<int>(table.row_stride) +
           axis * static_cast<int>(table.axis_stride) + head_offset;
  }
  template <bool Backwards, bool Fours = false>
  __device__ __forceinline__ element load(int axis, int block, int step, bool radial_axis) const {
    const lane_place place;
    const int row = row_begin<Backwards, Fours>(axis, block, radial_axis) + 16 * step;
    if (table.data == nullptr) return {};
    if constexpr (matrices) {
      const auto pair = [&](int column) {
        if (16 * step + column >= dim) return 0u;
        return pack<T>(load_element<T>(table.data, table.is_float, row + column),
                       load_element<T>(table.data, table.is_float, row + column + 1));
      };
      return Neighbours ? element{pair(4 * place.t), pair(4 * place.t + 2)}
                        : element{pair(2 * place.t), pair(2 * place.t + 8)};
    } else {
      if constexpr (Staged && splits) {
        const auto pair = [&](int column, std::uint32_t(&parts)[2]) {
          if (16 * step + column >= dim) {
            parts[0] = parts[1] = 0;
            return;
          }
          const float2 x = *reinterpret_cast<const float2*>(static_cast<const float*>(table.data) +
                                                            row + column);
          split(x.x, x.y, parts);
        };
        std::uint32_t first[2], second[2];
        pair(2 * place.t, first);
        pair(2 * place.t + 8, second);
        return {first[0], second[0], first[1], second[1]};
      }
      if (16 * step + 4 * place.t >= dim) return {};
      const auto quad = math::load_quad(table.data, table.is_float, row + 4 * place.t);
      if constexpr (splits) {
        std::uint32_t first[2], second[2];
        split(quad.x, quad.y, first);
        split(quad.z, quad.w, second);
        return {first[0], second[0], first[1], second[1]};
      } else {
        return quad;
      }
    }
  }
  /// The same of a table of 16-bit T, without a branch or a conversion.
  template <bool Backwards, bool Fours = false>
  __device__ __forceinline__ element load_stored(int axis, int block,
                                                 bool radial_axis = false) const {
    static_assert(matrices && steps == 1);
    const lane_place place;
    const T* row =
        static_cast<const T*>(table.data) + row_begin<Backwards, Fours>(axis, block, radial_axis);
    const auto pair = [&](int column) {
      return table.data != nullptr && column < dim
                 ? *reinterpret_cast<const std::uint32_t*>(row + column)
                 : 0u;
    };
    return Neighbours ? element{pair(4 * place.t), pair(4 * place.t + 2)}
                      : element{pair(2 * place.t), pair(2 * place.t + 8)};
  }
  /// The same, on its way to shared memory in the background.
  template <bool Backwards, bool Fours = false>
  __device__ __forceinline__ void copy_stored(int axis, int block, std::uint32_t target,
                                              bool radial_axis = false) const {
    static_assert(matrices && steps == 1 && !Neighbours);
    const lane_place place;
    const T* row = static_cast<const T*>(table.data) +
                   (row_begin<Backwards, Fours>(axis, block, radial_axis) + 2 * place.t);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy_element_async(target + 4 * i, reinterpret_cast<const std::uint32_t*>(row + 8 * i),
                         table.data != nullptr && 2 * place.t + 8 * i < dim);
  }
  /// Both tables of logits, Tq backwards, on their way to shared memory; at once where one is kept in float.
  template <bool Fours = false>
  static __device__ __forceinline__ void request(const table_factor& q, const table_factor& k,
                                                 int axis, int block, bool radial_axis,
                                                 element* of_q, element* of_k) {
    if (q.table.is_float || k.table.is_float) {
      *of_q = q.template load<true, Fours>(axis, block, 0, radial_axis);
      *of_k = k.template load<false, Fours>(axis, block, 0, radial_axis);
    } else {
      q.template copy_stored<true, Fours>(axis, block, shared_address(of_q), radial_axis);
      k.template copy_stored<false, Fours>(axis, block, shared_address(of_k), radial_axis);
    }
  }
  /// Are a lane's parts of two blocks neighbours, so that one load takes both?
  static constexpr bool paired = std::is_same_v<T, half> && matrices && steps == 1;
  /// Where this lane's part lies; `block` counts over all axes.
  static __device__ __forceinline__ int element_at(int block, int step) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    if constexpr (paired)
      return (block / 2 * 32 + lane) * 2 + block % 2;
    else
      return (block * steps + step) * 32 + lane;
  }
  /// Fills the shared copy; all warps take part.
  template <bool Backwards>
  __device__ __forceinline__ void stage(element* target, bool radial, int warp, int warps) const {
    const lane_place place;
    for (int i = warp; i < 3 * axis_blocks * steps; i += warps) {
      const int block = i / steps;
      target[element_at(block, i % steps)] = load<Backwards>(
          block / axis_blocks, block % axis_blocks, i % steps, radial && block >= 2 * axis_blocks);
    }
  }
  template <bool Backwards>
  __device__ __forceinline__ element factor_at(int axis, int block, int step,
                                               bool radial_axis) const {
    if constexpr (Staged)
      return staged[element_at(axis * axis_blocks + block, step)];
    else
      return load<Backwards>(axis, block, step, radial_axis);
  }
  /// 16 rows times 8 rows of one axis.
  template <bool Backwards>
  __device__ __forceinline__ void multiply(const rows& left, int axis, int block, bool radial_axis,
                                           float (&product)[4]) const {
#pragma unroll
    for (float& sum : product) sum = 0.0f;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const element right = factor_at<Backwards>(axis, block, step, radial_axis);
      if constexpr (splits) {
        multiply_add_16<half>(product, left.low[step], right.x, right.y);
        multiply_add_16<half>(product, left.high[step], right.z, right.w);
        multiply_add_16<half>(product, left.high[step], right.x, right.y);
      } else {
        multiply_add_16<T>(product, left.a[step], right.x, right.y);
      }
    }
  }
  /// 16 rows of one step times one axis: products of the same block are far from each other, as each waits for
  /// the one before.
  template <bool Backwards>
  __device__ __forceinline__ void multiply_axis(const rows& left, int axis, bool radial_axis,
                                                float (&products)[axis_blocks][4]) const {
    static_assert(splits && Staged && steps == 1);
    element right[axis_blocks];
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block) {
      right[block] = factor_at<Backwards>(axis, block, 0, radial_axis);
      multiply_16<half>(products[block], left.low[0], right[block].x, right[block].y);
    }
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block)
      multiply_add_16<half>(products[block], left.high[0], right[block].z, right[block].w);
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block)
      multiply_add_16<half>(products[block], left.high[0], right[block].x, right[block].y);
  }
  /// 16 rows times one axis of the table, as halves that sum up to the products: of rows g and g + 8
  /// a pair of columns for each block.
  template <bool Backwards, int Parts>
  __device__ __forceinline__ void multiply(const rows& left, int axis, bool radial_axis,
                                           std::uint32_t (&words)[Parts][2][axis_blocks]) const {
    if constexpr (paired && Parts == 1) {
      static_assert(axis_blocks % 2 == 0);
#pragma unroll
      for (int block = 0; block < axis_blocks; block += 2) {
        const uint4 right =
            *reinterpret_cast<const uint4*>(staged + element_at(axis * axis_blocks + block, 0));
        std::uint32_t sums[2][2] = {};
        multiply_half(sums[0], left.a[0], right.x, right.y, 0, 0);
        multiply_half(sums[1], left.a[0], right.z, right.w, 0, 0);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int n = 0; n < 2; ++n) words[0][i][block + n] = sums[n][i];
      }
    } else if constexpr (std::is_same_v<T, half> && matrices && Parts == 1) {
#pragma unroll
      for (int block = 0; block < axis_blocks; ++block) {
        std::uint32_t sum[2] = {0, 0};
#pragma unroll
        for (int step = 0; step < steps; ++step) {
          const element right = factor_at<Backwards>(axis, block, step, radial_axis);
          multiply_half(sum, left.a[step], right.x, right.y, sum[0], sum[1]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) words[0][i][block] = sum[i];
      }
    } else {
#pragma unroll
      for (int block = 0; block < axis_blocks; ++block) {
        float product[4];
        multiply<Backwards>(left, axis, block, radial_axis, product);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::uint32_t pair[Parts];
          split(product[2 * i], product[2 * i + 1], pair);
#pragma unroll
          for (int part = 0; part < Parts; ++part) words[part][i][block] = pair[part];
        }
      }
    }
  }
};

}  // namespace winnow::detail
