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

template <class T, int Lanes>
struct token_row {
  static constexpr int channels = Lanes * lane_channels;
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
  __device__ __forceinline__ packed_piece<T> packed(int p) const {
    packed_piece<T> result;
#pragma unroll
    for (int i = 0; i < piece; ++i) result.values[i] = static_cast<T>(x[p * piece + i]);
    return result;
  }
  __device__ __forceinline__ void add(const T* row, int lane) {
    token_row other;
    other.load(row, lane);
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) x[i] += other.x[i];
  }
  /// What a later kernel would read from the stream.
  __device__ __forceinline__ void round() {
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) x[i] = static_cast<float>(static_cast<T>(x[i]));
  }
  __device__ __forceinline__ void store(T* row, int lane) const {
#pragma unroll
    for (int p = 0; p < pieces; ++p)
      *reinterpret_cast<packed_piece<T>*>(row + first_channel(lane, p)) = packed(p);
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
  template <class Stored>
  __device__ __forceinline__ token_row scaled(float mean, float scale, const Stored* weight,
                                              const Stored* bias, int lane) const {
    token_row factor, result;
    factor.load(weight, lane);
    result.load(bias, lane);
#pragma unroll
    for (int i = 0; i < lane_channels; ++i) result.x[i] += (x[i] - mean) * scale * factor.x[i];
    return result;
  }
  template <class Stored>
  __device__ __forceinline__ token_row normed(const Stored* weight, const Stored* bias,
                                              float epsilon, int lane) const {
    const float mean = row_sum<Lanes>(sum()) * (1.0f / channels);
    const float variance = row_sum<Lanes>(squares_around(mean)) * (1.0f / channels);
    return scaled(mean, rsqrtf(variance + epsilon), weight, bias, lane);
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

}  // namespace winnow::swin
