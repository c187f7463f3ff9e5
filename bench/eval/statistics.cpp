// SPDX-License-Identifier: Apache-2.0
#include "eval/statistics.hpp"

#include <algorithm>
#include <cstddef>

namespace winnow::eval {
namespace {

/// The least size that at least `percent` of the windows do not exceed.
std::int64_t percentile(const std::vector<std::int64_t>& sorted, std::size_t percent) {
  if (sorted.empty()) return 0;
  const std::size_t rank = (sorted.size() * percent + 99) / 100;
  return sorted[rank - 1];
}

}  // namespace

window_statistics statistics_of(const std::vector<std::int32_t>& offsets) {
  std::vector<std::int64_t> sizes;
  window_statistics result;
  for (std::size_t w = 0; w + 1 < offsets.size(); ++w) {
    const std::int64_t size = std::int64_t{offsets[w + 1]} - offsets[w];
    sizes.push_back(size);
    result.pairs += size * size;
  }
  std::sort(sizes.begin(), sizes.end());
  result.windows = static_cast<std::int64_t>(sizes.size());
  result.p50 = percentile(sizes, 50);
  result.p90 = percentile(sizes, 90);
  result.p99 = percentile(sizes, 99);
  result.largest = percentile(sizes, 100);
  return result;
}

pair_list_bytes pair_list_of(std::int64_t pairs, int heads, bool contextual,
                             std::int64_t storage_bytes) {
  const std::int64_t indices = pairs * (contextual ? 5 : 2) * 4;
  const std::int64_t logits_and_softmax = 2 * pairs * heads * storage_bytes;
  return {indices + logits_and_softmax, indices + 2 * logits_and_softmax};
}

}  // namespace winnow::eval
