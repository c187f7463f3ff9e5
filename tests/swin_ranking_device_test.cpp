// SPDX-License-Identifier: Apache-2.0
// The backbone's ranking of windows against sorted sums in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "support/device.hpp"
#include "swin/kernels.hpp"
#include "winnow/detail/partition/grid.hpp"

namespace winnow::swin {
namespace {

std::size_t index(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

/// What rankings write.
struct ranking_results {
  ranking_results(int batch, int windows) {
    for (int shifted = 0; shifted < 2; ++shifted) {
      ids.emplace_back(std::int64_t{batch} * windows);
      ranks.emplace_back(std::int64_t{batch} * windows);
      importance.emplace_back(std::int64_t{batch} * windows);
    }
  }
  void give_to(ranking& work) const {
    for (const std::size_t shifted : {0, 1}) {
      work.ids[shifted] = ids[shifted].data();
      work.ranks[shifted] = ranks[shifted].data();
      work.importance[shifted] = importance[shifted].data();
      work.longest[shifted] = work.windows;
    }
  }
  /// All windows, by importance and then by id.
  void expect_order(const grid_window& map, const std::vector<float>& magnitudes,
                    int shifted) const {
    const auto windows = static_cast<int>(map.windows_per_image());
    std::vector<std::int32_t> all(index(windows));
    std::iota(all.begin(), all.end(), 0);
    std::vector<std::int32_t> expected;
    std::vector<double> squares;
    for (int b = 0; b < map.batch; ++b) expected.insert(expected.end(), all.begin(), all.end());
    const grid_window whole = padded(map);
    for (int b = 0; b < map.batch; ++b)
      for (int w = 0; w < windows; ++w) {
        squares.push_back(0.0);
        for (int i = 0; i < window_tokens; ++i) {
          const std::int32_t token = detail::locate_in_grid(whole, w, i).token;
          const int y = token / whole.width, x = token % whole.width;
          if (y < map.height && x < map.width)
            squares.back() += std::pow(magnitudes[index((b * map.height + y) * map.width + x)], 2);
        }
      }
    for (int b = 0; b < map.batch; ++b) {
      const auto first = expected.begin() + b * windows;
      const double* of_image = squares.data() + b * windows;
      std::stable_sort(first, first + windows,
                       [&](int i, int j) { return of_image[i] > of_image[j]; });
    }
    const auto at = static_cast<std::size_t>(shifted);
    const std::vector<std::int32_t> found = ids[at].to_host(), inverse = ranks[at].to_host();
    EXPECT_EQ(found, expected);
    const std::vector<float> norms = importance[at].to_host();
    for (int w = 0; w < map.batch * windows; ++w) {
      EXPECT_NEAR(norms[index(w)], std::sqrt(squares[index(w)]), 1e-3);
      EXPECT_EQ(found[index(w / windows * windows + inverse[index(w)])], w % windows);
    }
  }
  std::vector<test::device_array<std::int32_t>> ids, ranks;
  std::vector<test::device_array<float>> importance;
};

/// Windows by their importance; an image is ranked by one block, by two and by four.
TEST(device_ranking, orders_windows_of_both_shifts) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 generator(1);
  std::normal_distribution<float> distribution;
  for (const auto& [height, width] : {std::pair{9, 8}, {44, 37}, {81, 78}, {111, 112}}) {
    SCOPED_TRACE(std::to_string(height) + " x " + std::to_string(width));
    grid_window map{2, height, width, window_edge, 0};
    std::vector<float> magnitudes(index(map.tokens()));
    for (float& value : magnitudes) value = std::abs(distribution(generator));
    const test::device_array<float> magnitude(magnitudes);
    ranking work;
    work.map = map;
    work.windows = static_cast<int>(map.windows_per_image());
    work.magnitude = magnitude.data();
    const ranking_results results(map.batch, work.windows);
    results.give_to(work);
    test::check_cuda(launch_ranking(work, nullptr), "ranking");
    test::synchronize();
    for (const int shifted : {0, 1}) {
      SCOPED_TRACE(shifted ? "shifted" : "not shifted");
      map.shift = shifted ? shift_of_odd_blocks : 0;
      results.expect_order(map, magnitudes, shifted);
    }
  }
}

/// Equal windows stay in the order of their ids, and what is not a number comes first.
TEST(device_ranking, keeps_ties_in_order) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window map{1, 49, 49, window_edge, 0};
  std::vector<float> magnitudes(index(map.tokens()), 0.5f);
  magnitudes.back() = std::numeric_limits<float>::quiet_NaN();
  const test::device_array<float> magnitude(magnitudes);
  ranking work;
  work.map = map;
  work.windows = 49;
  work.magnitude = magnitude.data();
  const ranking_results results(1, work.windows);
  results.give_to(work);
  test::check_cuda(launch_ranking(work, nullptr), "ranking");
  test::synchronize();
  std::vector<std::int32_t> expected(49);
  std::iota(expected.begin(), expected.end(), -1);
  expected.front() = 48;
  EXPECT_EQ(results.ids[0].to_host(), expected);
  EXPECT_TRUE(std::isnan(results.importance[0].to_host().back()));
}

}  // namespace
}  // namespace winnow::swin
