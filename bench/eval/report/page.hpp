// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "eval/evaluation.hpp"

namespace winnow::eval::report {

/// The page that --report writes: HTML without script, with everything that it shows inside.
/// \param results what `make_json` made of the same evaluation, the source of every number.
std::string make_page(const nlohmann::ordered_json& results, const token_set& tokens,
                      const std::vector<window_evaluation>& windows);

}  // namespace winnow::eval::report
