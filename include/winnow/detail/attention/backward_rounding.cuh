// SPDX-License-Identifier: Apache-2.0
/// \file
/// How dS is brought into the range of 16-bit factors.
#pragma once

#include <cstdint>

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

}  // namespace winnow::detail
