// SPDX-License-Identifier: Apache-2.0
#include "eval/report/tables.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "eval/format.hpp"
#include "eval/report/html.hpp"

namespace winnow::eval::report {
namespace {

using json = nlohmann::ordered_json;

/// Storage types as the tables name them.
constexpr std::array<std::pair<const char*, const char*>, 3> storages = {
    {{"float16", "half"}, {"bfloat16", "bfloat16"}, {"float32", "float"}}};

std::int64_t integer(const json& value) {
  return value.get<std::int64_t>();
}

double real(const json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::string title_of(const json& windows) {
  return windows.at("kind").get<std::string>() + " windows of " +
         size_text(windows.at("size").get<std::string>());
}

std::string capital(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z')
    text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

double share(double value, double most) {
  return most > 0.0 ? value / most : 0.0;
}

}  // namespace

std::string encoding_of(const json& attention) {
  return attention.at("position") == "contextual" ? "contextual" : "plain";
}

std::string windows_table(const json& results) {
  std::vector<std::string> columns = {""};
  for (const json& windows : results.at("windows"))
    columns.push_back(capital(windows.at("kind").get<std::string>()));
  columns[0] = "Windows";
  table shown("Windows and their sizes", columns);
  const auto row = [&](const char* title, const auto& text_of) {
    std::vector<cell> cells;
    for (const json& windows : results.at("windows")) cells.emplace_back(text_of(windows));
    shown.row(title, cells);
  };
  const auto count = [&](const char* title, const auto& value_of) {
    row(title, [&](const json& windows) { return grouped(integer(value_of(windows))); });
  };
  row("size", [](const json& windows) { return size_text(windows.at("size").get<std::string>()); });
  count("windows", [](const json& windows) { return windows.at("windows"); });
  count("pairs of tokens", [](const json& windows) { return windows.at("pairs"); });
  const std::pair<const char*, const char*> sizes[] = {
      {"tokens of a window, p50", "p50"}, {"p90", "p90"}, {"p99", "p99"}, {"largest", "max"}};
  for (const auto& each : sizes) {
    const char* name = each.second;
    count(each.first, [&](const json& windows) { return windows.at("window_tokens").at(name); });
  }
  return shown.html();
}

std::string memory_table(const json& windows) {
  const json& partition = windows.at("partition");
  double most = 0.0;
  for (const json& attention : windows.at("attention")) {
    const json& pairs = attention.at("runs").at("float16").at("pair_list_bytes");
    most = std::max({most, real(pairs.at("forward")), real(pairs.at("backward"))});
  }
  most =
      std::max({most, real(partition.at("bytes")), real(partition.at("build").at("extra_bytes"))});
  const auto shown_bytes = [&](const json& value, bool other) {
    return cell(bytes(integer(value)), share(real(value), most), other);
  };
  table shown(capital(title_of(windows)), {"Half storage", "winnow", "list of pairs"});
  shown.group("partition, shared by all layers");
  shown.row("held", {shown_bytes(partition.at("bytes"), false), cell("in the list")});
  shown.row("more while it is built",
            {shown_bytes(partition.at("build").at("extra_bytes"), false), cell("not counted")});
  for (const json& attention : windows.at("attention")) {
    const json& run = attention.at("runs").at("float16");
    shown.group(encoding_of(attention) + " attention");
    for (const char* direction : {"forward", "backward"})
      shown.row(direction, {shown_bytes(run.at(direction).at("extra_bytes"), false),
                            shown_bytes(run.at("pair_list_bytes").at(direction), true)});
  }
  return shown.html();
}

std::string time_table(const json& windows) {
  double most = 0.0;
  for (const json& attention : windows.at("attention"))
    for (const auto& storage : storages)
      for (const char* direction : {"forward", "backward"})
        most = std::max(most,
                        real(attention.at("runs").at(storage.first).at(direction).at("seconds")));
  const auto shown_time = [&](const json& measured) {
    const double seconds = real(measured.at("seconds"));
    return cell(duration(seconds), share(seconds, most));
  };
  table shown(capital(title_of(windows)), {"Storage", "forward", "backward"});
  for (const json& attention : windows.at("attention")) {
    shown.group(encoding_of(attention) + " attention");
    for (const auto& storage : storages) {
      const json& run = attention.at("runs").at(storage.first);
      shown.row(storage.second, {shown_time(run.at("forward")), shown_time(run.at("backward"))});
    }
  }
  shown.group("partition");
  shown.row("build", {cell(duration(real(windows.at("partition").at("build").at("seconds")))),
                      cell("serves both")});
  return shown.html();
}

namespace {

std::string errors_table(const json& windows, const json& attention, const json& rows,
                         bool limited) {
  table shown(capital(title_of(windows)) + ", " + encoding_of(attention),
              {"Tensor", "half", "bfloat16", "float"});
  for (const auto& [tensor, errors] : rows.items()) {
    std::vector<cell> cells;
    for (const char* type : {"half", "bfloat16", "float"}) {
      const json& error = errors.at(type);
      const double relative = real(error.at("relative"));
      cell shown_error(scientific(relative));
      shown_error.note = "max " + scientific(real(error.at("largest")));
      if (limited) {
        shown_error.bar = share(relative, real(error.at("limit")));
        shown_error.is_over = !(shown_error.bar <= 1.0);
        if (shown_error.is_over) {
          shown_error.bar = 1.0;
          shown_error.note += ", above the limit";
        }
      }
      cells.push_back(shown_error);
    }
    shown.row(tensor, cells);
  }
  return shown.html();
}

}  // namespace

std::string precision_table(const json& windows, const json& attention) {
  json rows = attention.at("errors").at("gradients_of_normal_loss");
  json with_out = {{"out", attention.at("errors").at("out")}};
  with_out.update(rows);
  return errors_table(windows, attention, with_out, true);
}

std::string mean_loss_table(const json& windows, const json& attention) {
  return errors_table(windows, attention, attention.at("errors").at("gradients_of_mean_loss"),
                      false);
}

std::string facts_table(const json& results) {
  const json& machine = results.at("machine");
  const json& asked = results.at("options");
  const json& tokens = results.at("tokens");
  table shown("What ran where", {"Fact", "Value"});
  const auto fact = [&](const char* title, const std::string& value) {
    shown.row(title, {cell(value.empty() ? "unknown" : value)});
  };
  fact("winnow", results.at("version").get<std::string>() + ", commit " +
                     results.at("commit").get<std::string>());
  fact("compiler", results.at("compiler").get<std::string>() + ", " +
                       results.at("build_type").get<std::string>());
  fact("processor", machine.at("cpu").get<std::string>() + ", " +
                        std::to_string(integer(machine.at("threads"))) + " threads");
  fact("calls run on", machine.at("calls_run_on").get<std::string>());
  fact("source", results.at("source").get<std::string>() + ", " +
                     grouped(integer(results.at("points"))) + " points");
  std::string evaluated = grouped(integer(tokens.at("evaluated")));
  if (tokens.at("available") != tokens.at("evaluated"))
    evaluated += ", the first of " + grouped(integer(tokens.at("available")));
  if (!asked.contains("coords")) {
    evaluated += ", voxels of " + number(real(asked.at("voxel"))) + " m";
    if (integer(asked.at("copies")) > 1)
      evaluated += ", " + grouped(integer(asked.at("copies"))) + " batch items";
  }
  fact("tokens", evaluated);
  fact("attention", grouped(integer(asked.at("heads"))) + " heads of " +
                        grouped(integer(asked.at("head_dim"))) + ", quant length " +
                        grouped(integer(asked.at("quant_length"))));
  fact("exponential split", "first threshold " + number(real(asked.at("exponential_a"))) + " m");
  fact("seed", asked.at("seed").dump());
  return shown.html();
}

}  // namespace winnow::eval::report
