// SPDX-License-Identifier: Apache-2.0
#include "winnow/pareto_front.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/search_problem.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;

TEST(ParetoFront, KeepsWhatNothingIsPreferableTo) {
  // Few distinct values, so that there are ties in latency, in score and in both.
  detail::search_random random(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<scored_configuration> all(random.below(30));
    for (std::size_t i = 0; i < all.size(); ++i)
      all[i] = {{static_cast<std::uint8_t>(i)}, 1.0 * random.below(6), 1.0 * random.below(6)};
    std::vector<scored_configuration> expected;
    for (const scored_configuration& each : all) {
      const bool beaten = std::any_of(all.begin(), all.end(), [&](const scored_configuration& o) {
        const bool equal = o.latency == each.latency && o.score == each.score;
        return equal ? o.levels < each.levels : o.latency <= each.latency && o.score >= each.score;
      });
      if (!beaten) expected.push_back(each);
    }
    std::sort(expected.begin(), expected.end(),
              [](const auto& a, const auto& b) { return a.latency < b.latency; });

    std::vector<scored_configuration> front{{{9}, 9, 9}};
    WINNOW_ASSERT_OK(pareto_front(all, front));
    ASSERT_EQ(front.size(), expected.size());
    for (std::size_t i = 0; i < front.size(); ++i) ASSERT_TRUE(same(front[i], expected[i])) << i;
  }
}

TEST(ParetoFront, MayReplaceItsInput) {
  std::vector<scored_configuration> all{{{0}, 2, 1}, {{1}, 1, 1}, {{2}, 3, 5}};
  WINNOW_ASSERT_OK(pareto_front(all, all));
  ASSERT_EQ(all.size(), 2u);
  EXPECT_TRUE(same(all[0], {{1}, 1, 1}));
  EXPECT_TRUE(same(all[1], {{2}, 3, 5}));
}

}  // namespace
