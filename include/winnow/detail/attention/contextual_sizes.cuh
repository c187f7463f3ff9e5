// SPDX-License-Identifier: Apache-2.0
/// \file
/// Sizes of windows, as blocks read them that share all windows by what they cost: a warp a chunk of 128, four
/// neighbouring windows a lane.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace winnow::detail {

inline constexpr int size_chunk = 128;  ///< windows of a warp

/// The sizes of this lane's windows of a chunk, 0 behind the last one.
__device__ __forceinline__ void load_sizes(const std::int32_t* offsets, int index, int windows,
                                           int lane, int (&sizes)[4]) {
  int slots[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) slots[i] = offsets[min(index * size_chunk + 4 * lane + i, windows)];
#pragma unroll
  for (int i = 0; i < 4; ++i) sizes[i] = slots[i + 1] - slots[i];
}
/// The same of a chunk all of whose windows are there, or 0. \param offsets aligned to 16 bytes.
__device__ __forceinline__ void load_whole(const std::int32_t* offsets, int index, bool is_there,
                                           int lane, int (&sizes)[4]) {
  const std::int32_t* const own = offsets + index * size_chunk + 4 * lane;
  const int4 four = is_there ? *reinterpret_cast<const int4*>(own) : int4{0, 0, 0, 0};
  const int behind = is_there ? own[4] : 0;
  sizes[0] = four.y - four.x, sizes[1] = four.z - four.y;
  sizes[2] = four.w - four.z, sizes[3] = behind - four.w;
}

}  // namespace winnow::detail
