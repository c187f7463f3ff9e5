// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>

#include "winnow/detail/search/random.hpp"
#include "winnow/detail/search/variation.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/ratio_sampler.hpp"

namespace winnow {

inline status ratio_sampler::sample(const ratio_space& space, ratio_levels& result) noexcept {
  WINNOW_REQUIRE(space.pairs() > 0, "space: has no stages");
  return detail::guard_allocation([&]() -> status {
    ratio_levels levels(static_cast<std::size_t>(space.pairs()));
    detail::search_random random(state_);
    detail::draw_levels(space, random, levels);
    state_ = random.state();
    result = std::move(levels);
    return {};
  });
}

}  // namespace winnow
