// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "winnow/reference.hpp"

namespace {

using testing::HasSubstr;
using winnow::grid_window;
using winnow::status;
using winnow::status_code;
using winnow::tensor_layout;
using winnow::tensor_view;
using winnow::reference::window_importance;

constexpr float poison = -12345.0f;

std::size_t size(std::int64_t count) {
  return static_cast<std::size_t>(count);
}

template <class T>
T make(double value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return winnow::from_float<T>(static_cast<float>(value));
}

template <class T>
std::vector<T> random_features(std::int64_t count) {
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal(0.0, 2.0);
  std::vector<T> features(size(count));
  for (T& x : features) x = make<T>(normal(random));
  return features;
}

/// Importance [B, nW] the long way round, in double: pads the map of means with zeros, rolls it,
/// cuts it into windows.
template <class T>
std::vector<double> expected_importance(const grid_window& grid, int channels,
                                        const std::vector<T>& features) {
  const int w = grid.window;
  const int height = (grid.height + w - 1) / w * w;
  const int width = (grid.width + w - 1) / w * w;
  std::vector<double> importance;
  for (int b = 0; b < grid.batch; ++b) {
    std::vector<std::vector<double>> map(size(height), std::vector<double>(size(width), 0.0));
    for (int y = 0; y < grid.height; ++y)
      for (int x = 0; x < grid.width; ++x) {
        const std::size_t token =
            (size(b) * size(grid.height) + size(y)) * size(grid.width) + size(x);
        double sum = 0;
        for (int c = 0; c < channels; ++c)
          sum += std::fabs(double{winnow::to_float(features[token * size(channels) + size(c)])});
        map[size(y)][size(x)] = sum / channels;
      }
    auto rolled = map;
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        rolled[size(y)][size(x)] =
            map[size((y + grid.shift) % height)][size((x + grid.shift) % width)];
    for (int top = 0; top < height; top += w)
      for (int left = 0; left < width; left += w) {
        double squares = 0;
        for (int y = top; y < top + w; ++y)
          for (int x = left; x < left + w; ++x) squares += std::pow(rolled[size(y)][size(x)], 2);
        importance.push_back(std::sqrt(squares));
      }
  }
  return importance;
}

struct image_case {
  grid_window grid;
  int channels;
};

std::ostream& operator<<(std::ostream& out, const image_case& c) {
  return out << "batch " << c.grid.batch << ", " << c.grid.height << " x " << c.grid.width << " x "
             << c.channels << ", window " << c.grid.window << ", shift " << c.grid.shift;
}

const std::vector<image_case> cases{
    {{1, 1, 1, 1, 0}, 1},        // one token
    {{4, 7, 7, 7, 0}, 3},        // one window
    {{1, 7, 7, 7, 3}, 96},       // one window, rolled into itself
    {{2, 14, 21, 7, 3}, 5},      // shifted
    {{1, 13, 10, 4, 0}, 8},      // padded
    {{4, 13, 10, 4, 3}, 8},      // padded and shifted
    {{3, 5, 9, 8, 7}, 2},        // window taller than the image
    {{1, 9, 6, 1, 0}, 2},        // window of one token
    {{1, 3, 300, 256, 255}, 2},  // the largest window
    {{1, 6, 6, 3, 1}, 705},      // many channels
    {{0, 14, 14, 7, 3}, 4},      // no image
    {{2, 0, 5, 4, 1}, 3},        // no token
};

template <class T>
class Importance : public testing::Test {};
using feature_types = testing::Types<float, winnow::half, winnow::bfloat16, double>;
TYPED_TEST_SUITE(Importance, feature_types, );  // without the comma, clang warns about the macro

TYPED_TEST(Importance, MatchesThePaddedRolledMap) {
  for (const image_case& c : cases) {
    SCOPED_TRACE(testing::PrintToString(c));
    const auto features = random_features<TypeParam>(c.grid.tokens() * c.channels);
    const tensor_view<const TypeParam, 3> view(
        features.data(), {c.grid.batch, std::int64_t{c.grid.height} * c.grid.width, c.channels});
    const std::vector<double> expected = expected_importance(c.grid, c.channels, features);
    std::vector<float> importance(expected.size(), poison);
    const tensor_view<float, 2> result(importance.data(),
                                       {c.grid.batch, c.grid.windows_per_image()});
    const status in_float = window_importance<float>(c.grid, view, result);
    ASSERT_TRUE(in_float.ok()) << in_float.message();
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(importance[i], expected[i], 1e-6 * expected[i]) << i;
    const status in_double = window_importance<double>(c.grid, view, result);
    ASSERT_TRUE(in_double.ok()) << in_double.message();
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_FLOAT_EQ(importance[i], static_cast<float>(expected[i])) << i;
  }
}

TYPED_TEST(Importance, ReadsAndWritesThroughStrides) {
  const grid_window grid{2, 6, 5, 3, 1};
  constexpr int channels = 7;
  constexpr int token_stride = 16, image_stride = 30 * token_stride + 8, row_stride = 9;
  const auto packed = random_features<TypeParam>(grid.tokens() * channels);
  const std::vector<double> expected = expected_importance(grid, channels, packed);
  // What lies between the rows is NaN; it must not be read.
  std::vector<TypeParam> memory(2 * image_stride,
                                make<TypeParam>(std::numeric_limits<double>::quiet_NaN()));
  tensor_layout<3> layout = winnow::packed_layout({2, 30, channels});
  layout.stride[0] = image_stride;
  layout.stride[1] = -token_stride;  // tokens from last to first
  TypeParam* const first = memory.data() + 29 * token_stride;
  for (int i = 0; i < 60 * channels; ++i)
    first[layout.offset(i / (30 * channels), i / channels % 30, i % channels)] = packed[size(i)];
  std::vector<float> importance(2 * row_stride, poison);
  tensor_layout<2> result = winnow::packed_layout({2, 4});
  result.stride[0] = row_stride;
  const status done = window_importance<double>(grid, tensor_view<TypeParam, 3>(first, layout),
                                                {importance.data(), result});
  ASSERT_TRUE(done.ok()) << done.message();
  for (int i = 0; i < 2 * row_stride; ++i) {
    const int id = i % row_stride;
    EXPECT_FLOAT_EQ(importance[size(i)],
                    id < 4 ? static_cast<float>(expected[size(i / row_stride * 4 + id)]) : poison);
  }
}

TYPED_TEST(Importance, IsTheSameOnAnyNumberOfThreads) {
  const grid_window grid{3, 23, 31, 4, 2};
  constexpr int channels = 67;
  const auto features = random_features<TypeParam>(grid.tokens() * channels);
  const tensor_view<const TypeParam, 3> view(features.data(), {3, 23 * 31, channels});
  const auto run = [&](int threads) {
    std::vector<float> importance(size(3 * grid.windows_per_image()), poison);
    EXPECT_TRUE(window_importance<float>(
                    grid, view, {importance.data(), {3, grid.windows_per_image()}}, threads)
                    .ok());
    return importance;
  };
  const std::vector<float> all = run(0);
  for (int threads = 1; threads <= 4; ++threads) EXPECT_EQ(run(threads), all) << threads;
}

TEST(ImportanceValues, IgnoreSigns) {
  // Mean of magnitudes 2.5 on each of nine tokens.
  std::vector<float> features;
  for (int token = 0; token < 9; ++token) features.insert(features.end(), {-1, 2, -3, 4});
  float importance = poison;
  ASSERT_TRUE(window_importance<float>({1, 3, 3, 3, 1},
                                       tensor_view<float, 3>(features.data(), {1, 9, 4}),
                                       {&importance, {1, 1}})
                  .ok());
  EXPECT_EQ(importance, 7.5f);
}

TEST(ImportanceValues, KeepNanAndInfinityInTheirWindow) {
  std::vector<float> features(64, 1.0f);
  features[0] = std::numeric_limits<float>::quiet_NaN();          // rolled to the last window
  features[2 * 8 + 5] = -std::numeric_limits<float>::infinity();  // rolled to the first
  std::vector<float> importance(4, poison);
  ASSERT_TRUE(window_importance<float>({1, 8, 8, 4, 2},
                                       tensor_view<float, 3>(features.data(), {1, 64, 1}),
                                       {importance.data(), {1, 4}})
                  .ok());
  EXPECT_EQ(importance[0], std::numeric_limits<float>::infinity());
  EXPECT_EQ(importance[1], 4.0f);
  EXPECT_EQ(importance[2], 4.0f);
  EXPECT_TRUE(std::isnan(importance[3]));
}

/// A legal call on 2 images of 5 x 6 tokens, which each case breaks in one place.
struct importance_call {
  grid_window grid{2, 5, 6, 3, 1};
  std::vector<float> memory = std::vector<float>(2 * 30 * 4 + 64, 1.0f);
  tensor_view<const void, 3> features{memory.data(), winnow::dtype::float32, {2, 30, 4}};
  std::vector<float> output = std::vector<float>(64, poison);
  tensor_view<float, 2> importance{output.data(), {2, 4}};
  int threads = 1;

  status run() const { return window_importance<double>(grid, features, importance, threads); }
};

struct bad_call {
  const char* what;
  std::function<void(importance_call&)> spoil;
  std::vector<const char*> message;
};

std::ostream& operator<<(std::ostream& out, const bad_call& c) {
  return out << c.what;
}

class ImportanceRejects : public testing::TestWithParam<bad_call> {};

TEST_P(ImportanceRejects, AndNamesTheArgument) {
  importance_call call;
  GetParam().spoil(call);
  const status failed = call.run();
  EXPECT_EQ(failed.code(), status_code::invalid_argument);
  for (const char* part : GetParam().message) EXPECT_THAT(failed.message(), HasSubstr(part));
  for (const float value : call.output) EXPECT_EQ(value, poison);
  for (const float value : call.memory) EXPECT_EQ(value, 1.0f);
}

constexpr std::int64_t huge = std::int64_t{1} << 61;

INSTANTIATE_TEST_SUITE_P(
    Arguments, ImportanceRejects,
    testing::Values(
        bad_call{"negative batch", [](auto& c) { c.grid.batch = -1; }, {"grid.batch", "-1"}},
        bad_call{"negative height", [](auto& c) { c.grid.height = -5; }, {"grid.height", "-5"}},
        bad_call{"negative width", [](auto& c) { c.grid.width = -6; }, {"grid.width", "-6"}},
        bad_call{"no window", [](auto& c) { c.grid.window = 0; }, {"grid.window", "0", "256"}},
        bad_call{"wide window", [](auto& c) { c.grid.window = 257; }, {"grid.window", "257"}},
        bad_call{"negative shift", [](auto& c) { c.grid.shift = -1; }, {"grid.shift", "-1"}},
        bad_call{"long shift", [](auto& c) { c.grid.shift = 3; }, {"grid.shift", "3", "[0, 2]"}},
        bad_call{"too many windows",
                 [](auto& c) {
                   c.grid = {2, 1 << 20, 1 << 20, 1, 0};
                 },
                 {"grid", "1099511627776 windows"}},
        bad_call{"no features", [](auto& c) { c.features.data = nullptr; }, {"features", "null"}},
        bad_call{
            "wrong batch", [](auto& c) { c.grid.batch = 3; }, {"features: shape[0]", "2", "3"}},
        bad_call{"wrong tokens",
                 [](auto& c) { c.grid.width = 7; },
                 {"features: shape[1]", "30", "5 x 7 = 35"}},
        bad_call{"no channels", [](auto& c) { c.features.shape[2] = 0; }, {"features: shape[2]"}},
        bad_call{"negative channels",
                 [](auto& c) { c.features.shape[2] = -4; },
                 {"features: shape[2]", "-4"}},
        bad_call{"inner stride", [](auto& c) { c.features.stride[2] = 2; }, {"features", "stride"}},
        bad_call{"overflowing stride",
                 [](auto& c) { c.features.stride[1] = huge; },
                 {"features", "stride[1]"}},
        bad_call{"misaligned features",
                 [](auto& c) { c.features.data = static_cast<const char*>(c.features.data) + 1; },
                 {"features", "aligned"}},
        bad_call{"integer features",
                 [](auto& c) { c.features.type = winnow::dtype::int32; },
                 {"features", "int32", "float32"}},
        bad_call{
            "no importance", [](auto& c) { c.importance.data = nullptr; }, {"importance", "null"}},
        bad_call{"too few windows",
                 [](auto& c) { c.importance.shape[1] = 3; },
                 {"importance", "[2, 3]", "[2, 4]"}},
        bad_call{"too many images",
                 [](auto& c) { c.importance.shape[0] = 3; },
                 {"importance", "[3, 4]", "[2, 4]"}},
        bad_call{"rows that overlap",
                 [](auto& c) { c.importance.stride[0] = 3; },
                 {"importance", "stride[0]", "3"}},
        bad_call{"result in the features",
                 [](auto& c) { c.importance.data = c.memory.data() + 239; },
                 {"importance", "overlaps features"}},
        bad_call{"negative threads", [](auto& c) { c.threads = -1; }, {"threads", "-1"}}));

TEST(ImportanceValues, MayLieNextToTheFeatures) {
  for (const int place : {0, 248}) {  // just before and just behind them
    importance_call call;
    call.features.data = call.memory.data() + 8;
    call.importance.data = call.memory.data() + place;
    EXPECT_TRUE(call.run().ok());
    for (int i = 0; i < 256; ++i)
      EXPECT_EQ(call.memory[size(i)] != 1.0f, i >= place && i < place + 8) << i;
  }
}

}  // namespace
