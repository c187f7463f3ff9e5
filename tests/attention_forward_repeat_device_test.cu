// SPDX-License-Identifier: Apache-2.0
// The forward call on the device again: in a graph, and beside other work.
#include <gtest/gtest.h>

#include <string>

#include "support/busy_gpu.cuh"
#include "support/device_forward_test.hpp"

namespace winnow::test {
namespace {

TYPED_TEST_SUITE(AttentionForwardDevice, storage_types);

/// Frames of different size under one graph: only the partition's memory changes.
TEST(AttentionForwardDevice, ReplaysAGraphWithVaryingTokens) {
  WINNOW_SKIP_WITHOUT_GPU();
  const cubic_window window{{0.5f, 0.5f, 0.5f}, false, 24, {}};
  const random_points points(3000, 2, 2.0f, 21);
  const auto partition_of = [&](std::int32_t tokens) {
    point_set set = points.view();
    set.num_tokens = &tokens;
    return share(partition_points(window, set));
  };
  attention_case<half> problem({{2, partition_of(3000), position_encoding::contextual}}, 16, 21);
  device_attention<half> device(problem);
  device_stream stream;
  const auto arguments = device.forward();
  const captured_graph graph(stream, [&](cudaStream_t s) {
    EXPECT_TRUE(attention_forward(arguments, nullptr, 0, s).ok());
  });
  for (const std::int32_t tokens : {3000, 1, 1777, 0, 2999}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const auto windows = partition_of(tokens);
    device.partitions[0].assign(windows->view());
    device.out.poison();
    device.lse.poison();
    graph.launch();
    stream.synchronize();
    attention_case<half> frame({{2, windows, position_encoding::contextual}}, 16, 21);
    expect_matches_reference(frame, device);
  }
}

/// Two calls at once beside a stream that fills half the GPU give the bits of a call alone.
TYPED_TEST(AttentionForwardDevice, RepeatsBitForBitBesideOtherWork) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::spherical, scene::plain, scene::long_windows}) {
    attention_case<TypeParam> problem(make_scene(kind), 16, 22);
    device_attention<TypeParam> device(problem);
    device_attention<TypeParam> other(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    const auto out = device.out.to_host();
    const auto lse = device.lse.to_host();
    busy_gpu busy;
    const device_stream first, second;
    for (int turn = 0; turn < 5; ++turn) {
      device.out.poison();
      other.out.poison();
      busy.submit();
      WINNOW_ASSERT_OK(attention_forward(device.forward(), nullptr, 0, first));
      WINNOW_ASSERT_OK(attention_forward(other.forward(), nullptr, 0, second));
      synchronize();
      EXPECT_TRUE(same_bits(out, device.out.to_host()));
      EXPECT_TRUE(same_bits(out, other.out.to_host()));
      EXPECT_TRUE(same_bits(lse, device.lse.to_host()));
    }
  }
}

}  // namespace
}  // namespace winnow::test
