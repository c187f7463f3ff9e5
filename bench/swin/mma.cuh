// SPDX-License-Identifier: Apache-2.0
/// \file
/// A product of 16 x 16 by 16 x 8 on the tensor cores, and how its fragments fit `token_row`.
///
/// In the sums of the product a lane of a row's four holds, of each tile of eight columns, two. The
/// network's kernels number channels so that these are the channels which `token_row` gives the lane:
/// column `c` of tile `t` is channel `channel_of(t, c)`. As a left factor the same registers are columns of
/// the sum over channels, so a row never changes its lane.
#pragma once

#include <cstdint>

#include "swin/row_norm.cuh"

namespace winnow::swin {

inline constexpr int quad_lanes = 4;
inline constexpr int quad_channels = quad_lanes * lane_channels;
inline constexpr int column_tiles = quad_channels / 8;

/// The channel behind a column of a tile. Element i of a `token_row` is column i % 2 of tile i / 2 among
/// the two columns of its lane.
WINNOW_HOST_DEVICE constexpr int channel_of(int tile, int column) {
  return (tile / 4 * quad_lanes + column / 2) * piece + tile % 4 * 2 + column % 2;
}

__device__ __forceinline__ void multiply(half, float (&sum)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(bfloat16, float (&sum)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace winnow::swin
