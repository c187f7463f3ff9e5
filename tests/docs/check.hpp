// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the guide's snippets are tested with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "winnow/status.hpp"

inline void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

inline void check(const winnow::status& status) {
  check(status.ok(), status.message());
}

inline void check_near(float value, float expected, const char* what) {
  check(std::fabs(value - expected) <= 1e-5f, what);
}

/// Numbers in [-1, 1) that look random.
inline std::vector<float> numbers(std::int64_t count, std::uint32_t seed) {
  std::vector<float> result;
  std::uint32_t state = seed * 2654435761u + 1u;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    result.push_back(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
  }
  return result;
}
