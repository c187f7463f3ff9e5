// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of tiles of tokens.
///
/// What one block computes: it owns 16 consecutive slots a warp, of one head. On the query side
/// these are queries: dq, delta = dO·O, and what the tile adds to table gradients. On the key side
/// they are keys: dk and dv. Both sides are one piece of code, since the key side is the query side
/// of the transposed scores:
///
///     query side   S = q·kᵀ   dP = dO·vᵀ   dq += dS·k
///     key side     Sᵀ = k·qᵀ  dPᵀ = v·dOᵀ  dk += dSᵀ·q,  dv += Pᵀ·dO
///
/// The block walks the slots from the start of its first row's window to the end of its last row's,
/// a tile of the other side's rows at a time: one tile computes while the next one arrives. A warp
/// skips the 16 x 16 pieces that none of its rows attends to; inside a piece a mask compares each
/// slot with its row's window bounds. So work follows tokens, not windows.
///
/// Registers: the own rows as left factors, the sums of dq (or dk and dv), one piece of S and dP.
/// Shared memory: the own rows, two tiles of the other side, and sums of the bias gradient.
///
/// Everything a row's sum depends on is added in the order of slots by one warp, and a block's tiles
/// follow from its number: results repeat bit for bit, without atomics.
///
/// P and dS become factors in the storage type, multiplied by powers of two: P by a fixed one, for
/// long windows; dS by one that depends on the largest finite |dO| around, or the gradients of a mean
/// loss would vanish in half.
///
/// Windows of a few tokens have a dS that is a small difference of dP and delta. There delta = dO·O
/// would leave the rounding of O; a row whose window lies in one piece takes Σ P·dP / Σ P instead.
///
/// The contextual encoding is in backward_contextual.cuh. What comes here without an encoding or with
/// bias is float, head dims above 64, rows off 16 bytes, large windows with bias, and grids without bias;
/// backward_window.cuh, backward_long.cuh and backward_grid.cuh take the rest.
///
/// Bound: small windows by memory traffic and latency, so several blocks share a multiprocessor;
/// long windows by tensor cores and exponentials. Two sides recompute S and dP, 7 products instead
/// of 5, and need neither atomics nor a limit on windows.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "winnow/detail/attention/backward_layout.hpp"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// Copies 4 bytes in the background, or writes zeros.
__device__ __forceinline__ void copy_word_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}

/// The code of a slot on a grid: y·(2w-1) + x and above it the seam region, so that a difference of
/// two codes says the bias row and whether the seam lies between.
inline constexpr std::uint32_t backward_seam = 1u << 20;
__device__ __forceinline__ std::uint32_t grid_code(packed_position position, int edge) {
  return unpack_position(position, 1) * (2 * edge - 1) + unpack_position(position, 0) +
         unpack_position(position, 2) * backward_seam;
}

template <class T, int D, position_encoding Position, backward_side Side>
struct tile_differentiator {
  using layout = backward_layout<sizeof(T), D, Position>;
  using math = tile_math<T, D>;
  static constexpr backward_tuning tuning = layout::tuning;
  static constexpr int threads = tuning.threads();
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr bool biased = Position == position_encoding::bias;
  /// 16-bit factors need dS in range.
  static constexpr bool narrow_factors = sizeof(T) == 2;
  /// Left factors of wide heads do not stay in registers.
  static constexpr bool reload = D > 64;
  static constexpr int width = 16 / static_cast<int>(sizeof(T));
  static constexpr int chunks = D / width;  ///< vectors of a row, a power of two up to 32
  /// Vectors of a tile of the other side that each thread loads.
  static constexpr int vectors = others * chunks;
  static constexpr int passes = (vectors + threads - 1) / threads;
  /// Pieces of 16 columns that a warp works on at once, to have independent work in flight.
  static constexpr int units = D > 64 ? 1 : 2;
  /// P times 2^this is rounded to half: P of a long window is below half's normal numbers.
  static constexpr float weight_shift = sizeof(T) == 2 ? 10.0f : 0.0f;
  static constexpr float weight_unit = sizeof(T) == 2 ? 0x1p-10f : 1.0f;
  /// Row passes in which a warp reads its 16 rows as vectors.
  static constexpr int row_passes = chunks / 2;
  /// Who attends inside a piece: everybody; as windows say; as windows and the seam say.
  enum class mask { none, windows, grid };

  const backward_problem& problem;
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int head;
  int warp, lane;
  lane_place place;
  int assigned;
  bool grid;

  // Of the current tile:
  int first_slot;
  int count;     ///< rows in windows
  int slot[2];   ///< of this lane's rows g and g + 8; -1: in no window
  int begin[2];  ///< and their windows' slots [begin, end)
  int end[2];
  std::uint32_t code[2];
  float lse[2];    ///< `weight_shift` - LSE in base 2
  float delta[2];  ///< -delta times `raise`
  bool single[2];  ///< alone in its window: dS is 0, where rounding of O leaves a rest
  float raise;     ///< dS is multiplied by this before rounding; P has `weight_shift` on top
  float lower;     ///< takes both back
  std::int32_t tokens[passes];  ///< of this thread's rows in the next tile of the other side
  typename math::query first_factor, second_factor;
  float first_sum[math::blocks][4];
  float second_sum[query_side ? 1 : math::blocks][4];

  __device__ __forceinline__ tile_differentiator(const backward_problem& problem_,
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
        grid(entry_.problem.kind == relative_kind::grid) {}

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  __device__ __forceinline__ T* own(bool second) const {
    return at<T>(second ? layout::own_second : layout::own_first) + warp * 16 * math::stride;
  }
  __device__ __forceinline__ T* other(int stage, bool second) const {
    return at<T>(layout::other_tiles + (2 * stage + (second ? 1 : 0)) * layout::other_bytes);
  }
  [[nodiscard]] __device__ __forceinline__ const float* lse_of(std::int64_t token) const {
    return problem.lse + token * problem.lse_token_stride + head * problem.lse_head_stride;
  }

  /// Reads which tokens the tile from slot `from` holds, a tile ahead of their use.
  __device__ __forceinline__ void load_tokens(int from, int last);

  /// Starts loading a row's vector, or zeros.
  __device__ __forceinline__ void copy_vector(T* target, const row_view& view, std::int64_t token,
                                              int column) const;

  /// Starts loading the other side's slots [from, from + others), whose tokens are known, and reads
  /// the tokens of the tile from `next`.
  __device__ __forceinline__ void load_others(int stage, int from, int next, int last);

  /// This lane's share of the warp's rows of O.
  struct out_rows {
    uint4 vectors[row_passes];
  };
  __device__ __forceinline__ void load_out(out_rows& result) const;

  /// delta and the magnitude of dO of this warp's rows, whose dO has arrived.
  __device__ __forceinline__ void measure_queries(const out_rows& outs) const;

  /// The largest magnitude among the queries of slots [from, last).
  __device__ __forceinline__ void find_magnitude(int from, int last) const;

  __device__ __forceinline__ void place_rows();

  /// Rows whose window lies in this piece take delta = Σ P·dP / Σ P instead of dO·O: in windows of
  /// two or three tokens dS is a small difference, and the rounding of O would be what is left of it.
  __device__ __forceinline__ void improve_delta(const float (&p)[units][2][4],
                                                const float (&dp)[units][2][4], int from,
                                                int last) {
    const int to = min(from + 16 * units, last);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float weights = 0.0f;
      float sum = 0.0f;
#pragma unroll
      for (int u = 0; u < units; ++u)
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            weights += p[u][b][2 * i + c];
            sum += p[u][b][2 * i + c] * dp[u][b][2 * i + c];
          }
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

  /// A piece: `units` times 16 of the other rows, from `tile_row` on, which are slots from `from`;
  /// those from `last` on do not count.
  template <mask Mask>
  __device__ __forceinline__ void differentiate_piece(int stage, int tile_row, int from, int last) {
    float p[units][2][4] = {};
    float ds[units][2][4] = {};
#pragma unroll
    for (int u = 0; u < units; ++u) {
      if constexpr (reload) first_factor.load(own(false));
      math::scores(first_factor, other(stage, false), tile_row + 16 * u, others - 1, p[u]);
      if constexpr (reload) second_factor.load(own(true));
      math::scores(second_factor, other(stage, true), tile_row + 16 * u, others - 1, ds[u]);
    }
    const float factor = problem.scale * log2_e;
    const int edge = group.quant_length;
    const std::uint32_t middle = static_cast<std::uint32_t>((edge - 1) * 2 * edge);
    const int first_column = stage * layout::column_stride + tile_row + 2 * place.t;
    // Columns [begin, end) of each row, as a difference and a length.
    unsigned offset[2], length[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      offset[i] = static_cast<unsigned>(from + 2 * place.t - begin[i]);
      length[i] = static_cast<unsigned>(max(min(end[i], last) - begin[i], 0));
    }
#pragma unroll
    for (int u = 0; u < units; ++u)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int block_column = u * 16 + b * 8;
        float column_lse[2] = {}, column_delta[2] = {};
        std::uint32_t column_code[2] = {};
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          // Behind the tile's last row there are other words, which the mask turns down.
          const int column = first_column + block_column + c;
          if constexpr (!query_side) {
            column_lse[c] = weight_shift - at<float>(layout::other_lse)[column] * log2_e;
            column_delta[c] = -at<float>(layout::other_delta)[column] * raise;
          }
          if constexpr (Mask == mask::grid)
            column_code[c] = at<std::uint32_t>(layout::other_codes)[column];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = e / 2;
          const int c = e & 1;
          float logit = fmaf(p[u][b][e], factor, query_side ? lse[i] : column_lse[c]);
          bool attends = true;
          if constexpr (Mask != mask::none)
            attends = offset[i] + static_cast<unsigned>(block_column + c) < length[i];
          if constexpr (Mask == mask::grid) {
            const std::uint32_t difference =
                (query_side ? code[i] - column_code[c] : column_code[c] - code[i]) + middle;
            attends = attends && difference < backward_seam;
            if constexpr (biased)
              if (attends) logit += at<float>(layout::bias)[difference];
          }
          float dp = ds[u][b][e] * raise;
          if constexpr (Mask != mask::none) logit = attends ? logit : -INFINITY;
          const float weight = exp2_fast(logit);
          p[u][b][e] = weight;
          if constexpr (query_side && Mask != mask::none) {
            ds[u][b][e] = attends ? dp : 0.0f;
          } else {
            float less = query_side ? delta[i] : column_delta[c];
            if constexpr (Mask != mask::none) less = single[i] ? -dp : less;
            ds[u][b][e] = Mask == mask::none || attends ? weight * (dp + less) : 0.0f;
          }
        }
      }
    if constexpr (query_side && Mask != mask::none) {
      improve_delta(p, ds, from, last);
#pragma unroll
      for (int u = 0; u < units; ++u)
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            ds[u][b][e] = p[u][b][e] *
                          (single[e / 2] ? ds[u][b][e] - ds[u][b][e] : ds[u][b][e] + delta[e / 2]);
    }
    if constexpr (biased && query_side)
      if (entry.parts.bias != nullptr) {
#pragma unroll
        for (int u = 0; u < units; ++u)
          add_to_bias(ds[u],
                      at<std::uint32_t>(layout::other_codes) + stage * layout::column_stride +
                          tile_row + 16 * u,
                      from + 16 * u, last);
      }
#pragma unroll
    for (int u = 0; u < units; ++u) {
      math::values(ds[u], other(stage, false), tile_row + 16 * u, others - 1, first_sum);
      if constexpr (!query_side)
        math::values(p[u], other(stage, true), tile_row + 16 * u, others - 1, second_sum);
    }
  }

  /// dB of a piece. A query's keys have different rows of the bias table, so half a warp adds a
  /// whole row of dS at a time to its own sums; rows follow each other in order.
  __device__ __forceinline__ void add_to_bias(const float (&ds)[2][4], const std::uint32_t* codes,
                                              int from, int last);

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
    const int from = group.bounds[2 * std::int64_t{first_slot}];
    const int last = group.bounds[2 * std::int64_t{first_slot + count - 1} + 1];
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
        if (slot[i] >= 0) delta[i] = -at<float2>(layout::own_stats)[slot[i] - first_slot].y * raise;
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
      if (warp_rows == 16) {
        all_from = group.bounds[2 * (top + 15)];
        all_last = group.bounds[2 * top + 1];
      }
    }
    int stage = 0;
    for (int tile = from; tile < last;) {
      const int next = step_from(tile, others, last);
      if (next < last) {
        load_others(1 - stage, next, step_from(next, others, last), last);
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      __syncthreads();
      const int to = min(warp_last, next);
      for (int piece = max(warp_from, tile); piece < to;) {
        const bool inside = piece >= all_from && piece + 16 * units <= min(all_last, to);
        const int until = inside ? piece + 16 * units : min(step_from(piece, 16 * units, to), to);
        if (biased || grid)
          differentiate_piece<mask::grid>(stage, piece - tile, piece, until);
        else if (inside)
          differentiate_piece<mask::none>(stage, piece - tile, piece, until);
        else
          differentiate_piece<mask::windows>(stage, piece - tile, piece, until);
        piece = until;
      }
      __syncthreads();
      stage = 1 - stage;
      tile = next;
    }
  }

  /// Writes rows of one gradient, sums times `by`; rows in `skip` are left to others.
  template <int Blocks>
  __device__ __forceinline__ void store(const row_view& view, T* staging, float by, unsigned skip,
                                        const float (&sum)[Blocks][4]) const;

  /// The rows of this warp whose sums are not finite, as bits.
  [[nodiscard]] __device__ __forceinline__ unsigned broken_rows() const;

  __device__ __forceinline__ void finish() {
    // dk is of s·q.
    const float by = problem.scale * lower;
    const unsigned broken = broken_rows();
    store(query_side ? problem.grad_q : problem.grad_k, own(false), by, broken, first_sum);
    if constexpr (!query_side) store(problem.grad_v, own(true), weight_unit, broken, second_sum);
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_row<T, Side>(problem, group, head,
                                 first_slot + warp * 16 + __ffs(static_cast<int>(left)) - 1, {});
  }

  /// Tables that stay for all tiles of the block.
  __device__ __forceinline__ void prepare(int group_head) const {
    if constexpr (biased) {
      const int edge = group.quant_length;
      const int table_rows = (2 * edge - 1) * (2 * edge - 1);
      float* table = at<float>(layout::bias);
      for (int r = static_cast<int>(threadIdx.x); r < table_rows; r += threads)
        table[r] = log2_e *
                   load_element<T>(group.bias, group.bias_is_float,
                                   r * group.bias_row_stride + group_head * group.bias_head_stride);
      if constexpr (query_side)
        for (int r = static_cast<int>(threadIdx.x); r < 2 * tuning.warps * table_rows; r += threads)
          table[table_rows + r] = 0.0f;
    }
  }

  /// Writes what the block has summed up for tables.
  __device__ __forceinline__ void write_parts(const block_place& where) const {
    if constexpr (biased && query_side) {
      if (entry.parts.bias == nullptr) return;
      __syncthreads();
      const int edge = group.quant_length;
      const int table_rows = (2 * edge - 1) * (2 * edge - 1);
      const float* sums = at<float>(layout::bias) + table_rows;
      float* part =
          entry.parts.bias +
          (std::int64_t{where.group_head} * problem.blocks_per_head + where.part) * table_rows;
      for (int r = static_cast<int>(threadIdx.x); r < table_rows; r += threads) {
        float sum = 0.0f;
        for (int w = 0; w < 2 * tuning.warps; ++w) sum += sums[w * table_rows + r];
        part[r] = sum;
      }
    }
  }

  __device__ __forceinline__ void run(const block_place& where) {
    prepare(where.group_head);
    const bool zeroes = problem.zero_unassigned && !problem.accumulate;
    const int limit = zeroes ? group.counts->tokens : assigned;
    for (std::int64_t tile = where.part; tile * rows < limit; tile += problem.blocks_per_head) {
      first_slot = static_cast<int>(tile * rows);
      count = min(rows, assigned - first_slot);
      __syncthreads();
      if (count > 0) {
        walk();
        finish();
      }
      if (zeroes)
        for (int row = max(count, 0) + warp; row < min(rows, limit - first_slot);
             row += tuning.warps)
          zero_row<T, Side>(problem, group.order[first_slot + row], head);
    }
    write_parts(where);
  }
};

template <class T, int D, position_encoding Position, backward_side Side>
__global__ void __launch_bounds__(backward_layout<sizeof(T), D, Position>::tuning.threads(),
                                  backward_layout<sizeof(T), D, Position>::tuning.min_blocks)
    differentiate_tiles_kernel(const __grid_constant__ backward_problem problem) {
  extern __shared__ __align__(16) std::byte memory[];
  const block_place where(problem);
  const backward_group& entry = problem.groups[where.group];
  tile_differentiator<T, D, Position, Side>(problem, entry, where.group_head, memory).run(where);
}

}  // namespace winnow::detail

#include "winnow/detail/attention/backward_tile_memory.cuh"
