// SPDX-License-Identifier: Apache-2.0
/// \file
/// Small spaces of prune ratios, and tables for them.
#pragma once

#include <string>

#include "memory.hpp"
#include "winnow/latency_table.hpp"
#include "winnow/ratio_space.hpp"

namespace winnow::fuzz {

inline constexpr int space_count = 4;

inline ratio_space make_space(int which) {
  ratio_space space;
  const status made = which == 0   ? ratio_space::make({2, 4}, {0.0, 0.25, 0.5}, space)
                      : which == 1 ? ratio_space::make({2}, {0.0}, space)
                      : which == 2 ? ratio_space::make({4, 2, 2}, {0.1, 0.30000000000000004}, space)
                                   : ratio_space::make({2, 2}, space);
  require(made.ok(), "a space is made");
  return space;
}

/// A pair's latency falls with its ratio, each pair's at another rate.
inline latency_table make_table(const ratio_space& space) {
  latency_table table;
  status done = latency_table::make(space, 2.0, table);
  for (int pair = 0; pair < space.pairs(); ++pair)
    for (int level = 0; level < space.levels() && done.ok(); ++level)
      done =
          table.set(pair, level,
                    (1.0 + 0.5 * pair) * (1.0 - space.ratios()[static_cast<std::size_t>(level)]));
  require(done.ok() && table.check(space).ok(), "a table is filled");
  return table;
}

/// What is wrong with a file is told in one line that begins with its name.
inline void require_file_failure(const status& failed, const std::string& file) {
  const std::string message = failed.message();
  require(message.find(file + ":") == 0, "a message names the file");
  for (const char c : message) require(c >= ' ' && c <= '~', "a message is one line of text");
}

}  // namespace winnow::fuzz
