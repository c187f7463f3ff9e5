// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which tiles backward_long_wgmma.cuh takes from backward_long.cuh.
#pragma once

#include "winnow/detail/attention/backward_layout.hpp"

namespace winnow::detail {

/// \param top, bottom the windows of the first and the last of `wgmma_rows` slots.
__device__ __forceinline__ bool is_wgmma_tile(int2 top, int2 bottom) {
  return top.y - top.x >= wgmma_window && bottom.y - bottom.x >= wgmma_window && bottom.x <= top.y;
}

}  // namespace winnow::detail
