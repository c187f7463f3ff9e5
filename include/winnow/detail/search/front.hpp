// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "winnow/detail/util/guard.hpp"
#include "winnow/pareto_front.hpp"

namespace winnow {
namespace detail {

/// A higher score; among equal ones a lower latency.
inline bool better(const scored_configuration& a, const scored_configuration& b) noexcept {
  return std::tie(b.score, a.latency) < std::tie(a.score, b.latency);
}

}  // namespace detail

inline status pareto_front(const std::vector<scored_configuration>& scored,
                           std::vector<scored_configuration>& front) noexcept {
  return detail::guard_allocation([&]() -> status {
    std::vector<const scored_configuration*> order;
    order.reserve(scored.size());
    for (const scored_configuration& each : scored) order.push_back(&each);
    std::stable_sort(order.begin(), order.end(),
                     [](const scored_configuration* a, const scored_configuration* b) {
                       return std::tie(a->latency, b->score) < std::tie(b->latency, a->score);
                     });
    std::vector<scored_configuration> kept;
    for (const scored_configuration* each : order)
      if (kept.empty() || each->score > kept.back().score) kept.push_back(*each);
    front = std::move(kept);
    return {};
  });
}

}  // namespace winnow
