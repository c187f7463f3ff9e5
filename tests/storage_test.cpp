// SPDX-License-Identifier: Apache-2.0
#include "winnow/storage.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>

#include <gtest/gtest.h>

namespace {

template <class T>
T from_bits(std::uint32_t bits) {
  const auto narrow = static_cast<std::uint16_t>(bits);
  T value;
  std::memcpy(static_cast<void*>(&value), &narrow, 2);  // CUDA's types hide their bits
  return value;
}

template <class T>
std::uint32_t to_bits(T value) {
  std::uint16_t bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}

float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

/// The parameters of a 16-bit IEEE format, from which the tests derive everything else.
template <class T>
struct format;
template <>
struct format<winnow::half> {
  static constexpr int fraction_bits = 10;
  static constexpr int bias = 15;
};
template <>
struct format<winnow::bfloat16> {
  static constexpr int fraction_bits = 7;
  static constexpr int bias = 127;
};

template <class T>
constexpr std::uint32_t infinity_bits = (2u * format<T>::bias + 1u) << format<T>::fraction_bits;

/// The value of non-negative bits by the textbook formula; infinity reads as the next power of two.
template <class T>
double textbook(std::uint32_t bits) {
  constexpr int f = format<T>::fraction_bits;
  const int exponent = static_cast<int>(bits >> f);
  const double fraction = static_cast<double>(bits & ((1u << f) - 1)) / (1 << f);
  return exponent == 0 ? std::ldexp(fraction, 1 - format<T>::bias)
                       : std::ldexp(1 + fraction, exponent - format<T>::bias);
}

/// Rounds a finite double to the format, ties to even; too large a value becomes infinity.
template <class T>
double round_to(double value) {
  constexpr int f = format<T>::fraction_bits;
  const int exponent = value == 0 ? 0 : std::ilogb(value);
  const int step = std::max(exponent, 1 - format<T>::bias) - f;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -step)), step);
  const double limit = std::ldexp(1.0, format<T>::bias + 1);
  return std::fabs(rounded) >= limit ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                     : rounded;
}

template <class T>
class Storage16 : public testing::Test {};
using storage16_types = testing::Types<winnow::half, winnow::bfloat16>;
TYPED_TEST_SUITE(Storage16, storage16_types, );  // without the comma, clang warns about the macro

TYPED_TEST(Storage16, ToFloatIsExactForAllBits) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const std::uint32_t magnitude = bits & 0x7fff;
    const float value = winnow::to_float(from_bits<TypeParam>(bits));
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    if (magnitude > infinity_bits<TypeParam>) {
      ASSERT_TRUE(std::isnan(value)) << bits;
    } else if (magnitude == infinity_bits<TypeParam>) {
      ASSERT_TRUE(std::isinf(value)) << bits;
    } else {
      ASSERT_EQ(std::fabs(value), textbook<TypeParam>(magnitude)) << bits;
    }
  }
}

TYPED_TEST(Storage16, RoundTripsAllBits) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = winnow::to_float(from_bits<TypeParam>(bits));
    const auto back = winnow::from_float<TypeParam>(value);
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(winnow::to_float(back))) << bits;
    else
      ASSERT_EQ(to_bits(back), bits);
  }
}

TYPED_TEST(Storage16, RoundsToNearestEvenAtEveryMidpoint) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (std::uint32_t bits = 0; bits < infinity_bits<TypeParam>; ++bits) {
    const auto midpoint =
        static_cast<float>((textbook<TypeParam>(bits) + textbook<TypeParam>(bits + 1)) / 2);
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    const auto rounded = [](float value) { return to_bits(winnow::from_float<TypeParam>(value)); };
    ASSERT_EQ(rounded(midpoint), even) << midpoint;
    ASSERT_EQ(rounded(std::nextafter(midpoint, 0.0f)), bits) << midpoint;
    ASSERT_EQ(rounded(std::nextafter(midpoint, infinity)), bits + 1) << midpoint;
    ASSERT_EQ(rounded(-midpoint), even | 0x8000) << midpoint;
    ASSERT_EQ(rounded(std::nextafter(-midpoint, 0.0f)), bits | 0x8000) << midpoint;
    ASSERT_EQ(rounded(std::nextafter(-midpoint, -infinity)), (bits + 1) | 0x8000) << midpoint;
  }
}

TYPED_TEST(Storage16, RoundsRandomBitsLikeTheFormula) {
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    const float value = float_from_bits(static_cast<std::uint32_t>(random()));
    const float rounded = winnow::to_float(winnow::from_float<TypeParam>(value));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(rounded));
    } else if (std::isinf(value)) {
      ASSERT_EQ(rounded, value);
    } else {
      ASSERT_EQ(rounded, round_to<TypeParam>(value)) << value;
      ASSERT_EQ(std::signbit(rounded), std::signbit(value)) << value;
    }
  }
}

TYPED_TEST(Storage16, OverflowsToInfinity) {
  const auto rounded = [](float value) { return to_bits(winnow::from_float<TypeParam>(value)); };
  EXPECT_EQ(rounded(std::numeric_limits<float>::max()), infinity_bits<TypeParam>);
  EXPECT_EQ(rounded(std::numeric_limits<float>::lowest()), infinity_bits<TypeParam> | 0x8000);
  EXPECT_EQ(rounded(std::numeric_limits<float>::infinity()), infinity_bits<TypeParam>);
  EXPECT_EQ(rounded(-std::numeric_limits<float>::infinity()), infinity_bits<TypeParam> | 0x8000);
}

TYPED_TEST(Storage16, KeepsEveryNan) {
  // Quiet, signalling, all of the fraction, and a payload that lies only in bits that are dropped.
  for (const std::uint32_t bits : {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0x7f801fffu}) {
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      const auto value = winnow::from_float<TypeParam>(float_from_bits(bits | sign));
      EXPECT_TRUE(std::isnan(winnow::to_float(value))) << std::hex << (bits | sign);
    }
  }
}

TYPED_TEST(Storage16, KeepsTheSignOfZero) {
  EXPECT_EQ(to_bits(winnow::from_float<TypeParam>(0.0f)), 0u);
  EXPECT_EQ(to_bits(winnow::from_float<TypeParam>(-0.0f)), 0x8000u);
  EXPECT_EQ(to_bits(winnow::from_float<TypeParam>(std::numeric_limits<float>::denorm_min())), 0u);
}

TEST(Storage, WideTypesPassThrough) {
  EXPECT_EQ(winnow::to_float(1.25f), 1.25f);
  EXPECT_EQ(winnow::to_float(0.1), 0.1);
  EXPECT_EQ(winnow::from_float<float>(0.1f), 0.1f);
}

TEST(Storage, DtypesMatchTheirTypes) {
  using winnow::dtype;
  static_assert(winnow::dtype_of<float> == dtype::float32);
  static_assert(winnow::dtype_of<winnow::half> == dtype::float16);
  static_assert(winnow::dtype_of<winnow::bfloat16> == dtype::bfloat16);
  static_assert(winnow::dtype_of<double> == dtype::float64);
  static_assert(winnow::dtype_of<std::int32_t> == dtype::int32);
  static_assert(winnow::dtype_of<std::uint8_t> == dtype::uint8);
  static_assert(winnow::dtype_of<const winnow::half> == dtype::float16);
  EXPECT_EQ(winnow::size_of(dtype::float32), sizeof(float));
  EXPECT_EQ(winnow::size_of(dtype::float16), sizeof(winnow::half));
  EXPECT_EQ(winnow::size_of(dtype::bfloat16), sizeof(winnow::bfloat16));
  EXPECT_EQ(winnow::size_of(dtype::float64), sizeof(double));
  EXPECT_EQ(winnow::size_of(dtype::int32), sizeof(std::int32_t));
  EXPECT_EQ(winnow::size_of(dtype::uint8), sizeof(std::uint8_t));
  EXPECT_EQ(winnow::size_of(static_cast<dtype>(99)), 0u);
  EXPECT_STREQ(to_string(dtype::bfloat16), "bfloat16");
  EXPECT_STREQ(to_string(static_cast<dtype>(99)), "unknown");
}

}  // namespace
