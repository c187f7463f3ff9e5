// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of tiles of tokens with contextual position encoding.
///
/// What one block computes: as in backward_tile.cuh, it owns 16 consecutive slots a warp, of one head,
/// queries on the query side and keys on the key side, and walks the slots of their windows, a tile of
/// the other side at a time. Blocks are persistent, because each sums up a part of the tables'
/// gradients; its tiles follow from its number.
///
/// The tables meet tokens in products, whose results and sums are contextual_tables:
///
///     query side   S = q·kᵀ + Gq·Eᵀ + E·Gkᵀ    dP = dO·vᵀ + Gv·Eᵀ
///                  dq += dS·k, and dS and P summed up by table row for dq, dTq and dTv
///     key side     the same transposed; dk += dSᵀ·q, dv += Pᵀ·dO, and dSᵀ by table row for dk and dTk
///
/// Registers: the sums of dq (or dk and dv), those of dS and P by the other token's cell, one piece
/// of S and dP. Shared memory: tables, own rows and products, two tiles of the other side.
///
/// Bound by instructions: of 16 rows that meet 30 others, half of them are in products with tables.
/// What the query side leaves for the key side, how dS becomes a factor, and which rows are computed
/// again: as in backward_tile.cuh. Where `one_pass` is set, rows of windows up to that many tokens are
/// left to backward_contextual_window.cuh.
#pragma once

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/backward_contextual_exact.cuh"
#include "winnow/detail/attention/backward_contextual_tables.cuh"
#include "winnow/detail/attention/backward_tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, int D, backward_side Side, bool Radial>
struct contextual_differentiator {
  using layout = contextual_gradient_layout<sizeof(T), D, Side, Radial>;
  using math = tile_math<T, D>;
  static constexpr backward_tuning tuning = layout::tuning;
  static constexpr int threads = tuning.threads();
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr bool narrow_factors = sizeof(T) == 2;
  /// Left factors of wide heads do not stay in registers.
  static constexpr bool reload = D > 64;
  static constexpr int width = 16 / static_cast<int>(sizeof(T));
  static constexpr int chunks = D / width;  ///< vectors of a row
  static constexpr int vectors = others * chunks;
  static constexpr int passes = (vectors + threads - 1) / threads;
  static constexpr float weight_shift = narrow_factors ? 10.0f : 0.0f;
  static constexpr float weight_unit = narrow_factors ? 0x1p-10f : 1.0f;
  static constexpr int row_passes = chunks / 2;

  const backward_problem& problem;
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int head;
  int warp, lane;
  lane_place place;
  int assigned;

  // Of the current tile:
  int first_slot;
  int count;     ///< rows in windows
  int slot[2];   ///< of this lane's rows g and g + 8; -1: in no window
  int begin[2];  ///< and their windows' slots [begin, end)
  int end[2];
  float lse[2];    ///< `weight_shift` - LSE in base 2
  float delta[2];  ///< -delta times `raise`
  bool single[2];  ///< alone in its window
  float raise;     ///< dS is multiplied by this before rounding; P has `weight_shift` on top
  float lower;     ///< takes both back
  std::int32_t tokens[passes];  ///< of this thread's rows in the next tile of the other side
  typename math::query first_factor, second_factor;
  float first_sum[math::blocks][4];
  float second_sum[query_side ? 1 : math::blocks][4];
  contextual_tables<T, D, Side, Radial> tables;

  __device__ __forceinline__ contextual_differentiator(const backward_problem& problem_,
                                                       const backward_group& entry_, int group_head,
                                                       std::byte* memory_)
      : problem(problem_),
        entry(entry_),
        group(entry_.problem),
        memory(memory_),
        head(entry_.problem.first_head + group_head),
        warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) & 31),
        assigned(entry_.problem.counts->assigned),
        tables(problem_, entry_, group_head, memory_) {}

  /// Is the row of `slot` one of this kernel?
  [[nodiscard]] __device__ __forceinline__ bool takes(int slot) const {
    if (layout::capacity == 0 || problem.one_pass == 0) return true;
    const int2 window = reinterpret_cast<const int2*>(group.bounds)[slot];
    return window.y - window.x > problem.one_pass;
  }
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ __forceinline__ T* own(bool second) const {
    return at<T>(second ? layout::own_second : layout::own_first) + warp * 16 * math::stride;
  }
  __device__ __forceinline__ T* other(int stage, bool second) const {
    return at<T>(layout::other_rows + (2 * stage + (second ? 1 : 0)) * layout::other_bytes);
  }
  [[nodiscard]] __device__ __forceinline__ const float* lse_of(std::int64_t token) const {
    return problem.lse + token * problem.lse_token_stride + head * problem.lse_head_stride;
  }

  /// Reads which tokens the tile from slot `from` holds, a tile ahead of their use.
  __device__ __forceinline__ void load_tokens(int from, int last) {
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int there = from + (pass * threads + static_cast<int>(threadIdx.x)) / chunks;
      tokens[pass] = there < last ? group.order[there] : -1;
    }
  }

  __device__ __forceinline__ void copy_vector(T* target, const row_view& view, std::int64_t token,
                                              int column) const {
    const bool valid = token >= 0 && column < problem.head_dim;
    const T* source = static_cast<const T*>(view.data);
    if (valid) source = row_of<T>(view, token, head) + column;
    if (view.vectors || !valid) {
      copy_async(target, source, valid);
    } else {
#pragma unroll
      for (int e = 0; e < width; ++e) target[e] = source[e];
    }
  }

  /// Starts loading the other side's slots [from, from + others), whose tokens are known, and reads
  /// the tokens of the tile from `next`.
  __device__ __forceinline__ void load_others(int stage, int from, int next, int last) {
    const row_view& first_view = query_side ? problem.k : problem.q;
    const row_view& second_view = query_side ? problem.v : problem.grad_out;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int i = pass * threads + static_cast<int>(threadIdx.x);
      if (vectors % threads != 0 && i >= vectors) break;
      const int row = i / chunks;
      const int column = i % chunks * width;
      const int offset = row * math::stride + column;
      copy_vector(other(stage, false) + offset, first_view, tokens[pass], column);
      copy_vector(other(stage, true) + offset, second_view, tokens[pass], column);
      if (column != 0) continue;
      const bool valid = tokens[pass] >= 0;
      const int there = valid ? from + row : 0;
      const int place_of = stage * layout::column_stride + row;
      copy_word_async(at<std::uint32_t>(layout::other_codes) + place_of, group.positions + there,
                      valid);
      if constexpr (Radial)
        copy_word_async(at<float>(layout::other_radius) + place_of, group.radius + there, valid);
      if constexpr (!query_side) {
        copy_word_async(at<float>(layout::other_lse) + place_of,
                        valid ? lse_of(tokens[pass]) : problem.lse, valid);
        copy_word_async(at<float>(layout::other_delta) + place_of,
                        problem.delta + head * problem.max_tokens + there, valid);
      }
    }
    commit_copies();
    load_tokens(next, last);
  }

  /// This lane's share of the warp's rows of O.
  struct out_rows {
    uint4 vectors[row_passes];
  };
  __device__ __forceinline__ void load_out(out_rows& result) const {
    constexpr int rows_a_pass = 32 / chunks;
#pragma unroll
    for (int pass = 0; pass < row_passes; ++pass) {
      const int tile_row = warp * 16 + pass * rows_a_pass + lane / chunks;
      const int column = lane % chunks * width;
      result.vectors[pass] = {0, 0, 0, 0};
      if (tile_row >= count || column >= problem.head_dim) continue;
      const T* out = row_of<T>(problem.out, group.order[first_slot + tile_row], head) + column;
      if (problem.out.vectors) {
        result.vectors[pass] = *reinterpret_cast<const uint4*>(out);
      } else {
        T elements[width];
#pragma unroll
        for (int e = 0; e < width; ++e) elements[e] = out[e];
        memcpy(&result.vectors[pass], elements, sizeof elements);
      }
    }
  }

  /// delta and the magnitude of dO of this warp's rows, whose dO has arrived.
  __device__ __forceinline__ void measure_queries(const out_rows& outs) const {
    constexpr int rows_a_pass = 32 / chunks;
    unsigned largest = 0;
#pragma unroll
    for (int pass = 0; pass < row_passes; ++pass) {
      const int row = pass * rows_a_pass + lane / chunks;
      const int column = lane % chunks * width;
      const int tile_row = warp * 16 + row;
      float dot = 0.0f;
      if (tile_row < count && column < problem.head_dim) {
        const T* grad_out = own(true) + row * math::stride + column;
        T elements[width];
        memcpy(elements, &outs.vectors[pass], sizeof elements);
#pragma unroll
        for (int e = 0; e < width; ++e) {
          const float g = widen(grad_out[e]);
          dot += g * widen(elements[e]);
          const unsigned bits = __float_as_uint(g) & 0x7fffffffu;
          if (bits < 0x7f800000u) largest = max(largest, bits);
        }
      }
#pragma unroll
      for (int step = chunks / 2; step > 0; step /= 2)
        dot += __shfl_xor_sync(0xffffffffu, dot, step);
      if (lane % chunks == 0 && tile_row < count) {
        at<float>(layout::own_delta)[tile_row] = dot;
        problem.delta[head * problem.max_tokens + first_slot + tile_row] = dot;
      }
    }
    if constexpr (narrow_factors) {
      largest = __reduce_max_sync(0xffffffffu, largest) >> 23;
      if (lane == 0) {
        at<unsigned>(layout::magnitude)[warp] = largest;
        if (warp * 16 < count)
          problem.magnitude[head * problem.magnitude_stride + first_slot / 16 + warp] =
              static_cast<std::uint8_t>(largest);
      }
    }
  }

  /// The largest magnitude among the queries of slots [from, last).
  __device__ __forceinline__ void find_magnitude(int from, int last) const {
    if constexpr (narrow_factors) {
      unsigned largest = 0;
      const std::uint8_t* magnitudes = problem.magnitude + head * problem.magnitude_stride;
      for (int i = from / 16 + static_cast<int>(threadIdx.x); i <= (last - 1) / 16; i += threads)
        largest = max(largest, static_cast<unsigned>(magnitudes[i]));
      largest = __reduce_max_sync(0xffffffffu, largest);
      if (lane == 0) at<unsigned>(layout::magnitude)[warp] = largest;
    }
  }

  __device__ __forceinline__ void place_rows() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + place.g + 8 * i;
      slot[i] = row < count ? first_slot + row : -1;
      begin[i] = end[i] = 0;
      lse[i] = delta[i] = 0.0f;
      single[i] = false;
      if (slot[i] < 0) continue;
      if (!takes(slot[i])) {
        slot[i] = -1;
        continue;
      }
      const int2 window = reinterpret_cast<const int2*>(group.bounds)[slot[i]];
      begin[i] = window.x;
      end[i] = window.y;
      single[i] = window.y - window.x == 1;
      if constexpr (query_side) lse[i] = weight_shift - *lse_of(group.order[slot[i]]) * log2_e;
    }
  }

  /// Rows whose window lies in this piece take delta = Σ P·dP / Σ P instead of dO·O.
  __device__ __forceinline__ void improve_delta(const float (&p)[2][4], const float (&dp)[2][4],
                                                int from, int last) {
    const int to = min(from + 16, last);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float weights = (p[0][2 * i] + p[0][2 * i + 1]) + (p[1][2 * i] + p[1][2 * i + 1]);
      float sum = (p[0][2 * i] * dp[0][2 * i] + p[0][2 * i + 1] * dp[0][2 * i + 1]) +
                  (p[1][2 * i] * dp[1][2 * i] + p[1][2 * i + 1] * dp[1][2 * i + 1]);
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        weights += __shfl_xor_sync(0xffffffffu, weights, step);
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
      }
      if (slot[i] < 0 || begin[i] < from || end[i] > to) continue;
      delta[i] = -sum / weights;
      if (place.t == 0)
        problem.delta[head * problem.max_tokens + slot[i]] = -delta[i] * (lower / weight_unit);
    }
  }

  /// A piece: 16 of the other rows, from `tile_row` on, which are slots from `from`; those from `last`
  /// on do not count. \tparam Inside all rows attend to all of them.
  template <bool Inside>
  __device__ __forceinline__ void differentiate_piece(int stage, int tile_row, int from, int last) {
    float p[2][4] = {};
    float ds[2][4] = {};
    if constexpr (reload) first_factor.load(own(false));
    math::scores(first_factor, other(stage, false), tile_row, others - 1, p);
    if constexpr (reload) second_factor.load(own(true));
    math::scores(second_factor, other(stage, true), tile_row, others - 1, ds);
    const float factor = problem.scale * log2_e;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        p[b][e] *= factor;
        ds[b][e] *= raise;
      }
    const int columns = stage * layout::column_stride + tile_row;
    tables.add_linear(tile_row, at<std::uint32_t>(layout::other_codes) + columns, p, ds);
    if constexpr (Radial)
      tables.add_radial(tile_row, at<float>(layout::other_radius) + columns, p, ds);
    // Columns [begin, end) of each row, as a difference and a length.
    unsigned offset[2], length[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      offset[i] = static_cast<unsigned>(from + 2 * place.t - begin[i]);
      length[i] = static_cast<unsigned>(max(min(end[i], last) - begin[i], 0));
    }
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float column_lse = 0.0f, column_delta = 0.0f;
        if constexpr (!query_side) {
          // Behind the tile's last row there are other words, which the mask turns down.
          const int column = columns + b * 8 + 2 * place.t + c;
          column_lse = weight_shift - at<float>(layout::other_lse)[column] * log2_e;
          column_delta = -at<float>(layout::other_delta)[column] * raise;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = 2 * i + c;
          const bool attends = Inside || offset[i] + static_cast<unsigned>(b * 8 + c) < length[i];
          float logit = p[b][e] + (query_side ? lse[i] : column_lse);
          if constexpr (!Inside) logit = attends ? logit : -INFINITY;
          p[b][e] = exp2_fast(logit);
          if constexpr (query_side && !Inside) {
            ds[b][e] = attends ? ds[b][e] : 0.0f;
          } else {
            float less = query_side ? delta[i] : column_delta;
            if constexpr (!Inside) less = single[i] ? -ds[b][e] : less;
            ds[b][e] = attends ? p[b][e] * (ds[b][e] + less) : 0.0f;
          }
        }
      }
    if constexpr (query_side && !Inside) {
      improve_delta(p, ds, from, last);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          ds[b][e] = p[b][e] * (single[e / 2] ? ds[b][e] - ds[b][e] : ds[b][e] + delta[e / 2]);
    }
    math::values(ds, other(stage, false), tile_row, others - 1, first_sum);
    if constexpr (!query_side)
      math::values(p, other(stage, true), tile_row, others - 1, second_sum);
    tables.sum_up(tile_row, at<std::uint32_t>(layout::other_codes) + columns, p, ds);
  }

  /// The slot after `step` slots from `from`, or before them the start of a window that would be cut:
  /// the query side sums P·dP of short windows in one piece. `last`: where the walk ends.
  [[nodiscard]] __device__ __forceinline__ int step_from(int from, int step, int last) const {
    const int next = from + step;
    if (!query_side || next >= last) return next;
    const int start = group.bounds[2 * std::int64_t{next}];
    return start > from ? start : next;
  }

  /// Walks the windows of the tile's rows.
  __device__ __forceinline__ void walk() {
    // A window longer than a tile has the tile's first row or its last.
    const int last_slot = first_slot + count - 1;
    const int from = group.bounds[2 * std::int64_t{takes(first_slot) ? first_slot : last_slot}];
    const int last = group.bounds[2 * std::int64_t{takes(last_slot) ? last_slot : first_slot} + 1];
    load_tokens(from, last);
    const std::int32_t* own_tokens = group.order + first_slot;
    gather_rows<T, D, rows, math::stride, threads>(at<T>(layout::own_first),
                                                   query_side ? problem.q : problem.k, head,
                                                   problem.head_dim, own_tokens, count);
    gather_rows<T, D, rows, math::stride, threads>(at<T>(layout::own_second),
                                                   query_side ? problem.grad_out : problem.v, head,
                                                   problem.head_dim, own_tokens, count);
    commit_copies();
    load_others(0, from, step_from(from, others, last), last);
    place_rows();
    out_rows outs;
    if constexpr (query_side)
      load_out(outs);
    else
      find_magnitude(from, last);
    wait_for_copies<1>();
    __syncthreads();
    if constexpr (query_side) {
      measure_queries(outs);
      __syncthreads();
    }
    raise = 1.0f;
    lower = 1.0f;
    if constexpr (narrow_factors) {
      unsigned largest = 0;
      for (int w = 0; w < tuning.warps; ++w)
        largest = max(largest, at<unsigned>(layout::magnitude)[w]);
      const rounding_scale scale(largest);
      raise = scale.up * weight_unit;
      lower = scale.down;
    }
    if constexpr (query_side) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (slot[i] >= 0) delta[i] = -at<float>(layout::own_delta)[slot[i] - first_slot] * raise;
    }
    first_factor.load(own(false));
    second_factor.load(own(true));
#pragma unroll
    for (auto& block : first_sum)
#pragma unroll
      for (float& x : block) x = 0.0f;
#pragma unroll
    for (auto& block : second_sum)
#pragma unroll
      for (float& x : block) x = 0.0f;

    // The warp's rows attend to [warp_from, warp_last) at most, and all of them to
    // [all_from, all_last).
    int warp_from = 0, warp_last = 0, all_from = 0, all_last = 0;
    const int warp_rows = min(16, count - warp * 16);
    if (warp_rows > 0) {
      const std::int64_t top = first_slot + warp * 16;
      warp_from = group.bounds[2 * top];
      warp_last = group.bounds[2 * (top + warp_rows - 1) + 1];
      if (warp_rows == 16 && takes(static_cast<int>(top))) {
        all_from = group.bounds[2 * (top + 15)];
        all_last = group.bounds[2 * top + 1];
      }
    }
    tables.begin_tile(first_factor, second_factor, slot, raise);
    int stage = 0;
    for (int tile = from; tile < last;) {
      const int next = step_from(tile, others, last);
      if (layout::stages == 2 && next < last) {
        load_others(1 - stage, next, step_from(next, others, last), last);
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      __syncthreads();
      tables.prepare_others(other(stage, false), other(stage, true),
                            at<std::uint32_t>(layout::other_codes) + stage * layout::column_stride,
                            min(next, last) - tile, raise);
      __syncthreads();
      const int to = min(warp_last, next);
      for (int piece = max(warp_from, tile); piece < to;) {
        const bool inside = piece >= all_from && piece + 16 <= min(all_last, to);
        const int until = inside ? piece + 16 : min(step_from(piece, 16, to), to);
        if (inside)
          differentiate_piece<true>(stage, piece - tile, piece, until);
        else
          differentiate_piece<false>(stage, piece - tile, piece, until);
        piece = until;
      }
      __syncthreads();
      if (layout::stages == 2)
        stage = 1 - stage;
      else if (next < last)
        load_others(0, next, step_from(next, others, last), last);
      tile = next;
    }
  }

  /// Writes rows of one gradient, sums times `by`; rows in `skip` are left to others.
  template <int Blocks>
  __device__ __forceinline__ void store(const row_view& view, T* staging, float by, unsigned skip,
                                        const float (&sum)[Blocks][4]) const {
    if (view.data == nullptr) return;
    const int dim = problem.head_dim;
    if (problem.accumulate || !view.vectors) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (slot[i] < 0 || (skip >> (place.g + 8 * i) & 1u) != 0) continue;
        T* target = gradient_row<T>(view, group.order[slot[i]], head) + 2 * place.t;
#pragma unroll
        for (int b = 0; b < Blocks; ++b) {
          if (b * 8 >= dim) break;
          store_gradient(target + b * 8, sum[b][2 * i] * by, problem.accumulate);
          store_gradient(target + b * 8 + 1, sum[b][2 * i + 1] * by, problem.accumulate);
        }
      }
      return;
    }
    // Through shared memory, so that rows leave as vectors.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int b = 0; b < Blocks; ++b) {
        T* target = staging + (place.g + 8 * i) * math::stride + b * 8 + 2 * place.t;
        if constexpr (sizeof(T) == 4)
          *reinterpret_cast<float2*>(target) = {sum[b][2 * i] * by, sum[b][2 * i + 1] * by};
        else
          *reinterpret_cast<std::uint32_t*>(target) =
              pack<T>(sum[b][2 * i] * by, sum[b][2 * i + 1] * by);
      }
    __syncwarp();
    constexpr int rows_a_pass = 32 / chunks;
#pragma unroll
    for (int pass = 0; pass < 16 / rows_a_pass; ++pass) {
      const int row = pass * rows_a_pass + lane / chunks;
      const int column = lane % chunks * width;
      if (warp * 16 + row >= count || column >= dim || (skip >> row & 1u) != 0 ||
          !takes(first_slot + warp * 16 + row))
        continue;
      const std::int64_t token = group.order[first_slot + warp * 16 + row];
      *reinterpret_cast<uint4*>(gradient_row<T>(view, token, head) + column) =
          *reinterpret_cast<const uint4*>(staging + row * math::stride + column);
    }
  }

  /// The rows of this warp whose sums are not finite, as bits.
  [[nodiscard]] __device__ __forceinline__ unsigned broken_rows() const {
    float probe[2] = {0.0f, 0.0f};  // becomes NaN with any NaN or infinity
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (const auto& block : first_sum) probe[i] += (block[2 * i] + block[2 * i + 1]) * 0.0f;
#pragma unroll
      for (const auto& block : second_sum) probe[i] += (block[2 * i] + block[2 * i + 1]) * 0.0f;
    }
    unsigned broken = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned lanes = __ballot_sync(0xffffffffu, !(probe[i] == 0.0f) && slot[i] >= 0);
      if (lanes == 0) continue;
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (g + 8 * i);
    }
    return broken;
  }

  __device__ __forceinline__ void finish() {
    float by = problem.scale * lower;
    if constexpr (!query_side) {
      // Here the scale belongs to q and not to the table.
      by = lower;
#pragma unroll
      for (auto& block : first_sum)
#pragma unroll
        for (float& x : block) x *= problem.scale;
    }
    tables.finish_tile(first_sum, at<T>(layout::own_first), at<T>(layout::own_second), weight_unit,
                       lower);
    const unsigned broken = broken_rows();
    store(query_side ? problem.grad_q : problem.grad_k, own(false), by, broken, first_sum);
    if constexpr (!query_side) store(problem.grad_v, own(true), weight_unit, broken, second_sum);
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_row<T, Side>(problem, group, head,
                                 first_slot + warp * 16 + __ffs(static_cast<int>(left)) - 1, {});
  }

  /// Which of this block's next 32 tiles have rows of this kernel, as bits, from tile `first` on.
  [[nodiscard]] __device__ __forceinline__ unsigned wanted_tiles(std::int64_t first) const {
    const std::int64_t from = (first + std::int64_t{lane} * problem.blocks_per_head) * rows;
    const bool wanted =
        from < assigned &&
        (takes(static_cast<int>(from)) || takes(min(static_cast<int>(from) + rows, assigned) - 1));
    return __ballot_sync(0xffffffffu, wanted);
  }

  __device__ __forceinline__ void run(int part) {
    const bool zeroes = problem.zero_unassigned && !problem.accumulate;
    const int limit = zeroes ? group.counts->tokens : assigned;
    bool begun = problem.one_pass == 0;
    if (begun) tables.begin_block(part);
    unsigned wanted = 0;
    int turn = 0;
    for (std::int64_t tile = part; tile * rows < limit; tile += problem.blocks_per_head, ++turn) {
      if (turn % 32 == 0) wanted = wanted_tiles(tile);
      first_slot = static_cast<int>(tile * rows);
      count = min(rows, assigned - first_slot);
      if ((wanted >> (turn % 32) & 1u) != 0) {
        if (!begun) tables.begin_block(part);
        begun = true;
        __syncthreads();
        walk();
        finish();
      }
      if (zeroes)
        for (int row = max(count, 0) + warp; row < min(rows, limit - first_slot);
             row += tuning.warps)
          zero_row<T, Side>(problem, group.order[first_slot + row], head);
    }
  }
};

template <class T, int D, backward_side Side, bool Radial>
__global__ void __launch_bounds__(
    contextual_gradient_layout<sizeof(T), D, Side, Radial>::tuning.threads(),
    contextual_gradient_layout<sizeof(T), D, Side, Radial>::min_blocks)
    differentiate_contextual_kernel(const __grid_constant__ backward_problem problem) {
  extern __shared__ __align__(16) std::byte memory[];
  const block_place where(problem);
  const backward_group& entry = problem.groups[where.group];
  // Where all windows go in one pass, this begins beside those, and ends behind them.
  const bool idle = problem.one_pass > 0 && !(problem.zero_unassigned && !problem.accumulate) &&
                    entry.problem.counts->largest <= problem.one_pass;
  if (!idle || blockIdx.x == 0) wait_for_predecessor();
  if (idle) return;
  contextual_differentiator<T, D, Side, Radial>(problem, entry, where.group_head, memory)
      .run(where.part);
}

}  // namespace winnow::detail
