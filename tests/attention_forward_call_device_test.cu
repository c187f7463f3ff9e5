// SPDX-License-Identifier: Apache-2.0
// The forward call on the device: its arguments, and values of any size.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/device_forward_test.hpp"

namespace winnow::test {
namespace {

using support::precision_limit;
using support::quantity;

TYPED_TEST_SUITE(AttentionForwardDevice, storage_types);

TYPED_TEST(AttentionForwardDevice, ZeroesUnassignedRowsOnlyWhenAsked) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<TypeParam> problem(make_scene(scene::groups), 16, 11);
  device_attention<TypeParam> device(problem);
  auto arguments = device.forward();
  arguments.zero_unassigned = true;
  WINNOW_ASSERT_OK(run(arguments));
  expect_matches_reference(problem, device, true);
}

TYPED_TEST(AttentionForwardDevice, ServesTablesInFloat) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::shifted_grid}) {
    attention_case<TypeParam> problem(make_scene(kind), 32, 12);
    device_attention<TypeParam, float> device(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    attention_case<double> exact = problem.widened();
    WINNOW_ASSERT_OK(reference::attention_forward<double>(exact.forward()));
    expect_close("out", without_poison(device.out.to_host(), 32), exact.out, 32,
                 precision_limit(dtype_of<TypeParam>, quantity::output));
  }
}

TYPED_TEST(AttentionForwardDevice, WorksWithoutLse) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<TypeParam> problem(make_scene(scene::plain), 16, 13);
  device_attention<TypeParam> device(problem);
  WINNOW_ASSERT_OK(run(device.forward()));
  const auto expected = device.out.to_host();
  device.out.poison();
  auto arguments = device.forward();
  arguments.lse = {};
  WINNOW_ASSERT_OK(run(arguments));
  EXPECT_TRUE(same_bits(expected, device.out.to_host()));
}

/// Packed QKV of rows that start on 16 bytes, and rows that start anywhere.
TYPED_TEST(AttentionForwardDevice, ReadsAndWritesStridedRows) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int gap : {0, 8, 1}) {
    SCOPED_TRACE("gap " + std::to_string(gap));
    attention_case<TypeParam> problem(make_scene(scene::cubic), 32, 14);
    device_attention<TypeParam> device(problem);
    const std::int64_t heads = problem.heads, dim = problem.dim, row = dim + gap;
    const std::int64_t token = 3 * heads * row;
    std::vector<TypeParam> packed(static_cast<std::size_t>(problem.tokens * token),
                                  device_array<TypeParam>::poisoned());
    const std::vector<TypeParam>* sources[] = {&problem.q, &problem.k, &problem.v};
    for (std::int64_t n = 0; n < problem.tokens; ++n)
      for (int which = 0; which < 3; ++which)
        for (std::int64_t h = 0; h < heads; ++h)
          std::copy_n(sources[which]->begin() + (n * heads + h) * dim, dim,
                      packed.begin() + n * token + (which * heads + h) * row);
    const device_array<TypeParam> buffer(packed);
    auto arguments = device.forward();
    const auto view = [&](int which) {
      tensor_layout<3> layout;
      layout.shape[0] = problem.tokens, layout.shape[1] = heads, layout.shape[2] = dim;
      layout.stride[0] = token, layout.stride[1] = row, layout.stride[2] = 1;
      return tensor_view<const TypeParam, 3>(buffer.data() + which * heads * row, layout);
    };
    arguments.q = view(0);
    arguments.k = view(1);
    arguments.v = view(2);
    device_array<TypeParam> wide(problem.tokens * heads * row);
    wide.poison();
    arguments.out.data = wide.data();
    arguments.out.stride[0] = heads * row;
    arguments.out.stride[1] = row;
    WINNOW_ASSERT_OK(run(arguments));
    const std::vector<TypeParam> strided = wide.to_host();
    std::vector<TypeParam> out;
    for (std::int64_t r = 0; r < problem.tokens * heads; ++r) {
      out.insert(out.end(), strided.begin() + r * row, strided.begin() + r * row + dim);
      for (std::int64_t d = dim; d < row; ++d) {
        const TypeParam poison = device_array<TypeParam>::poisoned();
        ASSERT_EQ(std::memcmp(&strided[r * row + d], &poison, sizeof poison), 0) << "row " << r;
      }
    }
    device.out.copy_from(out);
    expect_matches_reference(problem, device);
  }
}

TYPED_TEST(AttentionForwardDevice, ComputesOnlySelectedWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window window{2, 14, 21, 7, 3};
  std::vector<std::int32_t> ids = {4, 1, 0, 5};
  const window_selection kept = uniform_selection(2, window.windows_per_image(), 2, ids.data());
  const auto partition = share(partition_grid(window, &kept));
  attention_case<TypeParam> problem({{3, partition, position_encoding::bias}}, 32, 15);
  device_attention<TypeParam> device(problem);
  WINNOW_ASSERT_OK(run(device.forward()));
  expect_matches_reference(problem, device);
}

TYPED_TEST(AttentionForwardDevice, LeavesEverythingUntouchedWithoutWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const std::int64_t tokens : {0, 1, 200}) {
    const auto partition = share(random_labels(tokens, 0, 1, false, false, 16));
    attention_case<TypeParam> problem({{2, partition}}, 16, 16);
    device_attention<TypeParam> device(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    for (const TypeParam& x : device.out.to_host()) {
      const TypeParam poison = device_array<TypeParam>::poisoned();
      ASSERT_EQ(std::memcmp(&x, &poison, sizeof poison), 0);
    }
  }
}

TYPED_TEST(AttentionForwardDevice, KeepsNanAndInfinityInTheirWindow) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind :
       {scene::plain, scene::long_windows, scene::cubic, scene::spherical, scene::shifted_grid}) {
    SCOPED_TRACE(name_of(kind));
    attention_case<TypeParam> problem(make_scene(kind), 16, 17);
    const partition& windows = problem.specs()[0].windows->view();
    // A window in the middle of a tile, with neighbours on both sides.
    const std::int64_t slot = windows.offsets[windows.counts->windows / 2];
    const std::int64_t token = windows.order[slot];
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
      for (auto* rows : {&problem.q, &problem.k, &problem.v}) {
        auto& element = (*rows)[static_cast<std::size_t>(token * problem.heads * problem.dim + 3)];
        const TypeParam good = element;
        element = from_float<TypeParam>(bad);
        device_attention<TypeParam> device(problem);
        WINNOW_ASSERT_OK(run(device.forward()));
        expect_matches_reference(problem, device);
        element = good;
      }
  }
}

TYPED_TEST(AttentionForwardDevice, SurvivesLogitsOfTenThousand) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::plain, scene::long_windows, scene::cubic, scene::spherical}) {
    SCOPED_TRACE(name_of(kind));
    attention_case<TypeParam> problem(make_scene(kind), 16, 18);
    for (TypeParam& x : problem.q) x = from_float<TypeParam>(to_float(x) * 3000.0f);
    device_attention<TypeParam> device(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    // One ulp of such a logit is 1e-3, which near ties turn into an error of the result.
    expect_matches_reference(
        problem, device, false,
        std::max(1e-3, precision_limit(dtype_of<TypeParam>, quantity::output)));
  }
}

/// Values far from 1 are as precise as any: half's smallest numbers must not show.
TYPED_TEST(AttentionForwardDevice, KeepsThePrecisionOfSmallAndLargeValues) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::plain, scene::long_windows, scene::cubic, scene::spherical})
    for (const float factor : {1.0f / 512.0f, 512.0f}) {
      SCOPED_TRACE(name_of(kind) + std::string(" times ") + std::to_string(factor));
      attention_case<TypeParam> problem(make_scene(kind), 16, 20);
      const auto scale = [factor](std::vector<TypeParam>& elements) {
        for (TypeParam& x : elements) x = from_float<TypeParam>(to_float(x) * factor);
      };
      scale(problem.v);
      for (auto& group : problem.groups) scale(group.table_v);
      device_attention<TypeParam> device(problem);
      WINNOW_ASSERT_OK(run(device.forward()));
      expect_matches_reference(problem, device);
    }
}

TEST(AttentionForwardDevice, RejectsWhatItCannotServe) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<double> problem(make_scene(scene::plain), 16, 23);
  const status wide = attention_forward(problem.forward(), nullptr, 0, nullptr);
  EXPECT_EQ(wide.code(), status_code::unsupported) << wide.message();
  attention_case<half> narrow(make_scene(scene::plain), 16, 23);
  auto arguments = narrow.forward();
  arguments.scale = std::numeric_limits<float>::infinity();
  EXPECT_EQ(attention_forward(arguments, nullptr, 0, nullptr).code(),
            status_code::invalid_argument);
  EXPECT_EQ(attention_forward_workspace_bytes(narrow.forward()), 0u);
}

}  // namespace
}  // namespace winnow::test
