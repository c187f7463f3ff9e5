// SPDX-License-Identifier: Apache-2.0
// The oracle where the answer is known in closed form, its precision per storage type, and its
// contract: strides, untouched rows, NaN, threads, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/attention_case.hpp"
#include "support/compare.hpp"

namespace winnow::test {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const reference::host_partition> cubic_windows(std::int64_t tokens) {
  const random_points points(tokens, 3, 2.0f, 5);
  return share(partition_points(cubic_window{{0.8f, 0.9f, 1.0f}, true, 24, {}}, points.view()));
}

std::shared_ptr<const reference::host_partition> spherical_windows(std::int64_t tokens) {
  const random_points points(tokens, 1, 30.0f, 6);
  return share(partition_points(
      spherical_window{{30.0f, 20.0f, 80.0f}, false, 24, 0.0125f, {}, true}, points.view()));
}

std::shared_ptr<const reference::host_partition> label_windows(
    const std::vector<std::int32_t>& labels) {
  label_set set;
  set.labels = labels.data();
  set.tokens = static_cast<std::int64_t>(labels.size());
  return share(partition_labels({}, set));
}

TEST(ReferenceAttention, OneTokenAttendsToItself) {
  const random_points points(1, 1, 1.0f, 1);
  const auto windows =
      share(partition_points(cubic_window{{1, 1, 1}, false, 5, {}}, points.view()));
  attention_case<double> p({{2, windows, position_encoding::contextual}}, 8, 2);
  WINNOW_ASSERT_OK(reference::attention_forward<double>(p.forward()));
  constexpr int middle = 4;  // difference 0
  for (int h = 0; h < 2; ++h) {
    double score = 0.0;
    for (int d = 0; d < 8; ++d) {
      const double q = p.scale * p.q[h * 8 + d];
      double value = p.v[h * 8 + d];
      score += q * p.k[h * 8 + d];
      for (int a = 0; a < 3; ++a) {
        const int at = ((middle * 3 + a) * 2 + h) * 8 + d;
        value += p.groups[0].table_v[at];
        score += q * p.groups[0].table_q[at] + p.k[h * 8 + d] * p.groups[0].table_k[at];
      }
      EXPECT_NEAR(p.out[h * 8 + d], value, 1e-14);
    }
    EXPECT_NEAR(p.lse[h], score, 1e-13);
  }
}

TEST(ReferenceAttention, EqualKeysGiveTheMeanOfTheValues) {
  attention_case<double> p({{1, share(partition_sizes({6, 1, 3}))}}, 16, 3);
  for (std::size_t i = 0; i < p.k.size(); ++i) p.k[i] = p.k[i % 16];
  WINNOW_ASSERT_OK(reference::attention_forward<double>(p.forward()));
  for (int d = 0; d < 16; ++d) {
    double mean = 0.0;
    for (int i = 0; i < 6; ++i) mean += p.v[i * 16 + d] / 6;
    for (int i = 0; i < 6; ++i) EXPECT_NEAR(p.out[i * 16 + d], mean, 1e-14);
  }
  double score = 0.0;
  for (int d = 0; d < 16; ++d) score += p.scale * p.q[d] * p.k[d];
  EXPECT_NEAR(p.lse[0], score + std::log(6.0), 1e-13);
}

TEST(ReferenceAttention, AWindowFarFromTheOriginEqualsTheSameWindowAtTheOrigin) {
  // Multiples of 1/16 stay exact in float 2¹⁸ away.
  std::vector<float> near;
  std::vector<float> far;
  for (int i = 0; i < 60; ++i)
    for (int a = 0; a < 3; ++a) {
      near.push_back(static_cast<float>((i * (7 + 4 * a)) % 32) / 16.0f);
      far.push_back(near.back() + 262144.0f);
    }
  const auto solve = [](const std::vector<float>& coordinates, double origin) {
    point_set points;
    points.coordinates = tensor_view<const float, 2>(coordinates.data(), {60, 3});
    const cubic_window window{{1, 1, 1}, false, 8, {{origin, origin, origin}}};
    attention_case<double> p(
        {{1, share(partition_points(window, points)), position_encoding::contextual}}, 8, 4);
    EXPECT_TRUE(reference::attention_forward<double>(p.forward()).ok());
    return p.out;
  };
  EXPECT_EQ(solve(near, 0.0), solve(far, 262144.0));
}

TEST(ReferenceAttention, LargeLogitsDoNotOverflow) {
  attention_case<float> p({{1, share(partition_sizes({9, 4}))}}, 16, 5);
  for (float& x : p.q) x *= 1e4f;
  WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
  WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward()));
  for (const auto* values : {&p.out, &p.lse, &p.grad_q, &p.grad_k, &p.grad_v})
    for (float x : *values) ASSERT_TRUE(std::isfinite(x));
}

template <class T>
class ReferencePrecision : public ::testing::Test {
 protected:
  static void check(std::vector<group_spec> specs, int dim) {
    attention_case<T> p(std::move(specs), dim, 77);
    attention_case<double> exact = p.widened();
    WINNOW_ASSERT_OK(reference::attention_forward<double>(exact.forward()));
    WINNOW_ASSERT_OK(reference::attention_backward<double>(exact.backward()));
    WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
    WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward()));
    const auto expect_close = [&](const auto& values, const auto& expected, int row,
                                  support::quantity what, const char* name) {
      const auto result =
          support::compare(values, expected, row, support::precision_limit(dtype_of<T>, what));
      EXPECT_TRUE(result.ok) << name << ": " << support::describe(result);
    };
    using support::quantity;
    expect_close(p.out, exact.out, dim, quantity::output, "out");
    expect_close(p.lse, exact.lse, 1, quantity::output, "lse");
    expect_close(p.grad_q, exact.grad_q, dim, quantity::gradient, "grad_q");
    expect_close(p.grad_k, exact.grad_k, dim, quantity::gradient, "grad_k");
    expect_close(p.grad_v, exact.grad_v, dim, quantity::gradient, "grad_v");
    for (std::size_t g = 0; g < p.groups.size(); ++g) {
      const auto& got = p.groups[g];
      const auto& want = exact.groups[g];
      const auto table = quantity::table_gradient;
      expect_close(got.grad_table_q, want.grad_table_q, dim, table, "grad_table_q");
      expect_close(got.grad_table_k, want.grad_table_k, dim, table, "grad_table_k");
      expect_close(got.grad_table_v, want.grad_table_v, dim, table, "grad_table_v");
      expect_close(got.grad_bias, want.grad_bias, 1, table, "grad_bias");
    }
  }
};

using storage_types = ::testing::Types<float, half, bfloat16>;
TYPED_TEST_SUITE(ReferencePrecision, storage_types);

TYPED_TEST(ReferencePrecision, Plain) {
  for (int dim : {8, 16, 40, 128}) this->check({{2, cubic_windows(700)}}, dim);
}
TYPED_TEST(ReferencePrecision, Contextual) {
  for (int dim : {16, 32, 64})
    this->check({{1, cubic_windows(500), position_encoding::contextual}}, dim);
}
TYPED_TEST(ReferencePrecision, HeadGroups) {
  this->check({{1, cubic_windows(600), position_encoding::contextual},
               {2, spherical_windows(600), position_encoding::contextual}},
              16);
}
TYPED_TEST(ReferencePrecision, BiasWithSeam) {
  this->check({{3, share(partition_grid({2, 14, 21, 7, 3})), position_encoding::bias}}, 32);
}
TYPED_TEST(ReferencePrecision, OneLongWindow) {
  this->check({{1, share(partition_sizes({1500}))}}, 16);
}

TEST(ReferenceAttention, PlainAttentionOnAShiftedGridKeepsTheSeam) {
  attention_case<double> p({{1, share(partition_grid({1, 4, 4, 4, 1}))}}, 8, 8);
  for (double& k : p.k) k = 0.0;
  WINNOW_ASSERT_OK(reference::attention_forward<double>(p.forward()));
  // Regions of the rolled 4x4 window: 9 tokens inside, 3 and 3 on the edges, 1 in the corner.
  std::vector<int> sizes;
  for (double lse : p.lse) sizes.push_back(static_cast<int>(std::lround(std::exp(lse))));
  EXPECT_THAT(sizes, ::testing::ElementsAre(1, 3, 3, 3, 3, 9, 9, 9, 3, 9, 9, 9, 3, 9, 9, 9));
}

TEST(ReferenceAttention, TablesMayBeFloatBesideHalfStorage) {
  attention_case<half> p({{1, cubic_windows(200), position_encoding::contextual}}, 16, 9);
  WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
  const auto with_half = p.out;
  const auto typed = p.forward();
  std::vector<std::vector<float>> wide;
  for (const auto* table : {&p.groups[0].table_q, &p.groups[0].table_k, &p.groups[0].table_v}) {
    wide.emplace_back();
    for (half x : *table) wide.back().push_back(to_float(x));
  }
  head_group<float> group;
  group.heads = 1;
  group.windows = typed.groups[0].windows;
  group.position = position_encoding::contextual;
  group.table_q = tensor_view<const float, 4>(wide[0].data(), typed.groups[0].table_q);
  group.table_k = tensor_view<const float, 4>(wide[1].data(), typed.groups[0].table_k);
  group.table_v = tensor_view<const float, 4>(wide[2].data(), typed.groups[0].table_v);
  const attention_forward_arguments<half, float> arguments{
      typed.q, typed.k, typed.v, typed.out, typed.lse, typed.scale, &group, 1, false};
  WINNOW_ASSERT_OK(reference::attention_forward<float>(arguments));
  EXPECT_EQ(std::memcmp(p.out.data(), with_half.data(), with_half.size() * sizeof(half)), 0);
}

TEST(ReferenceAttention, PackedQkvGivesTheSameBits) {
  attention_case<float> p({{2, cubic_windows(300), position_encoding::contextual}}, 16, 10);
  WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
  WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward()));
  const std::int64_t row = 2 * 16;
  std::vector<float> packed(3 * p.q.size());
  std::vector<float> grads(3 * p.q.size());
  for (std::int64_t n = 0; n < p.tokens; ++n)
    for (std::int64_t c = 0; c < row; ++c) {
      packed[n * 3 * row + c] = p.q[n * row + c];
      packed[n * 3 * row + row + c] = p.k[n * row + c];
      packed[n * 3 * row + 2 * row + c] = p.v[n * row + c];
    }
  auto view = [&](std::vector<float>& from, int part) {
    tensor_layout<3> layout = packed_layout<3>({p.tokens, 2, 16});
    layout.stride[0] = 3 * row;
    return tensor_view<float, 3>(from.data() + part * row, layout);
  };
  const attention_case<float> expected = p;
  p.poison_outputs();
  auto forward = p.forward();
  forward.q = view(packed, 0), forward.k = view(packed, 1), forward.v = view(packed, 2);
  WINNOW_ASSERT_OK(reference::attention_forward<float>(forward));
  EXPECT_EQ(p.out, expected.out);
  EXPECT_EQ(p.lse, expected.lse);
  auto backward = p.backward();
  backward.q = view(packed, 0), backward.k = view(packed, 1), backward.v = view(packed, 2);
  backward.grad_q = view(grads, 0), backward.grad_k = view(grads, 1);
  backward.grad_v = view(grads, 2);
  WINNOW_ASSERT_OK(reference::attention_backward<float>(backward));
  for (std::int64_t n = 0; n < p.tokens; ++n)
    for (std::int64_t c = 0; c < row; ++c) {
      ASSERT_EQ(grads[n * 3 * row + c], expected.grad_q[n * row + c]);
      ASSERT_EQ(grads[n * 3 * row + row + c], expected.grad_k[n * row + c]);
      ASSERT_EQ(grads[n * 3 * row + 2 * row + c], expected.grad_v[n * row + c]);
    }
}

TEST(ReferenceAttention, RepeatsBitForBitOnAnyNumberOfThreads) {
  attention_case<float> p({{1, cubic_windows(2000), position_encoding::contextual},
                           {1, spherical_windows(2000), position_encoding::contextual}},
                          16, 11);
  WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward(), 1));
  WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward(), 1));
  const attention_case<float> once = p;
  for (int threads : {2, 5}) {
    p.poison_outputs();
    WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward(), threads));
    WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward(), threads));
    EXPECT_EQ(p.out, once.out);
    EXPECT_EQ(p.lse, once.lse);
    EXPECT_EQ(p.grad_q, once.grad_q);
    EXPECT_EQ(p.grad_k, once.grad_k);
    EXPECT_EQ(p.grad_v, once.grad_v);
    for (int g = 0; g < 2; ++g) {
      EXPECT_EQ(p.groups[g].grad_table_q, once.groups[g].grad_table_q);
      EXPECT_EQ(p.groups[g].grad_table_k, once.groups[g].grad_table_k);
      EXPECT_EQ(p.groups[g].grad_table_v, once.groups[g].grad_table_v);
    }
  }
}

TEST(ReferenceAttention, RowsInNoWindowStayOrAreZeroedOnRequest) {
  const auto windows = label_windows({0, -1, 1, 0, -1, 1, 1});
  attention_case<float> p({{2, windows}}, 8, 12);
  const auto is_poison = [](float x) { return std::isnan(x); };
  const auto is_zero = [](float x) { return x == 0.0f; };
  const auto expect_rows = [&](const std::vector<float>& values, int row, auto&& unassigned) {
    for (int n = 0; n < 7; ++n)
      for (int c = 0; c < row; ++c) {
        const float x = values[n * row + c];
        if (n == 1 || n == 4)
          ASSERT_TRUE(unassigned(x)) << n;
        else
          ASSERT_TRUE(std::isfinite(x)) << n;
      }
  };
  WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
  expect_rows(p.out, 16, is_poison);
  expect_rows(p.lse, 2, is_poison);
  auto forward = p.forward();
  forward.zero_unassigned = true;
  WINNOW_ASSERT_OK(reference::attention_forward<float>(forward));
  expect_rows(p.out, 16, is_zero);
  expect_rows(p.lse, 2, is_zero);
  WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward()));
  for (const auto* g : {&p.grad_q, &p.grad_k, &p.grad_v}) expect_rows(*g, 16, is_poison);
  auto backward = p.backward();
  backward.zero_unassigned = true;
  WINNOW_ASSERT_OK(reference::attention_backward<float>(backward));
  for (const auto* g : {&p.grad_q, &p.grad_k, &p.grad_v}) expect_rows(*g, 16, is_zero);
}

TEST(ReferenceAttention, NotANumberStaysInItsWindow) {
  const auto windows = cubic_windows(400);
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (int array = 0; array < 4; ++array) {
      attention_case<float> p({{1, windows}}, 16, 13);
      std::vector<float>* arrays[] = {&p.q, &p.k, &p.v, &p.grad_out};
      const int slot = windows->view().offsets[windows->counts().windows / 2];
      const int victim = windows->view().order[slot];
      (*arrays[array])[victim * 16 + 3] = poison;
      WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
      WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward()));
      bool reached = false;
      for (int s = 0; s < 400; ++s) {
        const bool same = windows->view().bounds[2 * s] == slot;
        for (int d = 0; d < 16; ++d)
          for (const auto* values : {&p.out, &p.grad_q, &p.grad_k, &p.grad_v}) {
            const bool finite = std::isfinite((*values)[windows->view().order[s] * 16 + d]);
            ASSERT_TRUE(same || finite) << "array " << array << " slot " << s;
            reached = reached || !finite;
          }
      }
      EXPECT_TRUE(reached);
    }
  }
}

TEST(ReferenceAttention, ZeroTokens) {
  attention_case<float> p({{1, label_windows({})}}, 16, 14);
  WINNOW_ASSERT_OK(reference::attention_forward<float>(p.forward()));
  WINNOW_ASSERT_OK(reference::attention_backward<float>(p.backward()));
  // A table's gradient is an empty sum then, which is 0 and not what was there before.
  attention_case<float> tables({{1,
                                 share(partition_points(cubic_window{{1, 1, 1}, false, 4, {}},
                                                        random_points(0, 1, 1, 1).view())),
                                 position_encoding::contextual}},
                               16, 15);
  WINNOW_ASSERT_OK(reference::attention_backward<float>(tables.backward()));
  for (float x : tables.groups[0].grad_table_q) EXPECT_EQ(x, 0.0f);
}

/// Runs the forward call after `change` has spoiled an argument; nothing may be written.
template <class Change>
void expect_forward_rejected(Change&& change, const std::string& words,
                             status_code code = status_code::invalid_argument) {
  attention_case<half> p(
      {{1, cubic_windows(50), position_encoding::contextual}, {1, share(partition_sizes({50}))}},
      16, 16);
  const auto untouched = p.out;
  auto arguments = p.forward();
  std::vector<head_group<half>> groups(arguments.groups, arguments.groups + 2);
  arguments.groups = groups.data();
  change(arguments, groups);
  const status done = reference::attention_forward<float>(arguments);
  EXPECT_EQ(done.code(), code) << words;
  EXPECT_THAT(done.message(), HasSubstr(words));
  EXPECT_EQ(std::memcmp(p.out.data(), untouched.data(), untouched.size() * sizeof(half)), 0);
}

TEST(ReferenceAttention, ForwardNamesWhatIsWrong) {
  const auto rejects = [](const char* words, auto&& change) {
    expect_forward_rejected(change, words);
  };
  rejects("q: is null", [](auto& a, auto&) { a.q.data = nullptr; });
  rejects("k: shape is [50, 2, 8], must be [50, 2, 16]", [](auto& a, auto&) { a.k.shape[2] = 8; });
  rejects("v: shape is [49, 2, 16]", [](auto& a, auto&) { a.v.shape[0] = 49; });
  rejects("out: is null", [](auto& a, auto&) { a.out.data = nullptr; });
  rejects("out: stride[0] = 0 makes elements overlap", [](auto& a, auto&) { a.out.stride[0] = 0; });
  rejects("q: the innermost stride is 2", [](auto& a, auto&) { a.q.stride[2] = 2; });
  rejects("exceeds the address space",
          [](auto& a, auto&) { a.v.stride[0] = std::numeric_limits<std::int64_t>::max() / 2; });
  rejects("out: aliases q", [](auto& a, auto&) { a.out.data = const_cast<half*>(a.q.data); });
  rejects("lse: shape is [50, 1]", [](auto& a, auto&) { a.lse.shape[1] = 1; });
  rejects("scale: inf", [](auto& a, auto&) { a.scale = std::numeric_limits<float>::infinity(); });
  rejects("groups: is null", [](auto& a, auto&) { a.groups = nullptr; });
  rejects("group_count: 0", [](auto& a, auto&) { a.group_count = 0; });
  rejects("group_count: 1000", [](auto& a, auto&) { a.group_count = 1000; });
  rejects("groups: own 1 heads in all, q has 2", [](auto& a, auto&) { a.group_count = 1; });
  rejects("groups[1].heads: 0", [](auto&, auto& g) { g[1].heads = 0; });
  rejects("groups[0].table_q: has 45 rows, quant length 24 needs 47",
          [](auto&, auto& g) { g[0].table_q.shape[0] = 45; });
  rejects("groups[0].table_v: shape is [47, 2, 1, 16]",
          [](auto&, auto& g) { g[0].table_v.shape[1] = 2; });
  rejects("groups[0].windows: has no memory", [](auto&, auto& g) { g[0].windows.order = nullptr; });
  rejects("groups[0].windows: is a partition of up to 49 tokens, q has 50",
          [](auto&, auto& g) { g[0].windows.max_tokens = 49; });
  rejects("groups[1].position: contextual, but the partition has no positions",
          [](auto&, auto& g) { g[1].position = position_encoding::contextual; });
  rejects("groups[0].position: bias, but the partition is not a grid",
          [](auto&, auto& g) { g[0].position = position_encoding::bias; });
  rejects("groups[0].position: 9",
          [](auto&, auto& g) { g[0].position = static_cast<position_encoding>(9); });
  rejects("groups[0].table_q: is given, but the group's position encoding is not contextual",
          [](auto&, auto& g) { g[0].position = position_encoding::none; });
  expect_forward_rejected(
      [](auto& a, auto&) { a.q.shape[2] = a.k.shape[2] = a.v.shape[2] = a.out.shape[2] = 12; },
      "q: head dim 12, must be a multiple of 8", status_code::unsupported);
}

TEST(ReferenceAttention, BackwardNamesWhatIsWrong) {
  const auto rejects = [](const std::string& words, auto&& change) {
    attention_case<float> p({{1, cubic_windows(50), position_encoding::contextual, true, false}},
                            16, 17);
    auto arguments = p.backward();
    head_group_gradients<float> gradients = arguments.group_gradients[0];
    arguments.group_gradients = &gradients;
    change(arguments, gradients, p);
    const status done = reference::attention_backward<float>(arguments);
    EXPECT_EQ(done.code(), status_code::invalid_argument) << words;
    EXPECT_THAT(done.message(), HasSubstr(words));
    EXPECT_TRUE(std::isnan(p.grad_q[0]));
  };
  rejects("lse: is null", [](auto& a, auto&, auto&) { a.lse.data = nullptr; });
  rejects("grad_out: shape is [50, 1, 8]", [](auto& a, auto&, auto&) { a.grad_out.shape[2] = 8; });
  rejects("grad_v: aliases grad_q", [](auto& a, auto&, auto&) { a.grad_v.data = a.grad_q.data; });
  rejects("grad_k: aliases k",
          [](auto& a, auto&, auto&) { a.grad_k.data = const_cast<float*>(a.k.data); });
  rejects("grad_q: stride[0] = 8 makes elements overlap",
          [](auto& a, auto&, auto&) { a.grad_q.stride[0] = 8; });
  rejects("group_gradients[0].table_k: is given, but the group has no such table",
          [](auto&, auto& g, auto&) { g.table_k = g.table_q; });
  rejects("group_gradients[0].table_q: shape is [46, 3, 1, 16]",
          [](auto&, auto& g, auto&) { g.table_q.shape[0] = 46; });
  rejects("group_gradients[0].bias_table: is given, but the group has no bias table",
          [](auto&, auto& g, auto& p) {
            g.bias_table = {p.lse.data(), {50, 1}};
          });
}

}  // namespace
}  // namespace winnow::test
