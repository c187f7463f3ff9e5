// SPDX-License-Identifier: Apache-2.0
/// \file
/// FP32 operations that round alike on host and device, whatever the compiler's contraction and
/// fast-math settings. Windows and relative indices are built from these alone, which is why host
/// and device agree on them bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "winnow/storage.hpp"

namespace winnow::detail {

#if defined(__CUDA_ARCH__)
WINNOW_HOST_DEVICE inline float multiply(float a, float b) {
  return __fmul_rn(a, b);
}
WINNOW_HOST_DEVICE inline float add(float a, float b) {
  return __fadd_rn(a, b);
}
WINNOW_HOST_DEVICE inline float divide(float a, float b) {
  return __fdiv_rn(a, b);
}
WINNOW_HOST_DEVICE inline float square_root(float a) {
  return __fsqrt_rn(a);
}
WINNOW_HOST_DEVICE inline float multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
WINNOW_HOST_DEVICE inline std::uint32_t float_bits(float a) {
  return __float_as_uint(a);
}
#else
// The empty statement hides the product from the optimiser, which could otherwise contract it with
// an addition that follows inlining.
inline float multiply(float a, float b) {
  float product = a * b;
#if defined(__GNUC__)
  __asm__("" : "+m"(product));
#endif
  return product;
}
inline float add(float a, float b) {
  return a + b;
}
inline float divide(float a, float b) {
  return a / b;
}
inline float square_root(float a) {
  return std::sqrt(a);
}
inline float multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline std::uint32_t float_bits(float a) {
  std::uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return bits;
}
#endif

}  // namespace winnow::detail
