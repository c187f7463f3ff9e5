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
/// turn of 64 or 128 keys at a time, while the next turn's arrive by cp.async. Which tokens these are
/// is read from `order` a turn earlier, also by cp.async: loads into registers would be waited for at
/// once, as they share a scoreboard with what was loaded before the loop.
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
/// maximum, scales what has been summed up and computes its weights again. The first maximum is that of
/// the first step; a row that has met no key by then has such an offset that its first key gives an
/// infinite weight.
///
/// Bound: exponentials at D <= 32 (64 cycles for 16 x 16 pairs and scheduler), tensor cores at D = 64.
///
/// Rows that come out non-finite are computed again by exact_row.cuh: see forward_kernel.cuh.
#pragma once

#include <cfloat>
#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_long_items.cuh"
#include "winnow/detail/attention/forward_long_layout.hpp"
#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// Does forward_long.cuh take the full tile of slots with these bounds of its first and last one?
template <int D>
__device__ __forceinline__ bool is_long_tile(int2 top, int2 bottom) {
  constexpr int window = forward_long_layout<D>::window;
  // With no other window between the two, which may be a short one that forward_window.cuh takes.
  return top.y - top.x >= window && bottom.y - bottom.x >= window && bottom.x <= top.y;
}
/// The same of slots [start, start + long_tile).
template <int D>
__device__ __forceinline__ bool is_long_tile(const group_problem& group, std::int64_t start) {
  const auto* bounds = reinterpret_cast<const int2*>(group.bounds) + start;
  return is_long_tile<D>(bounds[0], bounds[long_tile - 1]);
}

/// What a block computes at a time: `heads` heads from `first_head` on of the slots from `start` on.
struct long_item {
  int start;
  int range_first, range_last;  ///< the slots of the windows that these lie in
  int first_head, heads;
};

/// \tparam Layout a `forward_long_layout`.
template <class T, class Layout>
struct long_attention {
  using layout = Layout;
  static constexpr int D = layout::head_dim;
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
  int lowest, highest;            ///< the keys that this warp's rows need
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
    // 64 is 0x5400, or 0x4280. What is added sets the sign of halves beyond that.
    constexpr std::uint32_t past = std::is_same_v<T, half> ? 0x5401u : 0x4281u;
    constexpr std::uint32_t both = 0x10001u;
    std::uint32_t top = larger(weights[0][0], weights[1][0]);
#pragma unroll
    for (int j = 1; j < 4; ++j) top = larger(top, larger(weights[0][j], weights[1][j]));
    return __any_sync(all_lanes, ((top + (0x8000u - past) * both) & (0x8000u * both)) != 0);
  }
  /// The largest score of row 16m + 8i + g, as a logit.
  __device__ __forceinline__ float largest_logit(const float (&scores)[2][2][4], int m,
                                                 int i) const {
    return factor * quad_max(lane_max(scores[m], i));
  }
  /// The maximum is that of the head's first scores.
  __device__ __forceinline__ void begin_maximum() {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float logit = largest_logit(s, m, i);
        offset[m][i] = logit > -INFINITY ? -logit : FLT_MAX;
      }
  }
  /// Raises the maximum of the rows that need it, and computes the step's weights again.
  __device__ __forceinline__ void raise(const float (&scores)[2][2][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float logit = largest_logit(scores, m, i);
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
      for (int j = 0; j < 4; ++j) p[m][j] = weigh(scores, m, j / 2, j % 2);
    }
  }
  /// Scores from slot `base` on of keys outside of a row's window become -infinity.
  __device__ __forceinline__ void mask(float (&scores)[2][2][4], int base) const {
    if (base >= common_first && base + 16 <= common_last) return;
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
                                              float (&last_scores)[2][2][4]) {
    constexpr bool weighs = Weights != weighing::none;
    if constexpr (Weights == weighing::masked) mask(last_scores, base);
    if constexpr (Scores)
#pragma unroll
      for (auto& m : scores)
#pragma unroll
        for (auto& block : m)
#pragma unroll
          for (float& x : block) x = 0.0f;
    if constexpr (Values) {
#pragma unroll
      for (int j = 0; j < fragments; ++j) {
        std::uint32_t v[4];
        load_matrices_transposed(v, value_row + 32 * j);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add_16<T>(o[m][2 * j], p[m], v[0], v[1]);
          multiply_add_16<T>(o[m][2 * j + 1], p[m], v[2], v[3]);
        }
      }
      const std::uint32_t ones = pack<T>(1.0f, 1.0f);
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_add_16<T>(sum[m], p[m], ones, ones);
    }
#pragma unroll
    for (int j = 0; j < fragments; ++j) {
      std::uint32_t k[4];
      if constexpr (Scores) load_matrices(k, row + 32 * j);
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
            p[index / 4][index % 4] = weigh(last_scores, index / 4, index % 4 / 2, index % 2);
          }
      }
    }
    if constexpr (weighs)
      if (exceeds(p)) raise(last_scores);
  }

  /// Pairs of steps that need no mask, and whose predecessor needs none.
  __device__ __forceinline__ void attend_pairs(int pairs, std::uint32_t row,
                                               std::uint32_t value_row) {
    float next[2][2][4];
    do {
      run_stretch<true, weighing::inside, true>(row, weight_values, 0, next, s);
      run_stretch<true, weighing::inside, true>(row + step_bytes, score_values, 0, s, next);
      weight_values = value_row;
      score_values = value_row + step_bytes;
      row += 2 * step_bytes;
      value_row += 2 * step_bytes;
    } while (--pairs > 0);
  }
  /// The steps of this warp in a turn of keys.
  __device__ __forceinline__ void attend_turn(int tile_first, std::uint32_t key_tile,
                                              std::uint32_t value_tile) {
    // All rows attend to all keys of the steps [inside, inside_end).
    const int inside = (common_first - tile_first + 15) >> 4;
    const int inside_end = (common_last - tile_first) >> 4;
    int step = max(lowest - tile_first, 0) >> 4;
    const int end = (min(highest - tile_first, keys) + 15) >> 4;
    while (step < end) {
      const std::uint32_t row = key_tile + step * step_bytes;
      const std::uint32_t value_row = value_tile + step * step_bytes;
      const int pairs = (min(inside_end + 1, end) - step) >> 1;
      if (pending == 2 && step > inside && pairs > 0) {
        attend_pairs(pairs, row, value_row);
        step += 2 * pairs;
        score_base = tile_first + 16 * (step - 1);
        continue;
      }
      float next[2][2][4];
      if (pending == 0) {
        run_stretch<true, weighing::none, false>(row, 0, 0, s, s);
        mask(s, tile_first + 16 * step);
        begin_maximum();
        pending = 1;
      } else {
        if (pending == 1)
          run_stretch<true, weighing::masked, false>(row, 0, score_base, next, s);
        else
          run_stretch<true, weighing::masked, true>(row, weight_values, score_base, next, s);
        pending = 2;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[m][n][e] = next[m][n][e];
        }
      }
      weight_values = score_values;
      score_values = value_row;
      score_base = tile_first + 16 * step;
      ++step;
    }
  }
  /// What is left in the pipeline. A warp's rows span 32 slots at least, so there were two steps.
  __device__ __forceinline__ void drain() {
    run_stretch<false, weighing::masked, true>(0, weight_values, score_base, s, s);
    run_stretch<false, weighing::none, true>(0, score_values, 0, s, s);
    pending = 0;
  }

  __device__ __forceinline__ void begin_head() {
    pending = 0;
    const T* own = at<const T>(layout::query) + warp * 32 * math::stride;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      q[m].load(own + 16 * m * math::stride);
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

  /// Stores the warp's rows, and notes which are not finite. \return are there any?
  __device__ __forceinline__ bool finish_head(int h, int head) {
    const auto* tokens = at<const std::int32_t>(layout::tokens) + warp * 32 + place.g;
    // Neighbouring lanes trade halves, so that a row's stores fill sectors: even lanes take the left
    // one of two blocks, odd lanes the right one.
    const bool odd = (place.t & 1) != 0;
    const packed_view& out = problem.packed[3];
    char* base = out.data + std::int64_t{head} * out.head_bytes + 4 * place.t + (odd ? 12 : 0);
    float zero[2][2] = {};
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float inverse = reciprocal(sum[m][2 * i]);
        char* row = advance(base, tokens[16 * m + 8 * i], out.token_bytes);
#pragma unroll
        for (int pair = 0; pair < fragments; ++pair) {
          std::uint32_t words[2];
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const float x = o[m][2 * pair + b][2 * i] * inverse;
            const float y = o[m][2 * pair + b][2 * i + 1] * inverse;
            zero[m][i] = fmaf(x, 0.0f, fmaf(y, 0.0f, zero[m][i]));
            words[b] = pack<T>(x, y);
          }
          const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? words[0] : words[1], 1);
          const uint2 both = odd ? uint2{other, words[1]} : uint2{words[0], other};
          if (16 * pair + (odd ? 8 : 0) < problem.head_dim)
            *reinterpret_cast<uint2*>(row + 32 * pair) = both;
        }
      }
    if (problem.lse != nullptr && place.t == 0)
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          problem.lse[tokens[16 * m + 8 * i] * problem.lse_token_stride +
                      head * problem.lse_head_stride] =
              (log2f(sum[m][2 * i]) - offset[m][i]) * ln_2;
    unsigned broken = 0;
    if (__any_sync(all_lanes, !(zero[0][0] + zero[0][1] + zero[1][0] + zero[1][1] == 0.0f)))
      for (int m = 0; m < 2; ++m)
        for (int i = 0; i < 2; ++i) {
          const unsigned lanes = __ballot_sync(all_lanes, !(zero[m][i] == 0.0f));
          for (int g = 0; g < 8; ++g)
            if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (16 * m + 8 * i + g);
        }
    if (place.lane == 0) at<unsigned>(layout::broken)[h * warps + warp] = broken;
    __syncwarp();
    return broken != 0;
  }

  /// Where this thread's chunk of rows of a head begins.
  __device__ __forceinline__ char* chunk_of(const packed_view& rows, int head) const {
    return rows.data + std::int64_t{head} * rows.head_bytes +
           thread % chunks * (width * static_cast<int>(sizeof(T)));
  }
  /// Starts copying this thread's chunk of the rows of `tokens`, or zeros.
  template <int Passes>
  static __device__ __forceinline__ void copy_rows(std::uint32_t target, char* source,
                                                   std::int32_t token_bytes,
                                                   const std::int32_t (&tokens)[Passes],
                                                   bool valid) {
#pragma unroll
    for (int pass = 0; pass < Passes; ++pass)
      copy_async(target + pass * pass_rows * layout::row_bytes,
                 advance(source, tokens[pass], token_bytes), valid);
  }

  __device__ __forceinline__ void run(const long_item& item) {
    const auto* order = group.order;
    const int last_key = item.range_last - 1;
    std::int32_t tokens[key_passes];
    // The block's former tile is done with shared memory.
    __syncthreads();
    {
      const int2 window = reinterpret_cast<const int2*>(group.bounds)[item.start + thread];
      const std::int32_t token = order[item.start + thread];
#pragma unroll
      for (int pass = 0; pass < key_passes; ++pass)
        tokens[pass] = order[item.range_first + thread / chunks + pass * pass_rows];
      at<int2>(layout::bounds)[thread] = window;
      at<std::int32_t>(layout::tokens)[thread] = token;
      lowest = __shfl_sync(all_lanes, window.x, 0);
      common_last = __shfl_sync(all_lanes, window.y, 0);
      common_first = __shfl_sync(all_lanes, window.x, 31);
      highest = __shfl_sync(all_lanes, window.y, 31);
    }
    __syncthreads();

    const int tiles = (item.range_last - item.range_first + keys - 1) / keys;
    const bool inside = thread % chunks * width < problem.head_dim;
    const std::uint32_t target =
        shared + thread / chunks * layout::row_bytes + thread % chunks * 16;
    const std::uint32_t list_target = shared + layout::lists + 4 * thread;
    const std::uint32_t list_source = shared + layout::lists + thread / chunks * 4;
    // What is requested next, and where it goes to.
    int ahead_tile = 0, ahead_h = 0;
    int ahead_key = 0, ahead_value = 0, ahead_list = 0;
    char* key_source = chunk_of(problem.packed[1], item.first_head);
    char* value_source = chunk_of(problem.packed[2], item.first_head);
    const auto request = [&] {
      const bool wanted = ahead_h < item.heads;
      copy_rows(target + layout::key_tiles + ahead_key, key_source, problem.packed[1].token_bytes,
                tokens, wanted && inside);
      copy_rows(target + layout::value_tiles + ahead_value, value_source,
                problem.packed[2].token_bytes, tokens, wanted && inside);
      const bool begins = ahead_tile == 0;
      if (++ahead_tile == tiles) ahead_tile = 0;
      // The tokens of the keys that come next.
      ahead_list ^= 4 * keys;
      if (thread < keys)
        copy_element_async(list_target + ahead_list,
                           order + min(item.range_first + ahead_tile * keys + thread, last_key),
                           true);
      if (begins && wanted) {
        std::int32_t own[query_passes];
#pragma unroll
        for (int pass = 0; pass < query_passes; ++pass)
          own[pass] = at<const std::int32_t>(layout::tokens)[thread / chunks + pass * pass_rows];
        // The head before has been read by all warps: it has two turns at least.
        copy_rows(target + layout::query, chunk_of(problem.packed[0], item.first_head + ahead_h),
                  problem.packed[0].token_bytes, own, inside);
      }
      commit_copies();
      if (ahead_tile == 0 && ++ahead_h < item.heads) {
        key_source += problem.packed[1].head_bytes;
        value_source += problem.packed[2].head_bytes;
      }
    };
    request();

    const std::uint32_t lane_row =
        shared + static_cast<std::uint32_t>(math::score_lane() * sizeof(T)) + layout::key_tiles;
    const std::uint32_t lane_value =
        shared +
        static_cast<std::uint32_t>((math::value_lane() + place.lane / 16 * 8) * sizeof(T)) +
        layout::value_tiles;
    bool any_broken = false;
    for (int h = 0; h < item.heads; ++h) {
      for (int tile = 0; tile < tiles; ++tile) {
        const std::uint32_t row = lane_row + ahead_key;
        const std::uint32_t value_row = lane_value + ahead_value;
        ahead_key = layout::tile_bytes - ahead_key;
        ahead_value = ahead_value == (layout::value_stages - 1) * layout::tile_bytes
                          ? 0
                          : ahead_value + layout::tile_bytes;
        wait_for_copies<0>();
        __syncthreads();
#pragma unroll
        for (int pass = 0; pass < key_passes; ++pass)
          tokens[pass] = load_shared_int(list_source + ahead_list + 4 * pass * pass_rows);
        request();
        if (tile == 0) begin_head();
        const int tile_first = item.range_first + tile * keys;
        if (pending == 2 && tile_first >= common_first + 16 && tile_first + keys <= common_last) {
          attend_pairs(keys / 32, row, value_row);
          score_base = tile_first + keys - 16;
        } else {
          attend_turn(tile_first, row, value_row);
        }
        // Now, because other warps may go on and the stages of what is pending are filled again.
        if (pending != 0 && highest <= tile_first + keys) drain();
      }
      any_broken |= finish_head(h, item.first_head + h);
    }
    wait_for_copies<0>();
    if (!any_broken) return;
    for (int h = 0; h < item.heads; ++h)
      for (unsigned left = at<const unsigned>(layout::broken)[h * warps + warp]; left != 0;
           left &= left - 1)
        attend_row<T>(problem, group, item.first_head + h,
                      item.start + 32 * warp + __ffs(static_cast<int>(left)) - 1);
  }
};

/// One wave of blocks; forward_long_items.cuh says what they take.
template <class T, class Layout>
__global__ void __launch_bounds__(32 * Layout::warps, Layout::min_blocks)
    attend_long_windows_kernel(const __grid_constant__ forward_problem problem, std::int64_t tiles,
                               int columns) {
  extern __shared__ __align__(16) std::byte memory[];
  begin_beside(problem.place);
  if (!has_long_windows<Layout>(problem)) return end_beside(problem.place, blockIdx.x == 0);
  using part_of_heads = long_part<Layout::most_heads>;
  const std::int64_t items = count_long_items(problem, tiles, columns);
  const std::int64_t step = gridDim.x;
  // Lanes look ahead which of the block's next items are long tiles.
  for (std::int64_t batch = blockIdx.x; batch < items; batch += 32 * step) {
    const std::int64_t seen = batch + (threadIdx.x & 31) * step;
    int4 found{};  // the slot, the part of the heads and the range of keys
    bool wanted = false;
    if (seen < items) {
      std::int64_t tile;
      const part_of_heads part = find_long_item<Layout::most_heads>(problem, columns, seen, tile);
      const int start = static_cast<int>(tile) * long_tile;
      const group_problem& group = problem.groups[group_of_column(problem, part.column())];
      if (heads_of(problem, group, part).count > 0 && group.has_long_tiles &&
          start <= group.counts->assigned - long_tile) {
        const auto* bounds = reinterpret_cast<const int2*>(group.bounds) + start;
        const int2 top = bounds[0];
        const int2 bottom = bounds[long_tile - 1];
        wanted = is_long_tile<Layout::head_dim>(top, bottom);
        found = {start, part.code, top.x, bottom.y};
      }
    }
    int4* table = reinterpret_cast<int4*>(memory + Layout::items);
    __syncthreads();
    if (threadIdx.x < 32) table[threadIdx.x] = found;
    __syncthreads();
    for (unsigned left = __ballot_sync(0xffffffffu, wanted); left != 0; left &= left - 1) {
      const int4 next = table[__ffs(static_cast<int>(left)) - 1];
      const part_of_heads part{next.y};
      const group_problem& group = problem.groups[group_of_column(problem, part.column())];
      const long_heads heads = heads_of(problem, group, part);
      const long_item item{next.x, next.z, next.w, group.first_head + heads.first, heads.count};
      long_attention<T, Layout>(problem, group, memory).run(item);
    }
  }
  end_beside(problem.place, blockIdx.x == 0);
}

}  // namespace winnow::detail
