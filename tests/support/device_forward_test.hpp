// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the sources of attention_forward_device_test share.
#pragma once

#include <gtest/gtest.h>

#include "support/attention_scenes.hpp"
#include "support/compare.hpp"
#include "support/device_attention.hpp"

namespace winnow::test {

template <class T>
void expect_matches_reference(const attention_case<T>& problem, const device_attention<T>& device,
                              bool zero_unassigned = false, double limit = 0.0) {
  attention_case<double> exact = problem.widened();
  attention_forward_arguments<double> arguments = exact.forward();
  arguments.zero_unassigned = zero_unassigned;
  WINNOW_ASSERT_OK(reference::attention_forward<double>(arguments));
  if (limit == 0.0) limit = support::precision_limit(dtype_of<T>, support::quantity::output);
  expect_close("out", without_poison(device.out.to_host(), exact.dim), exact.out, exact.dim, limit);
  expect_close("lse", without_poison(device.lse.to_host(), 1), exact.lse, 1, limit);
  EXPECT_TRUE(device.out.guards_intact());
  EXPECT_TRUE(device.lse.guards_intact());
}

template <class Arguments>
status run(const Arguments& arguments, cudaStream_t stream = nullptr) {
  const status launched = attention_forward(arguments, nullptr, 0, stream);
  if (launched.ok()) synchronize();
  return launched;
}

template <class T>
class AttentionForwardDevice : public ::testing::Test {};
using storage_types = ::testing::Types<float, half, bfloat16>;

}  // namespace winnow::test
