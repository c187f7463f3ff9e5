// SPDX-License-Identifier: Apache-2.0
/// \file
/// Host access to rows of elements whose type is a run-time `dtype`.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/storage.hpp"

namespace winnow::detail {

/// Calls `body(pointer)` with `base` as a pointer to the floating-point type that `type` names.
/// `Void` is `void` or `const void`. Arguments were validated, so other types do not occur.
template <class Void, class Body>
void visit_floating(Void* base, dtype type, Body&& body) {
  const auto as = [&](auto zero) {
    using element = decltype(zero);
    using pointer = std::conditional_t<std::is_const_v<Void>, const element*, element*>;
    return static_cast<pointer>(base);
  };
  switch (type) {
    case dtype::float32:
      return body(as(float{}));
    case dtype::float16:
      return body(as(half{}));
    case dtype::bfloat16:
      return body(as(bfloat16{}));
    case dtype::float64:
      return body(as(double{}));
    case dtype::int32:
    case dtype::uint8:
      return;
  }
}

/// Converts `count` contiguous elements, starting at element `offset`, to `A`.
template <class A>
void load_row(const void* base, dtype type, std::int64_t offset, std::int64_t count, A* out) {
  visit_floating(base, type, [&](const auto* elements) {
    for (std::int64_t i = 0; i < count; ++i)
      out[i] = static_cast<A>(to_float(elements[offset + i]));
  });
}

/// Rounds `count` values to the element type; with `accumulate`, adds to what is there first.
template <class A>
void store_row(void* base, dtype type, std::int64_t offset, std::int64_t count, const A* in,
               bool accumulate = false) {
  visit_floating(base, type, [&](auto* elements) {
    using element = std::remove_pointer_t<decltype(elements)>;
    for (std::int64_t i = 0; i < count; ++i) {
      element& target = elements[offset + i];
      const A sum = accumulate ? static_cast<A>(to_float(target)) + in[i] : in[i];
      if constexpr (std::is_same_v<element, double>)
        target = static_cast<double>(sum);
      else
        target = from_float<element>(static_cast<float>(sum));
    }
  });
}

}  // namespace winnow::detail
