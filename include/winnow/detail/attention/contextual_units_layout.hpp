// SPDX-License-Identifier: Apache-2.0
/// \file
/// Shared memory of contextual_units_kernel.cuh. One description serves the launch (how many bytes) and the
/// kernel (where things are).
#pragma once

#include <cstddef>

#include "winnow/detail/attention/contextual_layout.hpp"

namespace winnow::detail {

/// \tparam Heads at a time: two, or one of an odd number.
template <int Heads>
struct contextual_units_layout {
  static constexpr contextual_tuning tuning{1, 16, 16, 1, true, 3, 1, 1};
  static constexpr int heads = Heads;
  static constexpr int warps = Heads == 2 ? 12 : 16;  ///< of a block
  static constexpr int threads = 32 * warps;
  // What contextual_block.cuh asks for.
  static constexpr int rows = 16, keys = 16;
  static constexpr int slots = 2;  ///< of groups of keys, and of rows
  static constexpr int parts = 1, stages = 1, buffer_rows = rows, query_buffers = 1;
  static constexpr bool in_halves = false, shares_scratch = true, attends_at_once = false,
                        takes_neighbours = false, sums_neighbours = false;
  static constexpr int axes = 3;
  static constexpr int cells = axes * tile_cells;
  static constexpr int radial_element = 0;
  /// Rows of 32 bytes are not padded. Halves of every other four rows change places instead.
  static constexpr bool turns_rows = true;
  static constexpr int row_bytes = 32;
  static constexpr int tile_bytes = keys * row_bytes;  ///< of K, V or q of one head
  /// Tables of a head.
  static constexpr int table_bytes = 3 * tile_rows * row_bytes;
  static constexpr int tables = 0;
  static constexpr int axis_bytes = tile_rows * row_bytes;
  static constexpr int value_table = tables + 2 * table_bytes;
  static constexpr int head_bytes = value_table + 3 * axis_bytes;

  // What a block finds in its slots, a part of them at a time.
  static constexpr int stripe = 16;                  ///< neighbouring slots that a block takes
  static constexpr int rounds = Heads == 2 ? 6 : 5;  ///< a warp looks at two stripes in each
  static constexpr int longest_short = 16;           ///< tokens of windows that units hold
  /// Windows that start in a stripe fit two units, and what is packed here takes at most 11/9 as many as needed.
  static constexpr int most_units = 2 * 2 * rounds * 11 / 9 + 1;
  static constexpr int most_tiles = 2 * 2 * rounds;
  static constexpr int most_single = 32 * rounds;
  /// A unit: tokens and positions of 16 rows.
  static constexpr int unit_tokens = 0;                    // int32 [16]
  static constexpr int unit_codes = unit_tokens + 4 * 16;  // uint32 [16]
  static constexpr int unit_marks =
      unit_codes + 4 * 16;  // uint32, a bit where a window starts or the last has ended
  static constexpr int unit_bytes = unit_marks + 8;

  // The block's memory: tables, then
  /// What contextual_units_cells.cuh loads one-hot rows from: 16 bytes for each of eight rows.
  static constexpr int one_hots = heads * head_bytes;
  static constexpr int one_hot_bytes = 8 * 16, one_hot_blocks = 3 * 8 + 3;
  static constexpr int pointers = one_hots + one_hot_blocks * one_hot_bytes;  // of lanes of a quad
  static constexpr int pointers_of_lane = 4 + heads;  // q, k, v, out of each head, LSE
  static constexpr int table_sums = pointers + 4 * 8 * pointers_of_lane;  // float [heads][3][16]
  static constexpr int counters = table_sums + 4 * heads * 3 * 16;        // int [8]
  static constexpr int unit_counts = counters + 32;  // int2 [warps], units and those that are taken
  static constexpr int tiles = unit_counts + 8 * 16;                       // int4
  static constexpr int units = tiles + 16 * warps * most_tiles;            // of each warp
  static constexpr int singles = units + warps * most_units * unit_bytes;  // int32
  static constexpr int block_bytes = (singles + 4 * warps * most_single + 15) / 16 * 16;
  static_assert(warps <= 16);

  // A warp's memory.
  // A slot: T [q, k, v][heads][16], and of tiles in longer windows keys' positions, rows' tokens and positions.
  static constexpr int key_code = heads * 3 * tile_bytes;  // uint32 [16]
  static constexpr int later_token = key_code + 4 * 16;    // int32 [16], of the group behind
  static constexpr int row_token = later_token + 4 * 16;   // int32 [16]
  static constexpr int row_code = row_token + 4 * 16;      // uint32 [16]
  static constexpr int step_bytes = row_code + 4 * 16;
  static constexpr int steps = 0;  // [slots]
  /// The rows' products, of lanes.
  static constexpr int products = steps + slots * step_bytes;  // [heads]
  static constexpr int products_bytes = 32 * 4 * 2 * cells / 8;
  static constexpr int warp_bytes = products + heads * products_bytes;
  /// Before all that: what contextual_units_deal.cuh deals out.
  static constexpr int dealt_windows = 16384;      ///< of all
  static constexpr int part_windows = 12288;       ///< of a part, where there are more
  static constexpr int dealt_slots = block_bytes;  // int, where windows begin
  static constexpr int dealt_ends =
      dealt_slots + 4 * dealt_windows;                            // int, where every fourth ends
  static constexpr int dealt_costs = dealt_ends + dealt_windows;  // int, of each thread
  static_assert(dealt_costs + 4 * threads <= block_bytes + warps * warp_bytes);
  static constexpr std::size_t bytes = block_bytes + warps * warp_bytes;

  static_assert(pointers % 16 == 0 && units % 16 == 0 && tiles % 16 == 0 && warp_bytes % 16 == 0);
  static_assert(bytes <= 227 * 1024);
};

}  // namespace winnow::detail
