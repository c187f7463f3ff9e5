// SPDX-License-Identifier: Apache-2.0
// The device's attention gradients against the host's reference in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "support/busy_gpu.cuh"
#include "support/device_gradients.hpp"

namespace winnow::test {
namespace {

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
TYPED_TEST_SUITE(AttentionBackwardDevice, storage_types);

TYPED_TEST(AttentionBackwardDevice, MatchesReference) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int dim : {8, 16, 24, 32, 64, 128})
    for (const scene kind : all_scenes) {
      SCOPED_TRACE(name_of(kind) + ", head dim " + std::to_string(dim));
      const auto problem = make_problem<TypeParam>(kind, dim, 200 + dim);
      device_gradients<TypeParam> device(problem);
      WINNOW_ASSERT_OK(device.run());
      expect_gradients_match(exact_gradients(problem), device);
    }
}

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

/// Windows of 2 x 2 to 9 x 9 tokens, shifted: those of up to 64 tokens go in one pass.
TYPED_TEST(AttentionBackwardDevice, ServesGridsOfAnyEdge) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int edge : {2, 4, 8, 9}) {
    SCOPED_TRACE("edge " + std::to_string(edge));
    const auto partition = share(partition_grid({2, 2 * edge, 3 * edge, edge, edge / 2}));
    attention_case<TypeParam> problem({{2, partition, position_encoding::bias}}, 24, 47);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    WINNOW_ASSERT_OK(device.run());
    expect_gradients_match(exact_gradients(problem), device);
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

/// Windows that break every tile of the kernels of long windows, and several of them for each block: two runs
/// agree in every bit; then gradients are added.
TYPED_TEST(AttentionBackwardDevice, DifferentiatesInLongWindowsOfEachHeadDim) {
  WINNOW_SKIP_WITHOUT_GPU();
  const std::vector<int> sizes{1024, 256, 300, 20, 193, 1, 400, 384};
  for (const int dim : {16, 24, 32, 56, 64}) {
    SCOPED_TRACE("head dim " + std::to_string(dim));
    attention_case<TypeParam> problem({{2, share(sized_labels(sizes, false, 41))},
                                       {1, share(random_labels(2578, 5, 1, false, false, 42))}},
                                      dim, 43);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    ASSERT_NO_FATAL_FAILURE(run_twice(device));
    const attention_case<double> exact = exact_gradients(problem);
    expect_gradients_match(exact, device);

    auto arguments = device.arguments();
    arguments.accumulate = true;
    WINNOW_ASSERT_OK(device.run(arguments));
    attention_case<double> twice = exact;
    for (auto* rows : {&twice.grad_q, &twice.grad_k, &twice.grad_v})
      for (double& x : *rows) x *= 2.0;
    expect_gradients_match(twice, device);
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

TEST(AttentionBackwardDevice, WorksInAHundredThousandWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::vector<int> sizes;
  for (int w = 0; w < 100000; ++w) sizes.push_back(1 + w % 3 / 2);
  attention_case<half> problem({{1, share(partition_sizes(sizes))}}, 16, 40);
  prepare_forward(problem);
  device_gradients<half> device(problem);
  WINNOW_ASSERT_OK(device.run());
  expect_gradients_match(exact_gradients(problem), device);
}

/// Sampled rows of one window against sums in double; two runs agree in every bit.
TYPED_TEST(AttentionBackwardDevice, WorksInAWindowOfFiftyThousand) {
  WINNOW_SKIP_WITHOUT_GPU();
  const std::int64_t tokens = 50000, dim = 16;
  attention_case<TypeParam> problem({{1, share(partition_sizes({50000}))}}, dim, 41);
  ASSERT_NO_FATAL_FAILURE(prepare_forward_on_device(problem));
  device_gradients<TypeParam> device(problem);
  ASSERT_NO_FATAL_FAILURE(run_twice(device));

  const auto dot = [&](const std::vector<TypeParam>& a, std::int64_t i,
                       const std::vector<TypeParam>& b, std::int64_t j) {
    double sum = 0.0;
    for (std::int64_t d = 0; d < dim; ++d)
      sum += static_cast<double>(to_float(a[static_cast<std::size_t>(i * dim + d)])) *
             static_cast<double>(to_float(b[static_cast<std::size_t>(j * dim + d)]));
    return sum;
  };
  const double scale = static_cast<double>(problem.scale);
  std::vector<double> delta;
  for (std::int64_t i = 0; i < tokens; ++i)
    delta.push_back(dot(problem.grad_out, i, problem.out, i));
  const auto pair = [&](std::int64_t i, std::int64_t j, double& p, double& ds) {
    p = std::exp(scale * dot(problem.q, i, problem.k, j) -
                 static_cast<double>(problem.lse[static_cast<std::size_t>(i)]));
    ds = p * (dot(problem.grad_out, i, problem.v, j) - delta[static_cast<std::size_t>(i)]);
  };
  const auto row = [&](const std::vector<TypeParam>& rows, std::int64_t i, std::int64_t d) {
    return static_cast<double>(to_float(rows[static_cast<std::size_t>(i * dim + d)]));
  };
  std::vector<double> expected_q, expected_k, expected_v;
  std::vector<TypeParam> grad_q, grad_k, grad_v;
  const auto all_q = device.grad_q.to_host();
  const auto all_k = device.grad_k.to_host();
  const auto all_v = device.grad_v.to_host();
  for (std::int64_t n = 0; n < tokens; n += 1999) {
    std::vector<double> dq(dim), dk(dim), dv(dim);
    for (std::int64_t m = 0; m < tokens; ++m) {
      double p = 0.0, ds = 0.0;
      pair(n, m, p, ds);
      for (std::int64_t d = 0; d < dim; ++d) dq[d] += scale * ds * row(problem.k, m, d);
      pair(m, n, p, ds);
      for (std::int64_t d = 0; d < dim; ++d) {
        dk[d] += scale * ds * row(problem.q, m, d);
        dv[d] += p * row(problem.grad_out, m, d);
      }
    }
    expected_q.insert(expected_q.end(), dq.begin(), dq.end());
    expected_k.insert(expected_k.end(), dk.begin(), dk.end());
    expected_v.insert(expected_v.end(), dv.begin(), dv.end());
    const auto from = n * dim, to = from + dim;
    grad_q.insert(grad_q.end(), all_q.begin() + from, all_q.begin() + to);
    grad_k.insert(grad_k.end(), all_k.begin() + from, all_k.begin() + to);
    grad_v.insert(grad_v.end(), all_v.begin() + from, all_v.begin() + to);
  }
  const double limit = support::precision_limit(dtype_of<TypeParam>, support::quantity::gradient);
  expect_close("grad_q", grad_q, expected_q, dim, limit);
  expect_close("grad_k", grad_k, expected_k, dim, limit);
  expect_close("grad_v", grad_v, expected_v, dim, limit);
}

TYPED_TEST(AttentionBackwardDevice, ServesTablesInLongWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const bool radius : {false, true}) {
    SCOPED_TRACE(radius ? "spherical" : "cubic");
    attention_case<TypeParam> problem({contextual(1, sized_labels({500, 30, 1700}, radius, 46))},
                                      16, 46);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    WINNOW_ASSERT_OK(device.run());
    expect_gradients_match(exact_gradients(problem), device);
  }
}

/// Sizes around those where a window takes one tile more, another kernel, or its turns in more chunks.
TYPED_TEST(AttentionBackwardDevice, ServesTablesInWindowsOfEverySize) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const bool radius : {false, true}) {
    SCOPED_TRACE(radius ? "spherical" : "cubic");
    const std::vector<int> sizes = {1,  64,  65,  5,   80, 97,  16, 128, 48,  129, 17, 30,
                                    70, 143, 200, 257, 33, 320, 2,  321, 112, 81,  300};
    attention_case<TypeParam> problem({contextual(2, sized_labels(sizes, radius, 49))}, 16, 49);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    ASSERT_NO_FATAL_FAILURE(run_twice(device));
    expect_gradients_match(exact_gradients(problem), device);
  }
}

TEST(AttentionBackwardDevice, ServesTablesInAWindowOfFiveThousand) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<half> problem({contextual(1, sized_labels({5000}, true, 47))}, 16, 47);
  prepare_forward(problem);
  device_gradients<half> device(problem);
  WINNOW_ASSERT_OK(device.run());
  expect_gradients_match(exact_gradients(problem), device);
}

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
