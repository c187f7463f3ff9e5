// SPDX-License-Identifier: Apache-2.0
/// \file
/// The oracle: window attention as the formulas say it, one pair of tokens after the other.
///
/// Heads go one by one; the slots of a partition are cut into pieces that run in parallel, and a
/// piece gathers the rows of one window at a time, converted to the accumulator type. Nothing of
/// the size of the pairs is stored. The cut does not depend on the number of threads and table
/// gradients are added up piece by piece, so that every result repeats bit for bit.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "winnow/detail/attention/erase.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/detail/util/load.hpp"
#include "winnow/detail/util/parallel.hpp"
#include "winnow/reference.hpp"

namespace winnow::reference {
namespace detail {

using namespace winnow::detail;

/// How many pieces the slots are cut into; one table gradient per piece is held at a time.
inline constexpr std::int64_t slot_pieces = 32;

template <class A>
A dot(const A* a, const A* b, int dim) {
  A sum = 0;
  for (int d = 0; d < dim; ++d) sum += a[d] * b[d];
  return sum;
}

/// y += a·x
template <class A>
void add_scaled(A a, const A* x, A* y, int dim) {
  for (int d = 0; d < dim; ++d) y[d] += a * x[d];
}

/// One head: its windows and its tables [R, 3, D] (empty where absent), bias [(2w-1)²].
template <class A>
struct head_problem {
  const partition& windows;
  std::int64_t head;
  int dim;
  A scale;
  float inverse_a;
  bool contextual;
  std::vector<A> table_q, table_k, table_v, bias;

  /// Row r of axis a, as an offset into a table.
  [[nodiscard]] std::int64_t row(int r, int axis) const {
    return (std::int64_t{r} * 3 + axis) * dim;
  }
};

/// The rows of one window, slots [first, last), as [n, D] in the accumulator type.
template <class A>
struct window_rows {
  std::int64_t first = 0;
  std::vector<A> q, k, v, grad_out;  ///< q is scaled
  std::vector<A> lse, delta;         ///< delta_i = dO_i·O_i

  void gather(std::int64_t slot, std::int64_t count, const head_problem<A>& head,
              const tensor_view<const void, 3>& view, std::vector<A>& rows) {
    rows.resize(static_cast<std::size_t>(count * head.dim));
    for (std::int64_t i = 0; i < count; ++i)
      load_row(view.data, view.type, view.offset(head.windows.order[slot + i], head.head), head.dim,
               rows.data() + i * head.dim);
  }

  template <class Arguments>
  void gather_inputs(index_range window, const head_problem<A>& head, const Arguments& arguments) {
    first = window.begin;
    gather(first, window.size(), head, arguments.q, q);
    gather(first, window.size(), head, arguments.k, k);
    gather(first, window.size(), head, arguments.v, v);
    for (A& x : q) x *= head.scale;
  }

  void gather_results(index_range window, const head_problem<A>& head,
                      const attention_backward_arguments<void>& arguments) {
    gather(first, window.size(), head, arguments.grad_out, grad_out);
    lse.resize(static_cast<std::size_t>(window.size()));
    delta.resize(lse.size());
    std::vector<A> out(static_cast<std::size_t>(head.dim));
    for (std::int64_t i = 0; i < window.size(); ++i) {
      const std::int64_t token = head.windows.order[first + i];
      load_row(arguments.lse.data, arguments.lse.type, arguments.lse.offset(token, head.head), 1,
               &lse[i]);
      load_row(arguments.out.data, arguments.out.type, arguments.out.offset(token, head.head),
               head.dim, out.data());
      delta[i] = dot(grad_out.data() + i * head.dim, out.data(), head.dim);
    }
  }
};

/// Do two slots of one window lie on the same side of the grid's seam?
template <class A>
bool attends(const head_problem<A>& head, std::int64_t slot_i, std::int64_t slot_j) {
  const partition& windows = head.windows;
  return windows.relative.kind != relative_kind::grid ||
         unpack_position(windows.position[slot_i], 2) ==
             unpack_position(windows.position[slot_j], 2);
}

/// r_a(i, j) on each axis, for contextual tables.
template <class A>
std::array<int, 3> relative_rows(const head_problem<A>& head, std::int64_t slot_i,
                                 std::int64_t slot_j) {
  const partition& windows = head.windows;
  const int length = windows.relative.quant_length;
  std::array<int, 3> rows{};
  for (int a = 0; a < 3; ++a)
    rows[a] = difference_row(unpack_position(windows.position[slot_i], a),
                             unpack_position(windows.position[slot_j], a), length);
  if (windows.relative.kind == relative_kind::spherical)
    rows[2] =
        exponential_row(windows.radius[slot_i] - windows.radius[slot_j], head.inverse_a, length);
  return rows;
}

/// S_ij; i and j count inside the window.
template <class A>
A score(const head_problem<A>& head, const window_rows<A>& rows, std::int64_t i, std::int64_t j,
        const std::array<int, 3>& r) {
  const A* q = rows.q.data() + i * head.dim;
  const A* k = rows.k.data() + j * head.dim;
  A s = dot(q, k, head.dim);
  for (int a = 0; a < 3; ++a) {
    if (!head.table_q.empty()) s += dot(q, head.table_q.data() + head.row(r[a], a), head.dim);
    if (!head.table_k.empty()) s += dot(k, head.table_k.data() + head.row(r[a], a), head.dim);
  }
  if (!head.bias.empty()) {
    const partition& windows = head.windows;
    s += head.bias[bias_row(windows.position[rows.first + i], windows.position[rows.first + j],
                            windows.relative.quant_length)];
  }
  return s;
}

/// v_j + Σ_a Tv[r_a, a]
template <class A>
void value_row(const head_problem<A>& head, const window_rows<A>& rows, std::int64_t j,
               const std::array<int, 3>& r, A* value) {
  std::copy_n(rows.v.data() + j * head.dim, head.dim, value);
  if (head.table_v.empty()) return;
  for (int a = 0; a < 3; ++a)
    add_scaled(A{1}, head.table_v.data() + head.row(r[a], a), value, head.dim);
}

template <class A>
void load_table(const tensor_view<const void, 4>& table, std::int64_t head, std::vector<A>& rows) {
  if (table.data == nullptr) return;
  const auto dim = table.shape[3];
  rows.resize(static_cast<std::size_t>(table.shape[0] * 3 * dim));
  for (std::int64_t r = 0; r < table.shape[0]; ++r)
    for (std::int64_t a = 0; a < 3; ++a)
      load_row(table.data, table.type, table.offset(r, a, head), dim,
               rows.data() + (r * 3 + a) * dim);
}

/// \param head among the group's heads. \param first_head the group's first among all heads.
template <class A>
head_problem<A> make_problem(const head_group<void>& group, std::int64_t head,
                             std::int64_t first_head, std::int64_t dim, float scale) {
  const relative_position& relative = group.windows.relative;
  head_problem<A> problem{
      group.windows,
      first_head + head,
      static_cast<int>(dim),
      static_cast<A>(scale),
      relative.kind == relative_kind::spherical ? 1.0f / relative.exponential_a : 0.0f,
      group.position == position_encoding::contextual,
      {},
      {},
      {},
      {}};
  load_table(group.table_q, head, problem.table_q);
  load_table(group.table_k, head, problem.table_k);
  load_table(group.table_v, head, problem.table_v);
  if (group.bias_table.data != nullptr) {
    problem.bias.resize(static_cast<std::size_t>(group.bias_table.shape[0]));
    for (std::int64_t r = 0; r < group.bias_table.shape[0]; ++r)
      load_row(group.bias_table.data, group.bias_table.type, group.bias_table.offset(r, head), 1,
               &problem.bias[r]);
  }
  return problem;
}

/// Calls `body(problem, group, head in group)` for every head of every group.
template <class A, class Arguments, class Body>
status for_each_head(const Arguments& arguments, Body&& body) {
  std::int64_t first_head = 0;
  for (int g = 0; g < arguments.group_count; ++g) {
    const head_group<void>& group = arguments.groups[g];
    for (std::int64_t h = 0; h < group.heads; ++h)
      WINNOW_TRY(
          body(make_problem<A>(group, h, first_head, arguments.q.shape[2], arguments.scale), g, h));
    first_head += group.heads;
  }
  return {};
}

/// Calls `body(piece, window, part)` for every window of every piece of the slots in windows;
/// `part` is the range of the window's slots that lie in the piece. Pieces run in parallel.
template <class Body>
status for_each_window(const partition& windows, int threads, Body&& body) {
  const std::int64_t assigned = windows.counts->assigned;
  return parallel_for(slot_pieces, threads, [&](std::int64_t p) {
    const index_range slots = piece(assigned, slot_pieces, p);
    for (std::int64_t slot = slots.begin; slot < slots.end;) {
      const index_range window{windows.bounds[2 * slot], windows.bounds[2 * slot + 1]};
      const index_range part{slot, std::min(window.end, slots.end)};
      body(p, window, part);
      slot = part.end;
    }
  });
}

/// Zeroes a row of each view for the tokens in no window.
template <class A>
void zero_unassigned_rows(const head_problem<A>& head,
                          std::initializer_list<tensor_view<void, 3>> views) {
  const std::vector<A> zeros(static_cast<std::size_t>(head.dim));
  const partition_counts& counts = *head.windows.counts;
  for (std::int64_t slot = counts.assigned; slot < counts.tokens; ++slot)
    for (const auto& view : views)
      if (view.data != nullptr)
        store_row(view.data, view.type, view.offset(head.windows.order[slot], head.head), head.dim,
                  zeros.data());
}

/// Rows `part` of one window: softmax over a row of scores, then the weighted sum.
template <class A>
void forward_rows(const head_problem<A>& head, const window_rows<A>& rows, index_range window,
                  index_range part, const attention_forward_arguments<void>& arguments) {
  const std::int64_t n = window.size();
  std::vector<A> scores(static_cast<std::size_t>(n));
  std::vector<A> value(static_cast<std::size_t>(head.dim));
  std::vector<A> out(static_cast<std::size_t>(head.dim));
  const auto rows_of = [&](std::int64_t i, std::int64_t j) {
    return head.contextual ? relative_rows(head, window.begin + i, window.begin + j)
                           : std::array<int, 3>{};
  };
  for (std::int64_t slot = part.begin; slot < part.end; ++slot) {
    const std::int64_t i = slot - window.begin;
    A largest = -std::numeric_limits<A>::infinity();
    for (std::int64_t j = 0; j < n; ++j) {
      if (!attends(head, slot, window.begin + j)) continue;
      scores[j] = score(head, rows, i, j, rows_of(i, j));
      largest = std::max(largest, scores[j]);
    }
    A sum = 0;
    std::fill(out.begin(), out.end(), A{0});
    for (std::int64_t j = 0; j < n; ++j) {
      if (!attends(head, slot, window.begin + j)) continue;
      const A weight = std::exp(scores[j] - largest);
      sum += weight;
      value_row(head, rows, j, rows_of(i, j), value.data());
      add_scaled(weight, value.data(), out.data(), head.dim);
    }
    for (A& x : out) x /= sum;
    const A lse = largest + std::log(sum);
    const std::int64_t token = head.windows.order[slot];
    store_row(arguments.out.data, arguments.out.type, arguments.out.offset(token, head.head),
              head.dim, out.data());
    if (arguments.lse.data != nullptr)
      store_row(arguments.lse.data, arguments.lse.type, arguments.lse.offset(token, head.head), 1,
                &lse);
  }
}

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
status attention_forward(const attention_forward_arguments<void>& arguments, int threads) noexcept {
  static_assert(std::is_floating_point_v<Accumulator>, "accumulate in float or double");
  WINNOW_TRY(validate(arguments));
  if (arguments.q.shape[0] == 0) return {};
  using A = Accumulator;
  return detail::guard_allocation([&] {
    return detail::for_each_head<A>(
        arguments, [&](const detail::head_problem<A>& head, int, std::int64_t) -> status {
          WINNOW_TRY(detail::for_each_window(
              head.windows, threads,
              [&](std::int64_t, detail::index_range window, detail::index_range part) {
                detail::window_rows<A> rows;
                rows.gather_inputs(window, head, arguments);
                detail::forward_rows(head, rows, window, part, arguments);
              }));
          if (!arguments.zero_unassigned) return {};
          detail::zero_unassigned_rows(head, {arguments.out});
          const partition_counts& counts = *head.windows.counts;
          const A zero = 0;
          for (std::int64_t slot = counts.assigned; slot < counts.tokens; ++slot)
            if (arguments.lse.data != nullptr)
              detail::store_row(arguments.lse.data, arguments.lse.type,
                                arguments.lse.offset(head.windows.order[slot], head.head), 1,
                                &zero);
          return {};
        });
  });
}

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
status attention_forward(const attention_forward_arguments<T, Table>& arguments,
                         int threads) noexcept {
  const winnow::detail::erased_forward erased(arguments);
  return attention_forward<Accumulator>(erased.arguments, threads);
}

template <class Accumulator, class T, class Table, class>
status attention_backward(const attention_backward_arguments<T, Table>& arguments,
                          int threads) noexcept {
  const winnow::detail::erased_backward erased(arguments);
  return attention_backward<Accumulator>(erased.arguments, threads);
}

#if defined(WINNOW_COMPILED)
extern template status attention_forward<float>(const attention_forward_arguments<void>&,
                                                int) noexcept;
extern template status attention_forward<double>(const attention_forward_arguments<void>&,
                                                 int) noexcept;
extern template status attention_backward<float>(const attention_backward_arguments<void>&,
                                                 int) noexcept;
extern template status attention_backward<double>(const attention_backward_arguments<void>&,
                                                  int) noexcept;
#endif

}  // namespace winnow::reference
