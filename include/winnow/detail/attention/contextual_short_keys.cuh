// SPDX-License-Identifier: Apache-2.0
/// \file
/// The pairs of short windows with 16-bit storage, in units whose rows are their keys (contextual_short.cuh).
///
/// Each key meets Tk once, and its products stay in shared memory until the unit's rows have met them: those of linear
/// axes as the right factors that they will be, 16 bytes a lane, those of the radial axis by table row. Then each 16 rows
/// meet all keys at once: their logits, of up to 48 keys, fit registers, so that the largest ones are known before the
/// first weight, and nothing is rescaled.
///
/// All of a logit is one chain of matrix products: q·k; Gq times one-hot keys; one-hot rows times Gk; and what the
/// radial axis looks up, two neighbouring keys' products a register, times a unit matrix for Gq and one for Gk, which
/// converts and adds them. What of it is to be divided by the scale, as logits count over it, comes from keys over the
/// scale: exactly where that is a power of two, else with elements rounded once.
///
/// NaN and infinity: a radial product that is not finite spoils its row's logits with all eight keys of the product.
/// Such rows are found at the end, as in contextual_kernel.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_short_units.cuh"
#include "winnow/detail/attention/contextual_table.cuh"
#include "winnow/detail/attention/contextual_tokens.cuh"
#include "winnow/detail/attention/contextual_weights.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_short_keys : contextual_short_units<T, Radial> {
  using base = contextual_short_units<T, Radial>;
  using base::all;
  using base::place;
  using base::problem;
  using base::shared;
  using base::warp;
  using base::words;
  using typename base::layout;
  using typename base::unit;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  struct row_state : base::row_state {
    std::uint32_t unit;  ///< matrix of 8 x 8
    int left_row;        ///< where this lane's row of `ldmatrix` lies in 16 rows of keys or values
  };
  __device__ __forceinline__ void begin_block(row_state& state) const {
    base::begin_block(state);
    state.unit = kept_in_register(place.g / 2 == place.t ? 0x3c00u << (place.g % 2 * 16) : 0u);
    state.left_row = in_register(place.lane % 16 * layout::row_bytes +
                                 (place.lane / 16 ^ place.lane >> 2) % 2 * 16);
  }
  /// Two elements over the scale.
  static __device__ __forceinline__ std::uint32_t over_scale(std::uint32_t pair,
                                                             const row_state& state) {
    if constexpr (std::is_same_v<T, half>) {
      const half2 product =
          __hmul2(*reinterpret_cast<const half2*>(&pair), __float2half2_rn(state.inverse_scale));
      return *reinterpret_cast<const std::uint32_t*>(&product);
    } else {
      const float2 both = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
      return pack<T>(both.x * state.inverse_scale, both.y * state.inverse_scale);
    }
  }

  /// The head's tables; all threads take part. Everything is asked for before anything is stored.
  __device__ __forceinline__ void load_tables() const {
    using factor = typename base::factor;
    using element = typename factor::element;
    const factor of_q = this->factor_of(this->group().table_q, 0);
    const factor q_or_k = this->factor_of(this->group().table_k, 1);
    // Keys are left factors by `ldmatrix`, whose lanes take dims as others do.
    const table_factor<T, 16, true> of_k{q_or_k.table, q_or_k.head_offset, q_or_k.dim, q_or_k.last,
                                         q_or_k.staged};
    const bool are_float = of_q.table.is_float || of_k.table.is_float;
    constexpr int blocks = 3 * axis_blocks, turns = 2;
    const int warps = base::warps();
    static_assert(layout::most_warps <= blocks);
#pragma unroll 1
    for (int first = this->warp; first < blocks; first += turns * warps) {
      element parts[turns][2];
#pragma unroll
      for (int turn = 0; turn < turns; ++turn) {
        const int block = min(first + turn * warps, blocks - 1);
        const int axis = block / axis_blocks, row = block % axis_blocks;
        const bool radial = axis == 2;
        if (are_float) {
          parts[turn][0] = of_q.template load<true>(axis, row, 0, radial);
          parts[turn][1] = of_k.template load<false>(axis, row, 0, radial);
        } else {
          parts[turn][0] = of_q.template load_stored<true>(axis, row, radial);
          parts[turn][1] = of_k.template load_stored<false>(axis, row, radial);
        }
      }
      if (first == this->warp) this->load_value_table(0, 3);
#pragma unroll
      for (int turn = 0; turn < turns; ++turn)
        if (const int block = first + turn * warps; block < blocks)
#pragma unroll
          for (int which = 0; which < 2; ++which)
            this->template table_at<element>(
                layout::tables + which * layout::table_bytes)[factor::element_at(block, 0)] =
                parts[turn][which];
    }
  }

  /// Where 16 keys' products of linear axes lie, and a key's of the radial one.
  __device__ __forceinline__ uint4* key_factors(int key) const {
    return at<uint4>(layout::key_factors) + key / 16 * (words / 2) * 32 + place.lane;
  }
  /// Four neighbouring dims of keys g and g + 8 of 16.
  __device__ __forceinline__ void load_key_dims(int key, uint2 (&dims)[2]) const {
    const auto* own = at<const std::byte>(layout::key_tiles) + (key + place.g) * layout::row_bytes +
                      (8 * place.t ^ place.g / 4 * 16);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      dims[i] = *reinterpret_cast<const uint2*>(own + 8 * i * layout::row_bytes);
  }
  /// Positions of 16 keys of a unit, and their products with Tk.
  __device__ __forceinline__ void prepare_keys(const unit& now, int key,
                                               const row_state& state) const {
    const auto* codes = at<const std::uint32_t>(layout::row_code) + now.buffer + key;
    // Behind the last key are other tokens' or zeros.
    if (place.lane < 16) {
      this->place_key(key + place.lane, codes[place.lane]);
      // Where there is no key, both ends of the table in turn, so that few words of a bank differ.
      const float end = (place.lane & 2) != 0 ? 0x1p100f : -0x1p100f;
      at<float>(layout::key_radius)[key + place.lane] =
          key + place.lane < now.count
              ? at<const float>(layout::row_radius)[now.buffer + key + place.lane]
              : end;
    }
    const std::uint32_t moves[2] = {moves_of(codes[place.g], state.length, place.t),
                                    moves_of(codes[place.g + 8], state.length, place.t)};
    typename base::factor::rows left;
    load_matrices(left.a[0], at<const std::byte>(layout::key_tiles) + key * layout::row_bytes +
                                 state.left_row);
    const bool are_large[2] = {base::has_large(left, 0), base::has_large(left, 1)};
#pragma unroll
    for (std::uint32_t& pair : left.a[0]) pair = over_scale(pair, state);
    const auto table = this->factor_of(this->group().table_k, 1);
    std::uint32_t products[2][words];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis) {
      std::uint32_t cells[1][2][cell_words];
      this->template multiply_cells<false>(table, left, axis, moves, cells);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int word = 0; word < cell_words; ++word)
          products[i][axis * cell_words + word] = cells[0][i][word];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (are_large[i]) products[i][0] = nan_halves;
    uint4* factors = key_factors(key);
    static_assert(words % 2 == 0);
#pragma unroll
    for (int word = 0; word < words; word += 2)
      factors[word / 2 * 32] = {products[0][word], products[0][word + 1], products[1][word],
                                products[1][word + 1]};
    this->template multiply_radial<false>(
        table, left, at<std::byte>(layout::key_radials) + layout::radial_key(key + place.g),
        layout::radial_key(8));
  }

  /// What logits of 16 rows and 16 keys have of the radial axis, as left factors: products of the rows' Tq, and of the
  /// keys' Tk.
  __device__ __forceinline__ void look_up(const row_state& state, const float* radii,
                                          std::uint32_t of_rows, std::uint32_t of_keys,
                                          std::uint32_t (&pairs)[2][4], int (&steps)[2][4]) const {
    const auto of_block = [&](auto block_constant) {
      constexpr int b = decltype(block_constant)::value;
      const float2 both = *reinterpret_cast<const float2*>(radii + 8 * b);
      const float far[2] = {both.x, both.y};
#pragma unroll
      for (int e = 0; e < 4; ++e)
        steps[b][e] =
            radial_step(state.radius[e / 2] - far[e % 2], state.inverse_a, state.most_steps);
      const auto offset = [&](int e) { return static_cast<std::uint32_t>(steps[b][e] >> 21); };
      pairs[b][0] = std::uint32_t{load_shared_half<0>(of_rows + offset(0))} |
                    std::uint32_t{load_shared_half<0>(of_rows + offset(1))} << 16;
      pairs[b][1] = std::uint32_t{load_shared_half<layout::radial_row(8)>(of_rows + offset(2))} |
                    std::uint32_t{load_shared_half<layout::radial_row(8)>(of_rows + offset(3))}
                        << 16;
      pairs[b][2] =
          std::uint32_t{load_shared_half<layout::radial_key(8 * b)>(of_keys + offset(0))} |
          std::uint32_t{load_shared_half<layout::radial_key(8 * b + 1)>(of_keys + offset(1))} << 16;
      pairs[b][3] =
          std::uint32_t{load_shared_half<layout::radial_key(8 * b)>(of_keys + offset(2))} |
          std::uint32_t{load_shared_half<layout::radial_key(8 * b + 1)>(of_keys + offset(3))} << 16;
    };
    of_block(std::integral_constant<int, 0>());
    of_block(std::integral_constant<int, 1>());
  }
  /// The rest of those logits: q·k, and of linear axes what Gq and Gk make.
  __device__ __forceinline__ void score_linear(const row_state& state,
                                               const std::uint32_t (&row_cells)[2][words], int key,
                                               float (&scores)[2][4]) const {
    uint2 dims[2];
    load_key_dims(key, dims);
#pragma unroll
    for (int b = 0; b < 2; ++b) multiply_16<T>(scores[b], state.q.a[0], dims[b].x, dims[b].y);
    std::uint32_t positions[2][2];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const std::uint32_t both = at<const std::uint32_t>(layout::key_place)[key + 8 * b + place.g];
      positions[b][0] = __byte_perm(both, 0, 0x1010);
      positions[b][1] = __byte_perm(both, 0, 0x3232);
    }
    const uint4* factors = key_factors(key);
#pragma unroll
    for (int word = 0; word < words; word += 2) {
      const auto& products = state.products[0];
      const std::uint32_t own[4] = {products[0][word], products[1][word], products[0][word + 1],
                                    products[1][word + 1]};
      const std::uint32_t left[4] = {row_cells[0][word], row_cells[1][word], row_cells[0][word + 1],
                                     row_cells[1][word + 1]};
      const uint4 right = factors[word / 2 * 32];
#pragma unroll
      for (int b = 0; b < 2; ++b)
        multiply_add_16<half>(
            scores[b], own, one_hot(positions[b][word / cell_words], this->own_cells(word)),
            one_hot(positions[b][(word + 1) / cell_words], this->own_cells(word + 1)));
      multiply_add_16<half>(scores[0], left, right.x, right.y);
      multiply_add_16<half>(scores[1], left, right.z, right.w);
    }
  }

  /// The tile's rows against all keys of the unit: all logits, the largest ones, then the weights, which are at
  /// most 1.
  __device__ __forceinline__ void attend_to_keys(const unit& now, row_state& state) const {
    constexpr int groups = layout::rows / 16;
    float s[groups][2][4];
    int steps[groups][2][4];
    std::uint32_t row_cells[2][words];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t code =
          at<const std::uint32_t>(layout::row_code)[now.buffer + 16 * warp + place.g + 8 * i];
#pragma unroll
      for (int word = 0; word < words; ++word)
        row_cells[i][word] =
            one_hot(position_twice(code, word / cell_words), this->own_cells(word));
    }
    const float* radii = at<const float>(layout::key_radius) + 2 * place.t;
    const std::uint32_t of_rows =
        shared + static_cast<std::uint32_t>(state.radial - 2 * state.length);
    const std::uint32_t of_keys =
        shared + static_cast<std::uint32_t>(in_register(layout::radial_key(2 * place.t) +
                                                        layout::key_radials + 2 * state.length));
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      const int key = 16 * group;
      if (group > 0 && key >= now.count) break;
      std::uint32_t pairs[2][4];
      score_linear(state, row_cells, key, s[group]);
      look_up(state, radii + key, of_rows,
              of_keys + static_cast<std::uint32_t>(layout::radial_key(key)), pairs, steps[group]);
#pragma unroll
      for (int b = 0; b < 2; ++b)
        multiply_add_16<half>(s[group][b], pairs[b], state.unit, state.unit);
      if (group == 0 && now.count <= 16) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // Not before it is known to be needed.
          const auto marks = static_cast<std::uint32_t>(in_register(static_cast<int>(now.marks)));
          const int2 window = base::window_of(marks, place.g + 8 * i);
#pragma unroll
          for (int b = 0; b < 2; ++b)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int own = 8 * b + 2 * place.t + j;
              if (own < window.x || own >= window.y) s[group][b][2 * i + j] = -INFINITY;
            }
        }
      } else if (group > 0 && key + 16 > now.count) {
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (key + 8 * b + 2 * place.t + e % 2 >= now.count) s[group][b][e] = -INFINITY;
      }
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) largest[e / 2] = fmaxf(largest[e / 2], s[group][b][e]);
    }
    __syncwarp();  // all lanes have read the rows' radial products
    clear_sums();
#pragma unroll
    for (int step = 1; step <= 2; ++step) {
      const float other[2] = {__shfl_xor_sync(all, largest[0], step),
                              __shfl_xor_sync(all, largest[1], step)};
#pragma unroll
      for (int i = 0; i < 2; ++i) largest[i] = fmaxf(largest[i], other[i]);
    }
    __syncwarp();
    const float factor = problem.scale * log2_e;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      state.softmax.offset[i] = largest[i] == -INFINITY ? 0.0f : -largest[i] * factor;
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      const int key = 16 * group;
      if (group > 0 && key >= now.count) break;
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[group][b][e] = exp2_fast(fmaf(s[group][b][e], factor, state.softmax.offset[e / 2]));
      const weight_fragment<T> weights(s[group]);
      add_rows(weights, key, state);
      if (state.has_values) add_weights(s[group], weights, key, steps[group], state);
    }
  }
  /// P·V of 16 keys, and the weights.
  __device__ __forceinline__ void add_rows(const weight_fragment<T>& weights, int key,
                                           row_state& state) const {
    std::uint32_t rows_[4];
    load_matrices_transposed(rows_, at<const std::byte>(layout::key_tiles + layout::tile_bytes) +
                                        key * layout::row_bytes + state.left_row);
#pragma unroll
    for (int block = 0; block < 2; ++block)
      multiply_add_16<T>(state.o[block], weights.a, rows_[2 * block], rows_[2 * block + 1]);
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    multiply_add_16<T>(state.softmax.sum, weights.a, ones, ones);
  }

  /// Sums by radial row are the bits of floats, 2²³ and so many units of 2⁻¹⁷ of a weight of 1, of which 48 stay below
  /// 2²³.
  static constexpr std::uint32_t no_units = 0x4b000000u, units_of_one = 1u << 17;
  __device__ __forceinline__ void clear_sums() const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 4 * place.t; r < tile_rows; r += 16)
        *reinterpret_cast<uint4*>(this->radial_sums() + i * (layout::radial_row(8) / 4) + r) = {
            no_units, no_units, no_units, no_units};
  }
  /// Adds weights up by the cells of their keys, and by radial rows.
  __device__ __forceinline__ void add_weights(const float (&p)[2][4],
                                              const weight_fragment<T>& rounded, int key,
                                              const int (&steps)[2][4], row_state& state) const {
    // Factors whose lanes hold column g of keys 2t and 2t + 1.
    std::uint32_t pairs[2][layout::axes];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const uint2 places = *reinterpret_cast<const uint2*>(
          at<const std::uint32_t>(layout::key_place) + key + 8 * b + 2 * place.t);
      pairs[b][0] = __byte_perm(places.x, places.y, 0x5410u);
      pairs[b][1] = __byte_perm(places.x, places.y, 0x7632u);
    }
    weight_fragment<half> weights;
    if constexpr (std::is_same_v<T, half>)
      weights = rounded;
    else
      weights = weight_fragment<half>(p);
#pragma unroll
    for (int word = 0; word < words; ++word) {
      const int first = word % cell_words * 8 + spread(place.g);
      const std::uint32_t cells = position_pair(first, first);
      multiply_add_16<half>(state.cells[word], weights.a,
                            one_hot(pairs[0][word / cell_words], cells),
                            one_hot(pairs[1][word / cell_words], cells));
    }
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        this->add_shared(state.radial + (steps[b][e] >> 20) + e / 2 * layout::radial_row(8),
                         round_to_integer(p[b][e], units_of_one));
  }

  // --- The end of 16 rows -------------------------------------------------------------------------

  /// Adds 16 rows of weights by table row times one axis of Tv.
  __device__ __forceinline__ void add_axis(const std::uint32_t (&weights)[2][row_words], int axis,
                                           float (&o)[2][4]) const {
    using math = typename base::math;
    const T* table = this->template table_at<const T>(layout::value_table) +
                     (axis * tile_rows + place.lane % 16) * math::stride;
#pragma unroll
    for (int step = 0; step < tile_rows / 16; ++step) {
      weight_fragment<T> left;
#pragma unroll
      for (int j = 0; j < 4; ++j) left.a[j] = weights[j % 2][2 * step + j / 2];
      multiply_rows<T, math::blocks>(left, table + 16 * step * math::stride, o);
    }
  }
  /// Adds Σ B·Tv. Products of the radial axis, whose weights lie ready, run beside the moves of the others.
  __device__ __forceinline__ void add_tables(const unit& now, row_state& state) const {
    const auto* codes =
        at<const std::uint32_t>(layout::row_code) + now.buffer + 16 * warp + place.g;
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[8], state.length, place.t)};
    std::uint32_t weights[2][row_words];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int word = 0; word < row_words; word += 2) {
        const uint4 sums = *reinterpret_cast<const uint4*>(
            this->radial_sums() + i * (layout::radial_row(8) / 4) + 8 * word + 4 * place.t);
        constexpr float unit = 1.0f / static_cast<float>(units_of_one);
        const auto value = [&](std::uint32_t sum) {
          return fmaf(__uint_as_float(sum), unit, -0x1p23f * unit);
        };
        weights[i][word] = pack<T>(value(sums.x), value(sums.y));
        weights[i][word + 1] = pack<T>(value(sums.z), value(sums.w));
      }
    float radial[2][4] = {};
    add_axis(weights, 2, radial);
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t cells[cell_words];
#pragma unroll
        for (int word = 0; word < cell_words; ++word) {
          const auto& sums = state.cells[axis * cell_words + word];
          cells[word] = pack<T>(sums[2 * i], sums[2 * i + 1]);
        }
        row_shift{moves[i] >> (8 * axis)}.to_rows(cells, weights[i]);
      }
      add_axis(weights, axis, state.o);
    }
#pragma unroll
    for (int block = 0; block < 2; ++block)
#pragma unroll
      for (int e = 0; e < 4; ++e) state.o[block][e] += radial[block][e];
  }
  /// Adds Σ B·Tv, normalises and stores. \return is one of this lane's elements not finite?
  __device__ __forceinline__ bool finish_tile(const unit& now, row_state& state) const {
    const int own = now.count - 16 * warp;
    const auto* tokens =
        at<const std::int32_t>(layout::row_order) + now.buffer + 16 * warp + place.g;
    const std::int32_t rows_[2] = {tokens[0], tokens[8]};
    const std::byte* const results_ = this->pointer(base::results);
    const std::byte* const lse_ = this->pointer(base::lse);
    if (state.has_values) add_tables(now, state);
    const bool odd = place.t % 2 == 1;
    const bool column = odd <= (problem.head_dim > 8);
    int bad = 0;
    std::uint32_t first[2], second[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float by = reciprocal(state.softmax.sum[2 * i]);
      float o[2][2];
#pragma unroll
      for (int block = 0; block < 2; ++block)
#pragma unroll
        for (int j = 0; j < 2; ++j) o[block][j] = state.o[block][2 * i + j] * by;
      const float largest = (fabsf(o[0][0]) + fabsf(o[0][1])) + (fabsf(o[1][0]) + fabsf(o[1][1]));
      // Without branches.
      bad |= static_cast<int>(!(largest < INFINITY)) & static_cast<int>(place.g + 8 * i < own);
      first[i] = pack<T>(o[0][0], o[0][1]);
      second[i] = pack<T>(o[1][0], o[1][1]);
    }
    // Neighbouring lanes swap, so that each has four columns.
    std::uint32_t other[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) other[i] = __shfl_xor_sync(all, odd ? first[i] : second[i], 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      auto* target =
          const_cast<std::byte*>(base::row_at(results_, rows_[i], problem.out.token_stride));
      if (place.g + 8 * i < own && column)
        *reinterpret_cast<uint2*>(target) = {odd ? other[i] : first[i], odd ? second[i] : other[i]};
    }
    // The quad's first lane has row g, its second one g + 8.
    if (problem.lse != nullptr) {
      const float sum = odd ? state.softmax.sum[2] : state.softmax.sum[0];
      const float offset = odd ? state.softmax.offset[1] : state.softmax.offset[0];
      std::byte* target;
      asm("mad.wide.s32 %0, %1, %2, %3;"
          : "=l"(target)
          : "r"(odd ? rows_[1] : rows_[0]),
            "r"(static_cast<std::int32_t>(problem.lse_token_stride * 4)), "l"(lse_));
      if (place.g + 8 * (place.t & 1) < own && place.t < 2)
        *reinterpret_cast<float*>(target) = (__log2f(sum) - offset) * ln_2;
    }
    return bad != 0;
  }
};

}  // namespace winnow::detail
