// SPDX-License-Identifier: Apache-2.0
#include "swin/scatter_plot.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace winnow::swin {
namespace {

constexpr double picture_width = 800, picture_height = 500;
constexpr double left = 80, right = 30, top = 50, bottom = 60;
constexpr int wanted_ticks = 6;

template <class... Values>
std::string format(const char* text, Values... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, text, values...);
  return buffer;
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (c == '&')
      result += "&amp;";
    else if (c == '"')
      result += "&quot;";
    else
      result += c;
  }
  return result;
}

/// A range of values on a range of pixels, with round ticks.
class axis {
 public:
  axis(double least, double largest, double from, double to) : from_(from), to_(to) {
    if (!(largest > least)) {
      const double room = least == 0.0 ? 1.0 : std::fabs(least) * 0.05;
      least -= room;
      largest = least + 2.0 * room;
    }
    const double rough = (largest - least) / wanted_ticks;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    step_ = power * (rough < 1.5 * power   ? 1
                     : rough < 3.5 * power ? 2
                     : rough < 7.5 * power ? 5
                                           : 10);
    least_ = std::floor(least / step_) * step_;
    largest_ = std::ceil(largest / step_) * step_;
  }
  [[nodiscard]] double pixel(double value) const {
    return from_ + (value - least_) / (largest_ - least_) * (to_ - from_);
  }
  [[nodiscard]] std::vector<double> ticks() const {
    std::vector<double> result;
    const int count = static_cast<int>(std::lround((largest_ - least_) / step_));
    for (int i = 0; i <= count; ++i) result.push_back(least_ + i * step_);
    return result;
  }

 private:
  double from_, to_, least_ = 0.0, largest_ = 1.0, step_ = 1.0;
};

std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  return format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor) + escaped(text) +
         "</text>\n";
}

std::string axes(const axis& across, const axis& up, const std::string& latency_axis,
                 const std::string& score_axis) {
  std::string result = "<g stroke=\"#ddd\">\n";
  const double base = picture_height - bottom;
  for (const double tick : across.ticks())
    result += format("<path d=\"M%.1f %.1fV%.1f\"/>\n", across.pixel(tick), top, base);
  for (const double tick : up.ticks())
    result +=
        format("<path d=\"M%.1f %.1fH%.1f\"/>\n", left, up.pixel(tick), picture_width - right);
  result += "</g>\n";
  for (const double tick : across.ticks())
    result += text_at(across.pixel(tick), base + 20, "middle", format("%.4g", tick));
  for (const double tick : up.ticks())
    result += text_at(left - 8, up.pixel(tick) + 4, "end", format("%.4g", tick));
  result +=
      text_at((left + picture_width - right) / 2, picture_height - 14, "middle", latency_axis);
  const double middle = (top + base) / 2;
  return result + format("<g transform=\"rotate(-90 20 %.1f)\">", middle) +
         text_at(20, middle, "middle", score_axis) + "</g>\n";
}

std::string circle(const plotted_point& point, const axis& across, const axis& up) {
  return format("<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%d\" fill=\"%s\"><title>",
                across.pixel(point.latency), up.pixel(point.score), point.on_front ? 5 : 3,
                point.on_front ? "#c0392b" : "#8aa0b4") +
         escaped(point.label) + "</title></circle>\n";
}

}  // namespace

std::string scatter_plot(const std::vector<plotted_point>& points, const std::string& title,
                         const std::string& latency_axis, const std::string& score_axis) {
  double least[2] = {0.0, 0.0}, largest[2] = {1.0, 1.0};
  for (std::size_t i = 0; i < points.size(); ++i) {
    const double values[2] = {points[i].latency, points[i].score};
    for (int d = 0; d < 2; ++d) {
      least[d] = i == 0 ? values[d] : std::min(least[d], values[d]);
      largest[d] = i == 0 ? values[d] : std::max(largest[d], values[d]);
    }
  }
  const axis across(least[0], largest[0], left, picture_width - right);
  const axis up(least[1], largest[1], picture_height - bottom, top);
  std::string result = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"%.0f\" height=\"%.0f\" fill=\"white\"/>\n",
      picture_width, picture_height, picture_width, picture_height);
  result += text_at(left, top - 20, "start", title);
  result += axes(across, up, latency_axis, score_axis);

  std::vector<plotted_point> front;
  for (const plotted_point& point : points) {
    if (point.on_front)
      front.push_back(point);
    else
      result += circle(point, across, up);
  }
  std::sort(front.begin(), front.end(),
            [](const auto& a, const auto& b) { return a.latency < b.latency; });
  if (!front.empty()) {
    result += "<polyline fill=\"none\" stroke=\"#c0392b\" stroke-width=\"1.5\" points=\"";
    for (const plotted_point& point : front)
      result += format("%.2f,%.2f ", across.pixel(point.latency), up.pixel(point.score));
    result += "\"/>\n";
  }
  for (const plotted_point& point : front) result += circle(point, across, up);
  return result + "</svg>\n";
}

}  // namespace winnow::swin
