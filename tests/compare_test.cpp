// SPDX-License-Identifier: Apache-2.0
#include "support/compare.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

namespace winnow::support {
namespace {

using ::testing::HasSubstr;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

using doubles = std::vector<double>;

TEST(comparison, of_an_array_with_itself_is_ok_with_any_limit) {
  const doubles values{1.0, -2.0, 0.0, 1e-300, 1e150, 3.0};
  const comparison result = compare(values, values, 3, 0.0);
  EXPECT_TRUE(result.ok);
  EXPECT_EQ(result.relative_error, 0.0);
  EXPECT_EQ(result.worst_row, 0.0);
}

TEST(comparison, measures_the_norm_of_the_error_relative_to_the_reference) {
  const comparison result = compare(doubles{3.0, 4.5}, doubles{3.0, 4.0}, 2, 0.1);
  EXPECT_DOUBLE_EQ(result.relative_error, 0.1);
  EXPECT_DOUBLE_EQ(result.worst_row, 0.1);
  EXPECT_FALSE(compare(doubles{3.0, 4.5}, doubles{3.0, 4.0}, 2, 0.0999).ok);
}

TEST(comparison, does_not_let_a_wrong_row_hide_among_many) {
  doubles reference(10000, 1.0);
  doubles values = reference;
  values[4321] = 1.09;
  const comparison result = compare(values, reference, 1, 0.01);
  EXPECT_LT(result.relative_error, 0.01);
  EXPECT_NEAR(result.worst_row, 0.09, 1e-12);
  EXPECT_EQ(result.worst_index, 4321);
  EXPECT_FALSE(result.ok);
  values[4321] = 1.07;
  EXPECT_TRUE(compare(values, reference, 1, 0.01).ok);
}

TEST(comparison, measures_small_rows_by_the_mean_row) {
  const doubles reference{10.0, 0.0};
  EXPECT_DOUBLE_EQ(compare(doubles{10.0, 0.5}, reference, 1, 0.1).worst_row, 0.1);
}

TEST(comparison, never_passes_a_nan_that_is_not_expected) {
  const doubles reference{1.0, 2.0};
  for (const double bad : {nan, infinity, -infinity}) {
    const comparison result = compare(doubles{bad, 2.0}, reference, 1, 1e300);
    EXPECT_FALSE(result.ok);
    EXPECT_EQ(result.relative_error, infinity);
    EXPECT_EQ(result.worst_index, 0);
    EXPECT_FALSE(compare(reference, doubles{1.0, bad}, 1, 1e300).ok);
  }
  EXPECT_FALSE(compare(doubles{infinity}, doubles{-infinity}, 1, 1e300).ok);
  EXPECT_FALSE(compare(doubles{nan}, doubles{infinity}, 1, 1e300).ok);
}

TEST(comparison, passes_an_expected_nan_and_infinity) {
  EXPECT_TRUE(compare(doubles{nan, infinity, 2.0}, doubles{nan, infinity, 2.0}, 1, 0.0).ok);
  EXPECT_FALSE(compare(doubles{nan, infinity, 3.0}, doubles{nan, infinity, 2.0}, 1, 0.1).ok);
}

TEST(comparison, takes_a_reference_of_zeros_as_ones) {
  const doubles zeros(8, 0.0);
  EXPECT_TRUE(compare(zeros, zeros, 4, 0.0).ok);
  const comparison result = compare(doubles(8, 1e-3), zeros, 4, 1e-3);
  EXPECT_NEAR(result.relative_error, 1e-3, 1e-15);
  EXPECT_NEAR(result.worst_row, 1e-3, 1e-15);
  EXPECT_FALSE(compare(doubles(8, 2e-3), zeros, 4, 1e-3).ok);
}

TEST(comparison, of_nothing_passes) {
  EXPECT_TRUE(compare(doubles{}, doubles{}, 0, 0.0).ok);
}

TEST(comparison, wants_equal_sizes_and_whole_rows) {
  EXPECT_THROW(compare(doubles(4), doubles(5), 1, 1.0), std::invalid_argument);
  EXPECT_THROW(compare(doubles(4), doubles(4), 3, 1.0), std::invalid_argument);
  EXPECT_THROW(compare(doubles(4), doubles(4), 0, 1.0), std::invalid_argument);
}

TEST(comparison, takes_any_element_types) {
  const std::vector<half> values{from_float<half>(1.0f), from_float<half>(0.333f)};
  const std::vector<float> reference{1.0f, 0.333f};
  const comparison result = compare(values, reference, 2, 1e-3);
  EXPECT_TRUE(result.ok);
  EXPECT_GT(result.relative_error, 0.0);
}

TEST(comparison, describes_itself) {
  EXPECT_THAT(describe(compare(doubles{1.0}, doubles{2.0}, 1, 0.1)), HasSubstr("FAIL"));
  EXPECT_EQ(describe(compare(doubles{1.0}, doubles{1.0}, 1, 0.1)),
            "relative error 0.00e+00, worst row 0.00e+00 (0), tolerance 1.00e-01, ok");
}

TEST(precision_limit, follows_the_storage_type_and_the_quantity) {
  EXPECT_EQ(precision_limit(dtype::float32, quantity::output), 1e-5);
  EXPECT_EQ(precision_limit(dtype::float32, quantity::gradient), 2e-5);
  EXPECT_EQ(precision_limit(dtype::float16, quantity::output), 1e-3);
  EXPECT_EQ(precision_limit(dtype::float16, quantity::table_gradient), 2e-3);
  EXPECT_EQ(precision_limit(dtype::bfloat16, quantity::output), 8e-3);
  EXPECT_EQ(precision_limit(dtype::bfloat16, quantity::gradient), 1.5e-2);
  EXPECT_THROW(precision_limit(dtype::int32, quantity::output), std::invalid_argument);
}

}  // namespace
}  // namespace winnow::support
