// SPDX-License-Identifier: Apache-2.0
/// \file
/// Heap memory that runs out on demand. failing_allocation.cpp replaces the global operator new.
#pragma once

#include <gtest/gtest.h>

#include "winnow/status.hpp"

namespace winnow::test {

/// How many more allocations succeed; a negative number: all of them.
void limit_allocations(int count) noexcept;
/// Whether one was refused since the last call of `limit_allocations`.
bool allocation_was_refused() noexcept;

/// Runs `call` again and again and refuses its first allocation, then its second and so on, until it
/// gets through. Every refusal must come back as out_of_memory.
template <class Call>
void refuse_each_allocation(Call&& call) {
  for (int count = 0;; ++count) {
    limit_allocations(count);
    const status done = call();
    const bool refused = allocation_was_refused();
    limit_allocations(-1);
    if (!refused) {
      EXPECT_TRUE(done.ok()) << done.message();
      EXPECT_GT(count, 0) << "it allocates nothing";
      return;
    }
    ASSERT_TRUE(done.ok() || done.code() == status_code::out_of_memory)
        << count << ": " << done.message();
  }
}

}  // namespace winnow::test
