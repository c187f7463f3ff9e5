// SPDX-License-Identifier: Apache-2.0
#include <filesystem>

#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// The ratios of the best network that takes 20 to 22 ms, and the best for less time than that.
/// `accuracy` runs the network with a ratio for each block on a validation set.
winnow::status find_ratios(const winnow::ratio_space& space, const std::string& table_file,
                           const winnow::ratio_function& accuracy, std::vector<double>& best,
                           std::vector<winnow::scored_configuration>& front) {
  winnow::latency_table table;
  WINNOW_TRY(winnow::latency_table::load(table_file, space, table));

  winnow::search_problem problem;
  problem.space = space;
  problem.table = &table;
  problem.min_latency = 20.0;
  problem.max_latency = 22.0;
  problem.score = accuracy;
  problem.progress = [](const winnow::search_progress& progress) -> winnow::status {
    std::printf("%d of %d generations: %g in %g ms\n", progress.generation, progress.generations,
                progress.best->score, progress.best->latency);
    return {};
  };

  winnow::search_options options;     // evolutionary, 20 generations of 100
  options.state_file = "search.txt";  // run again, the search goes on from here
  winnow::search_result result;
  WINNOW_TRY(search_ratios(problem, options, result));
  WINNOW_TRY(space.block_ratios(result.best.levels, best));
  return pareto_front(result.scored, front);
}
// ---

int main() {
  winnow::ratio_space space;
  check(winnow::ratio_space::make({2, 2, 6, 2}, space));
  winnow::latency_table table;
  check(winnow::latency_table::make(space, 2.0, table));
  for (int pair = 0; pair < space.pairs(); ++pair)
    for (int level = 0; level < space.levels(); ++level)
      check(table.set(pair, level, 4.0 - 0.4 * level));
  check(table.save("search_latency.csv"));
  std::filesystem::remove("search.txt");

  // A network that is interrupted after some evaluations, and one that is not.
  int evaluations = 0;
  int most = 150;
  const winnow::ratio_function accuracy = [&](const std::vector<double>& ratios,
                                              double& score) -> winnow::status {
    if (evaluations == most)
      return winnow::status::failure(winnow::status_code::cuda_error, "the node went away");
    ++evaluations;
    score = 80.0;
    for (std::size_t b = 0; b < ratios.size(); ++b)
      score -= static_cast<double>(1 + b % 3) * ratios[b] * ratios[b];
    return {};
  };
  std::vector<double> best;
  std::vector<winnow::scored_configuration> front;
  const auto find = [&] { return find_ratios(space, "search_latency.csv", accuracy, best, front); };
  check(find().code() == winnow::status_code::cuda_error, "the interruption was not reported");
  most = 1 << 30;
  check(find());
  check(best.size() == 12 && !front.empty(), "nothing was found");
  const std::vector<double> interrupted = best;
  const int together = evaluations;

  std::filesystem::remove("search.txt");
  evaluations = 0;
  check(find());
  check(best == interrupted, "the interrupted search ended elsewhere");
  check(evaluations == together, "something was evaluated twice");
}
