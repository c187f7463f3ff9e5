// SPDX-License-Identifier: Apache-2.0
/// \file
/// Double units: cubic windows of 17 to 32 tokens, a window each, whose 32 rows are their keys, two heads at a time.
///
/// Keys are multiplied with Tk once. Their parts of the logits of all rows are kept as halves, which are the left factor
/// of a product with a unit matrix that adds them to the rest. Then 16 rows at a time have all their logits before
/// the first weight, as in contextual_units.cuh. K and V of the next double unit arrive meanwhile, and its q when this
/// one's has been used.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_units_tiles.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_doubles : contextual_units_tiles<T, Heads> {
  using base = contextual_units_tiles<T, Heads>;
  using base::all;
  using base::copy_part;
  using base::group;
  using base::heads;
  using base::passes;
  using base::place;
  using base::problem;
  using base::rows_of_pass;
  using typename base::axis_cells;
  using typename base::heads_state;
  using typename base::layout;
  using typename base::rows_of_head;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  static constexpr int groups = 2;  ///< of 16 rows, or keys
  struct double_place {
    int first, count;    ///< the window's first slot, and its tokens; there is none of 0
    int set;             ///< of the rows of K and V
    std::int32_t token;  ///< of this lane's row
  };
  /// Logits of 16 rows over the scale.
  using logits = float[Heads][groups][2][4];
  /// The keys' part of them, as left factors of halves.
  using key_sides = std::uint32_t[Heads][groups][4];

  __device__ __forceinline__ void take_double(double_place& next) const {
    const int index = this->reserve(base::next_double, 1);
    next.count = 0;
    if (index >= this->double_count()) return;
    const int2 window = this->template table_at<const int2>(layout::doubles)[index];
    next.first = window.x, next.count = window.y;
    next.set ^= 1;
    next.token = group().order[next.first + min(place.lane, next.count - 1)];
  }

  /// 16 rows of a head. \param which K or V.
  static __device__ __forceinline__ int keys_at(int set, int which, int group_of_16, int h) {
    return layout::double_keys +
           (((set * 2 + which) * groups + group_of_16) * heads + h) * layout::tile_bytes;
  }
  static __device__ __forceinline__ int queries_at(int group_of_16, int h) {
    return layout::double_queries + (group_of_16 * heads + h) * layout::tile_bytes;
  }
  /// Rows of the window, and zeros behind the last.
  __device__ __forceinline__ void copy_window(const double_place& next, int target, int which,
                                              std::int64_t stride) const {
    const std::byte* const rows = this->source(which);
    const bool column = this->has_part();
    target += this->own_part();
#pragma unroll
    for (int pass = 0; pass < groups * passes; ++pass) {
      const int row = this->own_row() + rows_of_pass * pass;
      const std::int32_t token = __shfl_sync(all, next.token, row);
      copy_part(target + pass / passes * heads * layout::tile_bytes +
                    pass % passes * rows_of_pass * layout::row_bytes,
                rows, token, stride, column && row < next.count);
    }
  }
  __device__ __forceinline__ void request_keys(const double_place& next) const {
    copy_window(next, keys_at(next.set, 0, 0, 0), base::keys_, problem.k.token_stride);
    copy_window(next, keys_at(next.set, 1, 0, 0), base::values, problem.v.token_stride);
    const bool has_row = place.lane < next.count;
    const std::uint32_t target =
        this->own_address() +
        4 * static_cast<std::uint32_t>(next.set * layout::double_rows + place.lane);
    copy_element_async(target + layout::double_codes, group().positions + next.first + place.lane,
                       has_row);
    copy_element_async(target + layout::double_tokens, group().order + next.first + place.lane,
                       has_row);
  }
  __device__ __forceinline__ void request_queries(const double_place& next) const {
    copy_window(next, layout::double_queries, base::queries, problem.q.token_stride);
  }

  __device__ __forceinline__ const std::uint32_t* codes_of(const double_place& now) const {
    return at<const std::uint32_t>(layout::double_codes) + now.set * layout::double_rows;
  }
  /// All keys times Tk: their part of the logits of each 16 rows.
  __device__ __forceinline__ void score_keys(const double_place& now, const heads_state& state,
                                             key_sides (&sides)[groups]) const {
    const std::uint32_t* const codes = codes_of(now) + place.g;
    const std::uint32_t of_rows[groups][2] = {{codes[0], codes[8]}, {codes[16], codes[24]}};
#pragma unroll
    for (int group_of_16 = 0; group_of_16 < groups; ++group_of_16) {
      const std::uint32_t moves[2] = {
          moves_of(of_rows[group_of_16][0], state.length, place.t),
          moves_of(of_rows[group_of_16][1], state.length, place.t)};
      rows_of_head k[heads];
#pragma unroll
      for (int h = 0; h < heads; ++h)
        this->load_left(at<const std::byte>(keys_at(now.set, 0, group_of_16, h)), k[h]);
      float s[groups][heads][2][4];
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        axis_cells products[heads];
        this->template multiply_axis<false>(group().table_k, 1, k, axis, moves, products);
#pragma unroll
        for (int r = 0; r < groups; ++r) {
          axis_cells own;
          this->one_hot_rows(of_rows[r], axis, own);
#pragma unroll
          for (int h = 0; h < heads; ++h) base::add_axis(own, products[h], axis == 0, s[r][h]);
        }
      }
#pragma unroll
      for (int r = 0; r < groups; ++r)
#pragma unroll
        for (int h = 0; h < heads; ++h) {
#pragma unroll
          for (auto& block : s[r][h])
#pragma unroll
            for (float& sum : block) sum *= state.inverse_scale;
          const weight_fragment<half> side(s[r][h]);
#pragma unroll
          for (int i = 0; i < 4; ++i) sides[r][h][group_of_16][i] = side.a[i];
        }
    }
  }
  /// The logits of 16 rows over the scale, without masks.
  __device__ __forceinline__ void score_rows_of(const double_place& now, int r,
                                                const heads_state& state, const key_sides& sides,
                                                logits& s) const {
    const std::uint32_t* const codes = codes_of(now) + place.g;
    const std::uint32_t of_keys[groups][2] = {{codes[0], codes[8]}, {codes[16], codes[24]}};
    const std::uint32_t moves[2] = {moves_of(codes[16 * r], state.length, place.t),
                                    moves_of(codes[16 * r + 8], state.length, place.t)};
    // A block of the unit matrix.
    const std::uint32_t unit = one_hot(position_pair(2 * place.t, 2 * place.t + 1),
                                       position_pair(place.g, place.g));
    rows_of_head q[heads];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      this->load_left(at<const std::byte>(queries_at(r, h)), q[h]);
#pragma unroll
      for (int keys = 0; keys < groups; ++keys) {
        rows_of_head k;
        this->load_left(at<const std::byte>(keys_at(now.set, 0, keys, h)), k);
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          multiply_half_8(s[h][keys][b], sides[h][keys][2 * b], sides[h][keys][2 * b + 1], unit);
          multiply_add_16<T>(s[h][keys][b], q[h].a[0], k.a[0][b], k.a[0][b + 2]);
        }
      }
    }
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells products[heads];
      this->template multiply_axis<true>(group().table_q, 0, q, axis, moves, products);
#pragma unroll
      for (int keys = 0; keys < groups; ++keys) {
        axis_cells columns;
        this->one_hot_rows(of_keys[keys], axis, columns);
#pragma unroll
        for (int h = 0; h < heads; ++h)
          base::add_axis(products[h], columns, false, s[h][keys]);
      }
    }
  }
  /// Logits of 16 rows become weights, and their results are stored.
  __device__ __forceinline__ void finish_rows_of(const double_place& now, int r, logits& s,
                                                 heads_state& state) const {
    const float scale = problem.scale * log2_e;
    const int key = 16 + 2 * place.t;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (key + 8 * b + j >= now.count) {
#pragma unroll
          for (int h = 0; h < heads; ++h) s[h][1][b][j] = s[h][1][b][2 + j] = -INFINITY;
        }
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      auto& own = state.of_head[h];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = s[h][0][0][2 * i];
#pragma unroll
        for (auto& keys : s[h])
#pragma unroll
          for (auto& block : keys) largest = fmaxf(largest, fmaxf(block[2 * i], block[2 * i + 1]));
        const float offset = -fmaxf(quad_max(largest), -1e30f) * scale;
        own.softmax.offset[i] = offset;
#pragma unroll
        for (auto& keys : s[h])
#pragma unroll
          for (auto& block : keys)
#pragma unroll
            for (int j = 0; j < 2; ++j)
              block[2 * i + j] = exp2_fast(fmaf(block[2 * i + j], scale, offset));
      }
#pragma unroll
      for (int keys = 0; keys < groups; ++keys) {
        const weight_fragment<T> weights(s[h][keys]);
        std::uint32_t v[4];
        this->load_values(keys_at(now.set, 1, keys, h), v);
        const auto add = [&](float(&sum)[4], std::uint32_t b0, std::uint32_t b1) {
          if (keys == 0)
            multiply_16<T>(sum, weights.a, b0, b1);
          else
            multiply_add_16<T>(sum, weights.a, b0, b1);
        };
        add(own.softmax.sum, ones, ones);
        add(own.o[0], v[0], v[2]);
        add(own.o[1], v[1], v[3]);
      }
    }
    if (state.has_values) add_values_of(codes_of(now), r, s, state);
    const bool wanted[2] = {16 * r + place.g < now.count, 16 * r + place.g + 8 < now.count};
    this->store_heads(
        at<const std::int32_t>(layout::double_tokens) + now.set * layout::double_rows + 16 * r,
        wanted, state);
  }
  /// Adds weights by cell times Tv.
  __device__ __forceinline__ void add_values_of(const std::uint32_t* codes, int r, const logits& s,
                                                heads_state& state) const {
    const std::uint32_t* const own = codes + 16 * r + place.g;
    const std::uint32_t moves[2] = {moves_of(own[0], state.length, place.t),
                                    moves_of(own[8], state.length, place.t)};
    uint2 far[groups][2];
    weight_fragment<half> weights[groups][heads];
#pragma unroll
    for (int keys = 0; keys < groups; ++keys) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        far[keys][i] = *reinterpret_cast<const uint2*>(codes + 16 * keys + 8 * i + 2 * place.t);
#pragma unroll
      for (int h = 0; h < heads; ++h) weights[keys][h] = weight_fragment<half>(s[h][keys]);
    }
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      axis_cells cells[heads];
      this->template add_cells<true>(weights[0], far[0], axis, cells);
      this->template add_cells<false>(weights[1], far[1], axis, cells);
      this->add_axis_values(cells, axis, moves, state);
    }
  }

  /// Double units of the block's list, as long as there are any.
  __device__ __forceinline__ void run_doubles() const {
    double_place next{0, 0, 0, 0};
    take_double(next);
    if (next.count == 0) return;
    __syncwarp();  // all lanes have done with the tiles, whose memory this was
    request_keys(next);
    request_queries(next);
    commit_copies();
    heads_state state = this->begin_state();
#pragma unroll 1
    while (next.count > 0) {
      const double_place now = next;
      take_double(next);
      wait_for_copies<0>();
      __syncwarp();  // what all lanes asked for is there, and they have done with the window before
      key_sides sides[groups];
      score_keys(now, state, sides);
      if (next.count > 0) request_keys(next);
      commit_copies();
#pragma unroll 1
      for (int r = 0; r < groups; ++r) {
        logits s;
        score_rows_of(now, r, state, sides[0], s);
        if (r == groups - 1) {
          __syncwarp();  // all lanes have read q
          if (next.count > 0) request_queries(next);
          commit_copies();
        }
        finish_rows_of(now, r, s, state);
#pragma unroll
        for (int h = 0; h < heads; ++h)
#pragma unroll
          for (int keys = 0; keys < groups; ++keys)
#pragma unroll
            for (int i = 0; i < 4; ++i) sides[0][h][keys][i] = sides[1][h][keys][i];
      }
    }
  }
};

}  // namespace winnow::detail
