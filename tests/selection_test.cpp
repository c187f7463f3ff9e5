// SPDX-License-Identifier: Apache-2.0
#include "winnow/selection.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <ostream>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "winnow/reference.hpp"

namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using winnow::grid_window;
using winnow::kept_windows;
using winnow::ragged_selection;
using winnow::status;
using winnow::status_code;
using winnow::tensor_layout;
using winnow::tensor_view;
using winnow::uniform_selection;
using winnow::window_selection;
using winnow::reference::select_above;
using winnow::reference::select_most_important;
using winnow::reference::select_token_mask;
using winnow::reference::select_window_mask;
using ids = std::vector<std::int32_t>;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int32_t poison = -777;

std::size_t size(std::int64_t count) {
  return static_cast<std::size_t>(count);
}

/// A ragged selection with its memory.
struct ragged {
  ragged(int images, std::int64_t windows)
      : kept(size(images * windows), poison),
        offsets(size(images) + 1, poison),
        view(ragged_selection(images, windows, kept.data(), offsets.data())) {}
  ids kept;
  ids offsets;
  window_selection view;

  ids of_image(int image) const {
    return {kept.begin() + offsets[size(image)], kept.begin() + offsets[size(image) + 1]};
  }
};

/// The ids of one image, most important first: a stable sort of all windows.
ids ranking(const std::vector<float>& importance) {
  ids order(importance.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](std::int32_t id) {
    const double x = importance[size(id)];
    return std::isnan(x) ? std::pair(1, 0.0) : std::pair(0, x);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return key(a) > key(b); });
  return order;
}

ids most_important(const std::vector<float>& importance, std::int64_t kept) {
  const auto windows = static_cast<std::int64_t>(importance.size());
  ids result(size(kept), poison);
  const status done = select_most_important({importance.data(), {1, windows}},
                                            uniform_selection(1, windows, kept, result.data()));
  EXPECT_TRUE(done.ok()) << done.message();
  return result;
}

TEST(KeptWindows, TruncatesInDouble) {
  EXPECT_EQ(kept_windows(64, 0.0), 64);
  EXPECT_EQ(kept_windows(64, 1.0), 0);
  EXPECT_EQ(kept_windows(64, 0.25), 48);
  EXPECT_EQ(kept_windows(9, 0.6), 3);
  EXPECT_EQ(kept_windows(1, 0.1), 0);
  EXPECT_EQ(kept_windows(0, 0.5), 0);
  // 10 · (1 - 0.9) is 0.99999… in double and 1 in float.
  EXPECT_EQ(kept_windows(10, 0.9), 0);
  EXPECT_EQ(kept_windows(576, 0.3), static_cast<int>(576 * (1 - 0.3)));
}

TEST(KeptWindows, RejectsWhatIsNoRatio) {
  for (const double ratio : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity()})
    EXPECT_EQ(kept_windows(64, ratio), -1) << ratio;
  EXPECT_EQ(kept_windows(-1, 0.5), -1);
}

struct ranking_case {
  int images;
  int windows;
  int levels;  ///< distinct importances; few make many ties
};

std::ostream& operator<<(std::ostream& out, const ranking_case& c) {
  return out << c.images << " images of " << c.windows << " windows, " << c.levels << " levels";
}

class MostImportant : public testing::TestWithParam<ranking_case> {};

TEST_P(MostImportant, MatchesAStableSort) {
  const auto [images, windows, levels] = GetParam();
  std::mt19937 random(5);
  std::uniform_int_distribution<int> level(0, levels);
  const int row_stride = windows + 3;
  std::vector<float> memory(size(images * row_stride), infinity);
  std::vector<std::vector<float>> rows;
  for (int b = 0; b < images; ++b) {
    std::vector<float>& row = rows.emplace_back();
    for (int id = 0; id < windows; ++id) {
      const int value = level(random);
      row.push_back(value == 0 ? nan : static_cast<float>(value));
      memory[size(b * row_stride + id)] = row.back();
    }
  }
  tensor_layout<2> layout = winnow::packed_layout({images, windows});
  layout.stride[0] = row_stride;
  const int stride = windows + 2;
  for (const double ratio : {0.0, 0.1, 0.25, 0.6, 0.9, 1.0}) {
    const std::int64_t kept = kept_windows(windows, ratio);
    ids result(size(images * stride), poison);
    window_selection selection = uniform_selection(images, windows, kept, result.data());
    selection.stride = stride;
    const status done = select_most_important({memory.data(), layout}, selection);
    ASSERT_TRUE(done.ok()) << done.message();
    for (int b = 0; b < images; ++b) {
      const ids expected = ranking(rows[size(b)]);
      for (int i = 0; i < stride; ++i)
        ASSERT_EQ(result[size(b * stride + i)], i < kept ? expected[size(i)] : poison)
            << "image " << b << ", place " << i << ", kept " << kept;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MostImportant,
                         testing::Values(ranking_case{1, 1, 5}, ranking_case{4, 1, 1},
                                         ranking_case{1, 64, 1000000}, ranking_case{4, 49, 7},
                                         ranking_case{3, 576, 40}, ranking_case{1, 9216, 1000000},
                                         ranking_case{0, 64, 3}, ranking_case{2, 0, 3}));

TEST(MostImportantOrder, BreaksTiesByTheLowerId) {
  EXPECT_THAT(most_important({1, 3, 2, 3, 3, 1}, 6), ElementsAre(1, 3, 4, 2, 0, 5));
  EXPECT_THAT(most_important({2, 2, 2, 2}, 2), ElementsAre(0, 1));
  EXPECT_THAT(most_important({0.0f, -0.0f, 0.0f}, 3), ElementsAre(0, 1, 2));
}

TEST(MostImportantOrder, PutsNanFirst) {
  EXPECT_THAT(most_important({1, nan, infinity, -nan, 5}, 5), ElementsAre(1, 3, 2, 4, 0));
  EXPECT_THAT(most_important({nan, 1, nan}, 1), ElementsAre(0));
}

TEST(MostImportantOrder, NeedsNoMemoryForNothing) {
  EXPECT_TRUE(select_most_important({nullptr, {0, 64}}, uniform_selection(0, 64, 9, nullptr)).ok());
  const float one = 1;
  EXPECT_TRUE(select_most_important({&one, {1, 1}}, uniform_selection(1, 1, 0, nullptr)).ok());
}

TEST(Prefix, KeepsTheFirstOfEachImage) {
  const std::vector<float> importance{1, 4, 2, 3, 8, 5, 6, 7};
  ids memory(6, poison);
  const window_selection first = uniform_selection(2, 4, 3, memory.data());
  ASSERT_TRUE(select_most_important({importance.data(), {2, 4}}, first).ok());
  window_selection later;
  for (const int kept : {3, 2, 0}) {
    ASSERT_TRUE(prefix(first, kept, later).ok());
    EXPECT_EQ(later.images, 2);
    EXPECT_EQ(later.windows, 4);
    EXPECT_EQ(later.kept, kept);
    EXPECT_EQ(later.stride, 3);
    EXPECT_EQ(later.ids, first.ids);
    EXPECT_FALSE(later.ragged());
    EXPECT_EQ(later.max_windows(), 2 * kept);
    // What a ranking of that length would have been.
    for (int b = 0; b < 2; ++b) {
      const std::vector<float> row(importance.begin() + 4 * b, importance.begin() + 4 * b + 4);
      EXPECT_EQ(ids(later.ids + b * later.stride, later.ids + b * later.stride + kept),
                most_important(row, kept));
    }
  }
}

TEST(Prefix, RefusesMoreThanWasRanked) {
  ids memory(6, poison);
  const window_selection first = uniform_selection(2, 4, 3, memory.data());
  window_selection shorter;
  ASSERT_TRUE(prefix(first, 2, shorter).ok());
  for (const auto& [selection, kept] : {std::pair(first, 4), {first, -1}, {shorter, 3}}) {
    window_selection later;
    const status failed = prefix(selection, kept, later);
    EXPECT_EQ(failed.code(), status_code::invalid_argument);
    EXPECT_THAT(failed.message(), HasSubstr("kept: " + std::to_string(kept)));
    EXPECT_EQ(later.ids, nullptr);
  }
  ragged by_mask(2, 4);
  window_selection later;
  EXPECT_THAT(prefix(by_mask.view, 1, later).message(), HasSubstr("ragged"));
  EXPECT_EQ(later.ids, nullptr);
}

TEST(ShiftParity, RanksEachGridFromTheSameMap) {
  // One bright token on 8 x 8, in windows of 4.
  std::vector<float> features(64, 0.0f);
  const tensor_view<const float, 3> map(features.data(), {1, 64, 1});
  const auto brightest = [&](int shift) {
    std::vector<float> importance(4);
    EXPECT_TRUE(winnow::reference::window_importance<float>({1, 8, 8, 4, shift}, map,
                                                            {importance.data(), {1, 4}})
                    .ok());
    return most_important(importance, 1)[0];
  };
  features[3 * 8 + 4] = 1;  // row 3, column 4 rolls to row 1, column 2
  EXPECT_EQ(brightest(0), 1);
  EXPECT_EQ(brightest(2), 0);
  std::fill(features.begin(), features.end(), 0.0f);
  features[1 * 8 + 7] = 1;  // row 1, column 7 rolls to row 7, column 5
  EXPECT_EQ(brightest(0), 1);
  EXPECT_EQ(brightest(2), 3);
}

TEST(Above, KeepsTheThresholdItselfAndNan) {
  const std::vector<float> importance{0.5f, 1.0f,     2.0f,  nan,    // three
                                      0.0f, 0.9f,     0.99f, -1.0f,  // none
                                      1.0f, infinity, 7.0f,  nan};   // all
  ragged result(3, 4);
  const status done = select_above({importance.data(), {3, 4}}, 1.0f, result.view);
  ASSERT_TRUE(done.ok()) << done.message();
  EXPECT_THAT(result.offsets, ElementsAre(0, 3, 3, 7));
  EXPECT_THAT(result.of_image(0), ElementsAre(1, 2, 3));
  EXPECT_THAT(result.of_image(2), ElementsAre(0, 1, 2, 3));
  for (std::size_t i = 7; i < 12; ++i) EXPECT_EQ(result.kept[i], poison);
}

TEST(Above, TakesInfiniteThresholds) {
  const std::vector<float> importance{-infinity, 3.0f, infinity, nan};
  ragged result(1, 4);
  ASSERT_TRUE(select_above({importance.data(), {1, 4}}, infinity, result.view).ok());
  EXPECT_THAT(result.of_image(0), ElementsAre(2, 3));
  ASSERT_TRUE(select_above({importance.data(), {1, 4}}, -infinity, result.view).ok());
  EXPECT_THAT(result.of_image(0), ElementsAre(0, 1, 2, 3));
}

TEST(WindowMask, KeepsEveryNonZeroByte) {
  const std::vector<std::uint8_t> mask{0, 1, 0, 255, 9,  //
                                       0, 0, 0, 0,   9,  //
                                       1, 1, 2, 128, 9};
  tensor_layout<2> layout = winnow::packed_layout({3, 4});
  layout.stride[0] = 5;
  ragged result(3, 4);
  const status done = select_window_mask({mask.data(), layout}, result.view);
  ASSERT_TRUE(done.ok()) << done.message();
  EXPECT_THAT(result.offsets, ElementsAre(0, 2, 2, 6));
  EXPECT_THAT(result.of_image(0), ElementsAre(1, 3));
  EXPECT_THAT(result.of_image(2), ElementsAre(0, 1, 2, 3));
}

class TokenMask : public testing::TestWithParam<grid_window> {};

// A token is in the window whose importance it raises.
TEST_P(TokenMask, AgreesWithImportanceOfTheMask) {
  const grid_window grid = GetParam();
  const std::int64_t tokens = std::int64_t{grid.height} * grid.width;
  const std::int64_t windows = grid.windows_per_image();
  std::mt19937 random(11);
  for (const unsigned one_in : {1u, 5u, 60u, 100000u}) {
    std::vector<std::uint8_t> mask(size(grid.tokens()));
    for (auto& byte : mask) byte = random() % one_in == 0 ? 1 : 0;
    const std::vector<float> features(mask.begin(), mask.end());
    std::vector<float> importance(size(grid.batch * windows));
    ASSERT_TRUE(winnow::reference::window_importance<float>(
                    grid, tensor_view<const float, 3>(features.data(), {grid.batch, tokens, 1}),
                    {importance.data(), {grid.batch, windows}})
                    .ok());
    ragged expected(grid.batch, windows);
    ASSERT_TRUE(select_above({importance.data(), {grid.batch, windows}}, 0.5f, expected.view).ok());
    ragged result(grid.batch, windows);
    const status done = select_token_mask(grid, {mask.data(), {grid.batch, tokens}}, result.view);
    ASSERT_TRUE(done.ok()) << done.message();
    EXPECT_EQ(result.offsets, expected.offsets);
    EXPECT_EQ(result.kept, expected.kept);
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, TokenMask,
                         testing::Values(grid_window{1, 1, 1, 1, 0}, grid_window{2, 14, 21, 7, 3},
                                         grid_window{4, 13, 10, 4, 3}, grid_window{1, 5, 9, 8, 7},
                                         grid_window{3, 6, 4, 1, 0}, grid_window{0, 8, 8, 4, 2},
                                         grid_window{2, 8, 0, 4, 2}));

TEST(TokenMaskValues, OneTokenKeepsOneWindow) {
  std::vector<std::uint8_t> mask(2 * 64);
  mask[7 * 8 + 7] = 3;   // image 0, (7, 7): the last window, rolled by 2 too
  mask[64 + 1 * 8] = 1;  // image 1, (1, 0): the first window, rolled by 2 the last
  ragged result(2, 4);
  ASSERT_TRUE(select_token_mask({2, 8, 8, 4, 0}, {mask.data(), {2, 64}}, result.view).ok());
  EXPECT_THAT(result.offsets, ElementsAre(0, 1, 2));
  EXPECT_THAT(result.of_image(0), ElementsAre(3));
  EXPECT_THAT(result.of_image(1), ElementsAre(0));
  ASSERT_TRUE(select_token_mask({2, 8, 8, 4, 2}, {mask.data(), {2, 64}}, result.view).ok());
  EXPECT_THAT(result.of_image(0), ElementsAre(3));
  EXPECT_THAT(result.of_image(1), ElementsAre(3));
}

TEST(Ragged, NoImagesStillCloseTheOffsets) {
  ragged result(0, 64);
  ASSERT_TRUE(select_above({nullptr, {0, 64}}, 1.0f, result.view).ok());
  EXPECT_THAT(result.offsets, ElementsAre(0));
}

/// Legal calls on 2 images of 4 windows (8 x 8 tokens, windows of 4), which each case breaks in one
/// place.
struct selection_call {
  std::vector<float> values = std::vector<float>(8, 1.0f);
  tensor_view<const float, 2> importance{values.data(), {2, 4}};
  float threshold = 0.5f;
  std::vector<std::uint8_t> bytes = std::vector<std::uint8_t>(128, 1);
  tensor_view<const std::uint8_t, 2> window_mask{bytes.data(), {2, 4}};
  tensor_view<const std::uint8_t, 2> token_mask{bytes.data(), {2, 64}};
  grid_window grid{2, 8, 8, 4, 2};
  ids kept = ids(16, poison);
  ids offsets = ids(16, poison);
  window_selection uniform = uniform_selection(2, 4, 3, kept.data());
  window_selection by_value = ragged_selection(2, 4, kept.data(), offsets.data());

  status top() const { return select_most_important(importance, uniform); }
  status above() const { return select_above(importance, threshold, by_value); }
  status windows() const { return select_window_mask(window_mask, by_value); }
  status tokens() const { return select_token_mask(grid, token_mask, by_value); }
};

using select = status (selection_call::*)() const;
constexpr select top = &selection_call::top;
constexpr select above = &selection_call::above;
constexpr select windows = &selection_call::windows;
constexpr select tokens = &selection_call::tokens;

struct bad_call {
  const char* what;
  std::vector<select> calls;
  std::function<void(selection_call&)> spoil;
  std::vector<const char*> message;
};

std::ostream& operator<<(std::ostream& out, const bad_call& c) {
  return out << c.what;
}

class SelectionRejects : public testing::TestWithParam<bad_call> {};

TEST_P(SelectionRejects, AndNamesTheArgument) {
  for (const select& call : GetParam().calls) {
    selection_call arguments;
    ASSERT_TRUE((arguments.*call)().ok());
    std::fill(arguments.kept.begin(), arguments.kept.end(), poison);
    std::fill(arguments.offsets.begin(), arguments.offsets.end(), poison);
    GetParam().spoil(arguments);
    const auto values = arguments.values;
    const auto bytes = arguments.bytes;
    const status failed = (arguments.*call)();
    EXPECT_EQ(failed.code(), status_code::invalid_argument);
    for (const char* part : GetParam().message) EXPECT_THAT(failed.message(), HasSubstr(part));
    EXPECT_THAT(arguments.kept, testing::Each(poison));
    EXPECT_THAT(arguments.offsets, testing::Each(poison));
    EXPECT_EQ(arguments.values, values);
    EXPECT_EQ(arguments.bytes, bytes);
  }
}

constexpr std::int64_t huge = std::int64_t{1} << 61;

template <class T>
T* reinterpret(void* memory) {
  return static_cast<T*>(memory);
}

INSTANTIATE_TEST_SUITE_P(
    Inputs, SelectionRejects,
    testing::Values(
        bad_call{"no importance",
                 {top, above},
                 [](auto& c) { c.importance.data = nullptr; },
                 {"importance", "null"}},
        bad_call{"negative windows",
                 {top, above},
                 [](auto& c) { c.importance.shape[1] = -4; },
                 {"importance: shape[1]", "-4"}},
        bad_call{"inner stride",
                 {top, above},
                 [](auto& c) { c.importance.stride[1] = 2; },
                 {"importance", "stride", "2"}},
        bad_call{"long rows",
                 {top, above},
                 [](auto& c) { c.importance.stride[0] = huge; },
                 {"importance", "stride[0]"}},
        bad_call{"threshold", {above}, [](auto& c) { c.threshold = nan; }, {"threshold", "NaN"}},
        bad_call{"no masks",
                 {windows, tokens},
                 [](auto& c) { c.window_mask.data = c.token_mask.data = nullptr; },
                 {"mask", "null"}},
        bad_call{"mask for another batch",
                 {tokens},
                 [](auto& c) { c.token_mask.shape[0] = 1; },
                 {"mask: shape[0]", "1", "2"}},
        bad_call{"mask for another image",
                 {tokens},
                 [](auto& c) { c.token_mask.shape[1] = 60; },
                 {"mask: shape[1]", "60", "8 x 8 = 64"}},
        bad_call{"no window", {tokens}, [](auto& c) { c.grid.window = 0; }, {"grid.window", "0"}},
        bad_call{"shift", {tokens}, [](auto& c) { c.grid.shift = 4; }, {"grid.shift", "4"}}));

INSTANTIATE_TEST_SUITE_P(
    Results, SelectionRejects,
    testing::Values(
        bad_call{"ragged for uniform",
                 {top},
                 [](auto& c) { c.uniform.offsets = c.offsets.data(); },
                 {"result.offsets", "uniform"}},
        bad_call{"uniform for ragged",
                 {above, windows, tokens},
                 [](auto& c) { c.by_value.offsets = nullptr; },
                 {"result.offsets", "null", "ragged"}},
        bad_call{"no ids",
                 {top, above, windows, tokens},
                 [](auto& c) { c.uniform.ids = c.by_value.ids = nullptr; },
                 {"result.ids", "null"}},
        bad_call{"other images",
                 {top, above, windows, tokens},
                 [](auto& c) { c.uniform.images = c.by_value.images = 1; },
                 {"result.images: 1", "2"}},
        bad_call{"other windows",
                 {top, above, windows, tokens},
                 [](auto& c) { c.uniform.windows = c.by_value.windows = 5; },
                 {"result.windows: 5", "4"}},
        bad_call{"negative kept",
                 {top},
                 [](auto& c) { c.uniform.kept = -1; },
                 {"result.kept: -1", "[0, 4]"}},
        bad_call{"more kept than there are",
                 {top},
                 [](auto& c) { c.uniform.kept = c.uniform.stride = 5; },
                 {"result.kept: 5", "[0, 4]"}},
        bad_call{"short stride",
                 {top},
                 [](auto& c) { c.uniform.stride = 2; },
                 {"result.ids", "stride[0] = 2"}},
        bad_call{"stride overflows",
                 {top},
                 [](auto& c) { c.uniform.stride = huge; },
                 {"result.ids", "stride[0]"}},
        bad_call{"ids in the importance",
                 {top, above},
                 [](auto& c) {
                   c.uniform.ids = c.by_value.ids = reinterpret<std::int32_t>(c.values.data() + 7);
                 },
                 {"result.ids", "overlaps importance"}},
        bad_call{"ids in the mask",
                 {windows, tokens},
                 [](auto& c) { c.by_value.ids = reinterpret<std::int32_t>(c.bytes.data() + 4); },
                 {"result.ids", "overlaps mask"}},
        bad_call{"offsets in the mask",
                 {windows, tokens},
                 [](auto& c) { c.by_value.offsets = reinterpret<std::int32_t>(c.bytes.data()); },
                 {"result.offsets", "overlaps mask"}},
        bad_call{"offsets in the ids",
                 {above, windows, tokens},
                 [](auto& c) { c.by_value.offsets = c.kept.data() + 7; },
                 {"result.ids", "overlaps result.offsets"}},
        bad_call{"too many windows for a mask",
                 {tokens},
                 [](auto& c) {
                   c.grid = {3, 1 << 15, 1 << 15, 1, 0};
                   c.token_mask = {c.bytes.data(), {3, std::int64_t{1} << 30}};
                   c.by_value.images = 3;
                   c.by_value.windows = std::int64_t{1} << 30;
                 },
                 {"3 images of 1073741824 windows", "2^31"}},
        bad_call{"too many windows for an id",
                 {top, above},
                 [](auto& c) {
                   c.importance = {c.values.data(), {2, std::int64_t{1} << 31}};
                   c.uniform.windows = c.by_value.windows = std::int64_t{1} << 31;
                 },
                 {"result.windows: 2147483648", "2^31"}}));

}  // namespace
