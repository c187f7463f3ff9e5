// SPDX-License-Identifier: Apache-2.0
/// \file
/// Checks that any view has to pass before its memory may be touched.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>

#include "winnow/status.hpp"
#include "winnow/tensor.hpp"

namespace winnow::detail {

/// `product = a * b` unless that overflows int64.
inline bool multiply_checked(std::int64_t a, std::int64_t b, std::int64_t& product) noexcept {
  return !__builtin_mul_overflow(a, b, &product);
}

/// No negative dimension, inner stride 1, and every element's byte offset fits int64.
template <int Rank>
status check_layout(const char* name, const tensor_layout<Rank>& view, dtype type) noexcept {
  const auto bytes = static_cast<std::int64_t>(size_of(type));
  WINNOW_REQUIRE(bytes > 0, "%s: dtype %d is not one of winnow's", name, static_cast<int>(type));
  bool empty = false;
  for (int d = 0; d < Rank; ++d) {
    WINNOW_REQUIRE(view.shape[d] >= 0, "%s: shape[%d] is %lld, must be >= 0", name, d,
                   static_cast<long long>(view.shape[d]));
    empty = empty || view.shape[d] == 0;
  }
  WINNOW_REQUIRE(view.stride[Rank - 1] == 1 || view.shape[Rank - 1] <= 1,
                 "%s: the innermost stride is %lld, must be 1", name,
                 static_cast<long long>(view.stride[Rank - 1]));
  if (empty) return {};
  std::int64_t lowest = 0;
  std::int64_t highest = 0;
  for (int d = 0; d < Rank; ++d) {
    std::int64_t reach = 0;
    std::int64_t& end = view.stride[d] < 0 ? lowest : highest;
    const bool fits = multiply_checked(view.shape[d] - 1, view.stride[d], reach) &&
                      multiply_checked(reach, bytes, reach) &&
                      !__builtin_add_overflow(end, reach, &end);
    WINNOW_REQUIRE(fits, "%s: shape[%d] = %lld with stride[%d] = %lld exceeds the address space",
                   name, d, static_cast<long long>(view.shape[d]), d,
                   static_cast<long long>(view.stride[d]));
  }
  return {};
}

template <int Rank>
bool is_empty(const tensor_layout<Rank>& view) noexcept {
  for (int d = 0; d < Rank; ++d)
    if (view.shape[d] == 0) return true;
  return false;
}

/// A sound layout, and memory unless the view is empty.
template <int Rank>
status check_input(const char* name, const tensor_view<const void, Rank>& view) noexcept {
  WINNOW_TRY(check_layout(name, view, view.type));
  WINNOW_REQUIRE(view.data != nullptr || is_empty(view), "%s: is null", name);
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  WINNOW_REQUIRE(address % size_of(view.type) == 0, "%s: address %p is not aligned to %s", name,
                 view.data, to_string(view.type));
  return {};
}

/// As `check_input`, and no two indices share an element: taken by rising stride, each dimension
/// steps over all of the smaller ones.
template <int Rank>
status check_output(const char* name, const tensor_view<void, Rank>& view) noexcept {
  WINNOW_TRY(check_input<Rank>(name, view));
  if (is_empty(view)) return {};
  int by_stride[Rank];
  for (int d = 0; d < Rank; ++d) {
    by_stride[d] = d;
    for (int e = d; e > 0 && view.stride[by_stride[e]] < view.stride[by_stride[e - 1]]; --e)
      std::swap(by_stride[e], by_stride[e - 1]);
  }
  std::int64_t extent = 1;  // elements from the first to the last that smaller dimensions reach
  for (int d : by_stride) {
    if (view.shape[d] == 1) continue;
    WINNOW_REQUIRE(view.stride[d] >= extent,
                   "%s: stride[%d] = %lld makes elements overlap, must be >= %lld", name, d,
                   static_cast<long long>(view.stride[d]), static_cast<long long>(extent));
    extent += (view.shape[d] - 1) * view.stride[d];
  }
  return {};
}

}  // namespace winnow::detail
