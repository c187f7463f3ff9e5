// SPDX-License-Identifier: Apache-2.0
/// \file
/// Plain attention of short windows, for 16-bit storage: the first part of the forward kernel
/// (forward_kernel.cuh).
///
/// What one warp computes: the windows of up to `capacity` tokens that start in its `range`
/// consecutive slots, of up to `heads` heads. It loads the rows of q, k and v of all of them at once,
/// at most twice, and then takes them in chunks: as many whole windows as fit 16 slots, or one longer
/// window. A chunk starts and ends with a window, so that all logits of a row are there at once:
/// there is no running maximum, no walk over key tiles, no row of a key is read twice, and warps never
/// wait for each other. Who attends to whom is worked out once for all heads, and is what the
/// accumulators of the logits start from: 0 or -infinity.
///
/// Where things live: q, k, v of up to `capacity` tokens in the warp's own shared memory, copied
/// through `order` in the background; the rest in registers. Results go back through the place of q,
/// so that they leave as vectors.
///
/// Groups whose windows fit, all or nearly all, are computed this way, as the partition's counts on the
/// device say; the few longer windows are left to forward_block.cuh, row by row. Where longer windows are
/// common that second pass costs more than this one gains, so such groups have it alone.
///
/// Bound: memory traffic and its latency, two dependent trips a warp: bounds and order, then rows.
/// Instructions: about 75 a chunk of 16 rows and head at D = 16, 80 a chunk for all heads, and 250 a
/// range; forward_block.cuh takes 800 for 16 rows of short windows.
///
/// NaN and infinity: rows that come out so are computed again at the very end, see exact_row.cuh.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/partition.hpp"

namespace winnow::detail {

/// Do a group's windows fit, or nearly so? How many do not is unknown: a largest one that is hardly
/// longer, and a mean that is clearly shorter, stand for few.
template <int D>
__device__ __forceinline__ bool has_short_windows(const partition_counts& counts) {
  constexpr int capacity = forward_window_layout<D>::capacity;
  return counts.largest <= capacity ||
         (counts.largest <= capacity + capacity / 8 &&
          counts.assigned <= std::int64_t{counts.windows} * (capacity - capacity / 4));
}

template <class T, int D>
struct window_attender {
  using layout = forward_window_layout<D>;
  using rows = shared_rows<T, D>;
  static constexpr int capacity = layout::capacity;
  static constexpr int range = layout::range;
  static constexpr int max_heads = layout::heads;
  static constexpr int blocks = rows::blocks;
  static constexpr int vectors = rows::vectors;
  /// Rows move in passes of the warp; lane i moves vector i % vectors of row i / vectors of each.
  static constexpr int pass_rows = 32 / vectors;
  static constexpr int passes = capacity / pass_rows;
  static constexpr unsigned all = 0xffffffffu;

  const forward_problem& problem;
  const group_problem& group;
  std::uint32_t memory;  ///< the warp's
  int head;              ///< the first of this warp's
  int heads;
  lane_place place;

  [[nodiscard]] __device__ __forceinline__ std::uint32_t array(int h, int which) const {
    return memory + static_cast<std::uint32_t>((3 * h + which) * layout::array_bytes);
  }
  enum { queries, keys, values };
  [[nodiscard]] __device__ __forceinline__ std::uint32_t token_at(int row) const {
    return memory + static_cast<std::uint32_t>(layout::tokens + 4 * row);
  }

  /// This lane's vector of a head's rows.
  static __device__ __forceinline__ char* vector_of(const packed_view& view, int head) {
    return advance(view.data + static_cast<int>(threadIdx.x) % vectors * 16, head, view.head_bytes);
  }

  /// Brings the rows of `count` tokens, and waits for them.
  __device__ __forceinline__ void load(int first_head, int count) const {
    const bool inside = place.lane % vectors * 8 < problem.head_dim;
    char* base[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) base[a] = vector_of(problem.packed[a], first_head);
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = pass * pass_rows + place.lane / vectors;
      if (row < count) {
        const std::int32_t token = load_shared_int(token_at(row));
        const std::uint32_t target = rows::at(row, place.lane % vectors);
#pragma unroll
        for (int a = 0; a < 3; ++a) {
          const char* row = advance(base[a], token, problem.packed[a].token_bytes);
#pragma unroll
          for (int h = 0; h < max_heads; ++h)
            if (h == 0 || h < heads)
              copy_async(array(h, a) + target, row + h * problem.packed[a].head_bytes, inside);
        }
      }
    }
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
  }

  /// Writes the results of `count` tokens of head `h`, which lie where q was.
  /// \return bits of the passes in which this lane's vector is not finite.
  __device__ __forceinline__ unsigned store(int first_head, int h, int count) const {
    char* base = vector_of(problem.packed[3], first_head + h);
    unsigned broken = 0;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = pass * pass_rows + place.lane / vectors;
      if (row < count && place.lane % vectors * 8 < problem.head_dim) {
        const uint4 x = load_shared_vector(array(h, queries) + rows::at(row, place.lane % vectors));
        if (probe_vector<T>(x) != 0) broken |= 1u << pass;
        *reinterpret_cast<uint4*>(
            advance(base, load_shared_int(token_at(row)), problem.packed[3].token_bytes)) = x;
      }
    }
    return broken;
  }

  /// What the accumulators of a lane's logits start from, in the last 16 columns of a chunk.
  using mask_block = float[2][4];

  /// One chunk, `count` rows from row `offset` of what is loaded, of heads h to h + Heads.
  /// M == 1: whole windows in up to 16 slots; otherwise one window of up to 16·M.
  template <int M, int Heads>
  __device__ __forceinline__ void attend(int h, int offset, int count,
                                         const mask_block& mask) const {
    const float factor = problem.scale * log2_e;
    const int last = offset + count - 1;
    // Rows past the last repeat it.
    std::uint32_t left[M], right[M];
#pragma unroll
    for (int u = 0; u < M; ++u) {
      left[u] = rows::left_at(min(offset + 16 * u + place.lane % 16, last));
      right[u] = rows::right_at(min(offset + 16 * u + rows::right_row(), last));
    }
#pragma unroll 1
    for (int m = 0; m < M; ++m) {
      typename rows::query q[Heads];
      float s[Heads][M][2][4];
      const std::uint32_t own =
          M == 1 ? left[0] : rows::left_at(min(offset + 16 * m + place.lane % 16, last));
#pragma unroll
      for (int i = 0; i < Heads; ++i) q[i].load(array(h + i, queries) + own);
#pragma unroll
      for (int u = 0; u < M; ++u)
#pragma unroll
        for (int i = 0; i < Heads; ++i) {
#pragma unroll
          for (int b = 0; b < 2; ++b)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[i][u][b][e] = u == M - 1 ? mask[b][e] : 0.0f;
          rows::scores(q[i], array(h + i, keys) + right[u], s[i][u]);
        }
      float largest[Heads][2];
      float o[Heads][blocks][4] = {};
      float sum[Heads][4] = {};
#pragma unroll
      for (int i = 0; i < Heads; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x = -INFINITY;
#pragma unroll
          for (int u = 0; u < M; ++u)
#pragma unroll
            for (int b = 0; b < 2; ++b)
              x = fmaxf(x, fmaxf(s[i][u][b][2 * r], s[i][u][b][2 * r + 1]));
          largest[i][r] = x;
        }
#pragma unroll
      for (int i = 0; i < Heads; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r) largest[i][r] = quad_max(largest[i][r]) * factor;
#pragma unroll
      for (int u = 0; u < M; ++u)
#pragma unroll
        for (int i = 0; i < Heads; ++i) {
#pragma unroll
          for (int b = 0; b < 2; ++b)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              s[i][u][b][e] = exp2_fast(fmaf(s[i][u][b][e], factor, -largest[i][e / 2]));
          rows::values(weight_fragment<T>(s[i][u]), array(h + i, values) + left[u], 0, o[i],
                       sum[i]);
        }
      finish<Heads>(h, offset + 16 * m, min(16, count - 16 * m), o, sum, largest);
    }
  }

  /// Leaves the results of `count` rows where their q was.
  template <int Heads>
  __device__ __forceinline__ void finish(int h, int offset, int count,
                                         const float (&o)[Heads][blocks][4],
                                         const float (&sum)[Heads][4],
                                         const float (&largest)[Heads][2]) const {
    __syncwarp();  // all lanes have read q
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 8 * r + place.g;
      if (row >= count) continue;
      const std::uint32_t target = rows::at(offset + row, 0) + 4 * place.t;
#pragma unroll
      for (int i = 0; i < Heads; ++i) {
        const float inverse = reciprocal(sum[i][2 * r]);
#pragma unroll
        for (int b = 0; b < blocks; ++b)
          store_shared(array(h + i, queries) + (target ^ static_cast<std::uint32_t>(16 * b)),
                       pack<T>(o[i][b][2 * r] * inverse, o[i][b][2 * r + 1] * inverse));
      }
      if (problem.lse != nullptr && place.t == 0) {
        const std::int64_t token = load_shared_int(token_at(offset + row));
#pragma unroll
        for (int i = 0; i < Heads; ++i)
          problem.lse[token * problem.lse_token_stride + (head + h + i) * problem.lse_head_stride] =
              (largest[i][r] + __log2f(sum[i][2 * r])) * ln_2;
      }
    }
  }

  /// All chunks of what is loaded. Bit s of `starts`: a window starts in row s, or the last one has
  /// ended.
  __device__ __forceinline__ void attend_rows(int count, std::uint64_t starts) const {
    for (int offset = 0; offset < count;) {
      const std::uint64_t behind = starts >> (offset + 1);
      const unsigned near = static_cast<unsigned>(behind) & 0xffffu;
      int length = 32 - __clz(static_cast<int>(near));
      mask_block mask;
      if (near != 0) {
        const unsigned marks = near << 1 | 1u;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = 8 * r + place.g;
          const int begin = 31 - __clz(static_cast<int>(marks & ((2u << row) - 1)));
          const int end = row + __ffs(static_cast<int>(marks >> (row + 1)));
          const unsigned attends = ((1u << end) - (1u << begin)) >> (2 * place.t);
#pragma unroll
          for (int b = 0; b < 2; ++b)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              mask[b][2 * r + e] = (attends >> (8 * b + e) & 1u) != 0 ? 0.0f : -INFINITY;
        }
        int h = 0;
        if constexpr (max_heads == 2)
          if (heads == 2) {
            attend<1, 2>(0, offset, length, mask);
            h = 2;
          }
        if (h < heads) attend<1, 1>(h, offset, length, mask);
      } else {
        length = __ffsll(static_cast<long long>(behind));
        const int columns = (length - 1) % 16 + 1 - 2 * place.t;  // of the last 16
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int e = 0; e < 4; ++e) mask[b][e] = 8 * b + (e & 1) < columns ? 0.0f : -INFINITY;
        for (int h = 0; h < heads; ++h)
          if (length <= 32)
            attend<2, 1>(h, offset, length, mask);
          else
            attend<3, 1>(h, offset, length, mask);
      }
      offset += length;
    }
    __syncwarp();
  }

  /// All windows that start in slots [from, from + range).
  /// \return whether this lane's slot lies in a longer one; in a group without short windows, true.
  __device__ __forceinline__ bool run(int from) const {
    static_assert(range == 32 && capacity == 48);
    const int slot = from + place.lane;
    const auto limit = static_cast<int>(group.max_tokens);
    // All loads at once, so that one latency serves them. The last window may end 47 slots further.
    const bool has_short = has_short_windows<D>(*group.counts);
    const int assigned = group.counts->assigned;
    int2 window = {-1, -1};
    std::int32_t tokens[3];
    const auto load_tokens = [&](int begin) {
#pragma unroll
      for (int i = 0; i < 3; ++i)
        tokens[i] = begin + 32 * i < limit ? group.order[begin + 32 * i] : 0;
    };
    if (slot < limit) window = reinterpret_cast<const int2*>(group.bounds)[slot];
    load_tokens(slot);
    if (!has_short) return true;

    const std::uint32_t starts = __ballot_sync(all, slot < assigned && window.x == slot);
    const bool longer = slot < assigned && window.y - window.x > capacity;
    if (starts == 0) return longer;
    const int first = __ffs(static_cast<int>(starts)) - 1;
    const int last = 31 - __clz(static_cast<int>(starts));
    // A window longer than the capacity ends outside the range: it can only be the last.
    const int end = __shfl_sync(all, window.y, last) - from;
    const bool left_out = end - last > capacity;
    // The last window comes by itself where not all fit.
    const bool apart = left_out || end - first > capacity;
    unsigned broken = 0;
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      const int begin = part == 0 ? first : last;
      const int count = (part == 0 && apart ? last : end) - begin;
      if (count == 0) break;
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int row = place.lane + 32 * i - (part == 0 ? first : 0);
        if (row >= 0 && row < count)
          store_shared(token_at(row), static_cast<std::uint32_t>(tokens[i]));
      }
      __syncwarp();
      // Addresses would be kept over the loop, which seldom turns twice.
      int first_head = head;
      asm volatile("" : "+r"(first_head));
      load(first_head, count);
      attend_rows(count, std::uint64_t{starts >> begin} | std::uint64_t{1} << count);
#pragma unroll
      for (int h = 0; h < max_heads; ++h)
        if (h < heads) broken |= store(first_head, h, count) << (passes * (part * max_heads + h));
      if (!apart || left_out) break;
      load_tokens(slot + last);
    }
    static_assert(2 * max_heads * passes <= 32);
    __syncwarp();
    if (!__any_sync(all, broken != 0)) return longer;
    // At the end, where nothing else lives, the call costs no registers.
    for (int i = 0; i < 2 * max_heads * passes; ++i) {
      const int part = i / passes / max_heads;
      unsigned left = __ballot_sync(all, (broken >> i & 1u) != 0);
      while (left != 0) {
        const int row = (__ffs(static_cast<int>(left)) - 1) / vectors;
        left &= ~(((1u << vectors) - 1) << (row * vectors));
        attend_row<T>(problem, group, head + i / passes % max_heads,
                      from + (part == 0 ? first : last) + i % passes * pass_rows + row);
      }
    }
    return longer;
  }
};

}  // namespace winnow::detail
