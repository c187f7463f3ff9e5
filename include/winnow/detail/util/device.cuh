// SPDX-License-Identifier: Apache-2.0
/// \file
/// Small things that every kernel and every launch of the library needs.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "winnow/detail/util/device_attribute.hpp"
#include "winnow/status.hpp"
#include "winnow/storage.hpp"

namespace winnow::detail {

inline constexpr unsigned all_lanes = 0xffffffffu;

/// Whether kernels of one call overlap in the stream: the next one is launched while the last blocks
/// of its predecessor finish, and waits in `wait_for_predecessor`. Its blocks do not come earlier than
/// that: they would crowd the multiprocessors that the predecessor has not filled evenly yet, which
/// costs more than the launch.
inline constexpr bool overlap_launches = true;

/// First statement of every kernel that `launch` submits, or `begin_beside`. Until then nothing may touch
/// memory that another kernel writes or reads.
__device__ inline void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (overlap_launches) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// From here on the kernel's successor may be launched, as soon as all blocks have come here: for kernels
/// whose blocks run all at once, so that those of the successor take nobody's place.
__device__ inline void admit_successor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (overlap_launches) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Kernels of a call that do not depend on each other run beside each other: the first one waits for what
/// came before the call, and the others begin when all blocks of their predecessor have. Each ends
/// after its predecessor, so that who waits for the last one waits for all. Whoever comes next may be there
/// as early and wait: no block of this call needs a place any more.
template <class Place>
__device__ void begin_beside(const Place& place) {
  if (place.is_first) wait_for_predecessor();
  if (place.admits) admit_successor();
}
/// \param is_block one block of the kernel
template <class Place>
__device__ void end_beside(const Place& place, bool is_block) {
  if (!place.is_first && is_block) wait_for_predecessor();
}

/// Can the current device overlap kernels? From compute capability 9.0.
inline bool can_overlap_launches() noexcept {
#if CUDART_VERSION >= 12030  // earlier ones cannot capture such launches
  return overlap_launches && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
#else
  return false;
#endif
}

/// Lets blocks of a kernel have so many bytes of dynamic shared memory.
template <class Kernel>
cudaError_t allow_shared_memory(Kernel kernel, std::size_t bytes) noexcept {
  return bytes > 48 * 1024
             ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes))
             : cudaSuccess;
}

/// Submits a kernel, which has to begin with `wait_for_predecessor` or `begin_beside`.
template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 blocks, int threads,
                          std::size_t shared_bytes, cudaStream_t stream,
                          Arguments&&... arguments) noexcept {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = can_overlap_launches() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

/// The same without dynamic shared memory. A refused launch becomes a status.
template <class... Parameters, class... Arguments>
status launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, int threads,
              cudaStream_t stream, Arguments&&... arguments) noexcept {
  const cudaError_t error =
      launch_kernel(kernel, blocks, threads, 0, stream, std::forward<Arguments>(arguments)...);
  if (error != cudaSuccess)
    return status::failure(status_code::cuda_error, "%s: %s", name, cudaGetErrorString(error));
  return {};
}

/// Submits the zeroing of `bytes` bytes.
inline status submit_clear(void* memory, std::size_t bytes, cudaStream_t stream) noexcept {
  const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, stream);
  if (error != cudaSuccess)
    return status::failure(status_code::cuda_error, "clear: %s", cudaGetErrorString(error));
  return {};
}

template <class T>
WINNOW_HOST_DEVICE constexpr T divide_up(T a, T b) noexcept {
  return (a + b - 1) / b;
}

/// Floats and integers as unsigned numbers of the same order.
__device__ inline std::uint32_t to_ordered(float value) noexcept {
  const std::uint32_t bits = __float_as_uint(value);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float ordered_to_float(std::uint32_t ordered) noexcept {
  return __uint_as_float(ordered ^ (ordered >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}
__device__ inline std::uint32_t to_ordered(std::int32_t value) noexcept {
  return static_cast<std::uint32_t>(value) ^ 0x80000000u;
}
__device__ inline std::int32_t ordered_to_int(std::uint32_t ordered) noexcept {
  return static_cast<std::int32_t>(ordered ^ 0x80000000u);
}

__device__ inline int lane_id() noexcept {
  return static_cast<int>(threadIdx.x % 32);
}
__device__ inline int warp_id() noexcept {
  return static_cast<int>(threadIdx.x / 32);
}
/// The lanes before this one.
__device__ inline unsigned lanes_below() noexcept {
  return (1u << lane_id()) - 1u;
}

/// Σ over the lanes up to and including this one. \tparam Integer of 32 or 64 bits.
template <class Integer>
__device__ inline Integer warp_inclusive_sum(Integer value) noexcept {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Integer below = __shfl_up_sync(all_lanes, value, step);
    if (lane_id() >= step) value += below;
  }
  return value;
}

/// How many tokens there are: `*pointer` clamped to [0, capacity], or `capacity` without one.
__device__ inline std::int32_t device_count(const std::int32_t* pointer,
                                            std::int32_t capacity) noexcept {
  return pointer != nullptr ? min(max(*pointer, 0), capacity) : capacity;
}

/// \name Words that blocks of one running kernel pass to each other
///
/// A word carries its value and says whether it is ready, so no fence goes with it: relaxed
/// accesses, which reach the L2 and are never cached above it, suffice.
/// @{
__device__ inline std::uint32_t load_relaxed(const std::uint32_t* address) noexcept {
  std::uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
  return word;
}
__device__ inline uint2 load_relaxed(const uint2* address) noexcept {
  uint2 words;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(address)
               : "memory");
  return words;
}
__device__ inline void store_relaxed(std::uint32_t* address, std::uint32_t word) noexcept {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(word) : "memory");
}
__device__ inline void store_relaxed(uint2* address, uint2 words) noexcept {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(words.x),
               "r"(words.y)
               : "memory");
}
/// @}

/// What a tile tells its successors in a chained scan, in one word: 0 nothing yet, `count + 1` its
/// own count, or with the top bit set the count of all tiles up to and including it. Counts of all
/// tiles stay below 2³¹, those of a single tile far below.
namespace chain {
inline constexpr std::uint32_t complete = 0x80000000u;
__device__ inline std::uint32_t own(std::uint32_t count) noexcept {
  return count + 1;
}
__device__ inline std::uint32_t through(std::uint32_t count) noexcept {
  return count | complete;
}

/// The count of all tiles before `tile`, found by one whole warp that looks back 32 tiles at a
/// time; publishes this tile's words. All lanes return the result.
/// Tiles wait for earlier ones only, and blocks start in the order of their index.
__device__ inline std::uint32_t count_before(std::uint32_t* words, int tile,
                                             std::uint32_t count) noexcept {
  if (tile == 0) {
    if (lane_id() == 0) store_relaxed(words, through(count));
    return 0;
  }
  if (lane_id() == 0) store_relaxed(words + tile, own(count));
  std::uint32_t before = 0;
  for (int row = tile - 1;;) {
    // Lane l looks at tile row - l; lanes in front of tile 0 see a complete nothing.
    const int seen = row - lane_id();
    std::uint32_t word = seen >= 0 ? load_relaxed(words + seen) : complete;
    unsigned ends;
    int last;
    for (;;) {
      ends = __ballot_sync(all_lanes, (word & complete) != 0);
      last = ends != 0 ? __ffs(static_cast<int>(ends)) - 1 : 31;
      // Only the words up to the nearest complete one are needed.
      if (!__any_sync(all_lanes, word == 0 && lane_id() < last + 1)) break;
      if (word == 0) word = load_relaxed(words + seen);
    }
    const std::uint32_t part = lane_id() > last         ? 0
                               : (word & complete) != 0 ? word & ~complete
                                                        : word - 1;
    before += __reduce_add_sync(all_lanes, part);
    if (ends != 0) break;
    row -= 32;
  }
  if (lane_id() == 0) store_relaxed(words + tile, through(before + count));
  return before;
}
}  // namespace chain

}  // namespace winnow::detail
