// SPDX-License-Identifier: Apache-2.0
/// \file
/// One query and what it attends to: the weights that no call of the library ever stores.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "eval/backend.hpp"
#include "support/point.hpp"
#include "winnow/partition.hpp"

namespace winnow::eval {

/// Windows of more tokens are not picked: a picture of them would show little.
inline constexpr std::int32_t largest_sample = 128;

/// A query and the head it is looked at in.
struct sampled_query {
  std::int32_t window = 0;
  std::int32_t slot = 0;
  int head = 0;
};

/// The token nearest the middle of a window of 2 to `largest_sample` tokens: among those at least
/// half as large as the largest of them, the one that reaches farthest.
/// \param windows in host memory.
std::optional<sampled_query> pick_query(const partition& windows,
                                        const std::vector<support::point>& coordinates);

/// A window and a query's weights in it, all lists by token of the window.
struct attention_sample {
  std::int32_t window = 0;
  int head = 0;
  std::int32_t query = 0;  ///< index into the lists
  std::vector<std::int32_t> tokens;
  std::vector<support::point> coordinates;
  std::vector<double> plain, contextual;  ///< attention weights
};
attention_sample describe(const sampled_query& sampled, const partition& windows,
                          const std::vector<support::point>& coordinates);

/// The softmax row P_ij of a query i, for all j of its window in the order of slots, by the host
/// reference in double. The window is given to it alone, with one-hot rows as values: the output
/// then is the weights.
std::vector<double> attention_weights(const partition& windows, const sampled_query& sampled,
                                      const attention_tensors& tensors);

/// token -> window, -1 for tokens in none.
std::vector<std::int32_t> windows_of_tokens(const partition& windows);

}  // namespace winnow::eval
