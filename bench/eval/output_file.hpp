// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

namespace winnow::eval {

/// Fails early where `write_file` would fail after all the work.
/// \throw support::input_error if there is no such folder or `path` is one.
void check_output_path(const std::filesystem::path& path);

/// Makes the folder if its parent is there, and checks that files can be written to it.
/// \throw support::input_error if not.
void make_output_folder(const std::filesystem::path& folder);

/// Writes to a temporary name beside `path` and renames it.
/// \throw support::input_error if the file cannot be written.
void write_file(const std::filesystem::path& path, const std::string& content);

}  // namespace winnow::eval
