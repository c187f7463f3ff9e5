// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

constexpr int heads = 2;
constexpr int dim = 16;

/// Attention of a scan inside cubic windows of 0.3 m, with a table on the query side.
winnow::status attend(std::int64_t tokens, const float* xyz, const float* qkv, const float* table_q,
                      float* out, float* lse) {
  // What a window is.
  winnow::cubic_window window;
  window.size = {0.3f, 0.3f, 0.3f};
  window.quant_length = 24;  // 47 rows in a table

  // Which token lies in which window: built once, used by every layer.
  winnow::point_set points;
  points.coordinates = winnow::tensor_view<const float, 2>(xyz, {tokens, 3});
  const winnow::partition_shape shape = shape_of(window, tokens);
  std::vector<std::byte> memory(partition_bytes(shape));
  winnow::head_group<float> group;
  WINNOW_TRY(bind_partition(shape, memory.data(), memory.size(), group.windows));
  WINNOW_TRY(winnow::reference::build_partition(window, points, group.windows));

  // How the positions inside a window enter the logits.
  group.heads = heads;
  group.position = winnow::position_encoding::contextual;
  group.table_q = {table_q, {group.windows.relative.table_rows(), 3, heads, dim}};

  // q, k and v are slices of one [tokens, 3, heads, dim] array.
  const winnow::tensor_layout<3> slice = {{tokens, heads, dim}, {3 * heads * dim, dim, 1}};
  winnow::attention_forward_arguments<float> arguments;
  arguments.q = {qkv, slice};
  arguments.k = {qkv + heads * dim, slice};
  arguments.v = {qkv + 2 * heads * dim, slice};
  arguments.out = {out, {tokens, heads, dim}};
  arguments.lse = {lse, {tokens, heads}};
  arguments.scale = 0.25f;  // 1 / sqrt(dim)
  arguments.groups = &group;
  arguments.group_count = 1;
  return winnow::reference::attention_forward<float>(arguments);
}
// ---

int main() {
  // Two tokens in one window, one far away: the lonely one gets its own value.
  const std::vector<float> xyz = {0.00f, 0.0f, 0.0f, 0.01f, 0.0f, 0.0f, 5.0f, 0.0f, 0.0f};
  const std::vector<float> qkv = numbers(3 * 3 * heads * dim, 1);
  const std::vector<float> table_q = numbers(47 * 3 * heads * dim, 2);
  std::vector<float> out(3 * heads * dim);
  std::vector<float> lse(3 * heads);
  check(attend(3, xyz.data(), qkv.data(), table_q.data(), out.data(), lse.data()));
  for (int i = 0; i < heads * dim; ++i) {
    const float lonely = qkv[static_cast<std::size_t>((2 * 3 + 2) * heads * dim + i)];
    check_near(out[static_cast<std::size_t>(2 * heads * dim + i)], lonely,
               "token 2: not its value");
  }
  check(attend(-1, xyz.data(), qkv.data(), table_q.data(), out.data(), lse.data()).code() ==
            winnow::status_code::invalid_argument,
        "a negative number of tokens passed");
}
