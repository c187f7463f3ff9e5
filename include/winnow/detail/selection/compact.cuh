// SPDX-License-Identifier: Apache-2.0
/// \file
/// Ragged selections: the windows that satisfy a predicate, ids ascending, image after image.
///
/// One kernel over all windows of all images, in tiles. Ballots number the kept windows of a warp's
/// consecutive rows of 32, a sum over warps those of the tile, and a look back over tiles those before
/// it; then each goes to its place, and the first window of an image writes where the image begins.
/// A token mask is first reduced to a byte a window, a warp each. Traffic: the predicate's input read
/// once, 4 bytes written a kept window. Bound by the launches at the sizes of images.
#pragma once

#include <cstdint>

#include "winnow/detail/util/device.cuh"
#include "winnow/selection.hpp"
#include "winnow/tensor.hpp"
#include "winnow/window.hpp"

namespace winnow::detail {

inline constexpr int compact_threads = 512;
inline constexpr int compact_rows = 8;
inline constexpr int compact_tile = compact_threads * compact_rows;

/// Importance at or above the threshold, or NaN.
struct is_above {
  const float* importance;
  std::int64_t stride;
  float threshold;
  __device__ bool operator()(std::int64_t image, std::int64_t id) const {
    return !(importance[image * stride + id] < threshold);
  }
};

struct is_marked {
  const std::uint8_t* mask;
  std::int64_t stride;
  __device__ bool operator()(std::int64_t image, std::int64_t id) const {
    return mask[image * stride + id] != 0;
  }
};

/// \param counts published counts of kept windows, see `chain`; zero before.
template <class Predicate>
__global__ void __launch_bounds__(compact_threads)
    compact_kernel(const __grid_constant__ window_selection result,
                   const __grid_constant__ Predicate keep, std::uint32_t* counts) {
  wait_for_predecessor();
  constexpr int warps = compact_threads / 32;
  __shared__ std::uint32_t kept_of_warp[warps];
  __shared__ std::uint32_t kept_before_tile;
  const std::int64_t total = result.images * result.windows;
  const std::int64_t mine =
      std::int64_t{blockIdx.x} * compact_tile + warp_id() * 32 * compact_rows + lane_id();
  std::uint32_t place[compact_rows];
  unsigned is_kept = 0;
  std::uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < compact_rows; ++i) {
    const std::int64_t at = mine + 32 * i;
    bool keeps = at < total;
    if (keeps) keeps = keep(at / result.windows, at % result.windows);
    const unsigned row = __ballot_sync(all_lanes, keeps);
    is_kept |= (keeps ? 1u : 0u) << i;
    place[i] = kept + static_cast<std::uint32_t>(__popc(row & lanes_below()));
    kept += static_cast<std::uint32_t>(__popc(row));
  }
  if (lane_id() == 0) kept_of_warp[warp_id()] = kept;
  __syncthreads();
  std::uint32_t kept_of_tile = 0;
  std::uint32_t kept_before_warp = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    if (w == warp_id()) kept_before_warp = kept_of_tile;
    kept_of_tile += kept_of_warp[w];
  }
  if (warp_id() == 0) {
    const std::uint32_t before =
        chain::count_before(counts, static_cast<int>(blockIdx.x), kept_of_tile);
    if (lane_id() == 0) kept_before_tile = before;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < compact_rows; ++i) {
    const std::int64_t at = mine + 32 * i;
    if (at >= total) continue;
    const std::uint32_t to = kept_before_tile + kept_before_warp + place[i];
    const std::int64_t image = at / result.windows;
    const std::int64_t id = at - image * result.windows;
    const bool keeps = (is_kept >> i & 1u) != 0;
    if (keeps) result.ids[to] = static_cast<std::int32_t>(id);
    if (id == 0) result.offsets[image] = static_cast<std::int32_t>(to);
    if (at == total - 1)
      result.offsets[result.images] = static_cast<std::int32_t>(to + (keeps ? 1 : 0));
  }
}

/// Reduces a token mask to a byte a window. A warp a window.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    mark_windows_kernel(const __grid_constant__ grid_window grid, std::int32_t rows,
                        std::int32_t columns, const std::uint8_t* __restrict__ mask,
                        std::int64_t stride, std::uint8_t* __restrict__ marks) {
  wait_for_predecessor();
  const std::int64_t per_image = std::int64_t{rows} * columns;
  const std::int64_t height = std::int64_t{rows} * grid.window;
  const std::int64_t width = std::int64_t{columns} * grid.window;
  const std::int64_t warps = std::int64_t{gridDim.x} * (Threads / 32);
  for (std::int64_t w = std::int64_t{blockIdx.x} * (Threads / 32) + warp_id();
       w < grid.batch * per_image; w += warps) {
    const std::int64_t image = w / per_image;
    const std::int64_t id = w - image * per_image;
    const std::int64_t top = id / columns * grid.window + grid.shift;
    const std::int64_t left = id % columns * grid.window + grid.shift;
    bool any = false;
    for (std::int32_t t = lane_id(); t < grid.window * grid.window && !any; t += 32) {
      std::int64_t y = top + t / grid.window;
      std::int64_t x = left + t % grid.window;
      if (y >= height) y -= height;
      if (x >= width) x -= width;
      any = y < grid.height && x < grid.width && mask[image * stride + y * grid.width + x] != 0;
    }
    any = __any_sync(all_lanes, any) != 0;
    if (lane_id() == 0) marks[w] = any ? 1 : 0;
  }
}

inline std::int64_t compact_tiles(std::int64_t windows) noexcept {
  return divide_up<std::int64_t>(windows, compact_tile);
}

/// Arguments were checked; `counts` holds a word a tile.
template <class Predicate>
status launch_compact(const window_selection& result, const Predicate& keep, std::uint32_t* counts,
                      cudaStream_t stream) noexcept {
  const std::int64_t tiles = compact_tiles(result.images * result.windows);
  if (tiles == 0)
    return submit_clear(result.offsets, sizeof(std::int32_t) * (std::size_t{1} + result.images),
                        stream);
  if (tiles > 1)  // a single tile looks at nobody's count
    WINNOW_TRY(
        submit_clear(counts, sizeof(std::uint32_t) * static_cast<std::size_t>(tiles), stream));
  return launch("compact windows", compact_kernel<Predicate>, dim3(static_cast<unsigned>(tiles)),
                compact_threads, stream, result, keep, counts);
}

}  // namespace winnow::detail
