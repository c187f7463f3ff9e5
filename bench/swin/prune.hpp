// SPDX-License-Identifier: Apache-2.0
/// \file
/// Prune ratios of the blocks: how they are written, which are legal, and what they mean for a map.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "swin/model.hpp"

namespace winnow::swin {

/// One ratio for each block of each stage.
using prune_ratios = std::vector<std::vector<double>>;

/// A configuration that has a name.
struct named_configuration {
  const char* name;
  prune_ratios ratios;
};
/// The configurations that SparseViT publishes (1 to 3), dense, and 60 % everywhere; of Swin-T.
const std::vector<named_configuration>& named_configurations();

/// Reads ratios: a name; one ratio for everywhere; or a list with `|` between stages, in which a stage
/// has one ratio for each block or one for all its blocks.
/// \throw support::input_error, also for ratios that `check` rejects.
prune_ratios parse_prune(const std::string& text, const model& network);
/// "0.7 0.7 | 0 0 | ..."
std::string to_text(const prune_ratios& ratios);
/// From one ratio a block, stage after stage, as `ratio_space` gives them.
prune_ratios split_stages(const std::vector<double>& block_ratios, const model& network);
bool is_dense(const prune_ratios& ratios);

/// \throw support::input_error naming the block unless each ratio lies in [0, 1) and, among the pruned
///        blocks of a stage and shift, ratios do not decrease: a later block keeps a prefix of the
///        windows that the first one kept.
void check(const prune_ratios& ratios, const model& network);

/// Which windows a stage computes.
struct stage_pruning {
  /// The block from whose input windows are ranked; -1: none is pruned.
  int ranked_at = -1;
  /// Windows of an image that each block keeps.
  std::vector<std::int64_t> kept;
  /// Whether a block computes a selection rather than all windows.
  std::vector<bool> pruned;
  /// The longest list of each shift; 0 where no block of that shift is pruned.
  std::int64_t longest[2] = {0, 0};
};
stage_pruning pruning_of(const std::vector<double>& ratios, const grid_window& map);

}  // namespace winnow::swin
