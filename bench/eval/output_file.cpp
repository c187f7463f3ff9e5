// SPDX-License-Identifier: Apache-2.0
#include "eval/output_file.hpp"

#include <unistd.h>

#include <fstream>
#include <system_error>

#include "support/input_error.hpp"

namespace winnow::eval {
namespace fs = std::filesystem;

void check_output_path(const fs::path& path) {
  std::error_code error;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (!fs::is_directory(folder, error))
    throw support::input_error(path.string(), "there is no folder " + folder.string());
  if (fs::is_directory(path, error)) throw support::input_error(path.string(), "is a folder");
}

void make_output_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directory(folder, error);
  if (!fs::is_directory(folder, error)) {
    throw support::input_error(folder.string(), fs::exists(folder, error)
                                                    ? "is not a folder"
                                                    : "this folder cannot be made");
  }
  if (access(folder.c_str(), W_OK | X_OK) != 0)
    throw support::input_error(folder.string(), "this folder cannot be written to");
}

void write_file(const fs::path& path, const std::string& content) {
  fs::path temporary = path;
  temporary += ".partial";
  std::ofstream file(temporary, std::ios::binary);
  file << content;
  file.close();
  std::error_code error;
  if (file) fs::rename(temporary, path, error);
  if (!file || error) {
    fs::remove(temporary, error);
    throw support::input_error(path.string(), "cannot be written");
  }
}

}  // namespace winnow::eval
