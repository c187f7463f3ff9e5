// SPDX-License-Identifier: Apache-2.0
/// \file
/// Products of tokens with the tables of contextual position encoding, indexed by position.
///
/// On a linear axis the pair (i, j) takes table row p_i - p_j + L - 1. Seen from one token, whose own
/// position is p, the rows that matter are 24 neighbours of 48: cell c, the position of the other
/// token, takes row c + (L - 1 - p) of the table (of the table read backwards, for queries and for
/// weights). So a row of products moves by a distance of its own, and it does so in registers:
///
/// Columns of a product may come in any order. In groups of eight, column 2t + e takes table row
/// 4e + t, so that lane t of a quad holds rows t, t + 4, … t + 44 as six registers of two halves. To
/// move by s = 4a + b is then to take cells from lane (t + b) mod 4 of the quad, a or a + 1 halves
/// further: three conditional moves of registers, then three shuffles. That is a third of the
/// instructions of scattered stores, and no shared memory, whose bandwidth bounds this kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tile.cuh"

namespace winnow::detail {

/// D += A·B on m16n8k8 of halves.
__device__ __forceinline__ void multiply_add_half_8(float (&d)[4], std::uint32_t a0,
                                                    std::uint32_t a1, std::uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, "
      "%2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

/// D = A·B on m16n8k16.
template <class T>
__device__ __forceinline__ void multiply_16(float (&d)[4], const std::uint32_t (&a)[4],
                                            std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

/// A·B + C on m16n8k16 of halves, sums rounded to half: rows g and g + 8.
__device__ __forceinline__ void multiply_half(std::uint32_t (&d)[2], const std::uint32_t (&a)[4],
                                              std::uint32_t b0, std::uint32_t b1,
                                              std::uint32_t c0 = 0, std::uint32_t c1 = 0) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, "
      "{%8, %9};\n"
      : "=r"(d[0]), "=r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c0), "r"(c1));
}

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

/// Two halves each.
__device__ __forceinline__ std::uint32_t add_half_pairs(std::uint32_t x, std::uint32_t y) {
  asm("add.rn.f16x2 %0, %0, %1;" : "+r"(x) : "r"(y));
  return x;
}
/// 1.0 where the halves are equal, else 0.0: two elements of a one-hot row.
__device__ __forceinline__ std::uint32_t one_hot(std::uint32_t positions, std::uint32_t cells) {
  std::uint32_t equal;
  asm("set.eq.f16x2.f16x2 %0, %1, %2;" : "=r"(equal) : "r"(positions), "r"(cells));
  return equal;
}
/// Positions compare as the halves 1024 + p, whose bits are 0x6400 + p. Two of them.
__device__ __forceinline__ constexpr std::uint32_t position_pair(int low, int high) {
  return 0x64006400u + static_cast<std::uint32_t>(low) + (static_cast<std::uint32_t>(high) << 16);
}
/// The fourth byte of a packed position, if it is to be the upper one of such halves.
inline constexpr std::uint32_t position_mark = 0x64000000u;
/// An axis of two marked positions.
__device__ __forceinline__ std::uint32_t marked_pair(std::uint32_t low, std::uint32_t high,
                                                     int axis) {
  return __byte_perm(low, high, 0x7430u + 0x0101u * static_cast<unsigned>(axis));
}
/// A packed position's axis, twice.
__device__ __forceinline__ std::uint32_t position_twice(std::uint32_t code, int axis) {
  return __byte_perm(code, 0x64u, 0x4040u + 0x0101u * static_cast<unsigned>(axis));
}

/// 2²² times the row that `exponential_row` gives, less the quant length L, in fewer instructions.
/// \param delta not -0. \param most_steps 2²²·L - 1.
__device__ __forceinline__ int radial_step(float delta, float inverse_a, int most_steps) {
  const int steps =
      min(__float_as_int(fmaf(fabsf(delta), inverse_a, 2.0f)) - 0x40000000, most_steps);
  // n, or for differences below 0 its complement.
  return (steps ^ (__float_as_int(delta) >> 31)) & ~0x3fffff;
}
/// x · by, at least 0 and up to 2²⁴, as an integer in one instruction: the bits of a multiple of the smallest float are
/// one, as are those of `by`. Also where the compiler may flush such floats to 0.
__device__ __forceinline__ std::uint32_t round_to_integer(float x, std::uint32_t by) {
  float multiple;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(multiple) : "f"(x), "f"(__uint_as_float(by)));
  return __float_as_uint(multiple);
}
/// Copies in the background where `write`; zeros where the source is not `valid`.
template <int Bytes>
__device__ __forceinline__ void copy_async_if(bool write, std::uint32_t shared, const void* global,
                                              bool valid) {
  if constexpr (Bytes == 16)
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.s32 p, %3, 0;\n @p cp.async.cg.shared.global [%0], [%1], 16, "
        "%2;\n}\n" ::"r"(shared),
        "l"(global), "r"(valid ? 16 : 0), "r"(static_cast<int>(write))
        : "memory");
  else
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.s32 p, %4, 0;\n @p cp.async.ca.shared.global [%0], [%1], %2, "
        "%3;\n}\n" ::"r"(shared),
        "l"(global), "n"(Bytes), "r"(valid ? Bytes : 0), "r"(static_cast<int>(write))
        : "memory");
}
/// Keeps the compiler from computing `value` again wherever it is needed.
template <class U>
__device__ __forceinline__ U in_register(U value) {
  asm volatile("" : "+r"(value));
  return value;
}
/// The same of the assembler, which knows nothing of what a shuffle brings.
__device__ __forceinline__ std::uint32_t kept_in_register(std::uint32_t value) {
  return __shfl_sync(0xffffffffu, value, static_cast<int>(threadIdx.x) & 31);
}
/// The same of what all lanes share, which it would keep in a uniform register and copy for each use.
__device__ __forceinline__ std::uint32_t kept_by_lanes(std::uint32_t value) {
  const auto lane = threadIdx.x & 31u;
  return __shfl_sync(0xffffffffu, value ^ lane, static_cast<int>(lane)) ^ lane;
}
/// Bytes of two registers by a selector whose four digits are below 8, which __byte_perm would make sure of.
__device__ __forceinline__ std::uint32_t permute(std::uint32_t low, std::uint32_t high,
                                                 std::uint32_t selector) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}
/// The bits from `first` on; from 32 on none.
__device__ __forceinline__ std::uint32_t bits_from(int first) {
  std::uint32_t bits;
  asm("shl.b32 %0, 0xffffffff, %1;" : "=r"(bits) : "r"(first));
  return bits;
}

/// Is an element so large that a product rounded to half may miss the logit's precision? Rows of
/// such queries, and of windows with such keys, are made NaN, and so computed again without tiles.
template <class T>
__device__ __forceinline__ bool is_large(std::uint32_t first, std::uint32_t second) {
  using pair = std::conditional_t<std::is_same_v<T, half>, half2, __nv_bfloat162>;
  const pair largest = __hmax2(__habs2(*reinterpret_cast<const pair*>(&first)),
                               __habs2(*reinterpret_cast<const pair*>(&second)));
  const std::uint32_t limit = pack<T>(64.0f, 64.0f);
  return !__hble2(largest, *reinterpret_cast<const pair*>(&limit));
}
inline constexpr std::uint32_t nan_halves = 0x7fff7fffu;

/// Which of eight neighbouring rows column `column` of a product takes.
__device__ __forceinline__ constexpr int spread(int column) {
  return 4 * (column & 1) + (column >> 1);
}

inline constexpr int axis_blocks = tile_rows / 8;  ///< accumulator blocks of one axis of products
inline constexpr int cell_words = tile_cells / 8;  ///< registers of a lane for one axis of cells
inline constexpr int row_words = tile_rows / 8;

/// `set` where the bit of `bits` is 1. The compiler knows how to test such bits in one instruction, but
/// not when it sees through zeros.
template <unsigned Bit>
__device__ __forceinline__ std::uint32_t choose(std::uint32_t bits, std::uint32_t set,
                                                std::uint32_t clear) {
  std::uint32_t chosen;
  asm("{\n .reg .pred p;\n .reg .b32 bit;\n and.b32 bit, %1, %4;\n setp.ne.u32 p, bit, 0;\n "
      "selp.b32 %0, %2, %3, p;\n}\n"
      : "=r"(chosen)
      : "r"(bits), "r"(set), "r"(clear), "n"(Bit));
  return chosen;
}

/// The moves of a token's axes, a byte each, as this lane of the quad makes them: four times the halves
/// to go, a and one more where t < b.
__device__ __forceinline__ std::uint32_t moves_of(std::uint32_t code, int quant_length, int t) {
  return static_cast<std::uint32_t>(quant_length + 2 - t) * 0x010101u - code;
}

/// The move between the table rows of one token and the cells of the others. All lanes of a quad have
/// the same distance.
struct row_shift {
  std::uint32_t steps;  ///< of one axis: the lowest byte of its `moves_of`, below whatever

  /// The cells that this lane holds of lane `lane_of_cells` of the quad.
  __device__ __forceinline__ void align(const std::uint32_t (&rows)[row_words],
                                        std::uint32_t (&cells)[cell_words]) const {
    std::uint32_t y[5], z[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) y[k] = choose<16>(steps, rows[k + 2], rows[k]);
    y[4] = rows[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) z[k] = choose<8>(steps, y[k + 1], y[k]);
    const std::uint32_t select = choose<4>(steps, 0x5432u, 0x3210u);
#pragma unroll
    for (int k = 0; k < cell_words; ++k) cells[k] = permute(z[k], z[k + 1], select);
  }
  /// Lane t - b.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t lane_of_cells() const {
    return ~steps & 3u;
  }
  __device__ __forceinline__ void to_cells(const std::uint32_t (&rows)[row_words],
                                           std::uint32_t (&cells)[cell_words], int t) const {
    std::uint32_t aligned[cell_words];
    align(rows, aligned);
    // From lane t + b.
    const int source = static_cast<int>(steps) + 2 * t + 1;
#pragma unroll
    for (int k = 0; k < cell_words; ++k) cells[k] = __shfl_sync(0xffffffffu, aligned[k], source, 4);
  }
  /// The same of floats, before they are split into halves.
  __device__ __forceinline__ void to_cells(const float (&rows)[2 * row_words],
                                           float (&cells)[2 * cell_words], int t) const {
    const auto choose_float = [&](auto bit, float set, float clear) {
      return __uint_as_float(
          choose<decltype(bit)::value>(steps, __float_as_uint(set), __float_as_uint(clear)));
    };
    float y[9], z[7];
#pragma unroll
    for (int k = 0; k < 8; ++k)
      y[k] = choose_float(std::integral_constant<unsigned, 16>(), rows[k + 4], rows[k]);
    y[8] = rows[8];
#pragma unroll
    for (int k = 0; k < 7; ++k)
      z[k] = choose_float(std::integral_constant<unsigned, 8>(), y[k + 2], y[k]);
    const int source = static_cast<int>(steps) + 2 * t + 1;
#pragma unroll
    for (int k = 0; k < 2 * cell_words; ++k)
      cells[k] = __shfl_sync(0xffffffffu,
                             choose_float(std::integral_constant<unsigned, 4>(), z[k + 1], z[k]),
                             source, 4);
  }
  /// The way back, zeros where there is no cell.
  __device__ __forceinline__ void to_rows(const std::uint32_t (&cells)[cell_words],
                                          std::uint32_t (&rows)[row_words]) const {
    // From lane t - b.
    const int source = ~static_cast<int>(steps);
    std::uint32_t w[5] = {0, 0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < cell_words; ++k) w[k + 1] = __shfl_sync(0xffffffffu, cells[k], source, 4);
    const std::uint32_t select = choose<4>(steps, 0x5432u, 0x7654u);
    std::uint32_t z[4], y[5];
#pragma unroll
    for (int k = 0; k < 4; ++k) z[k] = permute(w[k], w[k + 1], select);
    y[0] = choose<8>(steps, 0, z[0]);
#pragma unroll
    for (int k = 1; k < 4; ++k) y[k] = choose<8>(steps, z[k - 1], z[k]);
    y[4] = choose<8>(steps, z[3], 0);
#pragma unroll
    for (int k = 0; k < 2; ++k) rows[k] = choose<16>(steps, 0, y[k]);
#pragma unroll
    for (int k = 2; k < 5; ++k) rows[k] = choose<16>(steps, y[k - 2], y[k]);
    rows[5] = choose<16>(steps, y[3], 0);
  }
};

}  // namespace winnow::detail
