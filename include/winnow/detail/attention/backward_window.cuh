// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of short windows in one pass, for 16-bit storage without a position encoding.
///
/// What one warp computes: the windows that start in its `window_range` consecutive slots, of one
/// head. It takes them in chunks: as many whole windows as fit 16 slots, or one longer window of up to
/// 16 · M. A chunk starts where a window starts, so that it meets no other tokens, and dq, dk and dv
/// of its rows are complete when it ends: nothing is computed twice and nobody waits for anybody.
///
/// Registers: all of it. Lane (g, t) of a quad reads 8 or 16 neighbouring bytes of rows g and g + 8.
/// That is a fragment of an m16n8k16 product in an order of the inner index which both factors share,
/// so rows serve as left and as right factors as they come. Where tokens are the inner index (dq, dk,
/// dv), 8 x 8 pieces are transposed between lanes, and sums come out in the layout of loads, so that
/// they leave as vectors. There is no shared memory and no barrier.
///
/// Windows of a few tokens have a dS that is a small difference of dP and delta; there
/// delta = Σ P·dP / Σ P, from registers. One window of more than 16 tokens takes dO·O.
///
/// Windows longer than the capacity are left to the two sides of backward_tile.cuh, window by window,
/// as the partition on the device says.
///
/// Bound: memory traffic and its latency; about 300 instructions for a chunk of 16 rows at D = 16.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/backward_layout.hpp"
#include "winnow/detail/attention/backward_problem.hpp"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// Transposes an 8 x 8 matrix of 16-bit elements, of which each lane holds two neighbours in a row.
__device__ __forceinline__ std::uint32_t transpose(std::uint32_t matrix) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(matrix));
  return result;
}

/// 16 rows of one array. Word b of row g + 8·i holds the dims of this lane in block b; two words are
/// a step of 16 of the inner index.
template <class T, int D>
struct row_fragment {
  static constexpr int blocks = D / 8;
  /// Neighbouring elements of a lane: as many as make quads read whole sectors.
  static constexpr int width = D == 16 ? 4 : 8;
  static constexpr int vectors = D / (4 * width);
  std::uint32_t word[2][blocks];

  static __device__ __forceinline__ int column(int vector) {
    return vector * 4 * width + (static_cast<int>(threadIdx.x) & 3) * width;
  }
  /// Where this lane's first vector of a row lies. Strides of vectors in bytes fit 32 bits here.
  static __device__ __forceinline__ T* row_at(const row_view& view, int head, std::int32_t token) {
    constexpr std::int64_t size = sizeof(T);
    char* base = static_cast<char*>(const_cast<void*>(view.data)) +
                 (head * view.head_stride + column(0)) * size;
    return reinterpret_cast<T*>(base + static_cast<std::int64_t>(token) *
                                           static_cast<std::int32_t>(view.token_stride * size));
  }
  /// Reads the rows of `tokens`; zeros for tokens < 0 and dims from `dim` on.
  __device__ __forceinline__ void load(const row_view& view, int head, int dim,
                                       const std::int32_t (&tokens)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const T* row = row_at(view, head, tokens[i]);
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const bool there = tokens[i] >= 0 && column(v) < dim;
        if constexpr (width == 4) {
          const uint2 x =
              there ? *reinterpret_cast<const uint2*>(row + 4 * width * v) : uint2{0, 0};
          word[i][0] = x.x, word[i][1] = x.y;
        } else {
          const uint4 x =
              there ? *reinterpret_cast<const uint4*>(row + 4 * width * v) : uint4{0, 0, 0, 0};
          word[i][4 * v] = x.x, word[i][4 * v + 1] = x.y;
          word[i][4 * v + 2] = x.z, word[i][4 * v + 3] = x.w;
        }
      }
    }
  }
  /// Writes the rows of `tokens` that `skip` does not name, or adds to them.
  __device__ __forceinline__ void store(const row_view& view, int head, int dim,
                                        const std::int32_t (&tokens)[2], bool accumulate,
                                        unsigned skip) const {
    if (view.data == nullptr) return;
    const lane_place place;
    row_fragment sum = *this;
    if (accumulate) {
      row_fragment before;
      before.load(view, head, dim, tokens);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int b = 0; b < blocks; ++b) {
          const float2 x = unpack<T>(word[i][b]);
          const float2 y = unpack<T>(before.word[i][b]);
          sum.word[i][b] = pack<T>(x.x + y.x, x.y + y.y);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (tokens[i] < 0 || (skip >> (place.g + 8 * i) & 1u) != 0) continue;
      T* row = row_at(view, head, tokens[i]);
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        if (column(v) >= dim) continue;
        if constexpr (width == 4)
          *reinterpret_cast<uint2*>(row + 4 * width * v) = {sum.word[i][0], sum.word[i][1]};
        else
          *reinterpret_cast<uint4*>(row + 4 * width * v) = {
              sum.word[i][4 * v], sum.word[i][4 * v + 1], sum.word[i][4 * v + 2],
              sum.word[i][4 * v + 3]};
      }
    }
  }
  [[nodiscard]] __device__ __forceinline__ row_fragment transposed() const {
    row_fragment result;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int b = 0; b < blocks; ++b) result.word[i][b] = transpose(word[i][b]);
    return result;
  }
  /// s += rows · othersᵀ
  __device__ __forceinline__ void multiply(const row_fragment& others, float (&s)[2][4]) const {
#pragma unroll
    for (int step = 0; step < blocks; step += 2) {
      const std::uint32_t a[4] = {word[0][step], word[1][step], word[0][step + 1],
                                  word[1][step + 1]};
#pragma unroll
      for (int n = 0; n < 2; ++n)
        multiply_add_16<T>(s[n], a, others.word[n][step], others.word[n][step + 1]);
    }
  }
  /// From sums times `by`.
  __device__ __forceinline__ void take(const float (&sum)[blocks][4], float by) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int b = 0; b < blocks; ++b)
        word[i][b] = pack<T>(sum[b][2 * i] * by, sum[b][2 * i + 1] * by);
  }
  /// Adds zeros to each row's `probe`, a pair of elements, which NaN and infinity turn into NaN.
  __device__ __forceinline__ void probe_rows(std::uint32_t (&probe)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        if constexpr (std::is_same_v<T, half>)
          asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(probe[i]) : "r"(word[i][b]), "r"(0));
        else
          asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(probe[i]) : "r"(word[i][b]), "r"(0));
      }
  }
};

/// sums += factor · rows, where the rows are the inner index and have been transposed.
template <class T, int D>
__device__ __forceinline__ void multiply_rows_by(const std::uint32_t (&factor)[4],
                                                 const row_fragment<T, D>& rows,
                                                 float (&sums)[D / 8][4]) {
#pragma unroll
  for (int b = 0; b < D / 8; ++b)
    multiply_add_16<T>(sums[b], factor, rows.word[0][b], rows.word[1][b]);
}

/// Rows whose probe is NaN, as bits: of the 16 rows of a tile.
__device__ __forceinline__ unsigned broken_rows_of(const std::uint32_t (&probe)[2]) {
  const bool broken[2] = {(probe[0] & 0x7fff7fffu) != 0, (probe[1] & 0x7fff7fffu) != 0};
  if (!__any_sync(0xffffffffu, broken[0] || broken[1])) return 0;
  unsigned rows = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned lanes = __ballot_sync(0xffffffffu, broken[i]);
    for (int g = 0; g < 8; ++g)
      if ((lanes >> (4 * g) & 0xfu) != 0) rows |= 1u << (g + 8 * i);
  }
  return rows;
}

template <class T, int D>
struct window_differentiator {
  using fragment = row_fragment<T, D>;
  static constexpr int blocks = D / 8;
  static constexpr int capacity = one_pass_capacity(sizeof(T), D);
  /// P times 2^this is rounded: P of rare keys is below half's normal numbers.
  static constexpr float weight_shift = 10.0f;
  static constexpr float weight_unit = 0x1p-10f;

  const backward_rows& problem;
  const backward_problem& whole;  ///< for rows that are computed again
  const group_problem& group;
  const std::int32_t* order;
  const std::int32_t* bounds;
  int head;
  lane_place place;

  /// Rows to compute again by the exact formulas, 16 bits a tile.
  struct broken_rows {
    std::uint64_t query = 0, key = 0;
  };

  /// The exponent of the largest finite |dO|.
  template <int M>
  static __device__ __forceinline__ unsigned magnitude_of(const fragment (&grad_out)[M]) {
    unsigned largest = 0;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int b = 0; b < blocks; ++b)
          largest = __vmaxu2(largest, grad_out[m].word[i][b] & 0x7fff7fffu);
    largest = __reduce_max_sync(0xffffffffu, max(largest & 0xffffu, largest >> 16));
    if (largest >= 0x7c00u) {  // NaN or infinity is there: look again without them
      largest = 0;
      for (int m = 0; m < M; ++m)
        for (int i = 0; i < 2; ++i)
          for (int b = 0; b < blocks; ++b)
            for (const unsigned x :
                 {grad_out[m].word[i][b] & 0x7fffu, grad_out[m].word[i][b] >> 16 & 0x7fffu})
              if (x < 0x7c00u) largest = max(largest, x);
      largest = __reduce_max_sync(0xffffffffu, largest);
    }
    return __float_as_uint(unpack<half>(largest).x) >> 23;
  }

  /// Slots [first, first + count), which begin and end with a window; in up to 16 of them bit s of
  /// `marks` says that a window starts in slot first + s, or has ended there.
  struct chunk {
    int first = 0;
    int count = 0;  ///< 0: there is none
    unsigned marks = 0;
  };
  static constexpr int max_tiles = capacity / 16;
  using chunk_tokens = std::int32_t[max_tiles][2];
  /// Those of this lane's rows; -1 behind the last.
  __device__ __forceinline__ void load_tokens(const chunk& slots, chunk_tokens& tokens) const {
#pragma unroll
    for (int m = 0; m < max_tiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 16 * m + 8 * i + place.g;
        tokens[m][i] = row < slots.count ? order[slots.first + row] : -1;
      }
  }

  /// One chunk. M == 1: whole windows in up to 16 slots; otherwise one window of up to 16·M.
  template <int M>
  __device__ __forceinline__ broken_rows differentiate(const chunk& slots,
                                                       const chunk_tokens& tokens) const {
    constexpr bool packed = M == 1;
    const int first = slots.first;
    const int count = slots.count;
    const int dim = problem.head_dim;
    const float factor = problem.scale * log2_e;
    // All loads at once, so that one latency serves them.
    fragment k[M], v[M], q[M], grad_out[M], out[packed ? 1 : M];
    float lse[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      grad_out[m].load(problem.grad_out, head, dim, tokens[m]);
      if constexpr (!packed) out[m].load(problem.out, head, dim, tokens[m]);
      k[m].load(problem.k, head, dim, tokens[m]);
      q[m].load(problem.q, head, dim, tokens[m]);
      v[m].load(problem.v, head, dim, tokens[m]);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        lse[m][i] =
            tokens[m][i] >= 0
                ? problem
                      .lse[tokens[m][i] * problem.lse_token_stride + head * problem.lse_head_stride]
                : INFINITY;
    }
    // Of rows g and g + 8: which columns they attend to, from bit 2t on; who is alone.
    unsigned attends[2] = {0, 0};
    bool single[2] = {false, false};
    if constexpr (packed) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 8 * i + place.g;
        if (row >= count) continue;
        const int begin = 31 - __clz(static_cast<int>(slots.marks & ((2u << row) - 1)));
        const int end = row + __ffs(static_cast<int>(slots.marks >> (row + 1)));
        attends[i] = ((1u << end) - (1u << begin)) >> (2 * place.t);
        single[i] = end - begin == 1;
      }
    }
    float raise = weight_unit, lower = 1.0f;
    if constexpr (std::is_same_v<T, half>) {
      const rounding_scale scale(magnitude_of(grad_out));
      raise = scale.up * weight_unit;
      lower = scale.down;
    }
    float delta[M][2];  // times -raise
    if constexpr (!packed)
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float dot = 0.0f;
#pragma unroll
          for (int b = 0; b < blocks; ++b) {
            const float2 x = unpack<T>(out[m].word[i][b]);
            const float2 y = unpack<T>(grad_out[m].word[i][b]);
            dot = fmaf(x.x, y.x, fmaf(x.y, y.y, dot));
          }
          dot += __shfl_xor_sync(0xffffffffu, dot, 1);
          dot += __shfl_xor_sync(0xffffffffu, dot, 2);
          delta[m][i] = -dot * raise;
        }
    broken_rows broken;
    float dk[M][blocks][4] = {};
    float dv[M][blocks][4] = {};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float row_lse[2] = {fmaf(lse[m][0], -log2_e, weight_shift),
                                fmaf(lse[m][1], -log2_e, weight_shift)};
      const fragment q_columns = q[m].transposed();
      const fragment grad_columns = grad_out[m].transposed();
      float dq[blocks][4] = {};
#pragma unroll
      for (int j = 0; j < M; ++j) {
        float p[2][4] = {};
        float ds[2][4] = {};
        q[m].multiply(k[j], p);
        grad_out[m].multiply(v[j], ds);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int i = e / 2;
            const int column = 8 * n + (e & 1);
            bool inside = true;
            if constexpr (packed)
              inside = (attends[i] >> column & 1u) != 0;
            else if (j == M - 1)
              inside = 16 * j + column + 2 * place.t < count;
            const float logit = fmaf(p[n][e], factor, row_lse[i]);
            p[n][e] = exp2_fast(inside ? logit : -INFINITY);
            if constexpr (packed)
              ds[n][e] = inside ? ds[n][e] * (single[i] ? 0.0f : raise) : 0.0f;
            else
              ds[n][e] = p[n][e] * fmaf(ds[n][e], raise, delta[m][i]);
          }
        if constexpr (packed) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float weights = 0.0f;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
              for (int e = 2 * i; e < 2 * i + 2; ++e) {
                weights += p[n][e];
                sum = fmaf(p[n][e], ds[n][e], sum);
              }
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
              weights += __shfl_xor_sync(0xffffffffu, weights, step);
              sum += __shfl_xor_sync(0xffffffffu, sum, step);
            }
            delta[m][i] = tokens[m][i] >= 0 ? -__fdividef(sum, weights) : 0.0f;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
              for (int e = 2 * i; e < 2 * i + 2; ++e) ds[n][e] = p[n][e] * (ds[n][e] + delta[m][i]);
          }
        }
        const weight_fragment<T> weights(p);
        const weight_fragment<T> differences(ds);
        multiply_rows_by<T, D>(differences.a, k[j].transposed(), dq);
        // Of the transposed piece, the second and the third 8 x 8 matrix change places.
        const std::uint32_t weight_rows[4] = {transpose(weights.a[0]), transpose(weights.a[2]),
                                              transpose(weights.a[1]), transpose(weights.a[3])};
        multiply_rows_by<T, D>(weight_rows, grad_columns, dv[j]);
        const std::uint32_t difference_rows[4] = {
            transpose(differences.a[0]), transpose(differences.a[2]), transpose(differences.a[1]),
            transpose(differences.a[3])};
        multiply_rows_by<T, D>(difference_rows, q_columns, dk[j]);
      }
      fragment sums;
      sums.take(dq, problem.scale * lower);
      std::uint32_t probe[2] = {0, 0};
      sums.probe_rows(probe);
      const unsigned rows = broken_rows_of(probe);
      broken.query |= static_cast<std::uint64_t>(rows) << (16 * m);
      sums.store(problem.grad_q, head, dim, tokens[m], problem.accumulate, rows);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      fragment keys, values;
      keys.take(dk[m], problem.scale * lower);
      values.take(dv[m], weight_unit);
      std::uint32_t probe[2] = {0, 0};
      keys.probe_rows(probe);
      values.probe_rows(probe);
      const unsigned rows = broken_rows_of(probe);
      broken.key |= static_cast<std::uint64_t>(rows) << (16 * m);
      keys.store(problem.grad_k, head, dim, tokens[m], problem.accumulate, rows);
      values.store(problem.grad_v, head, dim, tokens[m], problem.accumulate, rows);
    }
    if ((broken.query | broken.key) != 0) {
      if (place.t == 0)
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (tokens[m][i] >= 0)
              problem.delta[head * problem.max_tokens + first + 16 * m + 8 * i + place.g] =
                  -delta[m][i] * (lower / weight_unit);
      __syncwarp();
    }
    return broken;
  }

  /// All windows that start in slots [from, from + window_range), `capacity` at most.
  __device__ __forceinline__ void run(int from) const;
};

template <class T, int D>
__device__ __forceinline__ void window_differentiator<T, D>::run(int from) const {
  const int assigned = group.counts->assigned;
  // Bit s of these words: a window starts in slot from + s, or the last one has ended.
  std::uint32_t starts[3];
  bool wanted = false;
#pragma unroll
  for (int w = 0; w < 3; ++w) {
    const int slot = from + 32 * w + place.lane;
    int2 window = {-1, -1};
    if (slot < problem.max_tokens) window = reinterpret_cast<const int2*>(bounds)[slot];
    const bool starts_here = slot < assigned && window.x == slot;
    starts[w] = __ballot_sync(0xffffffffu, slot == assigned || starts_here);
    wanted |= w < 2 && starts_here && window.y - window.x <= capacity;
  }
  static_assert(window_range == 64);
  if (!__any_sync(0xffffffffu, wanted)) return;
  // Of the following range only the first start, where this warp's last window ends.
  starts[2] &= 0u - starts[2];
  int next = starts[0] != 0 ? __ffs(starts[0]) - 1 : starts[1] != 0 ? 31 + __ffs(starts[1]) : 64;
  const auto advance = [&] {
    chunk result;
    while (next < window_range && from + next < assigned) {
      const int first = next;
      // The starts in the 16 slots after it.
      const int word = (first + 1) / 32;
      const std::uint32_t low = word == 0 ? starts[0] : word == 1 ? starts[1] : starts[2];
      const std::uint32_t high = word == 0 ? starts[1] : word == 1 ? starts[2] : 0;
      const std::uint32_t near = __funnelshift_r(low, high, (first + 1) % 32) & 0xffffu;
      int count = 32 - __clz(static_cast<int>(near));
      if (near == 0) count = bounds[2 * std::int64_t{from + first} + 1] - (from + first);
      next = count > window_range ? window_range : first + count;
      if (count > capacity) continue;
      result.first = from + first;
      result.count = count;
      result.marks = near << 1 | 1u;
      break;
    }
    return result;
  };
  chunk_tokens tokens;
  chunk slots = advance();
  load_tokens(slots, tokens);
  while (slots.count > 0) {
    const chunk following = advance();
    chunk_tokens following_tokens;
    load_tokens(following, following_tokens);
    broken_rows broken;
    if (slots.count <= 16)
      broken = differentiate<1>(slots, tokens);
    else if (capacity <= 32 || slots.count <= 32)
      broken = differentiate < capacity >= 32 ? 2 : 1 > (slots, tokens);
    else
      broken = differentiate < capacity >= 48 ? 3 : 1 > (slots, tokens);
    for (std::uint64_t left = broken.query; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::query>(
          whole, group, head, slots.first + __ffsll(static_cast<long long>(left)) - 1, {});
    for (std::uint64_t left = broken.key; left != 0; left &= left - 1)
      differentiate_row<T, backward_side::key>(
          whole, group, head, slots.first + __ffsll(static_cast<long long>(left)) - 1, {});
    slots = following;
#pragma unroll
    for (int m = 0; m < max_tiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) tokens[m][i] = following_tokens[m][i];
  }
}

/// Heads are the fastest index of the grid; each warp has a range of its own.
template <class T, int D>
__global__ void __launch_bounds__(32 * window_warps, one_pass_blocks(D))
    differentiate_windows_kernel(const __grid_constant__ backward_problem problem,
                                 const __grid_constant__ backward_rows rows) {
  begin_beside(rows.place);
  const block_place where(problem);
  const group_problem& group = problem.groups[where.group].problem;
  const std::int64_t from =
      (std::int64_t{where.part} * window_warps + static_cast<int>(threadIdx.x) / 32) * window_range;
  if (from >= rows.max_tokens) return;
  window_differentiator<T, D>{rows,        problem,      group,
                              group.order, group.bounds, group.first_head + where.group_head}
      .run(static_cast<int>(from));
}

}  // namespace winnow::detail
