// SPDX-License-Identifier: Apache-2.0
/// \file
/// A strict reader and a writer of NumPy's .npy files.
///
/// Source: numpy.lib.format, versions 1.0 to 3.0. Only little endian arrays in C order are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/input_error.hpp"
#include "winnow/storage.hpp"

namespace winnow::support {

enum class npy_element : int { float16, float32, float64, int32, int64, uint8 };

/// The element as numpy writes it, for example "<f4".
const char* descriptor_of(npy_element element) noexcept;
/// Bytes of one element.
std::size_t size_of(npy_element element) noexcept;

/// `npy_element_of<T>`: the element that holds a T.
template <class T>
inline constexpr npy_element npy_element_of = npy_element_of<std::remove_cv_t<T>>;
template <>
inline constexpr npy_element npy_element_of<half> = npy_element::float16;
template <>
inline constexpr npy_element npy_element_of<float> = npy_element::float32;
template <>
inline constexpr npy_element npy_element_of<double> = npy_element::float64;
template <>
inline constexpr npy_element npy_element_of<std::int32_t> = npy_element::int32;
template <>
inline constexpr npy_element npy_element_of<std::int64_t> = npy_element::int64;
template <>
inline constexpr npy_element npy_element_of<std::uint8_t> = npy_element::uint8;

struct npy_array {
  npy_element element = npy_element::float32;  ///< booleans are read as uint8
  std::vector<std::int64_t> shape;             ///< empty for a scalar
  std::vector<std::byte> data;                 ///< C order, without gaps

  /// The product of the shape; 1 for a scalar.
  [[nodiscard]] std::int64_t elements() const noexcept {
    return static_cast<std::int64_t>(data.size() / size_of(element));
  }
  /// The elements, which must be of type T: look at `element` first.
  /// \throw std::logic_error if they are not.
  template <class T>
  [[nodiscard]] const T* as() const {
    if (element != npy_element_of<T>) throw std::logic_error("npy_array: wrong element type");
    return reinterpret_cast<const T*>(data.data());
  }
  /// The elements converted from whatever type they have.
  [[nodiscard]] std::vector<double> to_doubles() const;
};

/// A shape as numpy prints it: "(3, 4)", "(3,)", "()".
std::string shape_text(const std::vector<std::int64_t>& shape);

/// Reads a whole file's bytes.
/// \param name stands for the file in messages.
/// \throw input_error for anything but one complete array. Allocates no more than `bytes` holds.
npy_array parse_npy(std::vector<std::byte> bytes, const std::string& name);

/// \throw input_error, also for a missing file or one that is not a regular file.
npy_array read_npy(const std::filesystem::path& path);

/// Writes format version 1.0 to a temporary name beside `path` and renames it, so that `path` is
/// either untouched or complete.
/// \param data elements in C order; ignored where the shape holds none.
/// \throw input_error if the file cannot be written.
void write_npy(const std::filesystem::path& path, npy_element element,
               const std::vector<std::int64_t>& shape, const void* data);

template <class T>
void write_npy(const std::filesystem::path& path, const std::vector<std::int64_t>& shape,
               const std::vector<T>& data) {
  write_npy(path, npy_element_of<T>, shape, data.data());
}

}  // namespace winnow::support
