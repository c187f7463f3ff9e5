// SPDX-License-Identifier: Apache-2.0
/// \file
/// Contextual position encoding in the tiles of backward_tile.cuh, for 16-bit storage.
///
/// Tables meet tokens in matrix products; pairs only look up. With R table rows an axis, in half:
///
///     Gq[i, a, r] = s·q_i·Tq[r, a]    Gv[i, a, r] = dO_i·Tv[r, a]    of queries
///     Gk[j, a, r] = k_j·Tk[r, a]                               of keys
///
/// Those of the block's own rows are computed once a tile, those of the other side once for each of
/// its tiles, shared by the warps. A pair adds Gq + Gk to its logit and Gv to dP, nine reads.
///
/// Sums over pairs of one table row go the other way. On linear axes dS (and P, on the query side) is
/// summed by the position of the other token: a product with the one-hot positions of the tile, in
/// registers. Shifted by the own position this is the sum by table row, B[i, a, r]. The radial row is
/// no function of one position; there each lane walks one row of a piece and adds to its own sums in
/// shared memory. At the end of a tile
///
///     dq_i += B·Tq (key side: dk_j += B·Tk),   dTq += Bᵀ·q,  dTv += Bᵀ·dO (dTk += Bᵀ·k)
///
/// over all rows of the block, added to the block's part of the table's gradient in global memory,
/// which stays in L2. Every sum has one owner and one order.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_layout.hpp"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, int D, backward_side Side>
struct contextual_sums {
  using layout = backward_layout<sizeof(T), D, position_encoding::contextual>;
  using math = tile_math<T, D>;
  using places = typename layout::template contextual<Side>;
  static constexpr backward_tuning tuning = layout::tuning;
  static constexpr int threads = tuning.threads();
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr int products = layout::product_stride;
  static constexpr int axis_blocks = tile_rows / 8;
  static constexpr int product_blocks = 3 * axis_blocks;
  static constexpr int cell_blocks = 3 * tile_cells / 8;
  static constexpr int tables = query_side ? 2 : 1;  ///< whose gradients this side sums up
  static constexpr int steps = 3 * tile_rows / 16;

  const backward_problem& problem;
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int group_head, warp, lane;
  lane_place place;
  bool radial;
  int length, table_rows;
  std::uint32_t code[2];  ///< the own rows' positions, ready for one subtraction
  float radius[2];
  int walk_begin, walk_end;  ///< window of row lane % 16, which this lane walks
  float walk_radius;
  float cells[tables][cell_blocks][4];
  bool first_tile = true;

  __device__ __forceinline__ contextual_sums(const backward_problem& problem_,
                                             const backward_group& entry_, int group_head_,
                                             std::byte* memory_)
      : problem(problem_),
        entry(entry_),
        group(entry_.problem),
        memory(memory_),
        group_head(group_head_),
        warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) & 31),
        radial(entry_.problem.kind == relative_kind::spherical),
        length(entry_.problem.quant_length),
        table_rows(2 * length - (radial ? 0 : 1)) {}

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ __forceinline__ half* own_products(int which) const {
    return at<half>(places::own_products) + which * rows * products;
  }
  __device__ __forceinline__ half* other_products(int which) const {
    return at<half>(places::other_products) + which * others * products;
  }
  /// B of the block's rows, in the place of the own products.
  __device__ __forceinline__ T* sums(int which) const {
    return at<T>(places::own_products) + which * rows * products;
  }
  __device__ __forceinline__ float* radial_sums(int which) const {
    return at<float>(places::radial_sums) + (warp * tables + which) * 16 * layout::radial_stride;
  }
  [[nodiscard]] __device__ __forceinline__ const table_view& own_table() const {
    return query_side ? group.table_q : group.table_k;
  }

  __device__ __forceinline__ std::int64_t offset_of(const table_view& table, int axis,
                                                    int row) const {
    return row * table.row_stride + axis * table.axis_stride + group_head * table.head_stride;
  }

  __device__ __forceinline__ T* held_table(int which) const {
    return at<T>(places::table + which * places::table_bytes);
  }
  /// Tables as rows of T for the block's life, padded with zeros.
  __device__ __forceinline__ void load_tables() const {
    const table_view* views[] = {&own_table(), query_side ? &group.table_k : &group.table_q,
                                 &group.table_v};
#pragma unroll
    for (int which = 0; which < places::held_tables; ++which) {
      const table_view& table = *views[which];
      T* target = held_table(which);
      for (int i = static_cast<int>(threadIdx.x); i < 3 * tile_rows * D; i += threads) {
        const int column = i / D;
        const int d = i % D;
        const int row = column % tile_rows;
        float value = 0.0f;
        if (table.data != nullptr && row < table_rows && d < problem.head_dim)
          value = load_element<T>(table.data, table.is_float,
                                  offset_of(table, column / tile_rows, row) + d);
        target[column * math::stride + d] = narrow<T>(value);
      }
    }
  }

  /// 16-column blocks [begin, end) of 16 rows · tableᵀ, a table in shared memory, times `by` into
  /// `out`, which points at the first row.
  __device__ __forceinline__ void multiply_held(const typename math::query& left, int which,
                                                float by, int begin, int end, half* out) const {
#pragma unroll 3
    for (int block = begin; block < end; ++block) {
      float product[2][4] = {};
      math::scores(left, held_table(which), block * 16, 3 * tile_rows - 1, product);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          *reinterpret_cast<std::uint32_t*>(out + (place.g + 8 * i) * products + block * 16 +
                                            b * 8 + 2 * place.t) =
              pack<half>(product[b][2 * i] * by, product[b][2 * i + 1] * by);
    }
  }

  /// Two neighbouring table elements in one register.
  __device__ __forceinline__ std::uint32_t load_pair(const table_view& table,
                                                     std::int64_t index) const {
    if (table.is_float) {
      const float2 pair =
          *reinterpret_cast<const float2*>(static_cast<const float*>(table.data) + index);
      return pack<T>(pair.x, pair.y);
    }
    return *reinterpret_cast<const std::uint32_t*>(static_cast<const T*>(table.data) + index);
  }

  /// Blocks [begin, end) of 16 rows · tableᵀ times `by` into `out`, which points at the first row.
  __device__ __forceinline__ void multiply_table(const typename math::query& left,
                                                 const table_view& table, float by, int begin,
                                                 int end, half* out) const {
#pragma unroll 3
    for (int block = begin; block < end; ++block) {
      const int axis = block / axis_blocks;
      const int row = block % axis_blocks * 8 + place.g;
      float product[4] = {};
      if (table.data != nullptr) {
        const std::int64_t offset = offset_of(table, axis, row) + 2 * place.t;
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          const int d = 16 * step + 2 * place.t;
          const bool exists = row < table_rows;
          const std::uint32_t b0 =
              exists && d < problem.head_dim ? load_pair(table, offset + 16 * step) : 0;
          const std::uint32_t b1 =
              exists && d + 8 < problem.head_dim ? load_pair(table, offset + 16 * step + 8) : 0;
          multiply_add_16<T>(product, left.a[step], b0, b1);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<std::uint32_t*>(out + (place.g + 8 * i) * products + block * 8 +
                                          2 * place.t) =
            pack<half>(product[2 * i] * by, product[2 * i + 1] * by);
    }
  }

  /// Products of the own rows, and empty sums. `up`: what dO is multiplied by.
  __device__ __forceinline__ void begin_tile(const typename math::query& first,
                                             const typename math::query& second,
                                             const int (&slot)[2], const int (&begin)[2],
                                             const int (&end)[2], float up) {
    const std::uint32_t offset = static_cast<std::uint32_t>(length - 1) * 0x010101u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      code[i] = slot[i] >= 0 ? group.positions[slot[i]] : 0;
      if (query_side)
        code[i] += offset;
      else
        code[i] = offset - code[i];
      radius[i] = radial && slot[i] >= 0 ? group.radius[slot[i]] : 0.0f;
    }
    const int source = lane % 8 * 4;
    const bool lower = lane % 16 >= 8;
    const int begins[2] = {__shfl_sync(0xffffffffu, begin[0], source),
                           __shfl_sync(0xffffffffu, begin[1], source)};
    const int ends[2] = {__shfl_sync(0xffffffffu, end[0], source),
                         __shfl_sync(0xffffffffu, end[1], source)};
    const float radii[2] = {__shfl_sync(0xffffffffu, radius[0], source),
                            __shfl_sync(0xffffffffu, radius[1], source)};
    walk_begin = lower ? begins[1] : begins[0];
    walk_end = lower ? ends[1] : ends[0];
    walk_radius = lower ? radii[1] : radii[0];
#pragma unroll
    for (auto& table : cells)
#pragma unroll
      for (auto& block : table)
#pragma unroll
        for (float& x : block) x = 0.0f;
    if (radial)
      for (int i = lane; i < tables * 16 * layout::radial_stride; i += 32) radial_sums(0)[i] = 0.0f;
    half* target = own_products(0) + warp * 16 * products;
    if constexpr (query_side) {
      multiply_held(first, 0, problem.scale, 0, steps, target);
      multiply_table(second, group.table_v, up, 0, product_blocks, target + rows * products);
    } else {
      multiply_held(first, 0, 1.0f, 0, steps, target);
    }
    __syncwarp();
  }

  /// Products and one-hot positions of a tile of the other side. All warps take part; the caller
  /// synchronises before and after.
  __device__ __forceinline__ void prepare_others(const T* first, const T* second,
                                                 const std::uint32_t* codes, float up) const {
    constexpr int groups = others / 16;
    constexpr int jobs = groups * (query_side ? 2 : 4);
    for (int job = warp; job < jobs; job += tuning.warps) {
      const int part = job / groups;
      const int half_of = part % 2;
      const int row = job % groups * 16;
      const bool of_second = part >= 2;
      typename math::query left;
      left.load((of_second ? second : first) + row * math::stride);
      const int begin = half_of == 0 ? 0 : steps / 2;
      const int end = half_of == 0 ? steps / 2 : steps;
      if (query_side)
        multiply_held(left, 1, 1.0f, begin, end, other_products(0) + row * products);
      else
        multiply_held(left, of_second ? 2 : 1, of_second ? up : problem.scale, begin, end,
                      other_products(of_second ? 1 : 0) + row * products);
    }
    constexpr int pieces = 3 * tile_cells / 8;
    for (int i = static_cast<int>(threadIdx.x); i < others * pieces; i += threads) {
      const int row = i / pieces;
      const int piece = i % pieces;
      const int cell =
          unpack_position(codes[row], piece / (tile_cells / 8)) - piece % (tile_cells / 8) * 8;
      const std::uint32_t one = 0x3c00u << (16 * (cell & 1));
      *reinterpret_cast<uint4*>(at<half>(places::one_hot) + row * layout::one_hot_stride +
                                piece * 8) = {cell >> 1 == 0 ? one : 0u, cell >> 1 == 1 ? one : 0u,
                                              cell >> 1 == 2 ? one : 0u, cell >> 1 == 3 ? one : 0u};
    }
  }

  /// What the tables add to a pair's logit, and to its dP times `up`.
  struct pair_terms {
    float logit, dp;
  };
  /// \param i own row g or g + 8. \param other the other token's row in its tile.
  __device__ __forceinline__ pair_terms look_up(int i, int other, std::uint32_t other_code,
                                                float other_radius) const {
    const std::uint32_t difference = query_side ? code[i] - other_code : code[i] + other_code;
    const int x = static_cast<int>(difference & 0xffu);
    const int y = tile_rows + static_cast<int>(difference >> 8 & 0xffu);
    const int z = 2 * tile_rows + (radial ? exponential_row(query_side ? radius[i] - other_radius
                                                                       : other_radius - radius[i],
                                                            group.inverse_a, length)
                                          : static_cast<int>(difference >> 16));
    const int own_row = (warp * 16 + place.g + 8 * i) * products;
    const int other_row = other * products;
    const half* gq = query_side ? own_products(0) + own_row : other_products(0) + other_row;
    const half* gk = query_side ? other_products(0) + other_row : own_products(0) + own_row;
    const half* gv = query_side ? own_products(1) + own_row : other_products(1) + other_row;
    return {(widen(gq[x]) + widen(gk[x])) + (widen(gq[y]) + widen(gk[y])) +
                (widen(gq[z]) + widen(gk[z])),
            widen(gv[x]) + widen(gv[y]) + widen(gv[z])};
  }

  /// Sums a piece of weights up by position: `values` of rows [row, row + 16) of the tile.
  __device__ __forceinline__ void add_cells(int which, const float (&values)[2][4], int row) {
    const half* source =
        at<half>(places::one_hot) + min(row + lane % 16, others - 1) * layout::one_hot_stride;
    multiply_rows<half, cell_blocks>(weight_fragment<half>(values), source, cells[which]);
  }

  /// The same by radial row. Slots from `from` on lie at `row` of the tile; those from `last` on do
  /// not count.
  __device__ __forceinline__ void add_radial(const float (&ds)[2][4], const float (&p)[2][4],
                                             const float* other_radius, int from, int last) {
    auto* piece = at<std::uint32_t>(places::radial_piece) + warp * 16 * layout::piece_stride;
    __syncwarp();
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        piece[(place.g + e / 2 * 8) * layout::piece_stride + b * 8 + 2 * place.t + (e & 1)] =
            pack<half>(ds[b][e], p[b][e]);
    __syncwarp();
    const int which = lane / 16;
    if (which >= tables) return;
    float* row_sums = radial_sums(which) + lane % 16 * layout::radial_stride;
    const int column_end = min(min(walk_end, last) - from, 16);
    for (int column = max(walk_begin - from, 0); column < column_end; ++column) {
      const float r = other_radius[column];
      const int z =
          exponential_row(query_side ? walk_radius - r : r - walk_radius, group.inverse_a, length);
      const half* pair =
          reinterpret_cast<const half*>(piece + lane % 16 * layout::piece_stride + column);
      row_sums[z] += widen(pair[which]);
    }
  }

  /// B of this warp's rows by table row, in T; all of the warp's products have been read.
  __device__ __forceinline__ void spread(int which) const {
    T* target = sums(which) + warp * 16 * products;
    for (int i = lane; i < 16 * products / 8; i += 32)
      reinterpret_cast<uint4*>(target)[i] = {0, 0, 0, 0};
    __syncwarp();
#pragma unroll
    for (int block = 0; block < cell_blocks; ++block) {
      const int axis = block / (tile_cells / 8);
      if (radial && axis == 2) break;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = e / 2;
        const int cell = block % (tile_cells / 8) * 8 + 2 * place.t + (e & 1);
        const int own = static_cast<int>(code[i] >> (8 * axis) & 0xffu);
        // Query side: p_i + L - 1 - cell; key side: cell + L - 1 - p_j.
        const int row = query_side ? own - cell : own + cell;
        if (cell < length && row >= 0 && row < tile_rows)
          target[(place.g + 8 * i) * products + axis * tile_rows + row] =
              narrow<T>(cells[which][block][e]);
      }
    }
    if (radial)
      for (int i = lane; i < 16 * tile_rows; i += 32)
        target[i / tile_rows * products + 2 * tile_rows + i % tile_rows] =
            narrow<T>(radial_sums(which)[i / tile_rows * layout::radial_stride + i % tile_rows]);
    __syncwarp();
  }

  /// sum += B · own table, this warp's rows.
  __device__ __forceinline__ void add_table_term(float (&sum)[math::blocks][4]) const {
    const T* left = sums(0) + (warp * 16 + lane % 16) * products + lane / 16 * 8;
    const T* right = held_table(0) + lane % 16 * math::stride + lane / 16 * 8;
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
  __device__ __forceinline__ void add_to_part(int which, const T* own_rows, float* part,
                                              float by) const {
    if (part == nullptr) return;
    const int dim = problem.head_dim;
    for (int step = warp; step < steps; step += tuning.warps) {
      float product[math::blocks][4] = {};
      const T* left =
          sums(which) + (lane % 8 + lane / 16 * 8) * products + step * 16 + lane / 8 % 2 * 8;
      const T* right = own_rows + lane % 16 * math::stride + lane / 16 * 8;
#pragma unroll
      for (int row = 0; row < rows; row += 16) {
        std::uint32_t a[4];
        load_matrices_transposed(a, left + row * products);
#pragma unroll
        for (int block = 0; block < math::blocks; block += 2) {
          std::uint32_t b[4];
          load_matrices_transposed(b, right + row * math::stride + block * 8);
          multiply_add_16<T>(product[block], a, b[0], b[1]);
          multiply_add_16<T>(product[block + 1], a, b[2], b[3]);
        }
      }
      const int axis = step / (tile_rows / 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = step % (tile_rows / 16) * 16 + place.g + 8 * i;
        if (row >= table_rows) continue;
        float* target = part + (axis * table_rows + row) * dim + 2 * place.t;
#pragma unroll
        for (int block = 0; block < math::blocks; ++block) {
          if (block * 8 >= dim) break;
          auto* pair = reinterpret_cast<float2*>(target + block * 8);
          float2 value = {product[block][2 * i] * by, product[block][2 * i + 1] * by};
          if (!first_tile) {
            const float2 old = *pair;
            value.x += old.x;
            value.y += old.y;
          }
          *pair = value;
        }
      }
    }
  }

  __device__ __forceinline__ float* part_of(float* parts, int part) const {
    if (parts == nullptr) return nullptr;
    return parts + (std::int64_t{group_head} * problem.blocks_per_head + part) * 3 * table_rows *
                       problem.head_dim;
  }

  /// What the tile's sums give: the table term of dq or dk, and the gradients of tables. All warps
  /// take part. `weight_unit` and `lower` take the scaling of P and dS back.
  __device__ __forceinline__ void finish_tile(float (&sum)[math::blocks][4], const T* first,
                                              const T* second, int part, float weight_unit,
                                              float lower) {
    __syncwarp();
    spread(0);
    if constexpr (query_side) spread(1);
    if (own_table().data != nullptr) add_table_term(sum);
    __syncthreads();
    if constexpr (query_side) {
      add_to_part(0, first, part_of(entry.parts.table_q, part), problem.scale * lower);
      add_to_part(1, second, part_of(entry.parts.table_v, part), weight_unit);
    } else {
      add_to_part(0, first, part_of(entry.parts.table_k, part), lower);
    }
    first_tile = false;
    __syncthreads();
  }

  /// A block without tiles has parts of zero.
  __device__ __forceinline__ void finish_block(int part) const {
    if (!first_tile) return;
    float* parts[] = {part_of(query_side ? entry.parts.table_q : entry.parts.table_k, part),
                      part_of(query_side ? entry.parts.table_v : nullptr, part)};
    for (float* target : parts)
      for (int i = static_cast<int>(threadIdx.x);
           target != nullptr && i < 3 * table_rows * problem.head_dim; i += threads)
        target[i] = 0.0f;
  }
};

}  // namespace winnow::detail
