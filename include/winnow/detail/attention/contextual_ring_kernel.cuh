// SPDX-License-Identifier: Apache-2.0
/// \file
/// The contextual forward kernel of spherical windows on compute capability 9.0: two heads at a time as in
/// contextual_heads_kernel.cuh, with keys multiplied for several tiles at once. 16-bit storage, head dim 16.
///
/// Two warps of a block multiply groups of 16 keys with Tk, and leave their products in a ring of slots, with K and V
/// (contextual_ring_keys.cuh). Ten warps read them, each for a tile of 16 rows, and do what is left of a piece. A block has
/// neighbouring windows (contextual_ring_list.cuh), all of whose tiles share their groups. Warps tell each other in shared
/// memory which groups are there, and which are needed no longer (contextual_ring_slots.cuh).
///
/// What bounds it: shared memory's bandwidth, of which additions by radial row take a quarter, and latency at three warps
/// a scheduler.
///
/// NaN and infinity: as in contextual_heads.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/contextual_heads_result.cuh"
#include "winnow/detail/attention/contextual_ring_copies.cuh"
#include "winnow/detail/attention/contextual_ring_keys.cuh"
#include "winnow/detail/attention/contextual_ring_layout.hpp"
#include "winnow/detail/attention/contextual_ring_list.cuh"
#include "winnow/detail/attention/contextual_ring_slots.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// A warp that attends.
template <class T>
struct contextual_ring_reader : contextual_heads_result<T, true, contextual_ring_layout> {
  using base = contextual_heads_result<T, true, contextual_ring_layout>;
  using base::group;
  using base::keys;
  using base::place;
  using base::problem;
  using base::shared;
  using base::warp;
  using base::words;
  using typename base::heads_state;
  using typename base::key_group;
  using typename base::layout;
  using typename base::row_windows;
  using copies = ring_copies<T, layout>;
  static constexpr int heads = layout::heads;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }
  __device__ __forceinline__ std::uint32_t address(int offset) const {
    return shared + static_cast<std::uint32_t>(offset);
  }
  /// Products of a slot's keys by cell, as this lane needs them.
  struct key_cells {
    uint4 pairs[heads][layout::product_pairs];
  };
  __device__ __forceinline__ void load_cells(int slot, key_cells& own) const {
    const auto* products = reinterpret_cast<const uint4*>(this->cells_of_lane(slot));
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int pair = 0; pair < layout::product_pairs; ++pair)
        own.pairs[h][pair] = products[(h * layout::product_pairs + pair) * 32];
  }
  /// Adds Gk of linear axes.
  __device__ __forceinline__ void add_sides(const key_cells& own, const heads_state& state,
                                            float (&scores)[heads][2][4]) const {
    static_assert(words % 2 == 0 && layout::scales_tables);
#pragma unroll
    for (int pair = 0; pair < layout::product_pairs; ++pair) {
      const std::uint32_t left[4] = {state.row_cells[0][2 * pair], state.row_cells[1][2 * pair],
                                     state.row_cells[0][2 * pair + 1],
                                     state.row_cells[1][2 * pair + 1]};
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        const uint4& products = own.pairs[h][pair];
        multiply_add_16<half>(scores[h][0], left, products.x, products.y);
        multiply_add_16<half>(scores[h][1], left, products.z, products.w);
      }
    }
  }
  /// Says which group is the first that this warp needs from now on. \param before which one it was so far.
  __device__ __forceinline__ void need(int number, int before) const {
    __syncwarp();
    if constexpr (passes_all_groups) {
      for (int group = before; group < number; ++group) {
        const ring_slots<layout> slots(group);
        wait_for_phase(address(slots.products + layout::full), slots.parity);
        arrive_warp(address(slots.products + layout::empty), place.lane);
      }
    } else if (place.lane == 0) {
      store_number(address(layout::needed + 4 * warp), number);
    }
  }
  /// A tile of 16 rows against a group of keys that may not be there yet. \param bounds of the rows. \param key the
  /// group's first one. \param interior do all rows attend to all of them?
  __device__ __forceinline__ void attend_group(int tile, const int2* bounds, int number, int key,
                                               bool interior, int own_codes,
                                               const ring_slots<layout>& slots,
                                               heads_state& state) const {
    wait_for_phase(address(slots.products + layout::full), slots.parity);
    const key_group own_keys = this->template load_group<true>(slots.keys, own_codes);
    float s[heads][2][4];
    typename base::radial_places places;
    // Everything is asked for before the first product, as the latter keep their order.
    typename base::radial_pairs pairs[2];
    key_cells cells;
    this->template look_up_radials<0>(state, this->load_radii(slots.keys, 0), slots.products,
                                      pairs[0], places);
    this->template look_up_radials<1>(state, this->load_radii(slots.keys, 1), slots.products,
                                      pairs[1], places);
    load_cells(slots.products, cells);
    this->score_heads(state, tile, own_keys, s);
    add_sides(cells, state, s);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      // One product less for each head, at the cost of one more rounding to half.
      std::uint32_t sums[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair)
        sums[pair] = add_half_pairs(pairs[b].of_rows[pair], pairs[b].of_keys[pair]);
      this->add_pairs(state, sums, s[0][b], s[1][b]);
    }
    this->weigh(
        slots.keys, interior,
        [&] {
          row_windows windows;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int2 window = bounds[place.g + 8 * i];
            windows.first[i] = window.x - key, windows.last[i] = window.y - key;
          }
          return windows;
        },
        // What is left of the piece is in registers.
        [&] { need(number + 1, number); }, s, places, state);
  }
  /// Asks for the tokens of a tile's rows, and for what else there is of them. Behind the last row are copies of it.
  __device__ __forceinline__ void request_tokens(int tile, const ring_tile& own) const {
    if (place.lane >= layout::rows) return;
    const int number = tile * layout::rows + place.lane;
    const int slot = min(own.row + place.lane, own.end - 1);
    copy_async_if<4>(true, address(layout::row_order + 4 * number), group().order + slot, true);
    copy_async_if<8>(true, address(layout::row_bounds + 8 * number),
                     reinterpret_cast<const int2*>(group().bounds) + slot, true);
    copy_async_if<4>(true, address(layout::row_code + 4 * number), group().positions + slot, true);
    copy_async_if<4>(true, address(layout::row_radius + 4 * number), group().radius + slot, true);
  }
  /// Asks for a tile's rows of q, whose tokens are there.
  __device__ __forceinline__ void request_rows(int tile) const {
    const auto lane = static_cast<unsigned>(place.lane);
    const T* const first =
        copies::first_part(problem.q, group().first_head + this->group_head, lane);
    const auto bytes = static_cast<std::int32_t>(problem.q.token_stride * std::int64_t{sizeof(T)});
    const auto* const tokens = at<const std::int32_t>(layout::row_order) + tile * layout::rows;
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      const T* const source =
          copies::token_part(first, tokens[8 * eight + copies::token(lane)], bytes);
      const int part = copies::target(lane, layout::tile_bytes, 8 * static_cast<unsigned>(eight));
      copy_async_if<16>(
          true, address(layout::query + layout::query_tile(tile) * layout::query_bytes + part),
          source, true);
    }
  }
  /// Tv, and where results are stored.
  __device__ __forceinline__ void load_values() const {
    this->load_value_tables(32 * layout::readers);
    this->store_result_pointers();
    __syncwarp();
    arrive_warp(address(layout::has_values), place.lane);
    wait_for_phase(address(layout::has_values), 0);
  }
  /// Before a turn.
  __device__ __forceinline__ void request_first(heads_state& state) const {
    const int tile = layout::tiles_of_reader * warp;
    request_tokens(tile, at<const ring_tile>(layout::list)[warp]);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
    request_rows(tile);
    commit_copies();
    this->begin_block(state);
  }
  /// A tile whose rows have been asked for. \param next of the list, if it is below `tiles`.
  __device__ __forceinline__ void begin_tile(int tile, int next, int tiles,
                                             heads_state& state) const {
    wait_for_copies<0>();
    __syncwarp();
    this->begin_products(
        tile,
        [&](int i) {
          const int2 window = bounds_of(tile)[place.g + 8 * i];
          return window.y - window.x;
        },
        state);
    if (next < tiles) request_tokens(tile ^ 1, at<const ring_tile>(layout::list)[next]);
    commit_copies();
  }
  /// Waits until a tile's first group is the next one in its slot, or there.
  __device__ __forceinline__ void await_slot(int group) const {
    if constexpr (!passes_all_groups) {
      const int before = group - layout::slots;
      const std::uint32_t made =
          address(layout::made) + 4u * (static_cast<unsigned>(group) % layout::makers);
      static_assert(layout::slots % layout::makers == 0);
      if (before >= 0)
        while (load_acquire(made) <= before) {
        }
    }
  }
  [[nodiscard]] __device__ __forceinline__ const int2* bounds_of(int tile) const {
    return at<const int2>(layout::row_bounds) + tile * layout::rows;
  }
  /// Its keys [key, last).
  __device__ __forceinline__ void attend_groups(int tile, int& key, int last, int& number,
                                                ring_slots<layout>& slots,
                                                heads_state& state) const {
    const int2* const bounds = bounds_of(tile);
    const int common_first = bounds[layout::rows - 1].x;  // keys that all rows attend to
    const int common_end = bounds[0].y;
    const int own_codes = static_cast<int>(kept_in_register(static_cast<unsigned>(8 * place.g)));
#pragma unroll 1
    for (; key < last; key += keys) {
      attend_group(tile, bounds, number, key, key >= common_first && key + keys <= common_end,
                   own_codes, slots, state);
      ++number;
      slots.step(1);
    }
  }
  /// Behind a tile's last group. \param group the one behind it.
  __device__ __forceinline__ void leave_groups(int tile, int group, int next,
                                               const ring_turn& turn) const {
    const bool has_next = next < turn.tiles;
    need(has_next            ? at<const ring_tile>(layout::list)[next].group
         : passes_all_groups ? turn.groups
                             : no_group,
         group);
    wait_for_copies<0>();
    __syncwarp();
    if (has_next) request_rows(tile ^ 1);
    commit_copies();
  }
  __device__ __forceinline__ void add_sums(int tile, heads_state& state) const {
    this->add_sums_by_cell(
        at<const std::uint32_t>(layout::row_code) + tile * layout::rows + place.g, state);
  }
  __device__ __forceinline__ void end_tile(int tile, int row, int end, heads_state& state) const {
    this->complete_sums(state);
    bool wanted[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) wanted[i] = row + place.g + 8 * i < end;
    if (this->store_rows(at<const std::int32_t>(layout::row_order) + tile * layout::rows, wanted,
                         state))
      *at<volatile int>(layout::bad) = 1;
  }
  /// A turn's tiles, every so many-th. \param make gives a reader whose lane is read again: what is addressed by it in
  /// one step would else be kept in registers during all others.
  template <class Make>
  static __device__ __forceinline__ void run(const Make& make, std::byte* memory, int warp,
                                             const ring_turn& turn, bool is_first) {
    heads_state state;
    if (warp < turn.tiles) make().request_first(state);
    if (is_first) make().load_values();
    if constexpr (passes_all_groups)
      make().need(warp < turn.tiles
                      ? reinterpret_cast<const ring_tile*>(memory + layout::list)[warp].group
                      : turn.groups,
                  0);
    int tile = layout::tiles_of_reader * warp;
#pragma unroll 1
    for (int index = warp; index < turn.tiles; index += layout::readers, tile ^= 1) {
      const int next = index + layout::readers;
      make().begin_tile(tile, next, turn.tiles, state);
      const ring_tile own = reinterpret_cast<const ring_tile*>(memory + layout::list)[index];
      ring_slots<layout> slots(own.group);
      make().await_slot(own.group);
      int key = own.first, number = own.group;
      // Sums by cell meet Tv before halves could overflow, mostly once.
#pragma unroll 1
      while (true) {
        base::clear_cells(state);
        make().attend_groups(tile, key, min(key + layout::groups_of_sums * keys, own.end), number,
                             slots, state);
        const bool ends = key >= own.end;
        const auto again = make();
        if (ends) again.leave_groups(tile, number, next, turn);
        again.add_sums(tile, state);
        if (ends) break;
      }
      make().end_tile(tile, own.row, own.end, state);
    }
  }
};

/// What is seldom needed, apart from everything else, which has all registers. One function for a block's beginning, and
/// for rows that came out not finite. \param tiles in the list; 0 at the beginning.
template <class T, class Layout>
__device__ __noinline__ void complete_ring(const forward_problem& problem, block_share own,
                                           const ring_tile* list, int tiles) {
  const group_problem& group = problem.groups[own.group];
  own.head *= Layout::heads;
  for (int h = 0; h < Layout::heads; ++h, ++own.head) {
    if (tiles == 0) {
      complete_unassigned<T>(problem, own);
      if (group.path == encoding_path::rows) correct_rows<T>(problem, own, Layout::share_rows, 0);
    }
    for (int tile = static_cast<int>(threadIdx.x) / 32; tile < tiles; tile += Layout::warps)
      correct_slots<T>(problem, group, group.first_head + own.head, list[tile].row,
                       min(list[tile].row + Layout::rows, list[tile].end));
  }
}

/// Seldom needed, too: the list of another turn.
template <class Layout>
__device__ __noinline__ void list_turn(const group_problem& group, std::byte* memory,
                                       const block_share& own, int number) {
  ring_list<Layout>{group, memory, own.share, own.shares}.make_next(number);
}

template <class T>
__global__ void __launch_bounds__(contextual_ring_layout::threads, 1)
    contextual_ring_kernel(const __grid_constant__ forward_problem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  begin_beside(problem.place);
  using layout = contextual_ring_layout;
  extern __shared__ __align__(16) std::byte memory[];
  const block_share own = share_of_block(problem);
  const group_problem& group = problem.groups[own.group];
  if (problem.zero_unassigned || group.path == encoding_path::rows)
    complete_ring<T, layout>(problem, own, nullptr, 0);
  // Without tokens nothing is there that could be read ahead.
  if (group.path == encoding_path::tiles && group.counts->largest > 0) {
    const std::uint32_t shared = shared_address(memory);
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    const auto block = [&] {
      // The assembler would read it again and again.
      const int thread = static_cast<int>(kept_in_register(threadIdx.x));
      return contextual_block<T, 16, true, true, layout>{problem,
                                                         own.group,
                                                         memory,
                                                         layout::heads * own.head,
                                                         own.share,
                                                         own.shares,
                                                         group.counts->assigned,
                                                         shared,
                                                         memory,
                                                         0,  // it has windows of all sizes
                                                         thread,
                                                         warp};
    };
    {
      const ring_list<layout> windows{group, memory, own.share, own.shares};
      // Some warps add up what windows cost, the others load tables.
      if (warp < layout::counters)
        windows.store_costs();
      else
        contextual_heads_products<T, true, layout>{block()}.template load_factors<layout::counters>(
            [] {});
      __syncthreads();
      windows.make_first();
    }
#pragma unroll 1
    for (int number = 1;; ++number) {
      __syncthreads();
      const ring_turn turn = *reinterpret_cast<const ring_turn*>(memory + layout::turn);
      if (turn.tiles == 0) break;
      if (warp < layout::readers) {
        contextual_ring_reader<T>::run([&] { return contextual_ring_reader<T>{{{{block()}}}}; },
                                       memory, warp, turn, number == 1);
      } else {
        contextual_ring_keys<T>{{block()}, warp - layout::readers}.run(turn);
      }
      __syncthreads();
      if (*reinterpret_cast<volatile int*>(memory + layout::bad) != 0)
        complete_ring<T, layout>(
            problem, own, reinterpret_cast<const ring_tile*>(memory + layout::list), turn.tiles);
      if (turn.has_more == 0) break;
      __syncthreads();
      list_turn<layout>(group, memory, own, number);
    }
  }
  end_beside(problem.place, blockIdx.x == 0);
#endif
}

}  // namespace winnow::detail
