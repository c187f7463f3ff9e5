// SPDX-License-Identifier: Apache-2.0
// What the search finds and what it asks for.
#include "winnow/search.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/search_problem.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;

/// The best of a band, by looking at everything.
scored_configuration best_by_enumeration(const search_problem& problem) {
  scored_configuration best;
  best.score = -std::numeric_limits<double>::infinity();
  for (const ratio_levels& levels : enumerate(problem.space)) {
    const double latency = latency_of(*problem.table, levels);
    if (latency < problem.min_latency || latency > problem.max_latency) continue;
    const double score = toy_score(problem.space, levels);
    if (score > best.score || (score == best.score && latency < best.latency))
      best = {levels, latency, score};
  }
  return best;
}

class Search : public testing::Test {
 protected:
  ratio_space space_ = make_space({2, 2, 6, 2});
  latency_table table_ = make_table(space_);  // 15.5 dense, 4.7 sparsest
};

TEST_F(Search, FindsTheOptimumOfASmallSpace) {
  const ratio_space space = make_space({2, 4, 2}, {0.0, 0.2, 0.4, 0.6, 0.8});
  const latency_table table = make_table(space);
  ASSERT_EQ(space.count(), 375u);
  for (const double max_latency : {6.0, 9.0}) {
    search_problem problem = make_problem(space, table, 5.0, max_latency);
    const scored_configuration best = best_by_enumeration(problem);
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      search_result result;
      WINNOW_ASSERT_OK(search_ratios(problem, make_options(20, 40, 10, seed), result));
      EXPECT_TRUE(same(result.best, best)) << "up to " << max_latency << ", seed " << seed;
      // The narrow band has 124 configurations, the wide one 321: it did not look at all of them.
      EXPECT_LT(result.scored.size(), max_latency == 6.0 ? 110u : 200u);
    }
  }
}

TEST_F(Search, FindsTheOptimumForSwinTinyWithDefaultOptions) {
  const search_problem problem = make_problem(space_, table_, 8.0, 9.0);
  const scored_configuration best = best_by_enumeration(problem);
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    search_options options;
    options.seed = seed;
    search_result result;
    WINNOW_ASSERT_OK(search_ratios(problem, options, result));
    EXPECT_TRUE(same(result.best, best)) << "seed " << seed;
    EXPECT_LE(result.scored.size(), 2000u);
  }
}

TEST_F(Search, StaysInTheBandAndTheSpaceAndAsksOnce) {
  for (const search_method method : {search_method::random, search_method::evolutionary}) {
    search_problem problem = make_problem(space_, table_, 7.0, 7.5);
    call_counts scores;
    problem.score = count_scores(scores);
    search_options options = make_options(6, 40, 10, 1);
    options.method = method;
    search_result result;
    WINNOW_ASSERT_OK(search_ratios(problem, options, result));
    EXPECT_EQ(result.generations, 6);
    EXPECT_EQ(scores.size(), result.scored.size());
    for (const auto& [ratios, count] : scores) EXPECT_EQ(count, 1);
    for (const scored_configuration& each : result.scored) {
      WINNOW_ASSERT_OK(space_.check(each.levels));
      EXPECT_EQ(each.latency, latency_of(table_, each.levels));
      EXPECT_EQ(each.score, toy_score(space_, each.levels));
      EXPECT_TRUE(each.latency >= 7.0 && each.latency <= 7.5) << each.latency;
      EXPECT_LE(each.score, result.best.score);
    }
    if (method == search_method::random) {
      EXPECT_EQ(result.scored.size(), 240u);
    } else {
      EXPECT_LT(result.scored.size(), 240u);  // parents live on
    }
  }
}

TEST_F(Search, MeasuresEachConfigurationOnce) {
  search_problem problem = make_problem(space_, table_, 7.0, 7.5);
  search_result by_table;
  const search_options options = make_options(5, 30, 8, 2);
  WINNOW_ASSERT_OK(search_ratios(problem, options, by_table));
  problem.table = nullptr;
  call_counts latencies;
  problem.latency = [&](const std::vector<double>& ratios, double& latency) {
    ++latencies[ratios];
    return measure(space_, table_)(ratios, latency);
  };
  search_result by_callback;
  WINNOW_ASSERT_OK(search_ratios(problem, options, by_callback));
  expect_same(by_table, by_callback);
  EXPECT_GT(latencies.size(), by_callback.scored.size());
  for (const auto& [ratios, count] : latencies) EXPECT_EQ(count, 1);
}

TEST_F(Search, IsReproducibleBySeed) {
  const search_problem problem = make_problem(space_, table_, 7.0, 8.0);
  for (const search_method method : {search_method::random, search_method::evolutionary}) {
    search_options options = make_options(4, 20, 5, 3);
    options.method = method;
    search_result first, again, other;
    WINNOW_ASSERT_OK(search_ratios(problem, options, first));
    WINNOW_ASSERT_OK(search_ratios(problem, options, again));
    expect_same(first, again);
    options.seed = 4;
    WINNOW_ASSERT_OK(search_ratios(problem, options, other));
    EXPECT_FALSE(same(first.scored[0], other.scored[0]));
  }
}

// The numbers come from a program in another language. Integers, so that nothing is rounded.
TEST_F(Search, IsTheSameEverywhere) {
  search_problem problem;
  problem.space = space_;
  problem.min_latency = 15.0;
  problem.max_latency = 30.0;
  const auto sum_of_levels = [&](const std::vector<double>& ratios, auto&& term, double& sum) {
    ratio_levels levels;
    WINNOW_TRY(space_.find(ratios, levels));
    sum = 0.0;
    for (int i = 0; i < 6; ++i) sum += term(i, int{levels[static_cast<std::size_t>(i)]});
    return status();
  };
  problem.latency = [&](const std::vector<double>& ratios, double& latency) {
    return sum_of_levels(
        ratios, [](int, int level) { return level; }, latency);
  };
  // Coarse, so that there are ties.
  problem.score = [&](const std::vector<double>& ratios, double& score) -> status {
    WINNOW_TRY(sum_of_levels(
        ratios, [](int i, int level) { return 40 * (level * 7 % 5) - (i + 2) * level * level; },
        score));
    score = std::floor(score / 128.0);
    return {};
  };
  search_result result;
  WINNOW_ASSERT_OK(search_ratios(problem, make_options(8, 30, 8, 2024), result));
  EXPECT_EQ(result.scored.size(), 168u);
  EXPECT_TRUE(same(result.best, {{2, 7, 2, 2, 2, 1}, 16.0, 5.0}));
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const scored_configuration& each : result.scored)
    for (const std::uint8_t level : each.levels) hash = (hash ^ level) * 0x100000001b3u;
  EXPECT_EQ(hash, 0x18ace334c4bc350cu);
}

// Without a band the first candidates are the sampler's draws.
TEST_F(Search, BeginsWithTheSamplersDraws) {
  search_problem problem = make_problem(space_, table_, 0.0, 100.0);
  for (const search_method method : {search_method::random, search_method::evolutionary}) {
    search_options options = make_options(1, 50, 5, 42);
    options.method = method;
    search_result result;
    WINNOW_ASSERT_OK(search_ratios(problem, options, result));
    ratio_sampler sampler(42);
    for (const scored_configuration& each : result.scored) {
      ratio_levels levels;
      WINNOW_ASSERT_OK(sampler.sample(space_, levels));
      EXPECT_EQ(each.levels, levels);
    }
  }
}

TEST_F(Search, BeatsRandomSearch) {
  const search_problem problem = make_problem(space_, table_, 8.0, 9.0);
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    search_options options;
    options.seed = seed;
    search_result evolutionary, random;
    WINNOW_ASSERT_OK(search_ratios(problem, options, evolutionary));
    options.method = search_method::random;
    WINNOW_ASSERT_OK(search_ratios(problem, options, random));
    EXPECT_LT(evolutionary.scored.size(), random.scored.size());
    EXPECT_GT(evolutionary.best.score, random.best.score) << "seed " << seed;
  }
}

// With mutation switched off nothing new can come but crossovers of the best of the generation
// before; every stage here has one pair, so sorting hides nothing.
TEST_F(Search, CrossesTheBestOfTheGenerationBefore) {
  const ratio_space space = make_space({2, 2, 2, 2});
  const latency_table table = make_table(space);
  search_problem problem = make_problem(space, table, 0.0, 100.0);
  search_options options = make_options(2, 40, 10, 5);
  options.mutation_probability = 0.0;
  std::size_t first_generation = 0;
  problem.progress = [&](const search_progress& progress) -> status {
    if (progress.generation == 1) first_generation = progress.scored->size();
    return {};
  };
  search_result result;
  WINNOW_ASSERT_OK(search_ratios(problem, options, result));
  ASSERT_EQ(first_generation, 40u);
  std::vector<scored_configuration> parents(result.scored.begin(), result.scored.begin() + 40);
  std::sort(parents.begin(), parents.end(),
            [](const auto& a, const auto& b) { return a.score > b.score; });
  parents.resize(10);
  // Ten unchanged parents are all that mutation has to offer; the rest are crossovers.
  EXPECT_EQ(result.scored.size(), 70u);
  for (std::size_t i = 40; i < result.scored.size(); ++i) {
    const ratio_levels& child = result.scored[i].levels;
    bool found = false;
    for (const scored_configuration& a : parents)
      for (const scored_configuration& b : parents) {
        bool mixes = true;
        for (std::size_t pair = 0; pair < 4; ++pair)
          mixes = mixes && (child[pair] == a.levels[pair] || child[pair] == b.levels[pair]);
        found = found || mixes;
      }
    EXPECT_TRUE(found) << "child " << i;
  }
}

// With one parent a crossover is the parent, so all that is new are its mutations: half a generation.
TEST_F(Search, MutatesInTheFirstHalf) {
  search_problem problem = make_problem(space_, table_, 0.0, 100.0);
  search_options options = make_options(2, 41, 1, 6);
  options.mutation_probability = 0.2;
  search_result result;
  WINNOW_ASSERT_OK(search_ratios(problem, options, result));
  // 20 mutations, one of which is most likely the parent as it was.
  EXPECT_GE(result.scored.size(), 41u + 19u);
  EXPECT_LE(result.scored.size(), 41u + 20u);
  const auto parent =
      std::max_element(result.scored.begin(), result.scored.begin() + 41,
                       [](const auto& a, const auto& b) { return a.score < b.score; });
  std::size_t kept = 0;
  for (std::size_t i = 41; i < result.scored.size(); ++i)
    for (std::size_t pair = 0; pair < 6; ++pair)
      kept += result.scored[i].levels[pair] == parent->levels[pair] ? 1 : 0;
  EXPECT_GT(kept, 6 * 20 / 2);
}

TEST_F(Search, ReportsEachGeneration) {
  search_problem problem = make_problem(space_, table_, 7.0, 8.0);
  std::vector<std::size_t> scored;
  double best = -1e9;
  problem.progress = [&](const search_progress& progress) -> status {
    EXPECT_EQ(progress.generation, static_cast<int>(scored.size()) + 1);
    EXPECT_EQ(progress.generations, 5);
    EXPECT_GE(progress.best->score, best);
    best = progress.best->score;
    scored.push_back(progress.scored->size());
    return {};
  };
  search_result result;
  WINNOW_ASSERT_OK(search_ratios(problem, make_options(5, 20, 5, 7), result));
  ASSERT_EQ(scored.size(), 5u);
  EXPECT_EQ(scored.front(), 20u);
  EXPECT_TRUE(std::is_sorted(scored.begin(), scored.end()));
  EXPECT_EQ(scored.back(), result.scored.size());
  EXPECT_EQ(best, result.best.score);
}

TEST_F(Search, TakesTheFasterOfEqualScores) {
  search_problem problem = make_problem(space_, table_, 0.0, 100.0);
  problem.score = [](const std::vector<double>&, double& score) -> status {
    score = 1.0;
    return {};
  };
  search_result result;
  WINNOW_ASSERT_OK(search_ratios(problem, make_options(8, 40, 10, 8), result));
  for (const scored_configuration& each : result.scored)
    EXPECT_GE(each.latency, result.best.latency);
}

// Rejection alone would all but never meet the dense network: one draw in 531,441 is it.
TEST_F(Search, FindsANeedle) {
  search_problem problem = make_problem(space_, table_, 15.5, 100.0);
  search_options options = make_options(3, 10, 5, 9);
  options.max_draws = 5;
  search_result result;
  for (const bool by_table : {true, false}) {
    if (!by_table) {
      problem.table = nullptr;
      problem.latency = measure(space_, table_);
    }
    WINNOW_ASSERT_OK(search_ratios(problem, options, result));
    ASSERT_EQ(result.scored.size(), 1u);
    EXPECT_EQ(result.best.levels, ratio_levels(6, 0));
  }
  problem.min_latency = 0.0;
  problem.max_latency = latency_of(table_, ratio_levels(6, 8));
  WINNOW_ASSERT_OK(search_ratios(problem, options, result));
  EXPECT_EQ(result.best.levels, ratio_levels(6, 8));
}

TEST_F(Search, ExhaustsASmallBand) {
  const ratio_space space = make_space({2, 4, 2}, {0.0, 0.2, 0.4, 0.6, 0.8});
  const latency_table table = make_table(space);
  search_problem problem = make_problem(space, table, 8.05, 8.45);
  std::set<ratio_levels> inside;
  for (const ratio_levels& levels : enumerate(space)) {
    const double latency = latency_of(table, levels);
    if (latency >= problem.min_latency && latency <= problem.max_latency) inside.insert(levels);
  }
  ASSERT_GT(inside.size(), 2u);
  ASSERT_LT(inside.size(), 12u);
  for (const search_method method : {search_method::random, search_method::evolutionary}) {
    search_options options = make_options(3, 12, 4, 10);
    options.method = method;
    options.max_draws = 2;
    search_result result;
    WINNOW_ASSERT_OK(search_ratios(problem, options, result));
    std::set<ratio_levels> found;
    for (const scored_configuration& each : result.scored) found.insert(each.levels);
    EXPECT_EQ(found, inside);
  }
  // Without repeating itself, random search needs no more generations than it must.
  search_options options = make_options(static_cast<int>(inside.size() + 1) / 2, 2, 1, 11);
  options.method = search_method::random;
  options.max_draws = 20;
  search_result result;
  WINNOW_ASSERT_OK(search_ratios(problem, options, result));
  EXPECT_EQ(result.scored.size(), inside.size());
}

// What draws leave over is taken uniformly: the members of a band that draws seldom meet.
TEST_F(Search, ChoosesUniformlyWhereDrawsFindNothing) {
  const ratio_space space = make_space({6, 2});
  const latency_table table = make_table(space);
  // Dense but for at most one tenth: 0 0 0 | 0, 0 0 0.1 | 0 and 0 0 0 | 0.1.
  const search_problem problem = make_problem(space, table, 8.75, 100.0);
  std::map<ratio_levels, double> counts;
  constexpr int searches = 300;
  for (std::uint64_t seed = 0; seed < searches; ++seed) {
    search_options options = make_options(1, 1, 1, seed);
    options.max_draws = 1;
    search_result result;
    WINNOW_ASSERT_OK(search_ratios(problem, options, result));
    ++counts[result.best.levels];
  }
  std::vector<double> observed;
  for (const auto& [levels, count] : counts) observed.push_back(count);
  ASSERT_EQ(observed.size(), 3u);
  EXPECT_LT(chi_square(observed, {100, 100, 100}), chi_square_limit(2));
}

}  // namespace
