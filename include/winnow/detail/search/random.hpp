// SPDX-License-Identifier: Apache-2.0
/// \file
/// Random numbers that are the same with every standard library, which std's distributions are not.
#pragma once

#include <cstdint>

namespace winnow::detail {

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). Its whole
/// state is one number, which also is its seed.
class search_random {
 public:
  explicit search_random(std::uint64_t state) noexcept : state_(state) {}

  [[nodiscard]] std::uint64_t state() const noexcept { return state_; }

  std::uint64_t next() noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /// Uniform in [0, bound), exactly (Lemire: Fast Random Integer Generation in an Interval, 2019).
  /// \param bound > 0.
  std::uint32_t below(std::uint32_t bound) noexcept {
    for (;;) {
      const std::uint64_t product = (next() >> 32) * bound;
      const auto low = static_cast<std::uint32_t>(product);
      // Products below 2³² mod bound are one too many for some results.
      if (low >= bound || low >= (0u - bound) % bound)
        return static_cast<std::uint32_t>(product >> 32);
    }
  }

  bool happens(double probability) noexcept {
    return static_cast<double>(next() >> 11) * 0x1p-53 < probability;
  }

 private:
  std::uint64_t state_;
};

}  // namespace winnow::detail
