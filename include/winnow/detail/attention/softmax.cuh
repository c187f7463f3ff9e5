// SPDX-License-Identifier: Apache-2.0
/// \file
/// The running softmax of two rows, in base 2.
#pragma once

#include <cstdint>

#include "winnow/storage.hpp"

namespace winnow::detail {

inline constexpr float log2_e = 1.44269504088896340736f;
inline constexpr float ln_2 = 0.69314718055994530942f;

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The largest of a lane's scores of row g + 8i and 16 keys.
__device__ __forceinline__ float lane_max(const float (&scores)[2][4], int i) {
  return fmaxf(fmaxf(scores[0][2 * i], scores[0][2 * i + 1]),
               fmaxf(scores[1][2 * i], scores[1][2 * i + 1]));
}
/// The larger of the quad's values.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// Adds up the quad's shares of two rows' sums.
__device__ __forceinline__ void add_lane_sums(float (&sum)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
    sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
  }
}

/// Multiplies a lane's elements of rows g and g + 8 by a factor each.
template <int Blocks>
__device__ __forceinline__ void scale_rows(const float (&by)[2], float (&blocks)[Blocks][4]) {
#pragma unroll
  for (auto& block : blocks)
#pragma unroll
    for (int e = 0; e < 4; ++e) block[e] *= by[e / 2];
}

/// Rows g and g + 8 of a tile; the four lanes of a quad share them. Logits count in base 2.
///
/// Weights are 2^(logit - largest), where `largest` trails the true maximum by up to `slack`, since
/// weights of up to 2^slack cost no precision. Most keys then change nothing: it takes one
/// comparison a lane to know, and neither shuffles nor rescaling. A row that has met no key has a
/// largest of -infinity and a sum of 0; if it ends so, its result is NaN.
struct softmax_state {
  static constexpr float slack = 6.0f;
  float largest[2] = {-INFINITY, -INFINITY};
  /// What to add to logits: -largest, but finite, so that a masked logit becomes weight 0, not NaN.
  float offset[2] = {0.0f, 0.0f};
  /// Σ of the weights of the two rows in [0] and [2], as `values_at` leaves them.
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};

  /// Do this lane's new logits keep all lanes of the warp within the slack?
  [[nodiscard]] __device__ __forceinline__ bool holds(const float (&logit)[2]) const {
    // Not written as a negation: a NaN changes nothing, and -infinity never exceeds -infinity.
    const bool exceeds = logit[0] > largest[0] + slack || logit[1] > largest[1] + slack;
    return !__any_sync(0xffffffffu, exceeds);
  }
  /// Takes the largest new logit of each row. What has been summed up is then to be multiplied by
  /// `factor`, if the result is true, which it is for the whole warp.
  __device__ __forceinline__ bool raise(const float (&logit)[2], float (&factor)[2]) {
    bool rescale = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float row_logit = quad_max(logit[i]);
      factor[i] = 1.0f;
      if (row_logit > largest[i] + slack) {
        if (largest[i] != -INFINITY) {
          factor[i] = exp2_fast(largest[i] - row_logit);
          rescale = true;
        }
        largest[i] = row_logit;
        offset[i] = -row_logit;
      }
      sum[2 * i] *= factor[i];
    }
    return __any_sync(0xffffffffu, rescale);
  }
  /// Adds up the quad's shares, where lanes have their own.
  template <bool LaneSums>
  __device__ __forceinline__ void finish() {
    if constexpr (LaneSums) add_lane_sums(sum);
  }
  /// log Σ exp, natural; after `finish`.
  [[nodiscard]] __device__ __forceinline__ float log_sum(int i) const {
    return (largest[i] + log2f(sum[2 * i])) * ln_2;
  }
};

/// The same of contextual encoding, whose kernels count logits over a positive factor: to know that a row
/// stays as it is takes a comparison of them as they are. Maxima are whole, so that weights are rescaled
/// by powers of two.
struct scaled_softmax_state {
  float limit[2] = {-INFINITY,
                    -INFINITY};    ///< from which on a row's maximum rises, over the factor
  float offset[2] = {0.0f, 0.0f};  ///< -largest - lag, but finite
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};

  /// Does a new logit of this lane raise its row's maximum? A NaN does not.
  [[nodiscard]] __device__ __forceinline__ bool exceeds(const float (&logit)[2]) const {
    return logit[0] > limit[0] || logit[1] > limit[1];
  }
  [[nodiscard]] __device__ __forceinline__ bool holds(const float (&logit)[2]) const {
    return !__any_sync(0xffffffffu, exceeds(logit));
  }
  /// As in `softmax_state`. \param scale the factor. \param slack how far logits may exceed `largest`.
  /// \param lag weights are 2^(logit - largest - lag).
  __device__ __forceinline__ bool raise(const float (&logit)[2], float scale, float slack,
                                        float lag, float (&factor)[2]) {
    bool rescale = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float row_logit = floorf(quad_max(logit[i]) * scale);
      const bool is_first = limit[i] == -INFINITY;
      const float largest = is_first ? -INFINITY : -lag - offset[i];
      factor[i] = 1.0f;
      if (row_logit > largest + slack) {
        if (!is_first) {
          factor[i] = exp2_fast(largest - row_logit);
          rescale = true;
        }
        // Whole numbers exceed the slack by 1.
        limit[i] = __fdividef(row_logit + (slack + 1.0f), scale);
        offset[i] = -lag - row_logit;
      }
      sum[2 * i] *= factor[i];
    }
    return __any_sync(0xffffffffu, rescale);
  }
  /// The same of rows' maxima, without a branch: what a row has summed up before its first key is 0, so that its
  /// factor does not matter. \param inverse 1 over the factor.
  __device__ __forceinline__ bool raise_rows(const float (&logit)[2], float scale, float inverse,
                                             float slack, float lag, float (&factor)[2]) {
    bool rescale = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool rises = logit[i] > limit[i];
      const float row_logit = floorf(logit[i] * scale);
      const float raised = rises ? -lag - row_logit : offset[i];
      rescale |= rises && limit[i] != -INFINITY;
      factor[i] = exp2_fast(fminf(raised - offset[i], 0.0f));
      limit[i] = rises ? (row_logit + (slack + 1.0f)) * inverse : limit[i];
      offset[i] = raised;
      sum[2 * i] *= factor[i];
    }
    return __any_sync(0xffffffffu, rescale);
  }
  template <bool LaneSums>
  __device__ __forceinline__ void finish() {
    if constexpr (LaneSums) add_lane_sums(sum);
  }
  [[nodiscard]] __device__ __forceinline__ float log_sum(int i) const {
    return (log2f(sum[2 * i]) - offset[i]) * ln_2;
  }
};

/// The same with fewer registers: from where on a maximum rises follows from its offset, which is out of reach before the
/// row's first key.
struct lean_softmax_state {
  static constexpr float unmet = 0x1p100f;
  float offset[2] = {unmet, unmet};  ///< -largest - lag
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};

  /// \param most exponent of a weight that raises no maximum.
  [[nodiscard]] __device__ __forceinline__ bool exceeds(const float (&logit)[2], float scale,
                                                        float most) const {
    return fmaf(logit[0], scale, offset[0]) > most || fmaf(logit[1], scale, offset[1]) > most;
  }
  /// As in `scaled_softmax_state`.
  __device__ __forceinline__ bool raise_rows(const float (&logit)[2], float scale, float most,
                                             float lag, float (&factor)[2]) {
    bool rescale = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool rises = fmaf(logit[i], scale, offset[i]) > most;
      const float raised = rises ? -lag - floorf(logit[i] * scale) : offset[i];
      rescale |= rises && offset[i] != unmet;
      factor[i] = exp2_fast(fminf(raised - offset[i], 0.0f));
      offset[i] = raised;
      sum[2 * i] *= factor[i];
    }
    return __any_sync(0xffffffffu, rescale);
  }
};

}  // namespace winnow::detail
