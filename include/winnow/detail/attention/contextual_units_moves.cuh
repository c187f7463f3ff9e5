// SPDX-License-Identifier: Apache-2.0
/// \file
/// The moves of contextual_products.cuh for products of two heads at once, which share a token's distances: one test
/// of a bit of the distance serves both.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_products.cuh"

namespace winnow::detail {

/// Of eight pairs of registers, `set` where the bit of `bits` is 1. One test serves all.
template <unsigned Bit>
__device__ __forceinline__ void choose_all(std::uint32_t bits, const std::uint32_t (&set)[8],
                                           const std::uint32_t (&clear)[8],
                                           std::uint32_t (&chosen)[8]) {
  asm("{\n .reg .pred p;\n .reg .b32 bit;\n and.b32 bit, %8, %25;\n setp.ne.u32 p, bit, 0;\n "
      "selp.b32 %0, %9, %17, p;\n selp.b32 %1, %10, %18, p;\n selp.b32 %2, %11, %19, p;\n "
      "selp.b32 %3, %12, %20, p;\n selp.b32 %4, %13, %21, p;\n selp.b32 %5, %14, %22, p;\n "
      "selp.b32 %6, %15, %23, p;\n selp.b32 %7, %16, %24, p;\n}\n"
      : "=r"(chosen[0]), "=r"(chosen[1]), "=r"(chosen[2]), "=r"(chosen[3]), "=r"(chosen[4]),
        "=r"(chosen[5]), "=r"(chosen[6]), "=r"(chosen[7])
      : "r"(bits), "r"(set[0]), "r"(set[1]), "r"(set[2]), "r"(set[3]), "r"(set[4]), "r"(set[5]),
        "r"(set[6]), "r"(set[7]), "r"(clear[0]), "r"(clear[1]), "r"(clear[2]), "r"(clear[3]),
        "r"(clear[4]), "r"(clear[5]), "r"(clear[6]), "r"(clear[7]), "n"(Bit));
}

/// `row_shift` of a token's products of two heads.
struct row_shift_of_heads {
  std::uint32_t steps;

  /// Tests of its bits are made again each time: to keep predicates takes two instructions more.
  __device__ __forceinline__ row_shift_of_heads(std::uint32_t moves, int axis)
      : steps(static_cast<std::uint32_t>(in_register(static_cast<int>(moves >> (8 * axis))))) {}

  __device__ __forceinline__ void to_cells(const std::uint32_t (&first)[row_words],
                                           const std::uint32_t (&second)[row_words],
                                           std::uint32_t (&first_cells)[cell_words],
                                           std::uint32_t (&second_cells)[cell_words], int t) const {
    std::uint32_t y[8], z[8];
    choose_all<16>(
        steps, {first[2], first[3], first[4], first[5], second[2], second[3], second[4], second[5]},
        {first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3]}, y);
    choose_all<8>(steps, {y[1], y[2], y[3], first[4], y[5], y[6], y[7], second[4]},
                  {y[0], y[1], y[2], y[3], y[4], y[5], y[6], y[7]}, z);
    const std::uint32_t select = choose<4>(steps, 0x5432u, 0x3210u);
    // From lane t + b.
    const int source = static_cast<int>(steps) + 2 * t + 1;
#pragma unroll
    for (int k = 0; k < cell_words; ++k) {
      first_cells[k] = __shfl_sync(0xffffffffu, permute(z[k], z[k + 1], select), source, 4);
      second_cells[k] = __shfl_sync(0xffffffffu, permute(z[k + 4], z[k + 5], select), source, 4);
    }
  }
  /// The way back, zeros where there is no cell.
  __device__ __forceinline__ void to_rows(const std::uint32_t (&first_cells)[cell_words],
                                          const std::uint32_t (&second_cells)[cell_words],
                                          std::uint32_t (&first)[row_words],
                                          std::uint32_t (&second)[row_words]) const {
    // From lane t - b.
    const int source = ~static_cast<int>(steps);
    std::uint32_t w[2][cell_words];
#pragma unroll
    for (int k = 0; k < cell_words; ++k) {
      w[0][k] = __shfl_sync(0xffffffffu, first_cells[k], source, 4);
      w[1][k] = __shfl_sync(0xffffffffu, second_cells[k], source, 4);
    }
    const std::uint32_t select = choose<4>(steps, 0x5432u, 0x7654u);
    std::uint32_t z[2][4], y[8], last[8], ends[8], middle[8];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      z[h][0] = permute(0, w[h][0], select);
      z[h][1] = permute(w[h][0], w[h][1], select);
      z[h][2] = permute(w[h][1], w[h][2], select);
      z[h][3] = permute(w[h][2], 0, select);
    }
    choose_all<8>(steps, {0, z[0][0], z[0][1], z[0][2], 0, z[1][0], z[1][1], z[1][2]},
                  {z[0][0], z[0][1], z[0][2], z[0][3], z[1][0], z[1][1], z[1][2], z[1][3]}, y);
    choose_all<8>(steps, {z[0][3], z[1][3], 0, 0, 0, 0, 0, 0}, {}, last);
    choose_all<16>(steps, {0, 0, y[0], y[1], 0, 0, y[4], y[5]},
                   {y[0], y[1], y[2], y[3], y[4], y[5], y[6], y[7]}, middle);
    choose_all<16>(steps, {y[2], y[3], y[6], y[7], 0, 0, 0, 0},
                   {last[0], 0, last[1], 0, 0, 0, 0, 0}, ends);
#pragma unroll
    for (int k = 0; k < 4; ++k) first[k] = middle[k], second[k] = middle[4 + k];
    first[4] = ends[0], first[5] = ends[1], second[4] = ends[2], second[5] = ends[3];
  }
};

}  // namespace winnow::detail
