// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

namespace winnow::eval {

/// One line on stderr that says what is being done; silent unless stderr is a terminal.
class progress_line {
 public:
  progress_line() = default;
  progress_line(const progress_line&) = delete;
  progress_line& operator=(const progress_line&) = delete;
  ~progress_line() { write("\r\033[K"); }

  void show(const std::string& text) { write("\r\033[K" + text + " ..."); }

 private:
  void write(const std::string& text) const {
    if (!is_terminal_) return;
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
  }

  bool is_terminal_ = isatty(STDERR_FILENO) != 0;
};

}  // namespace winnow::eval
