// SPDX-License-Identifier: Apache-2.0
// Tables of published figures.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "eval/format.hpp"
#include "eval/report/html.hpp"
#include "eval/report/tables.hpp"

namespace winnow::eval::report {
namespace {

using json = nlohmann::ordered_json;

/// "winnow, cubic" and so on, where this run may stand beside the figures.
std::vector<std::string> with_own_columns(std::vector<std::string> columns, const json& results) {
  if (results.at("published").at("comparable").get<bool>())
    for (const json& windows : results.at("windows"))
      columns.push_back("winnow, " + windows.at("kind").get<std::string>());
  return columns;
}

/// Calls `add(windows, attention)` for the attention of that kind in each kind of windows.
template <class Add>
void for_each_own(const json& results, const json& position, Add&& add) {
  if (!results.at("published").at("comparable").get<bool>()) return;
  for (const json& windows : results.at("windows"))
    for (const json& attention : windows.at("attention"))
      if (attention.at("position") == position) add(windows, attention);
}

std::string time_of(const json& value) {
  return value.is_null() ? "cannot" : milliseconds(value.get<double>()) + " ms";
}

double largest_of(const json& error) {
  const json& largest = error.at("largest");
  return largest.is_number() ? largest.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

std::string published_memory_table(const json& results) {
  table shown("Peak memory of forward and backward",
              with_own_columns({"Attention", "SpTr, published"}, results));
  for (const json& figure : results.at("published").at("memory")) {
    shown.group(encoding_of(figure) + " attention");
    for (const char* storage : {"float16", "float32"}) {
      const double megabytes = figure.at(std::string(storage) + "_megabytes");
      std::vector<cell> cells = {cell(number(megabytes) + " MB", megabytes / 700.0, true)};
      for_each_own(results, figure.at("position"), [&](const json& windows, const json& attention) {
        const json& run = attention.at("runs").at(storage);
        const auto extra = [&](const char* direction) {
          return run.at(direction).at("extra_bytes").get<std::int64_t>();
        };
        const std::int64_t all = run.at("tensor_bytes").get<std::int64_t>() +
                                 windows.at("partition").at("bytes").get<std::int64_t>() +
                                 std::max(extra("forward"), extra("backward"));
        cells.emplace_back(bytes(all), static_cast<double>(all) / 700e6);
      });
      shown.row(std::string(storage) == "float16" ? "half" : "float", cells);
    }
  }
  return shown.html();
}

std::string published_error_table(const json& results) {
  const json& published = results.at("published");
  table shown("Largest error against the same in float",
              with_own_columns({"Result", "SpTr, published"}, results));
  for (const json& figure : published.at("largest_error_of_out")) {
    shown.group("out, " + encoding_of(figure));
    for (const char* type : {"half", "bfloat16"}) {
      std::vector<cell> cells = {cell(scientific(figure.at(type).get<double>()))};
      for_each_own(results, figure.at("position"), [&](const json&, const json& attention) {
        cells.emplace_back(scientific(largest_of(attention.at("errors").at("out").at(type))));
      });
      shown.row(type, cells);
    }
  }
  const json& range = published.at("largest_error_of_table_gradients");
  shown.group("table gradients, contextual, half");
  const std::pair<const char*, const char*> own_losses[] = {
      {"mean loss", "gradients_of_mean_loss"}, {"dO ~ N(0, 1)", "gradients_of_normal_loss"}};
  for (const auto& [title, loss] : own_losses) {
    std::vector<cell> cells = {cell(scientific(range.at(0).get<double>()) + " to " +
                                    scientific(range.at(1).get<double>()))};
    for_each_own(results, "contextual", [&, gradients = loss](const json&, const json& attention) {
      double largest = 0.0;
      for (const char* tensor : {"dTq", "dTk", "dTv"}) {
        const double error = largest_of(attention.at("errors").at(gradients).at(tensor).at("half"));
        // Not std::max, which would lose a NaN.
        if (!(error <= largest)) largest = error;
      }
      cells.emplace_back(scientific(largest));
    });
    shown.row(title, cells);
  }
  return shown.html();
}

std::string published_time_table(const json& results) {
  const json& published = results.at("published");
  const bool is_own = published.at("comparable").get<bool>();
  std::vector<std::string> columns = {"Work", "SpTr, half", "SpTr, float", "Flash\u00adAttention-2",
                                      "Flex\u00adAttention"};
  if (is_own) {
    columns.emplace_back("winnow, half");
    columns.emplace_back("winnow, float");
  }
  table shown("Time on the reference benchmark", columns);
  for (const json& figure : published.at("milliseconds")) {
    std::vector<cell> cells;
    for (const char* system : {"sptr_half", "sptr_float", "flash_attention", "flex_attention"})
      cells.emplace_back(time_of(figure.at(system)));
    const bool is_both = figure.at("backward").get<bool>();
    if (!is_both) shown.group(figure.at("kind").get<std::string>() + ", " + encoding_of(figure));
    for_each_own(results, figure.at("position"), [&](const json& windows, const json& attention) {
      if (windows.at("kind") != figure.at("kind")) return;
      for (const char* storage : {"float16", "float32"}) {
        const json& run = attention.at("runs").at(storage);
        const auto seconds = [&](const char* direction) {
          return run.at(direction).at("seconds").get<double>();
        };
        const double both = seconds("forward") + (is_both ? seconds("backward") : 0.0);
        cells.emplace_back(milliseconds(1e3 * both) + " ms");
      }
    });
    shown.row(is_both ? "forward and backward" : "forward", cells);
  }
  return shown.html();
}

}  // namespace winnow::eval::report
