// SPDX-License-Identifier: Apache-2.0
/// \file
/// The shape of a block of forward_long_wgmma.cuh, and its shared memory.
#pragma once

#include <cstddef>

#include "winnow/detail/attention/forward_long_layout.hpp"

namespace winnow::detail {

/// Is there a kernel of long windows for the target sm_90a?
constexpr bool takes_wgmma(std::size_t element_bytes, int head_dim) {
  return element_bytes == 2 && head_dim <= 64;
}

/// \tparam D padded head dim.
template <int D>
struct forward_wgmma_layout {
  static constexpr int head_dim = D;
  static constexpr int window = forward_long_layout<D>::window;
  static constexpr int groups = 4;       ///< warpgroups that multiply
  static constexpr int group_rows = 64;  ///< of each
  static constexpr int rows = groups * group_rows;
  static constexpr int row_tiles = rows / long_tile;
  static constexpr int warps = 4 * groups + 4;  ///< the last four copy
  static constexpr int min_blocks = 1;
  /// Of a thread that multiplies and of one that copies; they start with 96 each.
  static constexpr int registers = D <= 32 ? 104 : 112;
  static constexpr int copy_registers = D <= 32 ? 56 : 32;
  static constexpr int keys = 64;  ///< of a tile
  /// Of keys and values: scores are a tile ahead of values, and warpgroups apart from each other.
  static constexpr int stages = 8;
  static constexpr int pending = 2;  ///< that may be on their way when one is announced

  static constexpr int row_bytes = 2 * D;  ///< swizzled: see wgmma.cuh
  static constexpr int tile_bytes = keys * row_bytes;
  static constexpr int query_bytes = rows * row_bytes;

  static constexpr int query = 0;                                      // T [2][rows]
  static constexpr int key_tiles = query + 2 * query_bytes;            // T [stages][keys]
  static constexpr int value_tiles = key_tiles + stages * tile_bytes;  // T [stages][keys]
  static constexpr int full = value_tiles + stages * tile_bytes;       // barriers [stages]
  static constexpr int empty = full + 8 * stages;                      // barriers [stages]
  static constexpr int query_empty = empty + 8 * stages;               // barriers [2]
  static constexpr int items = query_empty + 8 * 2;        // int4 [warps][32], what comes next
  static constexpr int windows = items + 16 * 32 * warps;  // int2 [rows]
  static constexpr int tokens = windows + 8 * rows;        // int [rows]
  static constexpr int most_heads = 4;              ///< that a block computes one after the other
  static constexpr int broken = tokens + 4 * rows;  // uint32 [heads][warps], a bit for each row
  static constexpr int record_bytes = 32;           // of a warp's item
  static constexpr int records = broken + 4 * most_heads * warps;  // [warps]
  static constexpr int bytes = records + record_bytes * warps;
  static_assert(bytes <= 227 * 1024 || !takes_wgmma(2, D));
  static_assert(pending * keys < window,
                "a head's first rows of q wait for no tile of the one before");
};

}  // namespace winnow::detail
