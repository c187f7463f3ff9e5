// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace winnow::swin {

/// Runs `command` in a shell with one ratio for each block as further arguments and returns the number on
/// the last line that it prints.
/// \throw support::input_error if it fails or prints no number.
double run_score_command(const std::string& command, const std::vector<double>& block_ratios);

}  // namespace winnow::swin
