// SPDX-License-Identifier: Apache-2.0
/// \file
/// How dS is brought into the range of 16-bit factors.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

/// The power of two by which dS is multiplied before it is rounded to 16 bits, from the biased
/// exponent of the largest |dO|. That element becomes 2³ to 2⁴: room for 2¹² on top, where v and P
/// multiply it (a row that overflows is computed again, exactly), and a range of 2²⁷ below it, down
/// to half's smallest number.
struct rounding_scale {
  float up, down;
  __device__ __forceinline__ explicit rounding_scale(unsigned magnitude) {
    const unsigned m = min(max(magnitude, 4u), 250u);
    up = __uint_as_float((257u - m) << 23);
    down = __uint_as_float((m - 3u) << 23);
  }
};

/// dO·O of one vector, and the largest of `largest` and the bits of |dO|'s finite elements.
template <class T>
__device__ __forceinline__ float measure_vectors(const uint4& grads, const uint4& outs,
                                                 unsigned& largest) {
  const std::uint32_t x[4] = {grads.x, grads.y, grads.z, grads.w};
  const std::uint32_t y[4] = {outs.x, outs.y, outs.z, outs.w};
  float dot = 0.0f;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 g = unpack<T>(x[w]);
    const float2 o = unpack<T>(y[w]);
    dot = fmaf(g.x, o.x, fmaf(g.y, o.y, dot));
#pragma unroll
    for (const float element : {g.x, g.y}) {
      const unsigned bits = __float_as_uint(element) & 0x7fffffffu;
      if (bits < 0x7f800000u) largest = max(largest, bits);
    }
  }
  return dot;
}

}  // namespace winnow::detail
