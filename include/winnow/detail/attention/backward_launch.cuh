// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches one instantiation of the backward kernels.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "winnow/detail/attention/backward_contextual.cuh"
#include "winnow/detail/attention/backward_contextual_window.cuh"
#include "winnow/detail/attention/backward_grid.cuh"
#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/attention/backward_long.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/backward_tile.cuh"
#include "winnow/detail/attention/backward_window.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class Kernel>
cudaError_t launch_backward_kernel(Kernel kernel, const backward_problem& problem,
                                   std::int64_t blocks_per_head, int threads, std::size_t bytes,
                                   cudaStream_t stream) noexcept {
  const cudaError_t error = allow_shared_memory(kernel, bytes);
  if (error != cudaSuccess) return error;
  backward_problem parameters = problem;
  // Kernels of tiles take only the first.
  backward_rows rows = problem;
  void* arguments[] = {&parameters, &rows};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(problem.heads * blocks_per_head)),
                          dim3(threads), arguments, bytes, stream);
}

/// Plain windows: short ones in one pass, with the query side, longer ones by sides. On the query side both run
/// beside each other. The key side's kernel waits for them, as that of warpgroups does on either side, but finds
/// out before whether there is anything to do.
template <class T, int D>
cudaError_t launch_backward_plain(const backward_problem& problem, backward_side side,
                                  cudaStream_t stream) noexcept {
  const auto launch = [&](auto kernel, std::int64_t blocks, int warps, std::size_t bytes,
                          kernel_place place) {
    const cudaError_t error = allow_shared_memory(kernel, bytes);
    if (error != cudaSuccess) return error;
    backward_problem parameters = problem;
    parameters.place = place;
    return launch_kernel(kernel, dim3(static_cast<unsigned>(problem.heads * blocks)), 32 * warps,
                         bytes, stream, parameters, static_cast<const backward_rows&>(parameters));
  };
  using layout = long_layout<D>;
  if (side == backward_side::key)
    return launch(differentiate_long_kernel<T, D, backward_side::key>, problem.blocks_per_head,
                  layout::warps, layout::bytes, {false, problem.by_warpgroups});
  constexpr std::int64_t slots = window_range * window_warps;
  const std::int64_t blocks = std::max<std::int64_t>(1, (problem.max_tokens + slots - 1) / slots);
  const cudaError_t error =
      launch(differentiate_windows_kernel<T, D>, blocks, window_warps, 0, {true, true});
  if (error != cudaSuccess) return error;
  return launch(differentiate_long_kernel<T, D, backward_side::query>, problem.blocks_per_head,
                layout::warps, layout::bytes, {false, true});
}

/// Short and long windows of contextual encoding, both sides, and each by its own kernel.
template <class T>
cudaError_t launch_contextual_windows(const backward_problem& problem, bool radial,
                                      cudaStream_t stream) noexcept {
  const auto launch = [&](auto is_radial, auto is_long, int blocks) {
    using layout = contextual_window_layout<is_radial.value, is_long.value>;
    const auto kernel = differentiate_contextual_windows_kernel<T, is_radial.value, is_long.value>;
    const cudaError_t error = allow_shared_memory(kernel, layout::bytes);
    if (error != cudaSuccess) return error;
    return launch_kernel(kernel, dim3(static_cast<unsigned>(problem.heads * blocks)),
                         32 * layout::tiles, layout::bytes, stream, problem,
                         static_cast<const backward_rows&>(problem));
  };
  const auto launch_both = [&](auto is_radial) {
    cudaError_t error =
        launch_kernel(price_contextual_windows_kernel<is_radial.value>,
                      dim3(static_cast<unsigned>(problem.group_count * pricing_blocks_of_group)),
                      pricing_threads, 0, stream, problem);
    if (error != cudaSuccess) return error;
    error = launch(is_radial, std::false_type{}, problem.short_parts);
    const int long_parts = problem.parts_per_head - problem.short_parts;
    if (error != cudaSuccess || long_parts == 0) return error;
    return launch(is_radial, std::true_type{}, long_parts);
  };
  return radial ? launch_both(std::true_type{}) : launch_both(std::false_type{});
}

template <class T, int D, position_encoding Position>
cudaError_t launch_backward_tiles(const backward_problem& problem, const backward_extent& extent,
                                  backward_side side, cudaStream_t stream) noexcept {
  if constexpr (Position == position_encoding::none && one_pass_capacity(sizeof(T), D) > 0)
    if (problem.one_pass > 0) return launch_backward_plain<T, D>(problem, side, stream);
  if constexpr (Position == position_encoding::bias && grid_capacity(sizeof(T), D) > 0)
    if (problem.one_pass > 0)
      return side == backward_side::key
                 ? cudaSuccess  // came with the query side
                 : launch_backward_kernel(differentiate_grid_kernel<T, D>, problem,
                                          problem.blocks_per_head, 32 * grid_layout<D>::tiles,
                                          grid_layout<D>::bytes, stream);
  const bool of_queries = side == backward_side::query;
  void (*kernel)(backward_problem) = nullptr;
  std::size_t bytes = 0;
  int threads = 0;
  if constexpr (Position != position_encoding::contextual) {
    using layout = backward_layout<sizeof(T), D, Position>;
    kernel = of_queries ? differentiate_tiles_kernel<T, D, Position, backward_side::query>
                        : differentiate_tiles_kernel<T, D, Position, backward_side::key>;
    bytes = layout::bytes(side, extent);
    threads = layout::tuning.threads();
  } else if constexpr (contextual_tiles_fit(dtype_of<T>, D)) {
    if constexpr (contextual_window_capacity(sizeof(T), D) > 0)
      if (problem.one_pass > 0 && of_queries) {
        const cudaError_t error = launch_contextual_windows<T>(problem, extent.radial, stream);
        if (error != cudaSuccess) return error;
      }
    const auto choose = [&](auto radial) {
      using query_layout =
          contextual_gradient_layout<sizeof(T), D, backward_side::query, radial.value>;
      using key_layout = contextual_gradient_layout<sizeof(T), D, backward_side::key, radial.value>;
      kernel = of_queries
                   ? differentiate_contextual_kernel<T, D, backward_side::query, radial.value>
                   : differentiate_contextual_kernel<T, D, backward_side::key, radial.value>;
      bytes = of_queries ? query_layout::bytes : key_layout::bytes;
      threads = query_layout::tuning.threads();
    };
    if (extent.radial)
      choose(std::true_type{});
    else
      choose(std::false_type{});
  } else {
    return cudaErrorNotSupported;  // the dispatch sends such groups row by row
  }
  if constexpr (Position == position_encoding::contextual) {
    const cudaError_t error = allow_shared_memory(kernel, bytes);
    if (error != cudaSuccess) return error;
    return launch_kernel(kernel,
                         dim3(static_cast<unsigned>(problem.heads * problem.blocks_per_head)),
                         threads, bytes, stream, problem);
  }
  return launch_backward_kernel(kernel, problem, problem.blocks_per_head, threads, bytes, stream);
}

template <class T>
cudaError_t launch_backward_rows(const backward_problem& problem, backward_side side,
                                 cudaStream_t stream) noexcept {
  const auto kernel = side == backward_side::query
                          ? differentiate_rows_kernel<T, backward_side::query>
                          : differentiate_rows_kernel<T, backward_side::key>;
  return launch_backward_kernel(kernel, problem, problem.blocks_per_head, 32, 0, stream);
}

}  // namespace winnow::detail
