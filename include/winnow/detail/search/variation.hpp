// SPDX-License-Identifier: Apache-2.0
/// \file
/// How configurations come about: by chance, by mutation, by crossover. Each result is in order
/// inside its stages.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/search/random.hpp"
#include "winnow/ratio_space.hpp"

namespace winnow::detail {

inline std::uint8_t draw_level(const ratio_space& space, search_random& random) noexcept {
  return static_cast<std::uint8_t>(random.below(static_cast<std::uint32_t>(space.levels())));
}

/// What `ratio_sampler` draws. \param levels as long as the space has pairs.
inline void draw_levels(const ratio_space& space, search_random& random,
                        ratio_levels& levels) noexcept {
  for (std::uint8_t& level : levels) level = draw_level(space, random);
  space.sort_stages(levels);
}

/// Draws each level anew with a probability.
inline void mutate_levels(const ratio_space& space, search_random& random, double probability,
                          ratio_levels& levels) noexcept {
  for (std::uint8_t& level : levels)
    if (random.happens(probability)) level = draw_level(space, random);
  space.sort_stages(levels);
}

/// Takes each level from one of two parents. \param levels the first of them, becomes the child.
inline void cross_levels(const ratio_space& space, search_random& random, const ratio_levels& other,
                         ratio_levels& levels) noexcept {
  for (std::size_t i = 0; i < levels.size(); ++i)
    if (random.below(2) == 1) levels[i] = other[i];
  space.sort_stages(levels);
}

}  // namespace winnow::detail
