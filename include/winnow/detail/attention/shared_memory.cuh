// SPDX-License-Identifier: Apache-2.0
/// \file
/// Loads and stores of shared memory by its 32-bit addresses, for places of which the compiler does not find what many
/// pointers share. They keep their order among each other.
#pragma once

#include <cstdint>

namespace winnow::detail {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void store_shared(std::uint32_t address, std::uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ uint4 load_shared_vector(std::uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ std::uint32_t load_shared_word(std::uint32_t address) {
  std::uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(x) : "r"(address) : "memory");
  return x;
}
/// \name `Behind` bytes behind the address. Stores may overtake: of what does not change meanwhile.
/// @{
template <int Behind>
__device__ __forceinline__ std::uint32_t load_shared_word(std::uint32_t address) {
  std::uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1 + %2];" : "=r"(x) : "r"(address), "n"(Behind));
  return x;
}
template <int Behind>
__device__ __forceinline__ std::uint16_t load_shared_half(std::uint32_t address) {
  std::uint16_t x;
  asm volatile("ld.shared.u16 %0, [%1 + %2];" : "=h"(x) : "r"(address), "n"(Behind));
  return x;
}
/// @}
__device__ __forceinline__ std::int32_t load_shared_int(std::uint32_t address) {
  return static_cast<std::int32_t>(load_shared_word(address));
}
/// 16 bits, zero above them.
__device__ __forceinline__ std::uint32_t load_shared_half(std::uint32_t address) {
  std::uint32_t bits;
  asm volatile("ld.shared.u16 %0, [%1];\n" : "=r"(bits) : "r"(address) : "memory");
  return bits;
}
__device__ __forceinline__ float load_shared_float(std::uint32_t address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ float2 load_shared_floats(std::uint32_t address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n"
               : "=f"(x.x), "=f"(x.y)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ int2 load_shared_pair(std::uint32_t address) {
  int2 x;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n"
               : "=r"(x.x), "=r"(x.y)
               : "r"(address)
               : "memory");
  return x;
}
__device__ __forceinline__ char* load_shared_pointer(std::uint32_t address) {
  std::uint64_t x;
  asm volatile("ld.shared.b64 %0, [%1];\n" : "=l"(x) : "r"(address) : "memory");
  return reinterpret_cast<char*>(x);
}

/// A number by which another warp says how far it is, and what it has stored before.
__device__ __forceinline__ int load_acquire(std::uint32_t address) {
  int number;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(number) : "r"(address) : "memory");
  return number;
}
/// Such a number, behind what the warp has read and stored before, as its accesses to shared memory keep their order.
__device__ __forceinline__ void store_number(std::uint32_t address, int number) {
  asm volatile("st.volatile.shared.s32 [%0], %1;" ::"r"(address), "r"(number) : "memory");
}

}  // namespace winnow::detail
