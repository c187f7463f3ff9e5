// SPDX-License-Identifier: Apache-2.0
/// \file
/// Products of 16-row tiles on tensor cores, for each storage type.
///
/// One warp multiplies. An accumulator block is 16 rows by 8 columns: lane l holds rows g = l / 4
/// and g + 8, columns 2t and 2t + 1 with t = l % 4, as {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}.
/// `tile_math<T, D>` offers the same three operations for every T:
///
///     scores   S[16, 16] += Q·Kᵀ       rows of Q and K in shared memory
///     values   O[16, D]  += P·V        P from accumulator blocks, 16 rows of V in shared memory
///     products 16 rows in shared memory times 8 rows of a table in global memory
///
/// half and bfloat16 use m16n8k16 with FP32 sums. float splits every operand into two TF32 terms
/// and adds three m16n8k8 products (the fourth is below FP32's rounding), so that float storage
/// gives float results.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/storage.hpp"

namespace winnow::detail {

/// Where a lane's part of an accumulator block lies.
struct lane_place {
  int lane, g, t;
  __device__ __forceinline__ lane_place() : lane_place(static_cast<int>(threadIdx.x)) {}
  __device__ __forceinline__ explicit lane_place(int thread)
      : lane(thread & 31), g(lane >> 2), t(lane & 3) {}
};

/// \param row this lane's row of eight, by the shared memory's 32-bit address.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
  load_matrices(r, shared_address(row));
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  load_matrices_transposed(r, shared_address(row));
}

/// Stores four matrices as `load_matrices` finds them. \param row lane l's row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(const std::uint32_t (&r)[4], std::uint32_t row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  const lane_place place;
#pragma unroll
  for (int matrix = 0; matrix < 4; ++matrix) {
    const std::uint32_t own = __shfl_sync(0xffffffffu, row, 8 * matrix + place.g);
    store_shared(own + 4 * static_cast<std::uint32_t>(place.t), r[matrix]);
  }
#endif
}

/// D += A·B on m16n8k16.
template <class T>
__device__ __forceinline__ void multiply_add_16(float (&d)[4], const std::uint32_t (&a)[4],
                                                std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A float as the sum of two TF32 values, exact to 2⁻²¹ of it.
struct tf32_pair {
  std::uint32_t high, low;
  /// The larger one is rounded and the smaller one cut off, in half the instructions of `cvt.rna`. NaN
  /// may round to 0, but is left over.
  __device__ __forceinline__ explicit tf32_pair(float x) {
    constexpr std::uint32_t kept = 0xffffe000u;
    high = (__float_as_uint(x) + 0x1000u) & kept;
    low = __float_as_uint(x - __uint_as_float(high)) & kept;
  }
  /// For parts that are TF32 values.
  __device__ __forceinline__ tf32_pair(float high_, float low_) {
    high = __float_as_uint(high_);
    low = __float_as_uint(low_);
  }
};

__device__ __forceinline__ void multiply_add_8(float (&d)[4], std::uint32_t a0, std::uint32_t a1,
                                               std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                               std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// D += A·B on m16n8k8 to FP32 accuracy; small products first.
__device__ __forceinline__ void multiply_add_8(float (&d)[4], const tf32_pair (&a)[4],
                                               const tf32_pair (&b)[2]) {
  multiply_add_8(d, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
  multiply_add_8(d, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
  multiply_add_8(d, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
}

/// Two floats as two neighbouring elements in one register.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t bits;
  if constexpr (std::is_same_v<T, half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same_v<T, bfloat16>);
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
}

/// Two neighbouring elements in one register, as floats.
template <class T>
__device__ __forceinline__ float2 unpack(std::uint32_t pair) {
  if constexpr (std::is_same_v<T, half>)
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  else
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

/// Pairs times a number, rounded once.
template <class T, int Count>
__device__ __forceinline__ void scale_pairs(std::uint32_t (&pairs)[Count], float by) {
#pragma unroll
  for (std::uint32_t& pair : pairs) {
    const float2 x = unpack<T>(pair);
    pair = pack<T>(x.x * by, x.y * by);
  }
}

template <class T>
__device__ __forceinline__ T narrow(float value) {
  if constexpr (std::is_same_v<T, half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return value;
}
template <class T>
__device__ __forceinline__ float widen(T value) {
  if constexpr (std::is_same_v<T, half>)
    return __half2float(value);
  else if constexpr (std::is_same_v<T, bfloat16>)
    return __bfloat162float(value);
  else
    return value;
}

/// 16 rows of weights by 16 columns, from two accumulator blocks: the left factor of 16-bit
/// products.
template <class T>
struct weight_fragment {
  std::uint32_t a[4];
  weight_fragment() = default;
  __device__ __forceinline__ explicit weight_fragment(const float (&p)[2][4])
      : a{pack<T>(p[0][0], p[0][1]), pack<T>(p[0][2], p[0][3]), pack<T>(p[1][0], p[1][1]),
          pack<T>(p[1][2], p[1][3])} {}
};

/// Accumulates weights[16, 16] · rows[16, 8·Blocks] of 16-bit rows in shared memory. `row` is this
/// lane's row for a transposed load, column 0.
template <class T, int Blocks>
__device__ __forceinline__ void multiply_rows(const weight_fragment<T>& weights, const T* row,
                                              float (&o)[Blocks][4]) {
  const int column = (static_cast<int>(threadIdx.x) & 31) / 16 * 8;
#pragma unroll
  for (int block = 0; block + 1 < Blocks; block += 2) {
    std::uint32_t b[4];
    load_matrices_transposed(b, row + block * 8 + column);
    multiply_add_16<T>(o[block], weights.a, b[0], b[1]);
    multiply_add_16<T>(o[block + 1], weights.a, b[2], b[3]);
  }
  if constexpr (Blocks % 2 == 1) {
    // The right half of the load is not used; it stays inside the row's padding.
    std::uint32_t b[4];
    load_matrices_transposed(b, row + (Blocks - 1) * 8 + column);
    multiply_add_16<T>(o[Blocks - 1], weights.a, b[0], b[1]);
  }
}

template <class T, int D>
struct tile_math {
  static_assert(D % 16 == 0 && D <= 128);
  using element = T;
  /// Does `values_at` leave each lane with its own share of the sums?
  static constexpr bool lane_sums = false;
  /// Elements between rows in shared memory. The padding spreads eight rows over all banks.
  static constexpr int stride = D + 8;
  static constexpr int blocks = D / 8;

  /// 16 query rows as the left factor.
  struct query {
    std::uint32_t a[D / 16][4];
    __device__ __forceinline__ void load(const T* rows) {
      const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
      for (int step = 0; step < D / 16; ++step)
        load_matrices(a[step], rows + (lane % 16) * stride + step * 16 + lane / 16 * 8);
    }
  };

  /// s += q · keys[first, first + 16)ᵀ; rows past `last` repeat it.
  static __device__ __forceinline__ void scores(const query& q, const T* keys, int first, int last,
                                                float (&s)[2][4]) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    scores_at(q, keys + min(first + lane / 16 * 8 + lane % 8, last) * stride + lane / 8 % 2 * 8, s);
  }
  /// Where `scores_at` starts for key 0 of a tile.
  static __device__ __forceinline__ int score_lane() {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    return (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
  }
  static __device__ __forceinline__ void scores_at(const query& q, const T* row, float (&s)[2][4]) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      std::uint32_t b[4];
      load_matrices(b, row + step * 16);
      multiply_add_16<T>(s[0], q.a[step], b[0], b[1]);
      multiply_add_16<T>(s[1], q.a[step], b[2], b[3]);
    }
  }

  /// o += p · rows[first, first + 16); rows past `last` repeat it.
  static __device__ __forceinline__ void values(const float (&p)[2][4], const T* rows, int first,
                                                int last, float (&o)[blocks][4]) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    multiply_rows<T, blocks>(weight_fragment<T>(p), rows + min(first + lane % 16, last) * stride,
                             o);
  }
  static __device__ __forceinline__ void values(const float (&p)[2][4], const T* rows, int first,
                                                int last, float (&o)[blocks][4], float (&sum)[4]) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    values_at(p, rows + min(first + lane % 16, last) * stride, o, sum);
  }
  static __device__ __forceinline__ int value_lane() {
    return (static_cast<int>(threadIdx.x) & 15) * stride;
  }
  /// Adds the weights up as well, as products with one: sum[0] and sum[2] become those of rows g and
  /// g + 8, over all 16 columns.
  static __device__ __forceinline__ void values_at(const float (&p)[2][4], const T* row,
                                                   float (&o)[blocks][4], float (&sum)[4]) {
    const weight_fragment<T> weights(p);
    multiply_rows<T, blocks>(weights, row, o);
    const std::uint32_t ones = pack<T>(1.0f, 1.0f);
    multiply_add_16<T>(sum, weights.a, ones, ones);
  }

  /// 16 rows for `products`. The inner index may take the dims in any order that both factors
  /// share; with four neighbours a lane, rows of a table are read 8 bytes at a time.
  struct factor {
    std::uint32_t a[D / 16][4];
    __device__ __forceinline__ void load(const T* rows) {
      const lane_place place;
      const T* row = rows + place.g * stride + 4 * place.t;
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        const uint2 upper = *reinterpret_cast<const uint2*>(row + 16 * step);
        const uint2 lower = *reinterpret_cast<const uint2*>(row + 8 * stride + 16 * step);
        a[step][0] = upper.x, a[step][1] = lower.x, a[step][2] = upper.y, a[step][3] = lower.y;
      }
    }
  };
  using quad = uint2;  ///< four neighbouring elements
  static __device__ __forceinline__ quad load_quad(const void* data, bool is_float,
                                                   std::int64_t index) {
    if (!is_float) return *reinterpret_cast<const uint2*>(static_cast<const T*>(data) + index);
    const float4 wide = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + index);
    return {pack<T>(wide.x, wide.y), pack<T>(wide.z, wide.w)};
  }
  static __device__ __forceinline__ void multiply(const factor& rows, int step, const quad& right,
                                                  float (&product)[4]) {
    multiply_add_16<T>(product, rows.a[step], right.x, right.y);
  }
};

template <int D>
struct tile_math<float, D> {
  static_assert(D % 16 == 0 && D <= 128);
  using element = float;
  static constexpr bool lane_sums = true;
  static constexpr int stride = D + 4;
  static constexpr int blocks = D / 8;

  /// Splitting on the fly keeps 4·D/8 registers free.
  struct query {
    const float* row;  // row g of the 16
    __device__ __forceinline__ void load(const float* rows) {
      row = rows + ((static_cast<int>(threadIdx.x) & 31) >> 2) * stride;
    }
  };

  static __device__ __forceinline__ void scores(const query& q, const float* keys, int first,
                                                int last, float (&s)[2][4]) {
    const lane_place place;
    const float* rows[2] = {keys + min(first + place.g, last) * stride + place.t,
                            keys + min(first + 8 + place.g, last) * stride + place.t};
    scores_of(q, rows, s);
  }
  static __device__ __forceinline__ int score_lane() {
    const lane_place place;
    return place.g * stride + place.t;
  }
  static __device__ __forceinline__ void scores_at(const query& q, const float* row,
                                                   float (&s)[2][4]) {
    const float* rows[2] = {row, row + 8 * stride};
    scores_of(q, rows, s);
  }
  static __device__ __forceinline__ void scores_of(const query& q, const float* const (&right)[2],
                                                   float (&s)[2][4]) {
    const float* left = q.row + (threadIdx.x & 3);
#pragma unroll 4
    for (int d = 0; d < D; d += 8) {
      const tf32_pair a[4] = {tf32_pair(left[d]), tf32_pair(left[d + 8 * stride]),
                              tf32_pair(left[d + 4]), tf32_pair(left[d + 8 * stride + 4])};
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const tf32_pair b[2] = {tf32_pair(right[block][d]), tf32_pair(right[block][d + 4])};
        multiply_add_8(s[block], a, b);
      }
    }
  }

  static __device__ __forceinline__ void values(const float (&p)[2][4], const float* rows,
                                                int first, int last, float (&o)[blocks][4]) {
    const lane_place place;
    const float* row[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      row[i / 2][i % 2] =
          rows + min(first + i / 2 * 8 + 2 * place.t + i % 2, last) * stride + place.g;
    values_of(p, row, o);
  }
  static __device__ __forceinline__ void values(const float (&p)[2][4], const float* rows,
                                                int first, int last, float (&o)[blocks][4],
                                                float (&sum)[4]) {
    values(p, rows, first, last, o);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e / 2 * 2] += p[0][e] + p[1][e];
  }
  static __device__ __forceinline__ int value_lane() {
    const lane_place place;
    return 2 * place.t * stride + place.g;
  }
  /// Adds the weights up as well, those of this lane: sum[0] and sum[2] of rows g and g + 8.
  static __device__ __forceinline__ void values_at(const float (&p)[2][4], const float* row,
                                                   float (&o)[blocks][4], float (&sum)[4]) {
    const float* rows[2][2] = {{row, row + stride}, {row + 8 * stride, row + 9 * stride}};
    values_of(p, rows, o);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e / 2 * 2] += p[0][e] + p[1][e];
  }
  static __device__ __forceinline__ void values_of(const float (&p)[2][4],
                                                   const float* const (&row)[2][2],
                                                   float (&o)[blocks][4]) {
    // Any order of the inner index serves as long as both factors use it: step t takes key 2t and
    // step t + 4 key 2t + 1, which is where accumulator blocks have them.
    const tf32_pair a[2][4] = {
        {tf32_pair(p[0][0]), tf32_pair(p[0][2]), tf32_pair(p[0][1]), tf32_pair(p[0][3])},
        {tf32_pair(p[1][0]), tf32_pair(p[1][2]), tf32_pair(p[1][1]), tf32_pair(p[1][3])}};
    values_of(a, row, o);
  }
  static __device__ __forceinline__ void values_of(const tf32_pair (&a)[2][4],
                                                   const float* const (&row)[2][2],
                                                   float (&o)[blocks][4]) {
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
      // Tensor cores cut sums off instead of rounding them; over thousands of keys that would show,
      // so that they only sum 16 of them.
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const tf32_pair b[2] = {tf32_pair(row[step][0][block * 8]),
                                tf32_pair(row[step][1][block * 8])};
        multiply_add_8(sum, a[step], b);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) o[block][e] += sum[e];
    }
  }

  /// Four neighbouring dims of 16 are two steps of a lane: 4t and 4t + 1, then 4t + 2 and 4t + 3.
  struct factor {
    const float* row;
    __device__ __forceinline__ void load(const float* rows) {
      const lane_place place;
      row = rows + place.g * stride + 4 * place.t;
    }
  };
  using quad = float4;
  static __device__ __forceinline__ quad load_quad(const void* data, bool, std::int64_t index) {
    return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + index);
  }
  static __device__ __forceinline__ void multiply(const factor& rows, int step, const quad& right,
                                                  float (&product)[4]) {
    const float4 upper = *reinterpret_cast<const float4*>(rows.row + 16 * step);
    const float4 lower = *reinterpret_cast<const float4*>(rows.row + 8 * stride + 16 * step);
    const tf32_pair a[2][4] = {
        {tf32_pair(upper.x), tf32_pair(lower.x), tf32_pair(upper.y), tf32_pair(lower.y)},
        {tf32_pair(upper.z), tf32_pair(lower.z), tf32_pair(upper.w), tf32_pair(lower.w)}};
    const tf32_pair b[2][2] = {{tf32_pair(right.x), tf32_pair(right.y)},
                               {tf32_pair(right.z), tf32_pair(right.w)}};
    multiply_add_8(product, a[0], b[0]);
    multiply_add_8(product, a[1], b[1]);
  }
};

}  // namespace winnow::detail
