// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the sources of attention_backward_device_test share.
#pragma once

#include <gtest/gtest.h>

#include "support/device_gradients.hpp"

namespace winnow::test {

template <class T>
attention_case<T> make_problem(scene kind, int dim, std::uint64_t seed) {
  attention_case<T> problem(make_scene(kind), dim, seed);
  prepare_forward(problem);
  return problem;
}

/// As `prepare_forward`, by the device's forward, where the reference takes minutes.
template <class T>
void prepare_forward_on_device(attention_case<T>& problem) {
  device_attention<T> forward(problem);
  WINNOW_ASSERT_OK(attention_forward(forward.forward(), nullptr, 0, nullptr));
  synchronize();
  problem.out = forward.out.to_host();
  problem.lse = forward.lse.to_host();
}

/// Two runs agree in every bit of every gradient, and in rows that they leave alone.
template <class T>
void run_twice(device_gradients<T>& device) {
  if (bare_arrays()) {  // a checker is to see memory that nothing wrote, bits are then compared without it
    WINNOW_ASSERT_OK(device.run());
    device.poison();
  }
  WINNOW_ASSERT_OK(device.run());
  const auto first = device.bytes();
  device.poison();
  WINNOW_ASSERT_OK(device.run());
  EXPECT_TRUE(first == device.bytes());
}

template <class T>
class AttentionBackwardDevice : public ::testing::Test {};
using storage_types = ::testing::Types<float, half, bfloat16>;

}  // namespace winnow::test
