// SPDX-License-Identifier: Apache-2.0
/// \file
/// What warps of a team of contextual_ring_kernel.cuh tell each other: which pass they are in, and where in the ring.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace winnow::detail {

/// What a team's readers shall do: 32 rows and the groups of keys that they attend to.
struct ring_pass {
  int row = 0;           ///< the first one; from the last row on nothing is left
  int key = 0, end = 1;  ///< the first key, and the slot behind the last one
  int number = -1;       ///< among the team's
};

/// Where a warp of a team is in the ring.
template <class Layout>
struct ring_cursor {
  static constexpr int team_bytes = Layout::team_slots * Layout::slot_bytes;
  static constexpr int team_key_bytes = Layout::team_key_slots * Layout::key_group_bytes;
  int first_slot, first_keys;
  int slot = first_slot;
  int keys = first_keys;     ///< the slot of K and V
  std::uint32_t parity = 0;  ///< of the number of times that the slot has been filled before

  __device__ __forceinline__ explicit ring_cursor(int team)
      : first_slot(Layout::products + team * team_bytes),
        first_keys(Layout::key_groups + team * team_key_bytes) {}
  __device__ __forceinline__ int next_keys() const {
    const int next = keys + Layout::key_group_bytes;
    return next == first_keys + team_key_bytes ? first_keys : next;
  }
  __device__ __forceinline__ void step() {
    keys = next_keys();
    slot += Layout::slot_bytes;
    if (slot == first_slot + team_bytes) {
      slot = first_slot;
      parity ^= 1;
    }
  }
};

}  // namespace winnow::detail
