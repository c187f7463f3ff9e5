// SPDX-License-Identifier: Apache-2.0
#include "support/failing_allocation.hpp"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

int left = -1;
bool refused = false;

void* allocate(std::size_t size) noexcept {
  if (left == 0) {
    refused = true;
    return nullptr;
  }
  if (left > 0) --left;
  return std::malloc(size > 0 ? size : 1);
}

}  // namespace

void winnow::test::limit_allocations(int count) noexcept {
  left = count;
  refused = false;
}

bool winnow::test::allocation_was_refused() noexcept {
  return refused;
}

void* operator new(std::size_t size) {
  if (void* memory = allocate(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size);
}
// Arrays too: a sanitizer's runtime has its own, which would pass by the ones above.
void* operator new[](std::size_t size) {
  return operator new(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
