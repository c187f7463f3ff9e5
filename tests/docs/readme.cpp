// SPDX-License-Identifier: Apache-2.0
#include "device_memory.hpp"

// ---
#include <functional>

#include "winnow/winnow.hpp"

/// Attention of a LiDAR scan on the GPU: each point attends to the points in its cube of 0.3 m, and a
/// learned table [47, 3, 2, 16] says what their relative positions mean to the query.
/// \param allocate gives device memory; winnow itself has none.
/// \param xyz, qkv, table_q, out device memory: [points, 3], [points, 3, 2, 16], the table, [points, 2, 16].
winnow::status attend(const std::function<void*(std::size_t)>& allocate, std::int64_t points,
                      const float* xyz, const winnow::half* qkv, const winnow::half* table_q,
                      winnow::half* out, cudaStream_t stream) {
  constexpr int heads = 2, dim = 16;
  winnow::cubic_window window;
  window.size = {0.3f, 0.3f, 0.3f};
  window.quant_length = 24;  // positions along an edge

  // Which point lies in which window: built once a frame, used by every layer, forward and backward.
  winnow::point_set scan;
  scan.coordinates = winnow::tensor_view<const float, 2>(xyz, {points, 3});
  winnow::head_group<winnow::half> group;
  const winnow::partition_shape shape = shape_of(window, points);
  const std::size_t bytes = partition_bytes(shape);
  const std::size_t workspace = build_partition_workspace_bytes(window, scan);
  WINNOW_TRY(bind_partition(shape, allocate(bytes), bytes, group.windows));
  WINNOW_TRY(
      build_partition(window, scan, {}, group.windows, allocate(workspace), workspace, stream));

  group.heads = heads;
  group.position = winnow::position_encoding::contextual;
  group.table_q = {table_q, {group.windows.relative.table_rows(), 3, heads, dim}};
  winnow::attention_forward_arguments<winnow::half> call;
  const winnow::tensor_layout<3> slice = {{points, heads, dim}, {3 * heads * dim, dim, 1}};
  call.q = {qkv, slice};
  call.k = {qkv + heads * dim, slice};
  call.v = {qkv + 2 * heads * dim, slice};
  call.out = {out, {points, heads, dim}};
  call.scale = 0.25f;  // 1 / sqrt(dim)
  call.groups = &group;
  call.group_count = 1;
  return attention_forward(call, nullptr, 0, stream);
}
// ---

int main() {
  skip_without_gpu();
  constexpr std::int64_t points = 300, width = 2 * 16;
  const std::vector<float> xyz = numbers(points * 3, 1);
  const std::vector<winnow::half> qkv = halves(numbers(points * 3 * width, 2));
  const std::vector<winnow::half> table = halves(numbers(47 * 3 * width, 3));
  auto* out = static_cast<winnow::half*>(allocate(points * width * 2));
  check(attend(allocate, points, to_device(xyz), to_device(qkv), to_device(table), out, nullptr));
  const std::vector<float> result = floats(to_host(out, points * width));

  winnow::cubic_window window;
  window.size = {0.3f, 0.3f, 0.3f};
  window.quant_length = 24;
  winnow::point_set scan;
  scan.coordinates = winnow::tensor_view<const float, 2>(xyz.data(), {points, 3});
  const winnow::reference::host_partition windows(shape_of(window, points));
  check(winnow::reference::build_partition(window, scan, windows.view()));
  winnow::head_group<winnow::half> group;
  group.heads = 2;
  group.windows = windows.view();
  group.position = winnow::position_encoding::contextual;
  group.table_q = {table.data(), {47, 3, 2, 16}};
  const winnow::tensor_layout<3> slice = {{points, 2, 16}, {3 * width, 16, 1}};
  std::vector<winnow::half> expected(result.size());
  winnow::attention_forward_arguments<winnow::half> call;
  call.q = {qkv.data(), slice};
  call.k = {qkv.data() + width, slice};
  call.v = {qkv.data() + 2 * width, slice};
  call.out = {expected.data(), {points, 2, 16}};
  call.scale = 0.25f;
  call.groups = &group;
  call.group_count = 1;
  check(winnow::reference::attention_forward<float>(call));
  for (std::size_t i = 0; i < result.size(); ++i)
    check(std::fabs(result[i] - winnow::to_float(expected[i])) < 0.01f, "out: not the host's");
}
