// SPDX-License-Identifier: Apache-2.0
// windows > ../windows.svg
// The picture of the guide: a simulated scan from above, cut into cubic windows (left) and spherical
// windows (right), one colour a window. The sensor stands in the middle.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "support/lidar.hpp"
#include "support/voxel.hpp"
#include "winnow/reference.hpp"

namespace {

using winnow::support::point;

constexpr double reach = 24.0;  // metres shown in each direction
constexpr double panel = 420.0;
constexpr double gap = 20.0;
constexpr double caption = 28.0;
// Pale to strong, neighbours in the list well apart.
const char* const palette[] = {"#4477aa", "#ee6677", "#228833", "#ccbb44",
                               "#66ccee", "#aa3377", "#888888", "#ee8866"};

/// The tokens of a street, seen from above.
std::vector<point> visible_tokens() {
  std::vector<point> tokens;
  for (const point& p : winnow::support::voxelise(winnow::support::simulate_lidar({}).points, 0.35))
    if (std::fabs(p[0]) < reach && std::fabs(p[1]) < reach) tokens.push_back(p);
  return tokens;
}

/// The window of each token.
template <class Window>
std::vector<int> windows_of(const Window& window, const std::vector<point>& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  winnow::point_set points;
  points.coordinates = winnow::tensor_view<const float, 2>(tokens[0].data(), {count, 3});
  const winnow::reference::host_partition built(shape_of(window, count));
  const winnow::status status = winnow::reference::build_partition(window, points, built.view());
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message());
    std::exit(1);
  }
  std::vector<int> result(tokens.size());
  for (int w = 0; w < built.counts().windows; ++w)
    for (int slot = built.view().offsets[w]; slot < built.view().offsets[w + 1]; ++slot)
      result[static_cast<std::size_t>(built.view().order[slot])] = w;
  return result;
}

void draw(const std::vector<point>& tokens, const std::vector<int>& windows, double left,
          const std::string& title) {
  const double scale = panel / (2.0 * reach);
  // A path of zero-length strokes for each colour takes a tenth of the bytes of circles.
  std::map<std::string, std::string> strokes;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    // Multiplying spreads consecutive windows over the palette.
    const auto hashed = static_cast<unsigned>(windows[i]) * 2654435761u;
    char stroke[32];
    std::snprintf(stroke, sizeof stroke, "M%.0f %.0fh0", left + (tokens[i][0] + reach) * scale,
                  caption + (reach - tokens[i][1]) * scale);
    strokes[palette[hashed >> 29]] += stroke;
  }
  std::printf("<text x='%.0f' y='18'>%s</text>\n", left, title.c_str());
  for (const auto& [colour, path] : strokes)
    std::printf("<path stroke='%s' d='%s'/>\n", colour.c_str(), path.c_str());
}

}  // namespace

int main() {
  const std::vector<point> tokens = visible_tokens();
  std::printf(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %.0f %.0f' font-family='sans-serif' "
      "font-size='14' stroke-width='2.4' stroke-linecap='round'>\n"
      "<rect width='100%%' height='100%%' fill='white'/>\n",
      2.0 * panel + gap, panel + caption);

  winnow::cubic_window cubic;
  cubic.size = {6.0f, 6.0f, 20.0f};
  draw(tokens, windows_of(cubic, tokens), 0.0, "cubic windows, 6 m");

  winnow::spherical_window spherical;
  spherical.size = {12.0f, 180.0f, 120.0f};
  spherical.exponential_a = 1.0f;
  draw(tokens, windows_of(spherical, tokens), panel + gap, "spherical windows, 12°");
  std::printf("</svg>\n");
}
