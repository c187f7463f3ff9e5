// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "swin/latency.hpp"
#include "swin/model.hpp"
#include "winnow/storage.hpp"

namespace winnow::swin {

/// What both commands need.
struct common_options {
  int batch = 4;
  std::string image = "672";  ///< "HEIGHT" or "HEIGHTxWIDTH"
  dtype type = dtype::float16;
  std::optional<std::string> weights;  ///< a folder; none: random
  std::optional<std::string> images;   ///< a file or folder; none: synthetic
  std::uint64_t seed = 0;
  timing_plan timing;

  [[nodiscard]] image_size size() const;
};

struct latency_options : common_options {
  std::vector<std::string> prune;  ///< empty: all named configurations
  std::optional<std::string> json;
};

struct search_command_options : common_options {
  double min_latency = -std::numeric_limits<double>::infinity();
  double max_latency = std::numeric_limits<double>::infinity();
  int generations = 20;
  int population = 100;  ///< a quarter of which are parents
  bool random = false;
  std::optional<std::string> score_command;
  std::optional<std::string> table;  ///< read if it exists, else measured and written
  std::optional<std::string> state;
  std::string log = "search.csv";
  std::string picture = "search.svg";
};

struct options {
  std::optional<latency_options> latency;
  std::optional<search_command_options> search;
};

/// The options of a command line; nothing set after --help or --version, which have been printed.
/// \throw support::input_error naming the option that is wrong.
options parse_options(int argc, char** argv);

}  // namespace winnow::swin
