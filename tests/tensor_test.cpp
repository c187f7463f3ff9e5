// SPDX-License-Identifier: Apache-2.0
#include "winnow/tensor.hpp"

#include <type_traits>

#include <gtest/gtest.h>

namespace {

using winnow::dtype;
using winnow::packed_layout;
using winnow::tensor_layout;
using winnow::tensor_view;

TEST(Tensor, PacksInCOrder) {
  constexpr auto layout = packed_layout({5, 3, 4, 2});
  static_assert(layout.shape[0] == 5 && layout.shape[3] == 2);
  static_assert(layout.stride[0] == 24 && layout.stride[1] == 8);
  static_assert(layout.stride[2] == 2 && layout.stride[3] == 1);
  std::int64_t expected = 0;
  for (int a = 0; a < 5; ++a)
    for (int b = 0; b < 3; ++b)
      for (int c = 0; c < 4; ++c)
        for (int d = 0; d < 2; ++d) EXPECT_EQ(layout.offset(a, b, c, d), expected++);
}

TEST(Tensor, PacksEmptyShapes) {
  constexpr auto layout = packed_layout({4, 0, 3});
  static_assert(layout.shape[0] == 4 && layout.shape[1] == 0 && layout.shape[2] == 3);
  static_assert(layout.stride[2] == 1 && layout.stride[1] == 3 && layout.stride[0] == 0);
}

TEST(Tensor, PacksAbsurdShapesWithoutOverflow) {
  // Signed overflow would not be a constant expression.
  constexpr auto layout = packed_layout({2, std::int64_t{1} << 40, std::int64_t{1} << 40});
  static_assert(layout.stride[1] == std::int64_t{1} << 40);
  static_assert(layout.shape[1] == std::int64_t{1} << 40);
}

TEST(Tensor, OffsetsExceed32Bits) {
  constexpr std::int64_t tokens = (std::int64_t{1} << 31) - 1;
  constexpr auto layout = packed_layout({tokens, 32, 128});
  static_assert(layout.offset(tokens - 1, 31, 127) == tokens * 4096 - 1);
  // Indices are widened before they are multiplied.
  constexpr int row = 3'000'000;
  static_assert(layout.offset(row) == 12'288'000'000);
}

TEST(Tensor, OffsetsTakeFewerIndices) {
  constexpr auto layout = packed_layout({2, 3, 4});
  static_assert(layout.offset(1) == 12);
  static_assert(layout.offset(1, 2) == 20);
}

TEST(Tensor, ViewsReadAndWriteThroughStrides) {
  int memory[24] = {};
  tensor_layout<2> columns = packed_layout({6, 2});
  columns.stride[0] = 4;
  const tensor_view<int, 2> view(memory + 1, columns);
  for (int row = 0; row < 6; ++row)
    for (int column = 0; column < 2; ++column) view(row, column) = 10 * row + column + 1;
  for (int i = 0; i < 24; ++i) {
    const int column = i % 4 - 1;
    EXPECT_EQ(memory[i], column == 0 || column == 1 ? 10 * (i / 4) + column + 1 : 0) << i;
  }
  tensor_layout<2> reversed = packed_layout({6, 2});
  reversed.stride[0] = -4;
  const tensor_view<const int, 2> backwards(memory + 21, reversed);
  for (int row = 0; row < 6; ++row) EXPECT_EQ(backwards(row, 1), view(5 - row, 1));
}

TEST(Tensor, DefaultViewsAreAbsent) {
  EXPECT_EQ((tensor_view<float, 2>().data), nullptr);
  EXPECT_EQ((tensor_view<void, 2>().data), nullptr);
  EXPECT_EQ((tensor_view<const void, 2>().data), nullptr);
  EXPECT_EQ((tensor_view<const void, 2>().shape[0]), 0);
}

template <class From, class To>
constexpr bool converts = std::is_convertible_v<tensor_view<From, 3>, tensor_view<To, 3>>;

TEST(Tensor, ConversionsOnlyAddConstAndEraseTypes) {
  static_assert(converts<float, const float> && converts<float, void>);
  static_assert(converts<float, const void> && converts<const float, const void>);
  static_assert(converts<void, const void>);
  static_assert(!converts<const float, float> && !converts<const float, void>);
  static_assert(!converts<const void, void> && !converts<void, float>);
  static_assert(!converts<float, double> && !converts<float, const double>);
  static_assert(!std::is_convertible_v<tensor_view<float, 2>, tensor_view<const void, 3>>);
}

template <class T>
class TensorErasure : public testing::Test {};
using storage_types =
    testing::Types<float, winnow::half, winnow::bfloat16, double, std::int32_t, std::uint8_t>;
TYPED_TEST_SUITE(TensorErasure, storage_types, );  // without the comma, clang warns about the macro

TYPED_TEST(TensorErasure, KeepsDataLayoutAndDtype) {
  TypeParam memory[12] = {};
  tensor_layout<2> layout = packed_layout({2, 3});
  layout.stride[0] = 5;
  const tensor_view<TypeParam, 2> typed(memory, layout);
  const tensor_view<const TypeParam, 2> read_only = typed;
  const tensor_view<void, 2> erased = typed;
  const tensor_view<const void, 2> views[] = {typed, read_only, erased};
  EXPECT_EQ(read_only.data, memory);
  EXPECT_EQ(erased.data, memory);
  EXPECT_EQ(erased.type, winnow::dtype_of<TypeParam>);
  for (const auto& view : views) {
    EXPECT_EQ(view.data, memory);
    EXPECT_EQ(view.type, winnow::dtype_of<TypeParam>);
    EXPECT_EQ(view.shape[0], 2);
    EXPECT_EQ(view.shape[1], 3);
    EXPECT_EQ(view.stride[0], 5);
    EXPECT_EQ(view.stride[1], 1);
  }
}

TEST(Tensor, ErasedViewsPackByThemselves) {
  const float memory[6] = {};
  const tensor_view<const void, 2> view(memory, dtype::float32, {3, 2});
  EXPECT_EQ(view.data, memory);
  EXPECT_EQ(view.stride[0], 2);
  EXPECT_EQ(view.offset(2, 1), 5);
}

}  // namespace
