// SPDX-License-Identifier: Apache-2.0
/// \file
/// A token's channels in the registers of a few lanes: 24 to a lane, as three pieces of 16 bytes that
/// alternate between the lanes, so that a load of the group covers whole sectors. All channel counts of
/// the network are 24 times a power of two.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "winnow/storage.hpp"

namespace winnow::swin {

inline constexpr int piece = 8;
inline constexpr int pieces = 3;
inline constexpr int lane_channels = piece * pieces;

template <class T>
struct alignas(16) packed_piece {
  T values[piece];
};

/// Sum over the `Lanes` neighbouring lanes of a row; every lane gets it.
template <int Lanes>
__device__ __forceinline__ float row_sum(float value) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

__device__ __forceinline__ std::uint32_t two(half, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ __forceinline__ std::uint32_t two(bfloat16, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

template <class T>
__device__ __forceinline__ std::uint32_t sum_of_two(T, std::uint32_t a, std::uint32_t b) {
  using pair_type = std::conditional_t<std::is_same_v<T, half>, __half2, __nv_bfloat162>;
  const pair_type sum =
      __hadd2(reinterpret_cast<const pair_type&>(a), reinterpret_cast<const pair_type&>(b));
  return reinterpret_cast<const std::uint32_t&>(sum);
}

/// A token's channels as they are stored. A load fills nothing but these registers, so that loads which
/// depend on conditions need not end before the next one begins.
template <class T, int Lanes>
struct stored_row {
  uint4 values[pieces];

  /// Zeros where the row is not there.
  __device__ __forceinline__ void load(const T* row, bool present, int lane) {
    const uint4* first = reinterpret_cast<const uint4*>(row) + lane;
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      values[p] = {};
      if (present) values[p] = first[p * Lanes];
    }
  }
  /// From here on the compiler computes again what it knows of the values, rather than keep it in
  /// registers.
  __device__ __forceinline__ void renew() {
#pragma unroll
    for (uint4& each : values)
      asm volatile("" : "+r"(each.x), "+r"(each.y), "+r"(each.z), "+r"(each.w));
  }
  __device__ __forceinline__ void store(T* row, int lane) const {
    uint4* first = reinterpret_cast<uint4*>(row) + lane;
#pragma unroll
    for (int p = 0; p < pieces; ++p)  // an assignment may become four
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(first + p * Lanes),
                   "r"(values[p].x), "r"(values[p].y), "r"(values[p].z), "r"(values[p].w)
                   : "memory");
  }
  /// The sums as they would be stored.
  __device__ __forceinline__ void add(const stored_row& other) {
#pragma unroll
    for (int p = 0; p < pieces; ++p)
      values[p] = {sum_of_two(T(), values[p].x, other.values[p].x),
                   sum_of_two(T(), values[p].y, other.values[p].y),
                   sum_of_two(T(), values[p].z, other.values[p].z),
                   sum_of_two(T(), values[p].w, other.values[p].w)};
  }
};

template <class T, int Lanes>
struct token_row {
  static constexpr int channels = Lanes * lane_channels;
  using stored_type = stored_row<T, Lanes>;
  float x[lane_channels];

  __device__ __forceinline__ static int first_channel(int lane, int p) {
    return (p * Lanes + lane) * piece;
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) x[i] = 0.0f;
  }
  /// From an array of T or of float.
  template <class Stored>
  __device__ __forceinline__ void load(const Stored* row, int lane) {
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      const packed_piece<Stored> loaded =
          *reinterpret_cast<const packed_piece<Stored>*>(row + first_channel(lane, p));
      unpack(loaded, p);
    }
  }
  template <class Stored>
  __device__ __forceinline__ void unpack(const packed_piece<Stored>& packed, int p) {
#pragma unroll
    for (int i = 0; i < piece; ++i) x[p * piece + i] = static_cast<float>(packed.values[i]);
  }
  /// From 16 bytes as they are stored, which a condition in front of their load leaves one register each.
  __device__ __forceinline__ void unpack_stored(const uint4& stored, int p) {
    unpack(reinterpret_cast<const packed_piece<T>&>(stored), p);
  }
  __device__ __forceinline__ static token_row from(const stored_type& stored) {
    token_row result;
#pragma unroll
    for (int p = 0; p < pieces; ++p) result.unpack_stored(stored.values[p], p);
    return result;
  }
  __device__ __forceinline__ stored_type stored() const {
    stored_type result;
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      const float* v = x + p * piece;
      result.values[p] = {two(T(), v[0], v[1]), two(T(), v[2], v[3]), two(T(), v[4], v[5]),
                          two(T(), v[6], v[7])};
    }
    return result;
  }
  __device__ __forceinline__ void store(T* row, int lane) const {
    stored().store(row, lane);
  }
  __device__ __forceinline__ float sum() const {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) total += x[i];
    return total;
  }
  __device__ __forceinline__ float squares_around(float mean) const {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) total += (x[i] - mean) * (x[i] - mean);
    return total;
  }
  __device__ __forceinline__ float magnitude() const {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) total += fabsf(x[i]);
    return row_sum<Lanes>(total) * (1.0f / channels);
  }
  /// (x - mean) * scale * weight + bias.
  __device__ __forceinline__ token_row scaled(float mean, float scale, const token_row& weight,
                                              const token_row& bias) const {
    token_row result;
#pragma unroll
    for (int i = 0; i < lane_channels; ++i)
      result.x[i] = (x[i] - mean) * scale * weight.x[i] + bias.x[i];
    return result;
  }
  __device__ __forceinline__ float mean() const {
    return row_sum<Lanes>(sum()) * (1.0f / channels);
  }
  __device__ __forceinline__ float scale_around(float mean, float epsilon) const {
    return rsqrtf(row_sum<Lanes>(squares_around(mean)) * (1.0f / channels) + epsilon);
  }
  __device__ __forceinline__ token_row normed(const stored_type& weight, const stored_type& bias,
                                              float epsilon) const {
    const float center = mean();
    return scaled(center, scale_around(center, epsilon), from(weight), from(bias));
  }
  template <class Stored>
  __device__ __forceinline__ token_row normed(const Stored* weight, const Stored* bias,
                                              float epsilon, int lane) const {
    const float center = mean();
    const float scale = scale_around(center, epsilon);
    token_row factor, offset;
    factor.load(weight, lane);
    offset.load(bias, lane);
    return scaled(center, scale, factor, offset);
  }
};

/// Calls `body(T(), lanes)` with the lanes of a row as a constant.
/// Channel counts and types that no kernel serves are an invalid value.
template <class Body>
cudaError_t with_shape(dtype type, int channels, Body&& body) {
  const auto with_type = [&](auto lanes) {
    if (type == dtype::float16) return body(half(), lanes);
    if (type == dtype::bfloat16) return body(bfloat16(), lanes);
    return cudaErrorInvalidValue;
  };
  switch (channels) {
    case 96:
      return with_type(std::integral_constant<int, 4>());
    case 192:
      return with_type(std::integral_constant<int, 8>());
    case 384:
      return with_type(std::integral_constant<int, 16>());
    case 768:
      return with_type(std::integral_constant<int, 32>());
    default:
      return cudaErrorInvalidValue;
  }
}

/// Calls `body` with both as constants.
template <class Body>
cudaError_t with_flags(bool first, bool second, Body&& body) {
  const auto with_first = [&](auto constant) {
    return second ? body(constant, std::true_type()) : body(constant, std::false_type());
  };
  return first ? with_first(std::true_type()) : with_first(std::false_type());
}

}  // namespace winnow::swin
