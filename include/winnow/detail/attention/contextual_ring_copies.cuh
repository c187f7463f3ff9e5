// SPDX-License-Identifier: Apache-2.0
/// \file
/// How rows of q, K and V of two heads come into the memory of a block of contextual_ring_kernel.cuh.
///
/// Lanes copy 16 bytes each of eight tokens, of one head and then of the other, so that eight lanes store to all banks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

template <class T, class Layout>
struct ring_copies {
  /// A lane's token among eight, and its quarter of two heads' rows.
  static __device__ __forceinline__ int token(unsigned lane) {
    return static_cast<int>(lane / 2 % 8);
  }
  static __device__ __forceinline__ int quarter(unsigned lane) {
    return static_cast<int>(lane / 16 * 2 + lane % 2);
  }
  /// This quarter of token 0. \param head the first of the two.
  static __device__ __forceinline__ const T* first_part(const row_view& view, int head,
                                                        unsigned lane) {
    return static_cast<const T*>(view.data) + (head + quarter(lane) / 2) * view.head_stride +
           quarter(lane) % 2 * 8;
  }
  static __device__ __forceinline__ const T* token_part(const T* first, std::int32_t token,
                                                        std::int32_t bytes) {
    asm("mad.wide.s32 %0, %1, %2, %0;" : "+l"(first) : "r"(token), "r"(bytes));
    return first;
  }
  /// Where it goes, among 16 rows. \param head_bytes from one head's rows to the other's. \param row the first of eight.
  static __device__ __forceinline__ int target(unsigned lane, int head_bytes, unsigned row = 0) {
    return static_cast<int>(lane / 16 * static_cast<unsigned>(head_bytes) +
                            (row + lane / 2 % 8) * Layout::row_bytes + (lane ^ lane >> 3) % 2 * 16);
  }
};

}  // namespace winnow::detail
