// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "support/scan_reader.hpp"

namespace winnow::eval {

enum class device_kind { cpu, cuda };

/// What winnow-eval is asked to do.
struct options {
  // The tokens come from the simulator, from a scan file, or ready from --coords.
  std::optional<std::string> scan;
  std::optional<support::scan_format> format;
  std::optional<std::string> coordinates;
  std::optional<std::string> batch_ids;
  double voxel = 0.05;
  int copies = 1;
  std::optional<std::int64_t> max_tokens;

  double cubic_window = 0.3;
  std::array<double, 3> spherical_window{2.0, 2.0, 80.0};
  int quant_length = 24;
  double exponential_a = 0.0125;
  int heads = 2;
  int head_dim = 16;

  device_kind device = device_kind::cpu;
  int threads = 0;  ///< 0: one per hardware thread
  std::uint64_t seed = 0;
  std::optional<std::string> json;
  std::optional<std::string> report;
  std::string command_line;  ///< as a shell reads it
};

/// The options of a command line; none after --help or --version, which have been printed.
/// \throw support::input_error naming the option that is wrong.
std::optional<options> parse_options(int argc, char** argv);

}  // namespace winnow::eval
