// SPDX-License-Identifier: Apache-2.0
#include "support/read_file.hpp"

#include <cstdint>
#include <fstream>
#include <system_error>

#include "support/input_error.hpp"

namespace winnow::support {

std::vector<std::byte> read_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw input_error(path.string(), "no such file");
  if (!std::filesystem::is_regular_file(status)) {
    throw input_error(path.string(), "not a regular file");
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw input_error(path.string(), "cannot be read");
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw input_error(path.string(), "cannot be read");
  return bytes;
}

}  // namespace winnow::support
