// SPDX-License-Identifier: Apache-2.0
/// \file
/// A backward problem in device memory, and its check against the host's reference in double.
#pragma once

#include <string>
#include <vector>

#include "support/attention_scenes.hpp"
#include "support/device_attention.hpp"

namespace winnow::test {

/// Runs the reference's forward in double and rounds out and LSE into the problem.
template <class T>
void prepare_forward(attention_case<T>& problem) {
  attention_case<double> exact = problem.widened();
  WINNOW_ASSERT_OK(reference::attention_forward<double>(exact.forward()));
  for (std::size_t i = 0; i < exact.out.size(); ++i)
    problem.out[i] = from_float<T>(static_cast<float>(exact.out[i]));
  for (std::size_t i = 0; i < exact.lse.size(); ++i)
    problem.lse[i] = static_cast<float>(exact.lse[i]);
}

/// An `attention_case` on the device with its gradients, which start poisoned, and a workspace of
/// exactly the size that the call asks for.
template <class T, class Table = T>
class device_gradients {
 public:
  /// \param host has been through `prepare_forward`.
  explicit device_gradients(const attention_case<T>& host)
      : inputs(host),
        grad_out(host.grad_out),
        grad_q(size_of_rows(host)),
        grad_k(size_of_rows(host)),
        grad_v(size_of_rows(host)) {
    inputs.out.copy_from(host.out);
    inputs.lse.copy_from(host.lse);
    for (std::size_t g = 0; g < host.groups.size(); ++g) {
      const group_data<T>& data = host.groups[g];
      const auto like = [](const std::vector<T>& table) {
        return device_array<float>(static_cast<std::int64_t>(table.size()));
      };
      tables.push_back(
          {like(data.table_q), like(data.table_k), like(data.table_v), like(data.bias)});
      const head_group<Table>& group = inputs.groups[g];
      head_group_gradients<T> gradients;
      gradients.table_q = view(tables.back().table_q, group.table_q);
      gradients.table_k = view(tables.back().table_k, group.table_k);
      gradients.table_v = view(tables.back().table_v, group.table_v);
      if (tables.back().bias.size() > 0)
        gradients.bias_table = {tables.back().bias.data(), group.bias_table};
      group_gradients.push_back(gradients);
    }
    const std::size_t bytes = attention_backward_workspace_bytes(arguments());
    workspace = device_array<unsigned char>(static_cast<std::int64_t>(bytes));
  }

  /// Points into this object.
  [[nodiscard]] attention_backward_arguments<T, Table> arguments() {
    const auto forward = inputs.forward();
    attention_backward_arguments<T, Table> result;
    result.q = forward.q;
    result.k = forward.k;
    result.v = forward.v;
    result.out = forward.out;
    result.lse = tensor_view<const float, 2>(forward.lse);
    result.grad_out = inputs.rows(grad_out);
    result.grad_q = inputs.rows(grad_q);
    result.grad_k = inputs.rows(grad_k);
    result.grad_v = inputs.rows(grad_v);
    result.scale = forward.scale;
    result.groups = forward.groups;
    result.group_gradients = group_gradients.data();
    result.group_count = forward.group_count;
    return result;
  }

  status submit(const attention_backward_arguments<T, Table>& call, cudaStream_t stream) const {
    return attention_backward(call, workspace.data(), workspace.bytes(), stream);
  }
  status run(const attention_backward_arguments<T, Table>& call) const {
    const status submitted = submit(call, nullptr);
    if (submitted.ok()) synchronize();
    return submitted;
  }
  status run() { return run(arguments()); }

  void poison() {
    for (auto* rows : {&grad_q, &grad_k, &grad_v}) rows->poison();
    for (device_tables<float>& group : tables)
      for (auto* table : {&group.table_q, &group.table_k, &group.table_v, &group.bias})
        table->poison();
    workspace.poison();
  }

  /// Every gradient, one after the other, as bytes.
  [[nodiscard]] std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> result;
    const auto append = [&](const auto& array) {
      const auto values = array.to_host();
      const auto* first = reinterpret_cast<const unsigned char*>(values.data());
      result.insert(result.end(), first, first + array.bytes());
    };
    for (const auto* rows : {&grad_q, &grad_k, &grad_v}) append(*rows);
    for (const device_tables<float>& group : tables)
      for (const auto* table : {&group.table_q, &group.table_k, &group.table_v, &group.bias})
        append(*table);
    return result;
  }

  [[nodiscard]] bool guards_intact() const {
    bool intact = workspace.guards_intact();
    for (const auto* rows : {&grad_q, &grad_k, &grad_v}) intact = intact && rows->guards_intact();
    for (const device_tables<float>& group : tables)
      for (const auto* table : {&group.table_q, &group.table_k, &group.table_v, &group.bias})
        intact = intact && table->guards_intact();
    return intact;
  }

 private:
  static std::int64_t size_of_rows(const attention_case<T>& host) {
    return host.tokens * host.heads * host.dim;
  }
  static tensor_view<float, 4> view(const device_array<float>& values,
                                    const tensor_view<const Table, 4>& like) {
    if (values.size() == 0) return {};
    return {values.data(), like};
  }

 public:
  device_attention<T, Table> inputs;
  device_array<T> grad_out, grad_q, grad_k, grad_v;
  std::vector<device_tables<float>> tables;
  std::vector<head_group_gradients<T>> group_gradients;
  device_array<unsigned char> workspace;
};

/// The gradients in double, computed from the same rounded inputs.
template <class T>
attention_case<double> exact_gradients(const attention_case<T>& problem,
                                       bool zero_unassigned = false) {
  attention_case<double> exact = problem.widened();
  auto forward = exact.forward();
  EXPECT_TRUE(reference::attention_forward<double>(forward).ok());
  auto backward = exact.backward();
  backward.zero_unassigned = zero_unassigned;
  const status done = reference::attention_backward<double>(backward);
  EXPECT_TRUE(done.ok()) << done.message();
  return exact;
}

template <class T, class Table>
void expect_tables_match(const attention_case<double>& exact,
                         const device_gradients<T, Table>& device, double limit) {
  for (std::size_t g = 0; g < exact.groups.size(); ++g) {
    const group_data<double>& expected = exact.groups[g];
    const device_tables<float>& tables = device.tables[g];
    const std::string name = "group " + std::to_string(g);
    expect_close((name + " grad_table_q").c_str(), tables.table_q.to_host(), expected.grad_table_q,
                 exact.dim, limit);
    expect_close((name + " grad_table_k").c_str(), tables.table_k.to_host(), expected.grad_table_k,
                 exact.dim, limit);
    expect_close((name + " grad_table_v").c_str(), tables.table_v.to_host(), expected.grad_table_v,
                 exact.dim, limit);
    expect_close((name + " grad_bias").c_str(), tables.bias.to_host(), expected.grad_bias,
                 exact.specs()[g].heads, limit);
  }
}

template <class T, class Table>
void expect_gradients_match(const attention_case<double>& exact,
                            const device_gradients<T, Table>& device) {
  const double limit = support::precision_limit(dtype_of<T>, support::quantity::gradient);
  expect_close("grad_q", without_poison(device.grad_q.to_host(), exact.dim), exact.grad_q,
               exact.dim, limit);
  expect_close("grad_k", without_poison(device.grad_k.to_host(), exact.dim), exact.grad_k,
               exact.dim, limit);
  expect_close("grad_v", without_poison(device.grad_v.to_host(), exact.dim), exact.grad_v,
               exact.dim, limit);
  expect_tables_match(exact, device,
                      support::precision_limit(dtype_of<T>, support::quantity::table_gradient));
  EXPECT_TRUE(device.guards_intact());
}

}  // namespace winnow::test
