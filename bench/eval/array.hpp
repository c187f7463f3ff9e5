// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "winnow/tensor.hpp"

namespace winnow::eval {

/// Host memory with an element type known at run time.
struct array {
  dtype type = dtype::float32;
  std::vector<std::byte> bytes;

  array() = default;
  /// Zeros.
  array(dtype type_, std::int64_t elements)
      : type(type_), bytes(static_cast<std::size_t>(elements) * winnow::size_of(type_)) {}

  [[nodiscard]] std::int64_t elements() const {
    return static_cast<std::int64_t>(bytes.size() / winnow::size_of(type));
  }
  template <class T>
  [[nodiscard]] T* as() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  [[nodiscard]] const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <int Rank>
  [[nodiscard]] tensor_view<void, Rank> view(const std::int64_t (&shape)[Rank]) {
    return {bytes.data(), type, shape};
  }
  template <int Rank>
  [[nodiscard]] tensor_view<const void, Rank> view(const std::int64_t (&shape)[Rank]) const {
    return {bytes.data(), type, shape};
  }
};

/// Calls `function(T{})` with the element type of a floating dtype.
template <class Function>
auto visit_floating(dtype type, Function&& function) {
  switch (type) {
    case dtype::float32:
      return function(float{});
    case dtype::float64:
      return function(double{});
    case dtype::float16:
      return function(half{});
    case dtype::bfloat16:
      return function(bfloat16{});
    default:
      throw std::logic_error(std::string("no floating type: ") + to_string(type));
  }
}

/// The elements rounded to another type.
array converted(const array& source, dtype type);

/// How far `result` is from `expected`.
struct error_norms {
  double largest = 0.0;   ///< max |result - expected|
  double relative = 0.0;  ///< ‖result - expected‖ / ‖expected‖; 0 where both are 0
};
error_norms error_of(const array& result, const array& expected);

}  // namespace winnow::eval
