// SPDX-License-Identifier: Apache-2.0
#include "device_memory.hpp"

// ---
#include <functional>

#include "winnow/winnow.hpp"

/// The windows of a frame: cubic ones for the first half of the heads, spherical ones for the rest.
struct frame_windows {
  winnow::point_partition kinds[2];
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

/// Once a model: memory for frames of up to N points, from the engine's own allocator.
winnow::status reserve(const winnow::point_set& points,
                       const std::function<void*(std::size_t)>& allocate_on_device,
                       frame_windows& windows) {
  winnow::cubic_window cube;
  cube.size = {0.3f, 0.3f, 0.3f};
  cube.quant_length = 24;
  winnow::spherical_window sphere;
  sphere.size = {2.0f, 2.0f, 80.0f};  // degrees, degrees, metres
  sphere.quant_length = 24;
  sphere.exponential_a = 0.0125f;
  windows.kinds[0].window = cube;
  windows.kinds[1].window = sphere;

  const std::int64_t tokens = points.coordinates.shape[0];
  const winnow::partition_shape shapes[] = {shape_of(cube, tokens), shape_of(sphere, tokens)};
  for (int kind = 0; kind < 2; ++kind) {
    const std::size_t bytes = partition_bytes(shapes[kind]);
    WINNOW_TRY(
        bind_partition(shapes[kind], allocate_on_device(bytes), bytes, windows.kinds[kind].result));
  }
  windows.workspace_bytes = build_partitions_workspace_bytes(windows.kinds, 2, points);
  windows.workspace = allocate_on_device(windows.workspace_bytes);
  return {};
}

/// Once a frame: which point lies in which window. All layers of the stage use it.
winnow::status partition_frame(const frame_windows& windows, const winnow::point_set& points,
                               cudaStream_t stream) {
  return build_partitions(windows.kinds, 2, points, {}, windows.workspace, windows.workspace_bytes,
                          stream);
}

/// A layer's learned tables on the device: of the cubic heads, of the spherical heads.
struct layer_tables {
  const winnow::half* query[2];
  const winnow::half* key[2];
  const winnow::half* value[2];
};

/// A layer's call. `arguments` points to `groups`, so a layer stays where it is.
struct layer {
  winnow::head_group<winnow::half> groups[2];
  winnow::attention_forward_arguments<winnow::half> arguments;
};

/// Once a layer: q, k and v are slices of one [N, 3, heads, dim] array, as one linear makes it.
void describe(const frame_windows& windows, const layer_tables& tables, const winnow::half* qkv,
              std::int64_t heads, std::int64_t dim, winnow::half* out, float* lse, layer& result) {
  for (int kind = 0; kind < 2; ++kind) {
    winnow::head_group<winnow::half>& group = result.groups[kind];
    group.heads = static_cast<int>(kind == 0 ? heads / 2 : heads - heads / 2);
    group.windows = windows.kinds[kind].result;
    group.position = winnow::position_encoding::contextual;
    const std::int64_t shape[] = {group.windows.relative.table_rows(), 3, group.heads, dim};
    group.table_q = {tables.query[kind], shape};
    group.table_k = {tables.key[kind], shape};
    group.table_v = {tables.value[kind], shape};
  }
  const std::int64_t tokens = windows.kinds[0].result.max_tokens;
  const winnow::tensor_layout<3> slice = {{tokens, heads, dim}, {3 * heads * dim, dim, 1}};
  result.arguments.q = {qkv, slice};
  result.arguments.k = {qkv + heads * dim, slice};
  result.arguments.v = {qkv + 2 * heads * dim, slice};
  result.arguments.out = {out, {tokens, heads, dim}};
  result.arguments.lse = {lse, {tokens, heads}};  // for training; an engine leaves it out
  result.arguments.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  result.arguments.groups = result.groups;
  result.arguments.group_count = 2;
}

/// Once a frame and layer. `workspace` has attention_forward_workspace_bytes(arguments) bytes.
winnow::status attend(const layer& call, void* workspace, std::size_t workspace_bytes,
                      cudaStream_t stream) {
  return attention_forward(call.arguments, workspace, workspace_bytes, stream);
}
// ---

int main() {
  skip_without_gpu();
  constexpr std::int64_t tokens = 400;
  constexpr std::int64_t heads = 3;
  constexpr std::int64_t dim = 16;
  const std::vector<float> xyz = numbers(tokens * 3, 1);
  winnow::point_set points;
  points.coordinates = winnow::tensor_view<const float, 2>(to_device(xyz), {tokens, 3});
  frame_windows windows;
  check(reserve(points, allocate, windows));
  check(partition_frame(windows, points, nullptr));

  // Two layers with tables and inputs of their own, on the same partitions; the host says what is
  // right.
  for (std::uint32_t seed = 10; seed <= 20; seed += 10) {
    const std::vector<winnow::half> qkv = halves(numbers(tokens * 3 * heads * dim, seed));
    std::vector<winnow::half> tables[2][3];
    layer_tables on_device{};
    for (int kind = 0; kind < 2; ++kind) {
      const std::int64_t size = (kind == 0 ? 47 : 48) * 3 * (1 + kind) * dim;
      for (std::uint32_t t = 0; t < 3; ++t) tables[kind][t] = halves(numbers(size, seed + t + 1));
      on_device.query[kind] = to_device(tables[kind][0]);
      on_device.key[kind] = to_device(tables[kind][1]);
      on_device.value[kind] = to_device(tables[kind][2]);
    }
    auto* out = static_cast<winnow::half*>(allocate(tokens * heads * dim * 2));
    auto* lse = static_cast<float*>(allocate(tokens * heads * 4));
    layer call;
    describe(windows, on_device, to_device(qkv), heads, dim, out, lse, call);
    const std::size_t bytes = attention_forward_workspace_bytes(call.arguments);
    check(attend(call, allocate(bytes), bytes, nullptr));
    const std::vector<float> result = floats(to_host(out, tokens * heads * dim));

    winnow::point_set host_points;
    host_points.coordinates = winnow::tensor_view<const float, 2>(xyz.data(), {tokens, 3});
    const auto& cube = std::get<winnow::cubic_window>(windows.kinds[0].window);
    const auto& sphere = std::get<winnow::spherical_window>(windows.kinds[1].window);
    const winnow::reference::host_partition cubic(shape_of(cube, tokens));
    const winnow::reference::host_partition spherical(shape_of(sphere, tokens));
    check(winnow::reference::build_partition(cube, host_points, cubic.view()));
    check(winnow::reference::build_partition(sphere, host_points, spherical.view()));
    frame_windows host_windows = windows;
    host_windows.kinds[0].result = cubic.view();
    host_windows.kinds[1].result = spherical.view();
    layer_tables on_host{};
    for (int kind = 0; kind < 2; ++kind) {
      on_host.query[kind] = tables[kind][0].data();
      on_host.key[kind] = tables[kind][1].data();
      on_host.value[kind] = tables[kind][2].data();
    }
    std::vector<winnow::half> expected(result.size());
    std::vector<float> expected_lse(tokens * heads);
    layer host_call;
    describe(host_windows, on_host, qkv.data(), heads, dim, expected.data(), expected_lse.data(),
             host_call);
    check(winnow::reference::attention_forward<float>(host_call.arguments));
    for (std::size_t i = 0; i < result.size(); ++i)
      check(std::fabs(result[i] - winnow::to_float(expected[i])) < 0.02f, "out: not the host's");
  }
}
