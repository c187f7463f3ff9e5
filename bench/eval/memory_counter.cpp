// SPDX-License-Identifier: Apache-2.0
#include "eval/memory_counter.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::size_t> live{0};
std::atomic<std::size_t> peak{0};

/// Each block is preceded by its size, in as many bytes as keep the block aligned.
/// \param alignment a power of two, large enough to hold the size.
void* allocate(std::size_t size, std::size_t alignment) noexcept {
  const std::size_t total = (size + alignment + alignment - 1) / alignment * alignment;
  auto* memory =
      total > size ? static_cast<std::byte*>(std::aligned_alloc(alignment, total)) : nullptr;
  if (memory == nullptr) return nullptr;
  std::byte* block = memory + alignment;
  reinterpret_cast<std::size_t*>(block)[-1] = size;
  const std::size_t now = live.fetch_add(size, std::memory_order_relaxed) + size;
  for (std::size_t known = peak.load(std::memory_order_relaxed);
       known < now && !peak.compare_exchange_weak(known, now, std::memory_order_relaxed);) {
  }
  return block;
}

void release(void* block, std::size_t alignment) noexcept {
  if (block == nullptr) return;
  live.fetch_sub(static_cast<std::size_t*>(block)[-1], std::memory_order_relaxed);
  std::free(static_cast<std::byte*>(block) - alignment);
}

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  while (true) {
    if (void* block = allocate(size, alignment)) return block;
    const std::new_handler handler = std::get_new_handler();
    if (handler == nullptr) throw std::bad_alloc();
    handler();
  }
}

constexpr std::size_t plain = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
static_assert(plain >= sizeof(std::size_t));

}  // namespace

// The array and nothrow forms of the standard library call these. The nothrow form of one object is
// here since AddressSanitizer would bring its own, whose blocks the delete below does not know.
void* operator new(std::size_t size) {
  return allocate_or_throw(size, plain);
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, plain);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept {
  release(block, plain);
}
void operator delete(void* block, std::align_val_t alignment) noexcept {
  release(block, static_cast<std::size_t>(alignment));
}
void operator delete(void* block, std::size_t) noexcept {
  release(block, plain);
}
void operator delete(void* block, std::size_t, std::align_val_t alignment) noexcept {
  release(block, static_cast<std::size_t>(alignment));
}

namespace winnow::eval {

memory_meter::memory_meter() noexcept : before_(live.load(std::memory_order_relaxed)) {
  peak.store(before_, std::memory_order_relaxed);
}

std::size_t memory_meter::peak_bytes() const noexcept {
  const std::size_t most = peak.load(std::memory_order_relaxed);
  return most > before_ ? most - before_ : 0;
}

}  // namespace winnow::eval
