// SPDX-License-Identifier: Apache-2.0
#include "eval/options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>

#include "eval/build_info.hpp"
#include "support/input_error.hpp"
#include "winnow/attention.hpp"

namespace winnow::eval {
namespace {

const CLI::Validator positive(
    [](std::string& text) -> std::string {
      double value = 0.0;
      const bool is_number = CLI::detail::lexical_cast(text, value);
      return is_number && value > 0.0 && std::isfinite(value)
                 ? ""
                 : "must be a finite number > 0, is " + text;
    },
    "> 0");

const CLI::Validator valid_head_dim(
    [](std::string& text) -> std::string {
      int value = 0;
      const bool is_number = CLI::detail::lexical_cast(text, value);
      return is_number && value > 0 && value <= max_head_dim && value % 8 == 0
                 ? ""
                 : "must be a multiple of 8 up to " + std::to_string(max_head_dim) + ", is " + text;
    },
    "multiple of 8");

void add_token_options(CLI::App& app, options& result) {
  const std::string group = "Tokens (without --scan and --coords: a simulated LiDAR scan)";
  CLI::Option* scan =
      app.add_option("--scan", result.scan, "point cloud to voxelise")->group(group);
  app.add_option_function<std::string>(
         "--format",
         [&result](const std::string& name) { result.format = support::scan_format_of(name); },
         "layout of the scan, detected where not given")
      ->check(CLI::IsMember({"kitti", "nuscenes", "xyzrgb", "npy", "ply"}))
      ->needs(scan)
      ->group(group);
  CLI::Option* voxel = app.add_option("--voxel", result.voxel, "edge of a voxel in metres")
                           ->check(positive)
                           ->capture_default_str()
                           ->group(group);
  CLI::Option* copies = app.add_option("--copies", result.copies,
                                       "batch items: the scan and copies of it, turned and "
                                       "scaled, with 1 cm of noise")
                            ->check(CLI::Range(1, 1024))
                            ->capture_default_str()
                            ->group(group);
  CLI::Option* coordinates =
      app.add_option("--coords", result.coordinates, "[N, 3] .npy of ready tokens, not voxelised")
          ->excludes(scan)
          ->excludes(voxel)
          ->excludes(copies)
          ->group(group);
  app.add_option("--batch-ids", result.batch_ids, "[N] .npy, the batch item of each token")
      ->needs(coordinates)
      ->group(group);
  app.add_option("--max-tokens", result.max_tokens, "keep only the first tokens")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{std::numeric_limits<std::int32_t>::max()}))
      ->group(group);
}

void add_attention_options(CLI::App& app, options& result) {
  const std::string group = "Windows and attention";
  app.add_option("--cubic-window", result.cubic_window, "edge in metres")
      ->check(positive)
      ->capture_default_str()
      ->group(group);
  app.add_option("--spherical-window", result.spherical_window, "degrees, degrees, metres")
      ->check(positive)
      ->group(group);
  app.add_option("--quant-length", result.quant_length, "positions per axis")
      ->check(CLI::Range(1, max_quant_length))
      ->capture_default_str()
      ->group(group);
  app.add_option("--exponential-a", result.exponential_a,
                 "first threshold of the radial axis in metres")
      ->check(positive)
      ->capture_default_str()
      ->group(group);
  app.add_option("--heads", result.heads, "heads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("--head-dim", result.head_dim, "head dim, a multiple of 8")
      ->check(valid_head_dim)
      ->capture_default_str()
      ->group(group);
}

void add_run_options(CLI::App& app, options& result) {
  const std::string group = "Run";
  app.add_option_function<std::string>(
         "--device",
         [&result](const std::string& name) {
           result.device = name == "cuda" ? device_kind::cuda : device_kind::cpu;
         },
         "where to run, never elsewhere")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->group(group);
  app.add_option("--threads", result.threads, "threads of the cpu, 0 for all")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", result.seed, "of the simulated scan, the copies and the tensors")
      ->capture_default_str()
      ->group(group);
  app.add_option("--json", result.json, "write the results to this file")->group(group);
  app.add_option("--report", result.report,
                 "write report.html, one page without outside parts, to this folder")
      ->group(group);
}

/// An argument as a POSIX shell reads it, quoted only where it must be.
std::string shell_word(const std::string& argument) {
  constexpr const char* harmless =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,:=+@%";
  if (!argument.empty() && argument.find_first_not_of(harmless) == std::string::npos)
    return argument;
  std::string result = "'";
  for (const char c : argument) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

}  // namespace

std::optional<options> parse_options(int argc, char** argv) {
  options result;
  CLI::App app(
      "Runs window attention, plain and contextual, on the voxels of a point cloud and reports "
      "memory, precision and time.",
      "winnow-eval");
  app.set_version_flag("--version", std::string("winnow-eval ") + build_info::version +
                                        ", commit " + build_info::commit);
  add_token_options(app, result);
  add_attention_options(app, result);
  add_run_options(app, result);
  for (int n = 0; n < argc; ++n)
    result.command_line += (n == 0 ? "winnow-eval" : " " + shell_word(argv[n]));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      app.exit(error);
      return {};
    }
    std::string message = error.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    throw support::input_error("options", message);
  }
  return result;
}

}  // namespace winnow::eval
