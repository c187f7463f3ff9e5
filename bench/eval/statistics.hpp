// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "winnow/partition.hpp"

namespace winnow::eval {

/// The windows of `from` to `to` tokens.
struct size_bin {
  std::int64_t from = 1, to = 1;
  std::int64_t windows = 0;
  std::int64_t tokens = 0;  ///< in all of them
};

/// How many windows there are and how many tokens they hold.
struct window_statistics {
  std::int64_t windows = 0;
  std::int64_t p50 = 0, p90 = 0, p99 = 0, largest = 0;  ///< tokens of a window, over windows
  std::int64_t pairs = 0;                               ///< sum of squares
  std::vector<size_bin> bins;  ///< 1, 2-3, 4-7, 8-15, ... up to the largest window's
};

/// \param windows in host memory.
window_statistics statistics_of(const partition& windows);

/// What attention on a list of pairs keeps in memory at the same windows. A pair has two int32
/// indices and, if contextual, three int32 relative indices; forward holds logits and softmax
/// [pairs, heads] in the storage type, backward their gradients as well.
struct pair_list_bytes {
  std::int64_t forward = 0;
  std::int64_t backward = 0;
};
pair_list_bytes pair_list_of(std::int64_t pairs, int heads, bool contextual,
                             std::int64_t storage_bytes);

/// The inputs and outputs of forward and backward: q, k, v, out and their gradients, lse, and for
/// contextual attention (`table_rows` > 0) the tables in the storage type and their gradients in
/// float.
std::int64_t tensor_bytes_of(std::int64_t tokens, int heads, int head_dim, int table_rows,
                             std::int64_t storage_bytes);

}  // namespace winnow::eval
