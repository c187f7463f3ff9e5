// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a block of forward_long.cuh or forward_long_wgmma.cuh takes at a time: a tile of rows and a column of
/// heads, columns fastest; from `whole_items` on, only one of the column's heads.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

/// Is there any window for the kernel?
template <class Layout>
__device__ __forceinline__ bool has_long_windows(const forward_problem& problem) {
  bool any = false;
  for (int g = 0; g < problem.group_count; ++g)
    any |= problem.groups[g].has_long_tiles && problem.groups[g].counts->largest >= Layout::window;
  return any;
}

/// \tparam MostHeads of a column.
template <int MostHeads>
struct long_part {
  int code;

  __device__ int column() const { return code / (MostHeads + 1); }
  /// From 1 on; 0: all of the column's heads.
  __device__ int number() const { return code % (MostHeads + 1); }
};

struct long_heads {
  int first;  ///< of the group's
  int count;  ///< 0 or less: a last column may lack that part
};

__device__ __forceinline__ int group_of_column(const forward_problem& problem, int column) {
  int g = 0;
  while (g + 1 < problem.group_count && column >= problem.groups[g + 1].first_index) ++g;
  return g;
}

template <int MostHeads>
__device__ __forceinline__ long_heads heads_of(const forward_problem& problem,
                                               const group_problem& group,
                                               long_part<MostHeads> part) {
  const int first = (part.column() - group.first_index) * problem.heads_per_block;
  const int number = part.number();
  if (number == 0) return {first, min(problem.heads_per_block, group.heads - first)};
  return {first + number - 1, min(1, group.heads - first - number + 1)};
}

__device__ __forceinline__ std::int64_t count_long_items(const forward_problem& problem,
                                                         std::int64_t tiles, int columns) {
  const std::int64_t whole = min(problem.whole_items, tiles * columns);
  return whole + (tiles * columns - whole) * problem.heads_per_block;
}

/// \param[out] tile of an item's rows.
template <int MostHeads>
__device__ __forceinline__ long_part<MostHeads> find_long_item(const forward_problem& problem,
                                                               int columns, std::int64_t number,
                                                               std::int64_t& tile) {
  std::int64_t item = number;
  int part = 0;
  if (number >= problem.whole_items) {
    const std::int64_t single = number - problem.whole_items;
    item = problem.whole_items + single / problem.heads_per_block;
    part = static_cast<int>(single % problem.heads_per_block) + 1;
  }
  tile = item / columns;
  return {static_cast<int>(item - tile * columns) * (MostHeads + 1) + part};
}

}  // namespace winnow::detail
