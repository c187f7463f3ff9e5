// SPDX-License-Identifier: Apache-2.0
/// \file
/// Tiles and shared memory of the contextual forward kernel. One description serves the launch (how
/// many bytes) and the kernel (where things are).
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>

#include "winnow/detail/attention/problem.hpp"

namespace winnow::detail {

/// One value serves all architectures: tiles fit the 99 KB that a block may have on each.
struct contextual_tuning {
  int warps;          ///< a warp owns 16 query rows
  int keys;           ///< keys of a turn
  int radial_keys;    ///< the same with a radial axis, whose products are longer
  int radial_stages;  ///< turns whose rows are held: two, unless that makes turns too short
  bool staged;        ///< Tq and Tk live in shared memory, in the order of the products' factors
  int value_axes;  ///< axes of Tv in shared memory: all three stay, one is loaded when it is needed
  int min_blocks;  ///< blocks the compiler leaves registers for on a multiprocessor
  int radial_blocks;  ///< the same with a radial axis, whose blocks take more shared memory

  [[nodiscard]] constexpr int rows() const { return 16 * warps; }
  [[nodiscard]] constexpr int threads() const { return 32 * warps; }
};

inline std::ostream& operator<<(std::ostream& out, const contextual_tuning& tuning) {
  return out << tuning.rows() << " rows, " << tuning.keys << " or " << tuning.radial_keys
             << " keys, tables " << (tuning.staged ? "staged" : "in place") << ", "
             << tuning.min_blocks << " or " << tuning.radial_blocks << " blocks";
}

constexpr contextual_tuning tune_contextual(std::size_t element_bytes, int head_dim) {
  if (element_bytes == 4) {
    if (head_dim == 16) return {4, 96, 64, 1, true, 3, 2, 2};
    if (head_dim == 32) return {4, 32, 32, 2, false, 1, 2, 2};
    return head_dim == 64 ? contextual_tuning{2, 16, 16, 2, false, 1, 2, 2}
                          : contextual_tuning{1, 16, 16, 2, false, 1, 2, 2};
  }
  if (head_dim == 16) return {4, 96, 112, 1, true, 3, 3, 3};
  if (head_dim == 32) return {4, 64, 32, 2, true, 3, 2, 2};
  return head_dim == 64 ? contextual_tuning{4, 32, 32, 2, false, 3, 2, 2}
                        : contextual_tuning{4, 16, 16, 2, false, 1, 2, 2};
}

/// \tparam Bytes size of an element. \tparam D padded head dim. \tparam Radial the third axis is
/// that of spherical windows.
template <int Bytes, int D, bool Radial>
struct contextual_layout {
  static constexpr contextual_tuning tuning = tune_contextual(Bytes, D);
  static constexpr int rows = tuning.rows();
  static constexpr int keys = Radial ? tuning.radial_keys : tuning.keys;
  /// Halves that a table product is kept in. One costs |G|·2⁻¹² in the logit, which is too much for
  /// float and, as |G| grows with the head dim, in long windows from 32 on.
  static constexpr int parts = Bytes == 4 || D > 16 ? 2 : 1;
  /// Float rows of q, K, V and Tv multiply as two halves each, too: see contextual_halves.cuh.
  static constexpr bool in_halves = Bytes == 4 && D == 16;
  static constexpr int min_blocks = Radial ? tuning.radial_blocks : tuning.min_blocks;
  static constexpr int stages = Radial ? tuning.radial_stages : 2;
  static constexpr int buffer_rows = rows;
  static constexpr bool shares_scratch = false;
  static constexpr bool turns_rows = false, turns_halves = false;
  static constexpr bool packs_places = false, attends_at_once = false, takes_neighbours = false;
  static constexpr bool sums_neighbours = false;
  static constexpr int axes = Radial ? 2 : 3;  ///< linear ones
  static constexpr int cells = axes * tile_cells;

  /// 16 bytes of padding a row: eight neighbouring rows then start in different banks.
  static constexpr int row_bytes = D * Bytes + 16;
  static constexpr int tile_bytes = keys * row_bytes;
  /// Fragments of float queries stay in shared memory, so that the next ones need a second buffer.
  static constexpr int query_buffers = Bytes == 4 && !in_halves ? 2 : 1;
  /// Radial products: the table rows of one token.
  static constexpr int radial_element = parts == 1 ? 2 : 4;
  static constexpr int radial_bytes = Radial ? tile_rows * radial_element : 0;
  /// An odd multiple of 16 bytes, for the same reason as `row_bytes`.
  static constexpr int key_stride = (parts * 2 * cells + radial_bytes) / 32 * 32 + 16;
  static_assert(key_stride >= parts * 2 * cells + radial_bytes);
  /// A row's sums of weights by radial row, then its radial products. Rows of four move on by 16 bytes,
  /// so that eight rows start in different banks.
  static constexpr int radial_sums_bytes = 4 * tile_rows;
  static constexpr int radial_stride = (radial_sums_bytes + radial_bytes + 31) / 32 * 32;
  WINNOW_HOST_DEVICE static constexpr int radial_row(int row) {
    return row * radial_stride + row / 4 * 16;
  }

  // Two of each of the rows' arrays: the next turn's arrive during this one.
  static constexpr int row_bounds = 0;                                   // int2 [2][rows]
  static constexpr int row_order = row_bounds + 16 * rows;               // int [2][rows]
  static constexpr int row_code = row_order + 8 * rows;                  // uint32 [2][rows]
  static constexpr int row_radius = row_code + 8 * rows;                 // float [2][rows]
  static constexpr int key_code = row_radius + (Radial ? 8 * rows : 0);  // uint32 [stages][keys]
  static constexpr int key_radius = key_code + 4 * stages * keys;        // float [stages][keys]
  static constexpr int key_place = key_radius + (Radial ? 4 * stages * keys : 0);  // places [keys]
  static constexpr int place_bytes = Radial ? 8 : 16;
  static constexpr int key_cells = key_place + place_bytes * keys;  // half [axes][keys]
  static constexpr int query = key_cells + 2 * axes * keys;         // T [buffers][rows][row_bytes]
  static constexpr int key_tiles =
      query + query_buffers * rows * row_bytes;  // T [stages][K, V][keys]
  static constexpr int key_products = key_tiles + 2 * stages * tile_bytes;  // [keys][key_stride]
  /// Of each warp: sums and products of its rows by radial row.
  static constexpr int scratch = key_products + keys * key_stride;
  static constexpr int scratch_bytes = Radial ? radial_row(16) : 0;
  // Factors of Tq and Tk, then rows of Tv.
  static constexpr int table_bytes = tuning.staged ? 3 * tile_rows * D * Bytes : 0;
  static constexpr int tables = scratch + tuning.warps * scratch_bytes;
  static constexpr int axis_bytes = tile_rows * row_bytes;
  static constexpr int value_table = tables + 2 * table_bytes;
  static constexpr std::size_t bytes = value_table + tuning.value_axes * axis_bytes;

  static_assert(key_place % 16 == 0 && key_cells % 16 == 0 && query % 16 == 0 && scratch % 16 == 0);
  static_assert(keys % 16 == 0 && (tuning.value_axes == 1 || tuning.value_axes == 3));
  static_assert(bytes <= 99 * 1024);
};

/// Do short windows have contextual_short.cuh?
template <std::size_t Bytes, int D, bool Radial>
inline constexpr bool has_contextual_short = D == 16 && Radial;

/// Are there two heads at a time, contextual_heads.cuh?
template <std::size_t Bytes, int D>
inline constexpr bool has_contextual_heads = Bytes == 2 && D == 16;

/// A warp of contextual_short.cuh, which is like a block whose rows are its keys: offsets in the warp's
/// memory, and of tables in the block's, which come first.
template <bool Radial, int Bytes = 2>
struct contextual_short_layout {
  using block = contextual_layout<Bytes, 16, Radial>;
  static constexpr contextual_tuning tuning{1, 0, 0, 1, true, 3, 1, 1};
  static constexpr int most_warps = Bytes == 4 ? 8 : 12;  ///< of a block
  static constexpr int least_warps = Bytes == 4 ? 4 : 1;  ///< that are worth a launch of their own
  static constexpr int rows = 48;                         ///< of the longest windows
  static constexpr int keys = rows;
  static constexpr int parts = block::parts;
  static constexpr bool in_halves = block::in_halves;
  static constexpr int stages = 1;
  static constexpr int buffer_rows = 1;  ///< buffers are counted in rows
  static constexpr bool shares_scratch = true;
  /// A row meets all keys at once: see contextual_short_pairs.cuh.
  static constexpr bool attends_at_once = true;
  static constexpr int axes = block::axes;
  static constexpr int cells = block::cells;
  /// Rows of 32 bytes are not padded. Halves of every other four rows change places instead.
  static constexpr bool turns_rows = !in_halves;
  /// Lanes take four neighbouring dims of q, K and Tq, and four neighbouring radial rows.
  static constexpr bool takes_neighbours = !in_halves, sums_neighbours = takes_neighbours;
  /// Rows of two times 16 halves: their four chunks change places, by every other row.
  static constexpr bool turns_halves = in_halves;
  static constexpr int row_bytes = 16 * Bytes;
  static constexpr int tile_bytes = keys * row_bytes;
  static constexpr int query_buffers = 1;
  static constexpr int radial_element = block::radial_element;
  static constexpr int radial_bytes = block::radial_bytes;
  /// Weights are summed up where products were, which by then have all been looked up.
  static constexpr int radial_sums_bytes = 0;
  static_assert(radial_bytes <= 4 * tile_rows);
  /// Of 16 bits: with 16 bytes a lane, two rows fill all banks; with 4 bytes, eight rows do.
  WINNOW_HOST_DEVICE static constexpr int radial_row(int row) {
    return row * 4 * tile_rows + (in_halves ? row : row / 2) * 16;
  }

  static constexpr int row_order = 0;                                      // int [2][rows]
  static constexpr int row_code = row_order + 8 * rows;                    // uint32 [2][rows]
  static constexpr int row_radius = row_code + 8 * rows;                   // float [2][rows]
  static constexpr int key_radius = row_radius + (Radial ? 8 * rows : 0);  // float [keys]
  static constexpr int key_place = key_radius + (Radial ? 4 * keys : 0);   // places [keys]
  /// There is no room for keys' positions in two forms.
  static constexpr bool packs_places = true;
  static constexpr int place_bytes = 4;
  static constexpr int key_tiles = key_place + place_bytes * keys;  // T [K, V][keys]
  /// Float: nor for keys' products, but for what they add to logits, float [keys][side_stride].
  static constexpr int sides = key_tiles + 2 * tile_bytes;
  static constexpr int side_stride = rows + 4;
  /// Of 16 bits: of linear axes as lanes take them, uint4 [keys / 16][cells / 16][32], and by radial row
  /// half [keys][tile_rows]
  /// at `radial_key`.
  static constexpr int key_factors = sides;
  static constexpr int key_radials = key_factors + 2 * keys * cells;
  /// With 4 bytes a lane, eight rows fill all banks.
  WINNOW_HOST_DEVICE static constexpr int radial_key(int key) {
    return key * radial_bytes + key / 4 * 16;
  }
  static constexpr int scratch =
      in_halves ? sides + 4 * keys * side_stride : key_radials + radial_key(keys);
  static constexpr int scratch_bytes = Radial ? radial_row(16) : 0;
  /// Products have a load that reaches behind the last row, of which nothing is used.
  static constexpr int warp_bytes = scratch + (Radial ? scratch_bytes : 16);

  static constexpr int table_bytes = block::table_bytes;
  static constexpr int tables = 0;
  static constexpr int axis_bytes = in_halves ? tile_rows * row_bytes : block::axis_bytes;
  static constexpr int value_table = tables + 2 * table_bytes;
  /// Where lanes' parts of rows begin, of each lane of a quad.
  static constexpr int pointers = value_table + tuning.value_axes * axis_bytes;
  static constexpr int pointers_of_lane = 5;
  static constexpr int counters = pointers + 4 * 8 * pointers_of_lane;  // int [5]
  static constexpr int longer = counters + 32;  // int, the first of four windows each
  static constexpr int most_longer = 16;
  static constexpr int most_listed = 32 * most_warps;  ///< units, of each thread one
  static constexpr int list = longer + 4 * most_longer;
  static constexpr int block_bytes = list + 8 * most_listed;
  /// What chunks of windows cost lies where warps have nothing yet, int.
  static constexpr int chunk_costs = block_bytes;
  WINNOW_HOST_DEVICE static constexpr int bytes(int warps) {
    return block_bytes + warps * warp_bytes;
  }

  static_assert(row_code % 16 == 0 && key_place % 16 == 0 && key_tiles % 16 == 0 &&
                sides % 16 == 0 && scratch % 16 == 0 && warp_bytes % 16 == 0 &&
                block_bytes % 16 == 0);
};

/// A warp of contextual_heads_kernel.cuh, which takes two heads at a time: offsets in the warp's memory, and of
/// tables in the block's, which come first, a head's after the other's.
template <bool Radial>
struct contextual_heads_layout {
  static constexpr contextual_tuning tuning{1, 16, 16, 1, true, 3, 1, 1};
  static constexpr int heads = 2;
  static constexpr int warps = 8;  ///< of a block
  static constexpr int threads = 32 * warps;
  static constexpr int rows = 16;
  static constexpr int keys = 16;
  static constexpr int slots = 2;  ///< of groups of keys, and of rows
  static constexpr int parts = 1;
  static constexpr bool in_halves = false;
  static constexpr int stages = 1;
  static constexpr int buffer_rows = rows;
  static constexpr bool shares_scratch = true;
  static constexpr bool attends_at_once = false, takes_neighbours = false;
  static constexpr bool sums_neighbours = Radial;  ///< are a lane's radial rows neighbours in Tv?
  /// Rows of 32 bytes are not padded. Halves of every other four rows change places instead.
  static constexpr bool turns_rows = true;
  static constexpr int axes = Radial ? 2 : 3;
  static constexpr int cells = axes * tile_cells;
  static constexpr int row_bytes = 32;
  static constexpr int tile_bytes = keys * row_bytes;  ///< of K, V or q of one head
  static constexpr int query_buffers = 1;
  /// Radial products of both heads are neighbours.
  static constexpr int radial_element = 2 * heads;
  static constexpr int radial_bytes = Radial ? tile_rows * radial_element : 0;
  /// A key's products by radial row, like those of a row: 16 bytes a lane take two rows for all banks.
  WINNOW_HOST_DEVICE static constexpr int key_row(int key) {
    return key * radial_bytes + key / 2 * 16;
  }
  /// A row's sums by radial row, of one head and of the other, then its radial products. Eight rows start in
  /// different banks, and of 64 bytes of each two rows fill all banks.
  static constexpr int radial_sums_bytes = 4 * tile_rows;
  static constexpr int row_radial = heads * radial_sums_bytes;
  WINNOW_HOST_DEVICE static constexpr int radial_row(int row) {
    return row * (row_radial + radial_bytes) + row / 2 * 16;
  }

  static constexpr int row_bounds = 0;                              // int2 [slots][rows]
  static constexpr int row_order = row_bounds + 8 * slots * rows;   // int [slots][rows]
  static constexpr int row_code = row_order + 4 * slots * rows;     // uint32 [slots][rows]
  static constexpr int row_radius = row_code + 4 * slots * rows;    // float [slots][rows]
  static constexpr int row_number = row_radius + 4 * slots * rows;  // int [slots], the first row
  static constexpr int next_bounds = row_number + 8;                // int [2]
  static constexpr int key_code = next_bounds + 8;                  // uint32 [slots][keys]
  static constexpr int key_radius = key_code + 4 * slots * keys;    // float [slots][keys]
  static constexpr int query = key_radius + 4 * slots * keys;       // T [slots][heads][rows]
  static constexpr int query_bytes = heads * tile_bytes;
  static constexpr int key_tiles = query + slots * query_bytes;  // T [slots][heads][K, V][keys]
  static constexpr int group_bytes = heads * 2 * tile_bytes;
  static constexpr int key_products = key_tiles + slots * group_bytes;  // [keys], from `key_row` on
  /// What a slot has of keys. Slots share the memory of radial products.
  WINNOW_HOST_DEVICE static constexpr int codes_at(int slot) { return key_code + 4 * keys * slot; }
  WINNOW_HOST_DEVICE static constexpr int columns_at(int slot) { return codes_at(slot); }
  WINNOW_HOST_DEVICE static constexpr int radii_at(int slot) {
    return key_radius + 4 * keys * slot;
  }
  WINNOW_HOST_DEVICE static constexpr int tiles_at(int slot) {
    return key_tiles + group_bytes * slot;
  }
  WINNOW_HOST_DEVICE static constexpr int products_at(int) { return key_products; }
  WINNOW_HOST_DEVICE static constexpr int query_tile(int tile) { return tile; }
  static constexpr bool only_right = false, pairs_positions = false;
  static constexpr bool loads_early = false;  ///< are there registers for V before weights?
  static constexpr bool scales_tables = false;
  static constexpr bool sums_halves = false;
  static constexpr bool spreads_keys = false;
  static constexpr int scratch = key_products + (Radial ? key_row(keys) : 0);
  static constexpr int scratch_bytes = Radial ? radial_row(16) : 0;
  /// Products of rows by cell, of lanes.
  static constexpr int row_products = scratch + scratch_bytes;
  static constexpr int product_pairs = (cells / 8 + 1) / 2;
  static constexpr int warp_bytes = row_products + (Radial ? 0 : heads * product_pairs * 512);

  static constexpr int table_bytes = 3 * tile_rows * row_bytes;
  static constexpr int tables = 0;
  static constexpr int axis_bytes = contextual_layout<2, 16, Radial>::axis_bytes;
  static constexpr int value_table = tables + 2 * table_bytes;
  static constexpr int head_bytes = value_table + 3 * axis_bytes;
  /// Where lanes' quarters of two rows begin, of each lane of a quad.
  static constexpr int pointers = heads * head_bytes;
  static constexpr int pointers_of_lane = 3;
  static constexpr int results = pointers + 4 * 8 * pointers_of_lane;  // of results, pointer [4]
  static constexpr int next_tile = results + 4 * 8;                    // int
  static constexpr int block_bytes = next_tile + 16;
  static constexpr std::size_t bytes = block_bytes + warps * warp_bytes;

  static_assert(slots == 2 && query % 16 == 0 && warp_bytes % 16 == 0 && block_bytes % 16 == 0);
  static_assert(bytes <= 227 * 1024);
};

}  // namespace winnow::detail
