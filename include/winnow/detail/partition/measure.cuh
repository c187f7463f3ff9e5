// SPDX-License-Identifier: Apache-2.0
/// \file
/// First kernel of a partition build: how far the points reach.
///
/// Every thread keeps the extremes of its tokens in registers, a block reduces them through
/// `redux.sync` and one row of shared memory, and writes one word a value. There are no atomics and
/// hence nothing to initialise: the next kernel reduces the blocks' words itself, which costs each of
/// its blocks a few loads and this build one launch less. The extremes serve twice, as the origin
/// (the minimum) and, because cells rise with coordinates, as the range of cells: no second pass over
/// the tokens is needed to find how short the sort keys can be.
///
/// On the way the kernel clears what later ones count into. Traffic: 16 bytes read a token.
#pragma once

#include "winnow/detail/partition/job.cuh"

namespace winnow::detail {

inline constexpr int measure_threads = 1024;

class running_extremes {
 public:
  __device__ running_extremes() {
#pragma unroll
    for (std::uint32_t& value : values_) value = ~0u;
  }
  /// \param low,high rows of `extreme`.
  __device__ void take(int low, int high, std::uint32_t ordered) {
    values_[low] = min(values_[low], ordered);
    values_[high] = min(values_[high], ~ordered);
  }
  template <int Threads>
  __device__ void write(const job_list& list) {
    const bool labelled = !list.cartesian && !list.spherical;
    __shared__ std::uint32_t of_warp[Threads / 32][extremes];
#pragma unroll
    for (int v = 0; v < extremes; ++v) {
      const bool used = v < theta_low   ? list.cartesian
                        : v < batch_low ? list.spherical
                                        : (v < label_low) != labelled;
      const std::uint32_t least = used ? __reduce_min_sync(all_lanes, values_[v]) : ~0u;
      if (lane_id() == v) of_warp[warp_id()][v] = least;
    }
    __syncthreads();
    if (threadIdx.x >= extremes) return;
    std::uint32_t least = ~0u;
    for (int w = 0; w < Threads / 32; ++w) least = min(least, of_warp[w][threadIdx.x]);
    list.measured[static_cast<int>(threadIdx.x) * max_measure_blocks + blockIdx.x] = least;
  }

 private:
  std::uint32_t values_[extremes];
};

template <int Threads>
__global__ void __launch_bounds__(Threads) measure_kernel(const __grid_constant__ job_list list) {
  wait_for_predecessor();
  for (int j = 0; j < list.count; ++j)
    clear_words(list.jobs[j].sorter.histogram, max_passes * digits);
  const point_source& points = list.points;
  const std::int32_t tokens = device_count(points.num_tokens, points.capacity);
  if (blockIdx.x == 0 && threadIdx.x < static_cast<unsigned>(list.count)) {
    const bool clamped = points.num_tokens != nullptr && *points.num_tokens != tokens;
    const partition& result = list.jobs[threadIdx.x].result;
    *result.counts = {0, tokens, 0, 0, clamped ? bit_of(partition_flag::token_count) : 0u};
    result.offsets[0] = 0;
  }

  running_extremes found;
  const auto count = static_cast<std::uint32_t>(tokens);
  for (std::uint32_t i = blockIdx.x * Threads + threadIdx.x; i < count; i += gridDim.x * Threads) {
    const auto token = static_cast<std::int32_t>(i);
    if (list.cartesian || list.spherical) {
      const std::int32_t item = points.batch != nullptr ? points.batch[token] : 0;
      const loaded_point point = load_point(points, token);
      if (item < 0 || !all_finite(point.at)) continue;
      found.take(batch_low, batch_high, to_ordered(item));
      if (list.cartesian) {
#pragma unroll
        for (int a = 0; a < 3; ++a)
          found.take(x_low + a, x_high + a,
                     points.integer ? to_ordered(point.integer[a]) : to_ordered(point.at[a]));
      }
      if (list.spherical) {
        float at[3];
        spherical(point.at[0], point.at[1], point.at[2], at);
        if (!isfinite(at[2])) continue;
#pragma unroll
        for (int a = 0; a < 3; ++a) found.take(theta_low + a, theta_high + a, to_ordered(at[a]));
      }
    } else {
      const std::int32_t label = list.jobs[0].labels[token];
      if (label >= 0) found.take(label_low, label_high, to_ordered(label));
    }
  }
  found.write<Threads>(list);
}

}  // namespace winnow::detail
