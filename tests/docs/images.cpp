// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// SparseViT's pruning: attention in the 75 % of an image's windows that matter most.
winnow::status attend_pruned(const winnow::grid_window& grid,
                             const winnow::tensor_view<const float, 3>& features,
                             const winnow::tensor_view<const float, 2>& bias_table,
                             winnow::attention_forward_arguments<float> arguments) {
  // Rank the windows and keep the first ones.
  const std::int64_t windows = grid.windows_per_image();
  const std::int64_t kept = winnow::kept_windows(windows, 0.25);
  std::vector<float> importance(static_cast<std::size_t>(grid.batch * windows));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(grid.batch * kept));
  const winnow::tensor_view<float, 2> ranks(importance.data(), {grid.batch, windows});
  const winnow::window_selection selection =
      winnow::uniform_selection(grid.batch, windows, kept, ids.data());
  WINNOW_TRY(winnow::reference::window_importance<float>(grid, features, ranks));
  WINNOW_TRY(winnow::reference::select_most_important(ranks, selection));

  // Only the kept windows are computed; the rows of the others become 0.
  const winnow::partition_shape shape = shape_of(grid, &selection);
  std::vector<std::byte> memory(partition_bytes(shape));
  winnow::head_group<float> group;
  WINNOW_TRY(bind_partition(shape, memory.data(), memory.size(), group.windows));
  WINNOW_TRY(winnow::reference::build_partition(grid, &selection, group.windows));
  group.heads = static_cast<int>(arguments.q.shape[1]);
  group.position = winnow::position_encoding::bias;
  group.bias_table = bias_table;
  arguments.groups = &group;
  arguments.group_count = 1;
  arguments.zero_unassigned = true;
  return winnow::reference::attention_forward<float>(arguments);
}
// ---

int main() {
  constexpr std::int64_t dim = 8;
  winnow::grid_window grid;
  grid.batch = 1;
  grid.height = grid.width = 4;
  grid.window = 2;
  const std::int64_t tokens = grid.tokens();

  // The window at the lower right is the faintest.
  std::vector<float> features(static_cast<std::size_t>(tokens * dim), 1.0f);
  for (const int token : {10, 11, 14, 15})
    for (int c = 0; c < dim; ++c) features[static_cast<std::size_t>(token * dim + c)] = 0.1f;
  const std::vector<float> bias(9);
  std::vector<float> out(features.size(), -1.0f);
  const std::int64_t shape[] = {tokens, 1, dim};
  winnow::attention_forward_arguments<float> arguments;
  arguments.q = arguments.k = arguments.v = {features.data(), shape};
  arguments.out = {out.data(), shape};
  check(attend_pruned(grid, {features.data(), {1, tokens, dim}}, {bias.data(), {9, 1}}, arguments));
  check_near(out[0], 1.0f, "token 0: not the mean of its window");
  check(out[static_cast<std::size_t>(10 * dim)] == 0.0f, "token 10: not 0 in a pruned window");
}
