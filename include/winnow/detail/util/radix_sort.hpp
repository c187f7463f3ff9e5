// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "winnow/detail/util/parallel.hpp"

namespace winnow::detail {

/// A sort key and the token it belongs to.
struct keyed_token {
  std::uint64_t key;
  std::int32_t token;
};

/// Stable parallel sort by `key`, of which only the low `bits` are used. Eight bits a pass.
///
/// Each pass cuts the array into one piece per thread, counts digits per piece, turns the counts
/// into the place where each (digit, piece) begins, and scatters. The result does not depend on the
/// number of pieces, as the sort is stable. May throw std::bad_alloc.
inline status radix_sort(std::vector<keyed_token>& items, int bits, int threads) {
  constexpr int digits = 256;
  const auto total = static_cast<std::int64_t>(items.size());
  const std::int64_t pieces =
      std::max<std::int64_t>(1, std::min<std::int64_t>(thread_count(threads), total / 4096));
  std::vector<keyed_token> other(items.size());
  std::vector<std::array<std::int64_t, digits>> places(static_cast<std::size_t>(pieces));
  for (int shift = 0; shift < bits; shift += 8) {
    const auto digit = [shift](const keyed_token& item) { return (item.key >> shift) & 0xffu; };
    WINNOW_TRY(parallel_for(pieces, threads, [&](std::int64_t p) {
      auto& counts = places[static_cast<std::size_t>(p)];
      counts.fill(0);
      const index_range range = piece(total, pieces, p);
      for (std::int64_t i = range.begin; i < range.end; ++i) ++counts[digit(items[i])];
    }));
    std::int64_t place = 0;
    for (int d = 0; d < digits; ++d)
      for (auto& counts : places) place += std::exchange(counts[d], place);
    WINNOW_TRY(parallel_for(pieces, threads, [&](std::int64_t p) {
      auto& cursor = places[static_cast<std::size_t>(p)];
      const index_range range = piece(total, pieces, p);
      for (std::int64_t i = range.begin; i < range.end; ++i)
        other[cursor[digit(items[i])]++] = items[i];
    }));
    items.swap(other);
  }
  return {};
}

}  // namespace winnow::detail
