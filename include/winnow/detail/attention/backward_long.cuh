// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of the windows that are too long for one pass (backward_window.cuh), for 16-bit storage
/// without a position encoding.
///
/// What one block computes: as in backward_tile.cuh, dq of 128 consecutive slots of one head, or dk and
/// dv of as many, from all slots of their windows. A warp owns 32 rows, so that each fragment of the
/// other side that `ldmatrix` brings from shared memory serves two products: with 16 rows a warp shared
/// memory would be busier than tensor cores. Slots of shorter windows are left out; a block without
/// longer ones ends at once.
///
/// Registers: the own rows as left factors, the sums of dq (or dk and dv), a piece of 32 x 16 of S and
/// dP. On the key side at D = 64 v is loaded again for each piece: with it the compiler has no register
/// left to keep four products in flight. Shared memory: the own rows, and two tiles of the other side, one
/// of which computes while the other one arrives; windows and tokens of the block's next tile of rows,
/// which would otherwise wait for three loads one after the other before anything computes.
///
/// Order of sums, rounding of P and dS, and rows that are not finite: as in backward_tile.cuh. There are
/// no windows of a few tokens here, so delta = dO·O serves.
///
/// Bound: tensor cores at D >= 32, exponentials at D = 16.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_layout.hpp"
#include "winnow/detail/attention/backward_problem.hpp"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/backward_wgmma_tiles.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, int D, backward_side Side>
struct long_differentiator {
  using layout = long_layout<D>;
  using math = tile_math<T, D>;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr int warps = layout::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int rows = layout::rows;
  static constexpr int others = layout::others;
  static constexpr int width = 16 / static_cast<int>(sizeof(T));
  static constexpr int chunks = D / width;  ///< vectors of a row
  static constexpr int passes = others * chunks / threads;
  /// v does not stay in registers, or its products would wait for each other: registers are scarce.
  static constexpr bool shares_second = !query_side && D == 64;
  /// A block brings what it needs to know of its next tile while it computes one. At D = 32 that costs
  /// more in registers than it gains.
  static constexpr bool looks_ahead = D != 32;
  /// Does backward_long_wgmma.cuh compute some of the tiles?
  static constexpr bool has_warpgroups = takes_wgmma_backward(sizeof(T), D);
  static constexpr float weight_shift = 10.0f;
  static constexpr float weight_unit = 0x1p-10f;
  static constexpr unsigned all_lanes = 0xffffffffu;

  const backward_rows& problem;
  const backward_problem& whole;  ///< for rows that are computed again
  const group_problem& group;
  const std::int32_t* order;
  const std::int32_t* bounds;
  std::byte* memory;
  int head;
  int assigned;
  int warp = static_cast<int>(threadIdx.x) / 32;
  lane_place place;

  // What the tile before has brought for the current one; the second only if it met two tiles itself.
  bool has_windows = false, had_second_tile = false;

  // Of the current tile of own rows:
  int first_slot;      ///< of this warp's 32 rows
  unsigned own;        ///< rows of this warp that are in long windows, as bits
  float lse[2][2];     ///< `weight_shift` - LSE in base 2
  float delta[2][2];   ///< -delta times `raise`
  float raise, lower;  ///< as in backward_tile.cuh
  typename math::query first_factor[2], second_factor[shares_second ? 1 : 2];
  float first_sum[2][math::blocks][4];
  float second_sum[query_side ? 1 : 2][math::blocks][4];

  __device__ __forceinline__ long_differentiator(const backward_rows& problem_,
                                                 const backward_problem& whole_,
                                                 const group_problem& group_, int head_,
                                                 std::byte* memory_)
      : problem(problem_),
        whole(whole_),
        group(group_),
        order(group_.order),
        bounds(group_.bounds),
        memory(memory_),
        head(head_),
        assigned(group_.counts->assigned) {}

  __device__ __forceinline__ T* own_rows(bool second) const {
    return reinterpret_cast<T*>(memory + layout::own) +
           ((second ? rows : 0) + warp * 32) * math::stride;
  }
  __device__ __forceinline__ T* other_first(int stage) const {
    return reinterpret_cast<T*>(memory + layout::first) + stage * others * math::stride;
  }
  __device__ __forceinline__ T* other_second(int stage) const {
    return reinterpret_cast<T*>(memory + layout::second) + stage * others * math::stride;
  }
  /// \name Of the block's next tile of own rows, brought while it computes this one
  /// Windows and tokens of its rows, and the tokens of the first tile that it meets.
  /// @{
  __device__ __forceinline__ int2* next_windows() const {
    return reinterpret_cast<int2*>(memory + layout::next_windows);
  }
  __device__ __forceinline__ std::int32_t* next_tokens() const {
    return reinterpret_cast<std::int32_t*>(memory + layout::next_tokens);
  }
  __device__ __forceinline__ std::int32_t* next_others() const {
    return reinterpret_cast<std::int32_t*>(memory + layout::next_others);
  }
  /// @}
  /// The tokens of this warp's rows.
  __device__ __forceinline__ std::int32_t* own_tokens() const {
    return reinterpret_cast<std::int32_t*>(memory + layout::tokens) + 32 * warp;
  }
  /// delta of this warp's rows, on the query side.
  __device__ __forceinline__ float* own_deltas() const {
    return reinterpret_cast<float*>(memory + layout::stats) + 32 * warp;
  }
  /// {LSE, delta} of the queries of a tile, on the key side.
  __device__ __forceinline__ float2* stats(int stage) const {
    return reinterpret_cast<float2*>(memory + layout::stats) + stage * others;
  }
  /// Begin and length of the windows of this warp's rows; empty for rows not in `own`.
  __device__ __forceinline__ int2* windows() const {
    return reinterpret_cast<int2*>(memory + layout::windows) + 32 * warp;
  }
  [[nodiscard]] __device__ __forceinline__ int2 window_of(int slot) const {
    return reinterpret_cast<const int2*>(bounds)[slot];
  }
  [[nodiscard]] __device__ __forceinline__ bool is_long(int slot) const {
    const int2 window = window_of(slot);
    return window.y - window.x > problem.one_pass;
  }
  /// Are `wgmma_rows` slots from `start` on those of backward_long_wgmma.cuh?
  [[nodiscard]] __device__ __forceinline__ bool is_taken(int start) const {
    return has_warpgroups && problem.by_warpgroups && start <= assigned - wgmma_rows &&
           is_wgmma_tile(window_of(start), window_of(start + wgmma_rows - 1));
  }
  /// Is there anything to do in the rows from slot `start`? A longer window holds one of the slots that
  /// this looks at.
  [[nodiscard]] __device__ __forceinline__ bool needs_tile(std::int64_t start, int limit) const {
    if (start >= limit) return false;
    const int past = static_cast<int>(min(start + rows, static_cast<std::int64_t>(limit)));
    if (past > assigned) return true;
    // Not `||`: all loads at once.
    constexpr int part_rows = has_warpgroups ? wgmma_rows : rows;
    bool needed = false;
#pragma unroll
    for (int part = 0; part < rows; part += part_rows) {
      const int first = static_cast<int>(start) + part;
      bool any = is_long((part + part_rows < rows ? min(first + part_rows, past) : past) - 1);
#pragma unroll
      for (int row = 0; row < part_rows; row += 16) any |= is_long(min(first + row, past - 1));
      needed |= any & !is_taken(first);
    }
    return needed;
  }

  /// The tokens of a tile of the other side; in shared memory, because in registers they would be
  /// spilled, and wait for their loads.
  __device__ __forceinline__ std::int32_t* other_tokens(int stage) const {
    return reinterpret_cast<std::int32_t*>(memory + layout::other_tokens) + stage * others;
  }
  /// Brings the line at `address` to the L2.
  static __device__ __forceinline__ void prefetch(const void* address) {
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(address));
  }
  /// Starts copying windows and tokens of the rows from `slot` on.
  __device__ __forceinline__ void request_next(int slot) const {
    static_assert(threads == rows);
    const int thread = static_cast<int>(threadIdx.x);
    if (slot + thread >= assigned) return;
    copy_element_async(shared_address(next_windows() + thread),
                       reinterpret_cast<const long long*>(bounds) + slot + thread, true);
    copy_word(next_tokens() + thread, order + slot + thread, true);
  }
  /// The range of slots that the rows from `slot` on attend to, once their windows are here; empty if the
  /// first or the last of them is not in a long window, and the range not as easily found.
  [[nodiscard]] __device__ __forceinline__ int2 next_range(int slot) const {
    if (slot < 0 || slot + rows > assigned) return {0, 0};
    const int2 first = next_windows()[0];
    const int2 last = next_windows()[rows - 1];
    if (first.y - first.x <= problem.one_pass || last.y - last.x <= problem.one_pass) return {0, 0};
    return {first.x, last.y};
  }
  /// Starts copying the tokens of the first tile that they meet, and has their rows come nearer.
  __device__ __forceinline__ void request_next_others(int slot) const {
    // On the query side that gains nothing.
    if (!query_side && slot + static_cast<int>(threadIdx.x) < assigned) {
      const std::int64_t token = next_tokens()[threadIdx.x];
      prefetch(row_of<T>(problem.k, token, head));
      prefetch(row_of<T>(problem.v, token, head));
    }
    const int2 range = next_range(slot);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < others && range.y > 0)
      copy_word(next_others() + thread, order + min(range.x + thread, range.y - 1), true);
    commit_copies();
  }
  /// Starts copying the tokens of slots [from, from + others).
  __device__ __forceinline__ void request_tokens(int stage, int from, int last) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < others)
      copy_word(other_tokens(stage) + thread, order + min(from + thread, last - 1), true);
  }
  /// Starts copying slots [from, from + others), whose tokens have arrived, and the tokens of the next.
  __device__ __forceinline__ void load_others(int first_stage, int stage, int from, int last);
  /// This thread's column of a head.
  [[nodiscard]] __device__ __forceinline__ const char* column_of(const row_view& view,
                                                                 int own_head) const {
    return reinterpret_cast<const char*>(static_cast<const T*>(view.data) +
                                         own_head * view.head_stride +
                                         static_cast<int>(threadIdx.x) % chunks * width);
  }
  /// Copies 4 bytes in the background, or writes zeros.
  static __device__ __forceinline__ void copy_word(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 4 : 0)
                 : "memory");
  }

  /// This warp's rows of O, of which this lane holds a vector in each pass.
  using row_vectors = uint4[chunks];
  static constexpr int rows_a_pass = 32 / chunks;
  [[nodiscard]] __device__ __forceinline__ int row_of_pass(int pass) const {
    return pass * rows_a_pass + place.lane / chunks;
  }

  /// Starts copying this warp's own rows of both arrays, and on the query side loads O; all at once, so
  /// that they take one latency. Rows past the last token are zeros.
  __device__ __forceinline__ void load_own(row_vectors& outs) const;

  /// delta and the magnitude of dO of this warp's rows, whose dO has arrived, for both sides.
  /// \return the largest magnitude.
  __device__ __forceinline__ unsigned measure_queries(const row_vectors& outs) const;
  /// The largest magnitude among the queries of slots [from, last).
  [[nodiscard]] __device__ __forceinline__ unsigned find_magnitude(int from, int last) const {
    unsigned largest = 0;
    const std::uint8_t* magnitudes = problem.magnitude + head * problem.magnitude_stride;
    for (int i = from / 16 + place.lane; i <= (last - 1) / 16; i += 32)
      largest = max(largest, static_cast<unsigned>(magnitudes[i]));
    return __reduce_max_sync(all_lanes, largest);
  }

  /// Slots [from, last) are attended to by rows of the warp, [all_from, all_last) by all of them.
  struct warp_span {
    int from, last, all_from, all_last;
  };
  /// \name Along the block's range [from, last) of the other side: backward_long_walk.cuh
  /// @{
  template <bool Scores, bool Weighs, bool Masked>
  __device__ __forceinline__ void run_stretch(std::uint32_t key_row, std::uint32_t value_row,
                                              std::uint32_t last_row, int last_from,
                                              float (&s)[2][2][4], float (&dp)[2][2][4],
                                              float (&last_s)[2][2][4], float (&last_dp)[2][2][4]);
  __device__ __forceinline__ void walk_keys(int from, int last, const warp_span& span, int next);
  template <bool Masked>
  __device__ __forceinline__ void differentiate_piece(std::uint32_t query_row,
                                                      std::uint32_t grad_row,
                                                      std::uint32_t to_transposed,
                                                      const float2* columns, int from);
  __device__ __forceinline__ void walk_queries(int from, int last, const warp_span& span, int next);
  /// @}

  /// The rows of the block from `tile_slot` on; those from `next` on come after them, or none where it is
  /// negative.
  __device__ __forceinline__ void walk(int tile_slot, int next) {
    first_slot = tile_slot + 32 * warp;
    const int row_slot = first_slot + place.lane;
    const bool has_others =
        looks_ahead && has_windows && had_second_tile && next_range(tile_slot).y > 0;
    int2 window = {0, 0};
    if (row_slot < assigned) {
      if (looks_ahead && has_windows) {
        window = next_windows()[threadIdx.x];
        own_tokens()[place.lane] = next_tokens()[threadIdx.x];
      } else {
        window = window_of(row_slot);
        own_tokens()[place.lane] = order[row_slot];
      }
    }
    own = __ballot_sync(all_lanes, window.y - window.x > problem.one_pass);
    // First what asks for no loads.
    if (has_warpgroups && __all_sync(all_lanes, window.y - window.x >= wgmma_window) &&
        is_taken(first_slot / wgmma_rows * wgmma_rows))
      own = 0;
    // The warp's rows attend to [warp_from, warp_last) at most, and all of them to
    // [all_from, all_last).
    int warp_from = 0, warp_last = 0, all_from = 0, all_last = 0;
    if (own != 0) {
      warp_from = __shfl_sync(all_lanes, window.x, __ffs(static_cast<int>(own)) - 1);
      warp_last = __shfl_sync(all_lanes, window.y, 31 - __clz(static_cast<int>(own)));
      all_from = __shfl_sync(all_lanes, window.x, 31);
      all_last = __shfl_sync(all_lanes, window.y, 0);
      if (own != all_lanes) all_last = 0;
    }
    const bool counts = (own >> place.lane & 1u) != 0;
    windows()[place.lane] = {window.x, counts ? window.y - window.x : 0};
    int2* spans = reinterpret_cast<int2*>(memory + layout::spans);
    if (place.lane == 0) spans[warp] = {warp_from, warp_last};
    __syncwarp();
    row_vectors outs;
    load_own(outs);
    commit_copies();
    __syncthreads();
    int from = 0, last = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      const int2 span = spans[w];
      if (span.y == span.x) continue;
      if (last == 0) from = span.x;
      last = span.y;
    }
    if (last > 0 && static_cast<int>(threadIdx.x) < others)
      other_tokens(0)[threadIdx.x] =
          has_others ? next_others()[threadIdx.x]
                     : order[min(from + static_cast<int>(threadIdx.x), last - 1)];
    __syncthreads();
    if (last > 0) load_others(0, 0, from, last);
    if (looks_ahead && next >= 0) request_next(next);
    commit_copies();
    unsigned magnitude = 0;
    if (!query_side && own != 0) magnitude = find_magnitude(warp_from, warp_last);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 16 * m + 8 * i + place.g;
        lse[m][i] = delta[m][i] = 0.0f;
        if (query_side && (own >> row & 1u) != 0)
          lse[m][i] =
              weight_shift - log2_e * problem.lse[own_tokens()[row] * problem.lse_token_stride +
                                                  head * problem.lse_head_stride];
      }
    wait_for_copies<1>();
    __syncwarp();
    if constexpr (query_side) magnitude = measure_queries(outs);
    raise = weight_unit;
    lower = 1.0f;
    if constexpr (std::is_same_v<T, half>) {
      const rounding_scale scale(magnitude);
      raise = scale.up * weight_unit;
      lower = scale.down;
    }
    // Otherwise computed again for each piece.
    if constexpr (shares_second) asm volatile("" : "+f"(raise));
    if constexpr (query_side) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = 16 * m + 8 * i + place.g;
          if ((own >> row & 1u) != 0) delta[m][i] = -own_deltas()[row] * raise;
        }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      first_factor[m].load(own_rows(false) + 16 * m * math::stride);
      if constexpr (!shares_second) second_factor[m].load(own_rows(true) + 16 * m * math::stride);
#pragma unroll
      for (auto& block : first_sum[m])
#pragma unroll
        for (float& x : block) x = 0.0f;
      if constexpr (!query_side)
#pragma unroll
        for (auto& block : second_sum[m])
#pragma unroll
          for (float& x : block) x = 0.0f;
    }
    const warp_span span{warp_from, warp_last, all_from, all_last};
    if constexpr (query_side)
      walk_keys(from, last, span, next);
    else
      walk_queries(from, last, span, next);
    wait_for_copies<0>();
    has_windows = next >= 0;
    had_second_tile = last - from > others;
  }

  /// Rows of sums that are not finite, as bits.
  [[nodiscard]] __device__ __forceinline__ unsigned broken_rows() const;

  /// Writes rows `which` of a gradient, sums times `by`.
  __device__ __forceinline__ void store(const row_view& view, T* staging, float by, unsigned which,
                                        const float (&sum)[2][math::blocks][4]) const;

  __device__ __forceinline__ void finish() {
    if (own == 0) return;
    const unsigned broken = broken_rows() & own;
    const unsigned which = own & ~broken;
    store(query_side ? problem.grad_q : problem.grad_k, own_rows(false), problem.scale * lower,
          which, first_sum);
    if constexpr (!query_side)
      store(problem.grad_v, own_rows(true), weight_unit, which, second_sum);
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_row<T, Side>(whole, group, head, first_slot + __ffs(static_cast<int>(left)) - 1,
                                 {});
  }

  __device__ __forceinline__ void run(int part) {
    const bool zeroes = problem.zero_unassigned && !problem.accumulate;
    if (!zeroes && group.counts->largest <= problem.one_pass) return;
    const int limit = zeroes ? group.counts->tokens : assigned;
    const std::int64_t step = problem.blocks_per_head;
    // Lanes look ahead which of the block's next tiles need anything.
    for (std::int64_t batch = part; batch * rows < limit; batch += 32 * step) {
      unsigned needed =
          __ballot_sync(all_lanes, needs_tile((batch + place.lane * step) * rows, limit));
      for (; needed != 0; needed &= needed - 1) {
        const auto slot_of = [&](unsigned tiles) {
          return static_cast<int>((batch + (__ffs(static_cast<int>(tiles)) - 1) * step) * rows);
        };
        const int tile_slot = slot_of(needed);
        const unsigned later = needed & (needed - 1);
        __syncthreads();
        if (tile_slot < assigned) {
          walk(tile_slot, looks_ahead && later != 0 ? slot_of(later) : -1);
          finish();
        }
        if (zeroes)
          for (int slot = max(tile_slot, assigned) + warp; slot < min(tile_slot + rows, limit);
               slot += warps)
            zero_row<T, Side>(whole, order[slot], head);
      }
    }
  }
};

template <class T, int D, backward_side Side>
__global__ void __launch_bounds__(32 * long_layout<D>::warps, long_layout<D>::min_blocks)
    differentiate_long_kernel(const __grid_constant__ backward_problem problem,
                              const __grid_constant__ backward_rows rows) {
  extern __shared__ __align__(16) std::byte memory[];
  const block_place where(problem);
  const group_problem& group = problem.groups[where.group].problem;
  begin_beside(rows.place);
  if constexpr (Side == backward_side::key) {
    // The query side's deltas are for those who have something to do.
    const bool idle =
        !(rows.zero_unassigned && !rows.accumulate) && group.counts->largest <= rows.one_pass;
    if (!idle || blockIdx.x == 0) wait_for_predecessor();
    if (idle) return;
  }
  long_differentiator<T, D, Side>(rows, problem, group, group.first_head + where.group_head, memory)
      .run(where.part);
  if constexpr (Side == backward_side::query) end_beside(rows.place, blockIdx.x == 0);
}

}  // namespace winnow::detail

#include "winnow/detail/attention/backward_long_memory.cuh"
#include "winnow/detail/attention/backward_long_walk.cuh"
