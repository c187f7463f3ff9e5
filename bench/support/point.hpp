// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

namespace winnow::support {

/// x, y, z in metres.
using point = std::array<float, 3>;

}  // namespace winnow::support
