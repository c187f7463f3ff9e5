// SPDX-License-Identifier: Apache-2.0
/// \file
/// Ranks windows by the magnitudes of their tokens.
///
/// What a cluster of eight blocks computes: the order of one image's windows for one shift. Each block
/// sums the windows of its eighth, a warp a window, hands the sums to the other seven through
/// distributed shared memory, and ranks its eighth by counting the windows that come before each one.
///
/// What bounds it: two trips to the L2 and the barrier of the cluster; there are a few hundred windows, and
/// their squares in comparisons. Both shifts and all images are one launch.
#include <cooperative_groups.h>

#include "swin/kernels.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int threads = 512;
constexpr int cluster_blocks = 8;

/// Larger for more important windows; NaN above all.
__device__ __forceinline__ std::uint32_t key_of(float importance) {
  const std::uint32_t bits = __float_as_uint(importance) & 0x7fffffffu;
  return bits > 0x7f800000u ? 0x7fffffffu : bits;
}

/// The L2 norm over a rolled window's tokens, by one warp; padding counts 0.
__device__ float window_norm(const ranking& work, int shift, int image, int window, int lane) {
  const int columns = (work.map.width + window_edge - 1) / window_edge;
  const int padded_height = (work.map.height + window_edge - 1) / window_edge * window_edge;
  const int padded_width = columns * window_edge;
  float squares = 0.0f;
#pragma unroll
  for (int turn = 0; turn < 2; ++turn) {
    const int i = lane + turn * 32;
    if (i >= window_tokens) continue;
    int y = window / columns * window_edge + i / window_edge + shift;
    int x = window % columns * window_edge + i % window_edge + shift;
    if (y >= padded_height) y -= padded_height;
    if (x >= padded_width) x -= padded_width;
    if (y >= work.map.height || x >= work.map.width) continue;
    const float value =
        work.magnitude[(static_cast<std::int64_t>(image) * work.map.height + y) * work.map.width +
                       x];
    squares += value * value;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, step);
  return sqrtf(squares);
}

/// Grid: x the blocks of a cluster, y the images, z the shifts.
__global__ void __cluster_dims__(cluster_blocks, 1, 1) __launch_bounds__(threads)
    ranking_kernel(const __grid_constant__ ranking work) {
  extern __shared__ std::uint32_t keys[];
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();  // all blocks have started, so their memory is there
  detail::wait_for_predecessor();
  detail::admit_successor();
  const int shifted = static_cast<int>(blockIdx.z);
  if (work.ids[shifted] == nullptr) return;  // the whole cluster
  const int image = static_cast<int>(blockIdx.y);
  const int windows = work.windows;
  const int share = (windows + cluster_blocks - 1) / cluster_blocks;
  const int first = static_cast<int>(cluster.block_rank()) * share;
  const int last = min(first + share, windows);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row = static_cast<std::int64_t>(image) * windows;

#pragma unroll 4
  for (int w = first + warp; w < last; w += threads / 32) {
    const float importance = window_norm(work, shifted ? shift_of_odd_blocks : 0, image, w, lane);
    const std::uint32_t key = key_of(importance);
    if (lane < cluster_blocks) cluster.map_shared_rank(keys, static_cast<unsigned>(lane))[w] = key;
    if (lane == 0) work.importance[shifted][row + w] = importance;
  }
  cluster.sync();
  for (int w = first + warp; w < last; w += threads / 32) {
    const std::uint32_t key = keys[w];
    int before = 0;
    for (int other = lane; other < windows; other += 32)
      before += keys[other] > key || (keys[other] == key && other < w);
    before = __reduce_add_sync(0xffffffffu, before);
    if (lane != 0) continue;
    work.ranks[shifted][row + w] = before;
    if (before < work.longest[shifted])
      work.ids[shifted][static_cast<std::int64_t>(image) * work.longest[shifted] + before] = w;
  }
}

}  // namespace

cudaError_t launch_ranking(const ranking& work, cudaStream_t stream) {
  const auto windows = static_cast<std::size_t>(work.windows);
  if (windows > max_ranked_windows) return cudaErrorInvalidValue;
  const dim3 grid(cluster_blocks, static_cast<unsigned>(work.map.batch), 2);
  return detail::launch_kernel(ranking_kernel, grid, threads, windows * sizeof(std::uint32_t),
                               stream, work);
}

}  // namespace winnow::swin
