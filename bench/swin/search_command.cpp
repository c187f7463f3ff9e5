// SPDX-License-Identifier: Apache-2.0
#include "swin/search_command.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "eval/progress.hpp"
#include "swin/fidelity.hpp"
#include "swin/latency.hpp"
#include "swin/scatter_plot.hpp"
#include "swin/score_command.hpp"
#include "swin/session.hpp"
#include "winnow/search.hpp"

namespace winnow::swin {
namespace {

/// A search that cannot be done as asked is the user's to correct.
void require(const char* name, const status& outcome) {
  if (outcome.code() == status_code::invalid_argument)
    throw support::input_error(name, outcome.message());
  if (!outcome.ok()) throw std::runtime_error(std::string(name) + ": " + outcome.message());
}

/// What can be known to be wrong before anything is measured.
void check(const search_command_options& asked) {
  if (!(asked.min_latency <= asked.max_latency))
    throw support::input_error("--max", "is " + std::to_string(asked.max_latency) +
                                            " ms, must not be less than --min, " +
                                            std::to_string(asked.min_latency) + " ms");
  for (const std::string& file : {asked.log, asked.picture}) {
    const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
    if (!std::filesystem::is_directory(folder))
      throw support::input_error(file,
                                 "cannot be written: " + folder.string() + " is not a folder");
  }
}

class search_run {
 public:
  explicit search_run(const search_command_options& asked) : asked_(asked), work_(asked) {
    require("search", ratio_space::make(work_.network_model().depths, space_));
  }
  void run();

 private:
  void prepare_table();
  void measure_table();
  status score(const std::vector<double>& block_ratios, double& value);
  status report(const search_progress& progress);
  void write_log(const std::vector<scored_configuration>& scored) const;
  [[nodiscard]] prune_ratios ratios_of(const ratio_levels& levels) const;
  [[nodiscard]] double measured(const prune_ratios& ratios) {
    work_.network().set_prune(ratios);
    return measure_wall(work_.network(), work_.first_batch(), asked_.timing);
  }

  const search_command_options& asked_;
  session work_;
  ratio_space space_;
  latency_table table_;
  std::unique_ptr<fidelity> fidelity_;
  eval::progress_line progress_;
  int scored_ = 0;
};

prune_ratios search_run::ratios_of(const ratio_levels& levels) const {
  std::vector<double> block_ratios;
  require("search", space_.block_ratios(levels, block_ratios));
  return split_stages(block_ratios, work_.network_model());
}

void search_run::prepare_table() {
  if (asked_.table && std::filesystem::exists(*asked_.table)) {
    require("--table", latency_table::load(*asked_.table, space_, table_));
    return;
  }
  measure_table();
  if (asked_.table) require("--table", table_.save(*asked_.table));
}

/// The whole network dense, and what one pair alone at a ratio changes.
void search_run::measure_table() {
  ratio_levels levels(static_cast<std::size_t>(space_.pairs()), 0);
  const double dense = measured(ratios_of(levels));
  require("latency table", latency_table::make(space_, dense, table_));
  for (int pair = 0; pair < space_.pairs(); ++pair) {
    require("latency table", table_.set(pair, 0, 0.0));
    for (int level = 1; level < space_.levels(); ++level) {
      progress_.show("measuring pair " + std::to_string(pair + 1) + " of " +
                     std::to_string(space_.pairs()) + ", ratio " +
                     std::to_string(space_.ratios()[static_cast<std::size_t>(level)]));
      std::vector<double> ratios(static_cast<std::size_t>(2 * space_.pairs()), 0.0);
      for (int b = 2 * pair; b < 2 * pair + 2; ++b)
        ratios[static_cast<std::size_t>(b)] = space_.ratios()[static_cast<std::size_t>(level)];
      require(
          "latency table",
          table_.set(pair, level, measured(split_stages(ratios, work_.network_model())) - dense));
    }
  }
  std::printf("latency table: dense %.3f ms, %d entries measured\n", dense,
              space_.pairs() * (space_.levels() - 1));
}

status search_run::score(const std::vector<double>& block_ratios, double& value) {
  progress_.show("scoring configuration " + std::to_string(++scored_));
  value = asked_.score_command ? run_score_command(*asked_.score_command, block_ratios)
                               : fidelity_->of(split_stages(block_ratios, work_.network_model()));
  return {};
}

status search_run::report(const search_progress& progress) {
  std::printf("generation %d of %d: %zu scored, best %.5f at %.3f ms: %s\n", progress.generation,
              progress.generations, progress.scored->size(), progress.best->score,
              progress.best->latency, to_text(ratios_of(progress.best->levels)).c_str());
  std::fflush(stdout);
  write_log(*progress.scored);
  return {};
}

void search_run::write_log(const std::vector<scored_configuration>& scored) const {
  std::vector<scored_configuration> front;
  require("search", pareto_front(scored, front));
  std::vector<plotted_point> points;
  std::ofstream log(asked_.log);
  log << "latency_ms,score,on_front,ratios\n";
  for (const scored_configuration& each : scored) {
    bool on_front = false;
    for (const scored_configuration& better : front) on_front |= better.levels == each.levels;
    const std::string ratios = to_text(ratios_of(each.levels));
    points.push_back({each.latency, each.score, on_front, ratios});
    log << each.latency << ',' << each.score << ',' << on_front << ',' << ratios << '\n';
  }
  if (!log.flush()) throw support::input_error(asked_.log, "cannot be written");
  std::ofstream picture(asked_.picture);
  picture << scatter_plot(points, "Prune ratios of Swin-T", "latency in ms",
                          asked_.score_command ? "score" : "fidelity to the dense feature maps");
  if (!picture.flush()) throw support::input_error(asked_.picture, "cannot be written");
}

void search_run::run() {
  std::printf("%s\n", work_.description().c_str());
  prepare_table();
  if (!asked_.score_command)
    fidelity_ = std::make_unique<fidelity>(work_.network(), work_.network_model(), work_.images());
  search_problem problem;
  problem.space = space_;
  problem.table = &table_;
  problem.min_latency = asked_.min_latency;
  problem.max_latency = asked_.max_latency;
  problem.score = [this](const std::vector<double>& ratios, double& value) {
    return score(ratios, value);
  };
  problem.progress = [this](const search_progress& progress) { return report(progress); };
  search_options how;
  how.method = asked_.random ? search_method::random : search_method::evolutionary;
  how.generations = asked_.generations;
  how.population = asked_.population;
  how.parents = std::max(1, asked_.population / 4);
  how.seed = asked_.seed;
  if (asked_.state) how.state_file = *asked_.state;
  search_result result;
  require("search", search_ratios(problem, how, result));
  write_log(result.scored);
  const prune_ratios best = ratios_of(result.best.levels);
  std::printf("\nbest: %s\nscore %.5f, %.3f ms by the table, %.3f ms measured\n%s, %s\n",
              to_text(best).c_str(), result.best.score, result.best.latency, measured(best),
              asked_.log.c_str(), asked_.picture.c_str());
}

}  // namespace

void run_search_command(const search_command_options& asked) {
  check(asked);
  search_run(asked).run();
}

}  // namespace winnow::swin
