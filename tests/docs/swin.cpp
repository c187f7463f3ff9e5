// SPDX-License-Identifier: Apache-2.0
#include "device_memory.hpp"

// ---
#include "winnow/winnow.hpp"

/// One shift parity of a Swin stage, with memory on the device that is made once.
struct stage_windows {
  winnow::grid_window grid;
  winnow::tensor_view<float, 2> importance;  ///< [B, windows of an image]
  winnow::window_selection ranking;          ///< the most that any block of the parity keeps
  void* partition = nullptr;                 ///< partition_bytes(shape_of(grid, &ranking)) bytes
  std::size_t partition_bytes = 0;
  void* workspace = nullptr;  ///< the largest that any of the calls below asks for
  std::size_t workspace_bytes = 0;
};

/// Once a frame, from the features that enter the stage's first pruned block.
winnow::status rank(const stage_windows& stage,
                    const winnow::tensor_view<const winnow::half, 3>& features,
                    cudaStream_t stream) {
  WINNOW_TRY(window_importance(stage.grid, features, stage.importance, stream));
  return select_most_important(stage.importance, stage.ranking, stage.workspace,
                               stage.workspace_bytes, stream);
}

/// Each block of the parity: attention in its share of the most important windows, with Swin's bias.
/// Rows of tokens in other windows keep what is in `arguments.out`.
/// \param ratio the block's prune ratio, no smaller than the one that sized the ranking.
winnow::status attend_block(const stage_windows& stage, double ratio,
                            const winnow::tensor_view<const winnow::half, 2>& bias_table,
                            winnow::attention_forward_arguments<winnow::half> arguments,
                            cudaStream_t stream) {
  winnow::window_selection kept;
  WINNOW_TRY(prefix(stage.ranking, winnow::kept_windows(stage.ranking.windows, ratio), kept));
  winnow::head_group<winnow::half> group;
  WINNOW_TRY(bind_partition(shape_of(stage.grid, &kept), stage.partition, stage.partition_bytes,
                            group.windows));
  WINNOW_TRY(build_partition(stage.grid, &kept, group.windows, stage.workspace,
                             stage.workspace_bytes, stream));
  group.heads = static_cast<int>(arguments.q.shape[1]);
  group.position = winnow::position_encoding::bias;
  group.bias_table = bias_table;
  arguments.groups = &group;
  arguments.group_count = 1;
  return attention_forward(arguments, stage.workspace, stage.workspace_bytes, stream);
}
// ---

int main() {
  skip_without_gpu();
  constexpr std::int64_t dim = 16;
  stage_windows stage;
  stage.grid = {1, 4, 4, 2, 0};  // four windows of four tokens
  const std::int64_t tokens = stage.grid.tokens();
  const std::int64_t windows = stage.grid.windows_per_image();

  // Window 1 is the faintest, window 2 the strongest.
  const float strength[] = {0.5f, 0.1f, 1.0f, 0.4f};
  std::vector<float> features;
  for (int token = 0; token < tokens; ++token) {
    const int window = token / 8 * 2 + token % 4 / 2;
    features.insert(features.end(), dim, strength[window]);
  }
  const auto* rows = to_device(halves(features));
  stage.importance = {static_cast<float*>(allocate(windows * 4)), {1, windows}};
  const std::int64_t most = winnow::kept_windows(windows, 0.25);
  stage.ranking =
      winnow::uniform_selection(1, windows, most, static_cast<std::int32_t*>(allocate(most * 4)));
  stage.partition_bytes = partition_bytes(shape_of(stage.grid, &stage.ranking));
  stage.partition = allocate(stage.partition_bytes);
  stage.workspace_bytes = 1 << 20;
  stage.workspace = allocate(stage.workspace_bytes);
  check(rank(stage, {rows, {1, tokens, dim}}, nullptr));

  const std::int64_t shape[] = {tokens, 1, dim};
  const auto* bias = to_device(halves(std::vector<float>(9)));
  const auto attend = [&](double ratio) {
    auto* out = to_device(halves(std::vector<float>(features.size(), -1.0f)));
    winnow::attention_forward_arguments<winnow::half> arguments;
    arguments.q = arguments.k = arguments.v = {rows, shape};
    arguments.out = {out, shape};
    check(attend_block(stage, ratio, {bias, {9, 1}}, arguments, nullptr));
    return floats(to_host(out, tokens * dim));
  };
  const auto expect = [&](const std::vector<float>& out, const std::vector<bool>& kept) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t token = i / dim;
      const std::size_t window = token / 8 * 2 + token % 4 / 2;
      check(std::fabs(out[i] - (kept[window] ? strength[window] : -1.0f)) < 1e-3f,
            "out: not the mean of a kept window");
    }
  };
  expect(attend(0.25), {true, false, true, true});
  expect(attend(0.75), {false, false, true, false});
}
