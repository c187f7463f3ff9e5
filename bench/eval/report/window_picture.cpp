// SPDX-License-Identifier: Apache-2.0
#include "eval/report/window_picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <numeric>

#include "eval/format.hpp"
#include "eval/report/html.hpp"

namespace winnow::eval::report {
namespace {

using support::point;

constexpr double width = 420.0;
constexpr double height = 330.0;
constexpr double margin = 44.0;  // the largest dot fits into it
constexpr double largest_radius = 17.0;

std::string fixed(double value, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

struct place {
  double x = 0.0, y = 0.0;  ///< y upwards
};

struct extent {
  double low = 0.0, high = 0.0;

  explicit extent(const std::vector<double>& values) {
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    low = *least;
    high = *most;
  }
  [[nodiscard]] double size() const { return high - low; }
};

/// A token in the picture.
using projection = std::vector<place>;

projection place_all(const std::vector<double>& x, const std::vector<double>& y, bool same_scale) {
  const extent across(x);
  const extent upwards(y);
  const double room_x = width - 2 * margin;
  const double room_y = height - 2 * margin;
  double scale_x = across.size() > 0.0 ? room_x / across.size() : 1.0;
  double scale_y = upwards.size() > 0.0 ? room_y / upwards.size() : 1.0;
  if (same_scale) scale_x = scale_y = std::min(scale_x, scale_y);
  projection result(x.size());
  for (std::size_t n = 0; n < x.size(); ++n)
    result[n] = {width / 2 + (x[n] - (across.low + across.high) / 2) * scale_x,
                 height / 2 - (y[n] - (upwards.low + upwards.high) / 2) * scale_y};
  return result;
}

/// Eight corners of the box around the tokens, then the tokens, seen from the front right above.
projection oblique_view(const std::vector<point>& coordinates) {
  std::array<std::array<double, 2>, 3> box{};
  for (std::size_t axis = 0; axis < 3; ++axis) {
    std::vector<double> values(coordinates.size());
    for (std::size_t n = 0; n < values.size(); ++n) values[n] = coordinates[n][axis];
    const extent all(values);
    box[axis] = {all.low, all.high};
  }
  std::vector<double> across;
  std::vector<double> upwards;
  const auto add = [&](double x, double y, double z) {
    across.push_back(0.87 * (x + y));
    upwards.push_back(0.4 * (y - x) + z);
  };
  for (std::size_t corner = 0; corner < 8; ++corner)
    add(box[0][corner & 1], box[1][corner >> 1 & 1], box[2][corner >> 2]);
  for (const point& each : coordinates) add(each[0], each[1], each[2]);
  return place_all(across, upwards, true);
}

std::string line(const place& from, const place& to, const char* style) {
  return std::string("<path class=\"") + style + "\" d=\"M" + fixed(from.x, 1) + " " +
         fixed(from.y, 1) + "L" + fixed(to.x, 1) + " " + fixed(to.y, 1) + "\"/>";
}

std::string box_edges(const projection& corners) {
  std::string svg;
  for (std::size_t from = 0; from < 8; ++from)
    for (std::size_t axis = 1; axis < 8; axis *= 2)
      if ((from & axis) == 0) svg += line(corners[from], corners[from | axis], "edge");
  return svg + "\n";
}

std::string text(double x, double y, const char* anchor, const std::string& content) {
  return "<text x=\"" + fixed(x, 1) + "\" y=\"" + fixed(y, 1) + "\" text-anchor=\"" + anchor +
         "\">" + escaped(content) + "</text>";
}

/// Distances across, bearings upwards, with an axis for each.
std::string range_axes(const std::vector<double>& distance, const std::vector<double>& bearing) {
  const extent across(distance);
  const extent upwards(bearing);
  const double bottom = height - 26;
  return line({margin, bottom}, {width - margin, bottom}, "edge") +
         line({18, margin}, {18, height - margin}, "edge") +
         text(margin, bottom + 18, "start", fixed(across.low, 1) + " m") +
         text(width / 2, bottom + 18, "middle", "distance from the sensor") +
         text(width - margin, bottom + 18, "end", fixed(across.high, 1) + " m") +
         text(8, margin - 10, "start", fixed(upwards.high, 1) + "° bearing") +
         text(8, height - margin + 16, "start", fixed(upwards.low, 1) + "°") + "\n";
}

double distance_between(const point& a, const point& b) {
  double squared = 0.0;
  for (std::size_t axis = 0; axis < 3; ++axis) squared += (a[axis] - b[axis]) * (a[axis] - b[axis]);
  return std::sqrt(squared);
}

}  // namespace

std::string draw_window(const std::string& kind, const attention_sample& sample,
                        const std::vector<double>& weights, double largest,
                        const std::string& title) {
  std::string svg = "<svg class=\"window\" role=\"img\" viewBox=\"0 0 " + number(width) + " " +
                    number(height) + "\"><title>" + escaped(title) + "</title>\n";
  projection places;
  if (kind == "spherical") {
    std::vector<double> distance;
    std::vector<double> bearing;
    for (const point& p : sample.coordinates) {
      constexpr double degrees = 180.0 / 3.141592653589793;
      distance.push_back(distance_between(p, {}));
      bearing.push_back(std::atan2(p[1], p[0]) * degrees + 180.0);
    }
    places = place_all(distance, bearing, false);
    svg += range_axes(distance, bearing);
  } else {
    places = oblique_view(sample.coordinates);
    svg += box_edges(places);
    places.erase(places.begin(), places.begin() + 8);
  }

  // Large dots first, so that they hide no small ones.
  std::vector<std::size_t> by_weight(weights.size());
  std::iota(by_weight.begin(), by_weight.end(), std::size_t{0});
  std::stable_sort(by_weight.begin(), by_weight.end(),
                   [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  const auto query = static_cast<std::size_t>(sample.query);
  for (const std::size_t n : by_weight) {
    const double share = largest > 0.0 ? std::sqrt(weights[n] / largest) : 0.0;
    svg += "<circle class=\"key\" cx=\"" + fixed(places[n].x, 1) + "\" cy=\"" +
           fixed(places[n].y, 1) + "\" r=\"" + fixed(std::max(1.6, largest_radius * share), 1) +
           "\"><title>token " + std::to_string(sample.tokens[n]) + ", " +
           fixed(distance_between(sample.coordinates[n], sample.coordinates[query]), 2) +
           " m from the query: " + fixed(100 * weights[n], 2) + " %</title></circle>\n";
  }
  const place& at = places[query];
  svg += "<circle class=\"query-back\" cx=\"" + fixed(at.x, 1) + "\" cy=\"" + fixed(at.y, 1) +
         "\" r=\"8\"/><circle class=\"query\" cx=\"" + fixed(at.x, 1) + "\" cy=\"" +
         fixed(at.y, 1) + "\" r=\"8\"/>\n";
  return svg + "</svg>\n";
}

std::string summary_of(const std::vector<double>& weights) {
  std::vector<double> sorted = weights;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0.0;
  std::size_t needed = 0;
  while (needed < sorted.size() && sum < 0.9) sum += sorted[needed++];
  return "Largest weight " + fixed(100 * sorted.front(), 1) + " %; " + std::to_string(needed) +
         " of " + std::to_string(sorted.size()) + " tokens hold 90 %";
}

}  // namespace winnow::eval::report
