// SPDX-License-Identifier: Apache-2.0
/// \file
/// Contextual position encoding as a policy of the forward kernel.
///
/// The tables meet tokens in matrix products; pairs only look up. With R table rows an axis:
///
/// * query side: Gq[i, a, r] = q_i·Tq[r, a] for all r, one product per 16 rows,
/// * key side:   Gk[j, a, r] = k_j·Tk[r, a], one product per 16 keys of a key tile, shared by the
///   block's warps. On linear axes both are stored by the position of the other token, r being
///   p_i - p_j + L - 1: half the rows, and a pair's place is known without the pair,
/// * pair:       logit += Σ_a Gq[i, a, p_j] + Gk[j, a, p_i], six reads of shared memory. The radial
///   axis keeps all its rows and finds r from the pair,
/// * value side: on linear axes weights are summed by the position of the key, B[i, a, p] =
///   Σ_{j: p_j = p} P_ij, a product of P with the keys' one-hot positions; at the end B shifted by
///   p_i, indexed by table row, times Tv. The radial row is no function of p_j, so its weights are
///   added up in shared memory, in fixed point: integer sums are the same in any order.
///
/// Gq and Gk stay in FP32, because a logit's absolute error is the result's relative error.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/encoding.cuh"

namespace winnow::detail {

template <class T, int D>
struct contextual_encoding {
  using layout = forward_layout<sizeof(T), D, position_encoding::contextual>;
  using math = tile_math<T, D>;
  static constexpr int threads = layout::tuning.threads();
  static constexpr int warps = layout::tuning.warps;
  static constexpr int axis_blocks = tile_rows / 8;       ///< accumulator blocks of one axis of G
  static constexpr int cell_blocks = 3 * tile_cells / 8;  ///< of B
  static constexpr int linear_blocks = 2 * tile_cells / 8;

  const row_context& context;
  int group_head;
  bool radial;
  int products;  ///< floats between tokens in Gq and Gk
  int length;
  float factor;
  static constexpr bool unscaled = false;
  std::uint32_t row_code[2];
  float row_radius[2];
  float* query_products;  ///< rows g and g + 8 of this warp, at row g
  const float* key_products;
  const half* one_hot;
  std::uint32_t* radial_sums;  ///< row g of this warp
  float fixed_point[2];
  std::uint32_t radial_rows[2 * layout::tuning.units];  ///< four packed rows per block of a step
  float cells[cell_blocks][4];

  __device__ __forceinline__ contextual_encoding(const row_context& context_, std::byte* memory)
      : context(context_),
        group_head(context_.first_head),
        radial(context_.group.kind == relative_kind::spherical),
        products(layout::products(radial)),
        length(context_.group.quant_length),
        factor(context_.problem.scale * log2_e),
        key_products(reinterpret_cast<const float*>(memory + layout::key_products)),
        one_hot(reinterpret_cast<const half*>(memory + layout::one_hot)) {
    const lane_place place;
    const int tile_row = static_cast<int>(threadIdx.x) / 32 * 16 + place.g;
    query_products =
        reinterpret_cast<float*>(memory + layout::query_products(radial)) + tile_row * products;
    radial_sums = reinterpret_cast<std::uint32_t*>(memory + layout::radial_sums(radial)) +
                  tile_row * layout::radial_stride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int slot = context.slot[i];
      const std::uint32_t offset = static_cast<std::uint32_t>(length - 1) * 0x010101u;
      row_code[i] = (slot >= 0 ? context.group.positions[slot] : 0) + offset;
      row_radius[i] = radial && slot >= 0 ? context.group.radius[slot] : 0.0f;
      fixed_point[i] = 0.0f;
      if (!radial || slot < 0) continue;
      // The weights of n keys sum to at most n·2^slack, which has to stay below 2³².
      const int keys = context.group.bounds[2 * std::int64_t{slot} + 1] -
                       context.group.bounds[2 * std::int64_t{slot}];
      fixed_point[i] =
          exp2f(static_cast<float>(__clz(keys) - 1 - static_cast<int>(softmax_state::slack)));
    }
  }

  static __device__ __forceinline__ bool needs_codes(const group_problem&) {
    return true;
  }
  static __device__ __forceinline__ std::uint32_t code(const group_problem&,
                                                       packed_position position) {
    return position;
  }

  /// 16 rows · tableᵀ into `out`, which points at row g: of each axis the part-th of `parts` shares of
  /// its blocks. `codes` are the places of rows g and g + 8, for queries as in `row_code`.
  template <bool OfKeys>
  __device__ __forceinline__ void multiply_table(const T* rows, const table_view& table,
                                                 const std::uint32_t (&codes)[2], int part,
                                                 int parts, float* out) const {
    const int share = (axis_blocks + parts - 1) / parts;
    const int begin = part * share;
    const int end = min(axis_blocks, begin + share);
    if (table.data == nullptr) {
      for (int column = static_cast<int>(threadIdx.x) & 3; column < products; column += 4)
        for (int i = 0; i < 2; ++i) out[i * 8 * products + column] = 0.0f;
    } else if (table.is_float) {
      multiply_blocks<OfKeys, true>(rows, table, codes, begin, end, out);
    } else {
      multiply_blocks<OfKeys, false>(rows, table, codes, begin, end, out);
    }
  }
  template <bool OfKeys, bool IsFloat>
  __device__ __forceinline__ void multiply_blocks(const T* rows, const table_view& table,
                                                  const std::uint32_t (&codes)[2], int begin,
                                                  int end, float* out) const {
    const lane_place place;
    const int last = (radial ? 2 * length : 2 * length - 1) - 1;
    typename math::factor left;
    left.load(rows);
    constexpr int steps = D / 16;
    // Blocks whose elements are requested together; warps share the blocks of a key's axis.
    constexpr int held = steps > 2 ? 1 : steps == 1 && !OfKeys ? axis_blocks : axis_blocks / 2;
    // Offsets of tables in tiles fit 32 bits.
    const int row_stride = static_cast<int>(table.row_stride);
    const int inside = context.problem.head_dim - 4 * place.t;
    int offset = group_head * static_cast<int>(table.head_stride) + 4 * place.t;
#pragma unroll 1
    for (int axis = 0; axis < 3; ++axis) {
      const bool by_radius = radial && axis == 2;
      const int limit = by_radius ? tile_rows : tile_cells;
      const int step_of_row = OfKeys || by_radius ? 1 : -1;
      // Where this lane's first element would go; the second lies one step further.
      int first[2];
      float* target[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        first[i] = by_radius ? 0
                             : static_cast<int>(codes[i] >> (8 * axis) & 0xffu) -
                                   (OfKeys ? length - 1 : 0);
        first[i] += step_of_row * (begin * 8 + 2 * place.t);
        target[i] = out + i * 8 * products + axis * tile_cells + first[i];
      }
#pragma unroll 1
      for (int block = begin; block < end; block += held) {
        typename math::quad right[held][steps];
#pragma unroll
        for (int h = 0; h < held; ++h) {
          // Rows behind the table's last are never looked up; any element serves.
          const int row = min((block + h) * 8 + place.g, last) * row_stride + offset;
#pragma unroll
          for (int step = 0; step < steps; ++step)
            right[h][step] = 16 * step < inside
                                 ? math::load_quad(table.data, IsFloat, row + 16 * step)
                                 : typename math::quad{};
        }
#pragma unroll
        for (int h = 0; h < held; ++h) {
          if (h > 0 && block + h >= end) break;
          float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
          for (int step = 0; step < steps; ++step)
            math::multiply(left, step, right[h][step], product);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (static_cast<unsigned>(first[i]) < static_cast<unsigned>(limit))
              *target[i] = product[2 * i];
            if (static_cast<unsigned>(first[i] + step_of_row) < static_cast<unsigned>(limit))
              target[i][step_of_row] = product[2 * i + 1];
            first[i] += 8 * step_of_row;
            target[i] += 8 * step_of_row;
          }
        }
      }
      offset += static_cast<int>(table.axis_stride);
    }
  }

  /// Turns to the block's h-th head, whose q rows of this warp are given: sums of nothing, and Gq.
  __device__ __forceinline__ void begin_head(const row_context&, int h, std::byte*, const T* rows) {
    group_head = context.first_head + h;
#pragma unroll
    for (auto& block : cells)
#pragma unroll
      for (float& sum : block) sum = 0.0f;
    if (radial) {
      const int t = static_cast<int>(threadIdx.x) & 3;
      for (int r = t; r < tile_rows; r += 4)
#pragma unroll
        for (int i = 0; i < 2; ++i) radial_sums[i * 8 * layout::radial_stride + r] = 0;
    }
    multiply_table<false>(rows, context.group.table_q, row_code, 0, 1, query_products);
    __syncwarp();
  }
  [[nodiscard]] __device__ __forceinline__ bool skips_interior() const {
    return false;
  }

  /// Gk and one-hot positions of the `count` keys of a tile. All warps take part; the caller
  /// synchronises.
  __device__ __forceinline__ void prepare_keys(std::byte* memory, int stage, int count) {
    constexpr int groups = layout::keys / 16;
    static_assert(warps % groups == 0);
    const lane_place place;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int group = warp % groups;
    const auto* codes = reinterpret_cast<const std::uint32_t*>(memory + layout::key_code) +
                        stage * layout::code_stride;
    if (group * 16 < count) {
      const std::uint32_t own[2] = {codes[group * 16 + place.g], codes[group * 16 + place.g + 8]};
      multiply_table<true>(
          reinterpret_cast<const T*>(memory + layout::key_tiles + 2 * stage * layout::tile_bytes) +
              group * 16 * math::stride,
          context.group.table_k, own, warp / groups, warps / groups,
          const_cast<float*>(key_products) + (group * 16 + place.g) * products);
    }

    constexpr int chunks = 3 * tile_cells / 8;
    const int rows = min(layout::keys, count + 15);
    for (int i = static_cast<int>(threadIdx.x); i < rows * chunks; i += threads) {
      const int key = i / chunks;
      const int chunk = i % chunks;
      const int cell =
          unpack_position(codes[key], chunk / (tile_cells / 8)) - chunk % (tile_cells / 8) * 8;
      const std::uint32_t one = 0x3c00u << (16 * (cell & 1));
      const uint4 bits = {cell >> 1 == 0 ? one : 0u, cell >> 1 == 1 ? one : 0u,
                          cell >> 1 == 2 ? one : 0u, cell >> 1 == 3 ? one : 0u};
      *reinterpret_cast<uint4*>(const_cast<half*>(one_hot) + key * layout::one_hot_stride +
                                chunk * 8) = bits;
    }
  }

  __device__ __forceinline__ void score(float (&s)[2][4], const piece_place& place,
                                        const std::uint32_t* key_code, const float* key_radius,
                                        int unit) {
    const float* row_products[2] = {query_products, query_products + 8 * products};
    int row_place[2][3];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int axis = 0; axis < 3; ++axis)
        row_place[i][axis] =
            static_cast<int>(row_code[i] >> (8 * axis) & 0xffu) - (length - 1) + axis * tile_cells;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      std::uint32_t packed = 0;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // Codes behind the tile's last key are read and not used.
        const int key = place.tile_key + place.key(b, j);
        const float* gk = key_products + key * products;
        const std::uint32_t code = key_code[key];
        const std::uint32_t x = code & 0xffu;
        const std::uint32_t y = (code >> 8 & 0xffu) + tile_cells;
        const std::uint32_t z = (code >> 16 & 0xffu) + 2 * tile_cells;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& logit = s[b][2 * i + j];
          const bool attends = place.in_window(b, 2 * i + j);
          int of_row = row_place[i][2];
          int of_key = static_cast<int>(z);
          if (radial) {
            const int r =
                exponential_row(row_radius[i] - key_radius[key], context.group.inverse_a, length);
            packed |= static_cast<std::uint32_t>(r) << (8 * (2 * i + j));
            of_row = of_key = r + 2 * tile_cells;
          }
          float query_side = logit;
          float key_side = 0.0f;
          if (attends) {
            const float* gq = row_products[i];
            query_side += gq[x] + gq[y] + gq[of_key];
            key_side = gk[row_place[i][0]] + gk[row_place[i][1]] + gk[of_row];
          }
          logit = attends ? query_side * factor + key_side * log2_e : -INFINITY;
        }
      }
      radial_rows[2 * unit + b] = packed;
    }
  }

  /// Rows g and g + 8 by their factors, whatever has been summed up.
  __device__ __forceinline__ void rescale(const float (&by)[2]) {
#pragma unroll
    for (auto& block : cells)
#pragma unroll
      for (int e = 0; e < 4; ++e) block[e] *= by[e / 2];
    if (!radial) return;
    __syncwarp();
    const int t = static_cast<int>(threadIdx.x) & 3;
    for (int r = t; r < tile_rows; r += 4)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t& sum = radial_sums[i * 8 * layout::radial_stride + r];
        sum = __float2uint_rn(__uint2float_rn(sum) * by[i]);
      }
    __syncwarp();
  }

  __device__ __forceinline__ void add_weights(const float (&p)[2][4], int first, int last,
                                              int unit) {
    if (context.group.table_v.data == nullptr) return;
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const half* row = one_hot + min(first + lane % 16, last) * layout::one_hot_stride;
    add_cells(weight_fragment<half>(p), row);
    if constexpr (sizeof(T) == 4) {
      float rest[2][4];
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) rest[b][e] = p[b][e] - __half2float(__float2half_rn(p[b][e]));
      add_cells(weight_fragment<half>(rest), row);
    }
    if (!radial) return;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::uint32_t r = radial_rows[2 * unit + b] >> (8 * e) & 0xffu;
        const std::uint32_t weight = __float2uint_rn(p[b][e] * fixed_point[e / 2]);
        if (weight != 0) atomicAdd(radial_sums + e / 2 * 8 * layout::radial_stride + r, weight);
      }
  }

  /// Adds Σ_a B·Tv to rows that are normalised already; `by` normalises B.
  __device__ __forceinline__ void finish(std::byte* memory, const float (&by)[2],
                                         float (&o)[math::blocks][4]) {
    if (context.group.table_v.data == nullptr) return;
    const lane_place place;
    // One axis of B after the other takes the place of Gq, as a factor for Tv: row i, column
    // p - p_i + L - 1. Tv is read from its last row to its first for that, except by radius.
    constexpr int stride = tile_rows + 4;
    static_assert(stride <= layout::linear_products);
    float* weights = query_products - place.g * products;
    float* own = weights + place.g * stride;
    T* table = reinterpret_cast<T*>(memory + layout::value_table);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      __syncwarp();
      for (int i = place.lane * 4; i < 16 * stride; i += 32 * 4)
        *reinterpret_cast<float4*>(weights + i) = {0.0f, 0.0f, 0.0f, 0.0f};
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* row = own + i * 8 * stride;
        if (axis == 2 && radial) {
          if (fixed_point[i] == 0.0f) continue;
          const float unit = by[i] / fixed_point[i];
          for (int r = place.t; r < tile_rows; r += 4)
            row[r] = __uint2float_rn(radial_sums[i * 8 * layout::radial_stride + r]) * unit;
        } else {
          row += 2 * (length - 1) - unpack_position(row_code[i], axis) + 2 * place.t;
#pragma unroll
          for (int block = 0; block < tile_cells / 8; ++block)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              row[block * 8 + e] = cells[axis * tile_cells / 8 + block][2 * i + e] * by[i];
        }
      }
      const int held = axis % layout::value_axes;
      if (held == 0) {
        __syncthreads();
        load_value_table(table, axis, min(3 - axis, layout::value_axes));
        __syncthreads();
      }
      __syncwarp();
#pragma unroll
      for (int step = 0; step < tile_rows; step += 16) {
        const float* row = own + step + 2 * place.t;
        float p[2][4];
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float2 pair = *reinterpret_cast<const float2*>(row + i * 8 * stride + b * 8);
            p[b][2 * i] = pair.x;
            p[b][2 * i + 1] = pair.y;
          }
        math::values(p, table + held * tile_rows * math::stride, step, tile_rows - 1, o);
      }
    }
  }

 private:
  __device__ __forceinline__ void add_cells(const weight_fragment<half>& weights, const half* row) {
    const int column = (static_cast<int>(threadIdx.x) & 31) / 16 * 8;
#pragma unroll
    for (int block = 0; block < cell_blocks; block += 2) {
      if (block >= linear_blocks && radial) break;
      std::uint32_t b[4];
      load_matrices_transposed(b, row + block * 8 + column);  // the padding takes block 9
      multiply_add_16<half>(cells[block], weights.a, b[0], b[1]);
      if (block + 1 < cell_blocks) multiply_add_16<half>(cells[block + 1], weights.a, b[2], b[3]);
    }
  }

  /// Tv of `axes` axes, rows of T padded with zeros to tile_rows by D; linear axes backwards.
  __device__ __forceinline__ void load_value_table(T* target, int first_axis, int axes) const {
    const table_view& table = context.group.table_v;
    const int last = (radial ? 2 * length : 2 * length - 1) - 1;
    const int dim = context.problem.head_dim;
    constexpr int width = 16 / sizeof(T);
    constexpr int chunks = D / width;
    const int column = static_cast<int>(threadIdx.x) % chunks * width;
    for (int axis = 0; axis < axes; ++axis) {
      const bool backwards = !radial || first_axis + axis < 2;
      for (int row = static_cast<int>(threadIdx.x) / chunks; row < tile_rows;
           row += threads / chunks) {
        // Linear axes have 2L - 1 rows, whatever the table has.
        const int source = backwards ? 2 * (length - 1) - row : row;
        const std::int64_t offset = source * table.row_stride +
                                    (first_axis + axis) * table.axis_stride +
                                    group_head * table.head_stride + column;
        uint4 bits = {0, 0, 0, 0};
        if (source >= 0 && source <= last && column < dim) {
          if (table.vectors && !table.is_float) {
            bits = *reinterpret_cast<const uint4*>(static_cast<const T*>(table.data) + offset);
          } else {
            T elements[width];
#pragma unroll
            for (int e = 0; e < width; ++e)
              elements[e] = narrow<T>(load_element<T>(table.data, table.is_float, offset + e));
            memcpy(&bits, elements, sizeof bits);
          }
        }
        *reinterpret_cast<uint4*>(target + (axis * tile_rows + row) * math::stride + column) = bits;
      }
    }
  }
};

}  // namespace winnow::detail
