// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace winnow::eval {

/// How many windows there are and how many tokens they hold.
struct window_statistics {
  std::int64_t windows = 0;
  std::int64_t p50 = 0, p90 = 0, p99 = 0, largest = 0;  ///< tokens of a window, over windows
  std::int64_t pairs = 0;                               ///< sum of squares
};

/// \param offsets window -> first slot, one more than there are windows.
window_statistics statistics_of(const std::vector<std::int32_t>& offsets);

/// What attention on a list of pairs keeps in memory at the same windows. A pair has two int32
/// indices and, if contextual, three int32 relative indices; forward holds logits and softmax
/// [pairs, heads] in the storage type, backward their gradients as well.
struct pair_list_bytes {
  std::int64_t forward = 0;
  std::int64_t backward = 0;
};
pair_list_bytes pair_list_of(std::int64_t pairs, int heads, bool contextual,
                             std::int64_t storage_bytes);

}  // namespace winnow::eval
