// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "winnow/detail/search/text.hpp"
#include "winnow/detail/util/guard.hpp"
#include "winnow/latency_table.hpp"

namespace winnow {
namespace detail {

inline constexpr const char* table_heading = "pair,ratio,latency";

/// A line of a table's file: an entry, or the constant if `pair` is negative.
struct table_line {
  int pair = -1;
  int level = 0;
  double latency = 0.0;
};

inline status parse_table_line(const text_reader& reader, std::string_view line,
                               const ratio_space& space, table_line& result) {
  const std::vector<std::string_view> fields = split_line(line, ',');
  WINNOW_REQUIRE_LINE(reader, fields.size() == 3, "%zu fields, must be %s", fields.size(),
                      table_heading);
  WINNOW_REQUIRE_LINE(reader,
                      parse_number(fields[2], result.latency) && std::isfinite(result.latency),
                      "latency: %s, must be a finite number", in_quotes(fields[2]).c_str());
  if (fields[0] == "constant") {
    WINNOW_REQUIRE_LINE(reader, fields[1].empty(), "ratio: %s, the constant has none",
                        in_quotes(fields[1]).c_str());
    return {};
  }
  WINNOW_REQUIRE_LINE(
      reader,
      parse_number(fields[0], result.pair) && result.pair >= 0 && result.pair < space.pairs(),
      "pair: %s, must be 0 to %d or constant", in_quotes(fields[0]).c_str(), space.pairs() - 1);
  double ratio = std::nan("");
  (void)parse_number(fields[1], ratio);
  const auto place = std::find(space.ratios().begin(), space.ratios().end(), ratio);
  WINNOW_REQUIRE_LINE(reader, place != space.ratios().end(), "ratio: %s, is no ratio of the space",
                      in_quotes(fields[1]).c_str());
  result.level = static_cast<int>(place - space.ratios().begin());
  return {};
}

}  // namespace detail

inline status latency_table::make(const ratio_space& space, double constant,
                                  latency_table& result) noexcept {
  WINNOW_REQUIRE(space.pairs() > 0, "space: has no stages");
  WINNOW_REQUIRE(std::isfinite(constant), "constant: %g, must be finite", constant);
  return detail::guard_allocation([&]() -> status {
    latency_table table;
    table.pairs_ = space.pairs();
    table.ratios_ = space.ratios();
    table.constant_ = constant;
    table.entries_.assign(table.index(space.pairs(), 0), std::nan(""));
    result = std::move(table);
    return {};
  });
}

inline status latency_table::set(int pair, int level, double latency) noexcept {
  WINNOW_REQUIRE(pair >= 0 && pair < pairs_, "pair: %d, but the table has %d block pairs", pair,
                 pairs_);
  WINNOW_REQUIRE(level >= 0 && static_cast<std::size_t>(level) < ratios_.size(),
                 "level: %d, but the table has %zu ratios", level, ratios_.size());
  WINNOW_REQUIRE(std::isfinite(latency), "latency: %g, must be finite", latency);
  entries_[index(pair, level)] = latency;
  return {};
}

inline status latency_table::latency(const ratio_levels& levels, double& result) const noexcept {
  WINNOW_REQUIRE(levels.size() == static_cast<std::size_t>(pairs_),
                 "levels: %zu of them, but the table has %d block pairs", levels.size(), pairs_);
  double sum = constant_;
  for (int pair = 0; pair < pairs_; ++pair) {
    const int level = levels[static_cast<std::size_t>(pair)];
    WINNOW_REQUIRE(static_cast<std::size_t>(level) < ratios_.size(),
                   "levels[%d]: %d, but the table has %zu ratios", pair, level, ratios_.size());
    const double entry = entries_[index(pair, level)];
    WINNOW_REQUIRE(!std::isnan(entry), "table: the entry of pair %d at ratio %g is missing", pair,
                   ratios_[static_cast<std::size_t>(level)]);
    sum += entry;
  }
  WINNOW_REQUIRE(std::isfinite(sum), "table: the entries sum up to %g, must be finite", sum);
  result = sum;
  return {};
}

inline status latency_table::check_complete() const noexcept {
  for (int pair = 0; pair < pairs_; ++pair)
    for (std::size_t level = 0; level < ratios_.size(); ++level)
      WINNOW_REQUIRE(!std::isnan(entries_[index(pair, static_cast<int>(level))]),
                     "table: the entry of pair %d at ratio %g is missing", pair, ratios_[level]);
  return {};
}

inline status latency_table::check(const ratio_space& space) const noexcept {
  WINNOW_REQUIRE(pairs_ == space.pairs(), "table: has %d block pairs, but the space has %d", pairs_,
                 space.pairs());
  WINNOW_REQUIRE(ratios_ == space.ratios(), "table: was made for other ratios than the space has");
  return check_complete();
}

inline status latency_table::load(const std::string& file, const ratio_space& space,
                                  latency_table& result) noexcept {
  return detail::guard_allocation([&]() -> status {
    latency_table table;
    WINNOW_TRY(make(space, 0.0, table));
    detail::text_reader reader;
    WINNOW_TRY(reader.open(file));
    bool heading = false;
    bool constant = false;
    while (reader.next()) {
      std::string_view line = reader.line();
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (line.empty() || line.front() == '#') continue;
      if (!heading) {
        WINNOW_REQUIRE_LINE(reader, line == detail::table_heading, "%s, must be the heading %s",
                            detail::in_quotes(line).c_str(), detail::table_heading);
        heading = true;
        continue;
      }
      detail::table_line entry;
      WINNOW_TRY(detail::parse_table_line(reader, line, space, entry));
      if (entry.pair < 0) {
        WINNOW_REQUIRE_LINE(reader, !constant, "the constant is there already");
        constant = true;
        table.constant_ = entry.latency;
        continue;
      }
      double& known = table.entries_[table.index(entry.pair, entry.level)];
      WINNOW_REQUIRE_LINE(reader, std::isnan(known), "pair %d at ratio %g is there already",
                          entry.pair, table.ratios_[static_cast<std::size_t>(entry.level)]);
      known = entry.latency;
    }
    WINNOW_REQUIRE_LINE(reader, heading, "ends without the heading %s", detail::table_heading);
    WINNOW_REQUIRE_LINE(reader, constant, "ends without the constant");
    const status complete = table.check_complete();
    WINNOW_REQUIRE_LINE(reader, complete.ok(), "ends too early: %s", complete.message());
    result = std::move(table);
    return {};
  });
}

inline status latency_table::save(const std::string& file) const noexcept {
  WINNOW_REQUIRE(pairs_ > 0, "table: is for no space");
  WINNOW_TRY(check_complete());
  return detail::guard_allocation([&] {
    std::string text = detail::table_heading;
    text += "\nconstant,";
    detail::append_number(text, ',', constant_);
    for (int pair = 0; pair < pairs_; ++pair) {
      for (std::size_t level = 0; level < ratios_.size(); ++level) {
        detail::append_number(text, '\n', pair);
        detail::append_number(text, ',', ratios_[level]);
        detail::append_number(text, ',', entries_[index(pair, static_cast<int>(level))]);
      }
    }
    return detail::replace_file(file, text += '\n');
  });
}

}  // namespace winnow
