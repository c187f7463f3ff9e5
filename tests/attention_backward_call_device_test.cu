// SPDX-License-Identifier: Apache-2.0
// The backward call on the device: its arguments, and values of any size.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/device_backward_test.hpp"

namespace winnow::test {
namespace {

TYPED_TEST_SUITE(AttentionBackwardDevice, storage_types);

TYPED_TEST(AttentionBackwardDevice, ServesTablesInFloat) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::shifted_grid}) {
    const auto problem = make_problem<TypeParam>(kind, 16, 31);
    device_gradients<TypeParam, float> device(problem);
    WINNOW_ASSERT_OK(device.run());
    expect_gradients_match(exact_gradients(problem), device);
  }
}

TYPED_TEST(AttentionBackwardDevice, ZeroesUnassignedRowsOnlyWhenAsked) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::short_windows}) {
    SCOPED_TRACE(name_of(kind));
    const auto problem = make_problem<TypeParam>(kind, 16, 32);
    device_gradients<TypeParam> device(problem);
    auto arguments = device.arguments();
    arguments.zero_unassigned = true;
    WINNOW_ASSERT_OK(device.run(arguments));
    expect_gradients_match(exact_gradients(problem, true), device);
  }
}

TYPED_TEST(AttentionBackwardDevice, Accumulates) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::plain, scene::short_windows, scene::long_windows,
                           scene::shifted_grid}) {
    SCOPED_TRACE(name_of(kind));
    const auto problem = make_problem<TypeParam>(kind, 16, 33);
    device_gradients<TypeParam> device(problem);
    WINNOW_ASSERT_OK(device.run());
    auto arguments = device.arguments();
    arguments.accumulate = true;
    arguments.zero_unassigned = true;  // without effect
    WINNOW_ASSERT_OK(device.run(arguments));
    attention_case<double> exact = exact_gradients(problem);
    const auto twice = [](std::vector<double>& values) {
      for (double& x : values) x *= 2.0;
    };
    for (auto* rows : {&exact.grad_q, &exact.grad_k, &exact.grad_v}) twice(*rows);
    for (group_data<double>& group : exact.groups)
      for (auto* table :
           {&group.grad_table_q, &group.grad_table_k, &group.grad_table_v, &group.grad_bias})
        twice(*table);
    // A poisoned row stays poison, as nothing is added to it.
    expect_gradients_match(exact, device);
  }
}

/// Each gradient alone has the bits that it has among all.
TYPED_TEST(AttentionBackwardDevice, LeavesOutAbsentGradients) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::groups, scene::grid}) {
    SCOPED_TRACE(name_of(kind));
    const auto problem = make_problem<TypeParam>(kind, 16, 34);
    device_gradients<TypeParam> all(problem);
    for (auto* rows : {&all.grad_q, &all.grad_k, &all.grad_v}) rows->poison();
    auto everything = all.arguments();
    everything.group_gradients = nullptr;
    WINNOW_ASSERT_OK(all.run(everything));
    for (int wanted = 0; wanted < 3; ++wanted) {
      device_gradients<TypeParam> device(problem);
      for (auto* rows : {&device.grad_q, &device.grad_k, &device.grad_v}) rows->poison();
      auto arguments = device.arguments();
      arguments.group_gradients = nullptr;
      if (wanted != 0) arguments.grad_q = {};
      if (wanted != 1) arguments.grad_k = {};
      if (wanted != 2) arguments.grad_v = {};
      EXPECT_LE(attention_backward_workspace_bytes(arguments),
                (4 * problem.heads + 16) * problem.tokens + 1024);
      WINNOW_ASSERT_OK(device.run(arguments));
      const device_array<TypeParam>* expected[] = {&all.grad_q, &all.grad_k, &all.grad_v};
      const device_array<TypeParam>* results[] = {&device.grad_q, &device.grad_k, &device.grad_v};
      for (int which = 0; which < 3; ++which) {
        device_array<TypeParam> untouched(results[which]->size());
        untouched.poison();
        EXPECT_TRUE(same_bits(results[which]->to_host(),
                              which == wanted ? expected[which]->to_host() : untouched.to_host()));
      }
    }
    // Tables alone.
    device_gradients<TypeParam> tables(problem);
    auto arguments = tables.arguments();
    arguments.grad_q = arguments.grad_k = arguments.grad_v = {};
    WINNOW_ASSERT_OK(tables.run(arguments));
    expect_tables_match(
        exact_gradients(problem), tables,
        support::precision_limit(dtype_of<TypeParam>, support::quantity::table_gradient));
  }
}

/// Packed QKV and its packed gradient, of rows that start on 16 bytes or anywhere.
TYPED_TEST(AttentionBackwardDevice, ReadsAndWritesStridedRows) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int gap : {0, 8, 1}) {
    SCOPED_TRACE("gap " + std::to_string(gap));
    const auto problem =
        make_problem<TypeParam>(gap == 8 ? scene::short_windows : scene::cubic, 32, 35);
    device_gradients<TypeParam> device(problem);
    const std::int64_t heads = problem.heads, dim = problem.dim, row = dim + gap;
    const std::int64_t token = 3 * heads * row;
    const TypeParam poison = device_array<TypeParam>::poisoned();
    std::vector<TypeParam> packed(static_cast<std::size_t>(problem.tokens * token), poison);
    const std::vector<TypeParam>* sources[] = {&problem.q, &problem.k, &problem.v};
    for (std::int64_t n = 0; n < problem.tokens; ++n)
      for (int which = 0; which < 3; ++which)
        for (std::int64_t h = 0; h < heads; ++h)
          std::copy_n(sources[which]->begin() + (n * heads + h) * dim, dim,
                      packed.begin() + n * token + (which * heads + h) * row);
    const device_array<TypeParam> buffer(packed);
    device_array<TypeParam> gradients(problem.tokens * token);
    gradients.poison();
    tensor_layout<3> layout;
    layout.shape[0] = problem.tokens, layout.shape[1] = heads, layout.shape[2] = dim;
    layout.stride[0] = token, layout.stride[1] = row, layout.stride[2] = 1;
    const auto input = [&](int which) {
      return tensor_view<const TypeParam, 3>(buffer.data() + which * heads * row, layout);
    };
    const auto output = [&](int which) {
      return tensor_view<TypeParam, 3>(gradients.data() + which * heads * row, layout);
    };
    auto arguments = device.arguments();
    arguments.q = input(0);
    arguments.k = input(1);
    arguments.v = input(2);
    arguments.grad_q = output(0);
    arguments.grad_k = output(1);
    arguments.grad_v = output(2);
    WINNOW_ASSERT_OK(device.run(arguments));
    const std::vector<TypeParam> strided = gradients.to_host();
    device_array<TypeParam>* targets[] = {&device.grad_q, &device.grad_k, &device.grad_v};
    for (int which = 0; which < 3; ++which) {
      std::vector<TypeParam> rows;
      for (std::int64_t n = 0; n < problem.tokens; ++n)
        for (std::int64_t h = 0; h < heads; ++h) {
          const auto first = strided.begin() + n * token + (which * heads + h) * row;
          rows.insert(rows.end(), first, first + dim);
          for (std::int64_t d = dim; d < row; ++d)
            ASSERT_EQ(std::memcmp(&*(first + d), &poison, sizeof poison), 0) << "token " << n;
        }
      targets[which]->copy_from(rows);
    }
    expect_gradients_match(exact_gradients(problem), device);
  }
}

TYPED_TEST(AttentionBackwardDevice, ComputesOnlySelectedWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window window{2, 14, 21, 7, 3};
  std::vector<std::int32_t> ids = {4, 1, 0, 5};
  const window_selection kept = uniform_selection(2, window.windows_per_image(), 2, ids.data());
  const auto partition = share(partition_grid(window, &kept));
  attention_case<TypeParam> problem({{3, partition, position_encoding::bias}}, 32, 36);
  prepare_forward(problem);
  for (const bool zeroes : {false, true}) {
    device_gradients<TypeParam> device(problem);
    auto arguments = device.arguments();
    arguments.zero_unassigned = zeroes;
    WINNOW_ASSERT_OK(device.run(arguments));
    expect_gradients_match(exact_gradients(problem, zeroes), device);
  }
}

TYPED_TEST(AttentionBackwardDevice, GivesTablesZeroWithoutWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const std::int64_t tokens : {1, 200}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const auto partition = share(random_labels(tokens, 0, 4, true, true, 37));
    attention_case<TypeParam> problem({{2, partition, position_encoding::contextual}}, 16, 37);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    device.grad_q.poison();
    WINNOW_ASSERT_OK(device.run());
    for (const TypeParam& x : device.grad_q.to_host()) {
      const TypeParam poison = device_array<TypeParam>::poisoned();
      ASSERT_EQ(std::memcmp(&x, &poison, sizeof poison), 0);
    }
    for (const float x : device.tables[0].table_q.to_host()) ASSERT_EQ(x, 0.0f);
  }
}

TYPED_TEST(AttentionBackwardDevice, AcceptsNoTokens) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<TypeParam> problem({{2, share(partition_sizes({}))}}, 16, 45);
  device_gradients<TypeParam> device(problem);
  WINNOW_ASSERT_OK(device.run());
}

/// Rows of other windows are as if the bad value were not there.
TYPED_TEST(AttentionBackwardDevice, KeepsNanAndInfinityInTheirWindow) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::plain, scene::short_windows, scene::long_windows, scene::cubic,
                           scene::spherical, scene::shifted_grid}) {
    SCOPED_TRACE(name_of(kind));
    const auto clean = make_problem<TypeParam>(kind, 16, 38);
    const attention_case<double> exact = exact_gradients(clean);
    const partition& windows = clean.specs()[0].windows->view();
    // A window in the middle of a tile, with neighbours on both sides.
    const int window = windows.counts->windows / 2;
    const std::int64_t slot = windows.offsets[window];
    const std::int64_t token = windows.order[slot];
    std::vector<bool> in_window(static_cast<std::size_t>(clean.tokens));
    for (std::int32_t s = windows.offsets[window]; s < windows.offsets[window + 1]; ++s)
      in_window[static_cast<std::size_t>(windows.order[s])] = true;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
      for (int which = 0; which < 4; ++which) {
        SCOPED_TRACE("array " + std::to_string(which));
        attention_case<TypeParam> problem = clean;
        std::vector<TypeParam>* arrays[] = {&problem.q, &problem.k, &problem.v, &problem.grad_out};
        (*arrays[which])[static_cast<std::size_t>(token * problem.heads * problem.dim + 3)] =
            from_float<TypeParam>(bad);
        prepare_forward(problem);
        device_gradients<TypeParam> device(problem);
        WINNOW_ASSERT_OK(device.run());
        const std::int64_t row = problem.heads * problem.dim;
        const auto elsewhere = [&](const auto& values) {
          std::vector<double> rest;
          for (std::int64_t n = 0; n < problem.tokens; ++n)
            if (!in_window[static_cast<std::size_t>(n)])
              for (std::int64_t e = n * row; e < (n + 1) * row; ++e)
                rest.push_back(static_cast<double>(to_float(values[static_cast<std::size_t>(e)])));
          return rest;
        };
        const double limit =
            support::precision_limit(dtype_of<TypeParam>, support::quantity::gradient);
        expect_close("grad_q", elsewhere(without_poison(device.grad_q.to_host(), problem.dim)),
                     elsewhere(exact.grad_q), 16, limit);
        expect_close("grad_k", elsewhere(without_poison(device.grad_k.to_host(), problem.dim)),
                     elsewhere(exact.grad_k), 16, limit);
        expect_close("grad_v", elsewhere(without_poison(device.grad_v.to_host(), problem.dim)),
                     elsewhere(exact.grad_v), 16, limit);
      }
  }
}

/// The dO of a loss that averages over millions of outputs.
TYPED_TEST(AttentionBackwardDevice, KeepsTheGradientsOfAMeanLoss) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const scene kind : {scene::plain, scene::short_windows, scene::long_windows, scene::cubic,
                           scene::spherical, scene::shifted_grid}) {
    SCOPED_TRACE(name_of(kind));
    attention_case<TypeParam> problem(make_scene(kind), 16, 39);
    for (TypeParam& x : problem.grad_out) x = from_float<TypeParam>(to_float(x) * 1e-7f);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    WINNOW_ASSERT_OK(device.run());
    const attention_case<double> exact = exact_gradients(problem);
    expect_tables_match(
        exact, device,
        support::precision_limit(dtype_of<TypeParam>, support::quantity::table_gradient));
    const double limit = support::precision_limit(dtype_of<TypeParam>, support::quantity::gradient);
    const auto check = [&](const char* name, const device_array<TypeParam>& rows,
                           const std::vector<double>& expected) {
      const auto values = without_poison(rows.to_host(), problem.dim);
      if constexpr (!std::is_same_v<TypeParam, half>) {
        expect_close(name, values, expected, problem.dim, limit);
      } else {
        // Half holds such rows as multiples of 2⁻²⁴: the right one, or its neighbour near a tie.
        for (std::size_t i = 0; i < expected.size(); ++i) {
          if (!std::isfinite(expected[i])) continue;
          ASSERT_NEAR(static_cast<double>(to_float(values[i])), expected[i], 0x1.2p-25)
              << name << " " << i;
        }
      }
    };
    check("grad_q", device.grad_q, exact.grad_q);
    check("grad_k", device.grad_k, exact.grad_k);
    check("grad_v", device.grad_v, exact.grad_v);
  }
}

TEST(AttentionBackwardDevice, RejectsWhatItCannotServe) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<double> wide(make_scene(scene::plain), 16, 44);
  const status unsupported = attention_backward(wide.backward(), nullptr, 0, nullptr);
  EXPECT_EQ(unsupported.code(), status_code::unsupported) << unsupported.message();
  const auto problem = make_problem<half>(scene::cubic, 16, 44);
  device_gradients<half> device(problem);
  const auto arguments = device.arguments();
  const std::size_t bytes = attention_backward_workspace_bytes(arguments);
  EXPECT_GT(bytes, 0u);
  EXPECT_LE(bytes, (4 * problem.heads + 16) * problem.tokens + (std::size_t{64} << 20));
  EXPECT_EQ(attention_backward(arguments, device.workspace.data(), bytes - 1, nullptr).code(),
            status_code::workspace_too_small);
  EXPECT_EQ(attention_backward(arguments, nullptr, bytes, nullptr).code(),
            status_code::invalid_argument);
  EXPECT_EQ(attention_backward(arguments, device.workspace.data() + 4, bytes, nullptr).code(),
            status_code::invalid_argument);
}

}  // namespace
}  // namespace winnow::test
