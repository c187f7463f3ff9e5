// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace winnow::eval::report {

/// A picture of few colours.
struct indexed_image {
  int width = 0;
  int height = 0;
  std::vector<std::array<std::uint8_t, 4>> palette;  ///< red, green, blue, opacity
  std::vector<std::uint8_t> pixels;                  ///< [height, width], indices of the palette
};

/// The image as a PNG file. Its compression is deflate's fixed code with a search for repeats that
/// remembers one place per three bytes: a tenth of the pixels' size for scattered dots.
std::string png(const indexed_image& image);

std::string base64(std::string_view bytes);

}  // namespace winnow::eval::report
