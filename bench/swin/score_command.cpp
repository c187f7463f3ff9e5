// SPDX-License-Identifier: Apache-2.0
#include "swin/score_command.hpp"

#include <stdio.h>  // popen

#include <charconv>
#include <memory>

#include "support/input_error.hpp"

namespace winnow::swin {

double run_score_command(const std::string& command, const std::vector<double>& block_ratios) {
  std::string line = command;
  for (const double ratio : block_ratios) {
    char text[32];
    std::snprintf(text, sizeof text, " %g", ratio);
    line += text;
  }
  FILE* pipe = popen(line.c_str(), "r");
  if (pipe == nullptr) throw support::input_error(line, "cannot be started");
  std::string last, current;
  for (int c; (c = std::fgetc(pipe)) != EOF;) {
    if (c != '\n') {
      current += static_cast<char>(c);
    } else {
      if (!current.empty()) last = current;
      current.clear();
    }
  }
  if (!current.empty()) last = current;
  const int code = pclose(pipe);
  if (code != 0) throw support::input_error(line, "failed with status " + std::to_string(code));
  double score = 0.0;
  const auto [end, error] = std::from_chars(last.data(), last.data() + last.size(), score);
  if (error != std::errc() || end != last.data() + last.size())
    throw support::input_error(line,
                               "printed \"" + last + "\" last, which is not a number and no more");
  return score;
}

}  // namespace winnow::swin
