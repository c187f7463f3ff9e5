// SPDX-License-Identifier: Apache-2.0
/// \file
/// Counts the heap memory of this program. memory_counter.cpp replaces the global operator new and
/// delete, which is all that C++ code allocates with; threads' stacks are not counted.
#pragma once

#include <cstddef>

namespace winnow::eval {

/// The most heap memory in use at one time since construction, beyond what was in use then.
class memory_meter {
 public:
  /// One meter at a time: a second resets the first.
  memory_meter() noexcept;
  [[nodiscard]] std::size_t peak_bytes() const noexcept;

 private:
  std::size_t before_;
};

}  // namespace winnow::eval
