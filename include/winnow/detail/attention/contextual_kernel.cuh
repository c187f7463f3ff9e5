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
/// With 16-bit storage and head dim 16 other kernels take over: of cubic windows contextual_units_kernel.cuh, if a block
/// may have the shared memory; of groups with an even number of heads, and tiles enough, else
/// contextual_heads_kernel.cuh, or contextual_ring_kernel.cuh if they are spherical and the device has compute
/// capability 9.0.
///
/// But for the last of these, short spherical windows of head dim 16 have a kernel of their own (contextual_short.cuh), in
/// groups that have hardly any others; what is left then is rows of 64 with a longer window among them.
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
#include <utility>

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
    // It looks at rows of longer windows that the kernel of short ones has computed, too.
    if (!problem.place.is_first) wait_for_predecessor();
    complete_rows<T>(problem, share_of_block(problem), rows, shortest);
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

/// The groups with spherical windows, or the others.
struct contextual_groups {
  forward_problem problem;
  std::int64_t heads = 0;
  bool even = true;         ///< are heads of all groups pairs?
  bool by_vectors = false;  ///< are rows of q, k and v read 16 bytes at a time?
  bool has_steps = false;   ///< and are all strides short enough for every kernel?
  bool in_ring = false;     ///< does contextual_ring_kernel.cuh serve them?
  int short_warps = 0;      ///< of a block of contextual_short.cuh, if that takes short windows
};
/// Has each warp so many tiles of two heads? Few leave some of them idle at the end.
inline bool has_tiles(std::int64_t heads, const launch_extent& extent, int least) noexcept {
  using layout = contextual_heads_layout<true>;
  return extent.tokens / layout::rows * (heads / 2) >=
         std::int64_t{least} * layout::warps * device_attribute(cudaDevAttrMultiProcessorCount);
}
template <class T, int D, bool Radial>
contextual_groups select_groups(const forward_problem& problem,
                                const launch_extent& extent) noexcept {
  contextual_groups result{problem};
  result.problem.group_count = 0;
  for (int g = 0; g < problem.group_count; ++g) {
    if ((problem.groups[g].kind == relative_kind::spherical) != Radial) continue;
    result.problem.groups[result.problem.group_count++] = problem.groups[g];
    result.heads += problem.groups[g].heads;
    result.even = result.even && problem.groups[g].heads % 2 == 0;
  }
  result.by_vectors = vector_rows<T>(problem.q) && vector_rows<T>(problem.k) &&
                      vector_rows<T>(problem.v) && problem.out.vectors;
  result.has_steps = result.by_vectors && vector_rows<T>(problem.out) && fits_lse(problem);
  constexpr int least_tiles = 5;
  if constexpr (has_contextual_heads<sizeof(T), D> && Radial)
    result.in_ring = result.even && result.has_steps &&
                     has_tiles(result.heads, extent, least_tiles) && takes_ring(problem, extent);
  if constexpr (has_contextual_short<sizeof(T), D, Radial>)
    if (result.heads > 0 && result.has_steps && !result.in_ring &&
        (sizeof(T) == 4 || has_moderate_scale(problem))) {
      using layout = contextual_short_layout<Radial, sizeof(T)>;
      const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
      const int warps =
          std::min(layout::most_warps, (memory - layout::block_bytes) / layout::warp_bytes);
      if (warps >= layout::least_warps) result.short_warps = warps;
      result.problem.takes_windows = result.short_warps > 0;
      // Behind it then is contextual_forward_kernel, which looks whether it has.
      result.problem.takes_longer = result.problem.takes_windows && !result.even;
    }
  return result;
}

/// Short spherical windows, of groups that have hardly any others; as many warps a block as fit.
template <class T, int D>
cudaError_t launch_contextual_short(const contextual_groups& groups, kernel_place place,
                                    cudaStream_t stream) noexcept {
  if constexpr (has_contextual_short<sizeof(T), D, true>) {
    using layout = contextual_short_layout<true, sizeof(T)>;
    forward_problem parameters = groups.problem;
    parameters.place = place;
    const auto kernel = contextual_short_kernel<T, true>;
    const auto bytes = static_cast<std::size_t>(layout::bytes(groups.short_warps));
    const cudaError_t error = allow_shared_memory(kernel, bytes);
    if (error != cudaSuccess) return error;
    const std::int64_t shares =
        std::max<std::int64_t>(1, device_attribute(cudaDevAttrMultiProcessorCount) / groups.heads);
    const std::int64_t blocks = divide_among_blocks(parameters, shares);
    return launch_kernel(kernel, dim3(static_cast<unsigned>(blocks)), 32 * groups.short_warps,
                         bytes, stream, parameters);
  } else {
    return cudaSuccess;
  }
}

/// All windows, or what `launch_contextual_short` leaves.
template <class T, int D, bool Radial>
cudaError_t launch_contextual_groups(const contextual_groups& groups, const launch_extent& extent,
                                     kernel_place place, cudaStream_t stream) noexcept {
  using layout = contextual_layout<sizeof(T), D, Radial>;
  forward_problem parameters = groups.problem;
  parameters.place = place;
  const std::int64_t heads = groups.heads;
  const int processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const int block_memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if constexpr (has_contextual_heads<sizeof(T), D>)
    if (groups.has_steps) {
      if constexpr (!Radial)
        if (has_moderate_scale(parameters) &&
            block_memory >= static_cast<int>(std::max(contextual_units_layout<1>::bytes,
                                                      contextual_units_layout<2>::bytes))) {
          const auto launch = [&](auto kernel, auto layout_of_heads) {
            using units = decltype(layout_of_heads);
            return launch_block_each<units>(kernel, parameters, processors, heads, extent.tokens,
                                            units::stripe, stream);
          };
          return groups.even ? launch(contextual_units_kernel<T, 2>, contextual_units_layout<2>())
                             : launch(contextual_units_kernel<T, 1>, contextual_units_layout<1>());
        }
      using heads_layout = contextual_heads_layout<Radial>;
      constexpr int least_tiles = 10;
      if (groups.in_ring) return extent.hopper_spherical_launch(parameters, extent, stream);
      if (groups.even && block_memory >= static_cast<int>(heads_layout::bytes) &&
          has_tiles(heads, extent, least_tiles))
        return launch_block_each<heads_layout>(contextual_heads_kernel<T, Radial>, parameters,
                                               processors, heads, extent.tokens,
                                               heads_layout::warps * heads_layout::rows, stream);
    }
  const auto kernel = groups.by_vectors ? contextual_forward_kernel<T, D, Radial, true>
                                        : contextual_forward_kernel<T, D, Radial, false>;
  const cudaError_t error = allow_shared_memory(kernel, layout::bytes);
  if (error != cudaSuccess) return error;
  // As many blocks as are resident at a time.
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
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
///
/// Short spherical windows come last where their heads are pairs, as they mostly have nothing to do then: in front,
/// that takes up to 5 µs, behind the others it passes while their last blocks end. A single head mostly has nothing else.
///
/// If there are pairs of both kinds, the next call's blocks may come and wait once this one's warps run out of work, which
/// saves it up to 4 µs; while they have some, it costs 4. Short spherical ones mostly have none from the beginning. Windows
/// of one kind alone, and one head at a time, lose 2 to 7 by it.
template <class T, int D>
cudaError_t launch_contextual_forward(const forward_problem& problem, const launch_extent& extent,
                                      cudaStream_t stream) noexcept {
  const contextual_groups spherical = select_groups<T, D, true>(problem, extent);
  const contextual_groups others = select_groups<T, D, false>(problem, extent);
  const bool has_short = spherical.short_warps > 0;
  const bool short_is_last = has_short && spherical.even;
  const bool admits_call = spherical.heads > 0 && others.heads > 0 && others.even;
  int kernels = (spherical.heads > 0 ? 1 : 0) + (others.heads > 0 ? 1 : 0) + (has_short ? 1 : 0);
  bool is_first = true;
  const auto next_place = [&] {
    const bool is_last = --kernels == 0;
    return kernel_place{std::exchange(is_first, false), !is_last || (short_is_last && admits_call),
                        is_last && admits_call};
  };
  cudaError_t error = cudaSuccess;
  if (has_short && !short_is_last)
    error = launch_contextual_short<T, D>(spherical, next_place(), stream);
  if (error == cudaSuccess && spherical.heads > 0)
    error = launch_contextual_groups<T, D, true>(spherical, extent, next_place(), stream);
  if (error == cudaSuccess && others.heads > 0)
    error = launch_contextual_groups<T, D, false>(others, extent, next_place(), stream);
  if (error == cudaSuccess && short_is_last)
    error = launch_contextual_short<T, D>(spherical, next_place(), stream);
  return error;
}

}  // namespace winnow::detail
