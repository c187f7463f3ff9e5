// SPDX-License-Identifier: Apache-2.0
// The device's forward attention against the host's reference in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "support/attention_scenes.hpp"
#include "support/busy_gpu.cuh"
#include "support/compare.hpp"
#include "support/device_attention.hpp"

namespace winnow::test {
namespace {

using support::precision_limit;
using support::quantity;

template <class T>
void expect_matches_reference(const attention_case<T>& problem, const device_attention<T>& device,
                              bool zero_unassigned = false, double limit = 0.0) {
  attention_case<double> exact = problem.widened();
  attention_forward_arguments<double> arguments = exact.forward();
  arguments.zero_unassigned = zero_unassigned;
  WINNOW_ASSERT_OK(reference::attention_forward<double>(arguments));
  if (limit == 0.0) limit = precision_limit(dtype_of<T>, quantity::output);
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
          attention_case<TypeParam> problem({contextual(2, sized_labels(sizes, false, 42)),
                                             contextual(heads, sized_labels(sizes, true, 43))},
                                            16, 44);
          device_attention<TypeParam> device(problem);
          WINNOW_ASSERT_OK(run(device.forward()));
          expect_matches_reference(problem, device);
        }
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
