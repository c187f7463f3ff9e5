// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <vector>

namespace winnow::support {

/// The bytes of a regular file.
/// \throw input_error if there is no such file, it is not a regular one or cannot be read.
std::vector<std::byte> read_file(const std::filesystem::path& path);

}  // namespace winnow::support
