// SPDX-License-Identifier: Apache-2.0
/// \file
/// Warps and shared memory of contextual_ring_kernel.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

/// A block's shared memory: tables of two heads as in contextual_heads_layout, what each reader has, and the ring.
struct contextual_ring_layout {
  using warp_layout = contextual_heads_layout<true>;
  static constexpr contextual_tuning tuning = warp_layout::tuning;
  static constexpr int heads = warp_layout::heads;
  static constexpr int readers = 10;  ///< warps that attend
  static constexpr int makers = 2;    ///< warps that multiply keys
  static constexpr int warps = readers + makers;
  static constexpr int threads = 32 * warps;
  static constexpr int counters = 8;  ///< warps that look at windows while the others load tables
  static constexpr int rows = 16;     ///< of a tile
  static constexpr int share_rows = 32;     ///< that make a block worthwhile
  static constexpr int keys = 16;           ///< of a group
  static constexpr bool only_right = true;  ///< are keys but right factors where rows are?
  /// Do keys' positions lie as they are compared: twice each, and those of neighbours together?
  static constexpr bool pairs_positions = true;
  static constexpr bool loads_early = true;    ///< are there registers for V before weights?
  static constexpr bool scales_tables = true;  ///< Tk is kept over the scale, a power of two
  /// Are sums of weights by cell halves, and those of Gq? Such products are faster. Weights take half of the registers
  /// and meet Tv every so many groups of keys: 256 weights fit a half, as in `weight_range`.
  static constexpr bool sums_halves = true;
  static constexpr int groups_of_sums = 16;
  /// Does each lane of a quad have four neighbouring keys? Those that a quad looks up together then have other radial
  /// rows more often.
  static constexpr bool spreads_keys = true;
  /// Where a tile's rows of q are: a reader has those of one tile.
  WINNOW_HOST_DEVICE static constexpr int query_tile(int tile) { return tile / tiles_of_reader; }
  /// Whose rows it has otherwise: the one that it attends for, and its next one.
  static constexpr int tiles_of_reader = 2;
  static constexpr int tiles = tiles_of_reader * readers;
  static constexpr int slots = 10;             ///< of products of groups of keys
  static constexpr int key_slots = slots + 1;  ///< of K and V
  static constexpr int parts = 1;
  static constexpr bool in_halves = false;
  static constexpr int stages = 1;
  static constexpr int buffer_rows = rows;
  static constexpr bool shares_scratch = false;
  static constexpr bool attends_at_once = false, takes_neighbours = false;
  static constexpr bool sums_neighbours = warp_layout::sums_neighbours;
  static constexpr bool turns_rows = true;
  static constexpr int axes = warp_layout::axes;
  static constexpr int cells = warp_layout::cells;
  static constexpr int row_bytes = warp_layout::row_bytes;
  static constexpr int tile_bytes = warp_layout::tile_bytes;
  static constexpr int query_buffers = 1;
  static constexpr int radial_element = warp_layout::radial_element;
  static constexpr int radial_bytes = warp_layout::radial_bytes;
  WINNOW_HOST_DEVICE static constexpr int key_row(int key) { return warp_layout::key_row(key); }
  static constexpr int radial_sums_bytes = warp_layout::radial_sums_bytes;
  static constexpr int row_radial = warp_layout::row_radial;
  WINNOW_HOST_DEVICE static constexpr int radial_row(int row) {
    return warp_layout::radial_row(row);
  }

  static constexpr int table_bytes = warp_layout::table_bytes;
  static constexpr int tables = 0;
  static constexpr int axis_bytes = tile_rows * row_bytes;  // not padded
  static constexpr int value_table = tables + 2 * table_bytes;
  static constexpr int head_bytes = value_table + 3 * axis_bytes;

  static constexpr int row_bounds = heads * head_bytes;            // int2 [tiles][rows]
  static constexpr int row_order = row_bounds + 8 * tiles * rows;  // int [tiles][rows]
  static constexpr int row_code = row_order + 4 * tiles * rows;    // uint32 [tiles][rows]
  static constexpr int row_radius = row_code + 4 * tiles * rows;   // float [tiles][rows]
  static constexpr int query = row_radius + 4 * tiles * rows;      // T [readers][heads][rows]
  static constexpr int query_bytes = heads * tile_bytes;
  /// A group's K and V, T [heads][K, V][keys], positions as halves to compare, of a key, half2 [keys][2 axes], and of
  /// two neighbours, half2 [keys / 2][2 axes], and radii, float [keys].
  static constexpr int key_groups = query + readers * query_bytes;  // [key_slots]
  static constexpr int group_bytes = heads * 2 * tile_bytes;
  static constexpr int key_code = group_bytes, key_columns = key_code + 8 * keys;
  static constexpr int key_radius = key_columns + 4 * keys;
  static constexpr int key_group_bytes = key_radius + 4 * keys;
  /// Products of a group's keys by cell, as lanes need them, uint4 [heads][product_pairs][32], and by radial row,
  /// [keys] from `key_row` on. Then barriers.
  static constexpr int products = key_groups + key_slots * key_group_bytes;  // [slots]
  static constexpr int product_pairs = (cells / 8 + 1) / 2;
  static constexpr int cell_bytes = heads * product_pairs * 512;
  static constexpr int key_products = cell_bytes;
  static constexpr int full = key_products + warp_layout::key_row(keys);
  static constexpr int empty = full + 8;
  static constexpr int slot_bytes = empty + 8;
  /// Slots are named by where they begin.
  WINNOW_HOST_DEVICE static constexpr int codes_at(int group) { return group + key_code; }
  WINNOW_HOST_DEVICE static constexpr int columns_at(int group) { return group + key_columns; }
  WINNOW_HOST_DEVICE static constexpr int radii_at(int group) { return group + key_radius; }
  WINNOW_HOST_DEVICE static constexpr int tiles_at(int group) { return group; }
  WINNOW_HOST_DEVICE static constexpr int products_at(int slot) { return slot + key_products; }
  static constexpr int scratch = products + slots * slot_bytes;  // of readers
  static constexpr int scratch_bytes = warp_layout::radial_row(rows);
  /// Where lanes' quarters of two heads' results begin, of each lane of a quad.
  static constexpr int results = scratch + readers * scratch_bytes;
  static constexpr int has_values = results + 4 * 8;   // barrier
  static constexpr int most_tiles = 351;               ///< of a turn
  static constexpr int list = has_values + 16;         // ring_tile [most_tiles]
  static constexpr int made = list + 16 * most_tiles;  // int [makers], the groups that are there
  static constexpr int needed =
      made + 4 * makers;  // int [readers], the first group that each still needs
  static constexpr int turn = needed + 4 * readers;  // ring_turn
  static constexpr int bad = turn + 12;              // int
  static constexpr int position = bad + 4;           // ring_position
  static constexpr std::size_t bytes = (position + 20 + 15) / 16 * 16;
  /// Before readers need it: what chunks of windows cost, int [most_chunks].
  static constexpr int chunk_costs = scratch;
  static constexpr int most_chunks = 513;
  static constexpr int chunk_sums = chunk_costs + 4 * most_chunks;  // int [5][warps]

  static_assert(query % 16 == 0 && key_groups % 16 == 0 && key_group_bytes % 16 == 0 &&
                products % 16 == 0 && slot_bytes % 16 == 0 && scratch % 16 == 0 && list % 16 == 0);
  static_assert(4 * (most_chunks + 5 * warps) <= readers * scratch_bytes);
  static_assert(bytes <= 227 * 1024);
};

}  // namespace winnow::detail
