// SPDX-License-Identifier: Apache-2.0
#include "winnow/relative_position.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace {

using winnow::exponential_row;
using winnow::pack_position;
using winnow::packed_position;
using winnow::unpack_position;

TEST(PackedPosition, RoundTrips) {
  static_assert(pack_position(1, 2, 3) == 0x030201u);
  static_assert(pack_position(255, 255, 255) == 0xffffffu);
  for (int a = 0; a < 256; ++a) {
    const int b = (a * 37 + 11) % 256;
    const int c = (a * 101 + 5) % 256;
    const packed_position packed = pack_position(a, b, c);
    EXPECT_EQ(unpack_position(packed, 0), a);
    EXPECT_EQ(unpack_position(packed, 1), b);
    EXPECT_EQ(unpack_position(packed, 2), c);
  }
}

TEST(DifferenceRow, CoversTheTableAndIsOrdered) {
  static_assert(winnow::difference_row(0, 0, 1) == 0);
  for (const int length : {1, 2, 7, 24, 256}) {
    std::set<int> rows;
    for (int i = 0; i < length; ++i) {
      for (int j = 0; j < length; ++j) {
        const int row = winnow::difference_row(i, j, length);
        rows.insert(row);
        ASSERT_EQ(row - winnow::difference_row(j, i, length), 2 * (i - j));
      }
    }
    EXPECT_EQ(*rows.begin(), 0);
    EXPECT_EQ(*rows.rbegin(), 2 * length - 2);
    EXPECT_EQ(static_cast<int>(rows.size()), 2 * length - 1);
  }
}

/// The thresholds in units of a, up to more than any float: 1, 2, 4, 6, 10, 14, 22, 30, …, whose
/// steps double at every second one.
std::vector<double> thresholds() {
  std::vector<double> result{1, 2};
  for (double step = 2; result.back() < 1e39; step *= 2) {
    result.push_back(result.back() + step);
    result.push_back(result.back() + step);
  }
  return result;
}

/// The row by the definition; `units` is Δ/a.
int expected_row(double units, int length) {
  int reached = 0;
  for (const double threshold : thresholds()) reached += threshold <= std::fabs(units);
  const int row = units < 0 ? length - 1 - reached : length + reached;
  return std::min(std::max(row, 0), 2 * length - 1);
}

TEST(ExponentialRow, StartsAsDesigned) {
  const std::vector<double> list = thresholds();
  const std::vector<double> first{1, 2, 4, 6, 10, 14, 22, 30, 46, 62, 94, 126};
  EXPECT_EQ(std::vector<double>(list.begin(), list.begin() + 12), first);
}

class ExponentialRow : public testing::TestWithParam<float> {};

// With a power of two everything up to 2²² thresholds is exact, and so is the comparison.
TEST_P(ExponentialRow, ReachesThresholdsExactly) {
  const float a = GetParam();
  const float inverse = 1.0f / a;
  constexpr int length = 64;
  for (const double threshold : thresholds()) {
    if (threshold > 4e6) break;
    const auto units = static_cast<float>(threshold);
    for (const float sign : {1.0f, -1.0f}) {
      EXPECT_EQ(exponential_row(sign * units * a, inverse, length),
                expected_row(sign * threshold, length))
          << threshold;
      // 2 is added in FP32, so nearer than this to a threshold counts as reached.
      const double below = threshold * (1 - 3e-7);
      EXPECT_EQ(exponential_row(sign * static_cast<float>(below) * a, inverse, length),
                expected_row(sign * below, length))
          << below;
    }
  }
}

TEST_P(ExponentialRow, MatchesTheListOnSmallMultiples) {
  const float a = GetParam();
  for (const int length : {1, 3, 16, 256})
    for (int quarter = -2000; quarter <= 2000; ++quarter) {
      const double units = quarter * 0.25;
      ASSERT_EQ(exponential_row(static_cast<float>(units) * a, 1.0f / a, length),
                expected_row(units, length))
          << units << " of " << a << ", length " << length;
    }
}

INSTANTIATE_TEST_SUITE_P(PowersOfTwo, ExponentialRow,
                         testing::Values(0.0078125f, 0.5f, 1.0f, 8.0f));

TEST(ExponentialRow, MatchesTheListOnRandomDeltas) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> exponent(-12.0f, 12.0f);
  const std::vector<double> list = thresholds();
  for (const float a : {0.0125f, 0.05f, 0.3f, 1.7f}) {
    const float inverse = 1.0f / a;
    for (int i = 0; i < 100'000; ++i) {
      const float delta = (i % 2 ? -1.0f : 1.0f) * std::exp2(exponent(random));
      const double units = static_cast<double>(delta) / a;
      // Within rounding of a threshold either side is right.
      const bool near = std::any_of(list.begin(), list.end(), [&](double threshold) {
        return std::fabs(std::fabs(units) - threshold) < 1e-6 * (threshold + 2);
      });
      if (near) continue;
      ASSERT_EQ(exponential_row(delta, inverse, 24), expected_row(units, 24)) << delta << ' ' << a;
    }
  }
}

TEST(ExponentialRow, IsSymmetricAndMonotonic) {
  for (const int length : {1, 2, 24, 256}) {
    int previous = length;
    for (float delta = 1e-4f; delta < 1e9f; delta *= 1.01f) {
      const int row = exponential_row(delta, 80.0f, length);
      EXPECT_GE(row, previous);
      EXPECT_LE(row, 2 * length - 1);
      EXPECT_EQ(exponential_row(-delta, 80.0f, length), 2 * length - 1 - row);
      previous = row;
    }
  }
}

TEST(ExponentialRow, PutsZeroOnThePositiveSide) {
  for (const int length : {1, 24, 256}) {
    EXPECT_EQ(exponential_row(0.0f, 80.0f, length), length);
    EXPECT_EQ(exponential_row(-0.0f, 80.0f, length), length);
    EXPECT_EQ(exponential_row(-1e-30f, 80.0f, length), length - 1);
  }
}

TEST(ExponentialRow, ClampsHugeDeltas) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float largest = std::numeric_limits<float>::max();
  for (const int length : {1, 2, 24, 250}) {
    for (const float delta : {largest, infinity}) {
      EXPECT_EQ(exponential_row(delta, 80.0f, length), 2 * length - 1);
      EXPECT_EQ(exponential_row(-delta, 80.0f, length), 0);
    }
  }
  // The longest tables have more rows than float has thresholds; indices stay inside.
  EXPECT_EQ(exponential_row(largest, 1.0f, 256), expected_row(largest, 256));
  EXPECT_EQ(exponential_row(-largest, 1.0f, 256), expected_row(-largest, 256));
  EXPECT_LE(exponential_row(infinity, 1.0f, 256), 511);
  EXPECT_GE(exponential_row(-infinity, 1.0f, 256), 0);
}

// Swin builds its index from a meshgrid: all (dy, dx), row by row from the most negative.
TEST(BiasRow, EnumeratesOffsetsRowByRow) {
  for (const int w : {1, 2, 3, 7, 12, 16}) {
    int row = 0;
    for (int dy = -(w - 1); dy < w; ++dy) {
      for (int dx = -(w - 1); dx < w; ++dx, ++row) {
        for (int y = std::max(0, -dy); y < std::min(w, w - dy); ++y) {
          for (int x = std::max(0, -dx); x < std::min(w, w - dx); ++x) {
            // The seam region must not matter.
            const packed_position j = pack_position(x, y, 1);
            const packed_position i = pack_position(x + dx, y + dy, 8);
            ASSERT_EQ(winnow::bias_row(i, j, w), row);
          }
        }
      }
    }
    EXPECT_EQ(row, (winnow::relative_position{winnow::relative_kind::grid, w, 0.0f}.bias_rows()));
  }
}

TEST(BiasRow, ReachesTheCornersOfTheLargestWindow) {
  static_assert(winnow::bias_row(pack_position(0, 0, 0), pack_position(255, 255, 0), 256) == 0);
  static_assert(winnow::bias_row(pack_position(255, 255, 0), pack_position(0, 0, 0), 256) ==
                511 * 511 - 1);
}

TEST(RelativePosition, KnowsItsTables) {
  using winnow::relative_kind;
  using winnow::relative_position;
  static_assert(relative_position{}.table_rows() == 0 && relative_position{}.bias_rows() == 0);
  static_assert(relative_position{relative_kind::differences, 24, 0.0f}.table_rows() == 47);
  static_assert(relative_position{relative_kind::differences, 24, 0.0f}.bias_rows() == 0);
  static_assert(relative_position{relative_kind::spherical, 24, 0.1f}.table_rows() == 48);
  static_assert(relative_position{relative_kind::grid, 7, 0.0f}.table_rows() == 0);
  static_assert(relative_position{relative_kind::grid, 7, 0.0f}.bias_rows() == 169);
}

}  // namespace
