// SPDX-License-Identifier: Apache-2.0
/// \file
/// Configurations with a latency and a score, and the best trades of one for the other. Host only.
#pragma once

#include <vector>

#include "winnow/ratio_space.hpp"
#include "winnow/status.hpp"

namespace winnow {

/// A configuration that was inside the latency band, with its latency and score.
struct scored_configuration {
  ratio_levels levels;
  double latency = 0.0;
  double score = 0.0;
};

/// Those of `scored` to which no other is preferable in latency and in score, by ascending latency.
/// Of several equal ones the first is taken.
status pareto_front(const std::vector<scored_configuration>& scored,
                    std::vector<scored_configuration>& front) noexcept;

}  // namespace winnow

#include "winnow/detail/search/front.hpp"
