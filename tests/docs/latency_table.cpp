// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// Measures by how much each pair of blocks alone changes the latency, and keeps that in a file.
/// `time` runs the network with a ratio for each block and gives its milliseconds.
winnow::status measure(const winnow::ratio_space& space, const winnow::ratio_function& time,
                       const std::string& file) {
  const std::size_t blocks = 2 * static_cast<std::size_t>(space.pairs());
  double dense = 0.0;
  WINNOW_TRY(time(std::vector<double>(blocks, 0.0), dense));
  winnow::latency_table table;
  WINNOW_TRY(winnow::latency_table::make(space, dense, table));
  for (int pair = 0; pair < space.pairs(); ++pair) {
    for (int level = 0; level < space.levels(); ++level) {
      std::vector<double> ratios(blocks, 0.0);
      const std::size_t block = 2 * static_cast<std::size_t>(pair);
      ratios[block] = ratios[block + 1] = space.ratios()[static_cast<std::size_t>(level)];
      double pruned = 0.0;
      WINNOW_TRY(time(ratios, pruned));
      WINNOW_TRY(table.set(pair, level, pruned - dense));
    }
  }
  return table.save(file);
}
// ---

int main() {
  winnow::ratio_space space;
  check(winnow::ratio_space::make({2, 4}, space));
  // A block takes as many milliseconds as its number, less what is pruned.
  const winnow::ratio_function time = [](const std::vector<double>& ratios,
                                         double& milliseconds) -> winnow::status {
    milliseconds = 0.0;
    for (std::size_t b = 0; b < ratios.size(); ++b)
      milliseconds += static_cast<double>(b + 1) * (1.0 - ratios[b]);
    return {};
  };
  check(measure(space, time, "latency.csv"));

  winnow::latency_table table;
  check(winnow::latency_table::load("latency.csv", space, table));
  double latency = 0.0;
  check(table.latency({0, 0, 0}, latency));
  check_near(static_cast<float>(latency), 21.0f, "the dense latency is wrong");
  check(table.latency({5, 0, 8}, latency));  // ratios 0.5, 0 and 0.8
  check_near(static_cast<float>(latency), 0.5f * 3 + 7 + 0.2f * 11, "a pruned latency is wrong");
}
