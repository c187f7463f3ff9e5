// SPDX-License-Identifier: Apache-2.0
/// \file
/// Rows of 16-bit elements in shared memory as the forward kernels of short windows keep them.
///
/// Rows are not padded: the 16-byte vectors of a row change places by the row's number, so that eight
/// neighbouring rows, from any row on, lie in different banks for `ldmatrix` and for stores of
/// accumulator blocks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/mma.cuh"
#include "winnow/storage.hpp"

namespace winnow::detail {

/// base + factor · step, in one instruction.
__device__ __forceinline__ char* advance(char* base, std::int32_t factor, std::int32_t step) {
  std::int64_t result;
  asm("mad.wide.s32 %0, %1, %2, %3;"
      : "=l"(result)
      : "r"(factor), "r"(step), "l"(reinterpret_cast<std::int64_t>(base)));
  return reinterpret_cast<char*>(result);
}

/// \tparam D padded head dim, 16 or 32.
template <class T, int D>
struct shared_rows {
  static_assert(sizeof(T) == 2 && (D == 16 || D == 32));
  static constexpr int row_bytes = 2 * D;
  static constexpr int vectors = D / 8;  ///< of 16 bytes in a row
  static constexpr int blocks = D / 8;
  static constexpr int steps = D / 16;

  /// Where a vector of a row lies.
  static __device__ __forceinline__ std::uint32_t at(int row, int vector) {
    const int turn = D == 16 ? row >> 2 & 1 : row >> 1 & 3;
    return static_cast<std::uint32_t>(row * row_bytes + ((vector ^ turn) << 4));
  }
  /// Where this lane reads 16 rows as a left factor, or, transposed, as a right factor whose inner
  /// index are the rows; `row` is the lane's, number lane % 16 of them.
  static __device__ __forceinline__ std::uint32_t left_at(int row) {
    return at(row, (static_cast<int>(threadIdx.x) & 31) >> 4);
  }
  /// The same for 16 rows as a right factor whose inner index are the dims.
  static __device__ __forceinline__ int right_row() {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    return (lane >> 4) * 8 + (lane & 7);
  }
  static __device__ __forceinline__ std::uint32_t right_at(int row) {
    return at(row, (static_cast<int>(threadIdx.x) & 31) >> 3 & 1);
  }
  /// `address` moved by two vectors, `step` times.
  static __device__ __forceinline__ std::uint32_t moved(std::uint32_t address, int step) {
    return address ^ static_cast<std::uint32_t>(32 * step);
  }

  /// 16 rows of queries.
  struct query {
    std::uint32_t a[steps][4];
    __device__ __forceinline__ void load(std::uint32_t address) {
#pragma unroll
      for (int step = 0; step < steps; ++step) load_matrices(a[step], moved(address, step));
    }
  };
  /// s = initial + q · 16 keysᵀ
  static __device__ __forceinline__ void scores(const query& q, std::uint32_t keys,
                                                float (&s)[2][4]) {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      std::uint32_t b[4];
      load_matrices(b, moved(keys, step));
      multiply_add_16<T>(s[0], q.a[step], b[0], b[1]);
      multiply_add_16<T>(s[1], q.a[step], b[2], b[3]);
    }
  }
  /// o += weights · 16 rows of values, `offset` bytes behind `rows`; sum += the weights' sums.
  static __device__ __forceinline__ void values(const weight_fragment<T>& weights,
                                                std::uint32_t rows, std::uint32_t offset,
                                                float (&o)[blocks][4], float (&sum)[4]) {
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    multiply_add_16<T>(sum, weights.a, ones, ones);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      std::uint32_t b[4];
      load_matrices_transposed(b, moved(rows, step) + offset);
      multiply_add_16<T>(o[2 * step], weights.a, b[0], b[1]);
      multiply_add_16<T>(o[2 * step + 1], weights.a, b[2], b[3]);
    }
  }
};

/// Makes `probe` NaN where an element of `x` is NaN or infinite.
template <class T>
__device__ __forceinline__ void add_to_probe(const uint4& x, std::uint32_t& probe) {
  for (const std::uint32_t word : {x.x, x.y, x.z, x.w}) {
    if constexpr (std::is_same_v<T, half>)
      asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(probe) : "r"(word), "r"(0));
    else
      asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(probe) : "r"(word), "r"(0));
  }
}
__device__ __forceinline__ bool finds_broken(std::uint32_t probe) {
  return (probe & 0x7fff7fffu) != 0;
}
/// NaN in any bit of the result: an element of `x` is NaN or infinite.
template <class T>
__device__ __forceinline__ std::uint32_t probe_vector(const uint4& x) {
  std::uint32_t probe = 0;
  add_to_probe<T>(x, probe);
  return probe & 0x7fff7fffu;
}

}  // namespace winnow::detail
