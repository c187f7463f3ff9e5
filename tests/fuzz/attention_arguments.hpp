// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention problems out of a fuzzer's bytes.
#pragma once

#include <utility>
#include <vector>

#include "windows.hpp"
#include "winnow/reference.hpp"

namespace winnow::fuzz {

/// A partition as a builder leaves it, of mostly `tokens` tokens; often without memory where the
/// builder was given nonsense. On the device nothing is built, for no call looks.
inline partition built_partition(byte_source& source, memory& arguments, std::int64_t tokens) {
  partition result;
  status built;
  const auto place = [&](const partition_shape& shape, auto&& build) {
    if (!arguments.honest() && !arguments.on_device()) return;
    result = make_partition(arguments, shape);
    if (!arguments.on_device()) built = build();
  };
  switch (source.pick(4)) {
    case 0: {
      cubic_window window;
      window.size = {2.0f, 2.0f, 2.0f};
      window.quant_length = 1 + source.pick(3);
      const point_set points = make_points(source, arguments, tokens);
      place(shape_of(window, points.coordinates.shape[0]),
            [&] { return reference::build_partition(window, points, result, 1); });
      break;
    }
    case 1: {
      spherical_window window;
      window.size = {90.0f, 90.0f, 80.0f};
      window.quant_length = 1 + source.pick(3);
      window.exponential_a = 0.25f;
      const point_set points = make_points(source, arguments, tokens);
      place(shape_of(window, points.coordinates.shape[0]),
            [&] { return reference::build_partition(window, points, result, 1); });
      break;
    }
    case 2: {
      labels_window window;
      window.quant_length = 1 + source.pick(3);
      window.exponential_a = 0.25f;
      const label_set labels = make_labels(source, arguments, window.quant_length, tokens);
      place(shape_of(window, labels),
            [&] { return reference::build_partition(window, labels, result, 1); });
      break;
    }
    default: {
      grid_window window;
      window.batch = 1;
      window.height = window.window = 2;
      window.width = static_cast<int>(tokens / 4 * 2);
      window.shift = source.pick(2);
      result = make_partition(arguments, shape_of(window));
      if (!arguments.on_device()) built = reference::build_partition(window, nullptr, result, 1);
    }
  }
  return built.ok() ? result : partition{};
}

/// A group that mostly fits its partition.
inline head_group<void> make_group(byte_source& source, memory& arguments, dtype type,
                                   std::int64_t tokens, std::int64_t head_dim) {
  head_group<void> group;
  group.heads = 1 + source.pick(2);
  if (arguments.on_device() && source.rarely(8)) group.heads = 1 << source.pick(16);
  group.windows = built_partition(source, arguments, tokens);
  const relative_position& relative = group.windows.relative;
  const bool positioned = source.pick(2) == 1;
  if (positioned)
    group.position = relative.kind == relative_kind::grid ? position_encoding::bias
                                                          : position_encoding::contextual;
  if (source.rarely(64)) group.position = static_cast<position_encoding>(source.pick(5) - 1);
  const dtype table_type = source.pick(2) == 1 ? dtype::float32 : type;
  const std::int64_t rows = relative.table_rows();
  for (auto* table : {&group.table_q, &group.table_k, &group.table_v})
    if (group.position == position_encoding::contextual && source.pick(2) == 1)
      *table = arguments.view(table_type, {rows, 3, group.heads, head_dim});
  if (group.position == position_encoding::bias)
    group.bias_table =
        arguments.view(table_type, {std::int64_t{relative.bias_rows()}, group.heads});
  group.heads = source.small_integer(group.heads);
  return group;
}

inline head_group_gradients<void> make_gradients(byte_source& source, memory& arguments, dtype type,
                                                 const head_group<void>& group,
                                                 std::int64_t head_dim) {
  head_group_gradients<void> gradients;
  const std::int64_t rows = group.windows.relative.table_rows();
  const std::int64_t heads = group.heads;
  for (const auto& [gradient, table] : {std::pair{&gradients.table_q, &group.table_q},
                                        std::pair{&gradients.table_k, &group.table_k},
                                        std::pair{&gradients.table_v, &group.table_v}})
    if (table->data != nullptr || source.rarely(32))
      *gradient = arguments.view(type, {rows, 3, heads, head_dim});
  if (group.bias_table.data != nullptr)
    gradients.bias_table =
        arguments.view(type, {std::int64_t{group.windows.relative.bias_rows()}, heads});
  return gradients;
}

/// One call's arguments, forward or backward; they point into this object.
class attention_problem {
 public:
  attention_problem(byte_source& source, memory& arguments, dtype type, std::int64_t tokens,
                    std::int64_t head_dim)
      : source_(source),
        arguments_(arguments),
        type_(type),
        wide_(type == dtype::float64 ? dtype::float64 : dtype::float32),
        tokens_(tokens),
        head_dim_(head_dim) {
    for (int g = source.pick(3); g >= 0; --g) {
      groups.push_back(make_group(source, arguments, type, tokens, head_dim));
      heads_ += groups.back().heads;
    }
    forward.q = rows();
    forward.k = rows();
    forward.v = rows();
    forward.out = rows();
    if (source.pick(2) == 1) forward.lse = arguments.view(wide_, {tokens, heads_});
    forward.scale = source.real(0.25f);
    forward.groups = source.rarely(64) ? nullptr : groups.data();
    // Fewer than there are or a number that is refused, for no callee can tell that an array ends.
    forward.group_count = static_cast<int>(groups.size());
    if (source.rarely(64)) forward.group_count = source.pick(2) == 0 ? 0 : max_head_groups + 1;
    forward.zero_unassigned = source.pick(2) == 1;
  }
  attention_problem(const attention_problem&) = delete;
  attention_problem& operator=(const attention_problem&) = delete;

  /// The backward call of the forward one.
  attention_backward_arguments<void> backward() {
    attention_backward_arguments<void> result;
    result.q = forward.q;
    result.k = forward.k;
    result.v = forward.v;
    result.out = forward.out;
    result.lse = forward.lse;
    result.grad_out = rows();
    if (source_.pick(4) > 0) result.grad_q = rows();
    if (source_.pick(4) > 0) result.grad_k = rows();
    if (source_.pick(4) > 0) result.grad_v = rows();
    result.scale = forward.scale;
    result.groups = forward.groups;
    result.group_count = forward.group_count;
    for (const head_group<void>& group : groups)
      gradients_.push_back(make_gradients(source_, arguments_, wide_, group, head_dim_));
    if (source_.pick(2) == 1) result.group_gradients = gradients_.data();
    result.accumulate = source_.pick(2) == 1;
    result.zero_unassigned = forward.zero_unassigned;
    return result;
  }

  std::vector<head_group<void>> groups;
  attention_forward_arguments<void> forward;

 private:
  tensor_view<void, 3> rows() { return arguments_.view(type_, {tokens_, heads_, head_dim_}); }

  byte_source& source_;
  memory& arguments_;
  dtype type_;
  dtype wide_;
  std::int64_t tokens_;
  std::int64_t head_dim_;
  std::int64_t heads_ = 0;
  std::vector<head_group_gradients<void>> gradients_;
};

inline dtype pick_dtype(byte_source& source) {
  const dtype types[] = {dtype::float32, dtype::float16, dtype::bfloat16, dtype::float64};
  return types[source.pick(4)];
}

}  // namespace winnow::fuzz
