// SPDX-License-Identifier: Apache-2.0
#include "device_memory.hpp"

// ---
#include "winnow/winnow.hpp"

/// What a layer's backward adds to its forward, all on the device. The gradients of tables are in
/// float, with the tables' shapes.
struct layer_gradients {
  winnow::head_group_gradients<winnow::half> tables[2];
  winnow::attention_backward_arguments<winnow::half> arguments;
};

/// \param forward the arguments of the forward call, its results included.
/// \param grad_qkv one [N, 3, heads, dim] array, as q, k and v are slices of one.
void describe(const winnow::attention_forward_arguments<winnow::half>& forward,
              const winnow::half* grad_out, winnow::half* grad_qkv, layer_gradients& result) {
  const std::int64_t tokens = forward.q.shape[0];
  const std::int64_t heads = forward.q.shape[1];
  const std::int64_t dim = forward.q.shape[2];
  const winnow::tensor_layout<3> slice = {{tokens, heads, dim}, {3 * heads * dim, dim, 1}};
  result.arguments.q = forward.q;
  result.arguments.k = forward.k;
  result.arguments.v = forward.v;
  result.arguments.out = forward.out;
  result.arguments.lse = forward.lse;
  result.arguments.grad_out = {grad_out, {tokens, heads, dim}};
  result.arguments.grad_q = {grad_qkv, slice};
  result.arguments.grad_k = {grad_qkv + heads * dim, slice};
  result.arguments.grad_v = {grad_qkv + 2 * heads * dim, slice};
  result.arguments.scale = forward.scale;
  result.arguments.groups = forward.groups;
  result.arguments.group_count = forward.group_count;
  result.arguments.group_gradients = result.tables;
}

/// `workspace` has attention_backward_workspace_bytes(arguments) bytes; layers may share it.
winnow::status differentiate(const layer_gradients& call, void* workspace,
                             std::size_t workspace_bytes, cudaStream_t stream) {
  return attention_backward(call.arguments, workspace, workspace_bytes, stream);
}
// ---

int main() {
  skip_without_gpu();
  constexpr std::int64_t tokens = 60;
  constexpr std::int64_t dim = 16;
  std::vector<std::int32_t> labels, positions;
  for (std::int32_t i = 0; i < tokens; ++i) {
    labels.push_back(i % 7);
    for (int axis = 0; axis < 3; ++axis) positions.push_back((i * (axis + 3)) % 4);
  }
  const winnow::labels_window window{4, 0.0f};
  const auto describe_labels = [&](const std::int32_t* ids, const std::int32_t* cells) {
    winnow::label_set set;
    set.labels = ids;
    set.tokens = tokens;
    set.positions = cells;
    return set;
  };
  const winnow::label_set set = describe_labels(to_device(labels), to_device(positions));
  const winnow::partition_shape shape = shape_of(window, set);
  winnow::head_group<winnow::half> group;
  group.heads = 1;
  group.position = winnow::position_encoding::contextual;
  check(bind_partition(shape, allocate(partition_bytes(shape)), partition_bytes(shape),
                       group.windows));
  const std::size_t build_bytes = build_partition_workspace_bytes(window, set);
  check(
      build_partition(window, set, {}, group.windows, allocate(build_bytes), build_bytes, nullptr));

  const std::vector<winnow::half> qkv = halves(numbers(tokens * 3 * dim, 1));
  const std::vector<winnow::half> table = halves(numbers(7 * 3 * dim, 2));
  const std::vector<winnow::half> grad_out = halves(numbers(tokens * dim, 3));
  const std::int64_t table_shape[] = {7, 3, 1, dim};
  group.table_q = {to_device(table), table_shape};
  const winnow::tensor_layout<3> slice = {{tokens, 1, dim}, {3 * dim, dim, 1}};
  const auto* device_qkv = to_device(qkv);
  winnow::attention_forward_arguments<winnow::half> forward;
  forward.q = {device_qkv, slice};
  forward.k = {device_qkv + dim, slice};
  forward.v = {device_qkv + 2 * dim, slice};
  forward.out = {static_cast<winnow::half*>(allocate(tokens * dim * 2)), {tokens, 1, dim}};
  forward.lse = {static_cast<float*>(allocate(tokens * 4)), {tokens, 1}};
  forward.scale = 0.25f;
  forward.groups = &group;
  forward.group_count = 1;
  const std::size_t forward_bytes = attention_forward_workspace_bytes(forward);
  check(attention_forward(forward, allocate(forward_bytes), forward_bytes, nullptr));

  auto* grad_qkv = static_cast<winnow::half*>(allocate(qkv.size() * 2));
  auto* grad_table = static_cast<float*>(allocate(table.size() * 4));
  layer_gradients call;
  call.tables[0].table_q = {grad_table, table_shape};
  describe(forward, to_device(grad_out), grad_qkv, call);
  const std::size_t bytes = attention_backward_workspace_bytes(call.arguments);
  check(differentiate(call, allocate(bytes), bytes, nullptr));
  const std::vector<float> result = floats(to_host(grad_qkv, tokens * 3 * dim));
  const std::vector<float> table_result = to_host(grad_table, 7 * 3 * dim);

  // The host says what is right.
  const winnow::label_set host_set = describe_labels(labels.data(), positions.data());
  const winnow::reference::host_partition windows(shape_of(window, host_set));
  check(winnow::reference::build_partition(window, host_set, windows.view()));
  group.windows = windows.view();
  group.table_q = {table.data(), table_shape};
  std::vector<winnow::half> out(tokens * dim), expected(qkv.size());
  std::vector<float> lse(tokens), expected_table(table.size());
  forward.q = {qkv.data(), slice};
  forward.k = {qkv.data() + dim, slice};
  forward.v = {qkv.data() + 2 * dim, slice};
  forward.out = {out.data(), {tokens, 1, dim}};
  forward.lse = {lse.data(), {tokens, 1}};
  check(winnow::reference::attention_forward<float>(forward));
  layer_gradients host_call;
  host_call.tables[0].table_q = {expected_table.data(), table_shape};
  describe(forward, grad_out.data(), expected.data(), host_call);
  check(winnow::reference::attention_backward<float>(host_call.arguments));
  for (std::size_t i = 0; i < result.size(); ++i)
    check(std::fabs(result[i] - winnow::to_float(expected[i])) < 0.02f, "grad_qkv: not the host's");
  for (std::size_t i = 0; i < table_result.size(); ++i)
    check(std::fabs(table_result[i] - expected_table[i]) < 0.02f, "grad_table: not the host's");
}
