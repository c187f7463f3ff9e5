// SPDX-License-Identifier: Apache-2.0
// What the search says when it cannot.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <new>
#include <stdexcept>

#include "support/failing_allocation.hpp"
#include "support/search_problem.hpp"
#include "support/temporary_folder.hpp"
#include "winnow/search.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;
using testing::HasSubstr;

class SearchFailure : public testing::Test {
 protected:
  ratio_space space_ = make_space({2, 2, 6, 2});
  latency_table table_ = make_table(space_);  // 15.5 dense, 4.7 sparsest
};

TEST_F(SearchFailure, SaysThatABandIsEmptyAndWhatIsNearest) {
  struct band {
    double min, max;
  };
  search_options options = make_options(1, 10, 5, 11);
  for (const band& each : {band{20, 30}, band{0, 4}, band{9.001, 9.004}}) {
    const search_problem problem = make_problem(space_, table_, each.min, each.max);
    double nearest = 1e9;
    for (const ratio_levels& levels : enumerate(space_)) {
      const double latency = latency_of(table_, levels);
      const auto distance = [&](double x) { return std::max(each.min - x, x - each.max); };
      if (distance(latency) < distance(nearest)) nearest = latency;
    }
    search_result result;
    result.generations = 42;
    const status done = search_ratios(problem, options, result);
    EXPECT_EQ(done.code(), status_code::invalid_argument);
    char expected[160];
    std::snprintf(expected, sizeof expected,
                  "latency: the band [%g, %g] is empty: no configuration lies in it; the nearest "
                  "reachable latency is %.9g, at ",
                  each.min, each.max, nearest);
    EXPECT_THAT(done.message(), testing::StartsWith(expected));
    EXPECT_EQ(result.generations, 42);
  }
  search_result result;
  EXPECT_THAT(search_ratios(make_problem(space_, table_, 20, 30), options, result).message(),
              testing::EndsWith("15.5, at 0 | 0 | 0 0 0 | 0"));
}

TEST_F(SearchFailure, SaysSoOfWhatItCannotEnumerate) {
  search_problem problem = make_problem(space_, table_, 20, 30);
  problem.table = nullptr;
  int calls = 0;
  problem.latency = [&](const std::vector<double>& ratios, double& latency) {
    ++calls;
    return measure(space_, table_)(ratios, latency);
  };
  search_options options = make_options(1, 10, 5, 12);
  options.max_draws = 50;
  search_result result;
  EXPECT_STREQ(
      search_ratios(problem, options, result).message(),
      "latency: the band [20, 30] is empty: no configuration drawn lies in it; the nearest "
      "reachable latency is 15.5, at 0 | 0 | 0 0 0 | 0");
  EXPECT_LE(calls, 52);
  problem.min_latency = 1.0;
  problem.max_latency = 4.5;
  EXPECT_THAT(search_ratios(problem, options, result).message(),
              testing::EndsWith("4.7, at 0.8 | 0.8 | 0.8 0.8 0.8 | 0.8"));
  // Ten stages are too many for a walk: 9¹⁰ configurations.
  const ratio_space large = make_space(std::vector<int>(10, 2));
  const latency_table table = make_table(large);
  EXPECT_THAT(
      search_ratios(make_problem(large, table, 1e3, 1e4), options, result).message(),
      HasSubstr("no configuration drawn lies in it; the nearest reachable latency is 34.5"));
}

TEST_F(SearchFailure, StopsWithTheStatusOfACallback) {
  search_problem problem = make_problem(space_, table_, 7.0, 8.0);
  const search_options options = make_options(3, 10, 5, 13);
  const status no = status::failure(status_code::cuda_error, "no device");
  const auto run = [&]() -> status {
    search_result result;
    result.generations = 42;
    status done = search_ratios(problem, options, result);
    EXPECT_EQ(result.generations, 42);
    EXPECT_TRUE(result.scored.empty());
    return done;
  };
  problem.progress = [&](const search_progress&) { return no; };
  EXPECT_STREQ(run().message(), "no device");
  problem.score = [&](const std::vector<double>&, double&) { return no; };
  EXPECT_EQ(run().code(), status_code::cuda_error);
  problem.table = nullptr;
  problem.latency = [&](const std::vector<double>&, double&) { return no; };
  EXPECT_EQ(run().code(), status_code::cuda_error);
}

TEST_F(SearchFailure, LetsNoExceptionOut) {
  search_problem problem = make_problem(space_, table_, 7.0, 8.0);
  search_result result;
  const auto message = [&](status_code code) -> std::string {
    const status done = search_ratios(problem, make_options(1, 10, 5, 14), result);
    EXPECT_EQ(done.code(), code);
    return done.message();
  };
  problem.score = [](const std::vector<double>&, double&) -> status {
    throw std::runtime_error("lost");
  };
  EXPECT_EQ(message(status_code::invalid_argument), "score: the callback threw \"lost\"");
  problem.score = [](const std::vector<double>&, double&) -> status { throw 1; };
  EXPECT_EQ(message(status_code::invalid_argument), "score: the callback threw");
  problem.score = [](const std::vector<double>&, double&) -> status { throw std::bad_alloc(); };
  EXPECT_EQ(message(status_code::out_of_memory), "score: the callback ran out of memory");
  problem.score = toy_scores();
  problem.progress = [](const search_progress&) -> status { throw std::runtime_error("late"); };
  EXPECT_EQ(message(status_code::invalid_argument), "progress: the callback threw \"late\"");
}

TEST_F(SearchFailure, WantsFiniteValues) {
  search_problem problem = make_problem(space_, table_, 7.0, 8.0);
  const search_options options = make_options(1, 10, 5, 15);
  search_result result;
  problem.score = [](const std::vector<double>&, double&) -> status { return {}; };
  EXPECT_THAT(search_ratios(problem, options, result).message(), HasSubstr("must be finite"));
  problem.score = [](const std::vector<double>&, double& score) -> status {
    score = -std::numeric_limits<double>::infinity();
    return {};
  };
  EXPECT_THAT(search_ratios(problem, options, result).message(),
              testing::MatchesRegex("score: -inf at 0.*, must be finite"));
  problem.score = toy_scores();
  problem.table = nullptr;
  problem.latency = [](const std::vector<double>&, double& latency) -> status {
    latency = std::numeric_limits<double>::infinity();
    return {};
  };
  EXPECT_THAT(search_ratios(problem, options, result).message(), HasSubstr("latency: inf at 0"));
}

TEST_F(SearchFailure, NamesABadArgument) {
  const search_problem problem = make_problem(space_, table_, 7.0, 8.0);
  const search_options options = make_options(1, 10, 5, 16);
  const auto message = [&](auto&& change) -> std::string {
    search_problem p = problem;
    search_options o = options;
    change(p, o);
    search_result result;
    const status done = search_ratios(p, o, result);
    EXPECT_EQ(done.code(), status_code::invalid_argument);
    return done.message();
  };
  const double nan = std::nan("");
  latency_table other;
  EXPECT_EQ(message([](auto& p, auto&) { p.space = ratio_space(); }), "space: has no stages");
  EXPECT_EQ(message([](auto& p, auto&) { p.table = nullptr; }),
            "table, latency: neither is given, must be one of them");
  EXPECT_EQ(message([&](auto& p, auto&) { p.latency = measure(space_, table_); }),
            "table, latency: both are given, must be one of them");
  EXPECT_EQ(message([&](auto& p, auto&) { p.table = &other; }),
            "table: has 0 block pairs, but the space has 6");
  EXPECT_EQ(message([](auto& p, auto&) { p.score = nullptr; }), "score: is empty");
  EXPECT_EQ(message([](auto& p, auto&) { p.min_latency = 9; }),
            "min_latency: 9, must be <= max_latency, 8");
  EXPECT_THAT(message([&](auto& p, auto&) { p.max_latency = nan; }), HasSubstr("max_latency, "));
  EXPECT_EQ(message([](auto&, auto& o) { o.method = static_cast<search_method>(7); }),
            "method: 7, must be random or evolutionary");
  EXPECT_EQ(message([](auto&, auto& o) { o.generations = 0; }), "generations: 0, must be >= 1");
  EXPECT_EQ(message([](auto&, auto& o) { o.population = 0; }), "population: 0, must be >= 1");
  EXPECT_EQ(message([](auto&, auto& o) { o.parents = 11; }), "parents: 11, must be in [1, 10]");
  EXPECT_EQ(message([](auto&, auto& o) { o.parents = 0; }), "parents: 0, must be in [1, 10]");
  EXPECT_EQ(message([](auto&, auto& o) { o.mutation_probability = 1.5; }),
            "mutation_probability: 1.5, must be in [0, 1]");
  EXPECT_THAT(message([&](auto&, auto& o) { o.mutation_probability = nan; }),
              HasSubstr("must be in [0, 1]"));
  EXPECT_EQ(message([](auto&, auto& o) { o.max_draws = 0; }), "max_draws: 0, must be >= 1");
}

TEST_F(SearchFailure, SurvivesAFailedAllocation) {
  const temporary_folder folder;
  const std::string table_file = (folder.path() / "table.csv").string();
  const ratio_levels levels(6, 0);
  ratio_space space;
  latency_table table;
  ratio_levels found;
  std::vector<double> ratios;
  ratio_sampler sampler(1);
  const std::vector<int> blocks{2, 2};
  refuse_each_allocation([&] { return ratio_space::make(blocks, space); });
  refuse_each_allocation([&] { return space_.block_ratios(levels, ratios); });
  refuse_each_allocation([&] { return space_.find(ratios, found); });
  refuse_each_allocation([&] { return sampler.sample(space_, found); });
  refuse_each_allocation([&] { return latency_table::make(space_, 1.0, table); });
  refuse_each_allocation([&] { return table_.save(table_file); });
  refuse_each_allocation([&] { return latency_table::load(table_file, space_, table); });

  const search_problem problem = make_problem(space_, table_, 15.0, 100.0);
  search_options options = make_options(2, 3, 2, 17);
  options.max_draws = 2;
  search_result result;
  refuse_each_allocation([&] { return search_ratios(problem, options, result); });
  options.state_file = (folder.path() / "state.txt").string();
  refuse_each_allocation([&] { return search_ratios(problem, options, result); });
  std::vector<scored_configuration> front;
  refuse_each_allocation([&] { return pareto_front(result.scored, front); });
}

}  // namespace
