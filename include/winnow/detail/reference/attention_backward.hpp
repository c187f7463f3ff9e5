// SPDX-License-Identifier: Apache-2.0
/// \file
/// The host twin of the backward call.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "winnow/detail/attention/erase.hpp"
#include "winnow/detail/reference/attention_pairs.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/reference.hpp"

namespace winnow::reference {
namespace detail {

/// What one pair contributes to gradients.
template <class A>
struct pair_gradient {
  A p;   ///< P_ij
  A ds;  ///< dS_ij
  std::array<int, 3> rows;
};

template <class A>
pair_gradient<A> differentiate(const head_problem<A>& head, const window_rows<A>& rows,
                               std::int64_t i, std::int64_t j, std::vector<A>& value) {
  pair_gradient<A> pair{};
  if (head.contextual) pair.rows = relative_rows(head, rows.first + i, rows.first + j);
  value_row(head, rows, j, pair.rows, value.data());
  pair.p = std::exp(score(head, rows, i, j, pair.rows) - rows.lse[i]);
  const A dp = dot(rows.grad_out.data() + i * head.dim, value.data(), head.dim);
  pair.ds = pair.p * (dp - rows.delta[i]);
  return pair;
}

/// Gradients of one head's tables, gathered over the pairs of one piece; empty where not wanted.
template <class A>
struct table_gradients {
  std::vector<A> table_q, table_k, table_v, bias;
};

/// Query rows `part` of one window: dq, and this piece's share of the table gradients.
template <class A>
void backward_queries(const head_problem<A>& head, const window_rows<A>& rows, index_range window,
                      index_range part, const attention_backward_arguments<void>& arguments,
                      table_gradients<A>& tables) {
  const int dim = head.dim;
  std::vector<A> value(static_cast<std::size_t>(dim));
  std::vector<A> grad_q(static_cast<std::size_t>(dim));
  const partition& windows = head.windows;
  for (std::int64_t slot = part.begin; slot < part.end; ++slot) {
    const std::int64_t i = slot - window.begin;
    const A* q = rows.q.data() + i * dim;
    const A* grad_out = rows.grad_out.data() + i * dim;
    std::fill(grad_q.begin(), grad_q.end(), A{0});
    for (std::int64_t j = 0; j < window.size(); ++j) {
      if (!attends(head, slot, window.begin + j)) continue;
      const A* k = rows.k.data() + j * dim;
      const pair_gradient<A> pair = differentiate(head, rows, i, j, value);
      add_scaled(pair.ds, k, grad_q.data(), dim);
      for (int a = 0; a < 3; ++a) {
        const std::int64_t row = head.row(pair.rows[a], a);
        if (!head.table_q.empty())
          add_scaled(pair.ds, head.table_q.data() + row, grad_q.data(), dim);
        if (!tables.table_q.empty()) add_scaled(pair.ds, q, tables.table_q.data() + row, dim);
        if (!tables.table_k.empty()) add_scaled(pair.ds, k, tables.table_k.data() + row, dim);
        if (!tables.table_v.empty()) add_scaled(pair.p, grad_out, tables.table_v.data() + row, dim);
      }
      if (!tables.bias.empty())
        tables.bias[bias_row(windows.position[slot], windows.position[window.begin + j],
                             windows.relative.quant_length)] += pair.ds;
    }
    if (arguments.grad_q.data == nullptr) continue;
    for (A& x : grad_q) x *= head.scale;
    store_row(arguments.grad_q.data, arguments.grad_q.type,
              arguments.grad_q.offset(windows.order[slot], head.head), dim, grad_q.data(),
              arguments.accumulate);
  }
}

/// Key rows `part` of one window: dk and dv.
template <class A>
void backward_keys(const head_problem<A>& head, const window_rows<A>& rows, index_range window,
                   index_range part, const attention_backward_arguments<void>& arguments) {
  const int dim = head.dim;
  std::vector<A> value(static_cast<std::size_t>(dim));
  std::vector<A> grad_k(static_cast<std::size_t>(dim));
  std::vector<A> grad_v(static_cast<std::size_t>(dim));
  for (std::int64_t slot = part.begin; slot < part.end; ++slot) {
    const std::int64_t j = slot - window.begin;
    std::fill(grad_k.begin(), grad_k.end(), A{0});
    std::fill(grad_v.begin(), grad_v.end(), A{0});
    for (std::int64_t i = 0; i < window.size(); ++i) {
      if (!attends(head, window.begin + i, slot)) continue;
      const pair_gradient<A> pair = differentiate(head, rows, i, j, value);
      add_scaled(pair.ds, rows.q.data() + i * dim, grad_k.data(), dim);
      if (!head.table_k.empty())
        for (int a = 0; a < 3; ++a)
          add_scaled(pair.ds, head.table_k.data() + head.row(pair.rows[a], a), grad_k.data(), dim);
      add_scaled(pair.p, rows.grad_out.data() + i * dim, grad_v.data(), dim);
    }
    const std::int64_t token = head.windows.order[slot];
    if (arguments.grad_k.data != nullptr)
      store_row(arguments.grad_k.data, arguments.grad_k.type,
                arguments.grad_k.offset(token, head.head), dim, grad_k.data(),
                arguments.accumulate);
    if (arguments.grad_v.data != nullptr)
      store_row(arguments.grad_v.data, arguments.grad_v.type,
                arguments.grad_v.offset(token, head.head), dim, grad_v.data(),
                arguments.accumulate);
  }
}

/// Adds the pieces up in order and writes one head of a table's gradient.
template <class A, class Pieces, class Member>
void store_table_gradient(const Pieces& pieces, Member member, const tensor_view<void, 4>& target,
                          std::int64_t head, bool accumulate) {
  if (target.data == nullptr) return;
  std::vector<A> sum((pieces[0].*member).size());
  for (const auto& part : pieces)
    add_scaled(A{1}, (part.*member).data(), sum.data(), static_cast<int>(sum.size()));
  const std::int64_t dim = target.shape[3];
  for (std::int64_t r = 0; r < target.shape[0]; ++r)
    for (std::int64_t a = 0; a < target.shape[1]; ++a)
      store_row(target.data, target.type, target.offset(r, a, head), dim,
                sum.data() + (r * target.shape[1] + a) * dim, accumulate);
}

/// The bias gradient [rows, heads] as a table [rows, 1, heads, 1].
inline tensor_view<void, 4> as_table(const tensor_view<void, 2>& bias) {
  tensor_layout<4> layout;
  layout.shape[0] = bias.shape[0];
  layout.stride[0] = bias.stride[0];
  layout.shape[1] = layout.stride[1] = 1;
  layout.shape[2] = bias.shape[1];
  layout.stride[2] = bias.stride[1];
  layout.shape[3] = layout.stride[3] = 1;
  return {bias.data, bias.type, layout};
}

template <class A>
status backward_head(const attention_backward_arguments<void>& arguments,
                     const head_problem<A>& head, const head_group_gradients<void>& gradients,
                     std::int64_t head_in_group, int threads) {
  const auto size_if = [](const void* wanted, const std::vector<A>& like) {
    return wanted != nullptr ? like.size() : 0;
  };
  std::vector<table_gradients<A>> tables(static_cast<std::size_t>(slot_pieces));
  for (table_gradients<A>& part : tables) {
    part.table_q.resize(size_if(gradients.table_q.data, head.table_q));
    part.table_k.resize(size_if(gradients.table_k.data, head.table_k));
    part.table_v.resize(size_if(gradients.table_v.data, head.table_v));
    part.bias.resize(size_if(gradients.bias_table.data, head.bias));
  }
  WINNOW_TRY(for_each_window(head.windows, threads,
                             [&](std::int64_t p, index_range window, index_range part) {
                               window_rows<A> rows;
                               rows.gather_inputs(window, head, arguments);
                               rows.gather_results(window, head, arguments);
                               backward_queries(head, rows, window, part, arguments, tables[p]);
                               backward_keys(head, rows, window, part, arguments);
                             }));
  if (arguments.zero_unassigned && !arguments.accumulate)
    zero_unassigned_rows(head, {arguments.grad_q, arguments.grad_k, arguments.grad_v});
  using T = table_gradients<A>;
  const bool accumulate = arguments.accumulate;
  store_table_gradient<A>(tables, &T::table_q, gradients.table_q, head_in_group, accumulate);
  store_table_gradient<A>(tables, &T::table_k, gradients.table_k, head_in_group, accumulate);
  store_table_gradient<A>(tables, &T::table_v, gradients.table_v, head_in_group, accumulate);
  store_table_gradient<A>(tables, &T::bias, as_table(gradients.bias_table), head_in_group,
                          accumulate);
  return {};
}

}  // namespace detail

template <class Accumulator>
status attention_backward(const attention_backward_arguments<void>& arguments,
                          int threads) noexcept {
  static_assert(std::is_floating_point_v<Accumulator>, "accumulate in float or double");
  WINNOW_TRY(validate(arguments));
  using A = Accumulator;
  return detail::guard_allocation([&] {
    return detail::for_each_head<A>(
        arguments, [&](const detail::head_problem<A>& head, int group, std::int64_t h) -> status {
          const head_group_gradients<void> gradients = arguments.group_gradients != nullptr
                                                           ? arguments.group_gradients[group]
                                                           : head_group_gradients<void>{};
          return detail::backward_head(arguments, head, gradients, h, threads);
        });
  });
}

template <class Accumulator, class T, class Table, class>
status attention_backward(const attention_backward_arguments<T, Table>& arguments,
                          int threads) noexcept {
  const winnow::detail::erased_backward erased(arguments);
  return attention_backward<Accumulator>(erased.arguments, threads);
}

#if defined(WINNOW_COMPILED)
extern template status attention_backward<float>(const attention_backward_arguments<void>&,
                                                 int) noexcept;
extern template status attention_backward<double>(const attention_backward_arguments<void>&,
                                                  int) noexcept;
#endif

}  // namespace winnow::reference
