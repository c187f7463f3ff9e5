// SPDX-License-Identifier: Apache-2.0
/// \file
/// Turns the bytes of a fuzzer into arguments: mostly plausible ones, so that they get past the first
/// check, with wild ones among them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace winnow::fuzz {

class byte_source {
 public:
  byte_source(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  /// The next bytes as a T; zeros once they have run out.
  template <class T>
  T take() {
    T value{};
    const std::size_t available = size_ < sizeof(T) ? size_ : sizeof(T);
    if (available > 0) std::memcpy(&value, data_, available);
    data_ += available;
    size_ -= available;
    return value;
  }

  /// In [0, count).
  int pick(int count) { return take<std::uint8_t>() % count; }
  /// True in one of `odds` cases, and never once the bytes have run out.
  bool rarely(int odds = 16) { return pick(odds) == odds - 1; }

  /// Any integer, the borders of common types preferred.
  std::int64_t wild_integer() {
    constexpr std::int64_t borders[] = {-1,
                                        0,
                                        1,
                                        256,
                                        257,
                                        65536,
                                        std::numeric_limits<std::int32_t>::max(),
                                        std::int64_t{1} << 31,
                                        std::int64_t{1} << 32,
                                        std::int64_t{1} << 61,
                                        std::numeric_limits<std::int32_t>::min(),
                                        std::numeric_limits<std::int64_t>::max(),
                                        std::numeric_limits<std::int64_t>::min()};
    const int choice = pick(16);
    return choice < 13 ? borders[choice] : take<std::int64_t>();
  }
  /// `usual`, or rarely any integer.
  std::int64_t integer(std::int64_t usual) { return rarely() ? wild_integer() : usual; }
  int small_integer(int usual) {
    return static_cast<int>(static_cast<std::uint32_t>(static_cast<std::uint64_t>(integer(usual))));
  }

  /// Any float, NaN, infinities and extremes preferred.
  float wild_real() {
    using limits = std::numeric_limits<float>;
    constexpr float borders[] = {0.0f,
                                 -0.0f,
                                 -1.0f,
                                 limits::infinity(),
                                 -limits::infinity(),
                                 limits::quiet_NaN(),
                                 limits::max(),
                                 limits::min(),
                                 limits::denorm_min(),
                                 0x1p30f,
                                 0x1p31f};
    const int choice = pick(16);
    return choice < 11 ? borders[choice] : take<float>();
  }
  float real(float usual) { return rarely() ? wild_real() : usual; }
  /// In [-8, 8), or rarely any float.
  float coordinate() {
    return rarely(64) ? wild_real() : static_cast<float>(take<std::int16_t>()) * 0x1p-12f;
  }

  void skip(std::size_t bytes) {
    data_ += bytes;
    size_ -= bytes;
  }

  [[nodiscard]] std::size_t left() const { return size_; }
  [[nodiscard]] const std::uint8_t* data() const { return data_; }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace winnow::fuzz
