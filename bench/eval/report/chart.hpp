// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace winnow::eval::report {

/// How many windows have how many tokens, and how many tokens lie in such windows, as an SVG.
/// \param window_tokens percentiles and bins, as in the results.
std::string size_histogram(const nlohmann::ordered_json& window_tokens, const std::string& title);

}  // namespace winnow::eval::report
