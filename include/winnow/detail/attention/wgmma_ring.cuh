// SPDX-License-Identifier: Apache-2.0
/// \file
/// A block of warpgroups that multiply and of warps that copy for them, tile by tile, into a ring of stages in
/// shared memory: what the forward and the backward of long windows by wgmma have in common.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/wgmma.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// \tparam Layout has the offsets `full` and `empty` of the stages' barriers.
template <class Layout, class Problem>
struct ring_block {
  using layout = Layout;
  using tile = swizzled_tile<layout::row_bytes>;

  const Problem& problem;
  const group_problem& group;
  std::byte* memory;
  std::uint32_t shared;  ///< the address of `memory`

  __device__ __forceinline__ ring_block(const Problem& problem_, const group_problem& group_,
                                        std::byte* memory_)
      : problem(problem_), group(group_), memory(memory_), shared(shared_address(memory_)) {}

  template <class U>
  __device__ __forceinline__ U* at(int offset_bytes) const {
    return reinterpret_cast<U*>(memory + offset_bytes);
  }
  __device__ __forceinline__ std::uint32_t full(int stage) const {
    return shared + layout::full + 8 * stage;
  }
  __device__ __forceinline__ std::uint32_t empty(int stage) const {
    return shared + layout::empty + 8 * stage;
  }
};

/// Those of the stages, and of two buffers of own rows, which the warps that multiply empty.
/// \param shared the address of the block's memory.
template <class Layout>
__device__ __forceinline__ void create_barriers(std::uint32_t shared, int own_empty) {
  constexpr int multiplying = 4 * Layout::groups * warp_arrivals;
  constexpr int copying = Layout::warps * warp_arrivals - multiplying;
  for (int stage = 0; stage < Layout::stages; ++stage) {
    create_barrier(shared + Layout::full + 8 * stage, copying);
    create_barrier(shared + Layout::empty + 8 * stage, multiplying);
    if (stage < 2) create_barrier(shared + own_empty + 8 * stage, multiplying);
  }
}

/// A copying warp's part of a stage has arrived. \param full the stage's barrier.
__device__ __forceinline__ void announce_stage(std::uint32_t full) {
  show_to_products();
  __syncwarp();
  arrive_warp(full, lane_id());
}

}  // namespace winnow::detail
