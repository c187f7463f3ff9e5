// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "eval/evaluation.hpp"

namespace winnow::eval {

/// Everything measured, with the commit, compiler, machine and options. An error that is not finite
/// is null.
nlohmann::ordered_json make_json(const options& asked, const token_set& tokens,
                                 const backend& device,
                                 const std::vector<window_evaluation>& windows);

/// \throw support::input_error if the file cannot be written.
void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& report);

/// The report as text. File names may hold bytes that are no UTF-8; they are replaced.
std::string json_text(const nlohmann::ordered_json& report);

}  // namespace winnow::eval
