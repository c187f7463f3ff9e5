// SPDX-License-Identifier: Apache-2.0
/// \file
/// Products of 64-row tiles by a warpgroup on Hopper's tensor cores (`wgmma`), for 16-bit storage.
///
/// An accumulator is `float d[N / 8][4]`, as of N / 8 blocks of mma.cuh, of which warp w of the four holds
/// rows 16w to 16w + 15. Factors are in shared memory, as tiles with rows of 32, 64 or 128 bytes, swizzled,
/// which start on 1,024 bytes; the left one may be in registers, as in mma.cuh. Products are under way when
/// the statement ends, and until they are waited for nobody may touch what they read or write.
///
/// Only for the target sm_90a.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/storage.hpp"

namespace winnow::detail {

/// A tile in shared memory of rows of 16, 32 or 64 elements of 16 bits.
template <int RowBytes>
struct swizzled_tile {
  static_assert(RowBytes == 32 || RowBytes == 64 || RowBytes == 128);
  static constexpr int row_bytes = RowBytes;
  static constexpr int vectors = RowBytes / 16;
  /// Where the byte at `offset` lies: the vectors of eight neighbouring rows are in different banks.
  static __device__ __forceinline__ int place(int offset) {
    return offset ^ ((offset >> 3) & ((vectors - 1) << 4));
  }
  /// The upper half of a matrix descriptor: swizzle mode and bytes between groups of eight rows.
  static constexpr std::uint32_t mode = (RowBytes == 128  ? 1u
                                         : RowBytes == 64 ? 2u
                                                          : 3u)
                                            << 30 |
                                        static_cast<std::uint32_t>(8 * RowBytes / 16);
};

/// The lower half of a matrix descriptor, which counts in 16 bytes.
__device__ __forceinline__ std::uint32_t describe(std::uint32_t shared) {
  return shared / 16 + (1u << 16);
}

/// Before the first product after registers of its operands were written.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/// Waits until at most `Pending` committed groups of products are under way.
template <int Pending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}
/// Keeps what uses these registers behind the statements before it.
template <int Blocks>
__device__ __forceinline__ void hold(float (&d)[Blocks][4]) {
#pragma unroll
  for (auto& block : d)
#pragma unroll
    for (float& x : block) asm volatile("" : "+f"(x)::"memory");
}
/// Makes this thread's writes to shared memory visible to products, after the next barrier.
__device__ __forceinline__ void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

#define WINNOW_BLOCK(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WINNOW_BLOCKS_2(i) WINNOW_BLOCK(i), WINNOW_BLOCK(i + 1)
#define WINNOW_BLOCKS_4(i) WINNOW_BLOCKS_2(i), WINNOW_BLOCKS_2(i + 2)
#define WINNOW_BLOCKS_8(i) WINNOW_BLOCKS_4(i), WINNOW_BLOCKS_4(i + 4)
#define WINNOW_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WINNOW_REGISTERS_16 WINNOW_REGISTERS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WINNOW_REGISTERS_32 \
  WINNOW_REGISTERS_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
// The operands' numbers follow those of the registers.
#define WINNOW_MULTIPLY(n, type, registers, a0, a1, a2, a3, lower, upper, ...)                   \
  asm volatile("{\n.reg .b64 b;\nmov.b64 b, {" lower ", " upper                                  \
               "};\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, b, 1, 1, 1, 1;\n}\n"                        \
               : __VA_ARGS__                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(Mode))
#define WINNOW_MULTIPLY_TYPES(...)            \
  if constexpr (std::is_same_v<T, half>)      \
    WINNOW_MULTIPLY_TYPE("f16", __VA_ARGS__); \
  else                                        \
    WINNOW_MULTIPLY_TYPE("bf16", __VA_ARGS__)
#define WINNOW_MULTIPLY_TYPE(type, n, ...) WINNOW_MULTIPLY(n, type, __VA_ARGS__)

/// d += a · B of 64 x 16 by 16 x 8·Blocks elements.
/// \param b the lower half of the descriptor of a tile whose rows are those of B. \tparam Mode the upper.
template <class T, std::uint32_t Mode, int Blocks>
__device__ __forceinline__ void multiply_tile(float (&d)[Blocks][4], const std::uint32_t (&a)[4],
                                              std::uint32_t b) {
  static_assert(Blocks == 2 || Blocks == 4 || Blocks == 8);
  if constexpr (Blocks == 2) {
    WINNOW_MULTIPLY_TYPES("16", WINNOW_REGISTERS_8, "%8", "%9", "%10", "%11", "%12", "%13",
                          WINNOW_BLOCKS_2(0));
  } else if constexpr (Blocks == 4) {
    WINNOW_MULTIPLY_TYPES("32", WINNOW_REGISTERS_16, "%16", "%17", "%18", "%19", "%20", "%21",
                          WINNOW_BLOCKS_4(0));
  } else {
    WINNOW_MULTIPLY_TYPES("64", WINNOW_REGISTERS_32, "%32", "%33", "%34", "%35", "%36", "%37",
                          WINNOW_BLOCKS_8(0));
  }
}

#undef WINNOW_MULTIPLY
#define WINNOW_MULTIPLY(type)                                                              \
  asm volatile(                                                                            \
      "{\n.reg .b64 a, b;\nmov.b64 a, {%32, %34};\nmov.b64 b, {%33, %34};\n"               \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" WINNOW_REGISTERS_32 \
      "}, a, b, %35, 1, 1, 0, 0;\n}\n"                                                     \
      : WINNOW_BLOCKS_8(0)                                                                 \
      : "r"(a), "r"(b), "n"(Mode), "n"(Add ? 1 : 0))

/// d = a · Bᵀ, plus d where Add says so, of 64 x 16 by 16 x 64 elements, whose rows are those of tiles.
/// \param a, b the lower halves of the tiles' descriptors. \tparam Mode the upper ones.
template <class T, std::uint32_t Mode, bool Add>
__device__ __forceinline__ void multiply_tiles(float (&d)[8][4], std::uint32_t a, std::uint32_t b) {
  if constexpr (std::is_same_v<T, half>)
    WINNOW_MULTIPLY("f16");
  else
    WINNOW_MULTIPLY("bf16");
}

#undef WINNOW_BLOCK
#undef WINNOW_BLOCKS_2
#undef WINNOW_BLOCKS_4
#undef WINNOW_BLOCKS_8
#undef WINNOW_REGISTERS_8
#undef WINNOW_REGISTERS_16
#undef WINNOW_REGISTERS_32
#undef WINNOW_MULTIPLY
#undef WINNOW_MULTIPLY_TYPES
#undef WINNOW_MULTIPLY_TYPE

/// \name Registers of a thread from here on, for all warps of a warpgroup
/// @{
template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
/// @}

/// \name A barrier in shared memory at which threads say early that they are done, and wait later
/// @{
__device__ __forceinline__ void create_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Before it is made again.
__device__ __forceinline__ void remove_barrier(std::uint32_t barrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// racecheck does not see that the lane that arrives for a warp, behind a __syncwarp, speaks for the others. With
/// WINNOW_ALL_LANES_ARRIVE they speak for themselves, so that it can follow; registers then suffice for less.
#if defined(WINNOW_ALL_LANES_ARRIVE)
inline constexpr int warp_arrivals = 32;
#else
inline constexpr int warp_arrivals = 1;
#endif
/// Arrives for all lanes of a warp, which have met.
__device__ __forceinline__ void arrive_warp(std::uint32_t barrier, int lane) {
  if (warp_arrivals == 32 || lane == 0) arrive(barrier);
}
/// \param parity of the number of the phase, which ends with the last arrival.
__device__ __forceinline__ void wait_for_phase(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain%=:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra "
      "again%=;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// Has the phase ended already?
__device__ __forceinline__ bool has_phase_ended(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t ended;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, "
      "p;\n}\n"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}
/// @}

}  // namespace winnow::detail
