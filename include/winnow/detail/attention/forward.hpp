// SPDX-License-Identifier: Apache-2.0
/// \file
/// Host side of the forward call: from checked arguments to launches.
/// Needs the CUDA toolkit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/erase.hpp"
#include "winnow/detail/attention/forward_launch.hpp"
#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

inline bool is_aligned(const void* data, std::int64_t bytes) noexcept {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes) == 0;
}

/// Do `data` and every step of the strides keep to multiples of `bytes`?
template <class... Strides>
bool steps_are_aligned(const void* data, std::int64_t bytes, dtype type,
                       Strides... strides) noexcept {
  const auto size = static_cast<std::int64_t>(size_of(type));
  // The remainder first: the stride of a dimension of one may be anything.
  return is_aligned(data, bytes) && ((strides % bytes * size % bytes == 0) && ...);
}

template <class View>
row_view rows_of(const View& view) noexcept {
  return {view.data, view.stride[0], view.stride[1],
          view.stride[0] < std::int64_t{1} << 31 && view.stride[0] > -(std::int64_t{1} << 31) &&
              steps_are_aligned(view.data, 16, view.type, view.stride[0], view.stride[1])};
}

inline table_view table_of(const tensor_view<const void, 4>& table, dtype storage) noexcept {
  if (table.data == nullptr) return {};
  return {table.data,
          table.stride[0],
          table.stride[1],
          table.stride[2],
          table.type == dtype::float32 && storage != dtype::float32,
          steps_are_aligned(table.data, 16, table.type, table.stride[0], table.stride[1],
                            table.stride[2])};
}

/// Tiles read tables four elements at a time, at offsets of 32 bits.
inline bool suits_tiles(const tensor_view<const void, 4>& table) noexcept {
  if (table.data == nullptr) return true;
  std::int64_t reach = 0;
  for (int d = 0; d < 4; ++d) {
    const std::int64_t steps = table.shape[d] > 0 ? table.shape[d] - 1 : 0;
    const std::int64_t limit = std::int64_t{1} << 30;
    if (table.stride[d] < 0 || table.stride[d] > limit || steps * table.stride[d] > limit)
      return false;
    reach += steps * table.stride[d];
  }
  return reach < std::int64_t{1} << 30 &&
         steps_are_aligned(table.data, 4 * static_cast<std::int64_t>(size_of(table.type)),
                           table.type, table.stride[0], table.stride[1], table.stride[2]);
}

/// \param scale tiles take the maximum of logits before they scale them, so it has to be positive.
inline encoding_path path_of(const head_group<void>& group, float scale = 1.0f) noexcept {
  const relative_position& relative = group.windows.relative;
  bool fits = scale > 0.0f;
  if (group.position == position_encoding::contextual)
    fits = fits && relative.quant_length <= tile_cells && suits_tiles(group.table_q) &&
           suits_tiles(group.table_k) && suits_tiles(group.table_v);
  if (group.position == position_encoding::bias)
    fits = fits && relative.bias_rows() <= tile_bias_rows;
  return fits ? encoding_path::tiles : encoding_path::rows;
}

inline group_problem describe(const head_group<void>& group, dtype storage,
                              float scale = 1.0f) noexcept {
  group_problem result;
  const partition& windows = group.windows;
  result.path = path_of(group, scale);
  result.position = group.position;
  result.heads = group.heads;
  // Plain attention needs positions for nothing but the seam.
  const bool needed =
      group.position != position_encoding::none || windows.relative.kind == relative_kind::grid;
  result.kind = needed ? windows.relative.kind : relative_kind::none;
  result.quant_length = windows.relative.quant_length;
  if (result.kind == relative_kind::spherical)
    result.inverse_a = 1.0f / windows.relative.exponential_a;
  result.max_tokens = windows.max_tokens;
  result.counts = windows.counts;
  result.order = windows.order;
  result.offsets = windows.offsets;
  result.bounds = windows.bounds;
  result.positions = windows.position;
  result.radius = windows.radius;
  result.table_q = table_of(group.table_q, storage);
  result.table_k = table_of(group.table_k, storage);
  result.table_v = table_of(group.table_v, storage);
  result.bias = group.bias_table.data;
  result.bias_row_stride = group.bias_table.stride[0];
  result.bias_head_stride = group.bias_table.stride[1];
  result.bias_is_float = group.bias_table.type == dtype::float32 && storage != dtype::float32;
  return result;
}

/// The groups of one position encoding, and the launch that serves them.
inline forward_problem describe(const attention_forward_arguments<void>& arguments,
                                position_encoding position, launch_extent& extent) noexcept {
  forward_problem problem;
  problem.q = rows_of(arguments.q);
  problem.k = rows_of(arguments.k);
  problem.v = rows_of(arguments.v);
  problem.out = rows_of(arguments.out);
  problem.lse = static_cast<float*>(arguments.lse.data);
  problem.lse_token_stride = arguments.lse.stride[0];
  problem.lse_head_stride = arguments.lse.stride[1];
  problem.scale = arguments.scale;
  problem.head_dim = static_cast<int>(arguments.q.shape[2]);
  problem.zero_unassigned = arguments.zero_unassigned;
  extent = {arguments.q.shape[0], 0, 0};
  int first_head = 0;
  for (int g = 0; g < arguments.group_count; ++g) {
    const head_group<void>& group = arguments.groups[g];
    if (group.position == position) {
      group_problem& described = problem.groups[problem.group_count++];
      described = describe(group, arguments.q.type, arguments.scale);
      described.first_index = extent.heads;
      described.first_head = first_head;
      extent.heads += group.heads;
      if (described.path == encoding_path::tiles && position == position_encoding::bias)
        extent.bias_rows = std::max(extent.bias_rows, group.windows.relative.bias_rows());
    }
    first_head += group.heads;
  }
  return problem;
}

/// One compiled pair of storage type and padded head dim, with a launcher for each encoding.
struct forward_instance {
  dtype type;
  int head_dim;
  forward_launcher launch[3];  ///< by position_encoding
  forward_launcher hopper_launch = nullptr;
  forward_launcher hopper_spherical_launch = nullptr;
};

/// \tparam Hopper have kernels for sm_90a been compiled?
template <class T, int D, bool Hopper = false>
constexpr forward_instance instance_of() noexcept {
  forward_instance instance{dtype_of<T>,
                            D,
                            {launch_forward<T, D, position_encoding::none>,
                             launch_forward<T, D, position_encoding::contextual>,
                             launch_forward<T, D, position_encoding::bias>}};
  if constexpr (Hopper && takes_wgmma(sizeof(T), D))
    instance.hopper_launch = launch_wgmma_forward<T, D>;
  if constexpr (Hopper && takes_contextual_ring(sizeof(T), D))
    instance.hopper_spherical_launch = launch_contextual_ring<T>;
  return instance;
}

/// The smallest instance that holds the head dim; null: none was compiled.
template <class Instance, int Count>
const Instance* find_instance(const Instance (&instances)[Count], dtype type,
                              std::int64_t head_dim) noexcept {
  const Instance* found = nullptr;
  for (const Instance& instance : instances)
    if (instance.type == type && instance.head_dim >= head_dim &&
        (found == nullptr || instance.head_dim < found->head_dim))
      found = &instance;
  return found;
}

/// "float16 x 16, float16 x 32, ..." for the message about an instance that is missing.
struct instance_list {
  char text[200] = {};
  template <class Instance, int Count>
  explicit instance_list(const Instance (&instances)[Count]) noexcept {
    int used = 0;
    for (const Instance& instance : instances)
      if (used < static_cast<int>(sizeof text) - 24)
        used += std::snprintf(text + used, sizeof text - static_cast<std::size_t>(used),
                              "%s%s up to %d", used ? ", " : "", to_string(instance.type),
                              instance.head_dim);
  }
};

/// The whole call over the instances that someone compiled.
template <int Count>
status attention_forward(const forward_instance (&instances)[Count],
                         const attention_forward_arguments<void>& arguments,
                         cudaStream_t stream) noexcept {
  WINNOW_TRY(validate(arguments));
  const dtype type = arguments.q.type;
  if (type == dtype::float64)
    return status::failure(status_code::unsupported,
                           "q: dtype is float64, the device takes float32, float16 or bfloat16");
  const forward_instance* instance = find_instance(instances, type, arguments.q.shape[2]);
  if (instance == nullptr)
    return status::failure(status_code::unsupported,
                           "q: %s with head dim %lld was not compiled; there are %s",
                           to_string(type), static_cast<long long>(arguments.q.shape[2]),
                           instance_list(instances).text);
  if (arguments.q.shape[0] == 0) return {};
  for (const position_encoding position :
       {position_encoding::none, position_encoding::contextual, position_encoding::bias}) {
    launch_extent extent;
    const forward_problem problem = describe(arguments, position, extent);
    extent.hopper_launch = instance->hopper_launch;
    extent.hopper_spherical_launch = instance->hopper_spherical_launch;
    if (problem.group_count == 0) continue;
    const cudaError_t error = instance->launch[static_cast<int>(position)](problem, extent, stream);
    if (error != cudaSuccess)
      return status::failure(status_code::cuda_error, "attention_forward: %s",
                             cudaGetErrorString(error));
  }
  return {};
}

}  // namespace winnow::detail
