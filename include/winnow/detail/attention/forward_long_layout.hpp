// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which tiles forward_long.cuh takes, and the shape of its blocks.
#pragma once

#include <cstddef>

namespace winnow::detail {

/// Windows from so many tokens on may be worth tiles of 128 rows.
inline constexpr int long_window = 192;
/// Rows of a block's tile. It takes the tiles of so many consecutive slots whose first and last slot
/// lie in long windows with no other between them, and which are full.
inline constexpr int long_tile = 128;

/// \tparam D padded head dim.
template <int D>
struct forward_long_layout {
  static constexpr bool exists = D <= 64;
  /// Windows from so many tokens on are taken.
  static constexpr int window = D == 16 ? 2 * long_window : long_window;
  static constexpr int head_dim = D;
  static constexpr int warps = 4;
  static constexpr int rows = long_tile;
  static constexpr int keys = D <= 32 ? 128 : 64;  ///< of a turn
  static constexpr int min_blocks = D <= 32 ? 3 : 2;
  static constexpr int row_bytes = 2 * D + 16;
  static constexpr int tile_bytes = keys * row_bytes;
  static constexpr int key_stages = 2;
  /// Values are used up to two steps later than keys, when the next turn has begun.
  static constexpr int value_stages = 3;
  static_assert(keys % 32 == 0 && keys < long_window, "a head has two turns at least");

  static constexpr int bounds = 0;                  // int2 [rows]
  static constexpr int tokens = bounds + 8 * rows;  // int [rows]
  static constexpr int broken = tokens + 4 * rows;  // uint32 [heads][warps], a bit for each row
  static constexpr int most_heads = 4;              ///< that a block computes one after the other
  static constexpr int items = broken + 4 * most_heads * warps;  // int4 [32], what comes next
  static constexpr int lists = items + 16 * 32;                  // int [2][keys], tokens of keys
  static constexpr int query = lists + 4 * 2 * keys;             // T [rows]
  static constexpr int key_tiles = query + rows * row_bytes;     // T [key_stages][keys]
  static constexpr int value_tiles = key_tiles + key_stages * tile_bytes;  // T [value_stages][keys]
  static constexpr int bytes = value_tiles + value_stages * tile_bytes;
  static_assert(bytes <= 99 * 1024 || !exists);
};

}  // namespace winnow::detail
