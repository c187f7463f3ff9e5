// SPDX-License-Identifier: Apache-2.0
#include "eval/json_report.hpp"

#include <nlohmann/json.hpp>
#include <optional>

#include "eval/build_info.hpp"
#include "eval/machine.hpp"
#include "eval/output_file.hpp"
#include "eval/published.hpp"
#include "support/compare.hpp"

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
  const support::quantity what = tensor.tensor == "out"    ? support::quantity::output
                                 : tensor.tensor[1] == 'T' ? support::quantity::table_gradient
                                                           : support::quantity::gradient;
  json result = json::object();
  for (std::size_t column = 0; column < comparisons.size(); ++column) {
    result[comparisons[column].name] = {
        {"against", to_string(comparisons[column].expected)},
        {"largest", tensor.errors[column].largest},
        {"relative", tensor.errors[column].relative},
        {"limit", support::precision_limit(comparisons[column].result, what)}};
  }
  return result;
}

json to_json(const std::vector<tensor_errors>& tensors) {
  json result = json::object();
  for (const tensor_errors& each : tensors) result[each.tensor] = to_json(each);
  return result;
}

const char* position_of(bool contextual) {
  return contextual ? "contextual" : "none";
}

json to_json(const attention_evaluation& attention) {
  json runs = json::object();
  for (const storage_run& run : attention.runs) {
    runs[to_string(run.storage)] = {
        {"forward", to_json(run.forward)},
        {"backward", to_json(run.backward)},
        {"tensor_bytes", run.tensor_bytes},
        {"pair_list_bytes",
         {{"forward", run.pair_list.forward}, {"backward", run.pair_list.backward}}}};
  }
  return {{"position", position_of(attention.contextual)},
          {"runs", runs},
          {"errors",
           {{"out", to_json(attention.out)},
            {"gradients_of_normal_loss", to_json(attention.gradients[0])},
            {"gradients_of_mean_loss", to_json(attention.gradients[1])}}}};
}

json to_json(const attention_sample& sample) {
  return {{"window", sample.window},
          {"head", sample.head},
          {"query", sample.query},
          {"tokens", sample.tokens},
          {"coordinates", sample.coordinates},
          {"weights", {{"plain", sample.plain}, {"contextual", sample.contextual}}}};
}

json to_json(const window_evaluation& windows) {
  const window_statistics& s = windows.statistics;
  json attention = json::array();
  for (const attention_evaluation& each : windows.attention) attention.push_back(to_json(each));
  json bins = json::array();
  for (const size_bin& bin : s.bins)
    bins.push_back(
        {{"from", bin.from}, {"to", bin.to}, {"windows", bin.windows}, {"tokens", bin.tokens}});
  return {{"kind", windows.kind},
          {"size", windows.size},
          {"windows", s.windows},
          {"window_tokens",
           {{"p50", s.p50}, {"p90", s.p90}, {"p99", s.p99}, {"max", s.largest}, {"bins", bins}}},
          {"pairs", s.pairs},
          {"partition", {{"bytes", windows.partition_bytes}, {"build", to_json(windows.build)}}},
          {"attention", attention},
          {"sample", windows.sample ? to_json(*windows.sample) : json()}};
}

json published_json(const options& asked, const token_set& tokens,
                    const std::vector<window_evaluation>& windows) {
  namespace figures = published;
  json memory = json::array();
  for (const auto& each : figures::memory)
    memory.push_back({{"position", position_of(each.contextual)},
                      {"float32_megabytes", each.float32},
                      {"float16_megabytes", each.float16}});
  json errors = json::array();
  for (const auto& each : figures::output_errors)
    errors.push_back({{"position", position_of(each.contextual)},
                      {"half", each.float16},
                      {"bfloat16", each.bfloat16}});
  const auto milliseconds = [](const std::optional<double>& time) {
    return time ? json(*time) : json();
  };
  json times = json::array();
  for (const auto& each : figures::times)
    times.push_back({{"kind", each.spherical ? "spherical" : "cubic"},
                     {"position", position_of(each.contextual)},
                     {"backward", each.with_backward},
                     {"sptr_half", each.sptr_half},
                     {"sptr_float", each.sptr_float},
                     {"flash_attention", milliseconds(each.flash_attention)},
                     {"flex_attention", milliseconds(each.flex_attention)}});
  return {{"tokens", figures::tokens},
          {"comparable", figures::is_reference_benchmark(asked, tokens, windows)},
          {"source", figures::fork},
          {"memory", memory},
          {"largest_error_of_out", errors},
          {"largest_error_of_table_gradients", figures::table_gradient_errors},
          {"times_source", figures::side_by_side},
          {"times_note", figures::times_note},
          {"milliseconds", times}};
}

}  // namespace

json make_json(const options& asked, const token_set& tokens, const backend& device,
               const std::vector<window_evaluation>& windows) {
  json report = {{"tool", "winnow-eval"},
                 {"version", build_info::version},
                 {"commit", build_info::commit},
                 {"compiler", build_info::compiler},
                 {"build_type", build_info::build_type},
                 {"command", asked.command_line},
                 {"machine",
                  {{"cpu", cpu_model()},
                   {"threads", used_threads(asked.threads)},
                   {"calls_run_on", device.description()},
                   {"usual_storage", to_string(device.usual_storage())}}},
                 {"options", to_json(asked)},
                 {"source", tokens.source},
                 {"points", tokens.points},
                 {"tokens", {{"evaluated", tokens.size()}, {"available", tokens.available}}}};
  report["windows"] = json::array();
  for (const window_evaluation& each : windows) report["windows"].push_back(to_json(each));
  report["published"] = published_json(asked, tokens, windows);
  return report;
}

std::string json_text(const json& report) {
  return report.dump(2, ' ', false, json::error_handler_t::replace);
}

void write_json(const std::filesystem::path& path, const json& report) {
  write_file(path, json_text(report) + "\n");
}

}  // namespace winnow::eval
