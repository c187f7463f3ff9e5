// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "winnow/detail/util/guard.hpp"
#include "winnow/ratio_space.hpp"

namespace winnow {
namespace detail {

/// Saturates.
constexpr std::uint64_t multiply(std::uint64_t a, std::uint64_t b) noexcept {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  return b != 0 && a > most / b ? most : a * b;
}

/// Non-decreasing sequences of `pairs` out of `levels`: (levels + pairs - 1) over pairs; saturates.
inline std::uint64_t sequences(int pairs, int levels) noexcept {
  std::uint64_t count = 1;
  for (std::uint64_t i = 1; i <= static_cast<std::uint64_t>(pairs); ++i) {
    // count · numerator / i without a remainder, and without overflow where the result has none.
    const std::uint64_t numerator = static_cast<std::uint64_t>(levels) - 1 + i;
    const std::uint64_t common = std::gcd(count, i);
    const std::uint64_t factor = numerator / (i / common);
    if (multiply(count / common, factor) == std::numeric_limits<std::uint64_t>::max())
      return std::numeric_limits<std::uint64_t>::max();
    count = count / common * factor;
  }
  return count;
}

}  // namespace detail

inline status ratio_space::make(const std::vector<int>& blocks, const std::vector<double>& ratios,
                                ratio_space& result) noexcept {
  WINNOW_REQUIRE(!blocks.empty(), "blocks: is empty, must have at least one stage");
  std::int64_t pairs = 0;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    WINNOW_REQUIRE(blocks[i] >= 2 && blocks[i] % 2 == 0,
                   "blocks[%zu]: %d, must be even and >= 2, for two blocks share a ratio", i,
                   blocks[i]);
    pairs += blocks[i] / 2;
  }
  WINNOW_REQUIRE(pairs <= max_pairs, "blocks: %lld pairs, must be at most %d",
                 static_cast<long long>(pairs), max_pairs);
  WINNOW_REQUIRE(!ratios.empty() && ratios.size() <= max_ratios,
                 "ratios: %zu of them, must be 1 to %d", ratios.size(), max_ratios);
  for (std::size_t i = 0; i < ratios.size(); ++i) {
    WINNOW_REQUIRE(ratios[i] >= 0.0 && ratios[i] < 1.0, "ratios[%zu]: %g, must be in [0, 1)", i,
                   ratios[i]);
    WINNOW_REQUIRE(i == 0 || ratios[i] > ratios[i - 1],
                   "ratios[%zu]: %g follows %g, must be strictly increasing", i, ratios[i],
                   ratios[i - 1]);
  }
  return detail::guard_allocation([&]() -> status {
    ratio_space space;
    space.pairs_ = static_cast<int>(pairs);
    for (const int count : blocks) space.stage_pairs_.push_back(count / 2);
    space.ratios_ = ratios;
    result = std::move(space);
    return {};
  });
}

inline status ratio_space::make(const std::vector<int>& blocks, ratio_space& result) noexcept {
  return detail::guard_allocation([&] {
    return make(blocks, {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, result);
  });
}

inline std::uint64_t ratio_space::count() const noexcept {
  if (pairs_ == 0) return 0;
  std::uint64_t count = 1;
  for (const int pairs : stage_pairs_)
    count = detail::multiply(count, detail::sequences(pairs, levels()));
  return count;
}

inline status ratio_space::check(const ratio_levels& levels) const noexcept {
  WINNOW_REQUIRE(levels.size() == static_cast<std::size_t>(pairs_),
                 "levels: %zu of them, but the space has %d block pairs", levels.size(), pairs_);
  std::size_t pair = 0;
  for (const int stage : stage_pairs_) {
    for (int i = 0; i < stage; ++i, ++pair) {
      WINNOW_REQUIRE(levels[pair] < ratios_.size(), "levels[%zu]: %d, but the space has %zu ratios",
                     pair, int{levels[pair]}, ratios_.size());
      WINNOW_REQUIRE(i == 0 || levels[pair] >= levels[pair - 1],
                     "levels[%zu]: %d follows %d, must not decrease inside a stage", pair,
                     int{levels[pair]}, int{levels[pair - 1]});
    }
  }
  return {};
}

inline void ratio_space::sort_stages(ratio_levels& levels) const noexcept {
  auto begin = levels.begin();
  for (const int pairs : stage_pairs_) {
    std::sort(begin, begin + pairs);
    begin += pairs;
  }
}

inline bool ratio_space::next(ratio_levels& levels) const noexcept {
  auto end = levels.end();
  for (auto stage = stage_pairs_.rbegin(); stage != stage_pairs_.rend(); ++stage) {
    const auto begin = end - *stage;
    // The last pair of the stage that can grow takes the pairs behind it along.
    for (auto pair = end; pair != begin;) {
      if (*--pair + 1u == ratios_.size()) continue;
      std::fill(pair + 1, end, ++*pair);
      return true;
    }
    std::fill(begin, end, std::uint8_t{0});
    end = begin;
  }
  return false;
}

inline status ratio_space::block_ratios(const ratio_levels& levels,
                                        std::vector<double>& result) const noexcept {
  WINNOW_TRY(check(levels));
  return detail::guard_allocation([&]() -> status {
    std::vector<double> ratios;
    for (const std::uint8_t level : levels) ratios.insert(ratios.end(), 2, ratios_[level]);
    result = std::move(ratios);
    return {};
  });
}

inline status ratio_space::find(const std::vector<double>& block_ratios,
                                ratio_levels& result) const noexcept {
  WINNOW_REQUIRE(block_ratios.size() == 2 * static_cast<std::size_t>(pairs_),
                 "block_ratios: %zu of them, but the space has %d blocks", block_ratios.size(),
                 2 * pairs_);
  return detail::guard_allocation([&]() -> status {
    ratio_levels levels;
    for (std::size_t block = 0; block < block_ratios.size(); ++block) {
      const auto place = std::find(ratios_.begin(), ratios_.end(), block_ratios[block]);
      WINNOW_REQUIRE(place != ratios_.end(), "block_ratios[%zu]: %g, is no ratio of the space",
                     block, block_ratios[block]);
      const auto level = static_cast<std::uint8_t>(place - ratios_.begin());
      if (block % 2 == 0) levels.push_back(level);
      WINNOW_REQUIRE(level == levels.back(),
                     "block_ratios[%zu]: %g follows %g, must be equal in a pair", block,
                     block_ratios[block], block_ratios[block - 1]);
    }
    WINNOW_TRY(check(levels));
    result = std::move(levels);
    return {};
  });
}

}  // namespace winnow
