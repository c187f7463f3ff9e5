// SPDX-License-Identifier: Apache-2.0
/// \file
/// Plain attention of short windows, for 16-bit storage.
///
/// What a warp computes at a time: the windows of up to `capacity` tokens that start in a range of `range`
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
/// device say; the few longer windows go in pieces (forward_window_pieces.cuh). Where longer windows are common
/// forward_block.cuh has the whole group.
///
/// Bound: instructions and latency, and after them memory traffic. Instructions: about 75 a chunk of 16 rows
/// and head at D = 16, 80 a chunk for all heads, and 400 a range; forward_block.cuh takes 800 for 16 rows of
/// short windows. With 128 registers nothing is spilled; spills go to the L2, as the L1 is shared memory.
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

/// Do a group's windows fit, or nearly so? How many do not is unknown: a mean far below the capacity stands
/// for few, and so does a clearly shorter one beside a largest one that is hardly longer.
template <int D>
__device__ __forceinline__ bool has_short_windows(const partition_counts& counts) {
  constexpr int capacity = forward_window_layout<D>::capacity;
  // Without a branch, so that all loads go out at once.
  const std::int32_t largest = counts.largest;
  const std::int64_t windows = counts.windows;
  const std::int32_t assigned = counts.assigned;
  return (largest <= capacity) | (assigned <= windows * (capacity / 4)) |
         ((largest <= capacity + capacity / 8) & (assigned <= windows * (capacity - capacity / 4)));
}

/// Where rows lie, as `window_attender` reads it: in shared memory, since what is read from there stays in
/// registers, and an address then is one instruction.
template <class T, int D>
struct window_vectors {
  static constexpr int count = forward_window_layout<D>::heads * shared_rows<T, D>::vectors;
  static constexpr int token_bytes = 32 * count;
  static constexpr int head_bytes = token_bytes + 16;
  char* address[count][4];  ///< of the vectors of token 0, head after head, in q, k, v and out
  std::int32_t tokens[4];
  std::int32_t heads[4];

  /// \param thread one each entry
  __device__ __forceinline__ void fill(const forward_problem& problem, int thread) {
    constexpr int vectors = shared_rows<T, D>::vectors;
    const int vector = thread / 4;
    const int a = thread % 4;
    if (vector < count)
      address[vector][a] = advance(problem.packed[a].data + vector % vectors * 16, vector / vectors,
                                   problem.packed[a].head_bytes);
    if (vector == 0) {
      tokens[a] = problem.packed[a].token_bytes;
      heads[a] = problem.packed[a].head_bytes;
    }
  }
};

template <class T, int D>
struct window_attender {
  using layout = forward_window_layout<D>;
  using rows = shared_rows<T, D>;
  static constexpr int capacity = layout::capacity;
  static constexpr int range = layout::range;
  static constexpr int max_heads = layout::heads;
  static constexpr int blocks = rows::blocks;
  static constexpr int vectors = rows::vectors;
  static constexpr unsigned all = 0xffffffffu;

  const forward_problem& problem;
  const group_problem& group;
  std::uint32_t memory;  ///< the warp's, for rows
  std::uint32_t list;    ///< for the range's bounds and tokens
  /// The address of where the vectors of token 0 lie in q, k, v and out: of one head after the other's.
  std::uint32_t vector_bases;
  int head;  ///< the first of this warp's
  int heads;
  std::uint32_t tokens = 0;  ///< the address of those of the rows that are loaded
  lane_place place;

  [[nodiscard]] __device__ __forceinline__ std::uint32_t array(int h, int which) const {
    return memory +
           static_cast<std::uint32_t>(h * layout::head_bytes + which * layout::array_bytes);
  }
  enum { queries, keys, values };
  /// Where the tokens of what is loaded lie.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t token_at(int row) const {
    return tokens + static_cast<std::uint32_t>(4 * row);
  }

  /// How the rows of `Heads` heads move: in passes of the warp, lane i vector i % width of a token.
  template <int Heads>
  struct row_passes {
    static constexpr int width = vectors * Heads;
    static constexpr int rows = 32 / width;  ///< of a pass
    static constexpr int count = capacity / rows;
    int row, head, vector;
    __device__ __forceinline__ row_passes(int lane)
        : row(lane / width), head(lane % width / vectors), vector(lane % vectors) {}
    /// Where this lane's vector of token 0 lies in array `a`. \param table see `window_vectors`
    __device__ __forceinline__ char* base(std::uint32_t table, int a, int first_head) const {
      using entries = window_vectors<T, D>;
      char* const address = load_shared_pointer(
          table + static_cast<std::uint32_t>(8 * (4 * (vector + head * vectors) + a)));
      return advance(
          address, first_head,
          load_shared_int(table + static_cast<std::uint32_t>(entries::head_bytes + 4 * a)));
    }
    static __device__ __forceinline__ std::int32_t token_bytes(std::uint32_t table, int a) {
      using entries = window_vectors<T, D>;
      return load_shared_int(table + static_cast<std::uint32_t>(entries::token_bytes + 4 * a));
    }
    /// Where the lane's vector of its first pass lies in the queries.
    __device__ __forceinline__ std::uint32_t target() const {
      return static_cast<std::uint32_t>(head * layout::head_bytes) +
             shared_rows<T, D>::at(row, vector);
    }
    /// A pass further; places of vectors repeat every 8 rows.
    static_assert(rows % 8 == 0);
    static constexpr int step_bytes = rows * shared_rows<T, D>::row_bytes;
  };

  /// Brings the rows of `count` tokens, and waits for them.
  template <int Heads>
  __device__ __forceinline__ void load(int first_head, int count) const {
    const row_passes<Heads> passes(place.lane);
    const bool inside = passes.vector * 8 < problem.head_dim;
    std::int32_t token[passes.count];
#pragma unroll
    for (int pass = 0; pass < passes.count; ++pass)
      token[pass] = load_shared_int(token_at(pass * passes.rows + passes.row));
    char* base[3];
    std::int32_t token_bytes[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) token_bytes[a] = passes.token_bytes(vector_bases, a);
#pragma unroll
    for (int a = 0; a < 3; ++a) base[a] = passes.base(vector_bases, a, first_head);
    const std::uint32_t target = memory + passes.target();
#pragma unroll
    for (int pass = 0; pass < passes.count; ++pass)
      if (pass * passes.rows + passes.row < count)
#pragma unroll
        for (int a = 0; a < 3; ++a)
          copy_async(target + static_cast<std::uint32_t>(a * layout::array_bytes +
                                                         pass * passes.step_bytes),
                     advance(base[a], token[pass], token_bytes[a]), inside);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
  }

  /// Writes the results of `count` tokens, which lie where q was.
  /// \return is a vector of this lane's not finite?
  template <int Heads>
  __device__ __forceinline__ bool store(int first_head, int count) const {
    const row_passes<Heads> passes(place.lane);
    if (passes.vector * 8 >= problem.head_dim) return false;
    char* base = passes.base(vector_bases, 3, first_head);
    const std::int32_t token_bytes = passes.token_bytes(vector_bases, 3);
    const std::uint32_t source = memory + passes.target();
    std::uint32_t probe = 0;
#pragma unroll
    for (int pass = 0; pass < passes.count; ++pass) {
      const int row = pass * passes.rows + passes.row;
      if (row < count) {
        const uint4 x =
            load_shared_vector(source + static_cast<std::uint32_t>(pass * passes.step_bytes));
        add_to_probe<T>(x, probe);
        *reinterpret_cast<uint4*>(advance(base, load_shared_int(token_at(row)), token_bytes)) = x;
      }
    }
    return finds_broken(probe);
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
        // Slots of one window have as many marks up to them.
        const auto rank = [&](int slot) { return __popc(marks & ((2u << slot) - 1)); };
        const int own[2] = {rank(place.g), rank(place.g + 8)};
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int other = rank(8 * b + 2 * place.t + e);
#pragma unroll
            for (int r = 0; r < 2; ++r) mask[b][2 * r + e] = own[r] == other ? 0.0f : -INFINITY;
          }
        if (heads == max_heads)
          attend<1, max_heads>(0, offset, length, mask);
        else
          attend<1, 1>(0, offset, length, mask);
      } else {
        length = __ffsll(static_cast<long long>(behind));
        const int columns = (length - 1) % 16 + 1 - 2 * place.t;  // of the last 16
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int e = 0; e < 4; ++e) mask[b][e] = 8 * b + (e & 1) < columns ? 0.0f : -INFINITY;
        if (heads == max_heads && length <= 32)
          attend<2, max_heads>(0, offset, length, mask);
        else if (heads == max_heads)
          attend<3, max_heads>(0, offset, length, mask);
        else
#pragma unroll 1
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

  /// Copies what is to be known of the range from `from` on. The last window may end 47 slots behind it.
  __device__ __forceinline__ void request_range(int from) const {
    const int left = static_cast<int>(group.max_tokens) - from;
    const int slot = from + place.lane;
    const std::uint32_t target = list + static_cast<std::uint32_t>(4 * place.lane);
    copy_element_async(target + static_cast<std::uint32_t>(layout::bounds + 4 * place.lane),
                       reinterpret_cast<const std::int64_t*>(group.bounds) + slot,
                       place.lane < left);
    const std::int32_t* const order = group.order + slot;
#pragma unroll
    for (int i = 0; i < layout::most_tokens; i += 32)
      copy_element_async(target + layout::tokens + 4 * i, order + i, i + place.lane < left);
  }

  /// The windows of up to `capacity` tokens that start in [from, from + range). What is to be known of the
  /// range is there.
  /// \return is a vector of this lane's not finite?
  __device__ __forceinline__ bool run(int from, int assigned) {
    static_assert(range == 32 && capacity == 48);
    const int2 window =
        load_shared_pair(list + static_cast<std::uint32_t>(layout::bounds + 8 * place.lane));
    const int slot = from + place.lane;
    const std::uint32_t starts = __ballot_sync(all, slot < assigned && window.x == slot);
    if (starts == 0) return false;
    const int first = __ffs(static_cast<int>(starts)) - 1;
    const int last = 31 - __clz(static_cast<int>(starts));
    // A window longer than the capacity ends outside the range: it can only be the last.
    const int end = __shfl_sync(all, window.y, last) - from;
    const bool left_out = end - last > capacity;
    // The last window comes by itself where not all fit.
    const bool apart = left_out || end - first > capacity;
    bool broken = false;
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      const int begin = part == 0 ? first : last;
      const int count = (part == 0 && apart ? last : end) - begin;
      if (count == 0) break;
      tokens = list + static_cast<std::uint32_t>(layout::tokens + 4 * begin);
      // Addresses would be kept over the loop, which seldom turns twice.
      int first_head = head;
      asm volatile("" : "+r"(first_head));
      if (heads == max_heads)
        load<max_heads>(first_head, count);
      else
        load<1>(first_head, count);
      attend_rows(count, std::uint64_t{starts >> begin} | std::uint64_t{1} << count);
      broken |=
          heads == max_heads ? store<max_heads>(first_head, count) : store<1>(first_head, count);
      if (!apart || left_out) break;
      __syncwarp();
    }
    __syncwarp();
    return broken;
  }

  /// Computes the rows again that are not finite.
  __device__ __forceinline__ void repair(int from, int assigned) const {
    for (int slot = from; slot < min(from + range, assigned); ++slot) {
      const int2 window = reinterpret_cast<const int2*>(group.bounds)[slot];
      if (window.x != slot || window.y - window.x > capacity) continue;
      for (int row = window.x; row < window.y; ++row)
        for (int h = head; h < head + heads; ++h) {
          const bool inside = place.lane * 8 < problem.head_dim;
          const char* target =
              advance(advance(problem.packed[3].data + 16 * (inside ? place.lane : 0), h,
                              problem.packed[3].head_bytes),
                      group.order[row], problem.packed[3].token_bytes);
          const uint4 x = *reinterpret_cast<const uint4*>(target);
          if (__any_sync(all, inside && probe_vector<T>(x) != 0))
            attend_row<T>(problem, group, h, row);
        }
    }
  }
};

/// Are the group's short windows left to warps?
template <int D>
__device__ __forceinline__ bool takes_windows(const forward_problem& problem,
                                              const group_problem& group) {
  return problem.takes_windows && group.path == encoding_path::tiles &&
         group.kind == relative_kind::none && has_short_windows<D>(*group.counts);
}

}  // namespace winnow::detail
