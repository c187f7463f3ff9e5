// SPDX-License-Identifier: Apache-2.0
/// \file
/// The radial axis in a piece of backward_contextual_window.cuh: what its pairs look up, and their sums by table
/// row.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_contextual_window_turns.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/shared_memory.cuh"

namespace winnow::detail {

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
  using base::right_cells;
  using base::short_weight_points;
  using base::turned_cells;
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

  /// Where a lane finds what pieces have of keys, were they of tile 0, by shared memory's addresses.
  struct key_places {
    std::uint32_t right, turned;  ///< its rows of cells, as right factors and as transposed ones
    /// Of its first key: the radius, products by radial row, and sums of long windows, less where those of its row's
    /// products lie.
    std::uint32_t radius, products, sums;
    float inverse_a;
  };
  [[nodiscard]] __device__ __forceinline__ key_places places_of_keys() const {
    const std::uint32_t tile = shared_address(region(0));
    const auto in_tile = [&](int offset) { return tile + static_cast<std::uint32_t>(offset); };
    return {
        in_tile(right_cells),
        in_tile(turned_cells),
        shared_address(radii_of(0) + 2 * place.t * layout::token_stride),
        in_tile(layout::key_radial + place.t * layout::product_of_t +
                length * layout::key_radial_step),
        in_tile(layout::column_sums + place.t * layout::sum_of_t - place.g * layout::query_step) -
            shared_address(region(warp) + layout::query_radial),
        __int_as_float(in_register(__float_as_int(group.inverse_a)))};
  }
  [[nodiscard]] static __device__ __forceinline__ std::uint32_t of_tile(std::uint32_t place_of_key,
                                                                        int j) {
    return place_of_key + static_cast<std::uint32_t>(j * layout::region_bytes);
  }

  [[nodiscard]] __device__ __forceinline__ float* radii_of(int tile) const {
    return at<float>(layout::radius + tile * layout::next_tile);
  }
  /// Of a lane's keys of tile `j`.
  static __device__ __forceinline__ void load_radii(const key_places& keys_of_lane, int j,
                                                    float2 (&radii)[2]) {
    const std::uint32_t first =
        keys_of_lane.radius + static_cast<std::uint32_t>(layout::next_tile * j);
    constexpr int stride = 4 * layout::token_stride;
#pragma unroll
    for (int n = 0; n < 2; ++n)
      radii[n] = stride == 4 ? load_shared_floats(first + 32 * n)
                             : float2{load_shared_float(first + 8 * n * stride),
                                      load_shared_float(first + (8 * n + 1) * stride)};
  }
  /// A `radial_step` in bytes.
  template <int Bytes>
  [[nodiscard]] static __device__ __forceinline__ std::uint32_t bytes_of(int step) {
    static_assert(Bytes == 2 || Bytes == 4 || Bytes == 32);
    return static_cast<std::uint32_t>(step >> (Bytes == 32 ? 17 : Bytes == 4 ? 20 : 21));
  }
  /// What the radial axis adds to a piece.
  __device__ __forceinline__ void look_up_radial(const tile_tokens& rows, int j,
                                                 const key_places& keys_of_lane,
                                                 const float2 (&radii)[2], radial_places& places,
                                                 float (&p)[2][4], float (&ds)[2][4]) const {
    const std::uint32_t of_rows =
        shared_address(region(warp) + layout::query_radial) +
        static_cast<std::uint32_t>(place.g * layout::query_step + length * layout::radial_step);
    const std::uint32_t of_columns = of_tile(keys_of_lane.products, j);
    const float inverse_a = keys_of_lane.inverse_a;
    const int most_steps = in_register((length << 22) - 1);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float other = c == 0 ? radii[n].x : radii[n].y;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = 2 * i + c;
          const int step = radial_step(rows.radius[i] - other, inverse_a, most_steps);
          const std::uint32_t of_row = of_rows + bytes_of<layout::radial_step>(step);
          places[n][e] = layout::sums_late ? static_cast<std::uint32_t>(step) : of_row;
          const std::uint32_t query = load_shared_word(of_row + i * layout::half_step);
          const std::uint32_t key =
              load_shared_half(of_columns + bytes_of<layout::key_radial_step>(step) +
                               c * layout::product_of_c + n * layout::product_of_n);
          const half2 sum = __hadd2(*reinterpret_cast<const half2*>(&query),
                                    *reinterpret_cast<const half2*>(&key));
          const float2 both = __half22float2(sum);
          p[n][e] = both.x;
          ds[n][e] = both.y;
        }
      }
    }
  }
  /// Sums a piece of long windows up by radial row, for its rows and its columns. Integers have the same sum in every
  /// order.
  __device__ __forceinline__ void sum_radial(int j, const key_places& keys_of_lane,
                                             const radial_places& places, const float (&p)[2][4],
                                             const float (&ds)[2][4]) const {
    constexpr int gradients = layout::radial_sums - layout::query_radial;
    constexpr int weights = layout::weight_sums - layout::query_radial;
    const std::uint32_t to_columns = of_tile(keys_of_lane.sums, j);
    // In long windows, whose warps fill the queue of shared memory, half of the lanes with the same key add another
    // key of theirs first: additions to the same word come one after the other.
    const bool swaps = (place.g & 1) != 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      int gradient[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int half = e / 2 * layout::half_step;
        gradient[n] = __float2int_rn(ds[n][e] * gradient_points);
        add_in_shared(places[n][e] + gradients + half, gradient[n]);
        const auto weight = static_cast<int>(round_to_integer(p[n][e], short_weight_points));
        add_in_shared(places[n][e] + weights, e / 2 == 0 ? weight : weight << 16);
      }
      const std::uint32_t low = places[0][e] + to_columns;
      const std::uint32_t high = places[1][e] + (to_columns + layout::sum_of_n);
      const int column = (e & 1) * layout::sum_of_c;
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
    const std::byte* piece = region(warp) + layout::pieces +
                             layout::kinds_of_pieces * held * layout::piece_bytes + 16 * place.lane;
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
        static_cast<std::uint32_t>(place.g * layout::query_step + 4 * length);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float2 ds = unpack<half>(gradients[m]);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        add_in_shared(place_of<-4>(sums, places[m], c) + m % 2 * 8 * layout::query_step,
                      gradient_points_of(c == 0 ? ds.x : ds.y));
    }
  }
};

}  // namespace winnow::detail
