// SPDX-License-Identifier: Apache-2.0
#include "eval/report/scan_picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <map>
#include <set>
#include <utility>

#include "eval/format.hpp"
#include "eval/report/html.hpp"
#include "eval/report/png.hpp"

namespace winnow::eval::report {
namespace {

using support::point;

constexpr int pixels = 880;

// Paul Tol's bright colours and two more: apart for colour-blind readers, visible on white and black.
constexpr std::array<std::array<std::uint8_t, 4>, 9> palette = {{{0, 0, 0, 0},
                                                                 {0x44, 0x77, 0xaa, 255},
                                                                 {0xee, 0x66, 0x77, 255},
                                                                 {0x22, 0x88, 0x33, 255},
                                                                 {0xcc, 0xbb, 0x44, 255},
                                                                 {0x66, 0xcc, 0xee, 255},
                                                                 {0xaa, 0x33, 0x77, 255},
                                                                 {0x88, 0x88, 0x88, 255},
                                                                 {0xee, 0x88, 0x66, 255}}};

/// Multiplying spreads consecutive windows over the colours.
std::uint8_t colour_of(std::int32_t window) {
  return static_cast<std::uint8_t>(1u + (static_cast<std::uint32_t>(window) * 2654435761u >> 29));
}

/// Tokens of the first batch item that lie in a window, from the lowest to the highest.
std::vector<std::size_t> shown_tokens(const token_set& tokens,
                                      const std::vector<std::int32_t>& window_of_token) {
  std::vector<std::size_t> shown;
  for (std::size_t n = 0; n < tokens.coordinates.size(); ++n)
    if (tokens.batch[n] == tokens.batch.front() && window_of_token[n] >= 0) shown.push_back(n);
  std::stable_sort(shown.begin(), shown.end(), [&](std::size_t a, std::size_t b) {
    return tokens.coordinates[a][2] < tokens.coordinates[b][2];
  });
  return shown;
}

indexed_image paint(const scan_picture& picture, const token_set& tokens,
                    const std::vector<std::int32_t>& window_of_token) {
  indexed_image image;
  image.width = image.height = pixels;
  image.palette.assign(palette.begin(), palette.end());
  image.pixels.assign(std::size_t{pixels} * pixels, 0);
  const double scale = pixels / picture.view.side;
  const int edge = std::clamp(static_cast<int>(std::lround(picture.token_edge * scale)), 2, 8);
  const int centring = (edge - 1) / 2;
  const auto pixel = [&](double metres) {
    return std::floor((metres + picture.view.side / 2) * scale - centring);
  };
  for (const std::size_t n : shown_tokens(tokens, window_of_token)) {
    const point& at = tokens.coordinates[n];
    const double left = pixel(at[0] - picture.view.x);
    const double top = pixel(picture.view.y - at[1]);
    if (!(left > -edge && left < pixels && top > -edge && top < pixels)) continue;
    for (int y = std::max(0, static_cast<int>(top));
         y < std::min(pixels, static_cast<int>(top) + edge); ++y)
      for (int x = std::max(0, static_cast<int>(left));
           x < std::min(pixels, static_cast<int>(left) + edge); ++x)
        image.pixels[static_cast<std::size_t>(y) * pixels + static_cast<std::size_t>(x)] =
            colour_of(window_of_token[n]);
  }
  return image;
}

/// 1, 2 or 5 times a power of ten, at most `limit`.
double round_length(double limit) {
  const double power = std::pow(10.0, std::floor(std::log10(limit)));
  return limit >= 5 * power ? 5 * power : limit >= 2 * power ? 2 * power : power;
}

}  // namespace

square whole_scan(const token_set& tokens) {
  square result;
  if (tokens.size() == 0) return result;
  std::array<std::vector<float>, 2> values;
  for (std::size_t n = 0; n < tokens.coordinates.size(); ++n)
    if (tokens.batch[n] == tokens.batch.front())
      for (std::size_t axis = 0; axis < 2; ++axis)
        values[axis].push_back(tokens.coordinates[n][axis]);
  std::array<double, 2> middle{};
  double side = 0.0;
  for (std::size_t axis = 0; axis < 2; ++axis) {
    std::vector<float>& sorted = values[axis];
    std::sort(sorted.begin(), sorted.end());
    const std::size_t cut = sorted.size() / 50;
    const double low = sorted[cut];
    const double high = sorted[sorted.size() - 1 - cut];
    middle[axis] = (low + high) / 2;
    side = std::max(side, high - low);
  }
  return {middle[0], middle[1], side > 0.0 ? 1.1 * side : 1.0};
}

square busiest_part(const token_set& tokens, const std::vector<std::int32_t>& window_of_token,
                    double side) {
  // Windows by cells of half the side; a part is two by two cells.
  std::map<std::pair<int, int>, std::set<std::int32_t>> windows;
  const double cell = side / 2;
  for (const std::size_t n : shown_tokens(tokens, window_of_token)) {
    const point& at = tokens.coordinates[n];
    windows[{static_cast<int>(std::floor(at[0] / cell)),
             static_cast<int>(std::floor(at[1] / cell))}]
        .insert(window_of_token[n]);
  }
  const auto count = [&](int x, int y) {
    const auto found = windows.find({x, y});
    return found == windows.end() ? std::size_t{0} : found->second.size();
  };
  square best{0.0, 0.0, side};
  std::size_t most = 0;
  for (const auto& each : windows) {
    const auto [x, y] = each.first;
    const std::size_t here = count(x, y) + count(x + 1, y) + count(x, y + 1) + count(x + 1, y + 1);
    if (here <= most) continue;
    most = here;
    best = {(x + 1) * cell, (y + 1) * cell, side};
  }
  return best;
}

std::string draw_scan(const scan_picture& picture, const token_set& tokens,
                      const std::vector<std::int32_t>& window_of_token) {
  const std::string size = std::to_string(pixels);
  const double scale = pixels / picture.view.side;
  std::string svg = "<svg class=\"scan\" role=\"img\" viewBox=\"0 0 " + size + " " + size +
                    "\"><title>" + escaped(picture.title) + "</title>\n<image width=\"" + size +
                    "\" height=\"" + size + "\" href=\"data:image/png;base64," +
                    base64(png(paint(picture, tokens, window_of_token))) + "\"/>\n";
  if (picture.marked) {
    const square& part = *picture.marked;
    const double edge = part.side * scale;
    const double left = (part.x - picture.view.x) * scale + pixels / 2.0 - edge / 2;
    const double top = (picture.view.y - part.y) * scale + pixels / 2.0 - edge / 2;
    svg += "<rect class=\"frame\" x=\"" + number(left) + "\" y=\"" + number(top) + "\" width=\"" +
           number(edge) + "\" height=\"" + number(edge) + "\"/>\n";
  }
  const double length = round_length(picture.view.side / 4);
  const double end = 24 + length * scale;
  svg += "<rect class=\"scale-back\" x=\"12\" y=\"" + number(pixels - 66) + "\" width=\"" +
         number(std::max(length * scale, 72.0) + 24) + "\" height=\"64\"/>\n";
  svg += "<path class=\"scale\" d=\"M24 " + number(pixels - 26) + "v12H" + number(end) +
         "v-12\"/><text x=\"24\" y=\"" + number(pixels - 36) + "\">" + number(length) +
         " m</text>\n</svg>\n";
  return svg;
}

}  // namespace winnow::eval::report
