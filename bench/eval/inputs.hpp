// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/options.hpp"
#include "support/point.hpp"

namespace winnow::eval {

/// The tokens to evaluate and where they come from.
struct token_set {
  std::string source;          ///< for the reader, "simulated 64-beam LiDAR, seed 0"
  std::int64_t points = 0;     ///< before voxels were made; equal to `available` for ready tokens
  std::int64_t available = 0;  ///< tokens before --max-tokens
  std::vector<support::point> coordinates;
  std::vector<std::int32_t> batch;

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(coordinates.size()); }
};

/// \throw support::input_error for a file that cannot be used.
token_set load_tokens(const options& asked);

}  // namespace winnow::eval
