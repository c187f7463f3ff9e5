// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which passes a block of contextual_ring_kernel.cuh takes, and in which order: those with the most keys first. In the
/// order of slots the last pass of a team may be one of the longest, while the other teams have ended.
///
/// Blocks with every so many-th pass differ by an eighth, as a few long windows are most of the work. So several blocks
/// deal out what they have together: each sorts the passes by their keys, and takes one of every round, from the first
/// block to the last and back again. What the passes of a head's blocks take then differs by a fiftieth.
///
/// Two rounds for each two teams come first, from few passes, which one warp sorts at once: their keys are on their way
/// while warps that attend load tables and sort the others.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class Layout>
struct ring_order {
  static constexpr int warps = Layout::readers;  ///< that sort
  static constexpr int turns = Layout::most_dealt / (32 * warps);
  static constexpr int classes = 32;  ///< of passes by their keys, the largest ones first
  static constexpr int first_rounds = 2;
  static constexpr int most_sharers = 32 / first_rounds;
  static constexpr int none = -1;
  static constexpr int no_pass = 0xffff;

  const int2* bounds;
  int assigned;
  int share, shares;
  int lane = lane_id(), warp = warp_id();
  int sharers = count_sharers();        ///< blocks that deal out their passes
  int stride = shares / sharers;        ///< from one of their passes to the next
  int first = share % stride;           ///< of them
  int turn_of_block = share / stride;   ///< among them
  int count = count_of(first, stride);  ///< of their passes
  int first_dealt = Layout::teams * sharers;

  [[nodiscard]] __device__ __forceinline__ int count_of(int first_, int stride_) const {
    const int units = (assigned + Layout::pass_rows - 1) / Layout::pass_rows;
    return (units - first_ + stride_ - 1) / stride_;
  }
  /// As many as there is room for; one if there is none.
  [[nodiscard]] __device__ __forceinline__ int count_sharers() const {
    const int blocks = lane_id() + 1;
    const bool fits = blocks <= most_sharers && shares % blocks == 0 &&
                      count_of(0, shares / blocks) <= Layout::most_dealt;
    return max(32 - __clz(static_cast<int>(__ballot_sync(all_lanes, fits))), 1);
  }
  /// Is there room for their passes?
  [[nodiscard]] __device__ __forceinline__ bool fits() const {
    return count <= Layout::most_dealt && count <= sharers * Layout::most_listed &&
           first + count * stride <= no_pass;
  }
  /// Number of a pass among all of the head.
  [[nodiscard]] __device__ __forceinline__ int number_of(int pass) const {
    return first + pass * stride;
  }
  /// The slots of a pass's keys; none where there is no such pass.
  [[nodiscard]] __device__ __forceinline__ int2 keys_of(int pass) const {
    if (pass >= count) return {0, 0};
    const int row = number_of(pass) * Layout::pass_rows;
    return {bounds[row].x, bounds[min(row + Layout::pass_rows, assigned) - 1].y};
  }
  /// Whose is what comes in this place of a round?
  [[nodiscard]] __device__ __forceinline__ bool is_own(int round, int place) const {
    return (round % 2 == 0 ? place : sharers - 1 - place) == turn_of_block;
  }

  /// By a whole warp: a team's first pass. \return its number, or `no_pass`, its first key and the slot behind the last
  /// one.
  [[nodiscard]] __device__ __forceinline__ int3 first_of(int team) const {
    const int rounds = min(first_rounds, int{Layout::teams});
    const int pass = team / rounds * rounds * sharers + lane;
    const int2 keys = lane < rounds * sharers ? keys_of(pass) : int2{0, 0};
    const int size = keys.y - keys.x;
    int rank = 0;
#pragma unroll 8
    for (int other = 0; other < 32; ++other) {
      const int of_other = __shfl_sync(all_lanes, size, other);
      rank += of_other > size || (of_other == size && other < lane) ? 1 : 0;
    }
    const int round = rank >= sharers ? 1 : 0;
    const bool is_mine =
        size > 0 && round == team % rounds && is_own(round, rank - round * sharers);
    const unsigned found = __ballot_sync(all_lanes, is_mine);
    if (found == 0) return {no_pass, 0, 1};  // keys may be read ahead, and there are some
    const int source = __ffs(static_cast<int>(found)) - 1;
    return {__shfl_sync(all_lanes, number_of(pass), source), __shfl_sync(all_lanes, keys.x, source),
            __shfl_sync(all_lanes, keys.y, source)};
  }

  /// The other passes, which the warps sort.
  [[nodiscard]] __device__ __forceinline__ int pass_of(int turn) const {
    return first_dealt + (turn * warps + warp) * 32 + lane;
  }
  static __device__ __forceinline__ void meet() {
    detail::meet<Layout::readers_meet, 32 * warps>();
  }
  /// By all warps that sort. \param largest window. \param counts room for `turns` times `warps` times `classes` numbers.
  /// \param order of the block's passes, by their numbers, behind the teams' first ones. \return how many they are with
  /// those, or `none` where there is no room.
  __device__ __forceinline__ int list(int largest, int* counts, std::uint16_t* order) const {
    if (!fits()) return none;
    int2 keys[turns];
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) keys[turn] = keys_of(pass_of(turn));
    const float scale = __fdividef(0.625f * classes, static_cast<float>(largest));
    int own_class[turns], before[turns];
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      // Behind the last pass are empty ones, which come last.
      const float from_smallest = static_cast<float>(keys[turn].y - keys[turn].x) * scale;
      own_class[turn] = max(classes - 1 - __float2int_rd(from_smallest), 0);
      const unsigned same = __match_any_sync(all_lanes, own_class[turn]);
      before[turn] = __popc(same & lanes_below());
      int* const row = counts + (turn * warps + warp) * classes;
      row[lane] = 0;
      __syncwarp();
      if (before[turn] == 0) row[own_class[turn]] = __popc(same);
    }
    meet();
    // Of a lane's class: all, and those before a turn of this warp.
    int sum = 0, of_turn[turns];
#pragma unroll
    for (int turn = 0; turn < turns; ++turn)
#pragma unroll
      for (int other = 0; other < warps; ++other) {
        if (other == warp) of_turn[turn] = sum;
        sum += counts[(turn * warps + other) * classes + lane];
      }
    const int of_larger = warp_inclusive_sum(sum) - sum;
    const float inverse = __fdividef(1.0f, static_cast<float>(sharers));
#pragma unroll
    for (int turn = 0; turn < turns; ++turn) {
      const int rank =
          __shfl_sync(all_lanes, of_turn[turn] + of_larger, own_class[turn]) + before[turn];
      const int round = __float2int_rd((static_cast<float>(rank) + 0.5f) * inverse);
      if (pass_of(turn) < count && is_own(round, rank - round * sharers))
        order[Layout::teams + round] = static_cast<std::uint16_t>(number_of(pass_of(turn)));
    }
    meet();  // counts are there no longer
    const int dealt = max(count - first_dealt, 0);
    const int rounds = dealt / sharers, left = dealt - rounds * sharers;
    return Layout::teams + rounds +
           ((rounds % 2 == 0 ? turn_of_block : sharers - 1 - turn_of_block) < left ? 1 : 0);
  }
};

}  // namespace winnow::detail
