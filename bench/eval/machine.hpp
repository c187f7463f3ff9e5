// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace winnow::eval {

/// The processor's model name; "unknown" where the system does not say.
std::string cpu_model();
/// How many threads a request for `threads` (0: all) gets.
int used_threads(int threads);

}  // namespace winnow::eval
