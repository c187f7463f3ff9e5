// SPDX-License-Identifier: Apache-2.0
#include "swin/options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>

#include "eval/build_info.hpp"

namespace winnow::swin {
namespace {

void add_common(CLI::App& command, common_options& result) {
  command.add_option("--batch", result.batch, "images of a batch")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command.add_option("--image", result.image, "HEIGHT or HEIGHTxWIDTH in pixels")
      ->capture_default_str();
  command
      .add_option_function<std::string>(
          "--dtype",
          [&result](const std::string& name) {
            result.type = name == "half" ? dtype::float16 : dtype::bfloat16;
          },
          "storage type: half (the default) or bfloat16")
      ->check(CLI::IsMember({"half", "bfloat16"}));
  command.add_option("--weights", result.weights, "folder of .npy files; random without");
  command.add_option("--images", result.images,
                     "normalised images, a .npy [count, 3, height, width] or a folder of such; "
                     "synthetic without");
  command.add_option("--seed", result.seed, "of random weights, synthetic images and the search")
      ->capture_default_str();
  command.add_option("--warm-up", result.timing.warm_up, "forwards before a measurement")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  command.add_option("--repeats", result.timing.repeats, "measured forwards")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
}

void add_latency(CLI::App& command, latency_options& result) {
  add_common(command, result);
  command.add_option("--prune", result.prune,
                     "ratios: dense, config1, config2, config3, uniform60, one number for all "
                     "blocks, or stages as in \"0.7 0.7 | 0 | 0.2 0.2 0.4 0.4 0.5 0.5 | 0\"; may "
                     "be given several times; all names without");
  command.add_option("--json", result.json, "write the results to this file");
}

void add_search(CLI::App& command, search_command_options& result) {
  add_common(command, result);
  command.add_option("--max", result.max_latency, "longest latency in ms");
  command.add_option("--min", result.min_latency, "shortest latency in ms");
  command.add_option("--generations", result.generations, "generations")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command.add_option("--population", result.population, "configurations of a generation")
      ->check(CLI::Range(2, 1000000))
      ->capture_default_str();
  command.add_flag("--random", result.random, "draw every generation at random");
  command.add_option("--score", result.score_command,
                     "command that scores a configuration, run with its ratios as arguments; the "
                     "last line it prints is the score, higher is better. Without: fidelity of "
                     "the pruned feature maps to the dense ones");
  command.add_option("--table", result.table,
                     "latency table: read if the file exists, else measured and written");
  command.add_option("--state", result.state, "file from which an interrupted search goes on");
  command.add_option("--log", result.log, "every scored configuration")->capture_default_str();
  command.add_option("--picture", result.picture, "SVG of score against latency")
      ->capture_default_str();
}

}  // namespace

image_size common_options::size() const {
  image_size result{batch, 0, 0};
  const char* end = image.data() + image.size();
  auto parsed = std::from_chars(image.data(), end, result.height);
  result.width = result.height;
  if (parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == 'x')
    parsed = std::from_chars(parsed.ptr + 1, end, result.width);
  if (parsed.ec != std::errc() || parsed.ptr != end)
    throw support::input_error("--image",
                               "\"" + image + "\", must be HEIGHT or HEIGHTxWIDTH in pixels");
  check(result);
  return result;
}

options parse_options(int argc, char** argv) {
  CLI::App app("A Swin-T backbone that computes only the windows that matter.", "winnow-swin");
  app.set_version_flag("--version", std::string("winnow-swin ") + eval::build_info::version +
                                        ", commit " + eval::build_info::commit);
  app.require_subcommand(1);
  latency_options latency;
  search_command_options search;
  CLI::App* latency_command =
      app.add_subcommand("latency", "measures the network, dense and pruned");
  CLI::App* search_command =
      app.add_subcommand("search", "searches for prune ratios inside a latency band");
  add_latency(*latency_command, latency);
  add_search(*search_command, search);
  options result;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      app.exit(error);
      return result;
    }
    std::string message = error.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    throw support::input_error("options", message);
  }
  if (latency_command->parsed()) result.latency = latency;
  if (search_command->parsed()) result.search = search;
  return result;
}

}  // namespace winnow::swin
