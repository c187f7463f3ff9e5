// SPDX-License-Identifier: Apache-2.0
/// \file
/// The forward kernel of long windows, for 16-bit storage without a position encoding.
///
/// What a block computes: up to four heads, one after the other, of 128 consecutive slots that lie in
/// windows of `long_window` tokens or more (forward_long_layout.hpp); forward_kernel.cuh leaves those to
/// it. A warp owns 32 rows and walks the slots of their windows in steps of 16 keys. Blocks are as many
/// as fit the GPU, and each takes every n-th tile.
///
/// Where things live: q, the sums, and the scores of two steps in registers; K and V in shared memory, a
/// turn of 64 or 128 keys at a time, while the next turn's arrive by cp.async through `order`.
///
/// Why steps overlap: with one step after the other a warp first waits for tensor cores, then for
/// exponentials, then for tensor cores again, and neither is busy for half of the time. Here one
/// stretch of code without a branch holds the scores of step k + 1, the exponentials of step k and the
/// products with values of step k - 1, which do not depend on each other. So V lags two steps behind K
/// and has three stages where K has two. 32 rows a warp let each fragment of K and V serve two products.
///
/// The softmax: weights count relative to a maximum that trails the true one by up to `slack`, as in
/// softmax.cuh, but whether it does is seen from the weights themselves, after rounding: 7 packed maxima
/// for 32 x 16 weights instead of 16 maxima of scores. A step whose weights are too large raises the
/// maximum, scales what has been summed up and computes its weights again. A row that has met no key has
/// such an offset that its first key gives an infinite weight.
///
/// Bound: exponentials at D <= 32 (64 cycles for 16 x 16 pairs and scheduler), tensor cores at D = 64.
///
/// Rows that come out non-finite are computed again by exact_row.cuh: see forward_kernel.cuh.
#pragma once

#include <cfloat>
#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_long_layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// Does forward_long.cuh take the full tile of slots [start, start + long_tile)?
__device__ __forceinline__ bool is_long_tile(const group_problem& group, std::int64_t start) {
  const auto* bounds = reinterpret_cast<const int2*>(group.bounds) + start;
  const int2 top = bounds[0];
  const int2 bottom = bounds[long_tile - 1];
  // With no other window between the two, which may be a short one that forward_window.cuh takes.
  return top.y - top.x >= long_window && bottom.y - bottom.x >= long_window && bottom.x <= top.y;
}

template <class T, int D>
struct long_attention {
  using layout = forward_long_layout<D>;
  using math = tile_math<T, D>;
  static constexpr int warps = layout::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int rows = layout::rows;
  static constexpr int keys = layout::keys;
  static constexpr int width = 8;
  static constexpr int chunks = D / width;  ///< vectors of a row
  static constexpr int pass_rows = threads / chunks;
  static constexpr int key_passes = keys / pass_rows;
  static constexpr int query_passes = rows / pass_rows;
  static constexpr int fragments = D / 16;
  static constexpr int step_bytes = 16 * layout::row_bytes;
  static constexpr float slack = 6.0f;
  static constexpr unsigned all_lanes = 0xffffffffu;
  static_assert(math::stride * sizeof(T) == layout::row_bytes);

  const forward_problem& problem;
  const group_problem& group;
  std::byte* memory;
  std::uint32_t shared;  ///< the address of `memory`
  int thread = static_cast<int>(threadIdx.x);
  int warp = static_cast<int>(threadIdx.x) / 32;
  lane_place place;

  // Of the current tile of rows:
  int range_first, range_last;    ///< the keys that the block needs
  int lowest, highest;            ///< those that this warp's rows need
  int common_first, common_last;  ///< those that all of this warp's rows attend to
  // Of the current head:
  float factor;  ///< of scores, to logits in base 2
  typename math::query q[2];
  float offset[2][2];  ///< what is added to logits: minus the maximum
  float o[2][math::blocks][4];
  float sum[2][4];
  // The pipeline: scores of the last step, weights of the one before.
  int pending;
  float s[2][2][4];
  std::uint32_t p[2][4];
  int score_base;                             ///< the first slot of `s`
  std::uint32_t score_values, weight_values;  ///< where the values of `s` and of `p` lie

  __device__ __forceinline__ long_attention(const forward_problem& problem_,
                                            const group_problem& group_, std::byte* memory_)
      : problem(problem_),
        group(group_),
        memory(memory_),
        shared(shared_address(memory_)),
        factor(problem_.scale * log2_e) {}

  template <class U>
  __device__ __forceinline__ U* at(int offset_bytes) const {
    return reinterpret_cast<U*>(memory + offset_bytes);
  }
  /// This warp's rows of q of the h-th head.
  __device__ __forceinline__ T* query_rows(int h) const {
    return at<T>(layout::query + (h & 1) * rows * layout::row_bytes) + warp * 32 * math::stride;
  }

  /// The weights of rows 16m + 8i + g in columns 8n + 2t and the next.
  __device__ __forceinline__ std::uint32_t weigh(const float (&scores)[2][2][4], int m, int n,
                                                 int i) const {
    return pack<T>(exp2_fast(fmaf(scores[m][n][2 * i], factor, offset[m][i])),
                   exp2_fast(fmaf(scores[m][n][2 * i + 1], factor, offset[m][i])));
  }
  /// The larger halves of two pairs of weights. They are not negative, so their bits compare as
  /// integers, for which one instruction takes three operands from compute capability 9.0 on.
  static __device__ __forceinline__ std::uint32_t larger(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return __vmaxu2(a, b);
#else
    std::uint32_t r;
    if constexpr (std::is_same_v<T, half>)
      asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    else
      asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
#endif
  }
  /// Is a weight of the step, in any lane, beyond 2^slack?
  static __device__ __forceinline__ bool exceeds(const std::uint32_t (&weights)[2][4]) {
    // 64 is 0x5400, or 0x4280.
    constexpr std::uint32_t past = (std::is_same_v<T, half> ? 0x5401u : 0x4281u) << 16;
    std::uint32_t top = larger(weights[0][0], weights[1][0]);
#pragma unroll
    for (int j = 1; j < 4; ++j) top = larger(top, larger(weights[0][j], weights[1][j]));
    return __any_sync(all_lanes, top >= past || top << 16 >= past);
  }
  /// Raises the maximum of the rows that need it, and computes the step's weights again.
  __device__ __forceinline__ void raise(const float (&scores)[2][2][4],
                                        std::uint32_t (&weights)[2][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float logit =
            factor * quad_max(fmaxf(fmaxf(scores[m][0][2 * i], scores[m][0][2 * i + 1]),
                                    fmaxf(scores[m][1][2 * i], scores[m][1][2 * i + 1])));
        float by = 1.0f;
        if (logit + offset[m][i] > slack) {
          by = exp2_fast(-logit - offset[m][i]);
          offset[m][i] = -logit;
        }
        sum[m][2 * i] *= by;
#pragma unroll
        for (auto& block : o[m]) {
          block[2 * i] *= by;
          block[2 * i + 1] *= by;
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[m][j] = weigh(scores, m, j / 2, j % 2);
    }
  }
  /// Scores from slot `base` on of keys outside of a row's window become -infinity.
  __device__ __forceinline__ void mask(float (&scores)[2][2][4], int base) const {
    const int2* windows = at<const int2>(layout::bounds) + warp * 32 + place.g;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int2 window = windows[16 * m + 8 * i];
        const int column = base + 2 * place.t - window.x;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (static_cast<unsigned>(column + 8 * n + c) >=
                static_cast<unsigned>(window.y - window.x))
              scores[m][n][2 * i + c] = -INFINITY;
      }
  }

  enum class weighing { none, inside, masked };
  /// What a stretch of the pipeline does: the scores of one step, the weights of the one before, the
  /// products with values of the one before that.
  /// \param row where the step's keys begin, for this lane
  /// \param value_row where the values of `weights` begin, for this lane
  /// \param base the first slot of `last_scores`
  template <bool Scores, weighing Weights, bool Values>
  __device__ __forceinline__ void run_stretch(std::uint32_t row, std::uint32_t value_row, int base,
                                              float (&scores)[2][2][4],
                                              float (&last_scores)[2][2][4],
                                              std::uint32_t (&last_weights)[2][4],
                                              const std::uint32_t (&weights)[2][4]) {
    constexpr bool weighs = Weights != weighing::none;
    if constexpr (Weights == weighing::masked) mask(last_scores, base);
    if constexpr (Scores)
#pragma unroll
      for (auto& m : scores)
#pragma unroll
        for (auto& block : m)
#pragma unroll
          for (float& x : block) x = 0.0f;
#pragma unroll
    for (int j = 0; j < fragments; ++j) {
      std::uint32_t k[4], v[4];
      if constexpr (Scores) load_matrices(k, row + 32 * j);
      if constexpr (Values) load_matrices_transposed(v, value_row + 32 * j);
      constexpr int pairs = 8 / fragments;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if constexpr (Scores) {
          multiply_add_16<T>(scores[m][0], q[m].a[j], k[0], k[1]);
          multiply_add_16<T>(scores[m][1], q[m].a[j], k[2], k[3]);
        }
        if constexpr (weighs)
#pragma unroll
          for (int pair = 0; pair < pairs / 2; ++pair) {
            const int index = j * pairs + m * (pairs / 2) + pair;
            last_weights[index / 4][index % 4] =
                weigh(last_scores, index / 4, index % 4 / 2, index % 2);
          }
        if constexpr (Values) {
          multiply_add_16<T>(o[m][2 * j], weights[m], v[0], v[1]);
          multiply_add_16<T>(o[m][2 * j + 1], weights[m], v[2], v[3]);
        }
      }
    }
    if constexpr (Values) {
      const std::uint32_t ones = pack<T>(1.0f, 1.0f);
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_add_16<T>(sum[m], weights[m], ones, ones);
    }
    if constexpr (weighs)
      if (exceeds(last_weights)) raise(last_scores, last_weights);
  }

  /// The steps of this warp in a turn of keys.
  __device__ __forceinline__ void attend_turn(int tile_first, std::uint32_t key_tile,
                                              std::uint32_t value_tile) {
    const int from = max(lowest - tile_first, 0);
    const int to = min(highest - tile_first, keys);
    const int end = (to + 15) >> 4;
    // All rows attend to all keys of the steps [inside, inside_end).
    const int inside = (common_first - tile_first + 15) >> 4;
    const int inside_end = (common_last - tile_first) >> 4;
    int step = from >> 4;
    std::uint32_t row = key_tile + step * step_bytes;
    std::uint32_t value_row = value_tile + step * step_bytes;
    while (step < end) {
      float next[2][2][4];
      std::uint32_t fresh[2][4];
      if (pending == 2 && step > inside && step < inside_end && step + 2 <= end) {
        do {
          run_stretch<true, weighing::inside, true>(row, weight_values, 0, next, s, fresh, p);
          run_stretch<true, weighing::inside, true>(row + step_bytes, score_values, 0, s, next, p,
                                                    fresh);
          weight_values = value_row;
          score_values = value_row + step_bytes;
          row += 2 * step_bytes;
          value_row += 2 * step_bytes;
          step += 2;
        } while (step < inside_end && step + 2 <= end);
        score_base = tile_first + 16 * (step - 1);
        continue;
      }
      if (pending == 0) {
        run_stretch<true, weighing::none, false>(row, 0, 0, s, s, fresh, p);
        pending = 1;
      } else {
        if (pending == 1)
          run_stretch<true, weighing::masked, false>(row, 0, score_base, next, s, fresh, p);
        else
          run_stretch<true, weighing::masked, true>(row, weight_values, score_base, next, s, fresh,
                                                    p);
        pending = 2;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int j = 0; j < 4; ++j) p[m][j] = fresh[m][j];
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[m][n][e] = next[m][n][e];
        }
      }
      weight_values = score_values;
      score_values = value_row;
      score_base = tile_first + 16 * step;
      row += step_bytes;
      value_row += step_bytes;
      ++step;
    }
    // Now, because other warps may go on and the stages of what is pending are filled again.
    if (pending != 0 && highest - tile_first <= keys) drain();
  }
  /// What is left in the pipeline. A warp's rows span 32 slots at least, so there were two steps.
  __device__ __forceinline__ void drain() {
    std::uint32_t last[2][4];
    run_stretch<false, weighing::masked, true>(0, weight_values, score_base, s, s, last, p);
    run_stretch<false, weighing::none, true>(0, score_values, 0, s, s, p, last);
    pending = 0;
  }

  __device__ __forceinline__ void begin_head(int h) {
    pending = 0;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      q[m].load(query_rows(h) + 16 * m * math::stride);
#pragma unroll
      for (float& x : offset[m]) x = FLT_MAX;
#pragma unroll
      for (float& x : sum[m]) x = 0.0f;
#pragma unroll
      for (auto& block : o[m])
#pragma unroll
        for (float& x : block) x = 0.0f;
    }
  }

  /// Stores the warp's rows through shared memory, so that they leave as vectors, and notes which are
  /// not finite.
  __device__ __forceinline__ void finish_head(int h, int head) {
    // Nobody reads this warp's rows of q any more.
    T* staged = query_rows(h);
    const auto* tokens = at<const std::int32_t>(layout::tokens) + warp * 32;
    unsigned broken = 0;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float inverse = 1.0f / sum[m][2 * i];
        const int row = 16 * m + 8 * i + place.g;
        float zero = 0.0f;
        T* target = staged + row * math::stride + 2 * place.t;
#pragma unroll
        for (int b = 0; b < math::blocks; ++b) {
          const float x = o[m][b][2 * i] * inverse;
          const float y = o[m][b][2 * i + 1] * inverse;
          zero += x * 0.0f + y * 0.0f;
          *reinterpret_cast<std::uint32_t*>(target + b * 8) = pack<T>(x, y);
        }
        const unsigned lanes = __ballot_sync(all_lanes, !(zero == 0.0f));
        if (lanes != 0)
          for (int g = 0; g < 8; ++g)
            if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (16 * m + 8 * i + g);
        if (problem.lse != nullptr && place.t == 0)
          problem.lse[tokens[row] * problem.lse_token_stride + head * problem.lse_head_stride] =
              (log2f(sum[m][2 * i]) - offset[m][i]) * ln_2;
      }
    __syncwarp();
    const int column = place.lane % chunks * width;
    T* base = static_cast<T*>(const_cast<void*>(problem.out.data)) +
              head * problem.out.head_stride + column;
    if (column < problem.head_dim)
#pragma unroll 4
      for (int row = place.lane / chunks; row < 32; row += 32 / chunks)
        *reinterpret_cast<uint4*>(base + static_cast<std::int64_t>(tokens[row]) *
                                             static_cast<std::int32_t>(problem.out.token_stride)) =
            *reinterpret_cast<const uint4*>(staged + row * math::stride + column);
    if (place.lane == 0) at<unsigned>(layout::broken)[h * warps + warp] = broken;
    __syncwarp();
  }

  /// Starts copying this thread's chunk of the rows of `tokens`; -1 stands for a row of zeros.
  template <int Passes>
  __device__ __forceinline__ void copy_rows(std::uint32_t target, const row_view& view, int head,
                                            const std::int32_t (&tokens)[Passes]) const {
    const int column = thread % chunks * width;
    const bool inside = column < problem.head_dim;
    const T* base = static_cast<const T*>(view.data) + head * view.head_stride + column;
    // Strides of vectors fit 32 bits.
    const auto stride = static_cast<std::int32_t>(view.token_stride);
    target += thread / chunks * layout::row_bytes + thread % chunks * 16;
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass)
      copy_async(target + pass * pass_rows * layout::row_bytes,
                 base + static_cast<std::int64_t>(max(tokens[pass], 0)) * stride,
                 tokens[pass] >= 0 && inside);
  }
  __device__ __forceinline__ void load_tokens(int base, std::int32_t (&tokens)[key_passes]) const {
#pragma unroll
    for (int pass = 0; pass < key_passes; ++pass) {
      const int key = base + thread / chunks + pass * pass_rows;
      tokens[pass] = key < range_last ? group.order[key] : -1;
    }
  }

  /// `heads` heads from `first_head` of the full tile from slot `start`.
  __device__ __forceinline__ void run(int start, int first_head, int heads) {
    const auto* bounds = reinterpret_cast<const int2*>(group.bounds) + start;
    __syncthreads();
    at<int2>(layout::bounds)[thread] = bounds[thread];
    at<std::int32_t>(layout::tokens)[thread] = group.order[start + thread];
    range_first = bounds[0].x;
    range_last = bounds[rows - 1].y;
    const int2 top = bounds[32 * warp];
    const int2 bottom = bounds[32 * warp + 31];
    lowest = top.x, highest = bottom.y;
    common_first = bottom.x, common_last = top.y;
    std::int32_t tokens[key_passes];
    load_tokens(range_first, tokens);
    __syncthreads();

    const int tiles = (range_last - range_first + keys - 1) / keys;
    const int turns = tiles * heads;
    // What is requested next.
    int ahead = 0, ahead_tile = 0, ahead_h = 0, ahead_value = 0;
    const auto request = [&] {
      if (ahead < turns) {
        const int head = first_head + ahead_h;
        if (ahead_tile == 0) {
          std::int32_t own[query_passes];
#pragma unroll
          for (int pass = 0; pass < query_passes; ++pass)
            own[pass] = at<const std::int32_t>(layout::tokens)[thread / chunks + pass * pass_rows];
          copy_rows(shared + layout::query + (ahead_h & 1) * rows * layout::row_bytes, problem.q,
                    head, own);
        }
        copy_rows(shared + layout::key_tiles + (ahead & 1) * layout::tile_bytes, problem.k, head,
                  tokens);
        copy_rows(shared + layout::value_tiles + ahead_value * layout::tile_bytes, problem.v, head,
                  tokens);
        ++ahead;
        if (++ahead_value == layout::value_stages) ahead_value = 0;
        if (++ahead_tile == tiles) ahead_tile = 0, ++ahead_h;
        load_tokens(range_first + ahead_tile * keys, tokens);
      }
      commit_copies();
    };
    request();

    const std::uint32_t lane_row =
        shared + static_cast<std::uint32_t>(math::score_lane() * sizeof(T)) + layout::key_tiles;
    const std::uint32_t lane_value =
        shared +
        static_cast<std::uint32_t>((math::value_lane() + place.lane / 16 * 8) * sizeof(T)) +
        layout::value_tiles;
    int tile = 0, h = 0, value_stage = 0;
    for (int turn = 0; turn < turns; ++turn) {
      wait_for_copies<0>();
      __syncthreads();
      request();
      if (tile == 0) begin_head(h);
      attend_turn(range_first + tile * keys, lane_row + (turn & 1) * layout::tile_bytes,
                  lane_value + value_stage * layout::tile_bytes);
      if (++value_stage == layout::value_stages) value_stage = 0;
      if (++tile == tiles) {
        finish_head(h, first_head + h);
        tile = 0;
        ++h;
      }
    }
    for (h = 0; h < heads; ++h)
      for (unsigned left = at<const unsigned>(layout::broken)[h * warps + warp]; left != 0;
           left &= left - 1)
        attend_row<T>(problem, group, first_head + h,
                      start + 32 * warp + __ffs(static_cast<int>(left)) - 1);
  }
};

/// One wave of blocks. An item is a tile of rows and a column of heads, columns fastest.
template <class T, int D>
__global__ void __launch_bounds__(32 * forward_long_layout<D>::warps,
                                  forward_long_layout<D>::min_blocks)
    attend_long_windows_kernel(const __grid_constant__ forward_problem problem, std::int64_t tiles,
                               int columns) {
  extern __shared__ __align__(16) std::byte memory[];
  wait_for_predecessor();
  bool any = false;
  for (int g = 0; g < problem.group_count; ++g)
    any |= problem.groups[g].has_long_tiles && problem.groups[g].counts->largest >= long_window;
  if (!any) return;
  const auto group_of = [&](int column) {
    int g = 0;
    while (g + 1 < problem.group_count && column >= problem.groups[g + 1].first_index) ++g;
    return g;
  };
  const std::int64_t items = tiles * columns;
  const std::int64_t step = gridDim.x;
  // Lanes look ahead which of the block's next items are long tiles.
  for (std::int64_t batch = blockIdx.x; batch < items; batch += 32 * step) {
    const std::int64_t seen = batch + (threadIdx.x & 31) * step;
    bool wanted = false;
    if (seen < items) {
      const group_problem& group = problem.groups[group_of(static_cast<int>(seen % columns))];
      const std::int64_t start = seen / columns * long_tile;
      wanted = group.has_long_tiles && start + long_tile <= group.counts->assigned &&
               is_long_tile(group, start);
    }
    for (unsigned left = __ballot_sync(0xffffffffu, wanted); left != 0; left &= left - 1) {
      const std::int64_t item = batch + (__ffs(static_cast<int>(left)) - 1) * step;
      const int column = static_cast<int>(item % columns);
      const group_problem& group = problem.groups[group_of(column)];
      const int group_head = (column - group.first_index) * problem.heads_per_block;
      long_attention<T, D>(problem, group, memory)
          .run(static_cast<int>(item / columns * long_tile), group.first_head + group_head,
               min(problem.heads_per_block, group.heads - group_head));
    }
  }
}

}  // namespace winnow::detail
