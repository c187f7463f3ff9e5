// SPDX-License-Identifier: Apache-2.0
/// \file
/// A case: a folder with case.json and the input arrays, read and checked.
#pragma once

#include <filesystem>
#include <optional>
#include <variant>
#include <vector>

#include "replay/case_spec.hpp"
#include "support/npy.hpp"

namespace winnow::replay {

using support::npy_array;

/// Shapes are checked against each other and element types are right; values are not looked at,
/// which is the library's part.
struct group_case {
  int heads = 0;
  any_window window;
  position_encoding position = position_encoding::none;
  std::optional<npy_array> labels, positions, radius;  ///< labels windows
  std::optional<npy_array> kept;                       ///< grid windows
  std::optional<npy_array> table_q, table_k, table_v;  ///< contextual; at least one
  std::optional<npy_array> bias_table;                 ///< bias
};

struct attention_case {
  std::int64_t tokens = 0, heads = 0, head_dim = 0;
  npy_array q, k, v;
  std::optional<npy_array> grad_out;       ///< with it, gradients are computed
  std::optional<npy_array> coords, batch;  ///< coords where any window needs them
  std::vector<group_case> groups;
  float scale = 1.0f;
  bool suffixed = false;  ///< whether the arrays of group g end in ".g"
};

struct selection_case {
  grid_window grid;
  double prune_ratio = 0.0;
  npy_array features;
};

using replay_case = std::variant<attention_case, selection_case>;

/// \throw support::input_error
replay_case read_case(const std::filesystem::path& folder);

}  // namespace winnow::replay
