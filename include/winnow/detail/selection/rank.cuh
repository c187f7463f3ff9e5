// SPDX-License-Identifier: Apache-2.0
/// \file
/// The most important windows of each image.
///
/// Up to `counted_windows` windows an image, a window's rank is counted: it is the number of windows
/// of the image that come before it, by importance, then by id. A block ranks 32 windows, a lane each,
/// and its eight warps share out the windows to compare with; keys pass through shared memory, a
/// broadcast read per comparison. That is n² comparisons, but they need no barrier between stages and
/// fill the GPU from a single image: 576 windows cost a microsecond where a sort pays its latency
/// several times. Windows ranked below `kept` write their id to their place.
///
/// More windows are sorted by (image, importance) with the radix sort of the partition builders: it
/// is stable, so ties stay in the order of their ids.
#pragma once

#include <cstdint>

#include "winnow/detail/partition/radix_sort.cuh"
#include "winnow/selection.hpp"
#include "winnow/tensor.hpp"

namespace winnow::detail {

inline constexpr std::int64_t counted_windows = 8192;
inline constexpr int rank_threads = 256;
inline constexpr int rank_chunk = 1024;  ///< keys in shared memory at a time

/// Smaller is more important: NaN first, and both zeros alike.
__device__ inline std::uint32_t importance_code(float importance) {
  return isnan(importance) ? 0u : ~to_ordered(importance + 0.0f);
}

struct rank_job {
  const float* importance;
  std::int64_t stride;
  window_selection result;
  key_sorter sorter;  ///< only where windows are sorted
};

template <int Threads>
__global__ void __launch_bounds__(Threads) rank_kernel(const __grid_constant__ rank_job job) {
  wait_for_predecessor();
  constexpr int warps = Threads / 32;
  __shared__ std::uint32_t codes[rank_chunk];
  __shared__ std::int32_t partial[warps][32];
  const auto windows = static_cast<std::int32_t>(job.result.windows);
  const std::int32_t id = static_cast<std::int32_t>(blockIdx.x) * 32 + lane_id();
  for (std::int64_t image = blockIdx.y; image < job.result.images; image += gridDim.y) {
    const float* importance = job.importance + image * job.stride;
    const std::uint32_t mine = id < windows ? importance_code(importance[id]) : 0;
    std::int32_t before = 0;
    for (std::int32_t first = 0; first < windows; first += rank_chunk) {
      const std::int32_t count = min(windows - first, rank_chunk);
      for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < count; i += Threads)
        codes[i] = importance_code(importance[first + i]);
      __syncthreads();
      for (std::int32_t i = warp_id(); i < count; i += warps)
        before += codes[i] < mine || (codes[i] == mine && first + i < id);
      __syncthreads();
    }
    partial[warp_id()][lane_id()] = before;
    __syncthreads();
    if (warp_id() == 0) {
      std::int32_t rank = 0;
#pragma unroll
      for (int w = 0; w < warps; ++w) rank += partial[w][lane_id()];
      if (id < windows && rank < job.result.kept)
        job.result.ids[image * job.result.stride + rank] = id;
    }
    __syncthreads();
  }
}

/// Keys (image, code) for the sort. A block takes consecutive windows of any image.
template <int Threads>
__global__ void __launch_bounds__(Threads) rank_keys_kernel(const __grid_constant__ rank_job job) {
  wait_for_predecessor();
  __shared__ sort_plan plan;
  __shared__ std::uint32_t digit_counts[max_passes * digits];
  const std::int64_t windows = job.result.windows;
  const std::int64_t total = job.result.images * windows;
  if (threadIdx.x == 0) {
    const auto last_image = static_cast<std::uint64_t>(job.result.images - 1);
    plan = make_plan(last_image << 32 | 0xffffffffu, static_cast<std::int32_t>(total));
    if (blockIdx.x == 0) *job.sorter.plan = plan;
  }
  __syncthreads();
  key_writer writer(job.sorter, plan, digit_counts);
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    const std::int64_t image = i / windows;
    const float importance = job.importance[image * job.stride + i - image * windows];
    writer.write(static_cast<std::int32_t>(i),
                 static_cast<std::uint64_t>(image) << 32 | importance_code(importance));
  }
  writer.finish();
  clear_rows(job.sorter, plan.tokens);
}

/// The first `kept` of every image's sorted windows.
template <int Threads>
__global__ void __launch_bounds__(Threads) pick_kernel(const __grid_constant__ rank_job job) {
  wait_for_predecessor();
  const sort_plan plan = *job.sorter.plan;
  const sorted_keys sorted(job.sorter, plan);
  const std::int64_t windows = job.result.windows;
  const std::int64_t total = job.result.images * job.result.kept;
  for (std::int64_t i = std::int64_t{blockIdx.x} * Threads + threadIdx.x; i < total;
       i += std::int64_t{gridDim.x} * Threads) {
    const std::int64_t image = i / job.result.kept;
    const std::int64_t place = i - image * job.result.kept;
    const std::int32_t window = sorted.token(static_cast<std::uint32_t>(image * windows + place));
    job.result.ids[image * job.result.stride + place] =
        static_cast<std::int32_t>(window - image * windows);
  }
}

inline int rank_key_bits(std::int64_t images) noexcept {
  int bits = 32;
  while (bits < max_key_bits && (images - 1) >> (bits - 32) != 0) ++bits;
  return bits;
}

/// Lays out the workspace; with null it only counts. \return bytes.
inline std::size_t lay_out(void* memory, std::int64_t images, std::int64_t windows,
                           key_sorter& sorter) noexcept {
  if (windows <= counted_windows || images == 0) return 0;
  memory_carver carver(memory);
  sorter = carve_sorter(carver, images * windows, rank_key_bits(images) > 32);
  return carver.used();
}

/// Arguments were checked, the workspace is large enough.
inline status launch_rank(const tensor_view<const float, 2>& importance,
                          const window_selection& result, void* workspace,
                          cudaStream_t stream) noexcept {
  if (result.max_windows() == 0) return {};
  rank_job job{};
  job.importance = importance.data;
  job.stride = importance.stride[0];
  job.result = result;
  if (result.windows <= counted_windows) {
    const auto images = static_cast<unsigned>(result.images < 65535 ? result.images : 65535);
    const dim3 blocks(static_cast<unsigned>(divide_up<std::int64_t>(result.windows, 32)), images);
    return launch("rank windows", rank_kernel<rank_threads>, blocks, rank_threads, stream, job);
  }
  lay_out(workspace, result.images, result.windows, job.sorter);
  const std::int64_t total = result.images * result.windows;
  WINNOW_TRY(
      submit_clear(job.sorter.histogram, sizeof(std::uint32_t) * max_passes * digits, stream));
  constexpr std::int64_t most_blocks = 528;
  const auto blocks_for = [](std::int64_t count, std::int64_t per_block) {
    const std::int64_t blocks = divide_up(count, per_block);
    return dim3(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
  };
  WINNOW_TRY(
      launch("rank keys", rank_keys_kernel<1024>, blocks_for(total, 2048), 1024, stream, job));
  sorter_list list{};
  list.sorters[0] = job.sorter;
  const int bits = rank_key_bits(result.images);
  WINNOW_TRY(launch_sort(list, 1, total, passes_of(bits), bits > 32, stream));
  return launch("pick windows", pick_kernel<256>, blocks_for(result.images * result.kept, 256), 256,
                stream, job);
}

}  // namespace winnow::detail
