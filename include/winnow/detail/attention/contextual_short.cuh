// SPDX-License-Identifier: Apache-2.0
/// \file
/// Short spherical windows with contextual position encoding, for head dim 16.
///
/// What one warp computes: of one head, windows of up to 48 tokens, in units: as many neighbouring windows as fit 16 slots,
/// or one longer window. A unit's rows are its keys. Each token meets each table once, rows meet their own window's keys
/// and nobody else's, and warps never wait for each other: where contextual_kernel.cuh takes 64 rows with the keys of all
/// their windows a turn, a quarter of the time waits at barriers, and keys are multiplied with Tk by every block of rows
/// that meets them. Units are on a list of the block's, contextual_short_list.cuh.
///
/// Other steps are those of contextual_block.cuh, whose memory is the warp's, and whose warps are the tiles
/// of the unit. Tables are the block's, which lives long. A unit's rows arrive by cp.async while the one before
/// ends, and what is known of its slots a unit ahead.
///
/// Of longer windows few are taken row by row; more of them, and groups that have too many, are left to the kernel behind
/// this one.
///
/// Pairs go in an order of their own: contextual_short_pairs.cuh, and contextual_short_keys.cuh for 16 bits.
///
/// Bound by shared memory's wavefronts (80 % of them), and by latency at twelve warps a multiprocessor, in float
/// eight.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_pairs.cuh"
#include "winnow/detail/attention/contextual_result.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_short_keys.cuh"
#include "winnow/detail/attention/contextual_short_left.cuh"
#include "winnow/detail/attention/contextual_short_pairs.cuh"
#include "winnow/detail/attention/contextual_short_units.cuh"
#include "winnow/detail/attention/contextual_tokens.cuh"
#include "winnow/detail/attention/contextual_weights.cuh"
#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_short : std::conditional_t<sizeof(T) == 4, contextual_short_units<T, Radial>,
                                             contextual_short_keys<T, Radial>> {
  using base = std::conditional_t<sizeof(T) == 4, contextual_short_units<T, Radial>,
                                  contextual_short_keys<T, Radial>>;
  using base::all;
  using base::assigned;
  using base::group;
  using base::group_head;
  using base::load_queries;
  using base::lse;
  using base::place;
  using base::pointer;
  using base::problem;
  using base::request_rows;
  using base::results;
  using base::row_at;
  using base::take_unit;
  using base::warp;
  using base::window_of;
  using typename base::layout;
  using typename base::row_state;
  using typename base::turn;
  using typename base::unit;
  using typename base::window_span;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Positions of a unit's keys, and their products with Tk, or of floats what those add to logits.
  __device__ __forceinline__ void prepare(const unit& now, int tiles, row_state& state) const {
    if constexpr (layout::in_halves) {
      const auto* codes = at<const std::uint32_t>(layout::row_code) + now.buffer;
      for (int key = place.lane; key < 16 * tiles; key += 32) {
        this->place_key(key, key < now.count ? codes[key] : 0);
        if constexpr (Radial)
          at<float>(layout::key_radius)[key] = at<float>(layout::row_radius)[now.buffer + key];
      }
      auto* tokens = at<std::byte>(layout::key_tiles);
#pragma unroll 1
      for (int row = place.g; row < 16 * tiles; row += 8) base::split_chunks(tokens, row, place.t);
      __syncwarp();
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        typename base::factor::rows left;
        this->load_left(at<const std::byte>(layout::key_tiles) + 16 * tile * layout::row_bytes,
                        left);
        this->score_keys(left, 16 * tile, tiles, state);
      }
    } else {
#pragma unroll 1
      for (int key = 0; key < now.count; key += 16) this->prepare_keys(now, key, state);
    }
  }

  /// Stores 16 rows of floats of a unit, whose strides fit 32 bits. \return is one of this lane's not finite?
  __device__ __forceinline__ bool store_tile(const unit& now, int tile,
                                             const row_state& state) const {
    const int own = now.count - 16 * tile;
    const auto* tokens = at<const std::int32_t>(layout::row_order) + now.buffer + 16 * tile;
    const bool odd = place.t % 2 == 1;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = place.g + 8 * i;
      float zero = state.o[0][2 * i] * 0.0f;
      zero = fmaf(state.o[0][2 * i + 1], 0.0f, zero);
      zero = fmaf(state.o[1][2 * i], 0.0f, zero);
      zero = fmaf(state.o[1][2 * i + 1], 0.0f, zero);
      finite = finite && (zero == 0.0f || row >= own);
      auto* target =
          const_cast<std::byte*>(row_at(pointer(results), tokens[row], problem.out.token_stride));
#pragma unroll
      for (int block = 0; block < 2; ++block)
        if (row < own && 8 * block < problem.head_dim)
          *reinterpret_cast<float2*>(target + 32 * block) = {state.o[block][2 * i],
                                                             state.o[block][2 * i + 1]};
    }
    // The quad's first lane has row g, its second one g + 8.
    if (problem.lse != nullptr) {
      const int row = place.g + 8 * (place.t & 1);
      const float sum = odd ? state.softmax.sum[2] : state.softmax.sum[0];
      const float offset = odd ? state.softmax.offset[1] : state.softmax.offset[0];
      std::byte* target;
      asm("mad.wide.s32 %0, %1, %2, %3;"
          : "=l"(target)
          : "r"(tokens[row]), "r"(static_cast<std::int32_t>(problem.lse_token_stride * 4)),
            "l"(pointer(lse)));
      if (row < own && place.t < 2)
        *reinterpret_cast<float*>(target) = (__log2f(sum) - offset) * ln_2;
    }
    return !finite;
  }

  /// The units on the block's list that this warp comes to take. \return whether a row is not finite.
  __device__ __forceinline__ bool run() {
    const int total = assigned;
    row_state state;
    this->begin_block(state);
    std::uint32_t q[base::query_words];
    unit coming = take_unit(0, total);
    request_rows(coming, q);
    bool bad = false;
    while (true) {
      const unit now = coming;
      if (now.count == 0) break;
      wait_for_copies<0>();
      __syncwarp();  // rows are there, and all lanes have read what is known of the last unit
      coming = take_unit(layout::rows - now.buffer, total);
      const int tiles = (now.count + 15) / 16;
      assigned = now.slot + now.count;
      const turn rows_of_unit{now.slot, now.slot, now.slot + now.count, now.buffer, true};
      prepare(now, tiles, state);
      __syncwarp();
#pragma unroll 1
      for (warp = 0; warp < tiles; ++warp) {
        if constexpr (layout::in_halves) {
#pragma unroll
          for (int i = 0; i < 2; ++i)
            state.q.set(0, i,
                        {__uint_as_float(q[4 * i]), __uint_as_float(q[4 * i + 1]),
                         __uint_as_float(q[4 * i + 2]), __uint_as_float(q[4 * i + 3])});
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e) state.q.a[0][e] = q[e];
        }
        if (warp + 1 < tiles) load_queries(now, warp + 1, q);
        this->begin_products(rows_of_unit, state.q, state);
        __syncwarp();
        if constexpr (layout::in_halves) {
          typename base::row_windows windows{};
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int2 window =
                tiles == 1 ? window_of(now.marks, place.g + 8 * i) : int2{0, now.count};
            windows.first[i] = window.x;
            windows.last[i] = window.y;
          }
          this->attend_at_once(windows, now.count, state);
        } else {
          this->attend_to_keys(now, state);
        }
        __syncwarp();
        if (warp + 1 == tiles) request_rows(coming, q);
        if constexpr (layout::in_halves) {
          this->complete_sums(rows_of_unit, state);
          bad |= store_tile(now, warp, state);
        } else {
          bad |= this->finish_tile(now, state);
        }
        __syncwarp();  // all lanes have read the tile's products and sums
      }
    }
    assigned = total;
    return bad;
  }

  /// Computes rows of the block's windows again that came out with elements that are not finite.
  __device__ __forceinline__ void complete(const window_span& windows) const {
    const int head = group().first_head + group_head;
    for (int window = windows.first + static_cast<int>(threadIdx.x) / 32; window < windows.end;
         window += base::warps()) {
      const int first = group().offsets[window], end = group().offsets[window + 1];
      if (end - first > layout::rows) continue;
      for (int row = first; row < end; ++row) {
        const T* out = row_of<T>(problem.out, group().order[row], head);
        const bool wrong = place.lane < problem.head_dim && widen(out[place.lane]) * 0.0f != 0.0f;
        if (__any_sync(all, wrong)) attend_row<T>(problem, group(), head, row);
      }
    }
  }
};

/// Heads of a group share its blocks as in contextual_kernel.cuh; a block has as many warps as fit.
template <class T, bool Radial>
__global__ void __launch_bounds__(32 * contextual_short_layout<Radial, sizeof(T)>::most_warps, 1)
    contextual_short_kernel(const __grid_constant__ forward_problem problem) {
  begin_beside(problem.place);
  extern __shared__ __align__(16) std::byte memory[];
  using layout = contextual_short_layout<Radial, sizeof(T)>;
  const block_share own = share_of_block(problem);
  const group_problem& group = problem.groups[own.group];
  if (shortest_left<Radial>(problem, group) == 0) {
    end_beside(problem.place, blockIdx.x == 0);
    return;
  }
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  std::byte* region = memory + layout::block_bytes + warp * layout::warp_bytes;
  contextual_short<T, Radial> attender{{problem, own.group, region, own.head, own.share, own.shares,
                                        group.counts->assigned, shared_address(region), memory}};
  if (static_cast<int>(threadIdx.x) < attender.counters)
    *attender.counter_of(static_cast<int>(threadIdx.x)) = 0;
  __syncthreads();
  attender.store_costs();
  attender.load_tables();
  attender.store_pointers();
  __syncthreads();
  const auto windows = attender.find_span();
  bool bad = false;
#pragma unroll 1
  for (int first = windows.first; first < windows.end; first += static_cast<int>(blockDim.x)) {
    attender.list_units(first, windows.end);
    bad |= attender.run();
    if (first + static_cast<int>(blockDim.x) >= windows.end) break;
    __syncthreads();
    if (threadIdx.x == 0) *attender.counter_of(attender.counted) = 0;
    __syncthreads();
  }
  attender.run_longer();
  if (__syncthreads_or(bad)) attender.complete(windows);
  end_beside(problem.place, blockIdx.x == 0);
}

}  // namespace winnow::detail
