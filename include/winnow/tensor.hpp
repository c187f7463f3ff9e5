// SPDX-License-Identifier: Apache-2.0
/// \file
/// Non-owning strided views, on host or device memory.
///
/// Shapes and strides count elements, as int64. `tensor_view<T, Rank>` knows its element type;
/// `tensor_view<void, Rank>` and `tensor_view<const void, Rank>` carry it as a `dtype` and are what
/// type-erased calls take. A view whose `data` is null stands for "absent".
#pragma once

#include <initializer_list>
#include <type_traits>

#include "winnow/storage.hpp"

namespace winnow {

/// Shape and strides, outermost dimension first.
template <int Rank>
struct tensor_layout {
  std::int64_t shape[Rank] = {};
  std::int64_t stride[Rank] = {};

  /// The element offset of an index tuple, which is not checked.
  template <class... Index>
  WINNOW_HOST_DEVICE constexpr std::int64_t offset(Index... index) const noexcept {
    static_assert(sizeof...(Index) >= 1 && sizeof...(Index) <= Rank, "one index a dimension");
    const std::int64_t indices[] = {static_cast<std::int64_t>(index)...};
    std::int64_t sum = 0;
    for (int d = 0; d < static_cast<int>(sizeof...(Index)); ++d) sum += indices[d] * stride[d];
    return sum;
  }
};

/// The layout of a C-order array without gaps.
template <int Rank>
constexpr tensor_layout<Rank> packed_layout(const std::int64_t (&shape)[Rank]) noexcept {
  tensor_layout<Rank> layout;
  std::int64_t step = 1;
  for (int d = Rank - 1; d >= 0; --d) {
    layout.shape[d] = shape[d];
    layout.stride[d] = step;
    // Unsigned, so that an absurd shape wraps instead of overflowing; validation rejects it.
    step = static_cast<std::int64_t>(static_cast<std::uint64_t>(step) *
                                     static_cast<std::uint64_t>(shape[d]));
  }
  return layout;
}

template <class T, int Rank>
struct tensor_view : tensor_layout<Rank> {
  using element_type = T;
  T* data = nullptr;

  constexpr tensor_view() noexcept = default;
  constexpr tensor_view(T* data_, const tensor_layout<Rank>& layout) noexcept
      : tensor_layout<Rank>(layout), data(data_) {}
  /// A packed view.
  constexpr tensor_view(T* data_, const std::int64_t (&shape_)[Rank]) noexcept
      : tensor_layout<Rank>(packed_layout(shape_)), data(data_) {}
  /// From a view of mutable elements to one of const elements.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>>>
  constexpr tensor_view(const tensor_view<U, Rank>& other) noexcept
      : tensor_layout<Rank>(other), data(other.data) {}

  template <class... Index>
  WINNOW_HOST_DEVICE constexpr T& operator()(Index... index) const noexcept {
    return data[this->offset(index...)];
  }
};

namespace detail {

template <class Void, int Rank>
struct erased_view : tensor_layout<Rank> {
  using element_type = Void;
  Void* data = nullptr;
  dtype type = dtype::float32;

  constexpr erased_view() noexcept = default;
  constexpr erased_view(Void* data_, dtype type_, const tensor_layout<Rank>& layout) noexcept
      : tensor_layout<Rank>(layout), data(data_), type(type_) {}
  /// A packed view.
  constexpr erased_view(Void* data_, dtype type_, const std::int64_t (&shape_)[Rank]) noexcept
      : tensor_layout<Rank>(packed_layout(shape_)), data(data_), type(type_) {}
};

}  // namespace detail

/// A mutable view whose element type is a run-time `dtype`.
template <int Rank>
struct tensor_view<void, Rank> : detail::erased_view<void, Rank> {
  using detail::erased_view<void, Rank>::erased_view;
  constexpr tensor_view() noexcept = default;
  template <class T, class = std::enable_if_t<!std::is_void_v<T> && !std::is_const_v<T>>>
  constexpr tensor_view(const tensor_view<T, Rank>& other) noexcept
      : detail::erased_view<void, Rank>(other.data, dtype_of<T>, other) {}
};

/// A read-only view whose element type is a run-time `dtype`.
template <int Rank>
struct tensor_view<const void, Rank> : detail::erased_view<const void, Rank> {
  using detail::erased_view<const void, Rank>::erased_view;
  constexpr tensor_view() noexcept = default;
  template <class T, class = std::enable_if_t<!std::is_void_v<T>>>
  constexpr tensor_view(const tensor_view<T, Rank>& other) noexcept
      : detail::erased_view<const void, Rank>(other.data, dtype_of<std::remove_const_t<T>>, other) {
  }
  constexpr tensor_view(const tensor_view<void, Rank>& other) noexcept
      : detail::erased_view<const void, Rank>(other.data, other.type, other) {}
};

}  // namespace winnow
