// SPDX-License-Identifier: Apache-2.0
/// \file
/// The search for the prune ratios of a network's layers. Host only; the network stays outside,
/// behind callbacks.
///
/// Source: SparseViT, evolutionary search under a latency constraint.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "winnow/latency_table.hpp"
#include "winnow/pareto_front.hpp"
#include "winnow/ratio_sampler.hpp"
#include "winnow/ratio_space.hpp"
#include "winnow/status.hpp"

namespace winnow {

/// A callback that evaluates a configuration, given as one ratio per block. A failed status stops
/// the search, which returns it. `value` must become finite.
using ratio_function =
    std::function<status(const std::vector<double>& block_ratios, double& value)>;

/// What the progress callback sees after each generation. The pointers live as long as the call.
struct search_progress {
  int generation = 0;  ///< generations done
  int generations = 0;
  const scored_configuration* best = nullptr;
  /// Everything scored so far, in the order of scoring.
  const std::vector<scored_configuration>* scored = nullptr;
};

/// What is searched. Callbacks run on the calling thread. One that throws counts as failed: with
/// out_of_memory for std::bad_alloc, with invalid_argument and its message for anything else.
struct search_problem {
  ratio_space space;
  /// Where latencies come from: a table or a callback, not both. A callback is asked once for each
  /// distinct configuration.
  const latency_table* table = nullptr;
  ratio_function latency;
  /// The band: min_latency <= latency <= max_latency.
  double min_latency = -std::numeric_limits<double>::infinity();
  double max_latency = std::numeric_limits<double>::infinity();
  /// Higher is better. Asked once for each distinct configuration, inside the band only.
  ratio_function score;
  /// Optional. A failed status stops the search.
  std::function<status(const search_progress&)> progress;
};

enum class search_method {
  /// Each generation is drawn as `ratio_sampler` draws and holds nothing that was scored before.
  random,
  /// The first generation is random. In each later one the first half are mutations of the parents,
  /// the best of the generation before; the second half are crossovers of two of them.
  evolutionary
};

struct search_options {
  search_method method = search_method::evolutionary;
  int generations = 20;
  /// Distinct configurations in a generation. There are fewer where `max_draws` says so.
  int population = 100;
  int parents = 25;
  /// Each pair of a mutated configuration draws a new ratio with this probability. A crossover takes
  /// each pair from either parent with equal probability. Then stages are sorted again.
  double mutation_probability = 0.1;
  /// Draws for one member of a generation. When none of them is new and inside the band, that half
  /// of the generation ends.
  int max_draws = 1000;
  std::uint64_t seed = 0;
  /// Where the search keeps its state, so that it can go on after an interruption; empty: nowhere.
  /// The file is replaced as a whole: after each generation, when a callback fails, and when
  /// `save_interval` has passed since the last time.
  std::string state_file;
  std::chrono::milliseconds save_interval{1000};
};

struct search_result {
  /// The highest score; among equal ones the lowest latency, then the first.
  scored_configuration best;
  /// Everything scored, in the order of scoring.
  std::vector<scored_configuration> scored;
  int generations = 0;
};

/// Searches for the configuration with the highest score inside a latency band.
///
/// The result depends on the problem and the options alone. When `state_file` exists the search goes
/// on from it, and ends with the same bits as if it had never stopped; no configuration is evaluated
/// twice. The file must be of the same search: only `generations` may differ, to search on, and a
/// search that has done as many returns at once. Delete the file to start anew.
///
/// \return the failed status of a callback; invalid_argument for a bad problem, options or state file
///         (as "FILE:LINE: what is wrong"), for a callback's value that is not finite, and for an
///         empty band, naming the nearest latency and its configuration. With a table and at most
///         2²² configurations a band counts as empty only if no configuration lies in it; else if
///         neither `max_draws` draws nor the configurations of least and of largest ratios do.
status search_ratios(const search_problem& problem, const search_options& options,
                     search_result& result) noexcept;

}  // namespace winnow

#include "winnow/detail/search/engine.hpp"
