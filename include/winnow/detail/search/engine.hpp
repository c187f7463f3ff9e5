// SPDX-License-Identifier: Apache-2.0
/// \file
/// The search itself. Every draw of a generation comes from the generator's state at its begin and
/// from values that the memo keeps, so a generation can be repeated from there.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "winnow/detail/search/front.hpp"
#include "winnow/detail/search/random.hpp"
#include "winnow/detail/search/state.hpp"
#include "winnow/detail/search/variation.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/search.hpp"

namespace winnow {
namespace detail {

inline status check_search(const search_problem& problem, const search_options& options) noexcept {
  WINNOW_REQUIRE(problem.space.pairs() > 0, "space: has no stages");
  WINNOW_REQUIRE((problem.table != nullptr) != (problem.latency != nullptr),
                 "table, latency: %s given, must be one of them",
                 problem.table != nullptr ? "both are" : "neither is");
  if (problem.table != nullptr) WINNOW_TRY(problem.table->check(problem.space));
  WINNOW_REQUIRE(problem.score != nullptr, "score: is empty");
  WINNOW_REQUIRE(problem.min_latency <= problem.max_latency,
                 "min_latency: %g, must be <= max_latency, %g", problem.min_latency,
                 problem.max_latency);
  WINNOW_REQUIRE(
      options.method == search_method::random || options.method == search_method::evolutionary,
      "method: %d, must be random or evolutionary", static_cast<int>(options.method));
  WINNOW_REQUIRE(options.generations >= 1, "generations: %d, must be >= 1", options.generations);
  WINNOW_REQUIRE(options.population >= 1, "population: %d, must be >= 1", options.population);
  WINNOW_REQUIRE(options.parents >= 1 && options.parents <= options.population,
                 "parents: %d, must be in [1, %d]", options.parents, options.population);
  WINNOW_REQUIRE(options.mutation_probability >= 0.0 && options.mutation_probability <= 1.0,
                 "mutation_probability: %g, must be in [0, 1]", options.mutation_probability);
  WINNOW_REQUIRE(options.max_draws >= 1, "max_draws: %d, must be >= 1", options.max_draws);
  return {};
}

/// The lines that say which search a file belongs to.
inline std::vector<std::string> search_lines(const search_problem& problem,
                                             const search_options& options) {
  const auto line = [](const char* key, const auto&... values) {
    std::string text = key;
    (append_number(text, ' ', values), ...);
    return text;
  };
  const auto list = [](const char* key, const auto& values) {
    std::string text = key;
    for (const auto value : values) append_number(text, ' ', value);
    return text;
  };
  return {"winnow-search 1",
          options.method == search_method::random ? "method random" : "method evolutionary",
          list("stage_pairs", problem.space.stage_pairs()),
          list("ratios", problem.space.ratios()),
          problem.table != nullptr ? "latency table" : "latency callback",
          line("band", problem.min_latency, problem.max_latency),
          line("population", options.population),
          line("parents", options.parents),
          line("mutation_probability", options.mutation_probability),
          line("max_draws", options.max_draws),
          line("seed", options.seed)};
}

/// A configuration as people write it: 0.7 | 0 | 0.2 0.4 0.5 | 0.
inline std::string describe(const ratio_space& space, const ratio_levels& levels) {
  std::string text;
  auto level = levels.begin();
  for (const int pairs : space.stage_pairs()) {
    if (!text.empty()) text += " |";
    for (int i = 0; i < pairs; ++i) append_number(text, ' ', space.ratios()[*level++]);
  }
  return text.substr(1);
}

/// Runs a callback of the user's, which may throw what it likes.
template <class Call>
status guard_callback(const char* name, Call&& call) noexcept {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return status::failure(status_code::out_of_memory, "%s: the callback ran out of memory", name);
  } catch (const std::exception& error) {
    return status::failure(status_code::invalid_argument, "%s: the callback threw \"%s\"", name,
                           error.what());
  } catch (...) {
    return status::failure(status_code::invalid_argument, "%s: the callback threw", name);
  }
}

class ratio_search {
 public:
  ratio_search(const search_problem& problem, const search_options& options)
      : problem_(problem),
        options_(options),
        rules_{problem.space,       problem.table,      problem.min_latency,
               problem.max_latency, options.population, search_lines(problem, options)},
        random_(options.seed) {}

  status run(search_result& result) {
    WINNOW_TRY(restore());
    while (state_.generation < options_.generations) {
      if (status done = guard_allocation([&] { return run_generation(); }); !done.ok()) {
        // What was scored is kept, as far as possible; the reason to stop is the news.
        (void)save();
        return done;
      }
      WINNOW_TRY(save());
      if (problem_.progress) WINNOW_TRY(report());
    }
    search_result found;
    found.best = best();
    found.generations = state_.generation;
    found.scored = std::move(state_.scored);
    result = std::move(found);
    return {};
  }

 private:
  /// The reachable latency that is nearest to the band.
  struct nearest_configuration {
    double distance = 0.0;
    double latency = 0.0;
    ratio_levels levels;  ///< empty: none was seen
  };

  status restore() {
    state_.random = options_.seed;
    if (options_.state_file.empty()) return {};
    std::error_code error;
    const bool exists = std::filesystem::exists(options_.state_file, error);
    if (error) return file_failure(options_.state_file, "cannot be found", error.value());
    if (exists) return state_reader(rules_).read(options_.state_file, state_);
    return save();  // whether it can be written should show before hours of scoring
  }

  status save() {
    if (options_.state_file.empty()) return {};
    saved_at_ = std::chrono::steady_clock::now();
    return save_state(options_.state_file, rules_, state_);
  }

  /// After an evaluation, which may have taken long.
  status save_if_due() {
    if (std::chrono::steady_clock::now() - saved_at_ < options_.save_interval) return {};
    return save();
  }

  [[nodiscard]] const scored_configuration& best() const noexcept {
    // The comparison is strict, so the first of several equal ones stays.
    return *std::min_element(state_.scored.begin(), state_.scored.end(), better);
  }

  status report() {
    search_progress progress;
    progress.generation = state_.generation;
    progress.generations = options_.generations;
    progress.best = &best();
    progress.scored = &state_.scored;
    return guard_callback("progress", [&] { return problem_.progress(progress); });
  }

  status run_generation() {
    random_ = search_random(state_.random);
    members_.clear();
    const std::vector<std::size_t> parents = choose_parents();
    if (parents.empty()) {
      WINNOW_TRY(fill_random());
    } else {
      WINNOW_TRY(
          fill(options_.population / 2, [&](ratio_levels& levels) { mutate(parents, levels); }));
      WINNOW_TRY(fill(options_.population, [&](ratio_levels& levels) { cross(parents, levels); }));
    }
    if (state_.scored.empty()) return empty_band();
    state_.members = members_;
    state_.settled = state_.scored.size();
    state_.random = random_.state();
    ++state_.generation;
    return {};
  }

  /// The best of the last generation; none for a random one.
  [[nodiscard]] std::vector<std::size_t> choose_parents() const {
    if (options_.method == search_method::random) return {};
    std::vector<std::size_t> parents = state_.members;
    std::sort(parents.begin(), parents.end(), [&](std::size_t a, std::size_t b) {
      const scored_configuration& x = state_.scored[a];
      const scored_configuration& y = state_.scored[b];
      return better(x, y) || (!better(y, x) && a < b);
    });
    parents.resize(std::min(parents.size(), static_cast<std::size_t>(options_.parents)));
    return parents;
  }

  [[nodiscard]] const ratio_levels& levels_of(std::size_t place) const noexcept {
    return state_.scored[place].levels;
  }

  [[nodiscard]] std::size_t pick(const std::vector<std::size_t>& parents) noexcept {
    return parents[random_.below(static_cast<std::uint32_t>(parents.size()))];
  }

  void mutate(const std::vector<std::size_t>& parents, ratio_levels& levels) {
    levels = levels_of(pick(parents));
    mutate_levels(problem_.space, random_, options_.mutation_probability, levels);
  }

  /// Crosses two different parents, where there are two.
  void cross(const std::vector<std::size_t>& parents, ratio_levels& levels) {
    const std::size_t first = pick(parents);
    std::size_t second = pick(parents);
    while (second == first && parents.size() > 1) second = pick(parents);
    levels = levels_of(first);
    cross_levels(problem_.space, random_, levels_of(second), levels);
  }

  /// Draws until the generation has `size` members, or too many draws in a row gave none.
  template <class Draw>
  status fill(int size, Draw&& draw) {
    ratio_levels levels(static_cast<std::size_t>(problem_.space.pairs()));
    while (missing(size) > 0) {
      bool admitted = false;
      for (int i = 0; i < options_.max_draws && !admitted; ++i) {
        draw(levels);
        WINNOW_TRY(admit(levels, admitted));
      }
      if (!admitted) return {};
    }
    return {};
  }

  /// As many new configurations as there are, up to the population.
  status fill_random() {
    WINNOW_TRY(fill(options_.population,
                    [&](ratio_levels& levels) { draw_levels(problem_.space, random_, levels); }));
    if (missing(options_.population) == 0) return {};
    if (can_walk()) return fill_by_walk();
    // Latency mostly falls from the first of these to the last, so they bound what is reachable.
    bool admitted = false;
    ratio_levels levels(static_cast<std::size_t>(problem_.space.pairs()), 0);
    WINNOW_TRY(admit(levels, admitted));
    if (missing(options_.population) == 0) return {};
    levels.assign(levels.size(), static_cast<std::uint8_t>(problem_.space.levels() - 1));
    return admit(levels, admitted);
  }

  [[nodiscard]] bool can_walk() const noexcept {
    return problem_.table != nullptr && problem_.space.count() <= std::uint64_t{1} << 22;
  }

  /// A uniform choice (reservoir sampling) among all configurations that draws have not found.
  status fill_by_walk() {
    const std::size_t wanted = missing(options_.population);
    std::vector<ratio_levels> chosen;
    std::uint32_t found = 0;
    ratio_levels levels(static_cast<std::size_t>(problem_.space.pairs()), 0);
    do {
      double latency = 0.0;
      WINNOW_TRY(problem_.table->latency(levels, latency));
      consider(levels, latency);
      if (!rules_.in_band(latency) || !is_new(levels)) continue;
      const std::uint32_t place = random_.below(++found);
      if (chosen.size() < wanted)
        chosen.push_back(levels);
      else if (place < wanted)
        chosen[place] = levels;
    } while (problem_.space.next(levels));
    bool admitted = false;
    for (const ratio_levels& each : chosen) WINNOW_TRY(admit(each, admitted));
    return {};
  }

  [[nodiscard]] std::size_t missing(int size) const noexcept {
    return static_cast<std::size_t>(size) -
           std::min(static_cast<std::size_t>(size), members_.size());
  }

  /// Whether a configuration may become a member. A random generation repeats no earlier one.
  [[nodiscard]] bool is_new(const ratio_levels& levels) const noexcept {
    const auto known = state_.places.find(levels);
    if (known == state_.places.end()) return true;
    const bool random = options_.method == search_method::random;
    if (random && known->second < state_.settled) return false;
    return std::find(members_.begin(), members_.end(), known->second) == members_.end();
  }

  /// Makes a configuration a member if it is new and inside the band.
  status admit(const ratio_levels& levels, bool& admitted) {
    admitted = false;
    if (!is_new(levels)) return {};
    double latency = 0.0;
    WINNOW_TRY(find_latency(levels, latency));
    consider(levels, latency);
    if (!rules_.in_band(latency)) return {};
    std::size_t place = 0;
    WINNOW_TRY(find_score(levels, latency, place));
    members_.push_back(place);
    admitted = true;
    return {};
  }

  status find_latency(const ratio_levels& levels, double& latency) {
    if (problem_.table != nullptr) return problem_.table->latency(levels, latency);
    if (const auto known = state_.places.find(levels); known != state_.places.end()) {
      latency = state_.scored[known->second].latency;
      return {};
    }
    if (const auto known = state_.measured.find(levels); known != state_.measured.end()) {
      latency = known->second;
      return {};
    }
    WINNOW_TRY(evaluate("latency", problem_.latency, levels, latency));
    state_.measured.emplace(levels, latency);
    return save_if_due();
  }

  status find_score(const ratio_levels& levels, double latency, std::size_t& place) {
    if (const auto known = state_.places.find(levels); known != state_.places.end()) {
      place = known->second;
      return {};
    }
    double score = 0.0;
    WINNOW_TRY(evaluate("score", problem_.score, levels, score));
    place = state_.scored.size();
    state_.places.emplace(levels, place);
    state_.scored.push_back({levels, latency, score});
    state_.measured.erase(levels);
    return save_if_due();
  }

  status evaluate(const char* name, const ratio_function& function, const ratio_levels& levels,
                  double& value) {
    std::vector<double> ratios;
    WINNOW_TRY(problem_.space.block_ratios(levels, ratios));
    value = std::nan("");
    WINNOW_TRY(guard_callback(name, [&] { return function(ratios, value); }));
    WINNOW_REQUIRE(std::isfinite(value), "%s: %g at %s, must be finite", name, value,
                   describe(problem_.space, levels).c_str());
    return {};
  }

  /// Remembers a configuration if none was nearer to the band.
  void consider(const ratio_levels& levels, double latency) {
    const double distance =
        std::max({problem_.min_latency - latency, latency - problem_.max_latency, 0.0});
    if (!nearest_.levels.empty() && distance >= nearest_.distance) return;
    nearest_.distance = distance;
    nearest_.latency = latency;
    nearest_.levels = levels;
  }

  status empty_band() const {
    return status::failure(
        status_code::invalid_argument,
        "latency: the band [%g, %g] is empty: %s; the nearest reachable latency is %.9g, at %s",
        problem_.min_latency, problem_.max_latency,
        can_walk() ? "no configuration lies in it" : "no configuration drawn lies in it",
        nearest_.latency, describe(problem_.space, nearest_.levels).c_str());
  }

  const search_problem& problem_;
  const search_options& options_;
  state_rules rules_;
  search_state state_;
  search_random random_;
  std::vector<std::size_t> members_;  // of the generation that is being made
  nearest_configuration nearest_;     // matters as long as nothing is scored
  std::chrono::steady_clock::time_point saved_at_;
};

}  // namespace detail

inline status search_ratios(const search_problem& problem, const search_options& options,
                            search_result& result) noexcept {
  WINNOW_TRY(detail::check_search(problem, options));
  return detail::guard_allocation(
      [&] { return detail::ratio_search(problem, options).run(result); });
}

}  // namespace winnow
