// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

#include "support/input_error.hpp"
#include "winnow/status.hpp"

namespace winnow::eval {

/// Throws unless a call of the library succeeded. An argument that it refuses is one that the user
/// asked for.
inline void require(const char* name, const status& outcome) {
  if (outcome.code() == status_code::invalid_argument)
    throw support::input_error(name, outcome.message());
  if (!outcome.ok()) throw std::runtime_error(std::string(name) + ": " + outcome.message());
}

}  // namespace winnow::eval
