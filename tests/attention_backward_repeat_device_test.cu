// SPDX-License-Identifier: Apache-2.0
// The backward call on the device again: every bit of a scan's gradients, in a graph, and beside other work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "support/busy_gpu.cuh"
#include "support/device_backward_test.hpp"

namespace winnow::test {
namespace {

TYPED_TEST_SUITE(AttentionBackwardDevice, storage_types);

/// As many tokens as a scan has, in windows as short: every gradient of two runs agrees in every bit.
TYPED_TEST(AttentionBackwardDevice, RepeatsTablesOfAScanBitForBit) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::vector<int> sizes;
  for (int left = 200000, w = 0; left > 0; ++w) {
    sizes.push_back(std::min(left, 1 + w * w % 47 * (w % 3)));
    left -= sizes.back();
  }
  for (const bool radius : {false, true}) {
    SCOPED_TRACE(radius ? "spherical" : "cubic");
    attention_case<TypeParam> problem({contextual(2, sized_labels(sizes, radius, 48))}, 16, 48);
    ASSERT_NO_FATAL_FAILURE(prepare_forward_on_device(problem));
    device_gradients<TypeParam> device(problem);
    ASSERT_NO_FATAL_FAILURE(run_twice(device));
  }
}

/// Frames of different size under one graph: only the partition's memory changes.
TEST(AttentionBackwardDevice, ReplaysAGraphWithVaryingTokens) {
  WINNOW_SKIP_WITHOUT_GPU();
  const cubic_window window{{0.5f, 0.5f, 0.5f}, false, 24, {}};
  const random_points points(1500, 2, 2.0f, 42);
  const auto partition_of = [&](std::int32_t tokens) {
    point_set set = points.view();
    set.num_tokens = &tokens;
    return share(partition_points(window, set));
  };
  const auto frame_of = [&](std::int32_t tokens) {
    attention_case<half> frame({{2, partition_of(tokens), position_encoding::contextual}}, 16, 42);
    prepare_forward(frame);
    return frame;
  };
  device_gradients<half> device(frame_of(1500));
  device_stream stream;
  const auto arguments = device.arguments();
  const captured_graph graph(stream, [&](cudaStream_t s) {
    const status submitted = device.submit(arguments, s);
    EXPECT_TRUE(submitted.ok()) << submitted.message();
  });
  for (const std::int32_t tokens : {1500, 1, 777, 0, 1499}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const auto frame = frame_of(tokens);
    device.inputs.partitions[0].assign(frame.specs()[0].windows->view());
    device.inputs.out.copy_from(frame.out);
    device.inputs.lse.copy_from(frame.lse);
    device.poison();
    graph.launch();
    stream.synchronize();
    expect_gradients_match(exact_gradients(frame), device);
  }
}

/// Two calls at once beside a stream that fills half the GPU give the bits that one has given alone.
template <class T>
void expect_same_bits_beside_other_work(const attention_case<T>& problem,
                                        device_gradients<T>& device) {
  device_gradients<T> other(problem);
  const auto alone = device.bytes();
  busy_gpu busy;
  const device_stream first, second;
  for (int turn = 0; turn < 3; ++turn) {
    device.poison();
    other.poison();
    busy.submit();
    WINNOW_ASSERT_OK(device.submit(device.arguments(), first));
    WINNOW_ASSERT_OK(other.submit(other.arguments(), second));
    synchronize();
    EXPECT_TRUE(alone == device.bytes());
    EXPECT_TRUE(alone == other.bytes());
  }
}

TYPED_TEST(AttentionBackwardDevice, RepeatsBitForBitBesideOtherWork) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::spherical, scene::plain, scene::short_windows,
                           scene::long_windows, scene::shifted_grid}) {
    SCOPED_TRACE(name_of(kind));
    const auto problem = make_problem<TypeParam>(kind, 16, 43);
    device_gradients<TypeParam> device(problem);
    WINNOW_ASSERT_OK(device.run());
    expect_same_bits_beside_other_work(problem, device);
  }
}

/// As many tokens as a scan has, in windows like its cubic ones (most of a few tokens, some of a
/// hundred) and like its spherical ones; against the reference, and bit for bit beside other work.
TEST(AttentionBackwardDevice, RepeatsScansBitForBit) {
  WINNOW_SKIP_WITHOUT_GPU();
  const int tokens = 220000;
  std::mt19937_64 engine(46);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  const auto windows_of = [&](const auto& draw) {
    std::vector<int> sizes;
    for (int left = tokens; left > 0; left -= sizes.back())
      sizes.push_back(std::min(left, draw(uniform(engine))));
    return share(partition_sizes(sizes));
  };
  const auto cubic =
      windows_of([](double x) { return 1 + static_cast<int>(130.0 * std::pow(x, 9)); });
  const auto spherical = windows_of([](double x) { return 1 + static_cast<int>(48.0 * x); });
  for (const auto& windows : {cubic, spherical}) {
    attention_case<half> problem({{2, windows}}, 16, 46);
    prepare_forward(problem);
    device_gradients<half> device(problem);
    WINNOW_ASSERT_OK(device.run());
    expect_gradients_match(exact_gradients(problem), device);
    expect_same_bits_beside_other_work(problem, device);
  }
}

}  // namespace
}  // namespace winnow::test
