// SPDX-License-Identifier: Apache-2.0
/// \file
/// The window kinds that device tests of attention sweep over, and how they look at results.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "support/attention_case.hpp"
#include "support/compare.hpp"
#include "support/device.hpp"

namespace winnow::test {

/// Labels with some tokens in no window, positions and perhaps a radius.
inline reference::host_partition random_labels(std::int64_t tokens, int windows, int quant_length,
                                               bool positions, bool radius, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::uniform_int_distribution<std::int32_t> window(-1, windows - 1);
  std::uniform_int_distribution<std::int32_t> cell(0, quant_length - 1);
  std::uniform_real_distribution<float> distance(1.0f, 3.0f);
  std::vector<std::int32_t> labels, cells;
  std::vector<float> distances;
  for (std::int64_t i = 0; i < tokens; ++i) {
    labels.push_back(window(engine));
    for (int a = 0; a < 3; ++a) cells.push_back(cell(engine));
    distances.push_back(distance(engine));
  }
  label_set set;
  set.labels = labels.data();
  set.tokens = tokens;
  if (positions) set.positions = cells.data();
  if (radius) set.radius = distances.data();
  return partition_labels({quant_length, radius ? 0.0125f : 0.0f}, set);
}

/// Windows of these sizes, shuffled, with random positions and perhaps a radius.
inline reference::host_partition sized_labels(const std::vector<int>& sizes, bool radius,
                                              std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::uniform_int_distribution<std::int32_t> cell(0, 23);
  std::uniform_real_distribution<float> distance(1.0f, 3.0f);
  std::vector<std::int32_t> labels, cells;
  std::vector<float> distances;
  for (std::size_t w = 0; w < sizes.size(); ++w)
    labels.insert(labels.end(), static_cast<std::size_t>(sizes[w]), static_cast<std::int32_t>(w));
  std::shuffle(labels.begin(), labels.end(), engine);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    for (int a = 0; a < 3; ++a) cells.push_back(cell(engine));
    distances.push_back(distance(engine));
  }
  label_set set;
  set.labels = labels.data();
  set.tokens = static_cast<std::int64_t>(labels.size());
  set.positions = cells.data();
  if (radius) set.radius = distances.data();
  return partition_labels({24, radius ? 0.0125f : 0.0f}, set);
}

enum class scene {
  plain,
  short_windows,
  long_windows,
  cubic,
  spherical,
  one_table,
  long_quant,
  grid,
  shifted_grid,
  large_bias,
  groups
};

inline constexpr scene all_scenes[] = {scene::plain,      scene::short_windows, scene::long_windows,
                                       scene::cubic,      scene::spherical,     scene::one_table,
                                       scene::long_quant, scene::grid,          scene::shifted_grid,
                                       scene::large_bias, scene::groups};

inline std::string name_of(scene kind) {
  constexpr const char* names[] = {"plain",        "short_windows", "long_windows", "cubic",
                                   "spherical",    "one_table",     "long_quant",   "grid",
                                   "shifted_grid", "large_bias",    "groups"};
  return names[static_cast<int>(kind)];
}

inline group_spec contextual(int heads, reference::host_partition windows) {
  return {heads, share(std::move(windows)), position_encoding::contextual};
}

inline std::vector<group_spec> make_scene(scene kind) {
  const std::int64_t tokens = 500;
  switch (kind) {
    case scene::plain:
      return {{2, share(partition_sizes({1, 1, 1, 5, 16, 17, 64, 3, 130, 40, 300, 2, 1}))}};
    case scene::short_windows:  // of about 2, 12, 24 and 42 tokens, and tokens in no window
      return {{2, share(random_labels(tokens, 250, 1, false, false, 11))},
              {1, share(random_labels(tokens, 40, 1, false, false, 12))},
              {1, share(random_labels(tokens, 20, 1, false, false, 13))},
              {2, share(random_labels(tokens, 11, 1, false, false, 14))}};
    case scene::long_windows:  // with shorter ones and tokens in no window between them
      return {{2, share(sized_labels({200, 30, 250, 5, 700, 193, 64, 300, 1}, false, 15))},
              {1, share(random_labels(1743, 4, 1, false, false, 16))}};
    case scene::cubic:
      return {contextual(2, random_labels(tokens, 40, 24, true, false, 1))};
    case scene::spherical:
      return {contextual(2, random_labels(tokens, 12, 24, true, true, 2))};
    case scene::one_table: {
      group_spec keys = contextual(1, random_labels(tokens, 5, 7, true, true, 3));
      keys.table_q = keys.table_v = false;
      group_spec values = contextual(1, random_labels(tokens, 5, 20, true, false, 4));
      values.table_q = values.table_k = false;
      return {keys, values};
    }
    case scene::long_quant:
      return {contextual(1, random_labels(tokens, 30, 40, true, false, 5)),
              contextual(1, random_labels(tokens, 30, 40, true, true, 6))};
    case scene::grid:
      return {{3, share(partition_grid({2, 14, 21, 7, 0})), position_encoding::bias}};
    case scene::shifted_grid:
      return {{1, share(partition_grid({2, 14, 21, 7, 3})), position_encoding::bias},
              {2, share(partition_grid({2, 14, 21, 7, 3})), position_encoding::none}};
    case scene::large_bias:
      return {{1, share(partition_grid({1, 40, 40, 40, 11})), position_encoding::bias}};
    case scene::groups:
      return {contextual(2, random_labels(tokens, 40, 24, true, false, 7)),
              {1, share(random_labels(tokens, 9, 1, false, false, 8))},
              contextual(1, random_labels(tokens, 12, 24, true, true, 9)),
              contextual(1, random_labels(tokens, 12, 30, true, true, 10))};
  }
  return {};
}

/// Fails unless the arrays agree within `limit`, as a whole and row by row.
template <class U>
void expect_close(const char* name, const std::vector<U>& result,
                  const std::vector<double>& expected, std::int64_t row_length, double limit) {
  // Bare arrays carry no poison by which unwritten rows could be told: those count as NaN.
  std::vector<double> values;
  for (std::size_t i = 0; i < result.size(); ++i)
    values.push_back(bare_arrays() && i < expected.size() && std::isnan(expected[i])
                         ? expected[i]
                         : static_cast<double>(to_float(result[i])));
  const support::comparison outcome = support::compare(values, expected, row_length, limit);
  EXPECT_TRUE(outcome.ok) << name << ": " << support::describe(outcome);
}

/// Rows that nobody wrote read as poison; the reference leaves NaN there.
template <class U>
std::vector<U> without_poison(std::vector<U> values, std::int64_t row_length) {
  const std::vector<U> poison(static_cast<std::size_t>(row_length), device_array<U>::poisoned());
  for (std::size_t row = 0; row + poison.size() <= values.size(); row += poison.size())
    if (std::memcmp(&values[row], poison.data(), poison.size() * sizeof(U)) == 0)
      std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(row), row_length,
                  from_float<U>(std::numeric_limits<float>::quiet_NaN()));
  return values;
}

template <class U>
bool same_bits(const std::vector<U>& a, const std::vector<U>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0;
}

}  // namespace winnow::test
