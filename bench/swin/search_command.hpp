// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "swin/options.hpp"

namespace winnow::swin {

/// `winnow-swin search`: ratios with the best score inside a latency band; progress, a log and a picture.
void run_search_command(const search_command_options& asked);

}  // namespace winnow::swin
