// SPDX-License-Identifier: Apache-2.0
/// \file
/// Importance of windows: the L2 norm over tokens of the mean over channels of |x|.
///
/// A block computes one window. Its threads form groups of `lanes` (a power of two), a group reads
/// one token's row in 16-byte pieces, four of them in flight a thread: `lanes` is as small as that
/// allows, since fewer lanes leave fewer of them idle (12 pieces, 96 channels of half, are three each
/// for four lanes). The group's sum comes together in shuffles, the squares of the means through
/// registers, shuffles and one row of shared memory, always in the same order. Everything is FP32.
///
/// Bound by reading the features once; nothing else leaves the block. Rows that are not whole
/// aligned 16-byte pieces are read element by element.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/util/device.cuh"
#include "winnow/tensor.hpp"
#include "winnow/window.hpp"

namespace winnow::detail {

inline constexpr int importance_threads = 256;
inline constexpr int pieces_in_flight = 4;

struct importance_job {
  grid_window grid;
  std::int32_t rows;  ///< windows down and across an image, padding included
  std::int32_t columns;
  const void* features;
  std::int64_t image_stride;  ///< elements
  std::int64_t token_stride;
  std::int32_t pieces;  ///< of a token's row
  std::int32_t lanes;   ///< threads that share a token
  float channels;
  float* importance;
  std::int64_t importance_stride;
};

/// What a thread loads at once: one element, or 16 bytes of them.
template <class T, bool Vector>
struct feature_piece;

template <class T>
struct feature_piece<T, false> {
  using type = T;
  __device__ static T zero() { return T{}; }
  __device__ static float magnitude(T value) {
    if constexpr (std::is_same_v<T, float>)
      return fabsf(value);
    else if constexpr (std::is_same_v<T, half>)
      return fabsf(__half2float(value));
    else
      return fabsf(__bfloat162float(value));
  }
};

template <class T>
struct feature_piece<T, true> {
  using type = uint4;
  __device__ static uint4 zero() { return {0, 0, 0, 0}; }
  __device__ static float magnitude(uint4 piece) {
    return (word(piece.x) + word(piece.y)) + (word(piece.z) + word(piece.w));
  }

 private:
  /// |x| of the one or two elements in 32 bits.
  __device__ static float word(std::uint32_t bits) {
    if constexpr (std::is_same_v<T, float>) {
      return fabsf(__uint_as_float(bits));
    } else if constexpr (std::is_same_v<T, half>) {
      const auto low = __ushort_as_half(static_cast<unsigned short>(bits & 0x7fffu));
      const auto high = __ushort_as_half(static_cast<unsigned short>(bits >> 16 & 0x7fffu));
      return __half2float(low) + __half2float(high);
    } else {  // a bfloat16 is the upper half of a float
      return __uint_as_float(bits << 16 & 0x7fff0000u) + __uint_as_float(bits & 0x7fff0000u);
    }
  }
};

/// The token at place `t` of a window, or -1 in the padding.
__device__ inline std::int64_t token_in_window(const importance_job& job, std::int64_t id,
                                               std::int32_t t) {
  const grid_window& grid = job.grid;
  const auto row = static_cast<std::int32_t>(id / job.columns);
  const auto column = static_cast<std::int32_t>(id % job.columns);
  std::int64_t y = std::int64_t{row} * grid.window + grid.shift + t / grid.window;
  std::int64_t x = std::int64_t{column} * grid.window + grid.shift + t % grid.window;
  const std::int64_t height = std::int64_t{job.rows} * grid.window;
  const std::int64_t width = std::int64_t{job.columns} * grid.window;
  if (y >= height) y -= height;
  if (x >= width) x -= width;
  return y < grid.height && x < grid.width ? y * grid.width + x : -1;
}

template <class T, bool Vector>
__global__ void __launch_bounds__(importance_threads)
    importance_kernel(const __grid_constant__ importance_job job) {
  wait_for_predecessor();
  using piece = feature_piece<T, Vector>;
  using loaded = typename piece::type;
  __shared__ float of_warp[importance_threads / 32];
  const std::int64_t per_image = std::int64_t{job.rows} * job.columns;
  const std::int64_t windows = job.grid.batch * per_image;
  const std::int32_t area = job.grid.window * job.grid.window;
  const auto lane = static_cast<std::int32_t>(threadIdx.x) & (job.lanes - 1);
  const auto group = static_cast<std::int32_t>(threadIdx.x) / job.lanes;
  const auto groups = static_cast<std::int32_t>(blockDim.x) / job.lanes;

  for (std::int64_t window = blockIdx.x; window < windows; window += gridDim.x) {
    const std::int64_t image = window / per_image;
    const std::int64_t id = window - image * per_image;
    float squares = 0.0f;
    // All lanes of a warp go through the same rounds, as they shuffle.
    for (std::int32_t first = 0; first < area; first += groups) {
      const std::int32_t t = first + group;
      const std::int64_t token = t < area ? token_in_window(job, id, t) : -1;
      const T* row =
          static_cast<const T*>(job.features) + image * job.image_stride + token * job.token_stride;
      float sum = 0.0f;
      for (std::int32_t at = lane; at < job.pieces; at += pieces_in_flight * job.lanes) {
        loaded pieces[pieces_in_flight];
#pragma unroll
        for (int k = 0; k < pieces_in_flight; ++k) {
          pieces[k] = piece::zero();
          if (token >= 0 && at + k * job.lanes < job.pieces)
            pieces[k] = reinterpret_cast<const loaded*>(row)[at + k * job.lanes];
        }
#pragma unroll
        for (int k = 0; k < pieces_in_flight; ++k) sum += piece::magnitude(pieces[k]);
      }
      for (int step = job.lanes / 2; step > 0; step /= 2)
        sum += __shfl_xor_sync(all_lanes, sum, step);
      const float mean = sum / job.channels;
      if (lane == 0) squares += mean * mean;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(all_lanes, squares, step);
    if (lane_id() == 0) of_warp[warp_id()] = squares;
    __syncthreads();
    if (threadIdx.x == 0) {
      float total = 0.0f;
      for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) total += of_warp[w];
      job.importance[image * job.importance_stride + id] = sqrtf(total);
    }
    __syncthreads();
  }
}

/// Arguments were checked.
template <class T>
status launch_importance(const grid_window& grid, const tensor_view<const void, 3>& features,
                         const tensor_view<float, 2>& importance, cudaStream_t stream) noexcept {
  const std::int64_t windows = grid.windows();
  if (windows == 0) return {};
  constexpr std::int64_t vector = 16 / sizeof(T);
  const bool aligned = features.shape[2] % vector == 0 && features.stride[1] % vector == 0 &&
                       (features.shape[0] == 1 || features.stride[0] % vector == 0) &&
                       reinterpret_cast<std::uintptr_t>(features.data) % 16 == 0;
  const std::int64_t pieces = aligned ? features.shape[2] / vector : features.shape[2];
  WINNOW_REQUIRE(pieces < std::int64_t{1} << 30, "features: %lld channels, must be fewer than 2^30",
                 static_cast<long long>(features.shape[2]));
  importance_job job{};
  job.grid = grid;
  job.rows = grid.rows();
  job.columns = grid.columns();
  job.features = features.data;
  job.image_stride = features.stride[0];
  job.token_stride = features.stride[1];
  job.pieces = static_cast<std::int32_t>(pieces);
  job.lanes = 1;
  while (job.lanes < 32 && job.lanes * pieces_in_flight < pieces) job.lanes *= 2;
  job.channels = static_cast<float>(features.shape[2]);
  job.importance = importance.data;
  job.importance_stride = importance.stride[0];
  const int wanted = divide_up(grid.window * grid.window * job.lanes, 32) * 32;
  const int threads = wanted < importance_threads ? wanted : importance_threads;
  constexpr std::int64_t most_blocks = 0x7fffffff;
  const dim3 blocks(static_cast<unsigned>(windows < most_blocks ? windows : most_blocks));
  return launch("window importance",
                aligned ? importance_kernel<T, true> : importance_kernel<T, false>, blocks, threads,
                stream, job);
}

}  // namespace winnow::detail
