// SPDX-License-Identifier: Apache-2.0
/// \file
/// A place for inputs that are files.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <string>

namespace winnow::fuzz {

/// The name of a folder that the process has for itself, in memory where the system allows.
inline std::filesystem::path scratch_folder(const char* fuzzer) {
  const std::filesystem::path memory = "/dev/shm";
  const std::filesystem::path base =
      std::filesystem::exists(memory) ? memory : std::filesystem::temp_directory_path();
  return base / ("winnow_fuzz_" + std::string(fuzzer) + "_" + std::to_string(getpid()));
}

inline void write_scratch(const std::string& file, const std::string& content) {
  std::ofstream stream(file, std::ios::binary);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
}

inline std::string read_scratch(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

}  // namespace winnow::fuzz
