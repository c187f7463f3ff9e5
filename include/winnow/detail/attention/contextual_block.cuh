// SPDX-License-Identifier: Apache-2.0
/// \file
/// The work of one block of the contextual forward kernel: see contextual_kernel.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/relative_position.hpp"

namespace winnow::detail {

/// A share of the rows of one head; its members are what all steps share.
/// \tparam Vectors q, k, v and out have rows that start on 16 bytes.
template <class T, int D, bool Radial, bool Vectors>
struct contextual_block {
  using layout = contextual_layout<sizeof(T), D, Radial>;
  using math = tile_math<T, D>;
  static constexpr int rows = layout::rows;
  static constexpr int keys = layout::keys;
  static constexpr int warps = layout::tuning.warps;
  static constexpr int threads = layout::tuning.threads();
  static constexpr int parts = layout::parts;
  static constexpr int words = layout::cells / 8;  ///< registers of a lane for a row of cells
  static constexpr bool staged = layout::tuning.staged;
  /// Are there registers for all axes of 16 keys' products at once?
  static constexpr bool multiplies_axes_at_once = sizeof(T) == 2 && D == 16;
  /// Are there registers for the one-hot rows of a warp's rows?
  static constexpr bool keeps_row_cells = Radial && sizeof(T) == 2 && D == 16;
  /// Weights by cell are rounded to T, float to two halves.
  static constexpr int weight_parts = sizeof(T) == 4 ? 2 : 1;
  using factor = table_factor<T, D, staged>;
  /// A key's positions on the linear axes, each twice, to compare.
  using key_cells = std::conditional_t<Radial, uint2, uint4>;
  /// Weights lag behind the largest logit by so many powers of two. 16-bit weights then are at most 1,
  /// so that their sums stay below 65,504 and are normalised at the very end.
  static constexpr float lag = sizeof(T) == 2 ? softmax_state::slack : 0.0f;

  const forward_problem& problem;
  int group_index;
  std::byte* memory;
  int group_head;
  int share;  ///< of the head's blocks of rows: share, share + shares, …
  int shares;
  int assigned;          ///< tokens in windows
  std::uint32_t shared;  ///< the address of `memory`
  int thread = in_register(static_cast<int>(threadIdx.x));
  /// Known to be the same for all lanes.
  int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  lane_place place{thread};
  /// Where this lane's row of `ldmatrix` lies in 16 rows of 32 bytes, whose matrices count row by row.
  int matrix_row = in_register(place.lane / 16 * 8 + place.lane % 8);
  int matrix_column = in_register(place.lane / 8 % 2 * 16);

  /// A turn: a chunk of the keys of a block of rows.
  struct turn {
    int row;     ///< the first slot of the rows; from `assigned` on there is no turn
    int key;     ///< the first slot of the keys
    int end;     ///< the slot behind the rows' last key
    int buffer;  ///< of the rows
    bool first;  ///< of the rows' turns
  };
  /// Tokens of the rows that this thread will copy.
  static constexpr int width = 16 / sizeof(T);
  static constexpr int chunks = D / width;
  static constexpr int pass_rows = threads / chunks;
  static constexpr int key_passes = (keys + pass_rows - 1) / pass_rows;
  static constexpr int query_passes = (rows + pass_rows - 1) / pass_rows;
  static_assert(threads % chunks == 0);
  struct turn_tokens {
    std::int32_t keys[key_passes];
    std::int32_t queries[query_passes];
  };
  /// What a warp knows of its rows, all of it in registers.
  struct row_state {
    typename math::query q;
    std::uint32_t products[parts][2][words];  ///< Gq of rows g and g + 8 by cell
    std::uint32_t positions[2][layout::axes];  ///< or, as one-hot rows,
    std::uint32_t row_cells[2][words];
    float radius[2];
    int radial;  ///< offset of row g's sums by radial row, from the middle of the table on
    float inverse_a;
    float inverse_scale;
    int length;
    int most_steps;  ///< of `radial_step`
    bool has_values;
    float fixed_point[2];  ///< the scales of radial sums
    softmax_state softmax;
    float o[math::blocks][4];
    float cells[words][4];  ///< weights by cell
  };

  /// Reads of it are not worth registers: they come from constant memory each time.
  __device__ __forceinline__ const group_problem& group() const {
    int index = group_index;
    asm volatile("" : "+r"(index));
    return problem.groups[index];
  }
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ __forceinline__ T* key_tile(int stage) const {
    return at<T>(layout::key_tiles + 2 * stage * layout::tile_bytes);
  }
  __device__ __forceinline__ T* value_tile(int stage) const {
    return at<T>(layout::key_tiles + (2 * stage + 1) * layout::tile_bytes);
  }
  __device__ __forceinline__ int query_offset(const turn& now) const {
    return layout::query + (layout::query_buffers > 1 ? now.buffer : 0) * rows * layout::row_bytes;
  }
  __device__ __forceinline__ std::byte* scratch() const {
    return memory + layout::scratch + warp * layout::scratch_bytes;
  }
  /// Of row g: sums of weights by radial row, and products by radial row.
  __device__ __forceinline__ std::uint32_t* radial_sums() const {
    return reinterpret_cast<std::uint32_t*>(scratch() + layout::radial_row(place.g));
  }
  __device__ __forceinline__ std::byte* radial_products() const {
    return scratch() + layout::radial_row(place.g) + layout::radial_sums_bytes;
  }
  __device__ __forceinline__ int count_of(const turn& now) const {
    return min(keys, now.end - now.key);
  }

  // --- What arrives from global memory ---------------------------------------------------------

  /// Where the next block of rows finds its keys; loaded early.
  struct next_rows {
    int row, first_key, end;
  };
  __device__ __forceinline__ void load_bounds(next_rows& next) const {
    if (next.row >= assigned) return;
    const auto* bounds = group().bounds;
    next.first_key = bounds[2 * static_cast<std::int64_t>(next.row)];
    next.end = bounds[2 * static_cast<std::int64_t>(min(next.row + rows, assigned)) - 1];
  }
  __device__ __forceinline__ turn follow(const turn& now, next_rows& next) const {
    if (now.key + keys < now.end) return {now.row, now.key + keys, now.end, now.buffer, false};
    const turn result{next.row, next.first_key, next.end, now.buffer ^ 1, true};
    next.row = min(next.row + shares * rows, assigned);
    load_bounds(next);
    return result;
  }

  __device__ __forceinline__ void load_tokens(const turn& now, turn_tokens& tokens) const {
    if (now.row >= assigned) return;
#pragma unroll
    for (int pass = 0; pass < key_passes; ++pass) {
      const int key = thread / chunks + pass * pass_rows;
      tokens.keys[pass] =
          key < count_of(now) ? group().order[static_cast<std::uint32_t>(now.key + key)] : 0;
    }
    if (!now.first) return;
#pragma unroll
    for (int pass = 0; pass < query_passes; ++pass) {
      const int row = now.row + thread / chunks + pass * pass_rows;
      tokens.queries[pass] =
          row < min(now.row + rows, assigned) ? group().order[static_cast<std::uint32_t>(row)] : 0;
    }
  }

  /// Copies this thread's chunk of the rows of `tokens`, pass by pass, to `Rows` rows of shared memory,
  /// and zeros from row `count` on. There are no branches, as each costs the copies behind it a few
  /// instructions.
  template <int Rows, int Passes>
  __device__ __forceinline__ void copy_rows(int target, const std::byte* base,
                                            const std::int32_t (&tokens)[Passes],
                                            std::int64_t stride, int count) const {
    const int row = thread / chunks;
    if (thread % chunks * width >= problem.head_dim) count = 0;
    target += row * layout::row_bytes + thread % chunks * 16;
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass) {
      const bool inside = (pass + 1) * pass_rows <= Rows || row + pass * pass_rows < Rows;
      const bool valid = row + pass * pass_rows < count;
      const int chunk = target + pass * pass_rows * layout::row_bytes;
      if constexpr (Vectors) {
        // Such strides fit 32 bits: see `vector_rows`.
        const std::byte* source;
        asm("mad.wide.s32 %0, %1, %2, %3;"
            : "=l"(source)
            : "r"(tokens[pass]), "r"(static_cast<std::int32_t>(stride * int{sizeof(T)})), "l"(base));
        copy_async_if<16>(inside, shared + static_cast<std::uint32_t>(chunk), source, valid);
      } else if (inside) {
        const T* source = reinterpret_cast<const T*>(base) + tokens[pass] * stride;
        for (int e = 0; e < width; ++e) at<T>(chunk)[e] = valid ? source[e] : T{};
      }
    }
  }
  /// `count` elements of an array from `first` on, and zeros up to `Fill`.
  template <int Fill, class U>
  __device__ __forceinline__ void copy_array(int target, const U* source, int first,
                                             int count) const {
    static_assert(Fill <= threads);
    copy_async_if<sizeof(U)>(
        thread < Fill, shared + static_cast<std::uint32_t>(target) + thread * sizeof(U),
        source + static_cast<std::uint32_t>(first + thread), thread < count);
  }

  /// Where this thread's chunks of rows begin.
  struct row_bases {
    const std::byte *q, *k, *v;
  };
  __device__ __forceinline__ const std::byte* base_of(const row_view& view) const {
    return reinterpret_cast<const std::byte*>(static_cast<const T*>(view.data) +
                                              (group().first_head + group_head) * view.head_stride +
                                              thread % chunks * width);
  }
  /// Everything that a turn needs. Behind the last key are zeros, since pieces may reach past it.
  __device__ __forceinline__ void request(const turn& now, int stage, const turn_tokens& tokens,
                                          const row_bases& bases) const {
    if (now.row < assigned) {
      const int count = count_of(now);
      const int target = layout::key_tiles + 2 * stage * layout::tile_bytes;
      copy_rows<keys>(target, bases.k, tokens.keys, problem.k.token_stride, count);
      copy_rows<keys>(target + layout::tile_bytes, bases.v, tokens.keys, problem.v.token_stride,
                      count);
      copy_array<keys>(layout::key_code + 4 * keys * stage, group().positions, now.key, count);
      if constexpr (Radial)
        copy_array<keys>(layout::key_radius + 4 * keys * stage, group().radius, now.key, count);
      if (now.first) {
        const int active = assigned - now.row;
        copy_rows<rows>(query_offset(now), bases.q, tokens.queries, problem.q.token_stride, active);
        copy_array<rows>(layout::row_bounds + 8 * rows * now.buffer,
                         reinterpret_cast<const int2*>(group().bounds), now.row, active);
        copy_array<rows>(layout::row_order + 4 * rows * now.buffer, group().order, now.row, active);
        copy_array<rows>(layout::row_code + 4 * rows * now.buffer, group().positions, now.row,
                         active);
        if constexpr (Radial)
          copy_array<rows>(layout::row_radius + 4 * rows * now.buffer, group().radius, now.row,
                           active);
      }
    }
    commit_copies();
  }

  // --- Products with tables --------------------------------------------------------------------

  __device__ __forceinline__ factor factor_of(const table_view& table, int which) const {
    return {table, group_head * static_cast<int>(table.head_stride), problem.head_dim,
            2 * (group().quant_length - 1),
            at<typename factor::element>(layout::tables + which * layout::table_bytes)};
  }

  /// Of row g or g + 8: is one of this lane's elements too large for products in half?
  static __device__ __forceinline__ bool has_large(const typename factor::rows& left, int i) {
    bool large = false;
#pragma unroll
    for (int step = 0; step < D / 16; ++step)
      large = large || is_large<T>(left.a[step][i], left.a[step][i + 2]);
    return large;
  }
  /// A linear axis of products of rows g and g + 8 by cell; `moves` are the rows' `moves_of`.
  template <bool Backwards>
  __device__ __forceinline__ void multiply_cells(
      const factor& table, const typename factor::rows& left, int axis,
      const std::uint32_t (&moves)[2], std::uint32_t (&cells)[parts][2][cell_words]) const {
    std::uint32_t by_row[parts][2][row_words];
    table.template multiply<Backwards>(left, axis, false, by_row);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const row_shift shift{moves[i] >> (8 * axis)};
#pragma unroll
      for (int part = 0; part < parts; ++part)
        shift.to_cells(by_row[part][i], cells[part][i], place.t);
    }
  }
  /// The radial axis of rows g and g + 8 by table row, to `target`, which is row g's.
  template <bool Backwards>
  __device__ __forceinline__ void multiply_radial(const factor& table,
                                                  const typename factor::rows& left,
                                                  std::byte* target, int eight_rows) const {
    target += 2 * place.t * layout::radial_element;
    if constexpr (parts == 1) {
      std::uint32_t by_row[1][2][row_words];
      table.template multiply<Backwards>(left, 2, true, by_row);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int block = 0; block < axis_blocks; ++block)
          *reinterpret_cast<std::uint32_t*>(target + i * eight_rows + block * 16) =
              by_row[0][i][block];
    } else {
#pragma unroll
      for (int block = 0; block < axis_blocks; ++block) {
        float product[4];
        table.template multiply<Backwards>(left, 2, block, true, product);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          *reinterpret_cast<float2*>(target + i * eight_rows + block * 32) = {product[2 * i],
                                                                              product[2 * i + 1]};
      }
    }
  }
  __device__ __forceinline__ float radial_product(int offset) const {
    if constexpr (parts == 1)
      return __half2float(*at<const half>(offset));
    else
      return *at<const float>(offset);
  }

  /// The warp's rows at their first turn: Gq, and sums of nothing.
  __device__ __forceinline__ void begin_rows(const turn& now, row_state& state) const {
    const T* query = at<T>(query_offset(now)) + warp * 16 * math::stride;
    state.q.load(query);
    typename factor::rows left;
    left.load(query);
    const int row = now.buffer * rows + warp * 16 + place.g;
    const std::uint32_t codes[2] = {at<std::uint32_t>(layout::row_code)[row],
                                    at<std::uint32_t>(layout::row_code)[row + 8]};
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[1], state.length, place.t)};
    const factor table = factor_of(group().table_q, 0);
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis) {
      std::uint32_t cells[parts][2][cell_words];
      multiply_cells<true>(table, left, axis, moves, cells);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int part = 0; part < parts; ++part)
#pragma unroll
          for (int word = 0; word < cell_words; ++word)
            state.products[part][i][axis * cell_words + word] = cells[part][i][word];
        const std::uint32_t position = position_twice(codes[i], axis);
        if constexpr (keeps_row_cells) {
#pragma unroll
          for (int word = axis * cell_words; word < (axis + 1) * cell_words; ++word)
            state.row_cells[i][word] = one_hot(position, own_cells(word));
        } else {
          state.positions[i][axis] = position;
        }
      }
    }
    if constexpr (parts == 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (has_large(left, i)) state.products[0][i][0] = nan_halves;
    }
    if constexpr (Radial) {
      multiply_radial<true>(table, left, radial_products(), layout::radial_row(8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int r = 4 * place.t; r < tile_rows; r += 16)
          *reinterpret_cast<uint4*>(radial_sums() + i * (layout::radial_row(8) / 4) + r) = {0, 0, 0, 0};
        // Never -0, nor then a difference of 0.
        state.radius[i] = at<float>(layout::row_radius)[row + 8 * i] + 0.0f;
        const int2 window = at<int2>(layout::row_bounds)[row + 8 * i];
        state.fixed_point[i] =
            window.y - window.x <= short_window ? fixed_start_short : fixed_start;
      }
    }
    state.softmax = softmax_state();
#pragma unroll
    for (auto& block : state.o)
#pragma unroll
      for (float& sum : block) sum = 0.0f;
#pragma unroll
    for (auto& block : state.cells)
#pragma unroll
      for (float& sum : block) sum = 0.0f;
  }

  /// Gk and positions of the turn's keys; all warps take part.
  __device__ __forceinline__ void prepare_keys(const turn& now, int stage) const {
    const int count = count_of(now);
    const auto* codes = at<const std::uint32_t>(layout::key_code) + stage * keys;
    static_assert(keys <= threads && rows <= threads);
    if (const int key = thread; key < keys) {
      const std::uint32_t code = key < count ? codes[key] : 0;
      std::uint32_t cells[layout::axes];
#pragma unroll
      for (int axis = 0; axis < layout::axes; ++axis) {
        cells[axis] = position_twice(code, axis);
        at<std::uint16_t>(layout::key_cells)[axis * keys + key] =
            static_cast<std::uint16_t>(cells[axis]);
      }
      if constexpr (Radial)
        at<key_cells>(layout::key_place)[key] = {cells[0], cells[1]};
      else
        at<key_cells>(layout::key_place)[key] = {cells[0], cells[1], cells[2], 0};
    }
    // 16 keys and all axes at a time, as long as that keeps all warps busy, then axis by axis.
    const int groups = (count + 15) / 16;
    int whole = 0;
    if constexpr (multiplies_axes_at_once) {
      whole = min((groups + 1) / warps * warps, groups);
#pragma unroll 1
      for (int first = warp; first < whole; first += warps) {
        const key_group keys_of_group = load_group(first, stage);
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) multiply_keys(keys_of_group, axis);
      }
    }
#pragma unroll 1
    for (int item = 3 * whole + warp; item < 3 * groups; item += warps)
      multiply_keys(load_group(item / 3, stage), item % 3);
  }
  /// 16 keys of a turn.
  struct key_group {
    typename factor::rows left;
    std::uint32_t moves[2];  ///< of keys g and g + 8
    std::byte* target;       ///< the products of key g
  };
  __device__ __forceinline__ key_group load_group(int group_of_turn, int stage) const {
    key_group result;
    result.left.load(key_tile(stage) + group_of_turn * 16 * math::stride);
    const int key = group_of_turn * 16 + place.g;
    const auto* codes = at<const std::uint32_t>(layout::key_code) + stage * keys + key;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      result.moves[i] = moves_of(codes[8 * i], group().quant_length, place.t);
    result.target = at<std::byte>(layout::key_products) + key * layout::key_stride;
    return result;
  }
  /// One axis of their products.
  __device__ __forceinline__ void multiply_keys(const key_group& own, int axis) const {
    const factor table = factor_of(group().table_k, 1);
    if (Radial && axis == 2) {
      multiply_radial<false>(table, own.left, own.target + parts * 2 * layout::cells,
                             8 * layout::key_stride);
      return;
    }
    std::uint32_t cells[parts][2][cell_words];
    multiply_cells<false>(table, own.left, axis, own.moves, cells);
    if constexpr (parts == 1) {
      if (axis == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (has_large(own.left, i)) cells[0][i][0] = nan_halves;
      }
    }
#pragma unroll
    for (int part = 0; part < parts; ++part)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int word = 0; word < cell_words; ++word)
          *reinterpret_cast<std::uint32_t*>(
              own.target + i * 8 * layout::key_stride + part * 2 * layout::cells +
              (axis * cell_words + word) * 16 + 4 * place.t) = cells[part][i][word];
  }

  // --- Pairs -----------------------------------------------------------------------------------

  /// Two elements of the one-hot row of a position, for factors whose lanes hold columns 2t and
  /// 2t + 1; `word` counts such registers over all axes.
  __device__ __forceinline__ std::uint32_t own_cells(int word) const {
    const int first = word % cell_words * 8 + place.t;
    return position_pair(first, first + 4);
  }

  /// This lane's row for `ldmatrix` of 16 rows of T, from `key` on.
  __device__ __forceinline__ const std::byte* matrix_rows(const T* tile, int key) const {
    return reinterpret_cast<const std::byte*>(tile) + (key + matrix_row) * layout::row_bytes +
           matrix_column;
  }
  /// Adds P·V, and the weights up as `tile_math` does.
  __device__ __forceinline__ void add_values(const float (&p)[2][4], const T* tile, int key,
                                             row_state& state) const {
    if constexpr (sizeof(T) == 4) {
      math::values_at(p, tile + key * math::stride + math::value_lane(), state.o,
                      state.softmax.sum);
    } else {
      const weight_fragment<T> weights(p);
      const std::byte* row = matrix_rows(tile, key);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        std::uint32_t b[4];
        load_matrices_transposed(b, row + step * 32);
        multiply_add_16<T>(state.o[2 * step], weights.a, b[0], b[2]);
        multiply_add_16<T>(state.o[2 * step + 1], weights.a, b[1], b[3]);
      }
      const std::uint32_t ones = pack<T>(1.0f, 1.0f);
      multiply_add_16<T>(state.softmax.sum, weights.a, ones, ones);
    }
  }

  /// `s` = q·k of 16 keys.
  __device__ __forceinline__ void score_rows(const row_state& state, const T* tile, int key,
                                             float (&s)[2][4]) const {
    if constexpr (sizeof(T) == 4) {
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
  /// Adds Σ Gq to `scores`, over linear axes; `sides` = Σ Gk.
  __device__ __forceinline__ void score_cells(const row_state& state, int key,
                                              float (&scores)[2][4], float (&sides)[2][4]) const {
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
          multiply_add_half_8(scores[b], state.products[part][0][word],
                              state.products[part][1][word], key_cell(b, word));
          multiply_add_half_8(sides[b], row_cell(0, word), row_cell(1, word), right[2 * b]);
        }
      }
    }
  }

  /// The rows' windows, as this lane sees them from a turn.
  struct row_windows {
    int lowest, highest;            ///< keys of the turn that some row of the warp attends to
    int common_first, common_last;  ///< keys that all rows attend to
    int first[2], last[2];          ///< of rows g and g + 8
  };
  __device__ __forceinline__ row_windows windows_of(const turn& now) const {
    row_windows windows{};
    const int own = min(16, min(rows, assigned - now.row) - warp * 16);
    if (own <= 0) return windows;
    const int count = count_of(now);
    const int2* bounds = at<const int2>(layout::row_bounds) + now.buffer * rows + warp * 16;
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

  /// The warp's rows against 16 keys from the turn's `key` on, of which those before `begin` have
  /// had their turn.
  template <bool Interior>
  __device__ __forceinline__ void attend(const row_windows& windows, int key, int begin, int stage,
                                         row_state& state) const {
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
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool attends = Interior || (attended >> (8 * b + e) & 1) != 0;
        s[b][e] = attends ? fmaf(sides[b][e], state.inverse_scale, s[b][e]) : -INFINITY;
        largest[e / 2] = fmaxf(largest[e / 2], s[b][e]);
      }
    const float factor = problem.scale * log2_e;
#pragma unroll
    for (float& row_logit : largest) row_logit *= factor;
    if (!state.softmax.holds(largest)) {
      float by[2];
      if (state.softmax.template raise<true>(largest, by)) rescale(by, state);
    }
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[b][e] = exp2_fast(fmaf(s[b][e], factor, state.softmax.offset[e / 2] - lag));
    add_values(s, value_tile(stage), key, state);
    if (state.has_values) add_weights(s, key, radial_steps, state);
  }

  /// Adds the radial axis' products to `scores` and `sides`; `radial_steps` say where they are.
  __device__ __forceinline__ void score_radial(const row_state& state, int key, int stage,
                                               float (&scores)[2][4], float (&sides)[2][4],
                                               int (&radial_steps)[2][4]) const {
    const int gq = in_register(state.radial + layout::radial_sums_bytes -
                               state.length * (4 - layout::radial_element));
    const int gk = in_register((key + 2 * place.t) * layout::key_stride + layout::key_products +
                               parts * 2 * layout::cells + state.length * layout::radial_element);
    const float* radii = at<const float>(layout::key_radius) + stage * keys + key + 2 * place.t;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const float2 pair = *reinterpret_cast<const float2*>(radii + 8 * b);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float radius = j == 0 ? pair.x : pair.y;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int step = radial_step(state.radius[i] - radius, state.inverse_a, state.most_steps);
          radial_steps[b][2 * i + j] = step;
          const int offset = step >> (layout::radial_element == 2 ? 21 : 20);
          scores[b][2 * i + j] += radial_product(gq + offset + i * layout::radial_row(8));
          sides[b][2 * i + j] += radial_product(gk + offset + (8 * b + j) * layout::key_stride);
        }
      }
    }
  }

  /// What has been summed up, by the rows' factors.
  __device__ __forceinline__ void rescale(const float (&by)[2], row_state& state) const {
#pragma unroll
    for (auto& block : state.o)
#pragma unroll
      for (int e = 0; e < 4; ++e) block[e] *= by[e / 2];
#pragma unroll
    for (auto& block : state.cells)
#pragma unroll
      for (int e = 0; e < 4; ++e) block[e] *= by[e / 2];
    // Radial sums stay as they are: units shrink by the same power of two. What is smaller than 2⁻⁶⁴
    // of a weight does not count.
    if constexpr (Radial) {
#pragma unroll
      for (int i = 0; i < 2; ++i) state.fixed_point[i] *= inverse_power(fmaxf(by[i], 0x1p-64f));
    }
  }
  /// One over a power of two.
  static __device__ __forceinline__ float inverse_power(float power) {
    return __uint_as_float(0x7f000000u - __float_as_uint(power));
  }
  __device__ __forceinline__ void rescale_radial(float first, float second) const {
    __syncwarp();
    for (int r = place.t; r < tile_rows; r += 4)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t& sum = radial_sums()[i * (layout::radial_row(8) / 4) + r];
        sum = __float2uint_rn(from_fixed(sum, i == 0 ? first : second));
      }
    __syncwarp();
  }

  /// A row's radial sums have a scale that follows its sum of weights, which stays below 2²² units
  /// (float: 2³¹): no sum of some weights reaches twice that, though each of them is rounded, and
  /// rounding costs little of it, however long the window is. Short windows begin with room for larger weights, as a rescaling costs them more than
  /// they lose.
  static constexpr float fixed_limit = lag > 0.0f ? 0x1p22f : 0x1p29f;
  static constexpr int short_window = 256;
  static constexpr float fixed_start = 0x1p23f, fixed_start_short = lag > 0.0f ? 0x1p20f : 0x1p23f;
  __device__ __forceinline__ void keep_fixed_point(row_state& state) const {
    float units[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) units[i] = state.softmax.sum[2 * i] * state.fixed_point[i];
    if (!__any_sync(0xffffffffu, fmaxf(units[0], units[1]) >= fixed_limit)) return;
    float by[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Float: lanes have shares of the sum.
      if constexpr (math::lane_sums) units[i] = quad_max(units[i]);
      // To an eighth to a quarter of the limit.
      by[i] = units[i] >= fixed_limit
                  ? __uint_as_float(__float_as_uint(fixed_limit * 0x1p125f) -
                                    (__float_as_uint(units[i]) & 0x7f800000u))
                  : 1.0f;
      state.fixed_point[i] *= by[i];
    }
    rescale_radial(by[0], by[1]);
  }
  /// Lanes of a warp add in some order, which does not matter to integers.
  __device__ __forceinline__ void add_shared(int offset, std::uint32_t weight) const {
    asm volatile("red.shared.add.u32 [%0], %1;\n" ::"r"(shared + static_cast<std::uint32_t>(offset)), "r"(weight) : "memory");
  }
  /// A weight in fixed point. Below 2²² units, adding 2²³ rounds it, and leaves the float's exponent
  /// above the 23 bits that count.
  /// \return `unit` times a sum.
  static __device__ __forceinline__ float from_fixed(std::uint32_t sum, float unit) {
    if constexpr (lag > 0.0f)
      return fmaf(__uint_as_float(__byte_perm(sum, 0x4b000000u, 0x7210u)), unit, -0x1p23f * unit);
    else
      return __uint2float_rn(sum) * unit;
  }
  static __device__ __forceinline__ std::uint32_t fixed(float weight, float scale) {
    if constexpr (lag > 0.0f)
      return __float_as_uint(fmaf(weight, scale, 0x1p23f));
    else
      return __float2uint_rn(weight * scale);
  }
  /// Adds weights up by the cells of their keys, and by radial rows.
  __device__ __forceinline__ void add_weights(const float (&p)[2][4], int key,
                                              const int (&radial_steps)[2][4],
                                              row_state& state) const {
    // Factors whose lanes hold column g of keys 2t and 2t + 1.
    std::uint32_t pairs[2][layout::axes];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis)
#pragma unroll
      for (int b = 0; b < 2; ++b)
        pairs[b][axis] = *reinterpret_cast<const std::uint32_t*>(
            at<const std::uint16_t>(layout::key_cells) + axis * keys + key + 8 * b + 2 * place.t);
    const weight_fragment<half> weights(p);
    const auto cells_of = [&](int b, int word) {
      const int first = word % cell_words * 8 + spread(place.g);
      return one_hot(pairs[b][word / cell_words], position_pair(first, first));
    };
    if constexpr (sizeof(T) == 4) {
      float rest[2][4];
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) rest[b][e] = p[b][e] - __half2float(__float2half_rn(p[b][e]));
      const weight_fragment<half> low(rest);
#pragma unroll
      for (int word = 0; word < words; ++word) {
        // Tensor cores cut sums off instead of rounding them, so they sum 16 keys only.
        float sum[4];
        const std::uint32_t first = cells_of(0, word);
        const std::uint32_t second = cells_of(1, word);
        multiply_16<half>(sum, low.a, first, second);
        multiply_add_16<half>(sum, weights.a, first, second);
#pragma unroll
        for (int e = 0; e < 4; ++e) state.cells[word][e] += sum[e];
      }
    } else {
#pragma unroll
      for (int word = 0; word < words; ++word)
        multiply_add_16<half>(state.cells[word], weights.a, cells_of(0, word), cells_of(1, word));
    }
    if constexpr (Radial) {
      keep_fixed_point(state);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          add_shared(state.radial + (radial_steps[b][e] >> 20) + e / 2 * layout::radial_row(8),
                     fixed(p[b][e], state.fixed_point[e / 2]));
    }
  }

  // --- The end of a block of rows --------------------------------------------------------------

  /// Tv of axes [first, first + count), rows of T by table row as `to_rows` has them, zeros where
  /// the table ends.
  __device__ __forceinline__ void load_value_table(int first, int count) const {
    const table_view& table = group().table_v;
    if (table.data == nullptr) return;
    const int last = 2 * (group().quant_length - 1);
    const int column = thread % chunks * width;
    for (int i = thread / chunks; i < count * tile_rows; i += threads / chunks) {
      const int axis = first + i / tile_rows;
      const int row = i % tile_rows;
      const bool radial_axis = Radial && axis == 2;
      const int source = radial_axis ? row : last - (row / 8 * 8 + spread(row % 8));
      const std::int64_t offset = source * table.row_stride + axis * table.axis_stride +
                                  group_head * table.head_stride + column;
      uint4 bits = {0, 0, 0, 0};
      if (source >= 0 && source <= (radial_axis ? last + 1 : last) && column < problem.head_dim) {
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
      *reinterpret_cast<uint4*>(at<T>(layout::value_table) + i * math::stride + column) = bits;
    }
  }

  /// 16 rows of weights by table row, times one axis of Tv.
  __device__ __forceinline__ void add_table(const std::uint32_t (&w)[weight_parts][2][row_words],
                                            int axis, row_state& state) const {
    const T* table = at<const T>(layout::value_table) +
                     (layout::tuning.value_axes == 1 ? 0 : axis) * tile_rows * math::stride;
#pragma unroll
    for (int step = 0; step < tile_rows / 16; ++step) {
      if constexpr (sizeof(T) == 4) {
        float p[2][4];
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float2 high =
                __half22float2(*reinterpret_cast<const half2*>(&w[0][i][2 * step + b]));
            const float2 low = __half22float2(
                *reinterpret_cast<const half2*>(&w[weight_parts - 1][i][2 * step + b]));
            p[b][2 * i] = high.x + low.x;
            p[b][2 * i + 1] = high.y + low.y;
          }
        math::values(p, table, 16 * step, tile_rows - 1, state.o);
      } else {
        weight_fragment<T> weights;
#pragma unroll
        for (int j = 0; j < 4; ++j) weights.a[j] = w[0][j % 2][2 * step + j / 2];
        multiply_rows<T, math::blocks>(
            weights, table + (16 * step + place.lane % 16) * math::stride, state.o);
      }
    }
  }
  static __device__ __forceinline__ void round_weights(float low, float high,
                                                       std::uint32_t (&parts_)[weight_parts]) {
    if constexpr (sizeof(T) == 4)
      split(low, high, parts_);
    else
      parts_[0] = pack<T>(low, high);
  }

  /// Normalises, adds Σ B·Tv and stores. \return whether some row is not finite.
  __device__ __forceinline__ bool finish_rows(const turn& now, row_state& state) const {
    state.softmax.template finish<math::lane_sums>();
    float by[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) by[i] = __fdividef(1.0f, state.softmax.sum[2 * i]);
    const auto normalize = [&] {
#pragma unroll
      for (auto& block : state.o)
#pragma unroll
        for (int e = 0; e < 4; ++e) block[e] *= by[e / 2];
    };
    constexpr bool early = sizeof(T) == 4;
    if constexpr (early) normalize();
    if (group().table_v.data != nullptr) {
      const auto* codes =
          at<const std::uint32_t>(layout::row_code) + now.buffer * rows + warp * 16 + place.g;
      const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                      moves_of(codes[8], state.length, place.t)};
#pragma unroll
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
              const auto& sums = state.cells[min(axis * cell_words + word, words - 1)];
              std::uint32_t pair[weight_parts];
              round_weights(early ? sums[2 * i] * by[i] : sums[2 * i],
                            early ? sums[2 * i + 1] * by[i] : sums[2 * i + 1], pair);
#pragma unroll
              for (int part = 0; part < weight_parts; ++part) cells[part][word] = pair[part];
            }
#pragma unroll
            for (int part = 0; part < weight_parts; ++part) shift.to_rows(cells[part], w[part][i]);
          }
        }
        add_table(w, axis, state);
      }
    }
    if constexpr (!early) normalize();
    return store(now, state);
  }

  /// Stores four neighbouring columns of 16 bits or two of 32, as the view allows.
  static __device__ __forceinline__ void store_columns(T* target, std::uint32_t low,
                                                       std::uint32_t high) {
    if constexpr (Vectors) {
      *reinterpret_cast<uint2*>(target) = {low, high};
    } else {
      const std::uint32_t bits[2] = {low, high};
      T elements[8 / sizeof(T)];
      memcpy(elements, bits, sizeof bits);
      for (int e = 0; e < static_cast<int>(8 / sizeof(T)); ++e) target[e] = elements[e];
    }
  }
  /// \return whether some row of the warp is not finite.
  __device__ __forceinline__ bool store(const turn& now, const row_state& state) const {
    const int own = min(16, min(rows, assigned - now.row) - warp * 16);
    if (own <= 0) return false;
    const int head = group().first_head + group_head;
    const auto* tokens = at<const std::int32_t>(layout::row_order) + now.buffer * rows + warp * 16;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      const std::int64_t token = tokens[row];
      T* target = static_cast<T*>(const_cast<void*>(problem.out.data)) +
                  head * problem.out.head_stride + token * problem.out.token_stride;
      float zero = 0.0f;
#pragma unroll
      for (const auto& block : state.o) zero += block[2 * i] * 0.0f + block[2 * i + 1] * 0.0f;
      finite = finite && (zero == 0.0f || row >= own);
      if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int block = 0; block < math::blocks; ++block)
          if (row < own && 8 * block < problem.head_dim)
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
          if (row < own && column < problem.head_dim)
            store_columns(target + column + place.t / 2 * 4, odd ? other : first,
                          odd ? second : other);
        }
      }
      if (problem.lse != nullptr && place.t == 0 && row < own)
        problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] =
            state.softmax.log_sum(i) + lag * ln_2;
    }
    return __any_sync(0xffffffffu, !finite);
  }

  /// All the block's rows of one head. \return whether some row of the warp is not finite.
  __device__ __forceinline__ bool run() const {
    if constexpr (staged) {
      using element = typename factor::element;
      factor_of(group().table_q, 0)
          .template stage<true>(at<element>(layout::tables), Radial, warp, warps);
      factor_of(group().table_k, 1)
          .template stage<false>(at<element>(layout::tables + layout::table_bytes), Radial, warp,
                                 warps);
    }
    if constexpr (layout::tuning.value_axes == 3) load_value_table(0, 3);

    const row_bases bases{base_of(problem.q), base_of(problem.k), base_of(problem.v)};
    next_rows next{min(share * rows, assigned), 0, 0};
    load_bounds(next);
    turn_tokens tokens{};
    turn now = follow({0, 0, 0, 1, false}, next);
    load_tokens(now, tokens);
    request(now, 0, tokens, bases);
    turn coming = follow(now, next);
    load_tokens(coming, tokens);
    row_state state;
    state.has_values = group().table_v.data != nullptr;
    state.length = group().quant_length;
    state.inverse_a = group().inverse_a;
    if constexpr (Radial)
      state.radial = in_register(layout::scratch + warp * layout::scratch_bytes +
                                 layout::radial_row(place.g) + 4 * state.length);
    state.inverse_scale = __fdividef(1.0f, problem.scale);
    state.most_steps = (state.length << 22) - 1;
    bool bad = false;
    int stage = 0;
#pragma unroll 1
    while (now.row < assigned) {
      wait_for_copies<0>();
      __syncthreads();
      if (now.first) begin_rows(now, state);
      prepare_keys(now, stage);
      __syncthreads();
      if constexpr (layout::stages == 2) request(coming, stage ^ 1, tokens, bases);
      const row_windows windows = windows_of(now);
#pragma unroll 1
      for (int begin = windows.lowest & ~1; begin < windows.highest; begin += 16) {
        const int key = min(begin, keys - 16);
        if (begin >= windows.common_first && begin + 16 <= windows.common_last)
          attend<true>(windows, begin, begin, stage, state);
        else
          attend<false>(windows, key, begin, stage, state);
      }
      if (now.key + keys >= now.end) bad |= finish_rows(now, state);
      if constexpr (layout::stages == 1) {
        __syncthreads();
        request(coming, 0, tokens, bases);
      } else {
        stage ^= 1;
      }
      now = coming;
      coming = follow(now, next);
      load_tokens(coming, tokens);
    }
    wait_for_copies<0>();
    return bad;
  }
};

}  // namespace winnow::detail
