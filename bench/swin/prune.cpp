// SPDX-License-Identifier: Apache-2.0
#include "swin/prune.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "winnow/selection.hpp"

namespace winnow::swin {
namespace {

double parse_ratio(const std::string& word) {
  double value = 0.0;
  const char* end = word.data() + word.size();
  const auto [rest, error] = std::from_chars(word.data(), end, value);
  if (error != std::errc() || rest != end)
    throw support::input_error("prune", "\"" + word + "\" is neither a number nor a name");
  return value;
}

std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::vector<double> parse_words(const std::string& text) {
  std::istringstream words(text);
  std::vector<double> ratios;
  for (std::string word; words >> word;) ratios.push_back(parse_ratio(word));
  return ratios;
}

std::vector<double> parse_stage(const std::string& text, int depth, int stage) {
  std::vector<double> ratios = parse_words(text);
  if (ratios.size() == 1) ratios.assign(static_cast<std::size_t>(depth), ratios.front());
  if (ratios.size() != static_cast<std::size_t>(depth))
    throw support::input_error("prune", "stage " + std::to_string(stage + 1) + " has " +
                                            std::to_string(ratios.size()) + " ratios and " +
                                            std::to_string(depth) + " blocks");
  return ratios;
}

}  // namespace

const std::vector<named_configuration>& named_configurations() {
  static const std::vector<named_configuration> list = {
      {"dense", {{0, 0}, {0, 0}, {0, 0, 0, 0, 0, 0}, {0, 0}}},
      {"config1", {{0.3, 0.3}, {0, 0}, {0.1, 0.1, 0.2, 0.2, 0.2, 0.2}, {0, 0}}},
      {"config2", {{0.6, 0.6}, {0, 0}, {0.2, 0.2, 0.4, 0.4, 0.5, 0.5}, {0, 0}}},
      {"config3", {{0.7, 0.7}, {0, 0}, {0.2, 0.2, 0.4, 0.4, 0.5, 0.5}, {0, 0}}},
      {"uniform60", {{0.6, 0.6}, {0.6, 0.6}, {0.6, 0.6, 0.6, 0.6, 0.6, 0.6}, {0.6, 0.6}}},
  };
  return list;
}

prune_ratios parse_prune(const std::string& text, const model& network) {
  prune_ratios result;
  for (const named_configuration& each : named_configurations())
    if (text == each.name) result = each.ratios;
  if (result.empty() && text.find('|') == std::string::npos) {
    const std::vector<double> everywhere = parse_words(text);
    if (everywhere.size() != 1)
      throw support::input_error(
          "prune", "\"" + text + "\" is neither one ratio nor has it a | " + "between stages");
    for (const int depth : network.depths)
      result.emplace_back(static_cast<std::size_t>(depth), everywhere.front());
  } else if (result.empty()) {
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, '|');) {
      const int stage = static_cast<int>(result.size());
      if (stage >= network.stages())
        throw support::input_error(
            "prune", "more than " + std::to_string(network.stages()) + " stages are given");
      result.push_back(parse_stage(part, network.depth_of(stage), stage));
    }
  }
  check(result, network);
  return result;
}

std::string to_text(const prune_ratios& ratios) {
  std::string text;
  for (std::size_t s = 0; s < ratios.size(); ++s) {
    if (s > 0) text += " |";
    for (const double ratio : ratios[s]) text += (text.empty() ? "" : " ") + short_text(ratio);
  }
  return text;
}

prune_ratios split_stages(const std::vector<double>& block_ratios, const model& network) {
  prune_ratios result;
  auto next = block_ratios.begin();
  for (const int depth : network.depths) {
    result.emplace_back(next, next + depth);
    next += depth;
  }
  return result;
}

bool is_dense(const prune_ratios& ratios) {
  return std::all_of(ratios.begin(), ratios.end(), [](const std::vector<double>& stage) {
    return std::all_of(stage.begin(), stage.end(), [](double ratio) { return ratio == 0.0; });
  });
}

void check(const prune_ratios& ratios, const model& network) {
  if (static_cast<int>(ratios.size()) != network.stages())
    throw support::input_error("prune", std::to_string(ratios.size()) + " stages are given, not " +
                                            std::to_string(network.stages()));
  for (int s = 0; s < network.stages(); ++s) {
    const std::vector<double>& stage = ratios[static_cast<std::size_t>(s)];
    if (static_cast<int>(stage.size()) != network.depth_of(s))
      throw support::input_error("prune", "stage " + std::to_string(s + 1) + " has " +
                                              std::to_string(stage.size()) + " ratios and " +
                                              std::to_string(network.depth_of(s)) + " blocks");
    double first[2] = {0.0, 0.0};
    for (std::size_t b = 0; b < stage.size(); ++b) {
      const std::string name =
          "stage " + std::to_string(s + 1) + ", block " + std::to_string(b + 1) + ": ";
      if (!(stage[b] >= 0.0 && stage[b] < 1.0))
        throw support::input_error("prune",
                                   name + "ratio " + short_text(stage[b]) + ", must be in [0, 1)");
      if (stage[b] == 0.0) continue;
      double& ranked = first[b % 2];
      if (stage[b] < ranked)
        throw support::input_error(
            "prune", name + "ratio " + short_text(stage[b]) + " keeps more windows than " +
                         short_text(ranked) +
                         ", for which an earlier block of the same shift ranked them");
      if (ranked == 0.0) ranked = stage[b];
    }
  }
}

stage_pruning pruning_of(const std::vector<double>& ratios, const grid_window& map) {
  stage_pruning result;
  for (std::size_t b = 0; b < ratios.size(); ++b) {
    const std::int64_t kept = kept_windows(map.windows_per_image(), ratios[b]);
    result.kept.push_back(kept);
    result.pruned.push_back(ratios[b] > 0.0);
    if (ratios[b] == 0.0) continue;
    if (result.ranked_at < 0) result.ranked_at = static_cast<int>(b);
    result.longest[b % 2] = std::max(result.longest[b % 2], kept);
  }
  return result;
}

}  // namespace winnow::swin
