// SPDX-License-Identifier: Apache-2.0
/// \file
/// Small searches whose answers are known, and what their tests share.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "support/partitions.hpp"
#include "winnow/search.hpp"

namespace winnow::test {

inline ratio_space make_space(const std::vector<int>& blocks) {
  ratio_space space;
  const status made = ratio_space::make(blocks, space);
  EXPECT_TRUE(made.ok()) << made.message();
  return space;
}

inline ratio_space make_space(const std::vector<int>& blocks, const std::vector<double>& ratios) {
  ratio_space space;
  const status made = ratio_space::make(blocks, ratios, space);
  EXPECT_TRUE(made.ok()) << made.message();
  return space;
}

/// Every configuration of a space.
inline std::vector<ratio_levels> enumerate(const ratio_space& space) {
  std::vector<ratio_levels> all;
  ratio_levels levels(static_cast<std::size_t>(space.pairs()), 0);
  do all.push_back(levels);
  while (space.next(levels));
  return all;
}

/// A pair takes 1, 1.5, 2, … when dense and saves in proportion to its ratio; the rest takes 2.
inline latency_table make_table(const ratio_space& space) {
  latency_table table;
  status done = latency_table::make(space, 2.0, table);
  for (int pair = 0; pair < space.pairs(); ++pair)
    for (int level = 0; level < space.levels() && done.ok(); ++level)
      done =
          table.set(pair, level,
                    (1.0 + 0.5 * pair) * (1.0 - space.ratios()[static_cast<std::size_t>(level)]));
  EXPECT_TRUE(done.ok()) << done.message();
  return table;
}

inline double latency_of(const latency_table& table, const ratio_levels& levels) {
  double latency = std::nan("");
  const status done = table.latency(levels, latency);
  EXPECT_TRUE(done.ok()) << done.message();
  return latency;
}

/// A score that suffers from every ratio, from each differently, and from neighbours that differ.
inline double toy_score(const std::vector<double>& block_ratios) {
  double loss = 0.0;
  for (std::size_t block = 0; block < block_ratios.size(); ++block) {
    const double weight = 1.0 + static_cast<double>(block * 7 % 5);
    loss += weight * block_ratios[block] * block_ratios[block];
    if (block > 0) loss += 0.3 * std::fabs(block_ratios[block] - block_ratios[block - 1]);
  }
  return -loss;
}

inline double toy_score(const ratio_space& space, const ratio_levels& levels) {
  std::vector<double> ratios;
  const status done = space.block_ratios(levels, ratios);
  EXPECT_TRUE(done.ok()) << done.message();
  return toy_score(ratios);
}

/// How often each configuration was evaluated.
using call_counts = std::map<std::vector<double>, int>;

/// The toy score; counts its calls.
inline ratio_function count_scores(call_counts& calls) {
  return [&calls](const std::vector<double>& ratios, double& score) -> status {
    ++calls[ratios];
    score = toy_score(ratios);
    return {};
  };
}

inline ratio_function toy_scores() {
  return [](const std::vector<double>& ratios, double& score) -> status {
    score = toy_score(ratios);
    return {};
  };
}

/// The table behind a callback.
inline ratio_function measure(const ratio_space& space, const latency_table& table) {
  return [&](const std::vector<double>& ratios, double& latency) -> status {
    ratio_levels levels;
    WINNOW_TRY(space.find(ratios, levels));
    return table.latency(levels, latency);
  };
}

/// A search by table; space and table live elsewhere.
inline search_problem make_problem(const ratio_space& space, const latency_table& table, double min,
                                   double max) {
  search_problem problem;
  problem.space = space;
  problem.table = &table;
  problem.min_latency = min;
  problem.max_latency = max;
  problem.score = toy_scores();
  return problem;
}

inline search_options make_options(int generations, int population, int parents,
                                   std::uint64_t seed) {
  search_options options;
  options.generations = generations;
  options.population = population;
  options.parents = parents;
  options.seed = seed;
  return options;
}

/// Bit for bit.
inline bool same(const scored_configuration& a, const scored_configuration& b) {
  return a.levels == b.levels && a.latency == b.latency && a.score == b.score;
}

inline void expect_same(const search_result& a, const search_result& b) {
  EXPECT_EQ(a.generations, b.generations);
  EXPECT_TRUE(same(a.best, b.best));
  ASSERT_EQ(a.scored.size(), b.scored.size());
  for (std::size_t i = 0; i < a.scored.size(); ++i)
    ASSERT_TRUE(same(a.scored[i], b.scored[i])) << "configuration " << i;
}

inline std::string read_text(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  EXPECT_TRUE(stream.good()) << file;
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write_text(const std::string& file, const std::string& text) {
  std::ofstream stream(file, std::ios::binary);
  stream << text;
  EXPECT_TRUE(stream.flush().good()) << file;
}

/// Pearson's statistic. \param expected counts, each > 0.
inline double chi_square(const std::vector<double>& observed, const std::vector<double>& expected) {
  double sum = 0.0;
  for (std::size_t i = 0; i < observed.size(); ++i)
    sum += (observed[i] - expected[i]) * (observed[i] - expected[i]) / expected[i];
  return sum;
}

/// Exceeded with a probability of 0.001 where the hypothesis holds (Wilson and Hilferty, 1931).
inline double chi_square_limit(double degrees_of_freedom) {
  const double share = 2.0 / (9.0 * degrees_of_freedom);
  return degrees_of_freedom * std::pow(1.0 - share + 3.0902 * std::sqrt(share), 3);
}

}  // namespace winnow::test
