// SPDX-License-Identifier: Apache-2.0
#include "swin/latency_command.hpp"

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/build_info.hpp"
#include "swin/latency.hpp"
#include "swin/session.hpp"

namespace winnow::swin {
namespace {

struct measured_configuration {
  std::string name;
  prune_ratios ratios;
  latency times;
};

std::vector<measured_configuration> configurations(const latency_options& asked,
                                                   const model& network) {
  std::vector<measured_configuration> list;
  const auto add = [&](const std::string& name, const prune_ratios& ratios) {
    for (const measured_configuration& each : list)
      if (each.ratios == ratios) return;
    list.push_back({name, ratios, {}});
  };
  add("dense", parse_prune("dense", network));
  if (asked.prune.empty())
    for (const named_configuration& each : named_configurations()) add(each.name, each.ratios);
  for (const std::string& text : asked.prune) add(text, parse_prune(text, network));
  return list;
}

void print_heading(const session& work, const latency_options& asked) {
  std::printf(
      "%s\n%d forwards to warm up, %d measured, mean of the middle half, one CUDA graph\n\n",
      work.description().c_str(), asked.timing.warm_up, asked.timing.repeats);
  std::printf("%-10s %8s %8s %7s %9s   %s\n", "", "GPU ms", "wall ms", "faster", "choosing",
              "stages, ms");
}

void print_row(const measured_configuration& each, double dense_wall) {
  const latency& times = each.times;
  std::printf("%-10.10s %8.3f %8.3f %6.2fx %6.1f us  ", each.name.c_str(), times.gpu, times.wall,
              dense_wall / times.wall, times.choosing * 1e3);
  for (const double stage : times.stages) std::printf(" %6.3f", stage);
  std::printf("\n");
  std::fflush(stdout);
}

void write_json(const std::string& path, const session& work, const latency_options& asked,
                const std::vector<measured_configuration>& list) {
  nlohmann::ordered_json report;
  report["version"] = eval::build_info::version;
  report["commit"] = eval::build_info::commit;
  report["setup"] = work.description();
  report["protocol"] = {{"warm_up", asked.timing.warm_up},
                        {"repeats", asked.timing.repeats},
                        {"mean_of", "middle half"}};
  for (const measured_configuration& each : list)
    report["configurations"].push_back({{"name", each.name},
                                        {"ratios", each.ratios},
                                        {"gpu_ms", each.times.gpu},
                                        {"wall_ms", each.times.wall},
                                        {"speedup_wall", list.front().times.wall / each.times.wall},
                                        {"choosing_ms", each.times.choosing},
                                        {"stages_ms", each.times.stages}});
  std::ofstream file(path);
  file << report.dump(2) << '\n';
  if (!file.flush()) throw support::input_error(path, "cannot be written");
}

}  // namespace

void run_latency_command(const latency_options& asked) {
  std::vector<measured_configuration> list = configurations(asked, model());
  session work(asked);
  print_heading(work, asked);
  for (measured_configuration& each : list) {
    work.network().set_prune(each.ratios);
    each.times = measure(work.network(), work.first_batch(), asked.timing);
    print_row(each, list.front().times.wall);
  }
  if (asked.json) write_json(*asked.json, work, asked, list);
}

}  // namespace winnow::swin
