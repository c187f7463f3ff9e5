// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <new>
#include <stdexcept>

#include "winnow/status.hpp"

namespace winnow::detail {

/// Runs `body`, which returns a status, turning a failed allocation into one.
template <class Body>
status guard_allocation(Body&& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return status::failure(status_code::out_of_memory, "a temporary could not be allocated");
  } catch (const std::length_error&) {
    return status::failure(status_code::out_of_memory, "a temporary exceeds the address space");
  }
}

}  // namespace winnow::detail
