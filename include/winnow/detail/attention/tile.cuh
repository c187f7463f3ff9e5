// SPDX-License-Identifier: Apache-2.0
/// \file
/// Moving rows between global and shared memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/storage.hpp"

namespace winnow::detail {

/// Copies the first of 16 bytes in the background, and writes zeros behind them.
__device__ __forceinline__ void copy_first_async(std::uint32_t shared, const void* global,
                                                 int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}
/// Copies 16 bytes in the background, or writes 16 zero bytes where `valid` is false.
__device__ __forceinline__ void copy_async(std::uint32_t shared, const void* global, bool valid) {
  copy_first_async(shared, global, valid ? 16 : 0);
}
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  copy_async(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)), global, valid);
}
/// Copies one element of 4 or 8 bytes, or writes zeros.
template <class T>
__device__ __forceinline__ void copy_element_async(std::uint32_t shared, const T* global,
                                                   bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared), "l"(global),
               "n"(sizeof(T)), "r"(valid ? static_cast<int>(sizeof(T)) : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Waits until at most `Pending` committed groups of this thread are still under way.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

template <class T>
__device__ __forceinline__ const T* row_of(const row_view& view, std::int64_t token, int head) {
  return static_cast<const T*>(view.data) + token * view.token_stride + head * view.head_stride;
}

/// Brings one head's rows of `tokens[0 .. count)` into `tile`, and zeros into the rows from there to
/// `fill` and into columns from `dim` to D. All threads of the block take part. The copies are
/// asynchronous where the view allows it.
template <class T, int D, int Rows, int Stride, int Threads>
__device__ __forceinline__ void gather_rows(T* tile, const row_view& view, int head, int dim,
                                            const std::int32_t* tokens, int count,
                                            int fill = Rows) {
  constexpr int width = 16 / sizeof(T);
  constexpr int chunks = D / width;
  static_assert(Threads % chunks == 0);
  const int column = static_cast<int>(threadIdx.x) % chunks * width;
  const T* base = static_cast<const T*>(view.data) + head * view.head_stride + column;
  T* target = tile + static_cast<int>(threadIdx.x) / chunks * Stride + column;
  const bool inside = column < dim;
#pragma unroll 2
  for (int row = static_cast<int>(threadIdx.x) / chunks; row < fill;
       row += Threads / chunks, target += Threads / chunks * Stride) {
    const bool valid = row < count && inside;
    if (view.vectors || !valid) {
      // Strides of vectors fit 32 bits.
      const T* source = valid ? base + static_cast<std::int64_t>(tokens[row]) *
                                           static_cast<std::int32_t>(view.token_stride)
                              : base;
      copy_async(target, source, valid);
    } else {
      const T* source = base + tokens[row] * view.token_stride;
#pragma unroll
      for (int e = 0; e < width; ++e) target[e] = source[e];
    }
  }
}

/// Element `index` of an array of T, or of float where `is_float` says so.
template <class T>
__device__ __forceinline__ float load_element(const void* data, bool is_float, std::int64_t index) {
  return is_float ? static_cast<const float*>(data)[index]
                  : widen(static_cast<const T*>(data)[index]);
}
/// 16 bytes of a table from `offset` on, as elements of T.
template <class T>
__device__ __forceinline__ uint4 load_table_vector(const table_view& table, std::int64_t offset) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  if (table.vectors && !table.is_float)
    return *reinterpret_cast<const uint4*>(static_cast<const T*>(table.data) + offset);
  T elements[width];
#pragma unroll
  for (int e = 0; e < width; ++e)
    elements[e] = narrow<T>(load_element<T>(table.data, table.is_float, offset + e));
  uint4 bits;
  memcpy(&bits, elements, sizeof bits);
  return bits;
}

}  // namespace winnow::detail
