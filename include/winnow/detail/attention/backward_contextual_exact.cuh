// SPDX-License-Identifier: Apache-2.0
/// \file
/// Tables of the contextual encoding in the tiles of backward_contextual.cuh, for float storage.
///
/// As backward_contextual_tables.cuh, but exact to FP32: products of tokens and tables stay in FP32 by
/// the other token's cell, and pairs look them up, nine reads each, since one-hot products would need
/// two terms of every operand. dS and P are summed up by cell as products of two TF32 terms with one-hot
/// cells, which are exact. Radial rows: each lane walks one row of a piece and adds to its own sums in
/// shared memory.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_tables.cuh"

namespace winnow::detail {

template <int D, backward_side Side, bool Radial>
struct contextual_tables<float, D, Side, Radial> : contextual_memory<float, D, Side, Radial> {
  using base = contextual_memory<float, D, Side, Radial>;
  using base::group;
  using base::lane;
  using base::length;
  using base::linear;
  using base::of_keys;
  using base::of_queries;
  using base::of_values;
  using base::other_cells;
  using base::own_cells;
  using base::own_count;
  using base::parts;
  using base::place;
  using base::problem;
  using base::sums;
  using base::table;
  using base::warp;
  using base::warps;
  using typename base::layout;
  using typename base::math;
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr int axis_blocks = tile_cells / 8;
  static constexpr int blocks = layout::cell_axes * axis_blocks;
  static constexpr int steps = 3 * tile_rows / 16;
  static constexpr int stride = layout::cell_stride;
  static constexpr int piece_stride = 17;

  std::uint32_t code[2];  ///< cells of rows g and g + 8
  float radius[2];
  std::uint32_t radial_rows[2];
  float cells[own_count][blocks][4];

  using base::base;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// 16 rows · tableᵀ times `by`: one axis, by cell into `cells_of` (row g), or by radial row into
  /// `by_row` (row g, `row_step` floats from one to the next). `codes` are those of rows g and g + 8.
  __device__ __forceinline__ void multiply_axis(const typename math::query& left,
                                                const float* right, int axis, float by,
                                                const std::uint32_t (&codes)[2], float* cells_of,
                                                float* by_row, int row_step, int row_stride) const {
    const bool by_cell = linear(axis);
#pragma unroll 1
    for (int block = 0; block < tile_rows / 16; ++block) {
      float product[2][4] = {};
      math::scores(left, right, axis * tile_rows + block * 16, 3 * tile_rows - 1, product);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int shift = length - 1 - unpack_position(codes[i], axis);
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int column = block * 16 + b * 8 + 2 * place.t + c;
            const float value = product[b][2 * i + c] * by;
            const int cell = column - shift;
            if (!by_cell)
              by_row[i * 8 * row_stride + column * row_step] = value;
            else if (static_cast<unsigned>(cell) < static_cast<unsigned>(tile_cells))
              cells_of[i * 8 * stride + axis * tile_cells + cell] = value;
          }
      }
    }
  }

  /// Products of the own rows, and empty sums.
  __device__ __forceinline__ void begin_tile(const typename math::query& first,
                                             const typename math::query& second,
                                             const int (&slot)[2], float raise) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      code[i] = slot[i] >= 0 ? group.positions[slot[i]] : 0;
      radius[i] = Radial && slot[i] >= 0 ? group.radius[slot[i]] : 0.0f;
    }
#pragma unroll
    for (auto& sum : cells)
#pragma unroll
      for (auto& block : sum)
#pragma unroll
        for (float& x : block) x = 0.0f;
    if (Radial)
      for (int i = lane; i < own_count * 16 * layout::radial_stride; i += 32)
        radial_sums(0)[i] = 0.0f;
    float* target = own_cells(0) + (warp * 16 + place.g) * stride;
#pragma unroll 1
    for (int axis = 0; axis < 3; ++axis) {
      if constexpr (query_side) {
        constexpr int row_stride = 2 * layout::query_radial_stride;
        float* by_row = at<float>(layout::own_radial) + (warp * 16 + place.g) * row_stride;
        multiply_axis(first, table(of_queries), axis, problem.scale * log2_e, code, target, by_row,
                      2, row_stride);
        multiply_axis(second, table(of_values), axis, raise, code, target + rows * stride,
                      by_row + 1, 2, row_stride);
      } else {
        constexpr int row_stride = layout::key_radial_stride;
        multiply_axis(first, table(of_keys), axis, log2_e, code, target,
                      at<float>(layout::own_radial) + (warp * 16 + place.g) * row_stride, 1,
                      row_stride);
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ float* radial_sums(int which) const {
    return at<float>(layout::radial_sums) + (warp * own_count + which) * 16 * layout::radial_stride;
  }

  /// Products of the `count` first rows of a tile of the other side. All warps take part; the caller
  /// synchronises before and after.
  __device__ __forceinline__ void prepare_others(const float* first, const float* second,
                                                 const std::uint32_t* codes, int count,
                                                 float raise) const {
    constexpr int groups = others / 16;
    constexpr int jobs = 3 * groups * layout::other_tables;
    for (int job = warp; job < jobs; job += warps) {
      const int row = job % groups * 16;
      const int axis = job / groups % 3;
      const bool of_second = job / groups >= 3;
      if (row >= count) continue;
      const std::uint32_t own[2] = {codes[row + place.g], codes[row + place.g + 8]};
      typename math::query left;
      left.load((of_second ? second : first) + row * math::stride);
      float* target = other_cells(of_second ? 1 : 0) + (row + place.g) * stride;
      if constexpr (query_side) {
        constexpr int row_stride = layout::key_radial_stride;
        multiply_axis(left, table(of_keys), axis, log2_e, own, target,
                      at<float>(layout::other_radial) + (row + place.g) * row_stride, 1,
                      row_stride);
      } else {
        constexpr int row_stride = 2 * layout::query_radial_stride;
        multiply_axis(
            left, table(of_second ? of_values : of_queries), axis,
            of_second ? raise : problem.scale * log2_e, own, target,
            at<float>(layout::other_radial) + (row + place.g) * row_stride + (of_second ? 1 : 0), 2,
            row_stride);
      }
    }
  }

  /// Adds what the tables add on linear axes: to logits in base 2, and to dP.
  __device__ __forceinline__ void add_linear(int tile_row, const std::uint32_t* codes,
                                             float (&p)[2][4], float (&ds)[2][4]) const {
    const float* own = own_cells(0) + (warp * 16 + place.g) * stride;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = b * 8 + 2 * place.t + c;
        const std::uint32_t met_code = codes[column];
        const float* met = other_cells(0) + min(tile_row + column, others - 1) * stride;
#pragma unroll
        for (int axis = 0; axis < layout::cell_axes; ++axis) {
          // Behind the tile's last row there are other words.
          const int met_cell = static_cast<int>(met_code >> (8 * axis) & 0x1fu) + axis * tile_cells;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float* own_row = own + i * 8 * stride + met_cell;
            const float* met_row = met + unpack_position(code[i], axis) + axis * tile_cells;
            p[b][2 * i + c] += own_row[0] + met_row[0];
            ds[b][2 * i + c] += query_side ? own_row[rows * stride] : met_row[others * stride];
          }
        }
      }
  }

  /// The same on the radial axis; keeps the pairs' rows.
  __device__ __forceinline__ void add_radial(int tile_row, const float* other_radius,
                                             float (&p)[2][4], float (&ds)[2][4]) {
    if constexpr (!Radial) return;
    const auto* keys = at<float>(query_side ? layout::other_radial : layout::own_radial);
    const auto* queries = at<float2>(query_side ? layout::own_radial : layout::other_radial);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      std::uint32_t packed = 0;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = b * 8 + 2 * place.t + c;
        const float r = other_radius[column];
        const int other = min(tile_row + column, others - 1);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int own = warp * 16 + place.g + 8 * i;
          const int row =
              exponential_row(query_side ? radius[i] - r : r - radius[i], group.inverse_a, length);
          packed |= static_cast<std::uint32_t>(row) << (8 * (2 * i + c));
          const float2 query =
              queries[(query_side ? own : other) * layout::query_radial_stride + row];
          p[b][2 * i + c] +=
              query.x + keys[(query_side ? other : own) * layout::key_radial_stride + row];
          ds[b][2 * i + c] += query.y;
        }
      }
      radial_rows[b] = packed;
    }
  }

  /// Sums a piece of dS (and of P) up by the other token's cell and by radial row.
  __device__ __forceinline__ void sum_up(int, const std::uint32_t* codes, const float (&p)[2][4],
                                         const float (&ds)[2][4]) {
#pragma unroll
    for (int which = 0; which < own_count; ++which) {
      const float(&values)[2][4] = which == 0 ? ds : p;
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        // As in tile_math<float>::values, step t takes column 2t and step t + 4 column 2t + 1.
        const std::uint32_t met[2] = {codes[b * 8 + 2 * place.t], codes[b * 8 + 2 * place.t + 1]};
        const tf32_pair a[4] = {tf32_pair(values[b][0]), tf32_pair(values[b][2]),
                                tf32_pair(values[b][1]), tf32_pair(values[b][3])};
#pragma unroll
        for (int block = 0; block < blocks; ++block) {
          std::uint32_t one[2];
#pragma unroll
          for (int c = 0; c < 2; ++c)
            one[c] = (met[c] >> (8 * (block / axis_blocks)) & 0xffu) ==
                             static_cast<unsigned>(block % axis_blocks * 8 + place.g)
                         ? 0x3f800000u
                         : 0u;
          multiply_add_8(cells[which][block], a[0].low, a[1].low, a[2].low, a[3].low, one[0],
                         one[1]);
          multiply_add_8(cells[which][block], a[0].high, a[1].high, a[2].high, a[3].high, one[0],
                         one[1]);
        }
      }
    }
    if constexpr (!Radial) return;
    auto* staging = at<float>(layout::radial_piece) + warp * 3 * 16 * piece_stride;
    __syncwarp();
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float* target =
            staging + (place.g + e / 2 * 8) * piece_stride + b * 8 + 2 * place.t + (e & 1);
        target[0] = ds[b][e];
        target[16 * piece_stride] = p[b][e];
        target[2 * 16 * piece_stride] = __uint_as_float(radial_rows[b] >> (8 * e) & 0xffu);
      }
    __syncwarp();
    const int which = lane / 16;
    if (which >= own_count) return;
    float* row_sums = radial_sums(which) + lane % 16 * layout::radial_stride;
    const float* values = staging + (which * 16 + lane % 16) * piece_stride;
    const float* table_row = staging + (2 * 16 + lane % 16) * piece_stride;
#pragma unroll 4
    for (int column = 0; column < 16; ++column)
      row_sums[__float_as_uint(table_row[column])] += values[column];
  }

  /// B of this warp's rows by table row.
  __device__ __forceinline__ void spread(int which) const {
    float* target = sums(0) + warp * 16 * layout::sum_stride;
    for (int i = lane; i < 16 * layout::sum_stride / 4; i += 32)
      reinterpret_cast<float4*>(target)[i] = {0.0f, 0.0f, 0.0f, 0.0f};
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int own = place.g + 8 * i;
      float* row = target + own * layout::sum_stride;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        if (axis == 2 && Radial) {
          for (int r = place.t; r < tile_rows; r += 4)
            row[2 * tile_rows + r] = radial_sums(which)[own * layout::radial_stride + r];
        } else {
          float* first = row + axis * tile_rows + length - 1 - unpack_position(code[i], axis);
#pragma unroll
          for (int block = 0; block < axis_blocks; ++block)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              first[block * 8 + 2 * place.t + e] =
                  cells[which][axis * axis_blocks + block][2 * i + e];
        }
      }
    }
    __syncwarp();
  }

  /// sum += B · own table, this warp's rows.
  __device__ __forceinline__ void add_table_term(float (&sum)[math::blocks][4]) const {
    const float* left = sums(0) + (warp * 16 + place.g) * layout::sum_stride + place.t;
    const float* right =
        table(query_side ? of_queries : of_keys) + place.t * math::stride + place.g;
#pragma unroll 2
    for (int r = 0; r < 3 * tile_rows; r += 8) {
      const tf32_pair a[4] = {tf32_pair(left[r]), tf32_pair(left[8 * layout::sum_stride + r]),
                              tf32_pair(left[r + 4]),
                              tf32_pair(left[8 * layout::sum_stride + r + 4])};
#pragma unroll
      for (int block = 0; block < math::blocks; ++block) {
        const tf32_pair b[2] = {tf32_pair(right[r * math::stride + block * 8]),
                                tf32_pair(right[(r + 4) * math::stride + block * 8])};
        multiply_add_8(sum[block], a, b);
      }
    }
  }

  /// Adds Bᵀ · rows times `by` to the block's part: 16 table rows a warp at a time.
  __device__ __forceinline__ void add_to_part(int which, const float* own_rows, float by) const {
    if (parts[which] == nullptr) return;
    for (int step = base::first_step(which); step < steps; step += warps) {
      float product[math::blocks][4] = {};
      const float* left = sums(0) + place.t * layout::sum_stride + step * 16 + place.g;
      const float* right = own_rows + place.t * math::stride + place.g;
#pragma unroll 2
      for (int row = 0; row < rows; row += 8) {
        const float* upper = left + row * layout::sum_stride;
        const float* lower = upper + 4 * layout::sum_stride;
        const tf32_pair a[4] = {tf32_pair(upper[0]), tf32_pair(upper[8]), tf32_pair(lower[0]),
                                tf32_pair(lower[8])};
#pragma unroll
        for (int block = 0; block < math::blocks; ++block) {
          const tf32_pair b[2] = {tf32_pair(right[row * math::stride + block * 8]),
                                  tf32_pair(right[(row + 4) * math::stride + block * 8])};
          multiply_add_8(product[block], a, b);
        }
      }
      base::add_product(which, step, product, by);
    }
  }

  /// What the tile's sums give: the table term of dq or dk, and the gradients of tables. All warps
  /// take part, and have passed a barrier since the walk.
  __device__ __forceinline__ void finish_tile(float (&sum)[math::blocks][4], const float* first,
                                              const float* second, float weight_unit, float lower) {
    spread(0);
    if (base::own_view().data != nullptr) add_table_term(sum);
    __syncthreads();
    add_to_part(0, first, query_side ? problem.scale * lower : lower);
    __syncthreads();
    if constexpr (query_side) {
      spread(1);
      __syncthreads();
      add_to_part(1, second, weight_unit);
      __syncthreads();
    }
  }
};

}  // namespace winnow::detail
