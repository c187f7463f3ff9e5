// SPDX-License-Identifier: Apache-2.0
/// \file
/// Random attention problems that own their arrays on the host, in any storage type.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "support/partitions.hpp"
#include "winnow/reference.hpp"

namespace winnow::test {

/// One head group: its windows, and which tables it has.
struct group_spec {
  int heads = 1;
  std::shared_ptr<const reference::host_partition> windows;
  position_encoding position = position_encoding::none;
  bool table_q = true, table_k = true, table_v = true;
};

inline std::shared_ptr<const reference::host_partition> share(reference::host_partition windows) {
  return std::make_shared<const reference::host_partition>(std::move(windows));
}

template <class T>
struct group_data {
  std::vector<T> table_q, table_k, table_v, bias;
  std::vector<detail::wide_t<T>> grad_table_q, grad_table_k, grad_table_v, grad_bias;
};

/// Inputs q, k, v, dO ~ N(0, 1), tables ~ N(0, 0.5²), scale D^-1/2; outputs poisoned with NaN.
template <class T>
class attention_case {
 public:
  using wide = detail::wide_t<T>;

  attention_case(std::vector<group_spec> specs, int head_dim, std::uint64_t seed)
      : specs_(std::move(specs)), dim(head_dim) {
    std::mt19937_64 engine(seed);
    tokens = specs_[0].windows->view().max_tokens;
    for (const group_spec& spec : specs_) heads += spec.heads;
    for (auto* rows : {&q, &k, &v, &grad_out}) fill(engine, 1.0f, tokens * heads * dim, *rows);
    for (const group_spec& spec : specs_) {
      group_data<T>& data = groups.emplace_back();
      const relative_position& relative = spec.windows->view().relative;
      if (spec.position == position_encoding::contextual) {
        const std::int64_t size = std::int64_t{relative.table_rows()} * 3 * spec.heads * dim;
        if (spec.table_q) fill(engine, 0.5f, size, data.table_q);
        if (spec.table_k) fill(engine, 0.5f, size, data.table_k);
        if (spec.table_v) fill(engine, 0.5f, size, data.table_v);
      } else if (spec.position == position_encoding::bias) {
        fill(engine, 0.5f, std::int64_t{relative.bias_rows()} * spec.heads, data.bias);
      }
    }
    scale = 1.0f / std::sqrt(static_cast<float>(dim));
    poison_outputs();
  }

  /// The same problem in double, so that the reference can answer it exactly.
  [[nodiscard]] attention_case<double> widened() const {
    attention_case<double> result(specs_, dim, 0);
    result.scale = scale;
    widen(q, result.q);
    widen(k, result.k);
    widen(v, result.v);
    widen(grad_out, result.grad_out);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      widen(groups[g].table_q, result.groups[g].table_q);
      widen(groups[g].table_k, result.groups[g].table_k);
      widen(groups[g].table_v, result.groups[g].table_v);
      widen(groups[g].bias, result.groups[g].bias);
    }
    return result;
  }

  void poison_outputs() {
    const std::int64_t size = tokens * heads * dim;
    for (auto* rows : {&out, &grad_q, &grad_k, &grad_v}) poison(size, *rows);
    poison(tokens * heads, lse);
    for (group_data<T>& data : groups) {
      poison(static_cast<std::int64_t>(data.table_q.size()), data.grad_table_q);
      poison(static_cast<std::int64_t>(data.table_k.size()), data.grad_table_k);
      poison(static_cast<std::int64_t>(data.table_v.size()), data.grad_table_v);
      poison(static_cast<std::int64_t>(data.bias.size()), data.grad_bias);
    }
  }

  /// The arguments point into this object.
  [[nodiscard]] attention_forward_arguments<T> forward() {
    bind_groups();
    attention_forward_arguments<T> arguments;
    arguments.q = rows(q);
    arguments.k = rows(k);
    arguments.v = rows(v);
    arguments.out = rows(out);
    arguments.lse = {lse.data(), {tokens, heads}};
    arguments.scale = scale;
    arguments.groups = bound_groups_.data();
    arguments.group_count = static_cast<int>(bound_groups_.size());
    return arguments;
  }

  [[nodiscard]] attention_backward_arguments<T> backward() {
    bind_groups();
    attention_backward_arguments<T> arguments;
    arguments.q = rows(q);
    arguments.k = rows(k);
    arguments.v = rows(v);
    arguments.out = rows(out);
    arguments.lse = tensor_view<wide, 2>(lse.data(), {tokens, heads});
    arguments.grad_out = rows(grad_out);
    arguments.grad_q = rows(grad_q);
    arguments.grad_k = rows(grad_k);
    arguments.grad_v = rows(grad_v);
    arguments.scale = scale;
    arguments.groups = bound_groups_.data();
    arguments.group_gradients = bound_gradients_.data();
    arguments.group_count = static_cast<int>(bound_groups_.size());
    return arguments;
  }

  [[nodiscard]] const std::vector<group_spec>& specs() const { return specs_; }

 private:
  std::vector<group_spec> specs_;
  std::vector<head_group<T>> bound_groups_;
  std::vector<head_group_gradients<T>> bound_gradients_;

 public:
  int dim = 0;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  float scale = 1.0f;
  std::vector<T> q, k, v, grad_out;
  std::vector<T> out, grad_q, grad_k, grad_v;
  std::vector<wide> lse;
  std::vector<group_data<T>> groups;

 private:
  static void fill(std::mt19937_64& engine, float deviation, std::int64_t size,
                   std::vector<T>& values) {
    std::normal_distribution<float> normal(0.0f, deviation);
    values.resize(static_cast<std::size_t>(size));
    for (T& value : values) {
      if constexpr (std::is_same_v<T, double>)
        value = normal(engine);
      else
        value = from_float<T>(normal(engine));
    }
  }

  template <class U>
  static void poison(std::int64_t size, std::vector<U>& values) {
    values.resize(static_cast<std::size_t>(size));
    if (values.empty()) return;  // memset takes no null pointer
    std::memset(static_cast<void*>(values.data()), 0xff, values.size() * sizeof(U));  // NaN
  }

  static void widen(const std::vector<T>& narrow, std::vector<double>& wide_values) {
    wide_values.clear();
    for (const T& value : narrow) wide_values.push_back(to_float(value));
  }

  [[nodiscard]] tensor_view<T, 3> rows(std::vector<T>& values) const {
    return {values.data(), {tokens, heads, dim}};
  }

  template <class U>
  static tensor_view<U, 4> table(std::vector<U>& values, const group_spec& spec, int head_dim) {
    if (values.empty()) return {};
    return {values.data(), {spec.windows->view().relative.table_rows(), 3, spec.heads, head_dim}};
  }

  template <class U>
  static tensor_view<U, 2> bias_view(std::vector<U>& values, const group_spec& spec) {
    if (values.empty()) return {};
    return {values.data(), {spec.windows->view().relative.bias_rows(), spec.heads}};
  }

  void bind_groups() {
    bound_groups_.clear();
    bound_gradients_.clear();
    for (std::size_t g = 0; g < specs_.size(); ++g) {
      const group_spec& spec = specs_[g];
      group_data<T>& data = groups[g];
      head_group<T>& group = bound_groups_.emplace_back();
      group.heads = spec.heads;
      group.windows = spec.windows->view();
      group.position = spec.position;
      group.table_q = table(data.table_q, spec, dim);
      group.table_k = table(data.table_k, spec, dim);
      group.table_v = table(data.table_v, spec, dim);
      group.bias_table = bias_view(data.bias, spec);
      head_group_gradients<T>& gradients = bound_gradients_.emplace_back();
      gradients.table_q = table(data.grad_table_q, spec, dim);
      gradients.table_k = table(data.grad_table_k, spec, dim);
      gradients.table_v = table(data.grad_table_v, spec, dim);
      gradients.bias_table = bias_view(data.grad_bias, spec);
    }
  }
};

}  // namespace winnow::test
