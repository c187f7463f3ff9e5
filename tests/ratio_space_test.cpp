// SPDX-License-Identifier: Apache-2.0
#include "winnow/ratio_space.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "support/search_problem.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t saturated = std::numeric_limits<std::uint64_t>::max();

TEST(RatioSpace, OfSwinTinyHasTenthsAndPairs) {
  const ratio_space space = make_space({2, 2, 6, 2});
  EXPECT_THAT(space.stage_pairs(), ElementsAre(1, 1, 3, 1));
  EXPECT_THAT(space.ratios(), ElementsAre(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8));
  EXPECT_EQ(space.pairs(), 6);
  EXPECT_EQ(space.levels(), 9);
  EXPECT_EQ(space.count(), 9u * 9u * 165u * 9u);
}

TEST(RatioSpace, CountsExactlyOrSaturates) {
  EXPECT_EQ(ratio_space().count(), 0u);
  EXPECT_EQ(make_space({2}, {0.5}).count(), 1u);
  EXPECT_EQ(make_space({8, 2}, {0.0, 0.5, 0.75}).count(), 15u * 3u);
  // C(17, 9) · 9³ for Swin-S and Swin-B.
  EXPECT_EQ(make_space({2, 2, 18, 2}).count(), 24310u * 729u);
  // C(65, 32) = 3609714217008132870 fits, C(69, 34) does not; nor does 9²¹.
  const auto list = [](int count) {
    std::vector<double> ratios;
    for (int i = 0; i < count; ++i) ratios.push_back(i / 100.0);
    return ratios;
  };
  EXPECT_EQ(make_space({64}, list(34)).count(), 3609714217008132870u);
  EXPECT_EQ(make_space({68}, list(36)).count(), saturated);
  EXPECT_EQ(make_space(std::vector<int>(20, 2)).count(), 12157665459056928801u);
  EXPECT_EQ(make_space(std::vector<int>(21, 2)).count(), saturated);
}

TEST(RatioSpace, WalksThroughEveryConfigurationOnceInOrder) {
  for (const std::vector<int>& blocks :
       {std::vector<int>{2}, {6}, {2, 4}, {4, 2}, {4, 6, 2}, {2, 2, 2}}) {
    const ratio_space space = make_space(blocks, {0.0, 0.25, 0.5, 0.75});
    const std::vector<ratio_levels> all = enumerate(space);
    EXPECT_EQ(all.size(), space.count());
    EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
    EXPECT_EQ(std::set<ratio_levels>(all.begin(), all.end()).size(), all.size());
    for (const ratio_levels& levels : all) WINNOW_ASSERT_OK(space.check(levels));
    ratio_levels last = all.back();
    EXPECT_FALSE(space.next(last));
    EXPECT_EQ(last, all.front());
  }
}

TEST(RatioSpace, GivesTwoBlocksTheRatioOfTheirPair) {
  const ratio_space space = make_space({2, 2, 6, 2});
  std::vector<double> ratios;
  WINNOW_ASSERT_OK(space.block_ratios({7, 0, 2, 4, 5, 0}, ratios));
  EXPECT_THAT(ratios, ElementsAre(0.7, 0.7, 0, 0, 0.2, 0.2, 0.4, 0.4, 0.5, 0.5, 0, 0));
  ratio_levels levels;
  WINNOW_ASSERT_OK(space.find(ratios, levels));
  EXPECT_THAT(levels, ElementsAre(7, 0, 2, 4, 5, 0));
}

TEST(RatioSpace, FindsEveryConfiguration) {
  const ratio_space space = make_space({4, 2}, {0.0, 0.3, 0.9});
  for (const ratio_levels& levels : enumerate(space)) {
    std::vector<double> ratios;
    ratio_levels found;
    WINNOW_ASSERT_OK(space.block_ratios(levels, ratios));
    WINNOW_ASSERT_OK(space.find(ratios, found));
    EXPECT_EQ(found, levels);
  }
}

TEST(RatioSpace, SortsEachStageForItself) {
  const ratio_space space = make_space({2, 6, 4});
  ratio_levels levels{8, 5, 3, 4, 2, 1};
  space.sort_stages(levels);
  EXPECT_THAT(levels, ElementsAre(8, 3, 4, 5, 1, 2));
}

TEST(RatioSpace, NamesWhatIsNoConfiguration) {
  const ratio_space space = make_space({2, 6});
  const auto message = [&](const ratio_levels& levels) -> std::string {
    const status checked = space.check(levels);
    EXPECT_EQ(checked.code(), status_code::invalid_argument);
    return checked.message();
  };
  EXPECT_EQ(message({0, 0, 0}), "levels: 3 of them, but the space has 4 block pairs");
  EXPECT_EQ(message({0, 0, 9, 9}), "levels[2]: 9, but the space has 9 ratios");
  EXPECT_EQ(message({8, 0, 4, 3}), "levels[3]: 3 follows 4, must not decrease inside a stage");
  WINNOW_ASSERT_OK(space.check({8, 0, 4, 4}));

  std::vector<double> ratios{0.5};
  EXPECT_FALSE(space.block_ratios({8, 0, 4, 3}, ratios).ok());
  EXPECT_THAT(ratios, ElementsAre(0.5));
}

TEST(RatioSpace, NamesWhatNoBlockCanHave) {
  const ratio_space space = make_space({2, 4});
  ratio_levels levels{42};
  const auto message = [&](const std::vector<double>& ratios) -> std::string {
    const status found = space.find(ratios, levels);
    EXPECT_EQ(found.code(), status_code::invalid_argument);
    EXPECT_THAT(levels, ElementsAre(42));
    return found.message();
  };
  EXPECT_EQ(message({0, 0}), "block_ratios: 2 of them, but the space has 6 blocks");
  EXPECT_EQ(message({0, 0, 0.15, 0.15, 0, 0}), "block_ratios[2]: 0.15, is no ratio of the space");
  EXPECT_EQ(message({0, 0.1, 0, 0, 0, 0}),
            "block_ratios[1]: 0.1 follows 0, must be equal in a pair");
  EXPECT_EQ(message({0, 0, 0.2, 0.2, 0.1, 0.1}),
            "levels[2]: 1 follows 2, must not decrease inside a stage");
}

TEST(RatioSpace, NamesWhatMakesNoSpace) {
  ratio_space space = make_space({2});
  const auto message = [&](const std::vector<int>& blocks,
                           const std::vector<double>& ratios) -> std::string {
    const status made = ratio_space::make(blocks, ratios, space);
    EXPECT_EQ(made.code(), status_code::invalid_argument);
    EXPECT_EQ(space.count(), 9u);
    return made.message();
  };
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(message({}, {0}), HasSubstr("blocks: is empty"));
  EXPECT_THAT(message({2, 3}, {0}), HasSubstr("blocks[1]: 3, must be even"));
  EXPECT_THAT(message({0}, {0}), HasSubstr("blocks[0]: 0"));
  EXPECT_THAT(message({-2}, {0}), HasSubstr("blocks[0]: -2"));
  EXPECT_EQ(message({2048, 2}, {0}), "blocks: 1025 pairs, must be at most 1024");
  EXPECT_EQ(message({2147483646, 2147483646}, {0}),
            "blocks: 2147483646 pairs, must be at most 1024");
  EXPECT_EQ(message({2}, {}), "ratios: 0 of them, must be 1 to 256");
  EXPECT_EQ(message({2}, std::vector<double>(257)), "ratios: 257 of them, must be 1 to 256");
  EXPECT_EQ(message({2}, {0.5, 1.0}), "ratios[1]: 1, must be in [0, 1)");
  EXPECT_EQ(message({2}, {-0.1}), "ratios[0]: -0.1, must be in [0, 1)");
  EXPECT_THAT(message({2}, {0.1, nan}), HasSubstr("ratios[1]: "));
  EXPECT_EQ(message({2}, {0.1, 0.1}), "ratios[1]: 0.1 follows 0.1, must be strictly increasing");
  EXPECT_EQ(make_space({2048}, {0.0}).pairs(), 1024);
}

}  // namespace
