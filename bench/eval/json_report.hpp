// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <vector>

#include "eval/evaluation.hpp"

namespace winnow::eval {

/// Fails early where `write_json` would fail after all the work.
/// \throw support::input_error if there is no such folder or `path` is one.
void check_json_path(const std::filesystem::path& path);

/// Writes everything measured, with the commit, compiler, machine and options, to a temporary name
/// beside `path` and renames it. An error that is not finite is null.
/// \throw support::input_error if the file cannot be written.
void write_json(const std::filesystem::path& path, const options& asked, const token_set& tokens,
                const backend& device, const std::vector<window_evaluation>& windows);

}  // namespace winnow::eval
