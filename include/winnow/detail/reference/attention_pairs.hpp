// SPDX-License-Identifier: Apache-2.0
/// \file
/// The oracle: window attention as the formulas say it, one pair of tokens after the other. This is
/// what forward and backward share.
///
/// Heads go one by one; the slots of a partition are cut into pieces that run in parallel, and a
/// piece gathers the rows of one window at a time, converted to the accumulator type. Nothing of
/// the size of the pairs is stored. The cut does not depend on the number of threads and table
/// gradients are added up piece by piece, so that every result repeats bit for bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "winnow/attention.hpp"
#include "winnow/detail/util/load.hpp"
#include "winnow/detail/util/parallel.hpp"

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

}  // namespace detail
}  // namespace winnow::reference
