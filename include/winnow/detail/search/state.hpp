// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a search needs to go on, and its file: the lines of the search itself, then those of its
/// progress, then `end`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "winnow/detail/search/text.hpp"
#include "winnow/latency_table.hpp"
#include "winnow/pareto_front.hpp"
#include "winnow/ratio_space.hpp"

namespace winnow::detail {

/// The state at the end of a generation, but for the memo, which is always up to date. Repeating the
/// generation that was interrupted therefore takes the same way without evaluating anything twice.
struct search_state {
  int generation = 0;                ///< generations done
  std::uint64_t random = 0;          ///< the generator's state after them
  std::size_t settled = 0;           ///< configurations that they scored
  std::vector<std::size_t> members;  ///< the last generation, as places in `scored`

  std::vector<scored_configuration> scored;
  std::map<ratio_levels, std::size_t> places;  ///< in `scored`
  /// Latencies that a callback measured, of configurations that are not scored: they lie outside the
  /// band, or scoring failed.
  std::map<ratio_levels, double> measured;
};

/// What a state must obey, and how its file begins.
struct state_rules {
  const ratio_space& space;
  const latency_table* table;  ///< null where a callback measures
  double min_latency;
  double max_latency;
  int population;
  std::vector<std::string> heading;  ///< lines that say which search this is

  [[nodiscard]] bool in_band(double latency) const noexcept {
    return latency >= min_latency && latency <= max_latency;
  }
};

inline status save_state(const std::string& file, const state_rules& rules,
                         const search_state& state) {
  std::string text;
  for (const std::string& line : rules.heading) (text += line) += '\n';
  append_number(text += "generation", ' ', state.generation);
  append_number(text += "\nrandom", ' ', state.random);
  append_number(text += "\nsettled", ' ', state.settled);
  text += "\nmembers";
  for (const std::size_t member : state.members) append_number(text, ' ', member);
  const auto append_levels = [&](const ratio_levels& levels) {
    for (std::size_t i = 0; i < levels.size(); ++i)
      append_number(text, i == 0 ? '\n' : ' ', levels[i]);
  };
  append_number(text += "\nscored", ' ', state.scored.size());
  for (const scored_configuration& each : state.scored) {
    append_levels(each.levels);
    append_number(text, ' ', each.latency);
    append_number(text, ' ', each.score);
  }
  append_number(text += "\nmeasured", ' ', state.measured.size());
  for (const auto& [levels, latency] : state.measured) {
    append_levels(levels);
    append_number(text, ' ', latency);
  }
  return replace_file(file, text += "\nend\n");
}

/// Reads a state file and believes none of it.
class state_reader {
 public:
  explicit state_reader(const state_rules& rules) noexcept : rules_(rules) {}

  /// \param state a new one.
  status read(const std::string& file, search_state& state) {
    WINNOW_TRY(reader_.open(file));
    for (const std::string& expected : rules_.heading) {
      WINNOW_TRY(next());
      WINNOW_REQUIRE_LINE(reader_, reader_.line() == expected, "%s, but this search has %s",
                          in_quotes(reader_.line()).c_str(), in_quotes(expected).c_str());
    }
    WINNOW_TRY(read_value("generation", state.generation));
    WINNOW_REQUIRE_LINE(reader_, state.generation >= 0, "generation: %d, must be >= 0",
                        state.generation);
    WINNOW_TRY(read_value("random", state.random));
    WINNOW_TRY(read_value("settled", state.settled));
    WINNOW_REQUIRE_LINE(reader_, (state.settled > 0) == (state.generation > 0),
                        "settled: %zu configurations after %d generations", state.settled,
                        state.generation);
    WINNOW_TRY(read_members(state));
    WINNOW_TRY(read_scored(state));
    WINNOW_TRY(read_measured(state));
    WINNOW_TRY(next());
    WINNOW_REQUIRE_LINE(reader_, reader_.line() == "end", "%s, must be end",
                        in_quotes(reader_.line()).c_str());
    WINNOW_REQUIRE_LINE(reader_, !reader_.next(), "goes on after its end");
    return {};
  }

 private:
  status next() {
    WINNOW_REQUIRE_LINE(reader_, reader_.next(), "ends too early");
    WINNOW_REQUIRE_LINE(reader_, reader_.ended(), "ends inside this line");
    return {};
  }

  template <class T>
  status read_value(std::string_view key, T& value) {
    WINNOW_TRY(next());
    const std::vector<std::string_view> fields = split_line(reader_.line(), ' ');
    WINNOW_REQUIRE_LINE(
        reader_, fields.size() == 2 && fields[0] == key && parse_number(fields[1], value),
        "%s, must be %s and a number", in_quotes(reader_.line()).c_str(), std::string(key).c_str());
    return {};
  }

  /// A configuration that was not there before, and the numbers behind it.
  status read_configuration(const search_state& state, ratio_levels& levels,
                            std::initializer_list<double*> numbers) {
    WINNOW_TRY(next());
    const std::vector<std::string_view> fields = split_line(reader_.line(), ' ');
    const auto pairs = static_cast<std::size_t>(rules_.space.pairs());
    WINNOW_REQUIRE_LINE(reader_, fields.size() == pairs + numbers.size(),
                        "%zu fields, must be %zu levels and %zu numbers", fields.size(), pairs,
                        numbers.size());
    levels.resize(pairs);
    for (std::size_t i = 0; i < pairs; ++i)
      WINNOW_REQUIRE_LINE(reader_, parse_number(fields[i], levels[i]),
                          "levels[%zu]: %s, is no level", i, in_quotes(fields[i]).c_str());
    const status legal = rules_.space.check(levels);
    WINNOW_REQUIRE_LINE(reader_, legal.ok(), "%s", legal.message());
    WINNOW_REQUIRE_LINE(reader_, state.places.count(levels) + state.measured.count(levels) == 0,
                        "this configuration is there already");
    auto field = fields.begin() + rules_.space.pairs();
    for (double* number : numbers) {
      WINNOW_REQUIRE_LINE(reader_, parse_number(*field, *number) && std::isfinite(*number),
                          "%s, must be a finite number", in_quotes(*field).c_str());
      ++field;
    }
    return {};
  }

  status read_members(search_state& state) {
    WINNOW_TRY(next());
    const std::vector<std::string_view> fields = split_line(reader_.line(), ' ');
    WINNOW_REQUIRE_LINE(reader_, fields[0] == "members", "%s, must be members",
                        in_quotes(reader_.line()).c_str());
    WINNOW_REQUIRE_LINE(reader_, fields.size() - 1 <= static_cast<std::size_t>(rules_.population),
                        "members: %zu, but the population is %d", fields.size() - 1,
                        rules_.population);
    for (std::size_t i = 1; i < fields.size(); ++i) {
      std::size_t member = 0;
      WINNOW_REQUIRE_LINE(reader_, parse_number(fields[i], member) && member < state.settled,
                          "members: %s, must be below %zu", in_quotes(fields[i]).c_str(),
                          state.settled);
      WINNOW_REQUIRE_LINE(
          reader_,
          std::find(state.members.begin(), state.members.end(), member) == state.members.end(),
          "members: %zu, is there already", member);
      state.members.push_back(member);
    }
    return {};
  }

  status read_scored(search_state& state) {
    std::size_t count = 0;
    WINNOW_TRY(read_value("scored", count));
    WINNOW_REQUIRE_LINE(reader_, count >= state.settled, "scored: %zu, but settled is %zu", count,
                        state.settled);
    while (state.scored.size() < count) {
      scored_configuration each;
      WINNOW_TRY(read_configuration(state, each.levels, {&each.latency, &each.score}));
      WINNOW_REQUIRE_LINE(reader_, rules_.in_band(each.latency), "latency: %g, is outside the band",
                          each.latency);
      double expected = each.latency;
      if (rules_.table != nullptr) WINNOW_TRY(rules_.table->latency(each.levels, expected));
      WINNOW_REQUIRE_LINE(reader_, each.latency == expected,
                          "latency: %.17g, but the table says %.17g", each.latency, expected);
      state.places.emplace(each.levels, state.scored.size());
      state.scored.push_back(std::move(each));
    }
    return {};
  }

  status read_measured(search_state& state) {
    std::size_t count = 0;
    WINNOW_TRY(read_value("measured", count));
    WINNOW_REQUIRE_LINE(reader_, count == 0 || rules_.table == nullptr,
                        "measured: %zu, must be 0 with a table", count);
    while (state.measured.size() < count) {
      ratio_levels levels;
      double latency = 0.0;
      WINNOW_TRY(read_configuration(state, levels, {&latency}));
      state.measured.emplace(std::move(levels), latency);
    }
    return {};
  }

  const state_rules& rules_;
  text_reader reader_;
};

}  // namespace winnow::detail
