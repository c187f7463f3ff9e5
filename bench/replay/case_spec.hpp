// SPDX-License-Identifier: Apache-2.0
/// \file
/// What case.json says, without the arrays beside it.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "winnow/attention.hpp"
#include "winnow/window.hpp"

namespace winnow::replay {

/// A labels window whose quant length is 0 takes it from the tables' rows.
using any_window = std::variant<cubic_window, spherical_window, labels_window, grid_window>;

struct group_spec {
  int heads = 0;  ///< 0: all of them, for a case without "head_groups"
  any_window window;
  position_encoding position = position_encoding::none;
};

struct attention_spec {
  std::vector<group_spec> groups;
  float scale = 1.0f;
  /// Whether the case has "head_groups", so that the arrays of group g end in ".g".
  bool suffixed = false;
};

struct selection_spec {
  grid_window grid;
  double prune_ratio = 0.0;
};

using case_spec = std::variant<attention_spec, selection_spec>;

/// \param name stands for the file in messages.
/// \throw support::input_error for broken JSON, a missing, unknown or repeated key, a value of the
///        wrong type or out of range.
case_spec parse_case_json(std::string_view text, const std::string& name);

}  // namespace winnow::replay
