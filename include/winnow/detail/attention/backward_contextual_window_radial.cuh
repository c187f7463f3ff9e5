// SPDX-License-Identifier: Apache-2.0
/// \file
/// The radial axis in a piece of backward_contextual_window.cuh: what its pairs look up, and their sums by table
/// row.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_turns.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

// By address: the compiler does not find what many pointers share.
__device__ __forceinline__ float2 load_pair(std::uint32_t address) {
  std::uint32_t bits;
  asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(bits) : "r"(address) : "memory");
  return __half22float2(*reinterpret_cast<const half2*>(&bits));
}
__device__ __forceinline__ float load_half(std::uint32_t address) {
  std::uint16_t bits;
  asm volatile("ld.shared.b16 %0, [%1];\n" : "=h"(bits) : "r"(address) : "memory");
  return __half2float(*reinterpret_cast<const half*>(&bits));
}
/// Adds to a word of shared memory. Also what is 0: a branch around each addition costs more.
__device__ __forceinline__ void add_in_shared(std::uint32_t address, int more) {
  asm volatile("red.shared.add.s32 [%0], %1;\n" ::"r"(address), "r"(more) : "memory");
}

template <class T, bool Radial, bool Long>
struct contextual_window_radial : contextual_window_turns<T, Radial, Long> {
  using base = contextual_window_turns<T, Radial, Long>;
  using base::gradient_points;
  using base::group;
  using base::length;
  using base::place;
  using base::region;
  using base::warp;
  using base::weight_base;
  using base::weight_points;
  using typename base::layout;
  using typename base::tile_tokens;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  /// Of a lane's pairs in a piece, where in shared memory the products of the query are by the pair's table
  /// row, less what row g + 8 lies behind row g. Sums lie a constant further on. Short windows: `radial_step`.
  using radial_places = std::uint32_t[2][4];
  static constexpr int radial_bytes_of_row = 4 * layout::radial_stride;
  static_assert(layout::query_radial_stride == layout::radial_stride);

  [[nodiscard]] __device__ __forceinline__ float* radii_of(int tile) const {
    return at<float>(layout::radius + tile * layout::next_tile);
  }
  /// What the radial axis adds to a piece.
  __device__ __forceinline__ void look_up_radial(const tile_tokens& rows, int j,
                                                 radial_places& places, float (&p)[2][4],
                                                 float (&sides)[2][4], float (&ds)[2][4]) const {
    const std::uint32_t of_rows =
        shared_address(region(warp) + layout::query_radial) +
        static_cast<std::uint32_t>(place.g * radial_bytes_of_row + 4 * length);
    const std::uint32_t of_columns =
        shared_address(region(j) + layout::key_radial) +
        static_cast<std::uint32_t>(4 * place.t * layout::key_radial_stride + 2 * length);
    const float* other_radius = radii_of(j) + 2 * place.t * layout::token_stride;
    const float inverse_a = __int_as_float(in_register(__float_as_int(group.inverse_a)));
    const int most_steps = in_register((length << 22) - 1);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float other = other_radius[(8 * n + c) * layout::token_stride];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = 2 * i + c;
          const int step = radial_step(rows.radius[i] - other, inverse_a, most_steps);
          const std::uint32_t of_row = of_rows + static_cast<std::uint32_t>(step >> 20);
          places[n][e] = layout::sums_late ? static_cast<std::uint32_t>(step) : of_row;
          const float2 query = load_pair(of_row + i * 8 * radial_bytes_of_row);
          p[n][e] += query.x;
          ds[n][e] += query.y;
          sides[n][e] += load_half(of_columns + static_cast<std::uint32_t>(step >> 21) +
                                   (8 * n + c) * 2 * layout::key_radial_stride);
        }
      }
  }
  /// Sums a piece of long windows up by radial row, for its rows and its columns. Integers have the same sum in every
  /// order.
  __device__ __forceinline__ void sum_radial(int j, const radial_places& places,
                                             const float (&p)[2][4],
                                             const float (&ds)[2][4]) const {
    constexpr int sums = layout::radial_sums - layout::query_radial;
    const std::uint32_t to_columns =
        shared_address(region(j) + layout::radial_sums) -
        shared_address(region(warp) + layout::query_radial) +
        static_cast<std::uint32_t>((32 + 2 * place.t - place.g) * radial_bytes_of_row);
    // Half of the lanes with the same key add another key of theirs first: additions to the same word come one after
    // the other.
    const bool swaps = (place.g & 1) != 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      int gradient[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const std::uint32_t of_row = places[n][e] + sums + e / 2 * 8 * radial_bytes_of_row;
        gradient[n] = __float2int_rn(ds[n][e] * gradient_points);
        add_in_shared(of_row, gradient[n]);
        add_in_shared(of_row + 16 * radial_bytes_of_row, __float2int_rn(p[n][e] * weight_points));
      }
      const std::uint32_t low = places[0][e] + to_columns;
      const std::uint32_t high = places[1][e] + (to_columns + 8 * radial_bytes_of_row);
      const int column = (e & 1) * radial_bytes_of_row;
      add_in_shared((swaps ? high : low) + column, swaps ? gradient[1] : gradient[0]);
      add_in_shared((swaps ? low : high) + column, swaps ? gradient[0] : gradient[1]);
    }
  }

  // --- Short windows, whose sums by radial row come when all pieces are there -------------------

  template <int Bytes>
  __device__ __forceinline__ void clear_late_sums() const {
    auto* sums = reinterpret_cast<uint4*>(region(warp) + layout::late_sums);
    constexpr int vectors = Bytes / 16;
#pragma unroll
    for (int i = 0; i < vectors; i += 32)
      if (i + 32 <= vectors || i + place.lane < vectors) sums[i + place.lane] = {0, 0, 0, 0};
    __syncwarp();
  }
  /// Two pairs' radial steps: 64 times their table row less L, each in 16 bits.
  static __device__ __forceinline__ std::uint32_t pack_places(std::uint32_t low,
                                                              std::uint32_t high) {
    return __byte_perm(low, high, 0x7632u);
  }
  /// The places of two pairs in sums whose table rows are 2^(6 + Shift) bytes apart.
  template <int Shift>
  static __device__ __forceinline__ std::uint32_t place_of(std::uint32_t sums, std::uint32_t places,
                                                           int c) {
    const int step = c == 0 ? static_cast<std::int16_t>(places & 0xffffu)
                            : static_cast<std::int32_t>(places) >> 16;
    return sums +
           static_cast<std::uint32_t>(Shift >= 0 ? step << max(Shift, 0) : step >> max(-Shift, 0));
  }
  static __device__ __forceinline__ int gradient_points_of(float ds) {
    return __float2int_rn(ds * gradient_points);
  }
  /// Sums up dS and P of the tile's queries in piece `held`. A lane has half of a row's keys, and of two lanes with the
  /// same row one adds dS while the other one adds P: so 32 lanes meet 32 banks.
  __device__ __forceinline__ void sum_radial_rows(int held) const {
    const int row = place.lane / 16 * 8 + place.lane % 8;
    const std::byte* piece =
        region(warp) + layout::pieces + 3 * held * layout::piece_bytes + 16 * place.lane;
    const uint4 of_gradients = *reinterpret_cast<const uint4*>(piece);
    const uint4 of_weights = *reinterpret_cast<const uint4*>(piece + layout::piece_bytes);
    const uint4 of_places = *reinterpret_cast<const uint4*>(piece + 2 * layout::piece_bytes);
    const std::uint32_t gradients[] = {of_gradients.x, of_gradients.y, of_gradients.z,
                                       of_gradients.w};
    const std::uint32_t weights[] = {of_weights.x, of_weights.y, of_weights.z, of_weights.w};
    const std::uint32_t places[] = {of_places.x, of_places.y, of_places.z, of_places.w};
    const bool swaps = (place.lane & 8) != 0;
    const std::uint32_t first =
        shared_address(region(warp) + layout::late_sums) +
        static_cast<std::uint32_t>(128 * length + 8 * row + (swaps ? 4 : 0));
    const std::uint32_t second = swaps ? first - 4 : first + 4;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const float2 ds = unpack<half>(gradients[word]);
      const float2 p = unpack<T>(weights[word]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int gradient = gradient_points_of(c == 0 ? ds.x : ds.y);
        // Where a float's ulp is 1, its low bits are an integer. What is above them is masked out of the sum.
        const int weight = __float_as_int(fmaf(c == 0 ? p.x : p.y, weight_points, weight_base));
        add_in_shared(place_of<1>(first, places[word], c), swaps ? weight : gradient);
        add_in_shared(place_of<1>(second, places[word], c), swaps ? gradient : weight);
      }
    }
  }
  /// Sums up dS of the tile's keys in another tile's piece, as it is in a left factor by keys.
  __device__ __forceinline__ void sum_radial_columns(const std::uint32_t (&places)[4],
                                                     const std::uint32_t (&gradients)[4]) const {
    const std::uint32_t sums =
        shared_address(region(warp) + layout::late_sums) +
        static_cast<std::uint32_t>(place.g * radial_bytes_of_row + 4 * length);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float2 ds = unpack<half>(gradients[m]);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        add_in_shared(place_of<-4>(sums, places[m], c) + m % 2 * 8 * radial_bytes_of_row,
                      gradient_points_of(c == 0 ? ds.x : ds.y));
    }
  }
};

}  // namespace winnow::detail
