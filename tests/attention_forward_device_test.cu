// SPDX-License-Identifier: Apache-2.0
// The device's forward attention against the host's reference in double, in windows of all sizes.
#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "support/device_forward_test.hpp"

namespace winnow::test {
namespace {

using support::precision_limit;
using support::quantity;

TYPED_TEST_SUITE(AttentionForwardDevice, storage_types);

TYPED_TEST(AttentionForwardDevice, MatchesReference) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int dim : {8, 16, 24, 32, 56, 64, 128})
    for (const scene kind : all_scenes) {
      SCOPED_TRACE(name_of(kind) + ", head dim " + std::to_string(dim));
      attention_case<TypeParam> problem(make_scene(kind), dim, 100 + dim);
      device_attention<TypeParam> device(problem);
      WINNOW_ASSERT_OK(run(device.forward()));
      expect_matches_reference(problem, device);
    }
}

/// Long windows of all head dims, of which each has its own kernel, between short ones.
TYPED_TEST(AttentionForwardDevice, AttendsInLongWindowsOfEachHeadDim) {
  WINNOW_SKIP_WITHOUT_GPU();
  const double limit = precision_limit(dtype_of<TypeParam>, quantity::output);
  const std::vector<int> sizes{1024, 256, 300, 20, 700, 193, 1, 400, 384};
  for (const int dim : {16, 24, 32, 56, 64}) {
    SCOPED_TRACE("head dim " + std::to_string(dim));
    attention_case<TypeParam> problem({{5, share(sized_labels(sizes, false, 41))},
                                       {1, share(random_labels(3278, 3, 1, false, false, 42))}},
                                      dim, 43);
    device_attention<TypeParam> device(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    expect_matches_reference(problem, device);
    const auto out = device.out.to_host();
    device.out.poison();
    WINNOW_ASSERT_OK(run(device.forward()));
    EXPECT_TRUE(same_bits(out, device.out.to_host()));

    const auto q = problem.q;
    for (TypeParam& x : problem.q) x = from_float<TypeParam>(to_float(x) * 3000.0f);
    device_attention<TypeParam> large(problem);
    WINNOW_ASSERT_OK(run(large.forward()));
    expect_matches_reference(problem, large, false, std::max(1e-3, limit));
    problem.q = q;

    const partition& windows = problem.specs()[0].windows->view();
    const std::int64_t token = windows.order[windows.offsets[2] + 7];
    for (auto* rows : {&problem.q, &problem.k, &problem.v})
      (*rows)[static_cast<std::size_t>(token * problem.heads * dim + 3)] =
          from_float<TypeParam>(std::numeric_limits<float>::quiet_NaN());
    device_attention<TypeParam> bad(problem);
    WINNOW_ASSERT_OK(run(bad.forward()));
    expect_matches_reference(problem, bad);
  }
}

/// Windows around the sizes at which kernels change, in an order that breaks every tile: all short, a few
/// hardly longer, some long, few long; few blocks and many; as many heads as a block takes and more. Then
/// with a NaN in a window of each kind.
TYPED_TEST(AttentionForwardDevice, AttendsInWindowsOfAllSizes) {
  WINNOW_SKIP_WITHOUT_GPU();
  const int special[] = {1,  2,  15, 16, 17,  31,  32,  33,  47, 48,
                         49, 50, 64, 65, 130, 255, 256, 257, 300};
  std::mt19937 engine(31);
  const struct {
    int longest;
    unsigned special_every;
  } mixtures[] = {{48, 3}, {50, 3}, {130, 3}, {130, 30}, {300, 60}};
  for (const auto [longest, special_every] : mixtures)
    for (const std::int64_t tokens : {1500, 70000})
      for (const int heads : {1, 2, 5})
        for (const int dim : {16, 32}) {
          if (tokens > 1500 && heads > 2) continue;
          SCOPED_TRACE("up to " + std::to_string(longest) + ", one in " +
                       std::to_string(special_every) + ", " + std::to_string(tokens) + " tokens, " +
                       std::to_string(heads) + " heads, head dim " + std::to_string(dim));
          std::vector<int> sizes;
          for (std::int64_t sum = 0; sum < tokens; sum += sizes.back())
            sizes.push_back(engine() % special_every == 0
                                ? std::min(special[engine() % std::size(special)], longest)
                                : 1 + static_cast<int>(engine() % 6));
          attention_case<TypeParam> problem({{heads, share(sized_labels(sizes, false, 32))}}, dim,
                                            33);
          device_attention<TypeParam> device(problem);
          WINNOW_ASSERT_OK(run(device.forward()));
          expect_matches_reference(problem, device);
          if (heads != 2) continue;
          const partition& windows = problem.specs()[0].windows->view();
          for (const int size : {3, 32, 48, 130, longest})
            for (std::int64_t slot = tokens / 2; slot < windows.counts->assigned; ++slot) {
              if (windows.bounds[2 * slot + 1] - windows.bounds[2 * slot] != size) continue;
              const std::int64_t token = windows.order[slot];
              problem.k[static_cast<std::size_t>(token * heads * dim + 3)] =
                  from_float<TypeParam>(std::numeric_limits<float>::quiet_NaN());
              break;
            }
          device_attention<TypeParam> bad(problem);
          WINNOW_ASSERT_OK(run(bad.forward()));
          expect_matches_reference(problem, bad);
        }
}

/// Windows of up to 48 tokens, some longer ones, or many of them, beside each other.
TYPED_TEST(AttentionForwardDevice, AttendsInWindowsOfAllSizesByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  const int special[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 130, 400};
  std::mt19937 engine(41);
  for (const int longest : {48, 50, 400})
    for (const unsigned one_of : {2u, 8u})
      for (const std::int64_t tokens : {150, 3000}) {
        SCOPED_TRACE("up to " + std::to_string(longest) + ", " + std::to_string(tokens) +
                     " tokens, one special size of " + std::to_string(one_of));
        std::vector<int> sizes;
        for (std::int64_t sum = 0; sum < tokens; sum += sizes.back())
          sizes.push_back(engine() % one_of == 0
                              ? std::min(special[engine() % std::size(special)], longest)
                              : 1 + static_cast<int>(engine() % 9));
        // An even number of heads is taken two at a time.
        for (const int heads : {1, 4}) {
          SCOPED_TRACE(std::to_string(heads) + " heads with spherical windows");
          attention_case<TypeParam> problem(
              {contextual(heads == 1 ? 2 : 3, sized_labels(sizes, false, 42)),
               contextual(heads, sized_labels(sizes, true, 43))},
              16, 44);
          device_attention<TypeParam> device(problem);
          WINNOW_ASSERT_OK(run(device.forward()));
          expect_matches_reference(problem, device);
        }
      }
}

/// Windows that blocks look at in several turns, and so many that they do not look at all of them.
TYPED_TEST(AttentionForwardDevice, AttendsInThousandsOfWindowsByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(53);
  for (const int windows : {7003, 17000, 50000}) {
    std::vector<int> sizes(static_cast<std::size_t>(windows));
    for (int& size : sizes)
      size = 1 + static_cast<int>(engine() % (engine() % 50 == 0 ? 130u : 3u));
    for (const int heads : {1, 2}) {
      SCOPED_TRACE(std::to_string(windows) + " windows, " + std::to_string(heads) + " heads");
      attention_case<TypeParam> problem({contextual(heads, sized_labels(sizes, false, 54))}, 16,
                                        55);
      device_attention<TypeParam> device(problem);
      WINNOW_ASSERT_OK(run(device.forward()));
      expect_matches_reference(problem, device);
    }
  }
}

/// Windows of more than 16 tokens that nearly all fall to a quarter of the blocks, which have no room for all at once.
TYPED_TEST(AttentionForwardDevice, AttendsInUnevenWindowsByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::vector<int> sizes(38000, 1);
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (i / 64 % 4 == 1) sizes[i] = 17 + static_cast<int>(i % 2);
  attention_case<TypeParam> problem(
      {contextual(2, sized_labels(sizes, false, 56)), contextual(2, sized_labels(sizes, true, 57))},
      16, 58);
  device_attention<TypeParam> device(problem);
  WINNOW_ASSERT_OK(run(device.forward()));
  expect_matches_reference(problem, device);
}

/// Spherical windows with more tiles than a block lists at once, and so many that blocks do not look at all of them.
TYPED_TEST(AttentionForwardDevice, AttendsInManyWindowsByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(61);
  const struct { int windows, heads; } mixtures[] = {{20000, 32}, {66000, 4}};
  for (const auto [windows, heads] : mixtures) {
    SCOPED_TRACE(std::to_string(windows) + " windows, " + std::to_string(heads) + " heads");
    std::vector<int> sizes(static_cast<std::size_t>(windows));
    for (int& size : sizes)
      size = engine() % 1000 == 0 ? 60 + static_cast<int>(engine() % 240)
                                  : 1 + static_cast<int>(engine() % 3);
    attention_case<TypeParam> problem({contextual(heads, sized_labels(sizes, true, 62))}, 16, 63);
    device_attention<TypeParam> device(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    expect_matches_reference(problem, device);
  }
}

/// Spherical windows of up to 48 tokens and very few longer ones, a NaN in one of those, and so many windows that blocks
/// have several lists, or do not look at all of them. Two heads of 16 bits are the ring's from 84,480 tokens on.
TYPED_TEST(AttentionForwardDevice, AttendsInShortWindowsByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(59);
  const struct {
    int windows;
    unsigned longest;
  } mixtures[] = {{600, 48}, {4000, 48}, {52000, 2}, {66000, 2}};
  for (const auto [windows, longest] : mixtures)
    for (const int heads : {1, 2}) {
      if (heads == 2 && longest == 2) continue;
      SCOPED_TRACE(std::to_string(windows) + " windows, " + std::to_string(heads) + " heads");
      std::vector<int> sizes(static_cast<std::size_t>(windows));
      for (int& size : sizes) size = 1 + static_cast<int>(engine() % longest);
      if (longest == 48) sizes[7] = 49, sizes[333] = 54;
      attention_case<TypeParam> problem({contextual(heads, sized_labels(sizes, true, 60))}, 16, 61);
      device_attention<TypeParam> device(problem);
      WINNOW_ASSERT_OK(run(device.forward()));
      expect_matches_reference(problem, device);
      if (longest != 48) continue;
      const partition& view = problem.specs()[0].windows->view();
      for (std::int64_t slot = 0; slot < view.counts->assigned; ++slot) {
        if (view.bounds[2 * slot + 1] - view.bounds[2 * slot] != 54) continue;
        problem.k[static_cast<std::size_t>(view.order[slot] * heads * 16 + 3)] =
            from_float<TypeParam>(std::numeric_limits<float>::quiet_NaN());
        break;
      }
      device_attention<TypeParam> bad(problem);
      WINNOW_ASSERT_OK(run(bad.forward()));
      expect_matches_reference(problem, bad);
    }
}

/// Scales that are no power of two, and one over which halves overflow.
TYPED_TEST(AttentionForwardDevice, AttendsByPositionWithAnyScale) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(49);
  for (const int longest : {48, 200})
    for (const float scale : {1e-6f, 0.3f}) {
      SCOPED_TRACE("up to " + std::to_string(longest) + ", scale " + std::to_string(scale));
      std::vector<int> sizes;
      for (int sum = 0; sum < 3000; sum += sizes.back())
        sizes.push_back(1 + static_cast<int>(engine() % static_cast<unsigned>(longest)));
      attention_case<TypeParam> problem({contextual(2, sized_labels(sizes, false, 50)),
                                         contextual(2, sized_labels(sizes, true, 51))},
                                        16, 52);
      problem.scale = scale;
      device_attention<TypeParam> device(problem);
      WINNOW_ASSERT_OK(run(device.forward()));
      expect_matches_reference(problem, device);
    }
}

/// So many tiles that 16-bit heads are taken two at a time.
TYPED_TEST(AttentionForwardDevice, AttendsWithManyHeadsByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  const int special[] = {1, 15, 16, 17, 48, 49, 50, 64, 130, 300};
  for (const int longest : {50, 300}) {
    SCOPED_TRACE("up to " + std::to_string(longest));
    std::mt19937 engine(45);
    std::vector<int> sizes;
    for (int sum = 0; sum < 12000; sum += sizes.back())
      sizes.push_back(engine() % 16 == 0 ? std::min(special[engine() % std::size(special)], longest)
                                         : 1 + static_cast<int>(engine() % 9));
    attention_case<TypeParam> problem({contextual(32, sized_labels(sizes, false, 46)),
                                       contextual(32, sized_labels(sizes, true, 47))},
                                      16, 48);
    device_attention<TypeParam> device(problem);
    WINNOW_ASSERT_OK(run(device.forward()));
    expect_matches_reference(problem, device);
  }
}

TYPED_TEST(AttentionForwardDevice, AttendsInImageWindowsOfAllSizes) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int edge : {1, 4, 5, 6, 7, 8, 9})
    for (const int shift : {0, edge / 2})
      for (const int dim : {16, 24, 32}) {
        SCOPED_TRACE("windows of " + std::to_string(edge) + ", shift " + std::to_string(shift) +
                     ", head dim " + std::to_string(dim));
        const grid_window window{2, 3 * edge, 2 * edge, edge, shift};
        attention_case<TypeParam> problem(
            {{3, share(partition_grid(window)), position_encoding::bias}}, dim, 34);
        device_attention<TypeParam> device(problem);
        WINNOW_ASSERT_OK(run(device.forward()));
        expect_matches_reference(problem, device);
      }
}

/// Rows of one window against sums in double, for windows too long for the reference.
TYPED_TEST(AttentionForwardDevice, AttendsInAWindowOfFiftyThousand) {
  WINNOW_SKIP_WITHOUT_GPU();
  const std::int64_t tokens = 50000, dim = 16;
  attention_case<TypeParam> problem({{1, share(partition_sizes({50000}))}}, dim, 19);
  device_attention<TypeParam> device(problem);
  WINNOW_ASSERT_OK(run(device.forward()));
  const auto out = device.out.to_host();
  EXPECT_TRUE(same_bits(out, [&] {
    device.out.poison();
    EXPECT_TRUE(run(device.forward()).ok());
    return device.out.to_host();
  }()));
  std::vector<TypeParam> sampled;
  std::vector<double> expected;
  for (std::int64_t i = 0; i < tokens; i += 1999) {
    std::vector<double> row(dim, 0.0);
    double sum = 0.0;
    for (std::int64_t j = 0; j < tokens; ++j) {
      double logit = 0.0;
      for (std::int64_t d = 0; d < dim; ++d)
        logit += static_cast<double>(to_float(problem.q[i * dim + d])) *
                 static_cast<double>(to_float(problem.k[j * dim + d]));
      const double weight = std::exp(logit * static_cast<double>(problem.scale));
      sum += weight;
      for (std::int64_t d = 0; d < dim; ++d)
        row[d] += weight * static_cast<double>(to_float(problem.v[j * dim + d]));
    }
    for (double x : row) expected.push_back(x / sum);
    sampled.insert(sampled.end(), out.begin() + i * dim, out.begin() + (i + 1) * dim);
  }
  // Averages of 50,000 values of order one are of order 0.01, and so is their rounding.
  const double limit = precision_limit(dtype_of<TypeParam>, quantity::output);
  expect_close("out", sampled, expected, dim, sizeof(TypeParam) == 4 ? limit : 4 * limit);
}

/// Cubic and spherical windows of about 500 and of 5,000 keys.
TYPED_TEST(AttentionForwardDevice, AttendsInLongWindowsByPosition) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int dim : {16, 32})
    for (const int windows : {1, 19}) {
      SCOPED_TRACE(std::to_string(windows) + " windows, head dim " + std::to_string(dim));
      attention_case<TypeParam> problem(
          {contextual(1, random_labels(10000, windows, 24, true, false, 24)),
           contextual(2, random_labels(10000, windows, 24, true, true, 25))},
          dim, 26);
      device_attention<TypeParam> device(problem);
      WINNOW_ASSERT_OK(run(device.forward()));
      expect_matches_reference(problem, device);
    }
}

/// So much work that blocks compute several heads, one after the other.
TEST(AttentionForwardDevice, AttendsInManyLongWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  attention_case<half> problem({{16, share(partition_sizes(std::vector<int>(264, 193)))}}, 16, 27);
  device_attention<half> device(problem);
  WINNOW_ASSERT_OK(run(device.forward()));
  expect_matches_reference(problem, device);
}

TEST(AttentionForwardDevice, AttendsInAMillionWindows) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::vector<int> sizes;
  for (int w = 0; w < 1000000; ++w) sizes.push_back(1 + w % 3 / 2);
  attention_case<half> problem({{1, share(partition_sizes(sizes))}}, 16, 20);
  device_attention<half> device(problem);
  WINNOW_ASSERT_OK(run(device.forward()));
  expect_matches_reference(problem, device);
}

}  // namespace
}  // namespace winnow::test
