// SPDX-License-Identifier: Apache-2.0
/// \file
/// The contextual forward kernel of cubic windows, two heads at a time: 16-bit storage, head dim 16.
///
/// What a block computes: of two heads, what starts in its slots. It looks at them first (contextual_units_plan.cuh) and
/// makes lists, from which its warps then take work as it comes: tiles of 16 rows of longer windows, those with the most
/// keys first (contextual_units_tiles.cuh); units of 16
/// rows that hold whole windows of 2 to 16 tokens, whose rows are their keys (contextual_units.cuh); and windows of one
/// token, a lane each. No window that fits 16 rows is cut, so that a row meets 16 keys instead of the 1.3 to 1.6 times
/// 16 of tiles that follow the order, and their keys are read and multiplied once. Where windows are not too many,
/// blocks share those of more than 16 tokens by what they cost (contextual_units_deal.cuh).
///
/// What bounds it: instructions, at three warps a scheduler.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/contextual_pairs.cuh"
#include "winnow/detail/attention/contextual_result.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_tokens.cuh"
#include "winnow/detail/attention/contextual_units_tiles.cuh"
#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, int Heads>
struct contextual_units_block : contextual_units_tiles<T, Heads> {
  using base = contextual_units_tiles<T, Heads>;
  using base::all;
  using base::assigned;
  using base::counter_of;
  using base::group;
  using base::group_head;
  using base::heads;
  using base::place;
  using base::problem;
  using base::warp;
  using typename base::heads_state;
  using typename base::layout;

  /// Table rows of no distance, added up over axes: what a window of one token meets. A warp for each table, so that
  /// none waits for another one's rows; the last ones, which have no part of Tv.
  static constexpr int first_of_sums = layout::warps - 3;
  __device__ __forceinline__ float load_table_sum() const {
    const int middle = group().quant_length - 1, d = place.lane % 16, h = place.lane / 16;
    if (warp < first_of_sums || h >= heads || d >= problem.head_dim) return 0.0f;
    const table_view& table = warp == first_of_sums       ? group().table_q
                              : warp == first_of_sums + 1 ? group().table_k
                                                          : group().table_v;
    return table_sum<T>(table, pair_rows{middle, middle, middle}, group_head + h, d);
  }
  __device__ __forceinline__ void store_table_sum(float sum) const {
    const int d = place.lane % 16, h = place.lane / 16;
    if (warp >= first_of_sums && h < heads)
      this->template table_at<float>(layout::table_sums)[(3 * h + warp - first_of_sums) * 16 + d] =
          sum;
  }
  /// Windows of one token, a lane each token and head.
  __device__ __forceinline__ void run_singles() const {
    const int count = this->single_count();
#pragma unroll 1
    while (true) {
      const int index = 32 / heads * this->reserve(base::next_single, 1) + place.lane / heads;
      if (!__any_sync(all, index < count)) return;
      if (index < count) attend_single(index, place.lane % heads);
    }
  }
  __device__ __forceinline__ void attend_single(int index, int h) const {
    const int slot = this->template table_at<const std::int32_t>(layout::singles)[index];
    const std::int64_t token = group().order[slot];
    const int head = group().first_head + group_head + h;
    const auto* sums = this->template table_at<const float>(layout::table_sums) + h * 48;
    const auto* q = reinterpret_cast<const uint4*>(row_of<T>(problem.q, token, head));
    const auto* k = reinterpret_cast<const uint4*>(row_of<T>(problem.k, token, head));
    const auto* v = reinterpret_cast<const uint4*>(row_of<T>(problem.v, token, head));
    auto* out = reinterpret_cast<uint4*>(const_cast<T*>(row_of<T>(problem.out, token, head)));
    float of_query = 0.0f, of_key = 0.0f;
    uint4 result[2] = {};
    float zero = 0.0f;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (8 * part >= problem.head_dim) break;
      T q_part[8], k_part[8], v_part[8];
      const uint4 q_bits = q[part], k_bits = k[part], v_bits = v[part];
      memcpy(q_part, &q_bits, 16);
      memcpy(k_part, &k_bits, 16);
      memcpy(v_part, &v_bits, 16);
#pragma unroll
      for (int e = 0; e < 8; e += 2) {
        float o[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int d = 8 * part + e + j;
          const float key = widen(k_part[e + j]);
          of_query = fmaf(widen(q_part[e + j]), key + sums[d], of_query);
          of_key = fmaf(key, sums[16 + d], of_key);
          o[j] = widen(v_part[e + j]) + sums[32 + d];
          zero = fmaf(o[j], 0.0f, zero);
        }
        reinterpret_cast<std::uint32_t*>(&result[part])[e / 2] = pack<T>(o[0], o[1]);
      }
    }
    const float logit = fmaf(of_query, problem.scale, of_key);
    zero = fmaf(logit, 0.0f, zero);
    out[0] = result[0];
    if (problem.head_dim > 8) out[1] = result[1];
    if (problem.lse != nullptr)
      problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] = logit;
    // It is known by its result, and computed again.
    if (zero != 0.0f) {
      *reinterpret_cast<T*>(out) = narrow<T>(NAN);
      *counter_of(base::bad_rows) = 1;
    }
  }
  /// Units of the block's warps.
  __device__ __forceinline__ void run_units() const {
    // Where a unit is, in multiples of 8, and the slot of its rows: there is one register for both.
    int next = this->take_unit();
    if (next == 0) return;
    const auto request = [&] {
      this->request_unit(this->template table_at<const std::byte>(next & ~1), next & 1);
    };
    request();
    commit_copies();
    heads_state state = this->begin_state();
#pragma unroll 1
    while (next > 1) {
      const int now = next;
      next = this->take_unit() + (~now & 1);
      wait_for_copies<0>();
      __syncwarp();  // what all lanes asked for is there, and they have done with the unit before
      if (next > 1) request();
      commit_copies();
      this->attend_unit(this->template table_at<const std::byte>(now & ~1), now & 1, state);
    }
  }

  /// racecheck does not follow that the number of a warp's units is stored behind them, and loaded before they are. With
  /// WINNOW_ALL_LANES_ARRIVE (wgmma.cuh) warps meet behind all units, so that it can.
  static constexpr bool packs_at_once = warp_arrivals > 1;
  /// Before a part.
  __device__ __forceinline__ void clear_counters() const {
    const int i = base::thread_again();
    if (i < base::counters) *counter_of(i) = 0;
    if (i < 2 * layout::warps) this->template table_at<int>(layout::unit_counts)[i] = 0;
  }
  /// All that starts in the block's slots, and what it is dealt.
  __device__ __forceinline__ void run() const {
    this->request_tables();
    typename base::slot_windows windows;
    this->load_windows(0, windows);
    auto dealt = this->request_windows();
    commit_copies();
    const float table_sum = load_table_sum();
    if (warp == first_of_sums - 1) this->store_pointers();
    this->store_one_hots();
    store_table_sum(table_sum);
    clear_counters();
    if (threadIdx.x == 0) {
      *counter_of(base::bad_rows) = 0;
      *counter_of(base::turns) = this->are_slots_one_part() ? 1 : this->parts();
    }
    wait_for_copies<0>();
    __syncthreads();
#pragma unroll 1
    for (int part = 0;;) {
      const bool is_dealt = dealt.parts > 0;
      if (is_dealt)
        this->deal_windows(dealt, part);
      else
        this->list_tiles(part, windows);
      this->list_singles(part, windows);
      __syncthreads();
      // What some wait for is beside what others compute. But few windows' units should be there when warps run out of
      // tiles.
      constexpr int few_windows = 8 * layout::warps;
      const bool packs_first =
          packs_at_once || warp % 2 == 0 || group().counts->windows < few_windows * this->shares;
      if (packs_first) this->pack_units(part, windows);
      if (packs_at_once) __syncthreads();
      this->run_tiles();
      if (!packs_first) {
        this->load_windows(part, windows);
        this->pack_units(part, windows);
      }
      run_singles();
      __syncwarp();
      run_units();
      if (problem.place.admits_call) admit_successor();
      __syncthreads();
      if (*counter_of(base::bad_rows) != 0) {
        complete(part, is_dealt);
        __syncthreads();
      }
      if (++part >= *counter_of(base::turns)) break;
      this->load_windows(part, windows);
      dealt = this->request_windows();
      commit_copies();
      clear_counters();
      wait_for_copies<0>();
      __syncthreads();
    }
  }

  /// Computes rows of a part again that came out with elements that are not finite. Not by `correct_slots`: what that
  /// looks for besides costs the loops before registers.
  __device__ __forceinline__ void complete(int part, bool is_dealt) const {
    const auto complete_rows_of = [&](int first, int end) {
      for (int row = first; row < end; ++row)
        for (int h = 0; h < heads; ++h) {
          const int head = group().first_head + group_head + h;
          const T* out = row_of<T>(problem.out, group().order[row], head);
          const bool wrong = place.lane < problem.head_dim && widen(out[place.lane]) * 0.0f != 0.0f;
          if (__any_sync(all, wrong)) attend_row<T>(problem, group(), head, row);
        }
    };
    const auto* bounds = reinterpret_cast<const int2*>(group().bounds);
    for (int round = 0; round < layout::rounds; ++round)
      for (int lane = 0; lane < 32; ++lane) {
        const std::uint32_t slot = this->slot_of(part, round, lane);
        if (slot >= static_cast<std::uint32_t>(assigned)) continue;
        const int first = static_cast<int>(slot);
        const int2 window = bounds[first];
        const int size = window.y - window.x;
        if (is_dealt && size > layout::longest_short) continue;
        if (size > layout::longest_short ? (first - window.x) % 16 == 0 : first == window.x)
          complete_rows_of(first, min(first + 16, window.y));
      }
    if (!is_dealt) return;
    const int of_long = this->long_count(), count = of_long + this->tile_count();
    for (int i = warp; i < count; i += layout::warps) {
      const bool is_long = i < of_long;
      const int4 tile = this->tile_at(is_long, is_long ? i : i - of_long);
      complete_rows_of(tile.x, tile.y);
    }
  }
};

/// Pairs of a group's heads share its blocks as heads do in contextual_kernel.cuh.
template <class T, int Heads>
__global__ void __launch_bounds__(contextual_units_layout<Heads>::threads, 1)
    contextual_units_kernel(const __grid_constant__ forward_problem problem) {
  begin_beside(problem.place);
  using layout = contextual_units_layout<Heads>;
  extern __shared__ __align__(16) std::byte memory[];
  const block_share own = share_of_block(problem);
  const group_problem& group = problem.groups[own.group];
  if (group.path == encoding_path::tiles) {
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    std::byte* region = memory + layout::block_bytes + warp * layout::warp_bytes;
    contextual_units_block<T, Heads> attender{
        {{{{{{{problem, own.group, region, layout::heads * own.head, own.share, own.shares,
               group.counts->assigned, shared_address(region), memory}}}}}}}};
    attender.run();
  }
  if (problem.zero_unassigned || group.path == encoding_path::rows) {
    if (!problem.place.is_first) wait_for_predecessor();
    block_share of_head = share_of_block(problem);
    of_head.head *= layout::heads;
    for (int h = 0; h < layout::heads; ++h, ++of_head.head) {
      if (group.path == encoding_path::rows)
        complete_rows<T>(problem, of_head, 16);
      else
        complete_unassigned<T>(problem, of_head);
    }
  }
  end_beside(problem.place, blockIdx.x == 0);
}

}  // namespace winnow::detail
