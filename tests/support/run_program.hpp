// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "support/temporary_folder.hpp"

namespace winnow::test {

inline std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

struct outcome {
  int exit_code;  ///< -1 if the program was ended by a signal
  std::string out, err;
};

/// Runs a program and waits for it.
/// \param arguments as the shell reads them.
inline outcome run_program(const std::string& program, const std::string& arguments) {
  const temporary_folder folder;
  const std::filesystem::path out = folder.path() / "out";
  const std::filesystem::path err = folder.path() / "err";
  const std::string command =
      "'" + program + "' " + arguments + " >'" + out.string() + "' 2>'" + err.string() + "'";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of(out), text_of(err)};
}

}  // namespace winnow::test
