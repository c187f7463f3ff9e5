// SPDX-License-Identifier: Apache-2.0
// Attention with any arguments gives a result or a status, and writes nothing on failure.
#include "windows.hpp"
#include "winnow/reference.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

/// A partition as a builder leaves it, of mostly `tokens` tokens; often without memory where the
/// builder was given nonsense.
partition built_partition(byte_source& source, memory& arguments, std::int64_t tokens) {
  partition result;
  status built;
  switch (source.pick(4)) {
    case 0: {
      cubic_window window;
      window.size = {2.0f, 2.0f, 2.0f};
      window.quant_length = 1 + source.pick(3);
      const point_set points = make_points(source, arguments, tokens);
      if (!arguments.honest()) return result;
      result = make_partition(arguments, shape_of(window, points.coordinates.shape[0]));
      built = reference::build_partition(window, points, result, 1);
      break;
    }
    case 1: {
      spherical_window window;
      window.size = {90.0f, 90.0f, 80.0f};
      window.quant_length = 1 + source.pick(3);
      window.exponential_a = 0.25f;
      const point_set points = make_points(source, arguments, tokens);
      if (!arguments.honest()) return result;
      result = make_partition(arguments, shape_of(window, points.coordinates.shape[0]));
      built = reference::build_partition(window, points, result, 1);
      break;
    }
    case 2: {
      labels_window window;
      window.quant_length = 1 + source.pick(3);
      window.exponential_a = 0.25f;
      const label_set labels = make_labels(source, arguments, window.quant_length, tokens);
      if (!arguments.honest()) return result;
      result = make_partition(arguments, shape_of(window, labels));
      built = reference::build_partition(window, labels, result, 1);
      break;
    }
    default: {
      grid_window window;
      window.batch = 1;
      window.height = window.window = 2;
      window.width = static_cast<int>(tokens / 4 * 2);
      window.shift = source.pick(2);
      result = make_partition(arguments, shape_of(window));
      built = reference::build_partition(window, nullptr, result, 1);
    }
  }
  return built.ok() ? result : partition{};
}

/// A group that mostly fits its partition.
head_group<void> make_group(byte_source& source, memory& arguments, dtype type, std::int64_t tokens,
                            std::int64_t head_dim) {
  head_group<void> group;
  group.heads = 1 + source.pick(2);
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

head_group_gradients<void> make_gradients(byte_source& source, memory& arguments, dtype type,
                                          const head_group<void>& group, std::int64_t head_dim) {
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

/// `validate` alone reads no memory behind the views, so it may see a partition that lies, too.
template <class Arguments>
void try_lies(byte_source& source, const Arguments& arguments,
              std::vector<head_group<void>>& groups) {
  if (groups.empty()) return;
  partition& windows = groups[0].windows;
  windows.max_tokens = source.integer(windows.max_tokens);
  windows.relative.kind = static_cast<relative_kind>(source.pick(6) - 1);
  windows.relative.quant_length = source.small_integer(windows.relative.quant_length);
  if (source.rarely(4)) windows.position = nullptr;
  (void)validate(arguments);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory memory_(source);
  const dtype types[] = {dtype::float32, dtype::float16, dtype::bfloat16, dtype::float64};
  const dtype type = types[source.pick(4)];
  const dtype wide = type == dtype::float64 ? dtype::float64 : dtype::float32;
  const std::int64_t head_dim = source.rarely(32) ? source.pick(140) : 8 * (1 + source.pick(2));
  const std::int64_t tokens = source.pick(5) * 4;
  const int threads = source.rarely(32) ? source.pick(4) - 1 : 1;
  const bool twice = source.pick(2) == 1;

  std::vector<head_group<void>> groups;
  std::vector<head_group_gradients<void>> gradients;
  std::int64_t heads = 0;
  for (int g = source.pick(3); g >= 0; --g) {
    groups.push_back(make_group(source, memory_, type, tokens, head_dim));
    heads += groups.back().heads;
  }
  const auto rows = [&] { return memory_.view(type, {tokens, heads, head_dim}); };
  attention_forward_arguments<void> forward;
  forward.q = rows();
  forward.k = rows();
  forward.v = rows();
  forward.out = rows();
  if (source.pick(2) == 1) forward.lse = memory_.view(wide, {tokens, heads});
  forward.scale = source.real(0.25f);
  forward.groups = source.rarely(64) ? nullptr : groups.data();
  // Fewer than there are or a number that is refused, for no callee can tell that an array ends.
  forward.group_count = static_cast<int>(groups.size());
  if (source.rarely(64)) forward.group_count = source.pick(2) == 0 ? 0 : max_head_groups + 1;
  forward.zero_unassigned = source.pick(2) == 1;

  if (source.pick(2) == 0) {
    const status valid = validate(forward);
    if (memory_.honest()) {
      const status result = call(memory_, [&] {
        return twice ? reference::attention_forward<double>(forward, threads)
                     : reference::attention_forward<float>(forward, threads);
      });
      require(valid.ok() == result.ok(), "what validates is computed");
    }
    try_lies(source, forward, groups);
    return 0;
  }

  attention_backward_arguments<void> backward;
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.grad_out = rows();
  if (source.pick(4) > 0) backward.grad_q = rows();
  if (source.pick(4) > 0) backward.grad_k = rows();
  if (source.pick(4) > 0) backward.grad_v = rows();
  backward.scale = forward.scale;
  backward.groups = forward.groups;
  backward.group_count = forward.group_count;
  for (const head_group<void>& group : groups)
    gradients.push_back(make_gradients(source, memory_, wide, group, head_dim));
  if (source.pick(2) == 1) backward.group_gradients = gradients.data();
  backward.accumulate = source.pick(2) == 1;
  backward.zero_unassigned = forward.zero_unassigned;
  const status valid = validate(backward);
  if (memory_.honest()) {
    const status result = call(memory_, [&] {
      return twice ? reference::attention_backward<double>(backward, threads)
                   : reference::attention_backward<float>(backward, threads);
    });
    require(valid.ok() == result.ok(), "what validates is computed");
  }
  try_lies(source, backward, groups);
  return 0;
}
