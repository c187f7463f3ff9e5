// SPDX-License-Identifier: Apache-2.0
// A search goes on from a state file of any bytes, to a result that obeys the problem, or says what is
// wrong with the file and leaves it alone.
//
// The input is two bytes that choose the search, then the file, mostly without the lines that say
// which search it is of.
#include <chrono>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "scratch.hpp"
#include "search_spaces.hpp"
#include "winnow/search.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

double score_of(const std::vector<double>& ratios) {
  double score = 0.0;
  for (const double ratio : ratios) score = 0.75 * score - ratio;
  return score;
}

void check_result(const search_problem& problem, const latency_table& table,
                  const search_result& result) {
  require(!result.scored.empty(), "a search has scored something");
  std::set<ratio_levels> seen;
  bool best_is_there = false;
  for (const scored_configuration& each : result.scored) {
    require(problem.space.check(each.levels).ok(), "what is scored is a configuration");
    require(seen.insert(each.levels).second, "nothing is scored twice");
    require(each.latency >= problem.min_latency && each.latency <= problem.max_latency,
            "what is scored lies in the band");
    double latency = 0.0;
    require(!problem.table || (table.latency(each.levels, latency).ok() && latency == each.latency),
            "latencies are the table's");
    require(each.score <= result.best.score, "the best is the best");
    best_is_there = best_is_there || each.levels == result.best.levels;
  }
  require(best_is_there, "the best was scored");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string file = scratch_folder("search_state").string();
  byte_source source(data, size);
  const int choice = source.pick(4);
  search_problem problem;
  problem.space = make_space(source.pick(space_count));
  const latency_table table = make_table(problem.space);
  std::set<std::vector<double>> measured;
  std::set<std::vector<double>> scored;
  if (choice % 2 == 0)
    problem.table = &table;
  else
    problem.latency = [&](const std::vector<double>& ratios, double& latency) -> status {
      require(measured.insert(ratios).second, "nothing is measured twice");
      ratio_levels levels;
      WINNOW_TRY(problem.space.find(ratios, levels));
      return table.latency(levels, latency);
    };
  problem.score = [&](const std::vector<double>& ratios, double& score) -> status {
    require(scored.insert(ratios).second, "nothing is scored twice");
    score = score_of(ratios);
    return {};
  };
  problem.min_latency = 2.5;
  problem.max_latency = 8.0;
  search_options options;
  options.method = choice < 2 ? search_method::evolutionary : search_method::random;
  options.generations = 2;
  options.population = 6;
  options.parents = 3;
  options.max_draws = 16;
  options.state_file = file;
  options.save_interval = std::chrono::hours(1);

  std::string content;
  if (!source.rarely(8))
    for (const std::string& line : detail::search_lines(problem, options)) content += line + '\n';
  content.append(reinterpret_cast<const char*>(source.data()), source.left());
  write_scratch(file, content);
  search_result result;
  if (const status found = search_ratios(problem, options, result); !found.ok()) {
    // The band holds something in every space, so the file must be at fault.
    require_file_failure(found, file);
    require(read_scratch(file) == content, "a file that is wrong stays as it is");
    require(scored.empty() && measured.empty(), "a file is checked before anything is evaluated");
  } else {
    check_result(problem, table, result);
    // What was saved is the end of the search: nothing is left to be evaluated.
    const std::size_t evaluations = scored.size() + measured.size();
    search_result again;
    require(search_ratios(problem, options, again).ok(), "a finished search can be read");
    require(again.scored.size() == result.scored.size() && again.best.levels == result.best.levels,
            "a finished search ends as before");
    require(scored.size() + measured.size() == evaluations, "a finished search evaluates nothing");
  }
  std::filesystem::remove(file);
  return 0;
}
