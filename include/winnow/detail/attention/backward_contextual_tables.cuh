// SPDX-License-Identifier: Apache-2.0
/// \file
/// Tables of the contextual encoding in the tiles of backward_contextual.cuh, for 16-bit storage.
///
/// With r the table row of a pair, products of tokens and tables are, in half,
///
///     Gq[i, a, r] = s·log2(e)·q_i·Tq[r, a]    Gk[j, a, r] = log2(e)·k_j·Tk[r, a]
///     Gv[i, a, r] = raise·dO_i·Tv[r, a]
///
/// On linear axes r is p_i - p_j + L - 1, so a token's products are stored by the other's cell p, 24 of
/// the rows: shifted by the own cell. Then what they add to a piece is again a product, with one-hot
/// cells E of the other tokens: S += Gq·Eᵀ, S += E·Gkᵀ, dP += Gv·Eᵀ. Tables of queries lie backwards
/// in shared memory, so that cells ascend with rows for queries and keys alike: the shift of a token
/// in cell p is L - 1 - p. Lane t of a quad has cells 6t to 6t + 5 of a row, in three words, one
/// for each of three chunks of 16 bytes, as `ldmatrix` hands them out.
///
/// Sums go the other way: dS·E and P·E are sums by the other token's cell, in registers. At the end of
/// a tile they are shifted, B[i, a, r], and
///
///     dq_i += B·Tq (key side: dk_j += B·Tk),   dTq += Bᵀ·q,  dTv += Bᵀ·dO (dTk += Bᵀ·k)
///
/// over all rows of the block. The gradients of tables are added to the block's part in global memory,
/// each element by one thread in order.
///
/// The radial row is no function of one cell: pairs look products up and add to sums in shared memory,
/// in fixed point, as integers have the same sum in every order. A row whose |dS| add up to what does
/// not fit becomes NaN, and is then computed again like all such rows.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

/// D += A·B on m16n8k8 in half: half a step of `multiply_add_16`.
__device__ __forceinline__ void multiply_add_half_step(float (&d)[4], std::uint32_t a0,
                                                       std::uint32_t a1, std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

template <class T, int D, backward_side Side, bool Radial>
struct contextual_tables : contextual_memory<T, D, Side, Radial> {
  using base = contextual_memory<T, D, Side, Radial>;
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
  static constexpr int threads = 32 * warps;
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr int axis_words = tile_cells / 8;  ///< words of a lane, and chunks, of an axis
  static constexpr int words = layout::cell_axes * axis_words;
  static constexpr int steps = 3 * tile_rows / 16;  ///< of products over table rows
  /// Fixed point of radial sums: P comes times 2¹⁰, a row's P add up to 1; a row's |dS| may add up
  /// to `largest_sum`, where the largest |dO| is 2³ to 2⁴.
  static constexpr float weight_points = 0x1p20f;
  static constexpr float gradient_points = 0x1p17f;
  static constexpr float largest_sum = 0x1p13f;

  std::uint32_t shift[2];  ///< L - 1 - p on each axis, of rows g and g + 8
  std::uint32_t own_hot[2][words];
  float radius[2];
  float total[2];  ///< Σ |dS| of this lane
  std::uint32_t radial_rows[2];
  float cells[own_count][words][4];

  using base::base;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Of row g of this warp.
  __device__ __forceinline__ int* radial_sums(int which) const {
    return at<int>(layout::radial_sums) +
           ((warp * own_count + which) * 16 + place.g) * layout::radial_stride;
  }

  /// 16 rows · tableᵀ times `by`: one axis, by cell into `cells` (row g) or by radial row into
  /// `by_row` (row g, `row_step` halves from one to the next). `shifts` are those of rows g and g + 8.
  __device__ __forceinline__ void multiply_axis(const typename math::query& left, const T* right,
                                                int axis, float by,
                                                const std::uint32_t (&shifts)[2], half* cells_of,
                                                half* by_row, int row_step, int row_stride) const {
    half* staging = at<half>(layout::staging) + (warp * 8 + place.g) * layout::staging_stride;
    const bool by_cell = linear(axis);
    std::uint32_t pairs[2][tile_rows / 8];
#pragma unroll
    for (int block = 0; block < tile_rows / 16; ++block) {
      float product[2][4] = {};
      math::scores(left, right, axis * tile_rows + block * 16, 3 * tile_rows - 1, product);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          pairs[i][2 * block + b] = pack<half>(product[b][2 * i] * by, product[b][2 * i + 1] * by);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!by_cell) {
#pragma unroll
        for (int b = 0; b < tile_rows / 8; ++b) {
          half* target = by_row + i * 8 * row_stride + (8 * b + 2 * place.t) * row_step;
          target[0] = __ushort_as_half(static_cast<unsigned short>(pairs[i][b]));
          target[row_step] = __ushort_as_half(static_cast<unsigned short>(pairs[i][b] >> 16));
        }
        continue;
      }
      // Eight rows at a time go through shared memory.
      __syncwarp();
#pragma unroll
      for (int b = 0; b < tile_rows / 8; ++b)
        *reinterpret_cast<std::uint32_t*>(staging + 8 * b + 2 * place.t) = pairs[i][b];
      __syncwarp();
      const int start = static_cast<int>(shifts[i] >> (8 * axis) & 0xffu) + 6 * place.t;
      const auto* source = reinterpret_cast<const std::uint32_t*>(staging + (start & ~1));
      const std::uint32_t selector = (start & 1) != 0 ? 0x5432u : 0x3210u;
      std::uint32_t word = source[0];
#pragma unroll
      for (int w = 0; w < axis_words; ++w) {
        const std::uint32_t next = source[w + 1];
        *reinterpret_cast<std::uint32_t*>(cells_of + i * 8 * layout::cell_stride +
                                          (axis * axis_words + w) * 8 + 2 * place.t) =
            __byte_perm(word, next, selector);
        word = next;
      }
    }
  }

  /// The one-hot words of this lane's six cells of an axis.
  __device__ __forceinline__ void one_hot_words(std::uint32_t code, int axis,
                                                std::uint32_t (&out)[words]) const {
    const int cell = static_cast<int>(code >> (8 * axis) & 0xffu) - 6 * place.t;
    const std::uint32_t one = 0x3c00u << (16 * (cell & 1));
#pragma unroll
    for (int w = 0; w < axis_words; ++w) out[axis * axis_words + w] = cell >> 1 == w ? one : 0u;
  }

  /// Products of the own rows, and empty sums.
  __device__ __forceinline__ void begin_tile(const typename math::query& first,
                                             const typename math::query& second,
                                             const int (&slot)[2], float raise) {
    const std::uint32_t offset = static_cast<std::uint32_t>(length - 1) * 0x010101u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t code = slot[i] >= 0 ? group.positions[slot[i]] : 0;
      shift[i] = offset - (code & (Radial ? 0xffffu : 0xffffffu));
      radius[i] = Radial && slot[i] >= 0 ? group.radius[slot[i]] : 0.0f;
      total[i] = 0.0f;
#pragma unroll
      for (int axis = 0; axis < layout::cell_axes; ++axis) one_hot_words(code, axis, own_hot[i]);
    }
#pragma unroll
    for (auto& sum : cells)
#pragma unroll
      for (auto& block : sum)
#pragma unroll
        for (float& x : block) x = 0.0f;
    if (Radial)
      for (int i = lane; i < own_count * 16 * layout::radial_stride; i += 32)
        (at<int>(layout::radial_sums) + warp * own_count * 16 * layout::radial_stride)[i] = 0;
    half* target = own_cells(0) + (warp * 16 + place.g) * layout::cell_stride;
#pragma unroll 1
    for (int axis = 0; axis < 3; ++axis) {
      if constexpr (query_side) {
        half* by_row =
            at<half>(layout::own_radial) + (warp * 16 + place.g) * 2 * layout::query_radial_stride;
        multiply_axis(first, table(of_queries), axis, problem.scale * log2_e, shift, target, by_row,
                      2, 2 * layout::query_radial_stride);
        multiply_axis(second, table(of_values), axis, raise, shift,
                      target + rows * layout::cell_stride, by_row + 1, 2,
                      2 * layout::query_radial_stride);
      } else {
        half* by_row =
            at<half>(layout::own_radial) + (warp * 16 + place.g) * layout::key_radial_stride;
        multiply_axis(first, table(of_keys), axis, log2_e, shift, target, by_row, 1,
                      layout::key_radial_stride);
      }
    }
    __syncwarp();
  }

  /// Products and one-hot cells of the `count` first rows of a tile of the other side. All warps take
  /// part; the caller synchronises before and after.
  __device__ __forceinline__ void prepare_others(const T* first, const T* second,
                                                 const std::uint32_t* codes, int count,
                                                 float raise) const {
    constexpr int groups = others / 16;
    constexpr int jobs = 3 * groups * layout::other_tables;
    const std::uint32_t offset = static_cast<std::uint32_t>(length - 1) * 0x010101u;
    const std::uint32_t used = Radial ? 0xffffu : 0xffffffu;
    for (int job = warp; job < jobs; job += warps) {
      const int row = job % groups * 16;
      const int axis = job / groups % 3;
      const bool of_second = job / groups >= 3;
      if (row >= count) continue;
      const std::uint32_t shifts[2] = {offset - (codes[row + place.g] & used),
                                       offset - (codes[row + place.g + 8] & used)};
      typename math::query left;
      left.load((of_second ? second : first) + row * math::stride);
      half* target = other_cells(of_second ? 1 : 0) + (row + place.g) * layout::cell_stride;
      if constexpr (query_side) {
        multiply_axis(left, table(of_keys), axis, log2_e, shifts, target,
                      at<half>(layout::other_radial) + (row + place.g) * layout::key_radial_stride,
                      1, layout::key_radial_stride);
      } else {
        multiply_axis(left, table(of_second ? of_values : of_queries), axis,
                      of_second ? raise : problem.scale * log2_e, shifts, target,
                      at<half>(layout::other_radial) +
                          (row + place.g) * 2 * layout::query_radial_stride + (of_second ? 1 : 0),
                      2, 2 * layout::query_radial_stride);
      }
    }
    // One-hot cells of all rows: weights of 0 meet those that nobody attends to.
    for (int row = static_cast<int>(threadIdx.x); row < others; row += threads) {
      half* target = at<half>(layout::one_hot) + row * layout::cell_stride;
      const std::uint32_t code = codes[row];
#pragma unroll
      for (int axis = 0; axis < layout::cell_axes; ++axis) {
        const unsigned cell = code >> (8 * axis) & 0xffu;
        const unsigned quad_lane = cell / 6;
        const unsigned word = (cell - 6 * quad_lane) / 2;
        const std::uint32_t one = 0x3c00u << (16 * (cell & 1));
        const uint4 chunk = {quad_lane == 0 ? one : 0u, quad_lane == 1 ? one : 0u,
                             quad_lane == 2 ? one : 0u, quad_lane == 3 ? one : 0u};
#pragma unroll
        for (int w = 0; w < axis_words; ++w)
          *reinterpret_cast<uint4*>(target + (axis * axis_words + w) * 8) =
              word == static_cast<unsigned>(w) ? chunk : uint4{0, 0, 0, 0};
      }
    }
  }

  /// Adds what the tables add on linear axes: to logits in base 2, and to dP.
  __device__ __forceinline__ void add_linear(int tile_row, const std::uint32_t*, float (&p)[2][4],
                                             float (&ds)[2][4]) const {
    // Eight rows by two chunks from each lane's address; rows past the tile's last repeat it.
    const int row = min(tile_row + lane / 16 * 8 + lane % 8, others - 1);
    const int of_other = row * layout::cell_stride + lane / 8 % 2 * 8;
    const half* hot = at<half>(layout::one_hot) + of_other;
    const half* met = other_cells(0) + of_other;
    const half* own = own_cells(0) + (warp * 16 + lane % 16) * layout::cell_stride + lane / 16 * 8;
#pragma unroll
    for (int word = 0; word < words; word += 2) {
      std::uint32_t e[4], g[4], a[4];
      load_matrices(e, hot + word * 8);
      load_matrices(a, own + word * 8);
      load_matrices(g, met + word * 8);
      const bool whole = word + 1 < words;
      std::uint32_t h[4] = {own_hot[0][word], own_hot[1][word], 0, 0};
      if (whole) h[2] = own_hot[0][word + 1], h[3] = own_hot[1][word + 1];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (whole) {
          multiply_add_16<half>(p[b], a, e[2 * b], e[2 * b + 1]);
          multiply_add_16<half>(p[b], h, g[2 * b], g[2 * b + 1]);
        } else {
          multiply_add_half_step(p[b], a[0], a[1], e[2 * b]);
          multiply_add_half_step(p[b], h[0], h[1], g[2 * b]);
        }
      }
      if constexpr (query_side)
        load_matrices(a, own + rows * layout::cell_stride + word * 8);
      else
        load_matrices(g, met + others * layout::cell_stride + word * 8);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if constexpr (query_side) {
          if (whole)
            multiply_add_16<half>(ds[b], a, e[2 * b], e[2 * b + 1]);
          else
            multiply_add_half_step(ds[b], a[0], a[1], e[2 * b]);
        } else {
          if (whole)
            multiply_add_16<half>(ds[b], h, g[2 * b], g[2 * b + 1]);
          else
            multiply_add_half_step(ds[b], h[0], h[1], g[2 * b]);
        }
      }
    }
  }

  /// The same on the radial axis; keeps the pairs' rows.
  __device__ __forceinline__ void add_radial(int tile_row, const float* other_radius,
                                             float (&p)[2][4], float (&ds)[2][4]) {
    if constexpr (!Radial) return;
    const half* keys = at<half>(query_side ? layout::other_radial : layout::own_radial);
    const auto* queries = at<half2>(query_side ? layout::own_radial : layout::other_radial);
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
          const float2 query = __half22float2(
              queries[(query_side ? own : other) * layout::query_radial_stride + row]);
          const float key =
              __half2float(keys[(query_side ? other : own) * layout::key_radial_stride + row]);
          p[b][2 * i + c] += query.x + key;
          ds[b][2 * i + c] += query.y;
        }
      }
      radial_rows[b] = packed;
    }
  }

  /// Sums a piece of dS (and of P) up by the other token's cell and by radial row.
  __device__ __forceinline__ void sum_up(int tile_row, const std::uint32_t*, const float (&p)[2][4],
                                         const float (&ds)[2][4]) {
    const weight_fragment<half> gradients(ds);
    const weight_fragment<half> weights(p);
    const half* hot = at<half>(layout::one_hot) +
                      min(tile_row + lane % 16, others - 1) * layout::cell_stride + lane / 16 * 8;
#pragma unroll
    for (int word = 0; word < words; word += 2) {
      std::uint32_t e[4];
      load_matrices_transposed(e, hot + word * 8);
#pragma unroll
      for (int w = 0; w < 2 && word + w < words; ++w) {
        multiply_add_16<half>(cells[0][word + w], gradients.a, e[2 * w], e[2 * w + 1]);
        if constexpr (query_side)
          multiply_add_16<half>(cells[own_count - 1][word + w], weights.a, e[2 * w], e[2 * w + 1]);
      }
    }
    if constexpr (!Radial) return;
    int* gradient_sums = radial_sums(0);
    int* weight_sums = radial_sums(own_count - 1);
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int place_of =
            e / 2 * 8 * layout::radial_stride + static_cast<int>(radial_rows[b] >> (8 * e) & 0xffu);
        total[e / 2] += fabsf(ds[b][e]);
        const int gradient = __float2int_rn(ds[b][e] * gradient_points);
        if (gradient != 0) atomicAdd(gradient_sums + place_of, gradient);
        if constexpr (query_side) {
          const int weight = __float2int_rn(p[b][e] * weight_points);
          if (weight != 0) atomicAdd(weight_sums + place_of, weight);
        }
      }
  }

  /// B of this warp's rows by table row, in T.
  __device__ __forceinline__ void spread(int which, const float (&unit)[2]) const {
    T* target = sums(which) + warp * 16 * layout::sum_stride;
    for (int i = lane; i < 16 * layout::sum_stride / 8; i += 32)
      reinterpret_cast<uint4*>(target)[i] = {0, 0, 0, 0};
    __syncwarp();
    target += place.g * layout::sum_stride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* row = target + i * 8 * layout::sum_stride;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        if (axis == 2 && Radial) {
          for (int r = place.t; r < tile_rows; r += 4)
            row[2 * tile_rows + r] = narrow<T>(
                static_cast<float>(radial_sums(which)[i * 8 * layout::radial_stride + r]) *
                unit[i]);
        } else {
          T* first = row + axis * tile_rows + static_cast<int>(shift[i] >> (8 * axis) & 0xffu) +
                     6 * place.t;
#pragma unroll
          for (int w = 0; w < axis_words; ++w)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              first[2 * w + e] = narrow<T>(cells[which][axis * axis_words + w][2 * i + e]);
        }
      }
    }
    __syncwarp();
  }

  /// sum += B · own table, this warp's rows.
  __device__ __forceinline__ void add_table_term(float (&sum)[math::blocks][4]) const {
    const T* left = sums(0) + (warp * 16 + lane % 16) * layout::sum_stride + lane / 16 * 8;
    const T* right =
        table(query_side ? of_queries : of_keys) + lane % 16 * math::stride + lane / 16 * 8;
#pragma unroll 3
    for (int step = 0; step < steps; ++step) {
      std::uint32_t a[4];
      load_matrices(a, left + step * 16);
#pragma unroll
      for (int block = 0; block < math::blocks; block += 2) {
        std::uint32_t b[4];
        load_matrices_transposed(b, right + step * 16 * math::stride + block * 8);
        multiply_add_16<T>(sum[block], a, b[0], b[1]);
        multiply_add_16<T>(sum[block + 1], a, b[2], b[3]);
      }
    }
  }

  /// Adds Bᵀ · rows times `by` to the block's part: 16 table rows a warp at a time.
  __device__ __forceinline__ void add_to_part(int which, const T* own_rows, float by) const {
    if (parts[which] == nullptr) return;
    const T* right = own_rows + lane % 16 * math::stride + lane / 16 * 8;
    for (int step = base::first_step(which); step < steps; step += warps) {
      float product[math::blocks][4] = {};
      const T* left = sums(which) + (lane % 8 + lane / 16 * 8) * layout::sum_stride + step * 16 +
                      lane / 8 % 2 * 8;
#pragma unroll
      for (int row = 0; row < rows; row += 16) {
        std::uint32_t a[4];
        load_matrices_transposed(a, left + row * layout::sum_stride);
#pragma unroll
        for (int block = 0; block < math::blocks; block += 2) {
          std::uint32_t b[4];
          load_matrices_transposed(b, right + row * math::stride + block * 8);
          multiply_add_16<T>(product[block], a, b[0], b[1]);
          multiply_add_16<T>(product[block + 1], a, b[2], b[3]);
        }
      }
      base::add_product(which, step, product, by);
    }
  }

  /// What the tile's sums give: the table term of dq or dk, and the gradients of tables. All warps
  /// take part, and have passed a barrier since the walk. `weight_unit` and `lower` take the scaling of
  /// P and dS back.
  __device__ __forceinline__ void finish_tile(float (&sum)[math::blocks][4], const T* first,
                                              const T* second, float weight_unit, float lower) {
    float unit[2] = {};
    if (Radial) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        total[i] += __shfl_xor_sync(0xffffffffu, total[i], 1);
        total[i] += __shfl_xor_sync(0xffffffffu, total[i], 2);
        unit[i] = total[i] < largest_sum ? 1.0f / gradient_points : NAN;
      }
    }
    spread(0, unit);
    if constexpr (query_side) {
      unit[0] = unit[1] = 1.0f / weight_points;
      spread(1, unit);
    }
    if (base::own_view().data != nullptr) add_table_term(sum);
    __syncthreads();
    if constexpr (query_side) {
      add_to_part(0, first, problem.scale * lower);
      add_to_part(1, second, weight_unit);
    } else {
      add_to_part(0, first, lower);
    }
    __syncthreads();
  }
};

}  // namespace winnow::detail
