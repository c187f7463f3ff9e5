// SPDX-License-Identifier: Apache-2.0
// The device's attention gradients against the host's reference in double, in windows of all sizes.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/device_backward_test.hpp"

namespace winnow::test {
namespace {

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
    const std::vector<int> sizes = {1,   64,  65,  5,  80,  97, 16,  128, 48, 129, 17,  30, 70,
                                    143, 200, 257, 33, 320, 2,  321, 112, 81, 300, 160, 191};
    attention_case<TypeParam> problem({contextual(2, sized_labels(sizes, radius, 49))}, 16, 49);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    ASSERT_NO_FATAL_FAILURE(run_twice(device));
    expect_gradients_match(exact_gradients(problem), device);
  }
}

/// The last part of each head is smaller where there are more multiprocessors than heads would fill evenly.
TYPED_TEST(AttentionBackwardDevice, ServesTablesOfHeadsThatDivideNoBlocks) {
  WINNOW_SKIP_WITHOUT_GPU();
  const std::vector<int> sizes = {70, 200, 96, 320, 5, 129, 80, 257, 112, 66, 300, 97, 160, 75};
  for (const int heads : {5, 8}) {
    SCOPED_TRACE(heads);
    const bool radius = heads == 8;
    attention_case<TypeParam> problem({contextual(heads, sized_labels(sizes, radius, 51))}, 16, 51);
    prepare_forward(problem);
    device_gradients<TypeParam> device(problem);
    ASSERT_NO_FATAL_FAILURE(run_twice(device));
    expect_gradients_match(exact_gradients(problem), device);
  }
}

/// So many that each block fills its tiles with windows of all sizes.
TYPED_TEST(AttentionBackwardDevice, ServesTablesInThousandsOfShortWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::vector<int> sizes;
  for (int w = 0; w < 1500; ++w)
    sizes.push_back(w % 4 == 0 ? 1 : 1 + w * w % 67 % (w % 5 * 16 + 3));
  for (const bool radius : {false, true}) {
    SCOPED_TRACE(radius ? "spherical" : "cubic");
    attention_case<TypeParam> problem({contextual(2, sized_labels(sizes, radius, 50))}, 16, 50);
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

}  // namespace
}  // namespace winnow::test
