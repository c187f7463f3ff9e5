// SPDX-License-Identifier: Apache-2.0
/// \file
/// Runs a case.
#pragma once

#include <string>
#include <vector>

#include "replay/executor.hpp"
#include "replay/replay_case.hpp"
#include "winnow/storage.hpp"

namespace winnow::replay {

struct named_array {
  std::string name;  ///< "out", "grad_table_q.1", …: the file's name without .npy
  npy_array array;   ///< float32, or int32 for "kept"
};

using case_results = std::vector<named_array>;

/// Computes a case with inputs and results in a storage type.
/// \throw support::input_error with the library's message for what the library refuses; its
///        message begins with `name`.
case_results run_case(const replay_case& input, dtype storage, const std::string& name,
                      executor& device);

}  // namespace winnow::replay
