// SPDX-License-Identifier: Apache-2.0
/// \file
/// The forward kernel with contextual position encoding.
///
/// What a block computes: of one head every so many-th 64 rows. It lives long, so that it loads the
/// head's tables once. Rows are slots, sorted by window, 16 a warp; their keys are one range of slots,
/// taken in turns of up to 96 or 112. In a turn the warps first multiply the keys with Tk, 16 at a time,
/// and their own rows with Tq; then each attends to the keys that its rows need, 16 at a time. While
/// they do, the next turn's rows arrive by cp.async. A turn has two barriers.
///
/// A pair's logit is q·k plus six table products, of which linear axes are matrix products again:
/// Gq, the row's products by the position of the other token, times the one-hot position of the key,
/// and the row's one-hot position times Gk. One-hot fragments come from a comparison each; nothing of
/// them is stored. The radial axis looks its two products up. On the value side weights are summed by
/// the cells of their keys, a product with one-hot positions too, and at the end moved by the row's
/// own position and multiplied with Tv; the radial row is no function of the key's place, so its
/// weights are added up in shared memory, in fixed point: integer sums are the same in any order.
///
/// Where things live: Gq (half), the weights by cell (FP32), O and the softmax state in registers; K,
/// V and Gk (half) in shared memory, small tables too. Float, and 16 bits from head dim 32 on, keep
/// products as two halves. How they move by a position is in contextual_products.cuh.
///
/// Short spherical windows of head dim 16 are taken by the kernel before it (contextual_short.cuh), in
/// groups that have hardly any others; what is left then is rows of 64 with a longer window among them.
///
/// With 16-bit storage and head dim 16 other kernels take over: of cubic windows contextual_units_kernel.cuh, if a block
/// may have the shared memory; of groups with an even number of heads, and tiles enough, else
/// contextual_heads_kernel.cuh, or contextual_ring_kernel.cuh if they are spherical and the device has compute
/// capability 9.0.
///
/// What bounds it: instructions, their fixed latencies at three or four warps a scheduler, and barriers.
///
/// NaN and infinity: as in forward_kernel.cuh, but rows are checked again at the end of a block's
/// life if one of them came out non-finite.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "winnow/detail/attention/contextual_block.cuh"
#include "winnow/detail/attention/contextual_heads_kernel.cuh"
#include "winnow/detail/attention/contextual_pairs.cuh"
#include "winnow/detail/attention/contextual_result.cuh"
#include "winnow/detail/attention/contextual_shares.cuh"
#include "winnow/detail/attention/contextual_short.cuh"
#include "winnow/detail/attention/contextual_tokens.cuh"
#include "winnow/detail/attention/contextual_turns.cuh"
#include "winnow/detail/attention/contextual_units_kernel.cuh"
#include "winnow/detail/attention/contextual_weights.cuh"
#include "winnow/detail/attention/forward_launch.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// \tparam Radial the groups of the launch have spherical windows.
template <class T, int D, bool Radial, bool Vectors>
__global__ void __launch_bounds__(tune_contextual(sizeof(T), D).threads(),
                                  contextual_layout<sizeof(T), D, Radial>::min_blocks)
    contextual_forward_kernel(const __grid_constant__ forward_problem problem) {
  begin_beside(problem.place);
  extern __shared__ __align__(16) std::byte memory[];
  const block_share own = share_of_block(problem);
  const group_problem& group = problem.groups[own.group];
  bool incomplete = problem.zero_unassigned || group.path == encoding_path::rows;
  int shortest = 0;
  if constexpr (has_contextual_short<sizeof(T), D, Radial> && Vectors)
    shortest = shortest_left<Radial>(problem, group);
  if (group.path == encoding_path::tiles)
    incomplete |= contextual_block<T, D, Radial, Vectors>{problem,
                                                          own.group,
                                                          memory,
                                                          own.head,
                                                          own.share,
                                                          own.shares,
                                                          group.counts->assigned,
                                                          shared_address(memory),
                                                          memory,
                                                          shortest}
                      .run();
  constexpr int rows = contextual_layout<sizeof(T), D, Radial>::rows;
  if (__syncthreads_or(incomplete)) {
    // It looks at rows of short windows, too.
    if (!problem.place.is_first) wait_for_predecessor();
    complete_rows<T>(problem, share_of_block(problem), rows);
  }
  end_beside(problem.place, blockIdx.x == 0);
}

/// Do rows start on 16 bytes, a distance apart that fits 32 bits?
template <class T>
bool vector_rows(const row_view& view) noexcept {
  const std::int64_t limit = (std::int64_t{1} << 31) / static_cast<std::int64_t>(sizeof(T));
  return view.vectors && view.token_stride < limit && view.token_stride >= -limit;
}

/// Is the step of LSE between tokens 32 bits long, in bytes?
inline bool fits_lse(const forward_problem& problem) noexcept {
  const std::int64_t limit = std::int64_t{1} << 29;
  return problem.lse_token_stride < limit && problem.lse_token_stride >= -limit;
}

/// Can what is divided by the scale stay in halves, as contextual_short_keys.cuh has it?
inline bool has_moderate_scale(const forward_problem& problem) noexcept {
  return problem.scale >= 0x1p-8f && problem.scale <= 0x1p8f;
}

/// Does contextual_ring_kernel.cuh serve a launch? Rows have all of 16 elements, and tables can be kept over the
/// scale without rounding.
inline bool takes_ring(const forward_problem& problem, const launch_extent& extent) noexcept {
  int exponent = 0;
  return extent.hopper_spherical_launch != nullptr && problem.head_dim == 16 &&
         has_moderate_scale(problem) && std::frexp(problem.scale, &exponent) == 0.5f && is_hopper();
}

/// Short windows, of groups that have hardly any others; as many warps a block as fit.
template <class T, bool Radial>
cudaError_t launch_contextual_short(const forward_problem& problem, int processors, int warps,
                                    std::int64_t heads, cudaStream_t stream) noexcept {
  using layout = contextual_short_layout<Radial, sizeof(T)>;
  forward_problem parameters = problem;
  const auto kernel = contextual_short_kernel<T, Radial>;
  const cudaError_t error =
      allow_shared_memory(kernel, static_cast<std::size_t>(layout::bytes(warps)));
  if (error != cudaSuccess) return error;
  const std::int64_t shares = std::max<std::int64_t>(1, processors / heads);
  const std::int64_t blocks = divide_among_blocks(parameters, shares);
  return launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), 32 * warps,
                       static_cast<std::size_t>(layout::bytes(warps)), stream, parameters);
}

/// The groups with spherical windows, or the others.
template <class T, int D, bool Radial>
cudaError_t launch_contextual_groups(const forward_problem& problem, const launch_extent& extent,
                                     kernel_place place, cudaStream_t stream) noexcept {
  using layout = contextual_layout<sizeof(T), D, Radial>;
  forward_problem parameters = problem;
  parameters.group_count = 0;
  std::int64_t heads = 0;
  bool even = true;
  for (int g = 0; g < problem.group_count; ++g) {
    if ((problem.groups[g].kind == relative_kind::spherical) != Radial) continue;
    parameters.groups[parameters.group_count++] = problem.groups[g];
    heads += problem.groups[g].heads;
    even = even && problem.groups[g].heads % 2 == 0;
  }
  if (heads == 0) return cudaSuccess;
  const bool vectors = vector_rows<T>(problem.q) && vector_rows<T>(problem.k) &&
                       vector_rows<T>(problem.v) && problem.out.vectors;
  const auto kernel = vectors ? contextual_forward_kernel<T, D, Radial, true>
                              : contextual_forward_kernel<T, D, Radial, false>;
  // As many blocks as are resident at a time.
  int device = 0, processors = 0, memory = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&memory, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error == cudaSuccess) error = allow_shared_memory(kernel, layout::bytes);
  if (error != cudaSuccess) return error;
  parameters.place = place;
  if constexpr (has_contextual_heads<sizeof(T), D> || has_contextual_short<sizeof(T), D, Radial>)
    if (vectors && vector_rows<T>(problem.out) && fits_lse(problem)) {
      int block_memory = 0;
      error =
          cudaDeviceGetAttribute(&block_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      if (error != cudaSuccess) return error;
      if constexpr (has_contextual_short<sizeof(T), D, Radial>) {
        using short_layout = contextual_short_layout<Radial, sizeof(T)>;
        const int warps =
            std::min(short_layout::most_warps,
                     (block_memory - short_layout::block_bytes) / short_layout::warp_bytes);
        if (warps >= short_layout::least_warps && (sizeof(T) == 4 || has_moderate_scale(problem))) {
          parameters.takes_windows = true;
          // Behind it then is contextual_forward_kernel, which looks whether it has.
          parameters.takes_longer = !even;
          parameters.place = {place.is_first, true};
          place.is_first = false;
          error = launch_contextual_short<T, Radial>(parameters, processors, warps, heads, stream);
          if (error != cudaSuccess) return error;
          parameters.place = place;
        }
      }
      if constexpr (has_contextual_heads<sizeof(T), D>) {
        if constexpr (!Radial)
          if (has_moderate_scale(problem) &&
              block_memory >= static_cast<int>(std::max(contextual_units_layout<1>::bytes,
                                                        contextual_units_layout<2>::bytes))) {
            // The next call's blocks may wait where blocks have ended: 3 to 8 µs. Windows of one kind alone, and one head
            // at a time, lose 2 to 7 by it.
            parameters.place.admits = even && !place.is_first;
            const auto launch = [&](auto kernel, auto layout_of_heads) {
              using units = decltype(layout_of_heads);
              return launch_block_each<units>(kernel, parameters, processors, heads, extent.tokens,
                                              units::stripe, stream);
            };
            return even ? launch(contextual_units_kernel<T, 2>, contextual_units_layout<2>())
                        : launch(contextual_units_kernel<T, 1>, contextual_units_layout<1>());
          }
        using heads_layout = contextual_heads_layout<Radial>;
        // Few tiles a warp leave some of them idle at the end.
        constexpr int least_tiles = 10, least_tiles_of_ring = 5;
        const std::int64_t tiles = extent.tokens / heads_layout::rows * (heads / 2);
        const auto are_enough = [&](int least) {
          return tiles >= std::int64_t{least} * heads_layout::warps * processors;
        };
        if (Radial && even && are_enough(least_tiles_of_ring) && takes_ring(problem, extent))
          return extent.hopper_spherical_launch(parameters, extent, stream);
        if (even && block_memory >= static_cast<int>(heads_layout::bytes) &&
            are_enough(least_tiles))
          return launch_block_each<heads_layout>(contextual_heads_kernel<T, Radial>, parameters,
                                                 processors, heads, extent.tokens,
                                                 heads_layout::warps * heads_layout::rows, stream);
      }
    }
  const std::int64_t fitting =
      std::max<std::int64_t>(1, memory / static_cast<std::int64_t>(layout::bytes + 1024));
  const std::int64_t resident = processors * std::min<std::int64_t>(layout::min_blocks, fitting);
  const std::int64_t most = (extent.tokens + layout::rows - 1) / layout::rows;
  const std::int64_t shares = std::max<std::int64_t>(1, std::min(most, resident / heads));
  const std::int64_t blocks = divide_among_blocks(parameters, shares);
  return launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), layout::tuning.threads(),
                       layout::bytes, stream, parameters);
}

/// Launches of their own where there are both kinds of windows, the longer ones first. The others' blocks come
/// as theirs end: sharing a multiprocessor from the beginning, both took a fifth more time.
template <class T, int D>
cudaError_t launch_contextual_forward(const forward_problem& problem, const launch_extent& extent,
                                      cudaStream_t stream) noexcept {
  int radial = 0;
  for (int g = 0; g < problem.group_count; ++g)
    radial += problem.groups[g].kind == relative_kind::spherical ? 1 : 0;
  const kernel_place of_radial{true, radial != problem.group_count};
  const kernel_place of_others{radial == 0, false};
  const cudaError_t error =
      launch_contextual_groups<T, D, true>(problem, extent, of_radial, stream);
  return error != cudaSuccess
             ? error
             : launch_contextual_groups<T, D, false>(problem, extent, of_others, stream);
}

}  // namespace winnow::detail
