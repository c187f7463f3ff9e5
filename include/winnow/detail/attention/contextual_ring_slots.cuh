// SPDX-License-Identifier: Apache-2.0
/// \file
/// The ring of contextual_ring_kernel.cuh: where a group's slots are, and how warps tell each other of them.
///
/// A barrier of each slot says that its group is there. Which groups are needed no longer readers say by a number each, the
/// first group that they still need: most groups are not theirs. Such numbers also tell how many groups have been made, as
/// readers may be further ahead than the phases of a barrier can tell apart.
///
/// racecheck follows barriers, but no numbers. With WINNOW_ALL_LANES_ARRIVE (wgmma.cuh) readers therefore pass all groups
/// in their order and arrive at a second barrier of each slot.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/wgmma.cuh"

namespace winnow::detail {

inline constexpr bool passes_all_groups = warp_arrivals > 1;

/// The slots of a group of keys, by where they begin.
template <class Layout>
struct ring_slots {
  static constexpr int product_bytes = Layout::slots * Layout::slot_bytes;
  static constexpr int key_bytes = Layout::key_slots * Layout::key_group_bytes;
  int products, keys;
  std::uint32_t parity;  ///< of the number of times that the slot has been filled before

  __device__ __forceinline__ explicit ring_slots(int group)
      : products(Layout::products + static_cast<int>(static_cast<unsigned>(group) % Layout::slots) *
                                        Layout::slot_bytes),
        keys(Layout::key_groups +
             static_cast<int>(static_cast<unsigned>(group) % Layout::key_slots) *
                 Layout::key_group_bytes),
        parity(static_cast<unsigned>(group) / Layout::slots & 1) {}
  /// Of K and V, so many groups further.
  [[nodiscard]] __device__ __forceinline__ int keys_ahead(int groups) const {
    const int next = keys + groups * Layout::key_group_bytes;
    return next >= Layout::key_groups + key_bytes ? next - key_bytes : next;
  }
  __device__ __forceinline__ void step(int groups) {
    keys = keys_ahead(groups);
    products += groups * Layout::slot_bytes;
    if (products >= Layout::products + product_bytes) products -= product_bytes, parity ^= 1;
  }
};

}  // namespace winnow::detail
