// SPDX-License-Identifier: Apache-2.0
/// \file
/// Rows of tokens in no window.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// Zeroes rows [from, to) of `tokens`, which are tokens in no window.
template <class T>
__device__ __forceinline__ void zero_rows(const forward_problem& problem, int head,
                                          const std::int32_t* tokens, int from, int to) {
  const int count = (to - from) * problem.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int row = from + i / problem.head_dim;
    const int d = i % problem.head_dim;
    const_cast<T*>(row_of<T>(problem.out, tokens[row], head))[d] = narrow<T>(0.0f);
    if (d == 0 && problem.lse != nullptr)
      problem.lse[tokens[row] * problem.lse_token_stride + head * problem.lse_head_stride] = 0.0f;
  }
}

}  // namespace winnow::detail
