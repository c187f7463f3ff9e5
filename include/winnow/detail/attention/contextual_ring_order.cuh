// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which passes a block of contextual_ring_kernel.cuh takes, and in which order: those with the most keys first. In the
/// order of slots the last pass of a team may be one of the longest, while the other teams have ended.
///
/// Blocks with every so many-th pass differ by an eighth, as a few long windows are most of the work. So several blocks
/// deal out what they have together: each counts the passes by their keys, and takes one of every round, from the first
/// block to the last and back again. What the passes of a head's blocks take then differs by a fiftieth.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// The dealers are the block's warps that multiply keys, while others load tables.
template <class Layout>
struct ring_order {
  static constexpr int dealers = Layout::teams;
  static constexpr int turns = Layout::most_dealt / (32 * dealers);
  static constexpr int classes = 32;  ///< of passes by their keys, the largest ones first

  const int2* bounds;
  int assigned;
  int share, shares;
  int lane = lane_id(), dealer = warp_id() - Layout::readers;
  int sharers = most_sharers();         ///< blocks that deal out their passes
  int stride = shares / sharers;        ///< from one of their passes to the next
  int first = share % stride;           ///< of them
  int own_turn = share / stride;        ///< the block among them
  int count = count_of(first, stride);  ///< of their passes

  [[nodiscard]] __device__ __forceinline__ int count_of(int first_, int stride_) const {
    const int units = (assigned + Layout::pass_rows - 1) / Layout::pass_rows;
    return (units - first_ + stride_ - 1) / stride_;
  }
  /// As many as there is room for; one if there is none.
  [[nodiscard]] __device__ __forceinline__ int most_sharers() const {
    const int blocks = lane_id() + 1;
    const bool fits = shares % blocks == 0 && count_of(0, shares / blocks) <= Layout::most_dealt;
    const unsigned all_that_fit = __ballot_sync(all_lanes, fits);
    return max(32 - __clz(static_cast<int>(all_that_fit)), 1);
  }
  [[nodiscard]] __device__ __forceinline__ int row_of(int pass) const {
    return (first + pass * stride) * Layout::pass_rows;
  }
  static __device__ __forceinline__ void meet() {
    asm volatile("bar.sync 2, %0;" ::"n"(32 * dealers) : "memory");
  }
  [[nodiscard]] __device__ __forceinline__ bool fits() const {
    return count <= Layout::most_dealt && count <= sharers * Layout::most_listed &&
           first + count * stride <= 1 << 16;
  }
  /// By all dealers. \param largest window. \param counts room for `turns` times `dealers` times `classes` numbers.
  /// \param passes where the teams' first ones go: first row, first key and the slot behind the last one.
  /// \param order of the block's passes, by their number among all of the head's. \return how many they are, or `none`
  /// where there is no room.
  static constexpr int none = -1;
  __device__ __forceinline__ int list(int largest, int* counts, int4* passes,
                                      std::uint16_t* order) const {
    if (lane == 0) passes[dealer] = {assigned, 0, 0, 0};
    if (!fits()) return none;
    int2 keys[turns];
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      const int pass = (turn * dealers + dealer) * 32 + lane;
      keys[turn] = {0, 0};
      if (pass < count) {
        const int row = row_of(pass);
        keys[turn] = {bounds[row].x, bounds[min(row + Layout::pass_rows, assigned) - 1].y};
      }
    }
    const float scale = __fdividef(0.625f * classes, static_cast<float>(largest));
    int own_class[turns], before[turns];
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      // Behind the last pass are empty ones, which come last.
      own_class[turn] =
          max(classes - 1 -
                  __float2int_rd(static_cast<float>(keys[turn].y - keys[turn].x) * scale),
              0);
      const unsigned same = __match_any_sync(all_lanes, own_class[turn]);
      before[turn] = __popc(same & lanes_below());
      int* const row = counts + (turn * dealers + dealer) * classes;
      row[lane] = 0;
      __syncwarp();
      if (before[turn] == 0) row[own_class[turn]] = __popc(same);
    }
    meet();
    // Of a lane's class: all, and those before a turn of this warp.
    int sum = 0, of_turn[turns];
#pragma unroll
    for (int row = 0; row < turns * dealers; ++row) {
      if (row % dealers == dealer) of_turn[row / dealers] = sum;
      sum += counts[row * classes + lane];
    }
    const int of_larger = static_cast<int>(warp_inclusive_sum(static_cast<std::uint32_t>(sum))) - sum;
    const float inverse = 1.0f / static_cast<float>(sharers);
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      const int pass = (turn * dealers + dealer) * 32 + lane;
      const int rank =
          __shfl_sync(all_lanes, of_turn[turn] + of_larger, own_class[turn]) + before[turn];
      const int round = __float2int_rd((static_cast<float>(rank) + 0.5f) * inverse);
      const int place = rank - round * sharers;
      if (pass < count && (round % 2 == 0 ? place : sharers - 1 - place) == own_turn) {
        order[round] = static_cast<std::uint16_t>(first + pass * stride);
        if (round < Layout::teams) passes[round] = {row_of(pass), keys[turn].x, keys[turn].y, 0};
      }
    }
    const int rounds = count / sharers, left = count - rounds * sharers;
    return rounds + ((rounds % 2 == 0 ? own_turn : sharers - 1 - own_turn) < left ? 1 : 0);
  }
};

}  // namespace winnow::detail
