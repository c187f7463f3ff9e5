// SPDX-License-Identifier: Apache-2.0
/// \file
/// Host side of the backward call: from checked arguments to a workspace and launches.
/// Needs the CUDA toolkit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "winnow/detail/attention/backward_contextual_layout.hpp"
#include "winnow/detail/attention/backward_launch.hpp"
#include "winnow/detail/attention/backward_layout.hpp"
#include "winnow/detail/attention/forward.hpp"
#include "winnow/detail/util/device_attribute.hpp"

namespace winnow::detail {

/// One compiled pair of storage type and padded head dim.
struct backward_instance {
  using tile_launcher = cudaError_t (*)(const backward_problem&, const backward_extent&,
                                        backward_side, cudaStream_t) noexcept;
  using row_launcher = cudaError_t (*)(const backward_problem&, backward_side,
                                       cudaStream_t) noexcept;
  dtype type;
  int head_dim;
  tile_launcher tiles[3];  ///< by position_encoding
  row_launcher rows;
  row_launcher hopper_tiles = nullptr;  ///< of long windows, on compute capability 9.0
};

/// \tparam Hopper has `launch_wgmma_backward` been compiled?
template <class T, int D, bool Hopper = false>
constexpr backward_instance backward_instance_of() noexcept {
  backward_instance instance{dtype_of<T>,
                             D,
                             {launch_backward_tiles<T, D, position_encoding::none>,
                              launch_backward_tiles<T, D, position_encoding::contextual>,
                              launch_backward_tiles<T, D, position_encoding::bias>},
                             launch_backward_rows<T>};
  if constexpr (Hopper && takes_wgmma_backward(sizeof(T), D))
    instance.hopper_tiles = launch_wgmma_backward<T, D>;
  return instance;
}

/// Blocks that sum up parts of tables: this many of all heads together, enough to fill the largest
/// GPU of today. Not taken from the device, so that results do not depend on it.
inline constexpr int summing_blocks = 528;
/// The same for contextual tiles, of which two share a multiprocessor.
inline constexpr int contextual_blocks = 264;
/// The same for short contextual windows.
constexpr int contextual_window_blocks(bool radial) {
  return 132 * (radial ? contextual_window_layout<true, false>::min_blocks
                       : contextual_window_layout<false, false>::min_blocks);
}
/// The same for row blocks, which are one warp.
inline constexpr int summing_rows = 4224;
/// Row blocks without parts; each is a warp.
inline constexpr std::int64_t row_blocks = 1 << 15;

/// The launches of one call: groups of one position encoding on tiles, and what goes row by row.
struct backward_launch {
  position_encoding position = position_encoding::none;
  encoding_path path = encoding_path::tiles;
  backward_problem problem;
  backward_extent extent;
  bool key_side_sums = false;
};

inline constexpr int max_backward_launches = 5;

struct backward_plan {
  int launch_count = 0;
  backward_launch launches[max_backward_launches];
  parts_sums sums;
  std::size_t workspace_bytes = 0;
};

/// What a block may have of shared memory on the current device.
inline std::size_t shared_memory_limit() noexcept {
  int device = 0;
  int bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess)
    return 0;
  return static_cast<std::size_t>(bytes);
}

/// The instance decides which encodings fit tiles, and for the contextual one the device.
inline encoding_path backward_path_of(const head_group<void>& group,
                                      const backward_instance& instance,
                                      std::size_t memory_limit) noexcept {
  bool fits = true;
  if (group.position == position_encoding::contextual)
    fits =
        contextual_tiles_fit(instance.type, instance.head_dim) &&
        path_of(group) == encoding_path::tiles &&
        contextual_bytes(size_of(instance.type), instance.head_dim,
                         group.windows.relative.kind == relative_kind::spherical) <= memory_limit;
  if (group.position == position_encoding::bias)
    fits = group.windows.relative.bias_rows() <= shared_bias_rows;
  return fits ? encoding_path::tiles : encoding_path::rows;
}

/// Up to which size windows of the group are differentiated in one pass; 0: none.
inline int one_pass_of(const head_group<void>& group,
                       const attention_backward_arguments<void>& arguments,
                       const backward_instance& instance, std::size_t memory_limit) noexcept {
  bool vectors = true;
  const auto check = [&](const row_view& rows) {
    const std::int64_t limit = std::int64_t{1} << 29;  // elements, so that bytes fit 32 bits
    vectors = vectors && (rows.data == nullptr || (rows.vectors && rows.token_stride < limit &&
                                                   rows.token_stride > -limit));
  };
  for (const auto& view :
       {arguments.q, arguments.k, arguments.v, arguments.out, arguments.grad_out})
    check(rows_of(view));
  for (const auto& view : {arguments.grad_q, arguments.grad_k, arguments.grad_v})
    check(rows_of(view));
  if (!vectors) return 0;
  const relative_position& relative = group.windows.relative;
  const std::size_t bytes = size_of(instance.type);
  if (group.position == position_encoding::bias) {
    const int capacity = grid_capacity(bytes, instance.head_dim);
    const std::int64_t edge = relative.quant_length;
    return edge * edge <= capacity ? capacity : 0;
  }
  if (group.position == position_encoding::contextual) {
    const bool radial = relative.kind == relative_kind::spherical;
    const int capacity = contextual_window_capacity(bytes, instance.head_dim);
    if (contextual_window_bytes(radial, true) <= memory_limit) return capacity;
    return contextual_window_bytes(radial, false) <= memory_limit
               ? std::min(capacity, contextual_short_capacity)
               : 0;
  }
  if (relative.kind == relative_kind::grid) return 0;
  return one_pass_capacity(bytes, instance.head_dim);
}

/// Arguments and workspace as the kernels want them, without the groups.
inline backward_problem describe_rows(const attention_backward_arguments<void>& arguments) {
  backward_problem problem;
  problem.q = rows_of(arguments.q);
  problem.k = rows_of(arguments.k);
  problem.v = rows_of(arguments.v);
  problem.out = rows_of(arguments.out);
  problem.grad_out = rows_of(arguments.grad_out);
  problem.grad_q = rows_of(arguments.grad_q);
  problem.grad_k = rows_of(arguments.grad_k);
  problem.grad_v = rows_of(arguments.grad_v);
  problem.lse = static_cast<const float*>(arguments.lse.data);
  problem.lse_token_stride = arguments.lse.stride[0];
  problem.lse_head_stride = arguments.lse.stride[1];
  problem.scale = arguments.scale;
  problem.head_dim = static_cast<int>(arguments.q.shape[2]);
  problem.accumulate = arguments.accumulate;
  problem.zero_unassigned = arguments.zero_unassigned;
  problem.max_tokens = arguments.q.shape[0];
  problem.magnitude_stride = (arguments.q.shape[0] + 15) / 16;
  return problem;
}

/// How the parts of tables lie: as tables do, or as tiles of contextual encoding have their rows, padded
/// and those of linear axes backwards in dTq and dTv.
struct parts_order {
  bool padded = false;
  bool radial = false;
  int head_dim = 0;  ///< padded
};

/// Carves the parts of one table's gradient and notes the sum that is to be made of them.
inline float* take_parts(memory_carver& carver, const tensor_view<void, 4>& gradient,
                         const backward_problem& problem, const parts_order& order, bool backward,
                         parts_sums& sums) noexcept {
  if (gradient.data == nullptr) return nullptr;
  parts_sum& sum = sums.sums[sums.count++];
  sum.rows = static_cast<int>(gradient.shape[0]);
  sum.axes = static_cast<int>(gradient.shape[1]);
  sum.heads = static_cast<int>(gradient.shape[2]);
  sum.dim = static_cast<int>(gradient.shape[3]);
  sum.count = problem.parts_per_head;
  sum.row_stride = gradient.stride[0];
  sum.axis_stride = gradient.stride[1];
  sum.head_stride = gradient.stride[2];
  sum.target = static_cast<float*>(gradient.data);
  sum.row_pitch = order.padded ? tile_rows : sum.rows;
  sum.dim_pitch = order.padded ? order.head_dim : sum.dim;
  if (order.padded && backward) {
    sum.backward_axes = order.radial ? 2 : 3;
    sum.last = sum.rows - (order.radial ? 2 : 1);
  }
  float* parts = carver.take<float>(std::int64_t{sum.heads} * sum.count * sum.axes * sum.row_pitch *
                                    sum.dim_pitch);
  sum.parts = parts;
  return parts;
}

/// A bias gradient [rows, heads] as a table [rows, 1, heads, 1].
inline tensor_view<void, 4> as_table(const tensor_view<void, 2>& bias) noexcept {
  tensor_layout<4> layout;
  layout.shape[0] = bias.shape[0];
  layout.stride[0] = bias.stride[0];
  layout.shape[2] = bias.shape[1];
  layout.stride[2] = bias.stride[1];
  layout.shape[1] = layout.stride[1] = layout.shape[3] = layout.stride[3] = 1;
  return {bias.data, bias.type, layout};
}

/// Of a part of all heads.
inline std::int64_t elements_of(const tensor_view<void, 4>& gradient,
                                const parts_order& order) noexcept {
  if (gradient.data == nullptr) return 0;
  return gradient.shape[1] * gradient.shape[2] *
         (order.padded ? std::int64_t{tile_rows} * order.head_dim
                       : gradient.shape[0] * gradient.shape[3]);
}

/// Lays out the workspace and everything that is launched. `workspace` may be null, to learn the
/// size alone.
inline void make_plan(const attention_backward_arguments<void>& arguments,
                      const backward_instance& instance, void* workspace,
                      backward_plan& plan) noexcept {
  const std::int64_t tokens = arguments.q.shape[0];
  const std::int64_t heads = arguments.q.shape[1];
  const std::size_t memory_limit = shared_memory_limit();
  memory_carver carver(workspace);
  backward_problem common = describe_rows(arguments);
  common.delta = carver.take<float>(heads * tokens);
  common.magnitude = carver.take<std::uint8_t>(heads * common.magnitude_stride);
  plan.sums.accumulate = arguments.accumulate;

  struct slot {
    position_encoding position;
    encoding_path path;
    bool radial;  ///< the contextual encoding has kernels of its own for the radial axis
  };
  constexpr slot slots[max_backward_launches] = {
      {position_encoding::none, encoding_path::tiles, false},
      {position_encoding::contextual, encoding_path::tiles, false},
      {position_encoding::contextual, encoding_path::tiles, true},
      {position_encoding::bias, encoding_path::tiles, false},
      {position_encoding::none, encoding_path::rows, false}};
  for (const slot& wanted : slots) {
    const bool by_rows = wanted.path == encoding_path::rows;
    const auto belongs = [&](const head_group<void>& group) {
      const bool radial = group.position == position_encoding::contextual &&
                          group.windows.relative.kind == relative_kind::spherical;
      return backward_path_of(group, instance, memory_limit) == wanted.path &&
             (by_rows || (group.position == wanted.position && radial == wanted.radial));
    };
    backward_launch& launch = plan.launches[plan.launch_count];
    launch.position = wanted.position;
    launch.path = wanted.path;
    launch.extent.radial = wanted.radial;
    launch.problem = common;
    backward_problem& problem = launch.problem;
    const parts_order order{!by_rows && wanted.position == position_encoding::contextual,
                            wanted.radial, instance.head_dim};
    std::int64_t part_bytes = 0;
    int first_head = 0;
    std::int64_t window_tokens = std::numeric_limits<int>::max();  ///< of a grid's smallest window
    int one_pass = by_rows ? 0 : std::numeric_limits<int>::max();
    for (int g = 0; g < arguments.group_count; ++g) {
      const head_group<void>& group = arguments.groups[g];
      if (belongs(group)) {
        group_problem& described = problem.groups[problem.group_count++].problem;
        described = describe(group, arguments.q.type);
        described.path = wanted.path;
        described.first_index = problem.heads;
        described.first_head = first_head;
        problem.heads += group.heads;
        const std::int64_t edge = described.quant_length;
        window_tokens = std::min(window_tokens, edge * edge);
        one_pass = std::min(one_pass, one_pass_of(group, arguments, instance, memory_limit));
        if (group.position == position_encoding::bias)
          launch.extent.bias_rows =
              std::max(launch.extent.bias_rows, group.windows.relative.bias_rows());
        if (arguments.group_gradients != nullptr) {
          const head_group_gradients<void>& gradients = arguments.group_gradients[g];
          part_bytes +=
              4 * (elements_of(gradients.table_q, order) + elements_of(gradients.table_k, order) +
                   elements_of(gradients.table_v, order) +
                   elements_of(as_table(gradients.bias_table), order));
        }
      }
      first_head += group.heads;
    }
    if (problem.group_count == 0) continue;
    ++plan.launch_count;

    constexpr std::int64_t most_blocks = (std::int64_t{1} << 31) - 1;  // of a grid
    // Short windows have a block for each so many slots.
    if (wanted.position == position_encoding::none &&
        tokens / (window_range * window_warps) >= most_blocks / problem.heads)
      one_pass = 0;
    problem.one_pass = one_pass;
    problem.by_warpgroups = one_pass > 0 && wanted.position == position_encoding::none &&
                            tokens >= wgmma_tokens && instance.hopper_tiles != nullptr &&
                            is_hopper();
    std::int64_t rows_a_block = 1;
    if (one_pass > 0 && wanted.position != position_encoding::contextual)
      rows_a_block = wanted.position == position_encoding::bias ? window_tokens : long_rows;
    else if (!by_rows)
      rows_a_block =
          tune_backward(size_of(instance.type), instance.head_dim, wanted.position).rows();
    std::int64_t blocks = std::max<std::int64_t>(1, (tokens + rows_a_block - 1) / rows_a_block);
    if (by_rows) blocks = std::min(blocks, std::max<std::int64_t>(1, row_blocks / problem.heads));
    // Beyond that each takes several tiles.
    blocks = std::min(blocks, most_blocks / problem.heads);
    if (part_bytes > 0 || wanted.position == position_encoding::contextual) {
      const int enough = by_rows                                            ? summing_rows
                         : wanted.position == position_encoding::contextual ? contextual_blocks
                                                                            : summing_blocks;
      blocks = std::min<std::int64_t>(blocks, std::max(1, enough / problem.heads));
    }
    std::int64_t part_count = blocks;
    if (one_pass > 0 && wanted.position == position_encoding::contextual)
      part_count = std::max(
          blocks, std::min<std::int64_t>((tokens + 63) / 64,
                                         contextual_window_blocks(wanted.radial) / problem.heads));
    std::int64_t long_count = 0;
    if (one_pass > contextual_short_capacity && wanted.position == position_encoding::contextual)
      long_count =
          std::min<std::int64_t>(part_count, contextual_long_parts(problem.heads, wanted.radial));
    // Every launch with parts gets its share of the limit; there are at most four.
    if (part_bytes > 0) {
      const std::int64_t limit = std::max<std::int64_t>(2, table_parts_limit / 4 / part_bytes);
      long_count = std::min(long_count, limit / 2);
      part_count = std::min(part_count, limit - long_count);
      blocks = std::min(blocks, part_count);
    }
    if (one_pass > 0 && wanted.position == position_encoding::none)
      blocks = std::min<std::int64_t>(blocks,
                                      std::max(1, long_blocks(instance.head_dim) / problem.heads));
    problem.blocks_per_head = static_cast<int>(blocks);
    problem.short_parts = static_cast<int>(std::max(part_count, blocks));
    problem.parts_per_head = problem.short_parts + static_cast<int>(long_count);
    problem.long_whole = contextual_long_whole(problem.heads, static_cast<int>(long_count));
    if (one_pass > 0 && wanted.position == position_encoding::contextual)
      problem.prices = carver.take<std::uint32_t>(problem.group_count * contextual_priced_ranges);

    int index = 0;
    for (int g = 0; g < arguments.group_count && arguments.group_gradients != nullptr; ++g) {
      if (!belongs(arguments.groups[g])) continue;
      table_parts& parts = problem.groups[index++].parts;
      const head_group_gradients<void>& gradients = arguments.group_gradients[g];
      parts.table_q = take_parts(carver, gradients.table_q, problem, order, true, plan.sums);
      parts.table_k = take_parts(carver, gradients.table_k, problem, order, false, plan.sums);
      parts.table_v = take_parts(carver, gradients.table_v, problem, order, true, plan.sums);
      parts.bias =
          take_parts(carver, as_table(gradients.bias_table), problem, order, false, plan.sums);
      launch.key_side_sums |= gradients.table_k.data != nullptr;
    }
  }
  plan.workspace_bytes = carver.used();
}

/// Finds the instance, or says why there is none.
template <int Count>
status choose_instance(const backward_instance (&instances)[Count],
                       const attention_backward_arguments<void>& arguments,
                       const backward_instance*& instance) noexcept {
  const dtype type = arguments.q.type;
  if (type == dtype::float64)
    return status::failure(status_code::unsupported,
                           "q: dtype is float64, the device takes float32, float16 or bfloat16");
  instance = find_instance(instances, type, arguments.q.shape[2]);
  if (instance == nullptr)
    return status::failure(status_code::unsupported,
                           "q: %s with head dim %lld was not compiled; there are %s",
                           to_string(type), static_cast<long long>(arguments.q.shape[2]),
                           instance_list(instances).text);
  return {};
}

/// The size of the workspace; 0 for arguments that the call rejects.
template <int Count>
std::size_t attention_backward_workspace_bytes(
    const backward_instance (&instances)[Count],
    const attention_backward_arguments<void>& arguments) noexcept {
  const backward_instance* instance = nullptr;
  if (!validate(arguments).ok() || !choose_instance(instances, arguments, instance).ok()) return 0;
  backward_plan plan;
  make_plan(arguments, *instance, nullptr, plan);
  return plan.workspace_bytes;
}

inline cudaError_t launch_side(const backward_launch& launch, const backward_instance& instance,
                               backward_side side, cudaStream_t stream) noexcept {
  if (launch.path == encoding_path::rows) return instance.rows(launch.problem, side, stream);
  const cudaError_t error = instance.tiles[static_cast<int>(launch.position)](
      launch.problem, launch.extent, side, stream);
  if (error != cudaSuccess || !launch.problem.by_warpgroups) return error;
  return instance.hopper_tiles(launch.problem, side, stream);
}

/// The whole call over the instances that someone compiled.
template <int Count>
status attention_backward(const backward_instance (&instances)[Count],
                          const attention_backward_arguments<void>& arguments, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  WINNOW_TRY(validate(arguments));
  const backward_instance* instance = nullptr;
  WINNOW_TRY(choose_instance(instances, arguments, instance));
  WINNOW_REQUIRE(workspace != nullptr || workspace_bytes == 0,
                 "workspace: is null, its size is given as %zu bytes", workspace_bytes);
  WINNOW_REQUIRE(is_aligned(workspace, 16), "workspace: address %p is not aligned to 16 bytes",
                 workspace);
  backward_plan plan;
  make_plan(arguments, *instance, workspace, plan);
  if (workspace_bytes < plan.workspace_bytes)
    return status::failure(status_code::workspace_too_small,
                           "workspace_bytes: %zu, the call needs %zu", workspace_bytes,
                           plan.workspace_bytes);
  cudaError_t error = cudaSuccess;
  // Key tiles read the deltas that query tiles write.
  for (int l = 0; l < plan.launch_count && error == cudaSuccess; ++l)
    error = launch_side(plan.launches[l], *instance, backward_side::query, stream);
  for (int l = 0; l < plan.launch_count && error == cudaSuccess; ++l) {
    const backward_launch& launch = plan.launches[l];
    if (launch.key_side_sums || arguments.grad_k.data != nullptr ||
        arguments.grad_v.data != nullptr)
      error = launch_side(launch, *instance, backward_side::key, stream);
  }
  if (error == cudaSuccess) error = launch_parts_sums<summing_warps>(plan.sums, stream);
  if (error != cudaSuccess)
    return status::failure(status_code::cuda_error, "attention_backward: %s",
                           cudaGetErrorString(error));
  return {};
}

}  // namespace winnow::detail
