// SPDX-License-Identifier: Apache-2.0
// The oracle against finite differences: every gradient of every position encoding, in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/attention_case.hpp"

namespace winnow::test {
namespace {

using problem = attention_case<double>;

/// loss = Σ dO · O
double loss(problem& p) {
  const status done = reference::attention_forward<double>(p.forward());
  EXPECT_TRUE(done.ok()) << done.message();
  double sum = 0.0;
  for (std::size_t i = 0; i < p.out.size(); ++i) sum += p.out[i] * p.grad_out[i];
  return sum;
}

/// Central differences of the loss by every element of `values` against `gradient`.
void expect_gradient(problem& p, std::vector<double>& values, const std::vector<double>& gradient,
                     const std::string& name) {
  ASSERT_EQ(values.size(), gradient.size()) << name;
  double largest = 1e-3;
  for (double g : gradient) largest = std::max(largest, std::fabs(g));
  for (std::size_t i = 0; i < values.size(); ++i) {
    constexpr double step = 1e-5;
    const double kept = values[i];
    values[i] = kept + step;
    const double above = loss(p);
    values[i] = kept - step;
    const double below = loss(p);
    values[i] = kept;
    ASSERT_NEAR((above - below) / (2 * step), gradient[i], 2e-7 * largest)
        << name << "[" << i << "]";
  }
}

void expect_all_gradients(problem p) {
  loss(p);
  WINNOW_ASSERT_OK(reference::attention_backward<double>(p.backward()));
  const problem answer = p;
  expect_gradient(p, p.q, answer.grad_q, "q");
  expect_gradient(p, p.k, answer.grad_k, "k");
  expect_gradient(p, p.v, answer.grad_v, "v");
  for (std::size_t g = 0; g < p.groups.size(); ++g) {
    const std::string suffix = "." + std::to_string(g);
    expect_gradient(p, p.groups[g].table_q, answer.groups[g].grad_table_q, "table_q" + suffix);
    expect_gradient(p, p.groups[g].table_k, answer.groups[g].grad_table_k, "table_k" + suffix);
    expect_gradient(p, p.groups[g].table_v, answer.groups[g].grad_table_v, "table_v" + suffix);
    expect_gradient(p, p.groups[g].bias, answer.groups[g].grad_bias, "bias" + suffix);
  }
}

std::shared_ptr<const reference::host_partition> cubic(std::int64_t tokens) {
  const random_points points(tokens, 2, 1.0f, 3);
  return share(partition_points(cubic_window{{1.0f, 1.5f, 2.0f}, true, 4, {}}, points.view()));
}

std::shared_ptr<const reference::host_partition> spherical(std::int64_t tokens) {
  const random_points points(tokens, 1, 3.0f, 4);
  return share(partition_points(spherical_window{{120.0f, 90.0f, 80.0f}, false, 4, 0.3f, {}, true},
                                points.view()));
}

TEST(ReferenceGradient, Plain) {
  expect_all_gradients(problem({{2, share(partition_sizes({1, 5, 2, 9}))}}, 8, 1));
}

class ReferenceGradientTables : public ::testing::TestWithParam<int> {};

TEST_P(ReferenceGradientTables, Contextual) {
  const int mask = GetParam();
  const group_spec group{1,
                         cubic(17),
                         position_encoding::contextual,
                         (mask & 1) != 0,
                         (mask & 2) != 0,
                         (mask & 4) != 0};
  expect_all_gradients(problem({group}, 8, 10 + static_cast<unsigned>(mask)));
}

INSTANTIATE_TEST_SUITE_P(Subsets, ReferenceGradientTables, ::testing::Range(0, 8));

TEST(ReferenceGradient, Spherical) {
  expect_all_gradients(problem({{1, spherical(19), position_encoding::contextual}}, 8, 20));
}

TEST(ReferenceGradient, BiasAcrossTheSeam) {
  const grid_window grid{2, 6, 6, 3, 1};
  expect_all_gradients(problem({{1, share(partition_grid(grid)), position_encoding::bias}}, 8, 30));
}

TEST(ReferenceGradient, HeadGroups) {
  expect_all_gradients(problem({{1, cubic(15), position_encoding::contextual},
                                {2, spherical(15), position_encoding::contextual, true, false},
                                {1, cubic(15)}},
                               8, 40));
}

TEST(ReferenceGradient, AccumulateAddsToWhatIsThere) {
  problem p({{2, cubic(21), position_encoding::contextual}}, 8, 50);
  loss(p);
  auto arguments = p.backward();
  WINNOW_ASSERT_OK(reference::attention_backward<double>(arguments));
  const problem once = p;
  arguments.accumulate = true;
  WINNOW_ASSERT_OK(reference::attention_backward<double>(arguments));
  const auto expect_doubled = [](const std::vector<double>& now,
                                 const std::vector<double>& before) {
    for (std::size_t i = 0; i < now.size(); ++i) ASSERT_DOUBLE_EQ(now[i], 2.0 * before[i]);
  };
  expect_doubled(p.grad_q, once.grad_q);
  expect_doubled(p.grad_k, once.grad_k);
  expect_doubled(p.grad_v, once.grad_v);
  expect_doubled(p.groups[0].grad_table_q, once.groups[0].grad_table_q);
  expect_doubled(p.groups[0].grad_table_k, once.groups[0].grad_table_k);
  expect_doubled(p.groups[0].grad_table_v, once.groups[0].grad_table_v);
}

}  // namespace
}  // namespace winnow::test
