// SPDX-License-Identifier: Apache-2.0
/// \file
/// A picture of a search: score against latency, the front marked. Host only.
#pragma once

#include <string>
#include <vector>

namespace winnow::swin {

struct plotted_point {
  double latency = 0.0;
  double score = 0.0;
  bool on_front = false;
  std::string label;  ///< shown by browsers where the pointer is
};

/// An SVG document. Points in any order; none gives empty axes.
std::string scatter_plot(const std::vector<plotted_point>& points, const std::string& title,
                         const std::string& latency_axis, const std::string& score_axis);

}  // namespace winnow::swin
