// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of short windows with contextual position encoding in one pass, for 16-bit storage and head
/// dim 16.
///
/// What one block computes: the windows of up to 64 tokens that start in ranges of slots, of one head,
/// four tiles of 16 rows at a time, one a warp. A tile holds as many whole windows as fit it; a longer
/// window takes several tiles of one turn. So pairs meet only tiles of their own window, each pair once:
///
///     S = q·kᵀ + Gq·Eᵀ + E·Gkᵀ      dP = dO·vᵀ + Gv·Eᵀ
///     dq = dS·k + B(dS)·Tq           dk = dSᵀ·q + B(dSᵀ)·Tk        dv = Pᵀ·dO
///     dTq = B(dS)ᵀ·q                 dTk = B(dSᵀ)ᵀ·k               dTv = B(P)ᵀ·dO
///
/// with G, E and B as in backward_contextual_tables.cuh: products of tokens and tables by the other's
/// cell, one-hot cells, and sums by table row. Each token meets each table once, where two sides need
/// seven products a token. Products move between table rows and cells in registers
/// (contextual_products.cuh), hence the order of the tables in shared memory. A warp first is the queries
/// of its tile and leaves dS and P of its pieces in shared memory, then it is the keys.
///
/// Registers: products of the tile's queries, sums by cell. Shared memory: tables, rows
/// of q, k, v and dO, one-hot cells and products of keys, pieces; later sums by table row.
///
/// Sums of tables leave for the block's part in global memory, each element by one thread in order. Windows
/// longer than 64 tokens are left to backward_contextual.cuh, which adds to the same parts.
///
/// Bound by instructions: about 1,600 for a tile with one piece.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual_layout.hpp"
#include "winnow/detail/attention/backward_contextual_memory.cuh"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

template <class T, bool Radial>
struct contextual_window_differentiator {
  using layout = contextual_window_layout<Radial>;
  static constexpr int tiles = layout::tiles;
  static constexpr int threads = 32 * tiles;
  static constexpr int capacity = 16 * tiles;
  static constexpr int words = layout::cell_axes * cell_words;  ///< of a lane for a row of cells
  static constexpr int width = 8;                               ///< elements of a vector
  static constexpr unsigned all_lanes = 0xffffffffu;
  /// P times 2^this is rounded: P of rare keys is below half's normal numbers.
  static constexpr float weight_shift = 10.0f;
  static constexpr float weight_unit = 0x1p-10f;
  /// Fixed point of radial sums: as in backward_contextual_tables.cuh.
  static constexpr float weight_points = 0x1p20f;
  static constexpr float gradient_points = 0x1p17f;
  static constexpr float largest_sum = 0x1p13f;
  enum { queries, keys, grads };

  const backward_rows& problem;
  const backward_problem& whole;  ///< for rows that are computed again
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int group_head;
  int part;  ///< the block's number among those of its head
  int head = group.first_head + group_head;
  int length = group.quant_length;
  int table_rows = 2 * length - (Radial ? 0 : 1);
  int assigned = group.counts->assigned;
  const std::int32_t* order = group.order;
  const int2* bounds = reinterpret_cast<const int2*>(group.bounds);
  int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0);
  lane_place place;
  /// Where this lane's rows of 32 bytes begin for `ldmatrix`: of left factors and transposed right ones,
  /// and of right ones.
  int left_offset =
      place.lane % 16 * layout::row_bytes + (place.lane / 16 ^ (place.lane >> 2 & 1)) * 16;
  int right_offset = (place.lane / 16 * 8 + place.lane % 8) * layout::row_bytes +
                     ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
  /// The same of rows of cells, two words at a time.
  int turned_cells = place.lane % 16 * layout::cell_bytes + place.lane / 16 * 16;
  int right_cells =
      (place.lane / 16 * 8 + place.lane % 8) * layout::cell_bytes + (place.lane >> 3 & 1) * 16;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  /// Of q, k or dO.
  __device__ __forceinline__ std::byte* rows_of_tile(int which, int tile) const {
    return memory + layout::rows + (which * tiles + tile) * layout::tile_bytes;
  }
  /// Everything else of a tile.
  __device__ __forceinline__ std::byte* region(int tile) const {
    return memory + layout::regions + tile * layout::region_bytes;
  }
  static constexpr int of_queries = 0, of_keys = 1, of_values = 2;
  __device__ __forceinline__ std::byte* table(int which) const {
    return memory + layout::tables + which * layout::table_bytes;
  }
  /// The sums by table row of dTq, dTv and dTk, of a tile.
  __device__ __forceinline__ std::byte* sums(int tile, int which) const {
    return region(tile) + (which == 2 ? layout::key_sums : which * layout::sums_bytes);
  }
  static __device__ __forceinline__ bool linear(int axis) { return axis < layout::cell_axes; }

  // --- Tables ----------------------------------------------------------------------------------

  /// Table row of `place_of` an axis in shared memory: linear axes in the order of row_shift, and
  /// backwards in Tq and Tv, so that cells ascend with rows.
  [[nodiscard]] __device__ __forceinline__ int row_at(int which, int axis, int place_of) const {
    if (!linear(axis)) return place_of;
    const int row = (place_of & ~7) + spread(place_of & 7);
    return which == of_keys ? row : 2 * (length - 1) - row;
  }
  __device__ __forceinline__ void stage_table(int which, const table_view& view) const {
    for (int i = static_cast<int>(threadIdx.x); i < 3 * tile_rows * 2; i += threads) {
      const int position = i / 2;
      const int d = i % 2 * width;
      const int axis = position / tile_rows;
      const int row = row_at(which, axis, position % tile_rows);
      uint4 bits = {0, 0, 0, 0};
      if (view.data != nullptr && row >= 0 && row < table_rows && d < problem.head_dim) {
        const std::int64_t offset =
            row * view.row_stride + axis * view.axis_stride + group_head * view.head_stride + d;
        if (view.vectors && !view.is_float) {
          bits = *reinterpret_cast<const uint4*>(static_cast<const T*>(view.data) + offset);
        } else {
          T elements[width];
#pragma unroll
          for (int e = 0; e < width; ++e)
            elements[e] = narrow<T>(load_element<T>(view.data, view.is_float, offset + e));
          memcpy(&bits, elements, sizeof bits);
        }
      }
      *reinterpret_cast<uint4*>(table(which) + position * layout::row_bytes +
                                ((i % 2) ^ (position >> 2 & 1)) * 16) = bits;
    }
  }

  /// Sums of dTq, dTv and dTk come in blocks of 16 table rows, three an axis. A warp adds up every fourth
  /// block, the same ones in all turns.
  static constexpr int axis_blocks = tile_rows / 16;
  static constexpr int blocks = 3 * axis_blocks;
  [[nodiscard]] __device__ __forceinline__ int first_block(int which) const {
    return (warp + which) % tiles;
  }
  /// Row g + 8·i of a block of sums, in the table's axis; there may be no such row.
  [[nodiscard]] __device__ __forceinline__ int row_of_sums(int which, int block, int i) const {
    const int g = place.g;
    const bool by_cell = linear(block / axis_blocks);
    const int row = block % axis_blocks * 16 + 8 * (g >> 1 & 1) +
                    (by_cell ? 4 * (g & 1) + (g >> 2) + 2 * i : 2 * (g >> 2) + (g & 1) + 4 * i);
    return which < 2 && by_cell ? 2 * (length - 1) - row : row;
  }
  __device__ __forceinline__ float* part_of(int which) const {
    float* base = which == 0   ? entry.parts.table_q
                  : which == 1 ? entry.parts.table_v
                               : entry.parts.table_k;
    if (base == nullptr) return nullptr;
    return base + (std::int64_t{group_head} * problem.parts_per_head + part) * 3 * table_rows *
                      problem.head_dim;
  }
  __device__ __forceinline__ void begin_block() const {
    stage_table(of_queries, group.table_q);
    stage_table(of_keys, group.table_k);
    stage_table(of_values, group.table_v);
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target == nullptr) continue;
      for (int i = static_cast<int>(threadIdx.x); i < 3 * table_rows * problem.head_dim;
           i += threads)
        target[i] = 0.0f;
    }
  }

  // --- Which rows ------------------------------------------------------------------------------

  /// Four tiles, and this warp's.
  struct turn {
    int first = 0;  ///< slot of the tile's first row
    int count = 0;  ///< its rows; 0: the warp has none
    int base = 0;   ///< the tiles [base, base + width) hold its windows
    int width = 0;
    int used = 0;               ///< tiles that hold rows; 0: the block has done all
    bool long_windows = false;  ///< some window takes several tiles
  };
  /// Which windows are next: those from slot `from` on that start before slot `until`.
  struct cursor {
    int number;  ///< of the range
    int from, until;
  };
  /// Plans a turn with the next windows of the range, by one warp. \return tiles with rows
  __device__ __forceinline__ int fill_tiles(cursor& next) const {
    const int from = next.from;
    const int until = next.until;
    // Bit s: in slot from + 1 + s starts a window, or the last has ended there.
    std::uint64_t starts = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = from + 1 + 32 * half + place.lane;
      const bool mark = slot < assigned ? bounds[slot].x == slot : slot == assigned;
      starts |= std::uint64_t{__ballot_sync(all_lanes, mark)} << (32 * half);
    }
    if (until - from <= 64) {
      // Of the starts from `until` on, the first ends this range's last window.
      const int bit = until - from - 1;
      const std::uint64_t behind = starts >> bit << bit;
      starts = (starts ^ behind) | (behind & (0 - behind));
    }
    int done = 0;
    int used = 0;
    bool long_windows = false;
    int4 tile = {0, 0, 0, 0};  // the one that this lane writes down
    while (used < tiles && done < 64 && from + done < until) {
      const unsigned near = static_cast<unsigned>(starts >> done) & 0xffffu;
      int count = 32 - __clz(static_cast<int>(near));
      int needed = 1;
      if (near == 0) {
        count = bounds[from + done].y - (from + done);
        needed = (count + 15) / 16;
        if (count > capacity) {
          done += count;
          continue;
        }
        if (used + needed > tiles) break;
        long_windows = true;
      }
      const int own = place.lane - used;
      if (own >= 0 && own < needed)
        tile = {from + done + 16 * own, min(16, count - 16 * own), used, needed};
      used += needed;
      done += count;
    }
    if (place.lane < tiles) at<int4>(layout::plan)[place.lane] = tile;
    if (place.lane == 0) *at<int2>(layout::plan_used) = {used, long_windows ? 1 : 0};
    next.from = from + done;
    return used;
  }
  /// Plans the next turn, by one warp.
  __device__ __forceinline__ void plan_turn(cursor& next, int range) const {
    do {
      while (next.from >= next.until) {
        next.number += problem.parts_per_head;
        const std::int64_t first = std::int64_t{next.number} * range;
        if (first >= assigned) {
          if (place.lane == 0) *at<int2>(layout::plan_used) = {0, 0};
          return;
        }
        next.until = static_cast<int>(min(first + range, std::int64_t{assigned}));
        const int2 window = bounds[first];
        next.from = window.x == first ? window.x : window.y;
      }
    } while (fill_tiles(next) == 0);
  }
  [[nodiscard]] __device__ __forceinline__ turn planned_turn() const {
    const int2 all = *at<int2>(layout::plan_used);
    if (all.x == 0) return {};
    const int4 tile = at<int4>(layout::plan)[warp];
    return {tile.x, tile.y, tile.z, tile.w, all.x, all.y != 0};
  }

  /// What a warp knows of its rows before they are there.
  struct tile_tokens {
    std::int32_t copied;    ///< the token whose row this lane copies half of; -1: none
    std::int32_t token[2];  ///< of rows g and g + 8
    std::uint32_t code[2];
    int begin[2], end[2];  ///< columns of their windows, from the first row of tile `base` on
    float radius[2];
  };
  __device__ __forceinline__ tile_tokens load_tokens(const turn& now) const {
    tile_tokens result;
    const int copied = place.lane / 2;
    result.copied = copied < now.count ? order[now.first + copied] : -1;
    const int origin = now.first - 16 * (warp - now.base);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      const bool there = row < now.count;
      const int slot = now.first + row;
      result.token[i] = there ? order[slot] : -1;
      result.code[i] = there ? group.positions[slot] : 0;
      const int2 window = there ? bounds[slot] : int2{origin, origin};
      result.begin[i] = window.x - origin;
      result.end[i] = window.y - origin;
      result.radius[i] = Radial && there ? group.radius[slot] : 0.0f;
    }
    return result;
  }
  __device__ __forceinline__ void copy_rows(const tile_tokens& rows) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    const bool there = rows.copied >= 0 && column < problem.head_dim;
    const std::int64_t token = max(rows.copied, 0);
    const int target = row * layout::row_bytes + ((place.lane & 1) ^ (row >> 2 & 1)) * 16;
    const auto copy = [&](std::byte* tile, const row_view& view) {
      copy_async(tile + target, row_of<T>(view, token, head) + (there ? column : 0), there);
    };
    copy(rows_of_tile(queries, warp), problem.q);
    copy(rows_of_tile(keys, warp), problem.k);
    copy(rows_of_tile(grads, warp), problem.grad_out);
    copy(region(warp) + layout::values, problem.v);
    commit_copies();
  }

  // --- Products --------------------------------------------------------------------------------

  /// 16 rows times one axis of a table, in half: of rows g and g + 8 six words, in the table's order.
  __device__ __forceinline__ void multiply_axis(const std::uint32_t (&left)[4], int which, int axis,
                                                std::uint32_t (&product)[2][row_words]) const {
    const std::byte* right = table(which) + axis * tile_rows * layout::row_bytes + right_offset;
#pragma unroll
    for (int pair = 0; pair < row_words / 2; ++pair) {
      std::uint32_t b[4];
      load_matrices(b, right + pair * 16 * layout::row_bytes);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        std::uint32_t sum[2];
        if constexpr (std::is_same_v<T, half>) {
          multiply_half(sum, left, b[2 * n], b[2 * n + 1]);
        } else {
          float wide[4];
          multiply_16<T>(wide, left, b[2 * n], b[2 * n + 1]);
          sum[0] = pack<half>(wide[0], wide[1]);
          sum[1] = pack<half>(wide[2], wide[3]);
        }
        product[0][2 * pair + n] = sum[0];
        product[1][2 * pair + n] = sum[1];
      }
    }
  }
  __device__ __forceinline__ row_shift shift_of(std::uint32_t code, int axis) const {
    return row_shift(length - 1 - static_cast<int>(code >> (8 * axis) & 0xffu));
  }
  /// All linear axes by the other's cell.
  __device__ __forceinline__ void multiply_cells(const std::uint32_t (&left)[4], int which,
                                                 const std::uint32_t (&code)[2],
                                                 std::uint32_t (&cells)[2][words]) const {
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis) {
      std::uint32_t product[2][row_words];
      multiply_axis(left, which, axis, product);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t moved[cell_words];
        shift_of(code[i], axis).to_cells(product[i], moved);
#pragma unroll
        for (int w = 0; w < cell_words; ++w) cells[i][axis * cell_words + w] = moved[w];
      }
    }
  }
  /// This lane's words of rows of cells, to row g and g + 8 of `target`.
  __device__ __forceinline__ void store_cells(std::byte* target,
                                              const std::uint32_t (&cells)[2][words]) const {
    target += place.g * layout::cell_bytes + 4 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < words; ++w)
        *reinterpret_cast<std::uint32_t*>(target + i * 8 * layout::cell_bytes + 16 * w) =
            cells[i][w];
  }

  // --- A tile ----------------------------------------------------------------------------------

  /// The largest finite |dO| of 16 rows, as the biased exponent of a float.
  static __device__ __forceinline__ unsigned magnitude_of(const std::uint32_t (&rows)[4]) {
    constexpr unsigned infinite = std::is_same_v<T, half> ? 0x7c00u : 0x7f80u;
    unsigned largest = 0;
#pragma unroll
    for (const std::uint32_t pair : rows) largest = __vmaxu2(largest, pair & 0x7fff7fffu);
    largest = __reduce_max_sync(all_lanes, max(largest & 0xffffu, largest >> 16));
    if (largest >= infinite) {  // NaN or infinity is there: look again without them
      largest = 0;
      for (const std::uint32_t pair : rows)
        for (const unsigned x : {pair & 0x7fffu, pair >> 16 & 0x7fffu})
          if (x < infinite) largest = max(largest, x);
      largest = __reduce_max_sync(all_lanes, largest);
    }
    return __float_as_uint(unpack<T>(largest).x) >> 23;
  }

  /// A tile's sums as queries, and as keys.
  struct query_sums {
    float dq[2][4];
    float cells[2][words][4];  ///< of dS, of P
    float total[4];            ///< Σ |dS| of rows g and g + 8 in [0] and [2]
  };
  struct key_sums {
    float dk[2][4], dv[2][4];
    float cells[words][4];
    float total[4];
  };
  template <int Count>
  static __device__ __forceinline__ void clear(float (&sums)[Count][4]) {
#pragma unroll
    for (auto& block : sums)
#pragma unroll
      for (float& x : block) x = 0.0f;
  }

  static __device__ __forceinline__ void clear(float (&sum)[4]) {
#pragma unroll
    for (float& x : sum) x = 0.0f;
  }
  static __device__ __forceinline__ void copy(const float (&from)[4], float (&to)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = from[e];
  }
  static __device__ __forceinline__ void copy(const float (&from)[2][4], float (&to)[2][4]) {
    copy(from[0], to[0]);
    copy(from[1], to[1]);
  }

  /// sums += rows of weights · one-hot cells of a tile, by cell.
  __device__ __forceinline__ void add_cells(const std::uint32_t (&weights)[4], const std::byte* hot,
                                            float (&sums)[words][4]) const {
#pragma unroll
    for (int w = 0; w + 1 < words; w += 2) {
      std::uint32_t e[4];
      load_matrices_transposed(e, hot + 16 * w);
      multiply_add_16<half>(sums[w], weights, e[0], e[1]);
      multiply_add_16<half>(sums[w + 1], weights, e[2], e[3]);
    }
    if constexpr (words % 2 == 1) {
      std::uint32_t e[2];
      load_matrices_transposed(e, hot - place.lane / 16 * 16 + 16 * (words - 1));
      multiply_add_16<half>(sums[words - 1], weights, e[0], e[1]);
    }
  }
  static __device__ __forceinline__ void add_magnitudes(const std::uint32_t (&weights)[4],
                                                        float (&total)[4]) {
    const std::uint32_t ones = pack<half>(1.0f, 1.0f);
    const std::uint32_t positive[4] = {weights[0] & 0x7fff7fffu, weights[1] & 0x7fff7fffu,
                                       weights[2] & 0x7fff7fffu, weights[3] & 0x7fff7fffu};
    multiply_add_16<half>(total, positive, ones, ones);
  }

  /// What the queries of a tile take through its pieces.
  struct query_state {
    std::uint32_t q[4], grad_out[4];  ///< dO times the scale of rounding
    /// Gq and Gv, unless shared memory has room for them.
    std::uint32_t query_cells[2][layout::own_cells ? 1 : words];
    std::uint32_t value_cells[2][layout::own_cells ? 1 : words];
    float lse[2], delta[2];  ///< delta: -delta in units of dS
    bool single[2];
  };

  /// The tile's queries against the keys of tile `j`.
  __device__ __forceinline__ void differentiate_piece(const turn& now, const tile_tokens& rows,
                                                      int j, float lower, query_state& state,
                                                      query_sums& sums) const {
    const std::byte* other = region(j);
    const std::byte* own_hot = region(warp) + layout::hot + turned_cells;
    float p[2][4], sides[2][4], ds[2][4];
    {
      std::uint32_t b[4];
      load_matrices(b, rows_of_tile(keys, j) + right_offset);
      multiply_16<T>(p[0], state.q, b[0], b[1]);
      multiply_16<T>(p[1], state.q, b[2], b[3]);
      load_matrices(b, other + layout::values + right_offset);
      multiply_16<T>(ds[0], state.grad_out, b[0], b[1]);
      multiply_16<T>(ds[1], state.grad_out, b[2], b[3]);
    }
    clear(sides);
#pragma unroll
    for (int w = 0; w + 1 < words; w += 2) {
      std::uint32_t gq[4], gv[4];
      if constexpr (layout::own_cells) {
        load_matrices(gq, own_hot - layout::hot + layout::query_cells + 16 * w);
        load_matrices(gv, own_hot - layout::hot + layout::value_cells + 16 * w);
      } else {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          gq[m] = state.query_cells[m % 2][w + m / 2];
          gv[m] = state.value_cells[m % 2][w + m / 2];
        }
      }
      std::uint32_t e[4], hot[4], gk[4];
      load_matrices(e, own_hot + 16 * w);
      load_matrices(hot, other + layout::hot + right_cells + 16 * w);
      load_matrices(gk, other + layout::key_cells + right_cells + 16 * w);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add_16<half>(p[n], gq, hot[2 * n], hot[2 * n + 1]);
        multiply_add_16<half>(ds[n], gv, hot[2 * n], hot[2 * n + 1]);
        multiply_add_16<half>(sides[n], e, gk[2 * n], gk[2 * n + 1]);
      }
    }
    if constexpr (words % 2 == 1) {
      constexpr int w = words - 1;
      const std::byte* last = other + place.lane % 16 * layout::cell_bytes + 16 * w;
      static_assert(layout::own_cells, "or take them from the state");
      const std::byte* own_last = own_hot - place.lane / 16 * 16 + 16 * w;
      std::uint32_t e[2], gq[2], gv[2], hot[2], gk[2];
      load_matrices(e, own_last);
      load_matrices(gq, own_last - layout::hot + layout::query_cells);
      load_matrices(gv, own_last - layout::hot + layout::value_cells);
      load_matrices(hot, last + layout::hot);
      load_matrices(gk, last + layout::key_cells);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add_half_8(p[n], gq[0], gq[1], hot[n]);
        multiply_add_half_8(ds[n], gv[0], gv[1], hot[n]);
        multiply_add_half_8(sides[n], e[0], e[1], gk[n]);
      }
    }
    std::uint32_t radial_rows[2] = {0, 0};
    if constexpr (Radial) look_up_radial(rows, j, radial_rows, p, sides, ds);

    const float factor = problem.scale * log2_e;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 16 * (j - now.base) + 2 * place.t - rows.begin[i];
      const auto window = static_cast<unsigned>(rows.end[i] - rows.begin[i]);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int e = 2 * i + c;
          const bool attends = static_cast<unsigned>(column + 8 * n + c) < window;
          const float logit = fmaf(p[n][e], factor, fmaf(sides[n][e], log2_e, state.lse[i]));
          p[n][e] = exp2_fast(attends ? logit : -INFINITY);
          ds[n][e] = attends ? ds[n][e] : 0.0f;
        }
      float unit = weight_unit;
      if (now.width == 1) {
        // The row's window lies in this piece: delta = Σ P·dP / Σ P, not dO·O with a rounded O.
        float weights = (p[0][2 * i] + p[0][2 * i + 1]) + (p[1][2 * i] + p[1][2 * i + 1]);
        float sum = (p[0][2 * i] * ds[0][2 * i] + p[0][2 * i + 1] * ds[0][2 * i + 1]) +
                    (p[1][2 * i] * ds[1][2 * i] + p[1][2 * i + 1] * ds[1][2 * i + 1]);
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
          weights += __shfl_xor_sync(all_lanes, weights, step);
          sum += __shfl_xor_sync(all_lanes, sum, step);
        }
        const float delta = __fdividef(sum, weights);
        if (rows.token[i] >= 0 && place.t == 0)
          problem.delta[head * problem.max_tokens + now.first + place.g + 8 * i] = delta * lower;
        // A row that is alone has dP = delta, whatever the rounding says.
        unit = state.single[i] ? 0.0f : weight_unit;
        state.delta[i] = rows.token[i] >= 0 ? -delta * unit : 0.0f;
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e)
          ds[n][e] = p[n][e] * fmaf(ds[n][e], unit, state.delta[i]);
    }
    if constexpr (Radial) sum_radial(j, radial_rows, p, ds);

    const weight_fragment<half> gradients(ds);
    const weight_fragment<half> weights(p);
    {
      std::uint32_t b[4];
      load_matrices_transposed(b, rows_of_tile(keys, j) + left_offset);
      const weight_fragment<T> left(ds);
      multiply_add_16<T>(sums.dq[0], left.a, b[0], b[1]);
      multiply_add_16<T>(sums.dq[1], left.a, b[2], b[3]);
    }
    add_cells(gradients.a, other + layout::hot + turned_cells, sums.cells[0]);
    add_cells(weights.a, other + layout::hot + turned_cells, sums.cells[1]);
    if constexpr (Radial) add_magnitudes(gradients.a, sums.total);
    auto* piece = reinterpret_cast<std::uint32_t*>(region(warp) + layout::pieces +
                                                   2 * j * layout::piece_bytes) +
                  place.lane;
    const weight_fragment<T> values_left(p);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      piece[32 * m] = gradients.a[m];
      piece[layout::piece_bytes / 4 + 32 * m] = values_left.a[m];
    }
  }

  /// What the radial axis adds to a piece, and the table rows of its pairs.
  __device__ __forceinline__ void look_up_radial(const tile_tokens& rows, int j,
                                                 std::uint32_t (&radial_rows)[2], float (&p)[2][4],
                                                 float (&sides)[2][4], float (&ds)[2][4]) const {
    const auto* of_rows = reinterpret_cast<const half2*>(region(warp) + layout::query_radial) +
                          place.g * layout::query_radial_stride;
    const auto* of_columns = reinterpret_cast<const half*>(region(j) + layout::key_radial) +
                             2 * place.t * layout::key_radial_stride;
    const float* other_radius = at<float>(layout::radius) + 16 * j + 2 * place.t;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float other = other_radius[8 * n + c];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = 2 * i + c;
          const int row = radial_row(rows.radius[i] - other, group.inverse_a, length);
          radial_rows[n] |= static_cast<std::uint32_t>(row) << (8 * e);
          const float2 query = __half22float2(of_rows[i * 8 * layout::query_radial_stride + row]);
          p[n][e] += query.x;
          ds[n][e] += query.y;
          sides[n][e] += __half2float(of_columns[(8 * n + c) * layout::key_radial_stride + row]);
        }
      }
  }
  /// Sums a piece up by radial row, for its rows and its columns. Integers have the same sum in every
  /// order.
  __device__ __forceinline__ void sum_radial(int j, const std::uint32_t (&radial_rows)[2],
                                             const float (&p)[2][4],
                                             const float (&ds)[2][4]) const {
    constexpr int stride = layout::radial_stride;
    int* of_rows = reinterpret_cast<int*>(region(warp) + layout::radial_sums) + place.g * stride;
    int* of_columns =
        reinterpret_cast<int*>(region(j) + layout::radial_sums) + (32 + 2 * place.t) * stride;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = static_cast<int>(radial_rows[n] >> (8 * e) & 0xffu);
        const int gradient = __float2int_rn(ds[n][e] * gradient_points);
        if (gradient != 0) {
          atomicAdd(of_rows + e / 2 * 8 * stride + row, gradient);
          atomicAdd(of_columns + (8 * n + (e & 1)) * stride + row, gradient);
        }
        const int weight = __float2int_rn(p[n][e] * weight_points);
        if (weight != 0) atomicAdd(of_rows + (16 + e / 2 * 8) * stride + row, weight);
      }
  }

  /// The tile's keys against the queries of tile `i`.
  __device__ __forceinline__ void differentiate_keys(int i, key_sums& sums) const {
    const std::byte* piece =
        region(i) + layout::pieces + 2 * warp * layout::piece_bytes + 16 * place.lane;
    std::uint32_t turned[4];
    load_matrices_transposed(turned, piece);
    const std::uint32_t gradients[4] = {turned[0], turned[2], turned[1], turned[3]};
    load_matrices_transposed(turned, piece + layout::piece_bytes);
    const std::uint32_t weights[4] = {turned[0], turned[2], turned[1], turned[3]};
    std::uint32_t left[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      left[m] = gradients[m];
      if constexpr (!std::is_same_v<T, half>) {
        const float2 pair = unpack<half>(gradients[m]);
        left[m] = pack<T>(pair.x, pair.y);
      }
    }
    std::uint32_t b[4];
    load_matrices_transposed(b, rows_of_tile(queries, i) + left_offset);
    multiply_add_16<T>(sums.dk[0], left, b[0], b[1]);
    multiply_add_16<T>(sums.dk[1], left, b[2], b[3]);
    load_matrices_transposed(b, rows_of_tile(grads, i) + left_offset);
    multiply_add_16<T>(sums.dv[0], weights, b[0], b[1]);
    multiply_add_16<T>(sums.dv[1], weights, b[2], b[3]);
    add_cells(gradients, region(i) + layout::hot + turned_cells, sums.cells);
    if constexpr (Radial) add_magnitudes(gradients, sums.total);
  }

  /// Sums by cell, in T: of rows g and g + 8.
  using packed_cells = std::uint32_t[2][words];
  static __device__ __forceinline__ void pack_cells(const float (&cells)[words][4],
                                                    packed_cells& packed) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < words; ++w) packed[i][w] = pack<T>(cells[w][2 * i], cells[w][2 * i + 1]);
  }
  /// Sums by table row: of rows g and g + 8 six words of one axis.
  using axis_rows = std::uint32_t[2][row_words];
  __device__ __forceinline__ void move_to_rows(const packed_cells& packed, int axis,
                                               const std::uint32_t (&code)[2],
                                               axis_rows& rows) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t cells[cell_words];
#pragma unroll
      // Of an axis that is radial there are no cells.
      for (int w = 0; w < cell_words; ++w)
        cells[w] = packed[i][min(axis * cell_words + w, words - 1)];
      shift_of(code[i], axis).to_rows(cells, rows[i]);
    }
  }
  /// The same of the radial axis. \param which of the rows' dS, their P, the columns' dS.
  __device__ __forceinline__ void take_radial(int which, const float (&unit)[2],
                                              axis_rows& rows) const {
    const int* sums = reinterpret_cast<const int*>(region(warp) + layout::radial_sums) +
                      (16 * which + place.g) * layout::radial_stride + 2 * place.t;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; ++w) {
        const int2 pair =
            *reinterpret_cast<const int2*>(sums + i * 8 * layout::radial_stride + 8 * w);
        rows[i][w] =
            pack<T>(static_cast<float>(pair.x) * unit[i], static_cast<float>(pair.y) * unit[i]);
      }
  }
  /// sum += rows · table.
  __device__ __forceinline__ void add_table_term(const axis_rows& rows, int which, int axis,
                                                 float (&sum)[2][4]) const {
    const std::byte* right = table(which) + axis * tile_rows * layout::row_bytes + left_offset;
#pragma unroll
    for (int w = 0; w < row_words; w += 2) {
      const std::uint32_t left[4] = {rows[0][w], rows[1][w], rows[0][w + 1], rows[1][w + 1]};
      std::uint32_t b[4];
      load_matrices_transposed(b, right + w * 8 * layout::row_bytes);
      multiply_add_16<T>(sum[0], left, b[0], b[1]);
      multiply_add_16<T>(sum[1], left, b[2], b[3]);
    }
  }
  __device__ __forceinline__ void store_sums(const axis_rows& rows, int which, int axis) const {
    std::byte* target = sums(warp, which) + place.g * layout::sum_bytes + axis * tile_rows * 2 +
                        (8 * place.t ^ (place.g >> 2) * 16);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int w = 0; w < row_words; w += 2)
        *reinterpret_cast<uint2*>(target + i * 8 * layout::sum_bytes + 16 * w) = {rows[i][w],
                                                                                  rows[i][w + 1]};
  }
  /// What a row's radial sums are multiplied by; NaN where they may have overflown.
  static __device__ __forceinline__ void radial_units(const float (&total)[4], float (&unit)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) unit[i] = total[2 * i] < largest_sum ? 1.0f / gradient_points : NAN;
  }
  /// Table terms of dq and dk, and the rows of sums to shared memory, where nobody reads pieces any more.
  /// `cells` and `totals` are those of dS, of P and of dS of the columns; P has no total.
  __device__ __forceinline__ void finish_sums(const std::uint32_t (&code)[2],
                                              const packed_cells (&cells)[3],
                                              const float (&row_total)[4],
                                              const float (&column_total)[4], float (&dq)[2][4],
                                              float (&dk)[2][4]) const {
    axis_rows radial[3];
    if constexpr (Radial) {
      float unit[2];
      radial_units(row_total, unit);
      take_radial(0, unit, radial[0]);
      radial_units(column_total, unit);
      take_radial(2, unit, radial[2]);
      const float weight_units[2] = {1.0f / weight_points, 1.0f / weight_points};
      take_radial(1, weight_units, radial[1]);
      __syncwarp();
    }
#pragma unroll
    for (int which = 0; which < 3; ++which)
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        axis_rows rows;
        if (linear(axis)) {
          move_to_rows(cells[which], axis, code, rows);
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int w = 0; w < row_words; ++w) rows[i][w] = radial[which][i][w];
        }
        if (which == 0) add_table_term(rows, of_queries, axis, dq);
        if (which == 2) add_table_term(rows, of_keys, axis, dk);
        store_sums(rows, which, axis);
      }
  }

  /// Adds what `used` tiles give to the block's part of tables' gradients.
  __device__ __forceinline__ void add_to_parts(int used, float lower) const {
#pragma unroll
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target == nullptr) continue;
      target += 2 * place.t;
      const std::byte* rows = rows_of_tile(which == 0   ? queries
                                           : which == 1 ? grads
                                                        : keys,
                                           0) +
                              left_offset;
      std::uint32_t right[tiles][4];
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile)
        if (tile < used) load_matrices_transposed(right[tile], rows + tile * layout::tile_bytes);
      const std::byte* left = sums(0, which) +
                              (place.lane % 8 + place.lane / 16 * 8) * layout::sum_bytes +
                              ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
      const float by = which == 0 ? problem.scale * lower : which == 1 ? weight_unit : lower;
#pragma unroll 1
      for (int block = first_block(which); block < blocks; block += tiles) {
        float product[2][4];
        clear(product);
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          if (tile >= used) break;
          std::uint32_t a[4];
          load_matrices_transposed(a, left + tile * layout::region_bytes + block * 32);
          multiply_add_16<T>(product[0], a, right[tile][0], right[tile][1]);
          multiply_add_16<T>(product[1], a, right[tile][2], right[tile][3]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = row_of_sums(which, block, i);
          if (static_cast<unsigned>(row) >= static_cast<unsigned>(table_rows)) continue;
          float* sum = target + (block / axis_blocks * table_rows + row) * problem.head_dim;
          add_in_memory(sum, product[0][2 * i] * by, product[0][2 * i + 1] * by);
          if (problem.head_dim > 8)
            add_in_memory(sum + 8, product[1][2 * i] * by, product[1][2 * i + 1] * by);
        }
      }
    }
  }

  /// Writes rows of a gradient, sums times `by`, or adds to them; rows in `skip` are left to others.
  __device__ __forceinline__ void store(const row_view& view, const std::int32_t (&tokens)[2],
                                        float by, unsigned skip, const float (&sum)[2][4]) const {
    if (view.data == nullptr) return;
    const bool odd = (place.t & 1) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool wanted = tokens[i] >= 0 && (skip >> (place.g + 8 * i) & 1u) == 0;
      T* target = gradient_row<T>(view, max(tokens[i], 0), head);
      if (problem.accumulate) {
        if (!wanted) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n)
          if (8 * n < problem.head_dim)
#pragma unroll
            for (int c = 0; c < 2; ++c)
              store_gradient(target + 8 * n + 2 * place.t + c, sum[n][2 * i + c] * by, true);
        continue;
      }
      // Neighbouring lanes swap, so that each has four columns.
      const std::uint32_t first = pack<T>(sum[0][2 * i] * by, sum[0][2 * i + 1] * by);
      const std::uint32_t second = pack<T>(sum[1][2 * i] * by, sum[1][2 * i + 1] * by);
      const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? first : second, 1);
      const int column = (odd ? 8 : 0) + place.t / 2 * 4;
      if (wanted && column < problem.head_dim)
        *reinterpret_cast<uint2*>(target + column) = {odd ? other : first, odd ? second : other};
    }
  }
  /// The tile's rows whose sums are not finite, as bits.
  __device__ __forceinline__ unsigned broken_rows(const float (&first)[2][4],
                                                  const float (&second)[2][4],
                                                  const std::int32_t (&tokens)[2]) const {
    bool broken[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;  // becomes NaN with any NaN or infinity
#pragma unroll
      for (int n = 0; n < 2; ++n)
        probe += (first[n][2 * i] + first[n][2 * i + 1]) * 0.0f +
                 (second[n][2 * i] + second[n][2 * i + 1]) * 0.0f;
      broken[i] = !(probe == 0.0f) && tokens[i] >= 0;
    }
    if (!__any_sync(all_lanes, broken[0] || broken[1])) return 0;
    unsigned rows = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned lanes = __ballot_sync(all_lanes, broken[i]);
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) rows |= 1u << (g + 8 * i);
    }
    return rows;
  }

  /// delta = dO·O of the tile's rows, for windows of several pieces.
  __device__ __forceinline__ void measure_delta(const turn& now, const tile_tokens& rows) const {
    const int row = place.lane / 2;
    const int column = place.lane % 2 * width;
    float dot = 0.0f;
    if (rows.copied >= 0 && column < problem.head_dim) {
      const uint4 out =
          *reinterpret_cast<const uint4*>(row_of<T>(problem.out, rows.copied, head) + column);
      const uint4 grad =
          *reinterpret_cast<const uint4*>(rows_of_tile(grads, warp) + row * layout::row_bytes +
                                          ((place.lane & 1) ^ (row >> 2 & 1)) * 16);
      const std::uint32_t x[4] = {out.x, out.y, out.z, out.w};
      const std::uint32_t y[4] = {grad.x, grad.y, grad.z, grad.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 o = unpack<T>(x[w]);
        const float2 g = unpack<T>(y[w]);
        dot = fmaf(g.x, o.x, fmaf(g.y, o.y, dot));
      }
    }
    dot += __shfl_xor_sync(all_lanes, dot, 1);
    if (place.lane % 2 == 0) {
      at<float>(layout::deltas)[16 * warp + row] = dot;
      if (rows.copied >= 0) problem.delta[head * problem.max_tokens + now.first + row] = dot;
    }
  }

  /// Before the block's magnitudes are known: cells of the rows, and their products as keys.
  __device__ __forceinline__ void begin_tile(const turn& now, const tile_tokens& rows,
                                             query_state& state) const {
    std::byte* own = region(warp);
    std::uint32_t hot[2][words];
#pragma unroll
    for (int axis = 0; axis < layout::cell_axes; ++axis)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t position = position_twice(rows.code[i], axis);
#pragma unroll
        for (int w = 0; w < cell_words; ++w)
          hot[i][axis * cell_words + w] =
              one_hot(position, position_pair(8 * w + place.t, 8 * w + place.t + 4));
      }
    store_cells(own + layout::hot, hot);
    if constexpr (Radial) {
      auto* sums = reinterpret_cast<uint4*>(own + layout::radial_sums);
      for (int i = place.lane; i < layout::radial_bytes / 16; i += 32) sums[i] = {0, 0, 0, 0};
      if (place.t == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          at<float>(layout::radius)[16 * warp + place.g + 8 * i] = rows.radius[i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      state.lse[i] = 0.0f;
      if (rows.token[i] >= 0)
        state.lse[i] =
            problem.lse[rows.token[i] * problem.lse_token_stride + head * problem.lse_head_stride];
      state.single[i] = rows.end[i] - rows.begin[i] == 1;
    }
    wait_for_copies<0>();
    __syncwarp();
    load_matrices(state.q, rows_of_tile(queries, warp) + left_offset);
    load_matrices(state.grad_out, rows_of_tile(grads, warp) + left_offset);
    const unsigned magnitude = magnitude_of(state.grad_out);
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = magnitude;
    if (now.width > 1) measure_delta(now, rows);

    std::uint32_t k[4];
    load_matrices(k, rows_of_tile(keys, warp) + left_offset);
    std::uint32_t cells[2][words];
    multiply_cells(k, of_keys, rows.code, cells);
    store_cells(own + layout::key_cells, cells);
    if constexpr (Radial) {
      std::uint32_t product[2][row_words];
      multiply_axis(k, of_keys, 2, product);
      std::byte* target =
          own + layout::key_radial + place.g * layout::key_radial_stride * 2 + 4 * place.t;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < row_words; ++w)
          *reinterpret_cast<std::uint32_t*>(target + i * 8 * layout::key_radial_stride * 2 +
                                            16 * w) = product[i][w];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) state.lse[i] = fmaf(state.lse[i], -log2_e, weight_shift);
  }
  /// The tile's products as queries; `raise` is the scale of dO.
  __device__ __forceinline__ void begin_queries(const turn& now, const tile_tokens& rows,
                                                float raise, query_state& state) const {
#pragma unroll
    for (std::uint32_t& pair : state.grad_out) {
      const float2 x = unpack<T>(pair);
      pair = pack<T>(x.x * raise, x.y * raise);
    }
    if constexpr (layout::own_cells) {
      std::uint32_t cells[2][words];
      multiply_cells(state.q, of_queries, rows.code, cells);
      store_cells(region(warp) + layout::query_cells, cells);
      multiply_cells(state.grad_out, of_values, rows.code, cells);
      store_cells(region(warp) + layout::value_cells, cells);
      __syncwarp();
    } else {
      multiply_cells(state.q, of_queries, rows.code, state.query_cells);
      multiply_cells(state.grad_out, of_values, rows.code, state.value_cells);
    }
    if constexpr (Radial) {
      std::uint32_t of_q[2][row_words], of_v[2][row_words];
      multiply_axis(state.q, of_queries, 2, of_q);
      multiply_axis(state.grad_out, of_values, 2, of_v);
      std::byte* target = region(warp) + layout::query_radial +
                          place.g * layout::query_radial_stride * 4 + 8 * place.t;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < row_words; ++w)
          *reinterpret_cast<uint2*>(target + i * 8 * layout::query_radial_stride * 4 + 32 * w) = {
              __byte_perm(of_q[i][w], of_v[i][w], 0x5410u),
              __byte_perm(of_q[i][w], of_v[i][w], 0x7632u)};
      __syncwarp();
    }
    if (now.width > 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        state.delta[i] =
            at<float>(layout::deltas)[16 * warp + place.g + 8 * i] * (-raise * weight_unit);
    }
  }

  /// The block's scale of rounding, once all warps know their magnitudes.
  [[nodiscard]] __device__ __forceinline__ rounding_scale scale_of_block() const {
    const uint4 largest = *at<uint4>(layout::magnitudes);
    return rounding_scale(max(max(largest.x, largest.y), max(largest.z, largest.w)));
  }
  /// A barrier between the tiles of a window.
  static __device__ __forceinline__ void meet(const turn& now) {
    if (now.long_windows)
      __syncthreads();
    else
      __syncwarp();
  }

  /// This warp's tile, up to the sums of tables.
  __device__ __forceinline__ void differentiate(const turn& now, const tile_tokens& rows) const {
    float dq[2][4], dk[2][4], dv[2][4], row_total[4], column_total[4];
    packed_cells cells[3];
    {
      query_state state;
      begin_tile(now, rows, state);
      __syncthreads();
      const rounding_scale scale = scale_of_block();
      begin_queries(now, rows, scale.up, state);
      query_sums sums;
      clear(sums.dq);
      clear(sums.cells[0]);
      clear(sums.cells[1]);
      clear(sums.total);
#pragma unroll 1
      for (int j = now.base; j < now.base + now.width; ++j)
        differentiate_piece(now, rows, j, scale.down, state, sums);
      pack_cells(sums.cells[0], cells[0]);
      pack_cells(sums.cells[1], cells[1]);
      copy(sums.dq, dq);
      copy(sums.total, row_total);
    }
    meet(now);
    {
      key_sums sums;
      clear(sums.dk);
      clear(sums.dv);
      clear(sums.cells);
      clear(sums.total);
#pragma unroll 1
      for (int i = now.base; i < now.base + now.width; ++i) differentiate_keys(i, sums);
      pack_cells(sums.cells, cells[2]);
#pragma unroll
      for (auto& block : sums.dk)
#pragma unroll
        for (float& x : block) x *= problem.scale;
      copy(sums.dk, dk);
      copy(sums.dv, dv);
      copy(sums.total, column_total);
    }
    meet(now);
    finish_sums(rows.code, cells, row_total, column_total, dq, dk);
    __syncthreads();
    const float lower = scale_of_block().down;
    const unsigned queries_left = broken_rows(dq, dq, rows.token);
    const unsigned keys_left = broken_rows(dk, dv, rows.token);
    store(problem.grad_q, rows.token, problem.scale * lower, queries_left, dq);
    store(problem.grad_k, rows.token, lower, keys_left, dk);
    store(problem.grad_v, rows.token, weight_unit, keys_left, dv);
    for (unsigned left = queries_left; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::query>(whole, group, head,
                                                 now.first + __ffs(static_cast<int>(left)) - 1, {});
    for (unsigned left = keys_left; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::key>(whole, group, head,
                                               now.first + __ffs(static_cast<int>(left)) - 1, {});
  }
  /// What a warp without rows does meanwhile.
  __device__ __forceinline__ void stand_by(const turn& now) const {
    if (place.lane == 0) at<unsigned>(layout::magnitudes)[warp] = 0;
    __syncthreads();
    meet(now);
    meet(now);
    __syncthreads();
  }

  __device__ __forceinline__ void run() const {
    begin_block();
    // All blocks get the same number of ranges, of one length.
    const std::int64_t share = std::int64_t{problem.parts_per_head} * contextual_window_range;
    const std::int64_t turns = max((assigned + share - 1) / share, std::int64_t{1});
    const std::int64_t ranges = turns * problem.parts_per_head;
    const int range = static_cast<int>((assigned + ranges - 1) / ranges);
    cursor next{part - problem.parts_per_head, 0, 0};
    if (warp == 0) plan_turn(next, range);
    __syncthreads();
    turn now = planned_turn();
    tile_tokens rows = load_tokens(now);
    __syncthreads();
    while (now.used > 0) {
      if (now.count > 0) copy_rows(rows);
      // While rows arrive.
      if (warp == 0) plan_turn(next, range);
      if (now.count > 0)
        differentiate(now, rows);
      else
        stand_by(now);
      const int used = now.used;
      now = planned_turn();
      rows = load_tokens(now);
      add_to_parts(used, scale_of_block().down);
      __syncthreads();
    }
  }
};

/// Heads are the fastest index of the grid.
template <class T, bool Radial>
__global__ void __launch_bounds__(32 * contextual_window_layout<Radial>::tiles,
                                  contextual_window_layout<Radial>::min_blocks)
    differentiate_contextual_windows_kernel(const __grid_constant__ backward_problem problem,
                                            const __grid_constant__ backward_rows rows) {
  extern __shared__ __align__(16) std::byte memory[];
  const block_place where(problem);
  const backward_group& entry = problem.groups[where.group];
  contextual_window_differentiator<T, Radial>{rows,   problem,          entry,     entry.problem,
                                              memory, where.group_head, where.part}
      .run();
}

}  // namespace winnow::detail
