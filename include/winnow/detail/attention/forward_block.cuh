// SPDX-License-Identifier: Apache-2.0
/// \file
/// The work of one block of the forward kernel: see forward_kernel.cuh.
#pragma once

#include <climits>
#include <cstdint>

#include "winnow/detail/attention/encoding.cuh"
#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// One block's work; its members are what all steps share.
/// \tparam Vectors q, k, v and out have rows that start on 16 bytes.
template <class T, int D, position_encoding Position, bool Vectors>
struct forward_block {
  using layout = forward_layout<sizeof(T), D, Position>;
  using math = tile_math<T, D>;
  using encoding = grid_encoding<T, D, Position>;
  static constexpr int rows = layout::rows;
  static constexpr int keys = layout::keys;
  static constexpr int threads = layout::tuning.threads();
  static constexpr int units = layout::tuning.units;
  static_assert(math::stride * sizeof(T) == layout::row_bytes);
  /// May rows have empty bounds, since other blocks take their windows?
  static constexpr bool passes_over_windows = Vectors && layout::takes_windows;

  const forward_problem& problem;
  const group_problem& group;
  std::byte* memory;
  int first_head;   ///< of the block, among the group's
  int heads;        ///< of the block
  int first;        ///< the block's first slot
  int active;       ///< rows of the block that are tokens in windows
  int range_first;  ///< the keys that the block needs
  int range_last;
  std::uint32_t shared;  ///< the address of `memory`
  int thread = static_cast<int>(threadIdx.x);
  int warp = static_cast<int>(threadIdx.x) / 32;
  lane_place place;

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
  static __device__ __forceinline__ int query_buffer(int h) {
    return layout::query_buffers == 1 ? 0 : h % layout::query_buffers;
  }
  /// This warp's rows of q of the block's h-th head.
  __device__ __forceinline__ T* query_rows(int h) const {
    return at<T>(layout::query + query_buffer(h) * layout::query_bytes) + warp * 16 * math::stride;
  }

  /// Rows move in passes of all threads; thread i moves chunk i % chunks of row i / chunks of each.
  static constexpr int width = 16 / sizeof(T);
  static constexpr int chunks = D / width;
  static constexpr int pass_rows = threads / chunks;
  static constexpr int key_passes = (keys + pass_rows - 1) / pass_rows;
  static constexpr int query_passes = (rows + pass_rows - 1) / pass_rows;
  static_assert(threads % chunks == 0);

  /// What the copies of one key tile need to know: the tokens of this thread's rows, and the
  /// position of key number `thread`. Loaded one turn ahead.
  struct tile_index {
    std::int32_t tokens[key_passes];
    std::uint32_t code;
    float radius;
  };
  __device__ __forceinline__ void load_index(int tile, tile_index& index) const {
    const int base = range_first + tile * keys;
#pragma unroll
    for (int pass = 0; pass < key_passes; ++pass) {
      const int key = base + thread / chunks + pass * pass_rows;
      index.tokens[pass] = key < range_last ? group.order[key] : -1;
    }
    index.code = 0;
    index.radius = 0.0f;
    if (!encoding::needs_codes(group) || thread >= keys || base + thread >= range_last) return;
    index.code = encoding::code(group, group.positions[base + thread]);
    if (group.kind == relative_kind::spherical) index.radius = group.radius[base + thread];
  }

  __device__ __forceinline__ int keys_of(int tile) const {
    return min(keys, range_last - (range_first + tile * keys));
  }

  /// Copies this thread's chunk of the rows of `tokens`, pass by pass, to shared memory; -1 stands for
  /// a row of zeros, and rows from `fill` on are not touched.
  template <int Passes>
  __device__ __forceinline__ void copy_rows(int target, const row_view& view, int h,
                                            const std::int32_t (&tokens)[Passes], int fill) const {
    const int column = thread % chunks * width;
    const bool inside = column < problem.head_dim;
    const T* base = static_cast<const T*>(view.data) +
                    (group.first_head + first_head + h) * view.head_stride + column;
    const int row = thread / chunks;
    target += row * layout::row_bytes + thread % chunks * 16;
    // Strides of vectors fit 32 bits.
    const auto stride = static_cast<std::int32_t>(view.token_stride);
    if constexpr (Vectors) {
      const std::uint32_t address = shared + static_cast<std::uint32_t>(target);
#pragma unroll
      for (int pass = 0; pass < Passes; ++pass)
        if (row + pass * pass_rows < fill)
          copy_async(address + pass * pass_rows * layout::row_bytes,
                     base + static_cast<std::int64_t>(max(tokens[pass], 0)) * stride,
                     tokens[pass] >= 0 && inside);
    } else {
      for (int pass = 0; pass < Passes; ++pass) {
        if (row + pass * pass_rows >= fill) break;
        T* chunk = at<T>(target + pass * pass_rows * layout::row_bytes);
        const bool valid = tokens[pass] >= 0 && inside;
        for (int e = 0; e < width; ++e)
          chunk[e] = valid ? base[tokens[pass] * view.token_stride + e] : T{};
      }
    }
  }
  /// Zeros reach past the last key as far as a piece that begins there.
  __device__ __forceinline__ void request_keys(int tile, int h, int stage,
                                               const tile_index& index) const {
    const int fill = min(keys, keys_of(tile) + 15);
    const int target = layout::key_tiles + 2 * stage * layout::tile_bytes;
    copy_rows(target, problem.k, h, index.tokens, fill);
    copy_rows(target + layout::tile_bytes, problem.v, h, index.tokens, fill);
    if (encoding::needs_codes(group) && thread < keys) {
      at<std::uint32_t>(layout::key_code)[stage * layout::code_stride + thread] = index.code;
      at<float>(layout::key_radius)[stage * layout::code_stride + thread] = index.radius;
    }
  }
  __device__ __forceinline__ void request_queries(int h) const {
    std::int32_t tokens[query_passes];
#pragma unroll
    for (int pass = 0; pass < query_passes; ++pass) {
      const int row = thread / chunks + pass * pass_rows;
      tokens[pass] = row < active ? group.order[first + row] : -1;
    }
    copy_rows(layout::query + query_buffer(h) * layout::query_bytes, problem.q, h, tokens, rows);
  }

  /// The slots that this warp's rows attend to.
  struct row_windows {
    int lowest;        ///< where the first row's window begins
    int highest;       ///< where the last row's window ends
    int common_first;  ///< slots [common_first, common_last) lie in the windows of all 16 rows
    int common_last;
    int first[2];  ///< of this lane's rows
    int last[2];
  };
  __device__ __forceinline__ row_windows windows_of_rows() const {
    row_windows windows{};
    const int own = min(16, active - warp * 16);
    if (own <= 0) return windows;
    const int2* bounds = at<int2>(layout::bounds) + warp * 16;
    const int2 top = bounds[0];
    const int2 bottom = bounds[own - 1];
    windows.lowest = top.x;
    windows.highest = bottom.y;
    windows.common_first = bottom.x;
    windows.common_last = own == 16 ? top.y : 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int2 row = bounds[place.g + 8 * i];
      windows.first[i] = row.x;
      windows.last[i] = row.y;
    }
    if constexpr (passes_over_windows)
      if (top.y == 0 || bottom.y == 0) {  // rows of short windows have empty bounds
        int lowest = INT_MAX;
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (windows.last[i] > 0) lowest = min(lowest, windows.first[i]);
        windows.lowest = __reduce_min_sync(0xffffffffu, lowest);
        windows.highest = __reduce_max_sync(0xffffffffu, max(windows.last[0], windows.last[1]));
        windows.common_first = windows.common_last = 0;
      }
    return windows;
  }

  /// What `attend_keys` works on; all of it in registers.
  struct row_state {
    typename math::query q;
    softmax_state softmax;
    float o[math::blocks][4] = {};
  };

  /// This warp's rows against 16·Units keys from slot `base` on, of which those from `to` on do not
  /// count. Interior: every row attends to every key, and none is missing.
  template <bool Interior, int Units>
  __device__ __forceinline__ void attend_keys(int base, int to, int tile_first, int stage,
                                              const row_windows& windows, encoding& positions,
                                              row_state& state, const T* score_row = nullptr,
                                              const T* value_row = nullptr) const {
    const int first_key = base - tile_first;
    float s[Units][2][4];
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int u = 0; u < Units; ++u) {
      const bool present = Interior || u == 0 || base + 16 * u < to;
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[u][b][e] = present ? 0.0f : -INFINITY;
      if (!present) continue;
      const int key = first_key + 16 * u;
      if constexpr (Interior)
        math::scores_at(state.q, score_row + 16 * u * math::stride, s[u]);
      else
        math::scores(state.q, key_tile(stage), key, keys - 1, s[u]);
      if (!Interior || !positions.skips_interior()) {
        piece_place piece;
        piece.tile_key = key;
        piece.interior = Interior;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          piece.row_key[i] = base + 16 * u + 2 * place.t - windows.first[i];
          piece.length[i] =
              static_cast<std::uint32_t>(max(0, min(windows.last[i], to) - windows.first[i]));
        }
        positions.score(s[u], piece,
                        at<const std::uint32_t>(layout::key_code) + stage * layout::code_stride,
                        at<const float>(layout::key_radius) + stage * layout::code_stride, u);
      }
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) largest[e / 2] = fmaxf(largest[e / 2], s[u][b][e]);
    }
    if constexpr (encoding::unscaled)
      for (float& logit : largest) logit *= positions.factor;
    if (!state.softmax.holds(largest)) {
      float factor[2];
      if (state.softmax.raise(largest, factor)) {
#pragma unroll
        for (auto& block : state.o)
#pragma unroll
          for (int e = 0; e < 4; ++e) block[e] *= factor[e / 2];
        positions.rescale(factor);
      }
    }
#pragma unroll
    for (int u = 0; u < Units; ++u) {
      if (!Interior && u > 0 && base + 16 * u >= to) continue;
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if constexpr (encoding::unscaled)
            s[u][b][e] = exp2_fast(fmaf(s[u][b][e], positions.factor, state.softmax.offset[e / 2]));
          else
            s[u][b][e] = exp2_fast(s[u][b][e] + state.softmax.offset[e / 2]);
        }
      const int key = first_key + 16 * u;
      if constexpr (Interior)
        math::values_at(s[u], value_row + 16 * u * math::stride, state.o, state.softmax.sum);
      else
        math::values(s[u], value_tile(stage), key, keys - 1, state.o, state.softmax.sum);
      positions.add_weights(s[u], key, keys - 1, u);
    }
  }

  /// This warp's rows against the part of a key tile that they need.
  __device__ __forceinline__ void attend_tile(int tile, int stage, encoding& positions,
                                              row_state& state) const {
    const row_windows windows = windows_of_rows();
    constexpr int wide_units = layout::tuning.wide_units;
    const int tile_first = range_first + tile * keys;
    const int to = min(windows.highest, tile_first + keys);
    const int common_last = min(windows.common_last, to);
    int base = max(windows.lowest, tile_first);
    while (base < to) {
      if (base >= windows.common_first && base + 16 * wide_units <= common_last) {
        const int key = (base - tile_first) * math::stride;
        const T* score_row = key_tile(stage) + math::score_lane() + key;
        const T* value_row = value_tile(stage) + math::value_lane() + key;
        do {
          attend_keys<true, wide_units>(base, to, tile_first, stage, windows, positions, state,
                                        score_row, value_row);
          base += 16 * wide_units;
          score_row += 16 * wide_units * math::stride;
          value_row += 16 * wide_units * math::stride;
        } while (base + 16 * wide_units <= common_last);
      } else {
        attend_keys<false, units>(base, to, tile_first, stage, windows, positions, state);
        base += 16 * units;
      }
    }
  }

  /// Stores the warp's rows through shared memory, so that they leave as vectors.
  /// \return the rows that are not finite, one bit each; they are left to `attend_row`.
  __device__ __forceinline__ unsigned store(int h, const softmax_state& softmax,
                                            const float (&o)[math::blocks][4]) const {
    if (warp * 16 >= active) return 0;
    const int head = group.first_head + first_head + h;
    bool finite[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float zero = 0.0f;
#pragma unroll
      for (const auto& block : o) zero += block[2 * i] * 0.0f + block[2 * i + 1] * 0.0f;
      finite[i] = zero == 0.0f;
    }
    unsigned bad = 0;
    if (__any_sync(0xffffffffu, !(finite[0] && finite[1]))) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const unsigned lanes = __ballot_sync(0xffffffffu, !finite[i]);
        for (int g = 0; g < 8; ++g) bad |= (lanes >> (4 * g) & 0xfu) != 0 ? 1u << (g + 8 * i) : 0u;
      }
    }
    const auto is_bad = [&](int row) { return (bad >> row & 1u) != 0; };
    // Nobody reads this warp's rows of q any more.
    T* staged = query_rows(h);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int block = 0; block < math::blocks; ++block) {
        T* target = staged + (place.g + 8 * i) * math::stride + block * 8 + 2 * place.t;
        if constexpr (sizeof(T) == 4)
          *reinterpret_cast<float2*>(target) = {o[block][2 * i], o[block][2 * i + 1]};
        else
          *reinterpret_cast<std::uint32_t*>(target) = pack<T>(o[block][2 * i], o[block][2 * i + 1]);
      }
    __syncwarp();
    const auto* tokens = at<const std::int32_t>(layout::query_order) + warp * 16;
    const int own = min(16, active - warp * 16);
    const int column = place.lane % chunks * width;
    T* base = static_cast<T*>(const_cast<void*>(problem.out.data)) +
              head * problem.out.head_stride + column;
    const T* source = staged + column;
#pragma unroll
    for (int row = place.lane / chunks; row < 16; row += 32 / chunks) {
      if (row >= own || column >= problem.head_dim || is_bad(row)) continue;
      if constexpr (Vectors) {
        *reinterpret_cast<uint4*>(base + static_cast<std::int64_t>(tokens[row]) *
                                             static_cast<std::int32_t>(problem.out.token_stride)) =
            *reinterpret_cast<const uint4*>(source + row * math::stride);
      } else {
        T* target = base + tokens[row] * problem.out.token_stride;
        for (int e = 0; e < width; ++e) target[e] = source[row * math::stride + e];
      }
    }
    if (problem.lse != nullptr && place.t == 0)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = place.g + 8 * i;
        if (row < own && !is_bad(row))
          problem.lse[tokens[row] * problem.lse_token_stride + head * problem.lse_head_stride] =
              softmax.log_sum(i);
      }
    return bad & ((1u << own) - 1);
  }

  /// Everything, head after head; turn i is tile i % tiles of head i / tiles. When a turn begins,
  /// its tile has arrived, and the tile `stages - 1` turns ahead takes the place of the last one.
  __device__ __forceinline__ void run() {
    constexpr int stages = layout::tuning.stages;
    const int tiles = (range_last - range_first + keys - 1) / keys;
    const int turns = tiles * heads;
    // What is requested next, and its index.
    int ahead = 0;
    int ahead_tile = 0;
    int ahead_h = 0;
    tile_index index;
    load_index(0, index);
    const auto request = [&] {
      if (ahead < turns) {
        if (ahead_tile == 0 && (layout::query_buffers > 1 || ahead == 0)) request_queries(ahead_h);
        request_keys(ahead_tile, ahead_h, ahead % stages, index);
        ++ahead;
        if (++ahead_tile == tiles) {
          ahead_tile = 0;
          ++ahead_h;
        }
        if (tiles > 1 && ahead < turns) load_index(ahead_tile, index);
      }
      commit_copies();
    };
#pragma unroll
    for (int stage = 0; stage + 1 < stages; ++stage) request();

    row_context context{problem, group, {-1, -1}, first_head, heads};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + place.g + 8 * i;
      if (row < active) context.slot[i] = first + row;
    }
    encoding positions(context, memory);
    row_state state;
    std::uint64_t bad = 0;  // 16 rows of each head
    int tile = 0;
    int h = 0;
    for (int turn = 0; turn < turns; ++turn) {
      const int stage = turn % stages;
      wait_for_copies<stages - 2>();
      __syncthreads();
      request();
      if (tile == 0) {
        state.softmax = softmax_state();
#pragma unroll
        for (auto& block : state.o)
#pragma unroll
          for (float& sum : block) sum = 0.0f;
        state.q.load(query_rows(h));
        positions.begin_head(context, h, memory, query_rows(h));
      }
      attend_tile(tile, stage, positions, state);
      if (++tile == tiles) {
        bad |= static_cast<std::uint64_t>(finish_head(h, positions, state)) << (16 * h);
        tile = 0;
        ++h;
      }
    }
    // At the end, where nothing else lives, the call costs no registers.
    for (int i = 0; bad != 0; ++i, bad >>= 1)
      if ((bad & 1) != 0 &&
          (!passes_over_windows || at<const int2>(layout::bounds)[warp * 16 + i % 16].y > 0))
        attend_row<T>(problem, group, group.first_head + first_head + i / 16,
                      first + warp * 16 + i % 16);
  }

  __device__ __forceinline__ unsigned finish_head(int h, encoding& positions,
                                                  row_state& state) const {
    state.softmax.template finish<math::lane_sums>();
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) inverse[i] = 1.0f / state.softmax.sum[2 * i];
#pragma unroll
    for (auto& block : state.o)
#pragma unroll
      for (int e = 0; e < 4; ++e) block[e] *= inverse[e / 2];
    positions.finish(memory, inverse, state.o);
    return store(h, state.softmax, state.o);
  }
};

}  // namespace winnow::detail
