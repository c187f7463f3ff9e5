// SPDX-License-Identifier: Apache-2.0
/// \file
/// The scan from above, one colour a window.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "eval/inputs.hpp"

namespace winnow::eval::report {

/// A square seen from above, in metres.
struct square {
  double x = 0.0, y = 0.0;  ///< its middle
  double side = 1.0;
};

/// Holds nearly all tokens of the first batch item; the middle of a street, not one far wall.
square whole_scan(const token_set& tokens);

/// The part of that side where most windows are.
square busiest_part(const token_set& tokens, const std::vector<std::int32_t>& window_of_token,
                    double side);

struct scan_picture {
  square view;
  std::optional<square> marked;  ///< drawn as a frame
  double token_edge = 0.0;       ///< metres
  std::string title;
};

/// An SVG that holds the picture as a PNG, with a scale. Higher tokens hide lower ones; colours
/// repeat, but neighbours mostly differ.
std::string draw_scan(const scan_picture& picture, const token_set& tokens,
                      const std::vector<std::int32_t>& window_of_token);

}  // namespace winnow::eval::report
