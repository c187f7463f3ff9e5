// SPDX-License-Identifier: Apache-2.0
#include "eval/report/chart.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "eval/format.hpp"
#include "eval/report/html.hpp"

namespace winnow::eval::report {
namespace {

using json = nlohmann::ordered_json;

constexpr double width = 420.0;
constexpr double height = 268.0;
constexpr double left = 40.0;
constexpr double right = width - 6.0;
constexpr double top = 62.0;  // below the percentiles' labels
constexpr double bottom = height - 38.0;

std::string pixels(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string text(double x, double y, const char* anchor, const std::string& content) {
  return "<text x=\"" + pixels(x) + "\" y=\"" + pixels(y) + "\" text-anchor=\"" + anchor + "\">" +
         escaped(content) + "</text>";
}

std::string bar(double x, double bar_width, double share, double most, const char* style,
                const std::string& title) {
  const double tall = (bottom - top) * share / most;
  return std::string("<rect class=\"") + style + "\" x=\"" + pixels(x) + "\" y=\"" +
         pixels(bottom - tall) + "\" width=\"" + pixels(bar_width) + "\" height=\"" + pixels(tall) +
         "\"><title>" + escaped(title) + "</title></rect>";
}

/// The percentiles by size; several may have the same.
std::vector<std::pair<std::int64_t, std::string>> marks_of(const json& window_tokens) {
  std::vector<std::pair<std::int64_t, std::string>> marks;
  for (const char* name : {"p50", "p90", "p99", "max"}) {
    const std::int64_t size = window_tokens.at(name);
    if (!marks.empty() && marks.back().first == size) {
      marks.back().second += std::string(", ") + name;
    } else {
      marks.emplace_back(size, name);
    }
  }
  return marks;
}

}  // namespace

std::string size_histogram(const json& window_tokens, const std::string& title) {
  std::string svg = "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 " + number(width) + " " +
                    number(height) + "\"><title>" + escaped(title) + "</title>\n";
  const json& bins = window_tokens.at("bins");
  if (bins.empty()) return svg + text(width / 2, height / 2, "middle", "no windows") + "</svg>\n";

  double windows = 0.0;
  double tokens = 0.0;
  for (const json& bin : bins) {
    windows += bin.at("windows").get<double>();
    tokens += bin.at("tokens").get<double>();
  }
  const auto share_of_windows = [&](const json& bin) {
    return bin.at("windows").get<double>() / windows;
  };
  const auto share_of_tokens = [&](const json& bin) {
    return bin.at("tokens").get<double>() / tokens;
  };
  double most = 0.0;
  for (const json& bin : bins) most = std::max({most, share_of_windows(bin), share_of_tokens(bin)});
  const int tenths = static_cast<int>(std::ceil(10.0 * most - 1e-9));
  most = tenths / 10.0;
  for (int tenth = 0; tenth <= tenths; tenth += tenths > 5 ? 2 : 1) {
    const double y = bottom - (bottom - top) * tenth / tenths;
    svg += "<path class=\"grid\" d=\"M" + pixels(left) + " " + pixels(y) + "H" + pixels(right) +
           "\"/>" + text(left - 6, y + 4, "end", std::to_string(10 * tenth) + "%") + "\n";
  }

  const double step = (right - left) / static_cast<double>(bins.size());
  double x = left;
  for (const json& bin : bins) {
    const std::int64_t from = bin.at("from");
    const std::int64_t to = bin.at("to");
    const std::string range =
        from == to ? std::to_string(from) : std::to_string(from) + "–" + std::to_string(to);
    svg += bar(x + 0.08 * step, 0.4 * step, share_of_windows(bin), most, "one",
               "windows of " + range + " tokens: " + grouped(bin.at("windows")));
    svg += bar(x + 0.52 * step, 0.4 * step, share_of_tokens(bin), most, "two",
               "tokens in windows of " + range + ": " + grouped(bin.at("tokens")));
    // A range fits below its bars as long as there are few.
    svg +=
        text(x + step / 2, bottom + 16, "middle", bins.size() < 8 ? range : grouped(from)) + "\n";
    x += step;
  }
  svg += text((left + right) / 2, height - 6, "middle",
              bins.size() < 8 ? "tokens of a window" : "tokens of a window, from … on");

  // Inside a bin [from, 2 from) the place grows with the logarithm. Labels come after all lines.
  std::string labels;
  double row = 14.0;
  for (const auto& [size, name] : marks_of(window_tokens)) {
    const double at = std::min(right, left + step * std::log2(static_cast<double>(size) + 0.5));
    const bool is_right = at > width / 2;
    svg += "<path class=\"mark\" d=\"M" + pixels(at) + " " + pixels(row - 9) + "V" +
           pixels(bottom) + "\"/>";
    labels += text(at + (is_right ? -5 : 5), row, is_right ? "end" : "start",
                   name + " = " + grouped(size)) +
              "\n";
    row += 14.0;
  }
  return svg + labels + "</svg>\n";
}

}  // namespace winnow::eval::report
