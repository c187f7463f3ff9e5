// SPDX-License-Identifier: Apache-2.0
/// \file
/// The contextual forward kernel of two heads at a time: 16-bit storage, head dim 16, groups with an even number
/// of heads.
///
/// What a warp computes: of two heads, tiles of 16 rows, one after the other. It walks the keys of their
/// windows in groups of 16 and multiplies each with Tk itself. That is done for every tile that meets the keys,
/// where contextual_kernel.cuh does it for every four; but products by cell stay in registers, and no warp waits for
/// another one, which took a quarter of the time of teams of four warps. The steps are in contextual_heads.cuh.
///
/// A block is eight warps that share their heads' tables and take tiles from a counter, as these differ in
/// their keys. Rows and keys arrive by cp.async a few groups ahead, across tiles; their tokens are read a group
/// before that.
///
/// What bounds it: instructions, and their latency at two warps a scheduler.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/contextual_heads_result.cuh"
#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_short.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_tiles : contextual_heads_result<T, Radial, contextual_heads_layout<Radial>> {
  using base = contextual_heads_result<T, Radial, contextual_heads_layout<Radial>>;
  using base::assigned;
  using base::group;
  using base::group_head;
  using base::keys;
  using base::place;
  using base::problem;
  using base::rows;
  using base::share;
  using base::shared;
  using base::shares;
  using base::shortest;
  using typename base::heads_state;
  using typename base::layout;
  using typename base::row_windows;
  static constexpr int heads = layout::heads;
  static constexpr unsigned all = 0xffffffffu;
  /// Do requests run beside products? With spherical windows there are no registers for it.
  static constexpr bool requests_beside = !Radial;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// The next group of keys to ask for, and what has been read ahead for it and its successors.
  struct request_place {
    int row;  ///< the tile's first; from `assigned` on there is none
    int key, end;
    bool first;                  ///< of the tile's groups
    int tile;                    ///< the slot of its rows
    int slot;                    ///< of the group
    int next_row;                ///< the next tile's; its keys' bounds are in shared memory
    std::int32_t key_tokens[2];  ///< that this lane copies, keys lane / 4 and lane / 4 + 8
    std::int32_t row_tokens[2];
  };

  /// A quarter of a token's rows of two heads.
  enum { queries, keys_, values };
  __device__ __forceinline__ const std::byte* pointer(int which) const {
    return this->template table_at<const std::byte*>(
        layout::pointers)[place.t * layout::pointers_of_lane + which];
  }
  /// By the first lanes of the block.
  __device__ __forceinline__ void store_pointers() const {
    const int lane = static_cast<int>(threadIdx.x);
    if (lane >= 4) return;
    const int head = group().first_head + group_head + lane / 2;
    const auto store = [&](int which, const row_view& view) {
      this->template table_at<const T*>(layout::pointers)[lane * layout::pointers_of_lane + which] =
          static_cast<const T*>(view.data) + head * view.head_stride + lane % 2 * 8;
    };
    store(queries, problem.q);
    store(keys_, problem.k);
    store(values, problem.v);
  }
  /// Does a tile have rows that contextual_short.cuh has left? Their windows are longer than a tile, so that its first
  /// or last row is in one.
  __device__ __forceinline__ bool has_long(int row) const {
    const auto* bounds = reinterpret_cast<const int2*>(group().bounds);
    const int2 top = bounds[row], bottom = bounds[min(row + rows, assigned) - 1];
    return max(top.y - top.x, bottom.y - bottom.x) >= shortest;
  }
  /// The block's warps take its tiles as they come: what a tile needs differs much.
  /// \param number of the tile, if it is known.
  __device__ __forceinline__ void take_tile(request_place& next, int number = -1) const {
    do {
      if (number < 0) {
        if (place.lane == 0) number = atomicAdd(this->template table_at<int>(layout::next_tile), 1);
        number = __shfl_sync(all, number, 0);
      }
      const std::int64_t row = (std::int64_t{number} * shares + share) * std::int64_t{rows};
      next.next_row = static_cast<int>(min(row, std::int64_t{assigned}));
      number = -1;
    } while (Radial && shortest > 0 && next.next_row < assigned && !has_long(next.next_row));
    const std::int64_t index = place.lane == 0
                                   ? 2 * std::int64_t{next.next_row}
                                   : 2 * std::int64_t{min(next.next_row + rows, assigned)} - 1;
    copy_async_if<4>(place.lane < 2 && next.next_row < assigned,
                     shared + layout::next_bounds + static_cast<std::uint32_t>(4 * place.lane),
                     group().bounds + index, true);
  }
  __device__ __forceinline__ void advance(request_place& next) const {
    if (next.row >= assigned) {
      next.first = false;
      return;
    }
    next.key += keys;
    next.first = next.key >= next.end;
    if (next.first) {
      next.row = next.next_row;
      const int2 bounds = at<const int2>(layout::next_bounds)[0];
      next.key = bounds.x;
      next.end = bounds.y;
      next.tile ^= 1;
      if (next.row >= assigned) return;
      __syncwarp();  // all lanes have read the bounds
      take_tile(next);
    }
    const std::int32_t* order = group().order;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // A choice of what has been loaded would wait for it.
      const int key = min(next.key + place.g + 8 * i, next.end - 1);
      next.key_tokens[i] = order[static_cast<std::uint32_t>(key)];
    }
    if (!next.first) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = min(next.row + place.g + 8 * i, assigned - 1);
      next.row_tokens[i] = order[static_cast<std::uint32_t>(row)];
    }
  }
  __device__ __forceinline__ void copy_quarter(bool write, int target, int which,
                                               std::int32_t token, std::int64_t stride,
                                               bool valid) const {
    const std::byte* source;
    asm("mad.wide.s32 %0, %1, %2, %3;"
        : "=l"(source)
        : "r"(token), "r"(static_cast<std::int32_t>(stride * int{sizeof(T)})), "l"(pointer(which)));
    copy_async_if<16>(write, shared + static_cast<std::uint32_t>(target), source, valid);
  }
  /// This lane's quarter of row g, among 16 rows of q, K or V.
  __device__ __forceinline__ int quarter() const {
    return place.g * layout::row_bytes + (place.t ^ place.g >> 2) % 2 * 16;
  }
  __device__ __forceinline__ bool has_quarter() const {
    return place.t % 2 * 8 < problem.head_dim;
  }
  /// Asks for a group of keys, and zeros behind the last one. There are no branches, which would part this from
  /// the products that it may run beside, and cost each copy a few instructions.
  __device__ __forceinline__ void request_keys(const request_place& next) const {
    const bool active = next.row < assigned;
    const int target =
        layout::tiles_at(next.slot) + place.t / 2 * 2 * layout::tile_bytes + quarter();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool valid = next.key + place.g + 8 * i < next.end && has_quarter();
      copy_quarter(active, target + 8 * i * layout::row_bytes, keys_, next.key_tokens[i],
                   problem.k.token_stride, valid);
      copy_quarter(active, target + layout::tile_bytes + 8 * i * layout::row_bytes, values,
                   next.key_tokens[i], problem.v.token_stride, valid);
    }
    const int lane = place.lane;
    const bool has_key = next.key + lane < next.end;
    const auto key = static_cast<std::uint32_t>(next.key + lane);
    copy_async_if<4>(active && lane < keys,
                     shared + static_cast<std::uint32_t>(layout::codes_at(next.slot) + 4 * lane),
                     group().positions + key, has_key);
    if constexpr (Radial)
      copy_async_if<4>(active && lane < keys,
                       shared + static_cast<std::uint32_t>(layout::radii_at(next.slot) + 4 * lane),
                       group().radius + key, has_key);
  }
  /// Asks for the rows of a tile.
  __device__ __forceinline__ void request_rows(const request_place& next) const {
    const int lane = place.lane;
    if (lane == 0) at<int>(layout::row_number)[next.tile] = next.row;
    if (next.row >= assigned) return;
    const int target = layout::query + next.tile * layout::query_bytes +
                       place.t / 2 * layout::tile_bytes + quarter();
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy_quarter(true, target + 8 * i * layout::row_bytes, queries, next.row_tokens[i],
                   problem.q.token_stride, next.row + place.g + 8 * i < assigned && has_quarter());
    const bool has_row = next.row + lane < assigned;
    const auto row = static_cast<std::uint32_t>(next.row + lane);
    const auto row_place = static_cast<std::uint32_t>(next.tile * rows + lane);
    copy_async_if<8>(lane < rows, shared + layout::row_bounds + 8 * row_place,
                     reinterpret_cast<const int2*>(group().bounds) + row, has_row);
    copy_async_if<4>(lane < rows, shared + layout::row_order + 4 * row_place, group().order + row,
                     has_row);
    copy_async_if<4>(lane < rows, shared + layout::row_code + 4 * row_place,
                     group().positions + row, has_row);
    if constexpr (Radial)
      copy_async_if<4>(lane < rows, shared + layout::row_radius + 4 * row_place,
                       group().radius + row, has_row);
  }
  /// After `request_keys`: the rest of the request, and goes on to the next group.
  __device__ __forceinline__ void complete_request(request_place& next) const {
    if (next.first) request_rows(next);
    next.slot ^= 1;
    advance(next);
    commit_copies();
  }

  /// The block's tables, then tiles of two heads, as long as there are any. \return whether some row is not finite.
  __device__ __forceinline__ bool run() const {
    request_place next{-1, 0, 0, true, layout::slots - 1, 0, 0, {}, {}};
    const auto arrive = [] {
      commit_copies();
      wait_for_copies<0>();
      __syncwarp();
    };
    // Tables are read while the first tile is looked for.
    take_tile(next, static_cast<int>(threadIdx.x) / 32);
    commit_copies();
    this->template load_factors<0>([&] { this->load_value_tables(); });
    arrive();
    advance(next);
    commit_copies();
    arrive();
    request_keys(next);
    complete_request(next);
    __syncthreads();
    heads_state state;
    this->begin_block(state);
    bool bad = false;
    int tile = 1, slot = 0;                 // of what is attended to now
    int row = 0, key = 0, end = 0;          // the tile, and its group
    int common_first = 0, common_last = 0;  // keys that all rows attend to
#pragma unroll 1
    while (true) {
      wait_for_copies<0>();
      __syncwarp();  // what all lanes asked for is there, and they have done with the group before
      if constexpr (!requests_beside) {
        request_keys(next);
        complete_request(next);
      }
      if (key >= end) {
        tile ^= 1;
        row = at<const int>(layout::row_number)[tile];
        if (row >= assigned) break;
        const int2* bounds = at<const int2>(layout::row_bounds) + tile * rows;
        const int own = min(rows, assigned - row);
        const int2 top = bounds[0], bottom = bounds[own - 1];
        key = top.x;
        end = bottom.y;
        common_first = bottom.x;
        common_last = own == rows ? top.y : 0;
        this->begin_products(
            tile,
            [&](int i) {
              const int2 window = bounds[place.g + 8 * i];
              return window.y - window.x;
            },
            state);
      }
      if constexpr (requests_beside) request_keys(next);
      this->attend(
          tile, slot, key >= common_first && key + keys <= common_last,
          [&] {
            row_windows windows;
            const int2* bounds = at<const int2>(layout::row_bounds) + tile * rows + place.g;
#pragma unroll
            for (int i = 0; i < 2; ++i)
              windows.first[i] = bounds[8 * i].x - key, windows.last[i] = bounds[8 * i].y - key;
            return windows;
          },
          [&] {
            if constexpr (requests_beside) complete_request(next);
          },
          state);
      slot ^= 1;
      key += keys;
      if (key >= end) {
        this->add_sums_by_cell(at<const std::uint32_t>(layout::row_code) + tile * rows + place.g,
                               state);
        this->complete_sums(state);
        bool wanted[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int own_row = place.g + 8 * i;
          wanted[i] = row + own_row < assigned;
          if constexpr (Radial) {
            const int2 window = at<const int2>(layout::row_bounds)[tile * rows + own_row];
            wanted[i] = wanted[i] && window.y - window.x >= shortest;
          }
        }
        bad |= this->store_rows(at<const std::int32_t>(layout::row_order) + tile * rows, wanted,
                                state);
      }
    }
    wait_for_copies<0>();
    return bad;
  }
};

/// Pairs of a group's heads share its blocks as heads do in contextual_kernel.cuh.
template <class T, bool Radial>
__global__ void __launch_bounds__(contextual_heads_layout<Radial>::threads, 1)
    contextual_heads_kernel(const __grid_constant__ forward_problem problem) {
  begin_beside(problem.place);
  using layout = contextual_heads_layout<Radial>;
  extern __shared__ __align__(16) std::byte memory[];
  const block_share own = share_of_block(problem);
  const group_problem& group = problem.groups[own.group];
  bool incomplete = problem.zero_unassigned || group.path == encoding_path::rows;
  int shortest = 0;
  if constexpr (Radial) shortest = shortest_left<Radial>(problem, group);
  if (group.path == encoding_path::tiles && group.counts->largest >= shortest) {
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    std::byte* region = memory + layout::block_bytes + warp * layout::warp_bytes;
    contextual_tiles<T, Radial> attender{
        {{{problem, own.group, region, layout::heads * own.head, own.share, own.shares,
           group.counts->assigned, shared_address(region), memory, shortest}}}};
    attender.store_pointers();
    attender.store_result_pointers();
    if (threadIdx.x == 0) *reinterpret_cast<int*>(memory + layout::next_tile) = layout::warps;
    __syncthreads();
    incomplete |= attender.run();
  }
  if (__syncthreads_or(incomplete)) {
    block_share of_head = share_of_block(problem);
    of_head.head *= layout::heads;
    for (int h = 0; h < layout::heads; ++h, ++of_head.head)
      complete_rows<T>(problem, of_head, layout::rows, shortest);
  }
  end_beside(problem.place, blockIdx.x == 0);
}

}  // namespace winnow::detail
