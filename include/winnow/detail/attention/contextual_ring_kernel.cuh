// SPDX-License-Identifier: Apache-2.0
/// \file
/// The contextual forward kernel of spherical windows on compute capability 9.0: two heads at a time as in
/// contextual_heads_kernel.cuh, with keys multiplied for several tiles at once. 16-bit storage, head dim 16.
///
/// A block has four teams of three warps, which take passes of 32 rows from a counter, those with the most keys first
/// (contextual_ring_order.cuh). One warp of a team multiplies the pass's keys with Tk, 16 at a time, and leaves their
/// products in the team's ring of slots, with K and V (contextual_ring_keys.cuh). Two warps read them, each for its tile
/// of 16 rows, and do what is left of a piece. Barriers in shared memory say which slots are full and which may be filled
/// again; a team's warps meet nowhere else, and teams not at all.
///
/// What readers keep of two heads takes more than the 168 registers that twelve warps have each. So the four warps
/// that multiply keys give some of theirs away, which takes the target sm_90a.
///
/// What bounds it: three warps of a scheduler wait for what they have just asked for, and for each other: those that
/// attend for keys a tenth of their time, those that multiply for room. What takes work from the ones makes the others
/// slower, as they share products, the ALU and the instruction cache, which the hot path (some 35 KB) hardly fits.
///
/// NaN and infinity: as in contextual_heads.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/contextual_heads_result.cuh"
#include "winnow/detail/attention/contextual_ring_cursor.cuh"
#include "winnow/detail/attention/contextual_ring_keys.cuh"
#include "winnow/detail/attention/contextual_ring_layout.hpp"
#include "winnow/detail/attention/contextual_ring_order.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_short.cuh"
#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// A warp that attends.
template <class T, bool Radial>
struct contextual_ring_reader : contextual_heads_result<T, Radial, contextual_ring_layout<Radial>> {
  using base = contextual_heads_result<T, Radial, contextual_ring_layout<Radial>>;
  using base::assigned;
  using base::keys;
  using base::place;
  using base::shared;
  using base::warp;
  using base::words;
  using typename base::heads_state;
  using typename base::key_group;
  using typename base::layout;
  using typename base::row_windows;
  static constexpr int heads = layout::heads;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }
  __device__ __forceinline__ std::uint32_t barrier(int array, int index = 0) const {
    return shared + static_cast<std::uint32_t>(array + 8 * index);
  }
  __device__ __forceinline__ void release(int array, int index = 0) const {
    __syncwarp();
    arrive_warp(barrier(array, index), place.lane);
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
  using cursor_of_team = ring_cursor<layout>;
  __device__ __forceinline__ void await(const cursor_of_team& cursor) const {
    wait_for_phase(barrier(cursor.slot + layout::full), cursor.parity);
  }
  __device__ __forceinline__ void release(cursor_of_team& cursor) const {
    release(cursor.slot + layout::empty);
    cursor.step();
  }
  /// A tile of 16 rows against a group of keys that may not be there yet. \param bounds of the rows. \param key the
  /// group's first one. \param interior do all rows attend to all of them?
  __device__ __forceinline__ void attend_group(int tile, const int2* bounds, int key, bool interior,
                                               int own_codes, cursor_of_team& cursor,
                                               heads_state& state) const {
    await(cursor);
    const key_group own_keys = this->template load_group<true>(cursor.keys, own_codes);
    float s[heads][2][4];
    typename base::radial_places places;
    // Everything is asked for before the first product, as the latter keep their order.
    typename base::radial_pairs pairs[2];
    key_cells cells;
    if constexpr (Radial) {
      this->template look_up_radials<0>(state, this->load_radii(cursor.keys, 0), cursor.slot,
                                        pairs[0], places);
      this->template look_up_radials<1>(state, this->load_radii(cursor.keys, 1), cursor.slot,
                                        pairs[1], places);
    }
    load_cells(cursor.slot, cells);
    this->score_heads(state, tile, own_keys, s);
    add_sides(cells, state, s);
    if constexpr (Radial)
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
        cursor.keys, interior,
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
        [&] { release(cursor.slot + layout::empty); }, s, places, state);
    cursor.step();
  }
  /// A tile of 16 rows in a pass whose first group is there. \param tile its slot. \return as `run`.
  __device__ __forceinline__ bool attend_pass(const ring_pass& pass, int tile, int reader,
                                              cursor_of_team& cursor, int own_codes,
                                              heads_state& state) const {
    const int row = pass.row + reader * layout::rows;
    const int own = min(layout::rows, assigned - row);
    const int2* bounds = at<const int2>(layout::row_bounds) + tile * layout::rows;
    int key = pass.key;
    int first = pass.end, end = 0;          // the tile's keys
    int common_first = 0, common_last = 0;  // keys that all rows attend to
    if (own > 0) {
      const int2 top = bounds[0], bottom = bounds[own - 1];
      first = top.x;
      end = bottom.y;
      common_first = bottom.x;
      common_last = own == layout::rows ? top.y : 0;
      this->begin_products(
          tile,
          [&](int i) {
            const int2 window = bounds[place.g + 8 * i];
            return window.y - window.x;
          },
          state);
    }
    release(layout::query_empty, warp / layout::team_readers);
    for (; key + keys <= first; key += keys) {
      await(cursor);
      release(cursor);
    }
    // Sums by cell meet Tv before halves could overflow, mostly once.
#pragma unroll 1
    while (own > 0) {
      this->clear_cells(state);
      const int last = min(key + layout::groups_of_sums * keys, end);
#pragma unroll 1
      for (; key < last; key += keys)
        attend_group(tile, bounds, key, key >= common_first && key + keys <= common_last, own_codes,
                     cursor, state);
      this->add_sums_by_cell(
          at<const std::uint32_t>(layout::row_code) + tile * layout::rows + place.g, state);
      if (key >= end) break;
    }
    bool bad = false;
    if (own > 0) {
      this->complete_sums(state);
      bool wanted[2];
      const int shortest = *at<const int>(layout::shortest_left);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int own_row = place.g + 8 * i;
        const int2 window = bounds[own_row];
        wanted[i] = own_row < own && window.y - window.x >= shortest;
      }
      bad = this->store_rows(at<const std::int32_t>(layout::row_order) + tile * layout::rows,
                             wanted, state);
    }
    for (; key < pass.end; key += keys) {
      await(cursor);
      release(cursor);
    }
    return bad;
  }
  /// \return whether some row is not finite.
  __device__ __forceinline__ bool run() const {
    const int team = warp / layout::team_readers;
    const int reader = warp % layout::team_readers;
    heads_state state;
    this->begin_block(state);
    const int own_codes = static_cast<int>(kept_in_register(static_cast<unsigned>(8 * place.g)));
    bool bad = false;
    cursor_of_team cursor(team);
    int buffer = team * layout::passes;
#pragma unroll 1
    while (true) {
      await(cursor);
      const int4 now = *at<const int4>(layout::places + 16 * buffer);
      if (now.x >= assigned) return bad;
      bad |= attend_pass({now.x, now.y, now.z}, buffer * layout::team_readers + reader, reader,
                         cursor, own_codes, state);
      release(layout::rows_empty, buffer);
      buffer ^= 1;
    }
  }
};

/// What is seldom needed, apart from everything else, which has all registers. One function for a block's beginning, and
/// for warps that have found rows that are not finite: with two the assembler keeps nothing in uniform registers
/// between them.
/// \param order of the block's passes, if they are `listed`; null at the beginning.
template <class T, class Layout>
__device__ __noinline__ void complete_ring(const forward_problem& problem, block_share own,
                                           int shortest, int listed, const std::uint16_t* order) {
  own.head *= Layout::heads;
  for (int h = 0; h < Layout::heads; ++h, ++own.head) {
    if (order == nullptr) complete_unassigned<T>(problem, own);
    if (order != nullptr || problem.groups[own.group].path == encoding_path::rows)
      correct_rows<T>(problem, own, Layout::pass_rows,
                      order == nullptr ? Layout::warps : Layout::readers, shortest,
                      [&](int number) {
                        std::int64_t pass = own.share + std::int64_t{number} * own.shares;
                        if (listed != ring_order<Layout>::none)
                          pass = number < listed ? order[number] : int{ring_order<Layout>::no_pass};
                        return pass * Layout::pass_rows;
                      });
  }
}

/// By one thread. \param first_pass that a team takes from the counter.
template <class Layout>
__device__ __forceinline__ void create_ring_barriers(std::byte* memory, int shortest,
                                                     int first_pass) {
  constexpr int readers = Layout::team_readers * warp_arrivals;
  const std::uint32_t shared = shared_address(memory);
  for (int i = 0; i < Layout::slots; ++i) {
    const std::uint32_t slot = shared + Layout::products + i * Layout::slot_bytes;
    create_barrier(slot + Layout::full, warp_arrivals);
    create_barrier(slot + Layout::empty, readers);
  }
  for (int i = 0; i < Layout::teams; ++i)
    create_barrier(shared + Layout::query_empty + 8 * i, readers);
  for (int i = 0; i < Layout::teams * Layout::passes; ++i)
    create_barrier(shared + Layout::rows_empty + 8 * i, readers);
  create_barrier(shared + Layout::is_listed, Layout::readers * warp_arrivals);
  create_barrier(shared + Layout::has_tables, Layout::readers * warp_arrivals);
  *reinterpret_cast<int*>(memory + Layout::shortest_left) = shortest;
  *reinterpret_cast<int*>(memory + Layout::next_pass) = first_pass;
  *reinterpret_cast<int*>(memory + Layout::bad) = 0;
}

template <class T, bool Radial>
__global__ void __launch_bounds__(contextual_ring_layout<Radial>::threads, 1)
    contextual_ring_kernel(const __grid_constant__ forward_problem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  begin_beside(problem.place);
  using layout = contextual_ring_layout<Radial>;
  extern __shared__ __align__(16) std::byte memory[];
  const block_share own = share_of_block(problem);
  const group_problem& group = problem.groups[own.group];
  if (problem.zero_unassigned || group.path == encoding_path::rows)
    complete_ring<T, layout>(problem, own, 0, ring_order<layout>::none, nullptr);
  const int shortest = shortest_left<Radial>(problem, group);
  // Without tokens nothing is there that could be read ahead.
  if (group.path == encoding_path::tiles && group.counts->largest >= max(shortest, 1)) {
    const std::uint32_t shared = shared_address(memory);
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    // The assembler would read it again and again.
    const int thread = static_cast<int>(kept_in_register(threadIdx.x));
    const auto block = [&] {
      return contextual_block<T, 16, Radial, true, layout>{problem,
                                                           own.group,
                                                           memory,
                                                           layout::heads * own.head,
                                                           own.share,
                                                           own.shares,
                                                           group.counts->assigned,
                                                           shared,
                                                           memory,
                                                           shortest,
                                                           thread};
    };
    const ring_order<layout> passes{reinterpret_cast<const int2*>(group.bounds),
                                    group.counts->assigned, own.share, own.shares};
    if (warp >= layout::readers) {
      const bool knows_first = shortest == 0 && passes.fits();
      if (warp == layout::readers) {
        if (thread % 32 == 0)
          create_ring_barriers<layout>(memory, shortest, knows_first ? layout::teams : 0);
        __syncwarp();
        announce<layout::readers_begin, 32 * (layout::readers + 1)>();
      }
      give_registers<layout::key_registers>();
      contextual_ring_keys<T, Radial>{{block()}, warp - layout::readers}.run(passes, knows_first);
    } else {
      contextual_heads_products<T, Radial, layout>{block()}.template load_tables<layout::readers>();
      contextual_ring_reader<T, Radial>{{{{block()}}}}.store_result_pointers();
      meet<layout::readers_begin, 32 * (layout::readers + 1)>();
      arrive_warp(shared + layout::has_tables, thread % 32);
      take_registers<layout::reader_registers>();
      const contextual_ring_reader<T, Radial> reader{{{{block()}}}};
      // Where short windows are another kernel's, most passes are not taken, and none are sorted.
      int listed = ring_order<layout>::none;
      if (shortest == 0)
        listed = passes.list(group.counts->largest, reader.template at<int>(layout::pass_counts),
                             reader.template at<std::uint16_t>(layout::pass_order));
      if (threadIdx.x == 0) *reader.template at<int>(layout::listed) = listed;
      reader.release(layout::is_listed);
      auto& bad = *reinterpret_cast<volatile int*>(memory + layout::bad);
      if (reader.run()) bad = 1;
      meet<layout::readers_meet, 32 * layout::readers>();
      if (bad != 0)
        complete_ring<T, layout>(problem, own,
                                 *reader.template at<const int>(layout::shortest_left),
                                 *reader.template at<const int>(layout::listed),
                                 reader.template at<const std::uint16_t>(layout::pass_order));
    }
  }
  end_beside(problem.place, blockIdx.x == 0);
#endif
}

}  // namespace winnow::detail
