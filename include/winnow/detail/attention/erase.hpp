// SPDX-License-Identifier: Apache-2.0
/// \file
/// From typed attention arguments to type-erased ones.
#pragma once

#include <type_traits>

#include "winnow/attention.hpp"

namespace winnow::detail {

template <class Table>
head_group<void> erase(const head_group<Table>& group) noexcept {
  return {group.heads,   group.windows, group.position,  group.table_q,
          group.table_k, group.table_v, group.bias_table};
}

template <class T>
head_group_gradients<void> erase(const head_group_gradients<T>& gradients) noexcept {
  return {gradients.table_q, gradients.table_k, gradients.table_v, gradients.bias_table};
}

/// Up to max_head_groups erased groups. A larger number is refused by validation, so that none is
/// looked at.
template <class Erased>
struct erased_groups {
  Erased values[max_head_groups];

  template <class Typed>
  erased_groups(const Typed* typed, int count) noexcept {
    if (typed == nullptr || count > max_head_groups) return;
    for (int g = 0; g < count; ++g) values[g] = erase(typed[g]);
  }
};

struct erased_forward {
  erased_groups<head_group<void>> groups;
  attention_forward_arguments<void> arguments;

  template <class T, class Table>
  explicit erased_forward(const attention_forward_arguments<T, Table>& typed) noexcept
      : groups(typed.groups, typed.group_count),
        arguments{typed.q,
                  typed.k,
                  typed.v,
                  typed.out,
                  typed.lse,
                  typed.scale,
                  typed.groups != nullptr ? groups.values : nullptr,
                  typed.group_count,
                  typed.zero_unassigned} {}
  erased_forward(const erased_forward&) = delete;
  erased_forward& operator=(const erased_forward&) = delete;
};

struct erased_backward {
  erased_groups<head_group<void>> groups;
  erased_groups<head_group_gradients<void>> gradients;
  attention_backward_arguments<void> arguments;

  template <class T, class Table>
  explicit erased_backward(const attention_backward_arguments<T, Table>& typed) noexcept
      : groups(typed.groups, typed.group_count),
        gradients(typed.group_gradients, typed.group_count),
        arguments{typed.q,
                  typed.k,
                  typed.v,
                  typed.out,
                  typed.lse,
                  typed.grad_out,
                  typed.grad_q,
                  typed.grad_k,
                  typed.grad_v,
                  typed.scale,
                  typed.groups != nullptr ? groups.values : nullptr,
                  typed.group_gradients != nullptr ? gradients.values : nullptr,
                  typed.group_count,
                  typed.accumulate,
                  typed.zero_unassigned} {}
  erased_backward(const erased_backward&) = delete;
  erased_backward& operator=(const erased_backward&) = delete;
};

}  // namespace winnow::detail

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include "winnow/detail/attention/typed_calls.hpp"
#endif
