// SPDX-License-Identifier: Apache-2.0
#include "eval/json_report.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "eval/build_info.hpp"
#include "eval/machine.hpp"
#include "support/input_error.hpp"

namespace winnow::eval {
namespace {

// Keeps the order of insertion, which is the order to read in.
using json = nlohmann::ordered_json;

json to_json(const options& asked) {
  json result = {{"device", asked.device == device_kind::cpu ? "cpu" : "cuda"},
                 {"voxel", asked.voxel},
                 {"copies", asked.copies},
                 {"cubic_window", asked.cubic_window},
                 {"spherical_window", asked.spherical_window},
                 {"quant_length", asked.quant_length},
                 {"exponential_a", asked.exponential_a},
                 {"heads", asked.heads},
                 {"head_dim", asked.head_dim},
                 {"threads", used_threads(asked.threads)},
                 {"seed", asked.seed}};
  if (asked.scan) result["scan"] = *asked.scan;
  if (asked.format) result["format"] = to_string(*asked.format);
  if (asked.coordinates) result["coords"] = *asked.coordinates;
  if (asked.batch_ids) result["batch_ids"] = *asked.batch_ids;
  if (asked.max_tokens) result["max_tokens"] = *asked.max_tokens;
  return result;
}

json to_json(const measurement& measured) {
  return {{"seconds", measured.seconds}, {"extra_bytes", measured.extra_bytes}};
}

json to_json(const tensor_errors& tensor) {
  json result = json::object();
  for (std::size_t column = 0; column < comparisons.size(); ++column) {
    result[comparisons[column].name] = {{"against", to_string(comparisons[column].expected)},
                                        {"largest", tensor.errors[column].largest},
                                        {"relative", tensor.errors[column].relative}};
  }
  return result;
}

json to_json(const std::vector<tensor_errors>& tensors) {
  json result = json::object();
  for (const tensor_errors& each : tensors) result[each.tensor] = to_json(each);
  return result;
}

json to_json(const attention_evaluation& attention) {
  json runs = json::object();
  for (const storage_run& run : attention.runs) {
    runs[to_string(run.storage)] = {
        {"forward", to_json(run.forward)},
        {"backward", to_json(run.backward)},
        {"pair_list_bytes",
         {{"forward", run.pair_list.forward}, {"backward", run.pair_list.backward}}}};
  }
  return {{"position", attention.contextual ? "contextual" : "none"},
          {"runs", runs},
          {"errors",
           {{"out", to_json(attention.out)},
            {"gradients_of_normal_loss", to_json(attention.gradients[0])},
            {"gradients_of_mean_loss", to_json(attention.gradients[1])}}}};
}

json to_json(const window_evaluation& windows) {
  const window_statistics& s = windows.statistics;
  json attention = json::array();
  for (const attention_evaluation& each : windows.attention) attention.push_back(to_json(each));
  return {{"kind", windows.kind},
          {"windows", s.windows},
          {"window_tokens", {{"p50", s.p50}, {"p90", s.p90}, {"p99", s.p99}, {"max", s.largest}}},
          {"pairs", s.pairs},
          {"partition", {{"bytes", windows.partition_bytes}, {"build", to_json(windows.build)}}},
          {"attention", attention}};
}

}  // namespace

void check_json_path(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (!std::filesystem::is_directory(folder, error))
    throw support::input_error(path.string(), "there is no folder " + folder.string());
  if (std::filesystem::is_directory(path, error))
    throw support::input_error(path.string(), "is a folder");
}

void write_json(const std::filesystem::path& path, const options& asked, const token_set& tokens,
                const backend& device, const std::vector<window_evaluation>& windows) {
  json report = {{"tool", "winnow-eval"},
                 {"version", build_info::version},
                 {"commit", build_info::commit},
                 {"compiler", build_info::compiler},
                 {"build_type", build_info::build_type},
                 {"machine",
                  {{"cpu", cpu_model()},
                   {"threads", used_threads(asked.threads)},
                   {"calls_run_on", device.description()}}},
                 {"options", to_json(asked)},
                 {"source", tokens.source},
                 {"points", tokens.points},
                 {"tokens", {{"evaluated", tokens.size()}, {"available", tokens.available}}}};
  report["windows"] = json::array();
  for (const window_evaluation& each : windows) report["windows"].push_back(to_json(each));

  std::filesystem::path temporary = path;
  temporary += ".partial";
  std::ofstream file(temporary);
  // File names may hold bytes that are no UTF-8; better a replacement than no report.
  file << report.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    std::filesystem::remove(temporary, error);
    throw support::input_error(path.string(), "cannot be written");
  }
}

}  // namespace winnow::eval
