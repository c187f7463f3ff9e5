// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/status.hpp"

namespace winnow::detail {

/// Is the caller's workspace there, aligned and large enough? Null is fine where nothing is needed.
inline status check_workspace(const void* workspace, std::size_t bytes,
                              std::size_t needed) noexcept {
  WINNOW_REQUIRE(workspace != nullptr || needed == 0, "workspace: is null");
  WINNOW_REQUIRE(reinterpret_cast<std::uintptr_t>(workspace) % 16 == 0,
                 "workspace: address %p is not aligned to 16 bytes", workspace);
  if (bytes < needed)
    return status::failure(status_code::workspace_too_small,
                           "workspace_bytes: %zu, the call needs %zu", bytes, needed);
  return {};
}

}  // namespace winnow::detail
