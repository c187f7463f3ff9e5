// SPDX-License-Identifier: Apache-2.0
/// \file
/// Element types: `winnow::half` and `winnow::bfloat16`, `dtype`, and conversions to and from
/// float.
///
/// With CUDA (target definition `WINNOW_WITH_CUDA=1`, or a CUDA compiler) the two are the toolkit's
/// `__half` and `__nv_bfloat16`. Without it they are stand-ins of the same size and bit layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__) && !defined(WINNOW_WITH_CUDA)
#define WINNOW_WITH_CUDA 1
#endif

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

/// Marks a function that runs on the host and on the device.
#if defined(__CUDACC__)
#define WINNOW_HOST_DEVICE __host__ __device__
#else
#define WINNOW_HOST_DEVICE
#endif

namespace winnow {

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
using half = __half;
using bfloat16 = __nv_bfloat16;
#else
/// IEEE binary16; the bits of CUDA's `__half`.
struct alignas(2) half {
  std::uint16_t bits;
};
/// The upper half of a binary32; the bits of CUDA's `__nv_bfloat16`.
struct alignas(2) bfloat16 {
  std::uint16_t bits;
};
#endif

static_assert(sizeof(half) == 2 && sizeof(bfloat16) == 2);

// GCC takes the enumerator for a shadow of the type.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#endif
/// The element type of a type-erased view.
enum class dtype : int {
  float32 = 0,
  float16,
  bfloat16,
  float64,  ///< reference only
  int32,    ///< coordinates only
  uint8     ///< masks only
};
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

constexpr const char* to_string(dtype type) noexcept {
  switch (type) {
    case dtype::float32:
      return "float32";
    case dtype::float16:
      return "float16";
    case dtype::bfloat16:
      return "bfloat16";
    case dtype::float64:
      return "float64";
    case dtype::int32:
      return "int32";
    case dtype::uint8:
      return "uint8";
  }
  return "unknown";
}

/// Bytes of one element; 0 for a value outside the enumeration.
constexpr std::size_t size_of(dtype type) noexcept {
  switch (type) {
    case dtype::float64:
      return 8;
    case dtype::float32:
    case dtype::int32:
      return 4;
    case dtype::float16:
    case dtype::bfloat16:
      return 2;
    case dtype::uint8:
      return 1;
  }
  return 0;
}

/// `dtype_of<T>`: the dtype of an element type, const or not.
template <class T>
inline constexpr dtype dtype_of = dtype_of<std::remove_cv_t<T>>;
template <>
inline constexpr dtype dtype_of<float> = dtype::float32;
template <>
inline constexpr dtype dtype_of<double> = dtype::float64;
template <>
inline constexpr dtype dtype_of<half> = dtype::float16;
template <>
inline constexpr dtype dtype_of<bfloat16> = dtype::bfloat16;
template <>
inline constexpr dtype dtype_of<std::int32_t> = dtype::int32;
template <>
inline constexpr dtype dtype_of<std::uint8_t> = dtype::uint8;

/// Host conversion to float. Exact.
inline float to_float(half value) noexcept {
  std::uint16_t h;
  std::memcpy(&h, &value, 2);
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7fffu;
  std::uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {  // zero, subnormal: magnitude · 2⁻²⁴
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &small, 4);
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline float to_float(bfloat16 value) noexcept {
  std::uint16_t b;
  std::memcpy(&b, &value, 2);
  const std::uint32_t bits = static_cast<std::uint32_t>(b) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline float to_float(float value) noexcept {
  return value;
}
inline double to_float(double value) noexcept {
  return value;
}

/// Host conversion from float, round to nearest even; NaN stays NaN, overflow becomes infinity.
template <class T>
T from_float(float value) noexcept;

template <>
inline float from_float<float>(float value) noexcept {
  return value;
}

template <>
inline half from_float<half>(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t h;
  if (magnitude > 0x7f800000u) {
    h = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 65536 and above
    h = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal in half; may round up to infinity
    const std::uint32_t rebased = magnitude - (112u << 23);
    h = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  } else {
    // Adding 0.5 puts the ulp at 2⁻²⁴, half's subnormal step, so the FPU rounds for us.
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    std::memcpy(&h, &shifted, 4);
    h -= 0x3f000000u;
  }
  const auto packed = static_cast<std::uint16_t>(sign | h);
  half result;
  std::memcpy(static_cast<void*>(&result), &packed, 2);
  return result;
}

template <>
inline bfloat16 from_float<bfloat16>(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  std::uint16_t b;
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    b = static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  } else {
    b = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  bfloat16 result;
  std::memcpy(static_cast<void*>(&result), &b, 2);
  return result;
}

}  // namespace winnow
