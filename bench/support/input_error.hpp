// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the tools throw for a file or argument of the user's that cannot be used.
#pragma once

#include <stdexcept>
#include <string>

namespace winnow::support {

/// `what()` is one line, "NAME: what is wrong". Tools print it on stderr and exit with 2.
class input_error : public std::runtime_error {
 public:
  input_error(const std::string& name, const std::string& what_is_wrong)
      : std::runtime_error(name + ": " + what_is_wrong) {}
};

}  // namespace winnow::support
