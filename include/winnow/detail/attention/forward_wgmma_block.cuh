// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the warps of a block of forward_long_wgmma.cuh share, and how rows come into its shared memory.
///
/// Four warps do nothing but copy. They gather K and V through `order`, a tile of 64 keys at a time, into a
/// ring of stages, and a head's rows of q beside its first tile. Copies of a stage are announced when the
/// next stage's are under way, as their latency is longer than it takes to request them. A stage is
/// filled again when all warps that multiply have released it.
///
/// Every warp finds the block's items by itself, so that none waits for another one between them.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/forward_long.cuh"
#include "winnow/detail/attention/forward_long_items.cuh"
#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/forward_wgmma_layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/attention/wgmma_ring.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// What a block computes at a time: `heads` heads from `first_head` on of tiles of rows from slot `start` on.
struct wgmma_item {
  int start;
  unsigned wanted;              ///< tiles of rows, a bit each
  int range_first, range_last;  ///< the slots of the windows that these lie in
  int first_head, heads;
};

/// Where a warp is in the ring of stages.
template <class Layout>
struct stage_cursor {
  unsigned count = 0;
  __device__ __forceinline__ int stage() const { return static_cast<int>(count % Layout::stages); }
  __device__ __forceinline__ std::uint32_t parity() const { return count / Layout::stages % 2; }
  __device__ __forceinline__ void step() { ++count; }
};

template <class Layout>
struct wgmma_block : ring_block<Layout, forward_problem> {
  using base = ring_block<Layout, forward_problem>;
  using base::base, base::shared;
  using typename base::layout;

  static __device__ __forceinline__ int tiles_of(const wgmma_item& item) {
    return divide_up(item.range_last - item.range_first, layout::keys);
  }
  __device__ __forceinline__ std::uint32_t query_empty(int buffer) const {
    return shared + layout::query_empty + 8 * buffer;
  }
};

/// What the four warps that copy carry from item to item.
template <class Layout>
struct copy_state {
  stage_cursor<Layout> filled, announced;
  unsigned heads = 0;  ///< of all items

  /// \param shared the address of the block's memory.
  __device__ __forceinline__ void announce(std::uint32_t shared) {
    announce_stage(shared + Layout::full + 8 * announced.stage());
    announced.step();
  }
  __device__ __forceinline__ void announce_all(std::uint32_t shared) {
    wait_for_copies<0>();
    while (announced.count != filled.count) announce(shared);
  }
};

template <class Layout>
struct wgmma_copies : wgmma_block<Layout> {
  using block = wgmma_block<Layout>;
  using layout = Layout;
  using block::group, block::problem, block::shared;
  static constexpr int vectors = layout::head_dim / 8;  ///< of a row
  static constexpr int pass_rows = 128 / vectors;
  static constexpr int passes = layout::keys / pass_rows;
  static constexpr int pass_bytes = pass_rows * layout::row_bytes;
  static_assert(passes * pass_rows == layout::keys && pass_rows % 8 == 0);

  int row = static_cast<int>(threadIdx.x) % 128 / vectors;
  int vector = static_cast<int>(threadIdx.x) % vectors;

  __device__ __forceinline__ wgmma_copies(const forward_problem& problem_,
                                          const group_problem& group_, std::byte* memory_)
      : block(problem_, group_, memory_) {}

  /// Where this thread's vector of a tile's row lies.
  __device__ __forceinline__ int place_of(int tile_row) const {
    return block::tile::place(tile_row * layout::row_bytes + vector * 16);
  }
  /// Where this thread's vectors of rows of a head begin.
  __device__ __forceinline__ char* source_of(const packed_view& rows, int head) const {
    return rows.data + std::int64_t{head} * rows.head_bytes + vector * 16;
  }
  __device__ __forceinline__ void copy_queries(const wgmma_item& item, int head, int buffer,
                                               bool inside) const {
    constexpr int query_passes = layout::rows / pass_rows;
    constexpr int together = query_passes < 4 ? query_passes : 4;
    static_assert(query_passes % together == 0);
    char* source = source_of(problem.packed[0], head);
    // Or addresses would be kept from head to head, in local memory.
    int first = row;
    asm volatile("" : "+r"(first));
    const std::uint32_t target =
        shared + layout::query + buffer * layout::query_bytes + place_of(first);
#pragma unroll 1
    for (int pass = 0; pass < query_passes; pass += together) {
      std::int32_t tokens[together];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const int slot = first + (pass + i) * pass_rows;
        const bool wanted = (item.wanted >> (slot / long_tile) & 1) != 0;
        tokens[i] = wanted ? group.order[item.start + slot] : -1;
      }
#pragma unroll
      for (int i = 0; i < together; ++i)
        copy_async(target + (pass + i) * pass_bytes,
                   advance(source, max(tokens[i], 0), problem.packed[0].token_bytes),
                   inside && tokens[i] >= 0);
    }
  }
  __device__ __forceinline__ void run(const wgmma_item& item, copy_state<layout>& state) const {
    const int tiles = block::tiles_of(item);
    const int last_key = item.range_last - 1;
    const bool inside = vector * 8 < problem.head_dim;
    const std::uint32_t target = shared + layout::key_tiles + place_of(row);
    for (int head = item.first_head; head < item.first_head + item.heads; ++head) {
      wait_for_phase(block::query_empty(static_cast<int>(state.heads % 2)),
                     (state.heads / 2 % 2) ^ 1);
      copy_queries(item, head, static_cast<int>(state.heads % 2), inside);
      ++state.heads;
      char* keys = source_of(problem.packed[1], head);
      char* values = source_of(problem.packed[2], head);
      int slot = item.range_first + row;
      for (int left = tiles; left > 0; --left) {
        std::int32_t tokens[passes];
#pragma unroll
        for (int pass = 0; pass < passes; ++pass)
          tokens[pass] = group.order[min(slot + pass * pass_rows, last_key)];
        slot += layout::keys;
        const int stage = state.filled.stage();
        wait_for_phase(block::empty(stage), state.filled.parity() ^ 1);
        const std::uint32_t stage_target = target + stage * layout::tile_bytes;
#pragma unroll
        for (int pass = 0; pass < passes; ++pass) {
          copy_async(stage_target + pass * pass_bytes,
                     advance(keys, tokens[pass], problem.packed[1].token_bytes), inside);
          copy_async(stage_target + (layout::value_tiles - layout::key_tiles) + pass * pass_bytes,
                     advance(values, tokens[pass], problem.packed[2].token_bytes), inside);
        }
        commit_copies();
        state.filled.step();
        if (state.filled.count - state.announced.count > layout::pending) {
          wait_for_copies<layout::pending>();
          state.announce(shared);
        }
      }
    }
  }
};

/// Calls `take` with the block's items, one after the other, and their groups. All lanes of a warp take
/// part.
/// \param tiles of `rows` slots. \param columns of heads, which vary fastest.
template <class Layout, class Take>
__device__ __forceinline__ void for_items(const forward_problem& problem, std::int64_t tiles,
                                          int columns, std::byte* memory, Take&& take) {
  using part_of_heads = long_part<Layout::most_heads>;
  constexpr int bits = (1 << Layout::row_tiles) - 1;
  static_assert(bits < long_tile);
  int4* table = reinterpret_cast<int4*>(memory + Layout::items) + 32 * warp_id();
  const std::int64_t items = count_long_items(problem, tiles, columns);
  const std::int64_t step = gridDim.x;
  // Lanes look ahead which of the block's next items have long tiles.
  for (std::int64_t batch = blockIdx.x; batch < items; batch += 32 * step) {
    const std::int64_t seen = batch + lane_id() * step;
    int4 found{};  // the slot and the tiles, the part of the heads, and the range of keys
    if (seen < items) {
      std::int64_t tile;
      const part_of_heads part = find_long_item<Layout::most_heads>(problem, columns, seen, tile);
      found.x = static_cast<int>(tile) * Layout::rows;
      found.y = part.code;
      const group_problem& group = problem.groups[group_of_column(problem, part.column())];
      if (heads_of(problem, group, part).count > 0 && group.has_long_tiles)
        for (int t = 0; t < Layout::row_tiles; ++t) {
          const int start = static_cast<int>(tile) * Layout::rows + t * long_tile;
          if (start > group.counts->assigned - long_tile) break;
          const auto* bounds = reinterpret_cast<const int2*>(group.bounds) + start;
          const int2 top = bounds[0];
          const int2 bottom = bounds[long_tile - 1];
          if (!is_long_tile<Layout::head_dim>(top, bottom)) continue;
          if ((found.x & bits) == 0) found.z = top.x;
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
      const part_of_heads part{next.y};
      const group_problem& group = problem.groups[group_of_column(problem, part.column())];
      const long_heads heads = heads_of(problem, group, part);
      take(group, wgmma_item{next.x & ~bits, static_cast<unsigned>(next.x & bits), next.z, next.w,
                             group.first_head + heads.first, heads.count});
    }
  }
}

}  // namespace winnow::detail
