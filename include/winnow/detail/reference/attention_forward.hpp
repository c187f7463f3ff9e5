// SPDX-License-Identifier: Apache-2.0
/// \file
/// The host twin of the forward call.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "winnow/detail/attention/erase.hpp"
#include "winnow/detail/reference/attention_pairs.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/reference.hpp"

namespace winnow::reference {
namespace detail {

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

template <class Accumulator, class T, class Table, class>
status attention_forward(const attention_forward_arguments<T, Table>& arguments,
                         int threads) noexcept {
  const winnow::detail::erased_forward erased(arguments);
  return attention_forward<Accumulator>(erased.arguments, threads);
}

#if defined(WINNOW_COMPILED)
extern template status attention_forward<float>(const attention_forward_arguments<void>&,
                                                int) noexcept;
extern template status attention_forward<double>(const attention_forward_arguments<void>&,
                                                 int) noexcept;
#endif

}  // namespace winnow::reference
