// SPDX-License-Identifier: Apache-2.0
/// \file
/// Ranks windows by the magnitudes of their tokens.
///
/// What a cluster of up to eight blocks computes: the order of one image's windows for one shift. Each block
/// sums the windows of its share, eight lanes a window of which each takes a column, hands the sums to
/// the others through distributed shared memory, and ranks its share, again eight lanes a window, by
/// counting the windows that come before each one.
///
/// What bounds it: latency, of two trips to the L2 and the barrier of the cluster; there are a few hundred
/// windows, and their squares in comparisons. So a cluster has as many blocks as it takes to have all
/// windows at once, where eight suffice for that, and a block that is alone asks for no barrier but its own.
/// Nothing but keys is written before the barrier of a cluster, which waits until all writes have arrived.
/// Both shifts and all images are one launch. GPUs without clusters, before compute capability 9.0, rank an
/// image in one block.
#include <cooperative_groups.h>

#include "swin/kernels.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int threads = 640;
constexpr int most_blocks = 8;  // of a cluster
constexpr int lanes = 8;        // of a window
static_assert(window_edge <= lanes && most_blocks <= lanes);
constexpr int slots = threads / lanes;  // windows at a time

/// Larger for more important windows; NaN above all. The bits of the importance, or of a NaN.
__device__ __forceinline__ std::uint32_t key_of(float importance) {
  const std::uint32_t bits = __float_as_uint(importance) & 0x7fffffffu;
  return bits > 0x7f800000u ? 0x7fffffffu : bits;
}

/// The magnitudes of a lane's column of a rolled window; padding counts 0.
struct window_column {
  float values[window_edge];

  __device__ __forceinline__ window_column(const ranking& work, bool shifted, int image, int window,
                                           bool present, int lane) {
    const int shift = shifted ? shift_of_odd_blocks : 0;
    const int columns = (work.map.width + window_edge - 1) / window_edge;
    const int padded_height = (work.map.height + window_edge - 1) / window_edge * window_edge;
    const int padded_width = columns * window_edge;
    const int top = window / columns * window_edge + shift;
    int x = window % columns * window_edge + lane + shift;
    if (x >= padded_width) x -= padded_width;
    present = present && lane < window_edge && x < work.map.width;
    const float* column =
        work.magnitude + static_cast<std::int64_t>(image) * work.map.height * work.map.width + x;
#pragma unroll
    for (int i = 0; i < window_edge; ++i) {
      int y = top + i;
      if (y >= padded_height) y -= padded_height;
      values[i] = present && y < work.map.height ? column[y * work.map.width] : 0.0f;
    }
  }
  /// The L2 norm over the window; every lane gets it.
  __device__ __forceinline__ float window_norm() const {
    float squares = 0.0f;
#pragma unroll
    for (const float value : values) squares += value * value;
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2)
      squares += __shfl_xor_sync(detail::all_lanes, squares, step);
    return sqrtf(squares);
  }
};

/// Four keys are compared at a time, so there is room for a few more than an image has windows.
WINNOW_HOST_DEVICE constexpr int padded_keys(int windows) {
  return (windows + 3) / 4 * 4;
}
/// Those come after all windows. All threads of the block take part.
__device__ __forceinline__ void pad_keys(std::uint32_t* keys, int windows) {
  const int i = windows + static_cast<int>(threadIdx.x);
  if (i < padded_keys(windows)) keys[i] = 0;
}

/// How many windows come before window `w`; each of its lanes gets it.
/// \param keys padded, aligned to 16 bytes
__device__ __forceinline__ int count_before(const std::uint32_t* keys, int windows, int w,
                                            bool present, int lane) {
  int before = 0;
  if (present) {
    const std::uint32_t key = keys[w];
    const auto* fours = reinterpret_cast<const uint4*>(keys);
    const int own = w / 4;
    // Ties go to the lower id. Keys have 31 bits.
#pragma unroll 4
    for (int i = lane; i < padded_keys(windows) / 4; i += lanes) {
      const uint4 others = fours[i];
      const std::uint32_t least = i < own ? key : key + 1;
      before +=
          (others.x >= least) + (others.y >= least) + (others.z >= least) + (others.w >= least);
    }
    if (lane == 0) {
      const uint4 others = fours[own];
      before += (own * 4 < w && others.x == key) + (own * 4 + 1 < w && others.y == key) +
                (own * 4 + 2 < w && others.z == key);
    }
  }
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2)
    before += __shfl_xor_sync(detail::all_lanes, before, step);
  return before;
}

/// A block that is alone, as a cluster. Its barrier waits for nothing but its threads.
struct lone_block {
  __device__ void barrier_arrive() const {}
  __device__ void barrier_wait() const {}
  __device__ void sync() const { __syncthreads(); }
  __device__ std::uint32_t* map_shared_rank(std::uint32_t* memory, unsigned) const {
    return memory;
  }
};

template <bool Alone>
__device__ __forceinline__ auto own_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (Alone)
    return lone_block();
  else
    return cooperative_groups::this_cluster();
#else
  return lone_block();
#endif
}

/// Grid: x the blocks of a cluster, y the images, z the shifts.
template <bool Alone>
__global__ void __launch_bounds__(threads) ranking_kernel(const __grid_constant__ ranking work) {
  extern __shared__ __align__(16) std::uint32_t keys[];
  const auto cluster = own_cluster<Alone>();
  const int blocks = static_cast<int>(gridDim.x);
  pad_keys(keys, work.windows);
  cluster.barrier_arrive();
  detail::wait_for_predecessor();
  detail::admit_successor();
  const int shifted = static_cast<int>(blockIdx.z);
  const bool wanted = work.ids[shifted] != nullptr;  // by the whole cluster
  const int image = static_cast<int>(blockIdx.y);
  const int windows = work.windows;
  const int share = (windows + blocks - 1) / blocks;
  const int first = static_cast<int>(blockIdx.x) * share;
  const int last = wanted ? min(first + share, windows) : first;
  const int slot = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t row = static_cast<std::int64_t>(image) * windows;

  bool all_started = false;
  for (int start = first; start < last; start += slots) {
    const int w = start + slot;
    const bool present = w < last;
    const float importance =
        window_column(work, shifted, image, present ? w : first, present, lane).window_norm();
    if (!all_started) cluster.barrier_wait();  // so their memory is there
    all_started = true;
    if (!present) continue;
    if (lane < blocks)
      cluster.map_shared_rank(keys, static_cast<unsigned>(lane))[w] = key_of(importance);
  }
  if (!all_started) cluster.barrier_wait();
  cluster.sync();
  for (int start = first; start < last; start += slots) {
    const int w = start + slot;
    const bool present = w < last;
    const int before = count_before(keys, windows, w, present, lane);
    if (!present || lane != 0) continue;
    // Not earlier: the barrier would wait for it.
    work.importance[shifted][row + w] = __uint_as_float(keys[w]);
    work.ranks[shifted][row + w] = before;
    if (before < work.longest[shifted])
      work.ids[shifted][static_cast<std::int64_t>(image) * work.longest[shifted] + before] = w;
  }
}

}  // namespace

cudaError_t launch_ranking(const ranking& work, cudaStream_t stream) {
  const auto windows = static_cast<std::size_t>(work.windows);
  if (windows > max_ranked_windows) return cudaErrorInvalidValue;
  const bool has_clusters = detail::can_overlap_launches();  // both from compute capability 9.0
  unsigned blocks = 1;
  while (has_clusters && blocks < most_blocks && blocks * slots < windows) blocks *= 2;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {blocks, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks, static_cast<unsigned>(work.map.batch), 2);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes =
      static_cast<std::size_t>(padded_keys(work.windows)) * sizeof(std::uint32_t);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = has_clusters ? 2 : 0;
  return cudaLaunchKernelEx(&config, blocks > 1 ? ranking_kernel<false> : ranking_kernel<true>,
                            work);
}

}  // namespace winnow::swin
