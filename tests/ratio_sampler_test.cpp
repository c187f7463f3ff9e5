// SPDX-License-Identifier: Apache-2.0
#include "winnow/ratio_sampler.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "support/search_problem.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;
using detail::search_random;
using testing::ElementsAre;

/// How many sequences become `sorted` by sorting: a multinomial coefficient.
double permutations(const ratio_levels& sorted) {
  double count = 1.0;
  std::size_t run = 0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    run = i > 0 && sorted[i] == sorted[i - 1] ? run + 1 : 1;
    count *= static_cast<double>(i + 1) / static_cast<double>(run);
  }
  return count;
}

/// Draws, and how often each configuration of a space came.
std::vector<double> frequencies(const ratio_space& space, std::uint64_t seed, int draws) {
  std::map<ratio_levels, double> counts;
  ratio_sampler sampler(seed);
  ratio_levels levels;
  for (int i = 0; i < draws; ++i) {
    const status sampled = sampler.sample(space, levels);
    EXPECT_TRUE(sampled.ok()) << sampled.message();
    ++counts[levels];
  }
  std::vector<double> result;
  for (const ratio_levels& each : enumerate(space)) {
    result.push_back(counts[each]);
    counts.erase(each);
  }
  EXPECT_TRUE(counts.empty()) << "a draw is no configuration";
  return result;
}

TEST(SearchRandom, IsSplitMix64) {
  search_random random(0);
  EXPECT_EQ(random.next(), 0xe220a8397b1dcdafu);
  EXPECT_EQ(random.next(), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(random.next(), 0x06c45d188009454fu);
  search_random copy(random.state());
  EXPECT_EQ(copy.next(), random.next());
}

TEST(SearchRandom, IsUniformBelowEveryBound) {
  for (const std::uint32_t bound : {1u, 2u, 3u, 9u, 25u, 100u, 256u}) {
    search_random random(bound);
    std::vector<double> counts(bound);
    for (int i = 0; i < 50000; ++i) ++counts[random.below(bound)];
    const std::vector<double> expected(bound, 50000.0 / bound);
    if (bound > 1) {
      EXPECT_LT(chi_square(counts, expected), chi_square_limit(bound - 1)) << bound;
    }
  }
  // Three quarters of 2³²: without rejection every third result would come twice as often.
  search_random random(7);
  std::vector<double> thirds(3);
  for (int i = 0; i < 30000; ++i) ++thirds[random.below(0xC0000000u) % 3];
  EXPECT_LT(chi_square(thirds, {10000, 10000, 10000}), chi_square_limit(2));
}

TEST(SearchRandom, HappensAsOftenAsItShould) {
  search_random random(3);
  for (const double probability : {0.0, 0.1, 0.5, 1.0}) {
    int count = 0;
    for (int i = 0; i < 100000; ++i) count += random.happens(probability) ? 1 : 0;
    // Four standard deviations.
    EXPECT_NEAR(count, 1e5 * probability, 4 * std::sqrt(1e5 * probability * (1 - probability)));
  }
}

// The numbers come from a program in another language.
TEST(RatioSampler, DrawsTheSameEverywhere) {
  const ratio_space space = make_space({2, 2, 6, 2});
  ratio_sampler sampler(42);
  ratio_levels levels;
  WINNOW_ASSERT_OK(sampler.sample(space, levels));
  EXPECT_THAT(levels, ElementsAre(6, 1, 0, 2, 3, 7));
  WINNOW_ASSERT_OK(sampler.sample(space, levels));
  EXPECT_THAT(levels, ElementsAre(1, 7, 1, 3, 5, 4));
  ratio_sampler resumed(sampler.state());
  for (ratio_sampler* each : {&sampler, &resumed}) {
    WINNOW_ASSERT_OK(each->sample(space, levels));
    EXPECT_THAT(levels, ElementsAre(4, 4, 0, 1, 5, 4));
    WINNOW_ASSERT_OK(each->sample(space, levels));
    EXPECT_THAT(levels, ElementsAre(0, 6, 0, 5, 8, 5));
    EXPECT_EQ(each->state(), 15362738631823041058u);
  }
}

TEST(RatioSampler, DrawsOrderStatisticsOfUniformDraws) {
  const ratio_space space = make_space({6});
  constexpr int draws = 100000;
  std::vector<double> expected;
  for (const ratio_levels& levels : enumerate(space))
    expected.push_back(draws * permutations(levels) / 729.0);
  const std::vector<double> observed = frequencies(space, 1, draws);
  EXPECT_LT(chi_square(observed, expected), chi_square_limit(164));
  // The test can tell: it is not the uniform distribution over configurations.
  EXPECT_GT(chi_square(observed, std::vector<double>(165, draws / 165.0)), chi_square_limit(164));
}

TEST(RatioSampler, DrawsStagesIndependently) {
  const ratio_space space = make_space({2, 4, 2}, {0.0, 0.4, 0.8});
  constexpr int draws = 50000;
  std::vector<double> expected;
  for (const ratio_levels& levels : enumerate(space))
    expected.push_back(draws * permutations({levels[1], levels[2]}) / 81.0);
  EXPECT_LT(chi_square(frequencies(space, 2, draws), expected), chi_square_limit(53));
}

TEST(RatioSampler, NeedsASpace) {
  ratio_sampler sampler(5);
  ratio_levels levels{1};
  const status sampled = sampler.sample(ratio_space(), levels);
  EXPECT_STREQ(sampled.message(), "space: has no stages");
  EXPECT_EQ(sampler.state(), 5u);
  EXPECT_THAT(levels, ElementsAre(1));
}

/// Mutations of a configuration, by how often each came.
std::map<ratio_levels, int> mutations(const ratio_space& space, const ratio_levels& parent,
                                      double probability, int draws) {
  search_random random(11);
  std::map<ratio_levels, int> counts;
  for (int i = 0; i < draws; ++i) {
    ratio_levels levels = parent;
    detail::mutate_levels(space, random, probability, levels);
    const status checked = space.check(levels);
    EXPECT_TRUE(checked.ok()) << checked.message();
    ++counts[levels];
  }
  return counts;
}

TEST(Mutation, DrawsEachPairWithItsProbability) {
  const ratio_space space = make_space({2, 2});
  const ratio_levels parent{3, 6};
  constexpr int draws = 40000;
  const std::map<ratio_levels, int> counts = mutations(space, parent, 0.1, draws);
  std::vector<double> observed, expected;
  for (const ratio_levels& each : enumerate(space)) {
    double probability = 1.0;
    for (std::size_t i = 0; i < 2; ++i)
      probability *= 0.1 / 9.0 + (each[i] == parent[i] ? 0.9 : 0.0);
    const auto count = counts.find(each);
    observed.push_back(count == counts.end() ? 0 : count->second);
    expected.push_back(draws * probability);
  }
  EXPECT_LT(chi_square(observed, expected), chi_square_limit(80));
}

TEST(Mutation, StaysInTheSpace) {
  const ratio_space space = make_space({2, 6, 4});
  const ratio_levels parent{3, 0, 4, 8, 2, 2};
  EXPECT_THAT(mutations(space, parent, 0.0, 100), ElementsAre(std::pair(parent, 100)));
  EXPECT_GT(mutations(space, parent, 0.1, 1000).size(), 100u);
  EXPECT_GT(mutations(space, parent, 1.0, 1000).size(), 900u);
}

TEST(Crossover, TakesEachPairFromEitherParent) {
  const ratio_space space = make_space({2, 2, 2});
  search_random random(12);
  std::vector<double> counts(8);
  for (int i = 0; i < 8000; ++i) {
    ratio_levels child{1, 2, 3};
    detail::cross_levels(space, random, {4, 5, 6}, child);
    std::size_t choice = 0;
    for (std::size_t pair = 0; pair < 3; ++pair) {
      ASSERT_TRUE(child[pair] == pair + 1 || child[pair] == pair + 4);
      choice = 2 * choice + (child[pair] == pair + 4 ? 1 : 0);
    }
    ++counts[choice];
  }
  EXPECT_LT(chi_square(counts, std::vector<double>(8, 1000)), chi_square_limit(7));
}

TEST(Crossover, SortsWhatItMixes) {
  const ratio_space space = make_space({6, 4});
  search_random random(13);
  std::map<ratio_levels, int> counts;
  for (int i = 0; i < 1000; ++i) {
    ratio_levels child{0, 4, 5, 7, 8};
    detail::cross_levels(space, random, {3, 3, 6, 0, 1}, child);
    WINNOW_ASSERT_OK(space.check(child));
    ++counts[child];
  }
  // 0|3, 4|3, 5|6 and 7|0, 8|1: all 32 mixtures, sorted.
  EXPECT_EQ(counts.size(), 32u);
  EXPECT_EQ(counts.count({3, 4, 5, 1, 7}), 1u);
}

}  // namespace
