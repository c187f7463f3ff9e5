// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "swin/options.hpp"

namespace winnow::swin {

/// `winnow-swin latency`: a table of GPU and wall times, dense first, and a JSON file if asked for.
void run_latency_command(const latency_options& asked);

}  // namespace winnow::swin
