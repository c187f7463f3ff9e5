// SPDX-License-Identifier: Apache-2.0
/// \file
/// Last kernel of a partition build: from sorted keys to the lists of a partition.
///
/// A block takes a tile of consecutive slots, four a thread. A slot whose key differs from its
/// predecessor's is a head: there a window begins, or the run of tokens in no window, which counts as
/// one more. Ballots number the heads within the tile, and their slots go into `edges` in shared
/// memory, so that the k-th run of the tile is [edges[k], edges[k + 1]). Meanwhile three warps find
/// out what lies outside the tile: how many heads come before it (a look back over the tiles' counts),
/// where the run that reaches into it begins, and where the run that leaves it ends (searches over
/// the sorted keys that step 32 ways a round: one round for a run of up to 32 tokens, five for one of
/// 2^25). Then every slot knows its window's number and bounds and writes them, coalesced.
///
/// Positions and radii are gathered through the token; their loads are issued first and arrive during
/// the rest. Traffic: 8 bytes read and 12 written a token, 8 to 16 for positions and radii.
#pragma once

#include "winnow/detail/partition/job.cuh"

namespace winnow::detail {

/// The first index in [low, high) where `holds` fails, or `high`. It has to hold up to there and fail
/// from there on. One whole warp calls; all lanes return the result.
template <class Predicate>
__device__ std::uint32_t first_failure(std::uint32_t low, std::uint32_t high, Predicate&& holds) {
  while (low < high) {
    const std::uint32_t step = (high - low - 1) / 32 + 1;
    // Lane l probes the end of the l-th of 32 pieces.
    const auto end_of = [&](unsigned piece) {
      const std::uint32_t length = step * piece;
      return length < high - low ? low + length : high;
    };
    const bool holding = holds(end_of(static_cast<unsigned>(lane_id()) + 1) - 1);
    const auto pieces = static_cast<unsigned>(__popc(__ballot_sync(all_lanes, holding)));
    const std::uint32_t last = pieces == 32 ? high : end_of(pieces + 1) - 1;
    low = end_of(pieces);
    high = last;
  }
  return low;
}

/// Where the run of equal keys through slot `slot - 1` ends.
__device__ inline std::uint32_t end_of_run(const sorted_keys& keys, std::uint32_t slot,
                                           std::uint32_t tokens) {
  const std::uint64_t key = keys.key(slot - 1);
  // Most runs end within a few slots: look there first.
  const std::uint32_t near = slot + static_cast<std::uint32_t>(lane_id());
  const unsigned differs = __ballot_sync(all_lanes, near >= tokens || keys.key(near) != key);
  if (differs != 0) return slot + static_cast<std::uint32_t>(__ffs(static_cast<int>(differs))) - 1;
  return first_failure(slot + 32, tokens, [&](std::uint32_t at) { return keys.key(at) == key; });
}

/// Where the run of equal keys through slot `slot` begins.
__device__ inline std::uint32_t begin_of_run(const sorted_keys& keys, std::uint32_t slot) {
  const std::uint64_t key = keys.key(slot);
  const auto back = static_cast<std::uint32_t>(lane_id()) + 1;
  const unsigned differs = __ballot_sync(all_lanes, back > slot || keys.key(slot - back) != key);
  if (differs != 0) return slot + 1 - static_cast<std::uint32_t>(__ffs(static_cast<int>(differs)));
  return first_failure(0, slot - 32, [&](std::uint32_t at) { return keys.key(at) != key; });
}

template <int Threads>
__global__ void __launch_bounds__(Threads) finish_kernel(const __grid_constant__ job_list list) {
  wait_for_predecessor();
  constexpr int items = finish_items;
  constexpr int tile = Threads * items;
  constexpr int warps = Threads / 32;
  static_assert(warps >= 3);
  __shared__ std::int32_t edges[tile + 2];
  __shared__ std::uint32_t heads_of_warp[warps];
  __shared__ std::uint32_t heads_before_tile;
  __shared__ std::int32_t largest_of_block;

  const partition_job& job = list.jobs[blockIdx.y];
  const partition& result = job.result;
  const sort_plan plan = *job.sorter.plan;
  const auto tokens = static_cast<std::uint32_t>(plan.tokens);
  const std::uint32_t first = blockIdx.x * std::uint32_t{tile};
  if (first >= tokens) return;
  const std::uint32_t end = min(tokens - first, std::uint32_t{tile}) + first;
  const sorted_keys sorted(job.sorter, plan);
  const float* radii = job.kind == job_kind::labels ? job.radius : job.radius_of_token;
  if (threadIdx.x == 0) largest_of_block = 0;

  // Loads first, all of them at once.
  std::uint64_t keys[items];
  std::int32_t token[items];
  packed_position position[items];
  float radius[items];
  const std::uint32_t mine = first + static_cast<std::uint32_t>(warp_id() * 32 * items + lane_id());
  std::uint64_t before_mine = 0;  // lane 0: the item before the warp's first
  if (lane_id() == 0 && mine > 0 && mine < end) before_mine = sorted.items[mine - 1];
#pragma unroll
  for (int i = 0; i < items; ++i) keys[i] = mine + 32u * i < end ? sorted.items[mine + 32u * i] : 0;
#pragma unroll
  for (int i = 0; i < items; ++i)
    token[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(keys[i]));
  if (!sorted.narrow)
#pragma unroll
    for (int i = 0; i < items; ++i)
      token[i] = mine + 32u * i < end ? sorted.tokens[mine + 32u * i] : 0;
  if (result.position != nullptr)
#pragma unroll
    for (int i = 0; i < items; ++i)
      position[i] = mine + 32u * i < end ? job.position_of_token[token[i]] : 0;
  if (result.radius != nullptr)
#pragma unroll
    for (int i = 0; i < items; ++i) radius[i] = mine + 32u * i < end ? radii[token[i]] : 0.0f;

      // Number the heads within the warp.
#pragma unroll
  for (int i = 0; i < items; ++i) keys[i] = sorted.key_of(keys[i]);
  before_mine = sorted.key_of(before_mine);
  int run[items];
  std::uint32_t heads = 0;
  unsigned is_head = 0;
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const std::uint32_t slot = mine + 32u * i;
    std::uint64_t previous = __shfl_up_sync(all_lanes, keys[i], 1);
    bool head = slot < end;
    if (i > 0) {
      const std::uint64_t row_before = __shfl_sync(all_lanes, keys[i > 0 ? i - 1 : 0], 31);
      if (lane_id() == 0) previous = row_before;
    } else if (lane_id() == 0) {
      previous = before_mine;
    }
    head = head && (slot == 0 || previous != keys[i]);
    const unsigned row = __ballot_sync(all_lanes, head);
    run[i] = static_cast<int>(heads) + __popc(row & (lanes_below() | 1u << lane_id()));
    heads += static_cast<std::uint32_t>(__popc(row));
    is_head |= (head ? 1u : 0u) << i;
  }
  if (lane_id() == 0) heads_of_warp[warp_id()] = heads;
  __syncthreads();
  std::uint32_t heads_of_tile = 0;
  int heads_before_warp = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    if (w == warp_id()) heads_before_warp = static_cast<int>(heads_of_tile);
    heads_of_tile += heads_of_warp[w];
  }

#pragma unroll
  for (int i = 0; i < items; ++i) {
    run[i] += heads_before_warp;
    if ((is_head >> i & 1u) != 0) edges[run[i]] = static_cast<std::int32_t>(mine + 32u * i);
  }
  if (warp_id() == 0) {
    const std::uint32_t before =
        chain::count_before(job.head_counts, static_cast<int>(blockIdx.x), heads_of_tile);
    if (lane_id() == 0) heads_before_tile = before;
  } else if (warp_id() == 1) {
    const std::uint32_t begin = begin_of_run(sorted, first);
    if (lane_id() == 0) edges[0] = static_cast<std::int32_t>(begin);
  } else if (warp_id() == 2) {
    const std::uint32_t last = end_of_run(sorted, end, tokens);
    if (lane_id() == 0) edges[heads_of_tile + 1] = static_cast<std::int32_t>(last);
  }
  __syncthreads();

  const std::int64_t before = heads_before_tile;
  const std::int64_t max_windows = result.max_windows;
  std::int32_t largest = 0;
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const std::uint32_t place = mine + 32u * i;
    if (place >= end) continue;
    const auto slot = static_cast<std::int32_t>(place);
    const std::int64_t window = before + run[i] - 1;
    const bool nowhere = keys[i] == plan.span || window >= max_windows;
    const int2 bounds = nowhere ? int2{slot, slot} : int2{edges[run[i]], edges[run[i] + 1]};
    result.order[slot] = token[i];
    reinterpret_cast<int2*>(result.bounds)[slot] = bounds;
    if (result.position != nullptr) result.position[slot] = position[i];
    if (result.radius != nullptr) result.radius[slot] = radius[i];
    if ((is_head >> i & 1u) == 0 || window > max_windows) continue;
    result.offsets[window] = slot;
    if (!nowhere) {
      largest = max(largest, bounds.y - bounds.x);
    } else {  // the windows end here
      result.counts->windows = static_cast<std::int32_t>(window);
      result.counts->assigned = slot;
      if (keys[i] != plan.span)
        atomicOr(&result.counts->flags, bit_of(partition_flag::too_many_windows));
    }
  }
  if (threadIdx.x == 0 && end == tokens) {
    const std::int64_t windows = before + heads_of_tile;
    if (sorted.key(tokens - 1) != plan.span && windows <= max_windows) {
      result.counts->windows = static_cast<std::int32_t>(windows);
      result.counts->assigned = plan.tokens;
      result.offsets[windows] = plan.tokens;
    }
  }
  largest = __reduce_max_sync(all_lanes, largest);
  if (lane_id() == 0) atomicMax(&largest_of_block, largest);
  __syncthreads();
  if (threadIdx.x == 0 && largest_of_block > 0)
    atomicMax(&result.counts->largest, largest_of_block);
}

}  // namespace winnow::detail
