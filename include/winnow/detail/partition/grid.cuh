// SPDX-License-Identifier: Apache-2.0
/// \file
/// Device builder of grid partitions. Window w of the result is the w-th selected one, so there is
/// nothing to sort: a token's slot follows from its window's rank and its place in the window.
///
/// Every window selected: one kernel, a thread a slot, all stores coalesced.
///
/// A selection in device memory: three kernels. The first forgets all ranks. The second walks over
/// the selection, a thread an id, checks it and gives its window the rank; nothing is trusted before
/// it was checked, and any flag makes the selection empty. The third walks over the tokens in tiles,
/// eight consecutive rows of 32 a warp: tokens of selected windows go straight to their slots, the
/// others are counted by ballot and a look back over tiles and follow the last window in order.
/// Traffic: 16 bytes written a token; the ranks, 4 bytes a window, stay in the L2. Bound by launches
/// and by the index arithmetic (four divisions a token).
#pragma once

#include "winnow/detail/partition/build.cuh"
#include "winnow/detail/partition/grid.hpp"

namespace winnow::detail {

inline constexpr int grid_threads = 256;
inline constexpr int grid_rows = 8;  ///< of 32 tokens a warp
inline constexpr int grid_tile = grid_threads * grid_rows;

struct grid_job {
  grid_window grid;
  std::int64_t per_image;  ///< windows of an image
  std::int32_t tokens;
  window_selection kept;
  partition result;
  std::int32_t* rank;          ///< [batch * per_image], -1: not selected
  std::uint32_t* rest_counts;  ///< [tiles] published counts of tokens in no window, see `chain`
};

template <int Threads>
__global__ void __launch_bounds__(Threads) place_all_kernel(const __grid_constant__ grid_job job) {
  wait_for_predecessor();
  const std::int32_t area = job.grid.window * job.grid.window;
  const std::int64_t windows = job.tokens / area;
  const std::int64_t thread = std::int64_t{blockIdx.x} * Threads + threadIdx.x;
  const std::int64_t threads = std::int64_t{gridDim.x} * Threads;
  for (std::int64_t i = thread; i < job.tokens; i += threads) {
    const auto slot = static_cast<std::int32_t>(i);
    const std::int32_t window = slot / area;
    const grid_token token = locate_in_grid(job.grid, window, slot - window * area);
    job.result.order[slot] = token.token;
    job.result.position[slot] = token.position;
    reinterpret_cast<int2*>(job.result.bounds)[slot] = {window * area, window * area + area};
  }
  for (std::int64_t w = thread; w <= windows; w += threads)
    job.result.offsets[w] = static_cast<std::int32_t>(w * area);
  if (thread == 0)
    *job.result.counts = {static_cast<std::int32_t>(windows), job.tokens, job.tokens,
                          windows > 0 ? area : 0, 0u};
}

template <int Threads>
__global__ void __launch_bounds__(Threads)
    forget_ranks_kernel(const __grid_constant__ grid_job job) {
  wait_for_predecessor();
  const std::int64_t windows = job.grid.batch * job.per_image;
  const std::int64_t thread = std::int64_t{blockIdx.x} * Threads + threadIdx.x;
  const std::int64_t threads = std::int64_t{gridDim.x} * Threads;
  for (std::int64_t w = thread; w < windows; w += threads) job.rank[w] = -1;
  for (std::int64_t t = thread; t < divide_up<std::int64_t>(job.tokens, Threads * grid_rows);
       t += threads)
    job.rest_counts[t] = 0;
  if (thread != 0) return;
  *job.result.counts = {0, job.tokens, 0, 0, 0u};
  job.result.offsets[0] = 0;
}

/// The number of selected windows; sound only where no flag is set.
__device__ inline std::int64_t selected_windows(const window_selection& kept) {
  return kept.offsets != nullptr ? std::int64_t{kept.offsets[kept.images]} - kept.offsets[0]
                                 : kept.images * kept.kept;
}

/// Ranks the windows of the images `blockIdx.y`, `blockIdx.y + gridDim.y`, ….
template <int Threads>
__global__ void __launch_bounds__(Threads)
    rank_windows_kernel(const __grid_constant__ grid_job job) {
  wait_for_predecessor();
  const window_selection& kept = job.kept;
  std::uint32_t flags = 0;
  for (std::int64_t image = blockIdx.y; image < kept.images; image += gridDim.y) {
    std::int64_t begin = image * kept.stride;
    std::int64_t end = begin + kept.kept;
    std::int64_t first_rank = image * kept.kept;
    if (kept.offsets != nullptr) {
      begin = kept.offsets[image];
      end = kept.offsets[image + 1];
      first_rank = begin - kept.offsets[0];
      if (begin < 0 || first_rank < 0 || end < begin || end - begin > kept.windows ||
          end > kept.images * kept.windows) {
        flags |= bit_of(partition_flag::kept_offsets);
        continue;
      }
    }
    for (std::int64_t i = begin + std::int64_t{blockIdx.x} * Threads + threadIdx.x; i < end;
         i += std::int64_t{gridDim.x} * Threads) {
      const std::int32_t id = kept.ids[i];
      if (id < 0 || id >= job.per_image) {
        flags |= bit_of(partition_flag::kept_id);
        continue;
      }
      const auto rank = static_cast<std::int32_t>(first_rank + i - begin);
      if (atomicCAS(job.rank + image * job.per_image + id, -1, rank) != -1)
        flags |= bit_of(partition_flag::kept_twice);
    }
  }
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 &&
      selected_windows(kept) > job.result.max_windows)
    flags |= bit_of(partition_flag::too_many_windows);
  if (flags != 0) atomicOr(&job.result.counts->flags, flags);
}

template <int Threads>
__global__ void __launch_bounds__(Threads) place_kept_kernel(const __grid_constant__ grid_job job) {
  wait_for_predecessor();
  __shared__ std::uint32_t rest_of_warp[Threads / 32];
  __shared__ std::uint32_t rest_before_tile;
  const partition& result = job.result;
  const bool sound = result.counts->flags == 0;
  const std::int32_t area = job.grid.window * job.grid.window;
  const auto windows = static_cast<std::int32_t>(sound ? selected_windows(job.kept) : 0);
  const std::int32_t assigned = windows * area;
  auto* bounds = reinterpret_cast<int2*>(result.bounds);

  // A warp's tokens are consecutive.
  const std::int64_t mine =
      std::int64_t{blockIdx.x} * Threads * grid_rows + warp_id() * 32 * grid_rows + lane_id();
  packed_position position[grid_rows];
  std::uint32_t rest_rank[grid_rows];
  unsigned is_rest = 0;
  std::uint32_t rest = 0;
#pragma unroll
  for (int i = 0; i < grid_rows; ++i) {
    const std::int64_t at = mine + 32 * i;
    std::int32_t rank = 0;
    if (at < job.tokens) {
      const auto token = static_cast<std::int32_t>(at);
      const grid_place place = place_in_grid(job.grid, token);
      position[i] = place.position;
      rank = sound ? job.rank[place.window] : -1;
      if (rank >= 0) {
        const std::int32_t first = rank * area;
        const std::int32_t slot = first + unpack_position(place.position, 1) * job.grid.window +
                                  unpack_position(place.position, 0);
        result.order[slot] = token;
        result.position[slot] = place.position;
        bounds[slot] = {first, first + area};
      }
    }
    const unsigned row = __ballot_sync(all_lanes, rank < 0);
    is_rest |= (rank < 0 ? 1u : 0u) << i;
    rest_rank[i] = rest + static_cast<std::uint32_t>(__popc(row & lanes_below()));
    rest += static_cast<std::uint32_t>(__popc(row));
  }
  if (lane_id() == 0) rest_of_warp[warp_id()] = rest;
  __syncthreads();
  std::uint32_t rest_of_tile = 0;
  std::uint32_t rest_before_warp = 0;
#pragma unroll
  for (int w = 0; w < Threads / 32; ++w) {
    if (w == warp_id()) rest_before_warp = rest_of_tile;
    rest_of_tile += rest_of_warp[w];
  }
  if (warp_id() == 0) {
    const std::uint32_t before =
        chain::count_before(job.rest_counts, static_cast<int>(blockIdx.x), rest_of_tile);
    if (lane_id() == 0) rest_before_tile = before;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < grid_rows; ++i) {
    if ((is_rest >> i & 1u) == 0) continue;
    const auto slot =
        assigned + static_cast<std::int32_t>(rest_before_tile + rest_before_warp + rest_rank[i]);
    result.order[slot] = static_cast<std::int32_t>(mine + 32 * i);
    result.position[slot] = position[i];
    bounds[slot] = {slot, slot};
  }

  const std::int64_t thread = std::int64_t{blockIdx.x} * Threads + threadIdx.x;
  for (std::int64_t w = thread; w <= windows; w += std::int64_t{gridDim.x} * Threads)
    result.offsets[w] = static_cast<std::int32_t>(w) * area;
  if (thread == 0) {
    result.counts->windows = windows;
    result.counts->assigned = assigned;
    result.counts->largest = windows > 0 ? area : 0;
  }
}

/// A selection in device memory against the grid it is used with; neither ids nor offsets are
/// looked at.
inline status check_device_selection(const grid_window& grid,
                                     const window_selection& kept) noexcept {
  if (!kept.ragged()) return check_selection(grid, kept);
  window_selection shape = kept;  // an empty uniform one: leaves the checks of images and windows
  shape.offsets = nullptr;
  shape.stride = shape.kept = 0;
  WINNOW_TRY(check_selection(grid, shape));
  WINNOW_REQUIRE(kept.ids != nullptr || kept.images * kept.windows == 0, "kept: ids is null");
  return {};
}

inline std::size_t lay_out(void* memory, grid_job& job) noexcept {
  memory_carver carver(memory);
  job.rank = carver.take<std::int32_t>(job.grid.batch * job.per_image);
  job.rest_counts = carver.take<std::uint32_t>(divide_up<std::int64_t>(job.tokens, grid_tile));
  return carver.used();
}

inline std::size_t grid_workspace_bytes(const grid_window& grid,
                                        const window_selection* kept) noexcept {
  if (kept == nullptr || !check_window(grid).ok() || !check_device_selection(grid, *kept).ok())
    return 0;
  grid_job job{};
  job.grid = grid;
  job.per_image = grid.windows_per_image();
  job.tokens = static_cast<std::int32_t>(grid.tokens());
  return lay_out(nullptr, job);
}

inline status build_grid(const grid_window& grid, const window_selection* kept,
                         const partition& result, void* workspace, std::size_t workspace_bytes,
                         cudaStream_t stream) noexcept {
  WINNOW_TRY(check_window(grid));
  if (kept != nullptr) WINNOW_TRY(check_device_selection(grid, *kept));
  partition_shape shape = shape_of(grid, kept);
  // How many windows a ragged selection holds only the device knows, which checks it.
  if (kept != nullptr && kept->ragged()) shape.max_windows = 0;
  WINNOW_TRY(check_device_result(result, shape));
  grid_job job{};
  job.grid = grid;
  job.per_image = grid.windows_per_image();
  job.tokens = static_cast<std::int32_t>(grid.tokens());
  job.result = result;
  const unsigned token_blocks = blocks_for(job.tokens, grid_tile, max_tokens);
  if (kept == nullptr)
    return launch("place all", place_all_kernel<grid_threads>,
                  dim3(blocks_for(job.tokens, grid_threads, max_tokens)), grid_threads, stream,
                  job);

  job.kept = *kept;
  WINNOW_TRY(check_workspace(workspace, workspace_bytes, lay_out(nullptr, job)));
  lay_out(workspace, job);
  WINNOW_TRY(launch("forget ranks", forget_ranks_kernel<grid_threads>,
                    dim3(blocks_for(job.grid.batch * job.per_image, grid_threads, 1024)),
                    grid_threads, stream, job));
  const std::int64_t ids = kept->ragged() ? kept->windows : kept->kept;
  const dim3 rank_blocks(blocks_for(ids, grid_threads, 1024), blocks_for(kept->images, 1, 65535));
  WINNOW_TRY(launch("rank windows", rank_windows_kernel<grid_threads>, rank_blocks, grid_threads,
                    stream, job));
  if (job.tokens == 0) return {};
  return launch("place kept", place_kept_kernel<grid_threads>, dim3(token_blocks), grid_threads,
                stream, job);
}

}  // namespace winnow::detail
