// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the warps of a block of backward_long_wgmma.cuh share, and how rows come into its shared memory.
///
/// Four warps do nothing but copy. They gather the own rows of an item, and all that is known of them,
/// while the item before is computed, and the other side's rows, a tile of 64 at a time, into a ring of
/// stages. Copies of a stage are announced when those of the next stages are under way. LSE and delta
/// of a stage's queries go by way of registers, one stage later, so that nothing waits for them.
///
/// Every warp finds the block's items by itself, so that none waits for another one between them.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_wgmma_layout.hpp"
#include "winnow/detail/attention/backward_wgmma_tiles.cuh"
#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/attention/wgmma_ring.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// As in backward_long.cuh: weights are rounded as multiples of 2^-10.
inline constexpr float wgmma_weight_shift = 10.0f;
inline constexpr float wgmma_weight_unit = 0x1p-10f;

/// One head of tiles of rows from slot `start` on.
struct gradient_item {
  int start;
  unsigned wanted;              ///< tiles of rows, a bit each
  int range_first, range_last;  ///< the slots of the windows that these lie in
  int head;
  bool has_gaps;  ///< the range has slots of other windows between those
  [[nodiscard]] __device__ __forceinline__ bool wants(int tile) const {
    return (wanted >> tile & 1) != 0;
  }
};

/// Where a warp is in the ring of stages.
template <class Layout>
struct ring_place {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void step() {
    if (++stage == Layout::stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <class Layout>
struct gradient_block : ring_block<Layout, backward_rows> {
  using base = ring_block<Layout, backward_rows>;
  using base::base, base::shared;
  using typename base::layout;
  static constexpr bool query_side = layout::side == backward_side::query;

  static __device__ __forceinline__ int tiles_of(const gradient_item& item) {
    return divide_up(item.range_last - item.range_first, layout::others);
  }
  __device__ __forceinline__ std::uint32_t own_empty(int buffer) const {
    return shared + layout::own_empty + 8 * buffer;
  }
};

/// What the four warps that copy carry from item to item.
template <class Layout>
struct gradient_copy_state {
  ring_place<Layout> filled, announced;
  int under_way = 0;   ///< stages
  unsigned items = 0;  ///< so far
  /// LSE and delta of a row of the last stage, and where they belong.
  float lse = 0.0f, delta = 0.0f, raise = 0.0f;
  std::uint32_t stats = 0;

  __device__ __forceinline__ void store_stats() const {
    if (stats == 0) return;
    store_shared(stats, __float_as_uint(fmaf(lse, -log2_e, wgmma_weight_shift)));
    store_shared(stats + (Layout::column_delta - Layout::column_lse),
                 __float_as_uint(-delta * raise));
  }
  /// \param shared the address of the block's memory.
  __device__ __forceinline__ void announce(std::uint32_t shared) {
    announce_stage(shared + Layout::full + 8 * announced.stage);
    announced.step();
    --under_way;
  }
  __device__ __forceinline__ void announce_all(std::uint32_t shared) {
    if constexpr (Layout::side == backward_side::key) store_stats();
    stats = 0;
    wait_for_copies<0>();
    while (under_way > 0) announce(shared);
  }
};

template <class T, class Layout>
struct gradient_copies : gradient_block<Layout> {
  using block = gradient_block<Layout>;
  using layout = Layout;
  using block::group, block::problem, block::shared, block::query_side;
  static constexpr int vectors = layout::head_dim / 8;  ///< of a row
  static constexpr int pass_rows = 128 / vectors;
  static constexpr int passes = layout::others / pass_rows;
  static constexpr int pass_bytes = pass_rows * layout::row_bytes;
  static_assert(passes * pass_rows == layout::others && pass_rows % 8 == 0);

  int thread = static_cast<int>(threadIdx.x) % 128;
  int row = thread / vectors;
  int vector = thread % vectors;

  __device__ __forceinline__ gradient_copies(const backward_rows& problem_,
                                             const group_problem& group_, std::byte* memory_)
      : block(problem_, group_, memory_) {}

  /// Where this thread's vector of a tile's row lies.
  __device__ __forceinline__ int place_of(int tile_row) const {
    return block::tile::place(tile_row * layout::row_bytes + vector * 16);
  }
  /// Where this thread's vectors of rows of a head begin.
  __device__ __forceinline__ char* source_of(const row_view& rows, int head) const {
    return const_cast<char*>(reinterpret_cast<const char*>(row_of<T>(rows, 0, head)) + vector * 16);
  }
  static __device__ __forceinline__ std::int32_t stride_of(const row_view& rows) {
    return static_cast<std::int32_t>(rows.token_stride * sizeof(T));  // fits: backward.hpp
  }
  static __device__ __forceinline__ void meet_copying_warps() {
    asm volatile("barrier.sync 1, 128;\n" ::: "memory");
  }
  /// Requests the own rows, whose tokens are in shared memory.
  __device__ __forceinline__ void copy_own(const gradient_item& item, int buffer,
                                           bool inside) const {
    constexpr int own_passes = layout::rows / pass_rows;
    constexpr int together = own_passes % 3 == 0 ? 3 : 2;
    static_assert(own_passes % together == 0);
    const auto* own_tokens =
        this->template at<const std::int32_t>(layout::tokens) + buffer * layout::rows;
    const row_view& first_rows = query_side ? problem.q : problem.k;
    const row_view& second_rows = query_side ? problem.grad_out : problem.v;
    char* first = source_of(first_rows, item.head);
    char* second = source_of(second_rows, item.head);
    // Or addresses would be kept from item to item, in local memory.
    int first_row = row;
    asm volatile("" : "+r"(first_row));
    const std::uint32_t target = shared + buffer * layout::own_bytes + place_of(first_row);
#pragma unroll 1
    for (int pass = 0; pass < own_passes; pass += together) {
      std::int32_t tokens[together];
#pragma unroll
      for (int i = 0; i < together; ++i) tokens[i] = own_tokens[first_row + (pass + i) * pass_rows];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const bool there = inside && tokens[i] >= 0;
        const std::int32_t token = max(tokens[i], 0);
        copy_async(target + layout::own_first + (pass + i) * pass_bytes,
                   advance(first, token, stride_of(first_rows)), there);
        copy_async(target + layout::own_second + (pass + i) * pass_bytes,
                   advance(second, token, stride_of(second_rows)), there);
        if constexpr (layout::holds_out)
          copy_async(target + layout::own_out + (pass + i) * pass_bytes,
                     advance(source_of(problem.out, item.head), token, stride_of(problem.out)),
                     there);
        else if (query_side && there && vector == 0)
          asm volatile("prefetch.global.L2 [%0];\n" ::"l"(
              advance(source_of(problem.out, item.head), token, stride_of(problem.out))));
      }
    }
  }
  /// The largest magnitude among the queries of all windows of the item, from `first` of this lane on.
  [[nodiscard]] __device__ __forceinline__ unsigned first_magnitude(
      const gradient_item& item) const {
    const int i = item.range_first / 16 + lane_id();
    if (query_side || !std::is_same_v<T, half> || i > (item.range_last - 1) / 16) return 0;
    return problem.magnitude[item.head * problem.magnitude_stride + i];
  }
  [[nodiscard]] __device__ __forceinline__ unsigned largest_magnitude(const gradient_item& item,
                                                                      unsigned first) const {
    const std::uint8_t* magnitudes = problem.magnitude + item.head * problem.magnitude_stride;
    unsigned largest = first;
    if (!item.has_gaps) {
      for (int i = item.range_first / 16 + lane_id() + 32; i <= (item.range_last - 1) / 16; i += 32)
        largest = max(largest, static_cast<unsigned>(magnitudes[i]));
    } else {
      // Queries between the windows have none.
      const auto* bounds = reinterpret_cast<const int2*>(group.bounds);
      largest = 0;
      for (int t = 0; t < layout::groups; ++t) {
        if (!item.wants(t)) continue;
        const int top = item.start + t * wgmma_rows;
        for (int i = bounds[top].x / 16 + lane_id(); i <= (bounds[top + wgmma_rows - 1].y - 1) / 16;
             i += 32)
          largest = max(largest, static_cast<unsigned>(magnitudes[i]));
      }
    }
    return __reduce_max_sync(all_lanes, largest);
  }
  /// What dS is multiplied by on the key side.
  __device__ __forceinline__ float choose_scale(const gradient_item& item, unsigned first,
                                                int buffer) const {
    float2 scale{wgmma_weight_unit, 1.0f};
    if constexpr (std::is_same_v<T, half>) {
      const rounding_scale rounding(largest_magnitude(item, first));
      scale = {rounding.up * wgmma_weight_unit, rounding.down};
    }
    if (thread == 0) this->template at<float2>(layout::scales)[buffer] = scale;
    return scale.x;
  }
  __device__ __forceinline__ void run(const gradient_item& item,
                                      gradient_copy_state<layout>& state) const {
    const int tiles = block::tiles_of(item);
    const int last_slot = item.range_last - 1;
    const bool inside = vector * 8 < problem.head_dim;
    const std::uint32_t target = shared + layout::first_tiles + place_of(row);
    // Tokens are read a tile ahead.
    std::int32_t tokens[passes], stat_token = 0;
    int slot = item.range_first;
    const auto read_tokens = [&] {
#pragma unroll
      for (int pass = 0; pass < passes; ++pass)
        tokens[pass] = group.order[min(slot + row + pass * pass_rows, last_slot)];
      if (!query_side && thread < layout::others)
        stat_token = group.order[min(slot + thread, last_slot)];
    };
    read_tokens();
    constexpr int own_turns = divide_up(layout::rows, 128);
    std::int32_t own_tokens[own_turns];
#pragma unroll
    for (int turn = 0; turn < own_turns; ++turn) {
      const int own = thread + 128 * turn;
      own_tokens[turn] =
          own < layout::rows && item.wants(own / wgmma_rows) ? group.order[item.start + own] : -1;
    }
    const unsigned magnitude = first_magnitude(item);
    // The item before is not to wait for this one's beginning.
    state.announce_all(shared);
    const int buffer = static_cast<int>(state.items % 2);
    wait_for_phase(block::own_empty(buffer), (state.items / 2 % 2) ^ 1);
    ++state.items;
#pragma unroll
    for (int turn = 0; turn < own_turns; ++turn) {
      const int own = thread + 128 * turn;
      if (own >= layout::rows) continue;
      this->template at<std::int32_t>(layout::tokens)[buffer * layout::rows + own] =
          own_tokens[turn];
      if (own_tokens[turn] < 0) continue;
      copy_element_async(shared + layout::windows + 8 * (buffer * layout::rows + own),
                         reinterpret_cast<const long long*>(group.bounds) + item.start + own, true);
      if constexpr (query_side)
        copy_element_async(shared + layout::own_lse + 4 * (buffer * layout::rows + own),
                           problem.lse + own_tokens[turn] * problem.lse_token_stride +
                               item.head * problem.lse_head_stride,
                           true);
    }
    meet_copying_warps();
    copy_own(item, buffer, inside);
    float raise = 0.0f;
    if constexpr (!query_side) raise = choose_scale(item, magnitude, buffer);
    const row_view& first_rows = query_side ? problem.k : problem.q;
    const row_view& second_rows = query_side ? problem.v : problem.grad_out;
    char* first = source_of(first_rows, item.head);
    char* second = source_of(second_rows, item.head);
#pragma unroll 1
    for (int left = tiles; left > 0; --left) {
      const int stage = state.filled.stage;
      wait_for_phase(block::empty(stage), state.filled.parity ^ 1);
      const std::uint32_t stage_target = target + stage * layout::tile_bytes;
#pragma unroll
      for (int pass = 0; pass < passes; ++pass) {
        copy_async(stage_target + pass * pass_bytes,
                   advance(first, tokens[pass], stride_of(first_rows)), inside);
        copy_async(stage_target + (layout::second_tiles - layout::first_tiles) + pass * pass_bytes,
                   advance(second, tokens[pass], stride_of(second_rows)), inside);
      }
      commit_copies();
      if constexpr (!query_side) {
        state.store_stats();
        if (thread < layout::others) {
          state.lse =
              problem
                  .lse[stat_token * problem.lse_token_stride + item.head * problem.lse_head_stride];
          state.delta =
              problem.delta[item.head * problem.max_tokens + min(slot + thread, last_slot)];
          state.raise = raise;
          state.stats = shared + layout::column_lse + 4 * (stage * layout::others + thread);
        }
      }
      state.filled.step();
      slot += layout::others;
      read_tokens();
      if (++state.under_way > layout::pending) {
        wait_for_copies<layout::pending>();
        state.announce(shared);
      }
    }
  }
};

/// Calls `take` with the block's items, one after the other, and their groups. All lanes of a warp take
/// part. Heads vary fastest.
template <class Layout, class Take>
__device__ __forceinline__ void for_gradient_items(const backward_problem& problem,
                                                   std::byte* memory, Take&& take) {
  constexpr int bits = (1 << Layout::groups) - 1;
  constexpr int gap = bits + 1;
  static_assert(2 * gap <= wgmma_rows);
  int4* table = reinterpret_cast<int4*>(memory + Layout::items) + 32 * warp_id();
  const std::int64_t items =
      divide_up<std::int64_t>(problem.max_tokens, Layout::rows) * problem.heads;
  const std::int64_t step = gridDim.x;
  const auto group_of_head = [&](int index) -> const group_problem& {
    int g = 0;
    while (g + 1 < problem.group_count && index >= problem.groups[g + 1].problem.first_index) ++g;
    return problem.groups[g].problem;
  };
  // Lanes look ahead which of the block's next items have tiles for it.
  for (std::int64_t batch = blockIdx.x; batch < items; batch += 32 * step) {
    const std::int64_t seen = batch + lane_id() * step;
    int4 found{};  // the slot and the tiles, the head, and the range of the other side
    if (seen < items) {
      const std::int64_t tile = seen / problem.heads;
      found.x = static_cast<int>(tile) * Layout::rows;
      found.y = static_cast<int>(seen - tile * problem.heads);
      const group_problem& group = group_of_head(found.y);
      const int assigned = group.counts->assigned;
      for (int t = 0; t < Layout::groups; ++t) {
        const int start = static_cast<int>(tile) * Layout::rows + t * wgmma_rows;
        if (start > assigned - wgmma_rows) break;
        const auto* bounds = reinterpret_cast<const int2*>(group.bounds) + start;
        const int2 top = bounds[0];
        const int2 bottom = bounds[wgmma_rows - 1];
        if (!is_wgmma_tile(top, bottom)) continue;
        if ((found.x & bits) == 0)
          found.z = top.x;
        else if (top.x > found.w)
          found.x |= gap;
        found.w = bottom.y;
        found.x |= 1 << t;
      }
    }
    __syncwarp();
    table[lane_id()] = found;
    __syncwarp();
    for (unsigned left = __ballot_sync(all_lanes, (found.x & bits) != 0); left != 0;
         left &= left - 1) {
      const int4 next = table[__ffs(static_cast<int>(left)) - 1];
      const group_problem& group = group_of_head(next.y);
      take(group, gradient_item{next.x & ~(bits | gap), static_cast<unsigned>(next.x & bits),
                                next.z, next.w, group.first_head + next.y - group.first_index,
                                (next.x & gap) != 0});
    }
  }
}

}  // namespace winnow::detail
