// SPDX-License-Identifier: Apache-2.0
// What docs/calls.md says about the host's calls: which of them allocate nothing, that the others return
// out_of_memory when they are refused memory, and that results do not depend on the number of threads.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "support/attention_case.hpp"
#include "support/failing_allocation.hpp"
#include "winnow/winnow.hpp"

namespace winnow::test {
namespace {

constexpr grid_window image{2, 14, 14, 7, 3};
constexpr cubic_window cubes{{0.5f, 0.5f, 0.5f}, false, 8, {}};

template <class Call>
void expect_no_allocation(const char* name, Call&& call) {
  limit_allocations(0);
  const status done = call();
  const bool refused = allocation_was_refused();
  limit_allocations(-1);
  EXPECT_FALSE(refused) << name;
  EXPECT_TRUE(done.ok()) << name << ": " << done.message();
}

TEST(host_calls, that_allocate_nothing) {
  const std::vector<float> importance = {3, 1, 4, 1, 5, 9, 2, 6};
  const std::vector<std::uint8_t> windows = {1, 0, 0, 1, 0, 0, 1, 1};
  const std::vector<std::uint8_t> tokens(static_cast<std::size_t>(image.tokens()), 1);
  std::vector<std::int32_t> ids(8), offsets(3);
  const window_selection kept = ragged_selection(2, 4, ids.data(), offsets.data());
  expect_no_allocation("select_above", [&] {
    return reference::select_above({importance.data(), {2, 4}}, 2.5f, kept);
  });
  expect_no_allocation("select_window_mask", [&] {
    return reference::select_window_mask({windows.data(), {2, 4}}, kept);
  });
  expect_no_allocation("select_token_mask", [&] {
    return reference::select_token_mask(image, {tokens.data(), {2, 196}}, kept);
  });

  ratio_space space;
  latency_table table;
  ASSERT_TRUE(ratio_space::make({2, 4}, space).ok());
  ASSERT_TRUE(latency_table::make(space, 1.0, table).ok());
  for (int pair = 0; pair < space.pairs(); ++pair)
    for (int level = 0; level < space.levels(); ++level)
      expect_no_allocation("set", [&] { return table.set(pair, level, level); });
  const ratio_levels levels(static_cast<std::size_t>(space.pairs()));
  double latency = 0.0;
  expect_no_allocation("ratio_space::check", [&] { return space.check(levels); });
  expect_no_allocation("latency_table::check", [&] { return table.check(space); });
  expect_no_allocation("latency", [&] { return table.latency(levels, latency); });

  std::vector<std::byte> memory(4096);
  partition bound;
  window_selection shorter;
  expect_no_allocation("bind_partition", [&] {
    return bind_partition(shape_of(cubes, 10), memory.data(), memory.size(), bound);
  });
  expect_no_allocation("prefix", [&] {
    return prefix(uniform_selection(1, 9, kept_windows(9, 0.4), nullptr), 3, shorter);
  });
  expect_no_allocation("check_flags", [] { return check_flags({}); });
}

TEST(host_calls, that_run_out_of_memory_say_so) {
  const random_points points(200, 2, 2.0f, 1);
  const reference::host_partition windows(shape_of(cubes, points.tokens()));
  refuse_each_allocation(
      [&] { return reference::build_partition(cubes, points.view(), windows.view(), 1); });

  std::vector<float> importance = {3, 1, 4, 1};
  std::vector<std::int32_t> ids(2);
  refuse_each_allocation([&] {
    return reference::select_most_important({importance.data(), {1, 4}},
                                            uniform_selection(1, 4, 2, ids.data()));
  });

  attention_case<float> problem(
      {{1, share(partition_points(cubes, points.view())), position_encoding::contextual}}, 8, 2);
  const auto forward = problem.forward();
  const auto backward = problem.backward();
  refuse_each_allocation([&] { return reference::attention_forward<float>(forward, 1); });
  refuse_each_allocation([&] { return reference::attention_backward<float>(backward, 1); });
}

TEST(host_calls, do_not_depend_on_the_number_of_threads) {
  const random_points points(300, 2, 2.0f, 3);
  std::vector<unsigned char> results[2];
  for (const int threads : {1, 5}) {
    std::vector<unsigned char>& all = results[threads == 5];
    const auto append = [&](const auto& values) {
      const auto* first = reinterpret_cast<const unsigned char*>(values.data());
      all.insert(all.end(), first, first + values.size() * sizeof(values[0]));
    };
    const reference::host_partition windows(shape_of(cubes, points.tokens()));
    ASSERT_TRUE(reference::build_partition(cubes, points.view(), windows.view(), threads).ok());
    append(std::vector<std::int32_t>(windows.view().order, windows.view().order + 300));
    std::vector<float> spherical(900);
    ASSERT_TRUE(
        reference::spherical_coordinates(points.view(), {spherical.data(), {300, 3}}, threads)
            .ok());
    append(spherical);
    attention_case<float> problem(
        {{2, share(partition_points(cubes, points.view())), position_encoding::contextual}}, 8, 4);
    ASSERT_TRUE(reference::attention_forward<float>(problem.forward(), threads).ok());
    ASSERT_TRUE(reference::attention_backward<float>(problem.backward(), threads).ok());
    append(problem.out);
    append(problem.grad_q);
    append(problem.grad_k);
    append(problem.groups[0].grad_table_k);
    std::vector<float> importance(8);
    ASSERT_TRUE(reference::window_importance<float>(
                    image, tensor_view<const float, 3>(problem.q.data(), {2, 196, 8}),
                    {importance.data(), {2, 4}}, threads)
                    .ok());
    append(importance);
  }
  EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace winnow::test
