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

window_statistics statistics_of(const partition& windows) {
  std::vector<std::int64_t> sizes;
  window_statistics result;
  for (std::int32_t w = 0; w < windows.counts->windows; ++w) {
    const std::int64_t size = std::int64_t{windows.offsets[w + 1]} - windows.offsets[w];
    sizes.push_back(size);
    result.pairs += size * size;
    std::size_t bin = 0;
    while (size >> (bin + 1) > 0) ++bin;
    while (result.bins.size() <= bin) {
      const std::int64_t from = std::int64_t{1} << result.bins.size();
      result.bins.push_back({from, 2 * from - 1, 0, 0});
    }
    ++result.bins[bin].windows;
    result.bins[bin].tokens += size;
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

std::int64_t tensor_bytes_of(std::int64_t tokens, int heads, int head_dim, int table_rows,
                             std::int64_t storage_bytes) {
  const std::int64_t rows = tokens * heads * head_dim;
  const std::int64_t tables = std::int64_t{3} * table_rows * 3 * heads * head_dim;
  return 8 * rows * storage_bytes + 4 * tokens * heads + tables * (storage_bytes + 4);
}

}  // namespace winnow::eval
