// SPDX-License-Identifier: Apache-2.0
/// \file
/// Shared memory of the contextual backward kernels. One description serves the launch (how many
/// bytes, and whether a device has them) and the kernels (where things are).
#pragma once

#include <cstddef>

#include "winnow/detail/attention/backward_layout.hpp"

namespace winnow::detail {

/// The longest window that backward_contextual_window.cuh takes; 0: none. Four to six tiles of 16 rows share
/// windows of up to `contextual_short_capacity` tokens, eight those of up to this.
constexpr int contextual_window_capacity(std::size_t element_bytes, int head_dim) {
  return element_bytes == 2 && head_dim == 16 ? 320 : 0;
}
inline constexpr int contextual_short_capacity = 64;
/// Ranges of windows whose prices are summed up.
inline constexpr int contextual_priced_ranges = 1024;
/// \tparam Bytes size of an element. \tparam D padded head dim. \tparam Radial the third axis is the
/// radial one.
template <int Bytes, int D, backward_side Side, bool Radial>
struct contextual_gradient_layout {
  static constexpr backward_tuning tuning = tune_backward(Bytes, D, position_encoding::contextual);
  static constexpr int warps = tuning.warps;
  static constexpr int rows = tuning.rows();
  /// Windows up to this may go in one pass without these kernels.
  static constexpr int capacity = contextual_window_capacity(Bytes, D);
  static_assert(capacity == 0 || capacity >= rows);
  /// Narrow heads without the radial axis have room for most of a walk at once, which saves
  /// barriers; the others hold two tiles, one of which loads.
  static constexpr bool long_tiles = Bytes == 2 && D == 16 && !Radial;
  static constexpr int others = long_tiles ? 96 : tuning.other_tile;
  static constexpr int stages = long_tiles ? 1 : 2;
  static constexpr int min_blocks = tuning.min_blocks;
  static constexpr int row_bytes = D * Bytes + 16;
  /// Table products are half beside 16-bit storage; what is summed up by table row is of type T.
  static constexpr int product_bytes = Bytes;
  /// A block's own tokens are queries on the query side: Gq and Gv; or keys: Gk.
  static constexpr int own_tables = Side == backward_side::query ? 2 : 1;
  static constexpr int other_tables = 3 - own_tables;
  /// Products of a token by the other's cell on linear axes. 144 bytes of half: eight neighbouring
  /// rows lie in different banks.
  static constexpr int cell_axes = Radial ? 2 : 3;
  static constexpr int cell_stride = cell_axes * tile_cells + (Bytes == 4 ? 4 : Radial ? 8 : 0);
  /// Products of a token by radial table row: those of keys, and pairs (Gq, Gv) of queries.
  static constexpr int key_radial_stride = tile_rows + 2;
  static constexpr int query_radial_stride = tile_rows + 1;
  static constexpr int staging_stride = tile_rows + 8;
  /// Sums of weights of a row by table row, three axes.
  static constexpr int sum_stride = 3 * tile_rows + 16 / Bytes;
  static constexpr int radial_stride = tile_rows + 1;
  /// Pieces start anywhere in a tile and may reach behind it.
  static constexpr int column_stride = others + 16;

  static constexpr int magnitude = 0;                                   // uint32 [warps]
  static constexpr int own_delta = magnitude + 64;                      // float [rows]
  static constexpr int other_codes = own_delta + 4 * rows;              // uint32 [2][column_stride]
  static constexpr int other_radius = other_codes + 8 * column_stride;  // float [2][column_stride]
  static constexpr int other_lse = other_radius + 8 * column_stride;    // float [2][column_stride]
  static constexpr int other_delta = other_lse + 8 * column_stride;     // float [2][column_stride]
  static constexpr int tables = other_delta + 8 * column_stride;  // T [q, k, v][3 · tile_rows]
  static constexpr int table_bytes = 3 * tile_rows * row_bytes;
  static constexpr int own_first = tables + 3 * table_bytes;       // T [rows]: q or k
  static constexpr int own_second = own_first + rows * row_bytes;  // T [rows]: dO or v

  static constexpr int own_cells =
      own_second + rows * row_bytes;  // [own_tables][rows][cell_stride]
  static constexpr int other_cells =  // [other_tables][others][…]
      own_cells + own_tables * rows * cell_stride * product_bytes;
  static constexpr int one_hot =  // half [others][cell_stride], where storage is 16-bit
      other_cells + other_tables * others * cell_stride * product_bytes;
  /// Loads of four matrices reach 16 bytes behind the last row's ninth word, and drop what they find
  /// there: padding, since the rows behind it may be arriving.
  static constexpr int other_rows =  // T [stages][first, second][others]
      one_hot + (Bytes == 2 ? 2 * others * cell_stride + 16 : 0);
  static constexpr int other_bytes = others * row_bytes;
  static constexpr int staging =
      other_rows + 2 * stages * other_bytes;  // [warps][8][staging_stride]
  static constexpr int walk_end =
      staging + (Bytes == 2 ? warps * 8 * staging_stride * product_bytes : 0);
  /// When the walk is over, its memory takes the sums: T [own_tables][rows][sum_stride], float one
  /// table after the other.
  static constexpr int sums = own_cells;
  static constexpr int sums_end = sums + (Bytes == 2 ? own_tables : 1) * rows * sum_stride * Bytes;
  static constexpr int linear_end = walk_end > sums_end ? walk_end : sums_end;

  static constexpr int query_radial_bytes = 2 * product_bytes * query_radial_stride;
  static constexpr int key_radial_bytes = product_bytes * key_radial_stride;
  static constexpr bool query_side = Side == backward_side::query;
  static constexpr int own_radial = walk_end;
  static constexpr int other_radial =
      own_radial + rows * (query_side ? query_radial_bytes : key_radial_bytes);
  static constexpr int products_end =
      other_radial + others * (query_side ? key_radial_bytes : query_radial_bytes);
  static constexpr int radial_sums =  // int32 or float [warps][own_tables][16][radial_stride]
      products_end > sums_end ? products_end : sums_end;
  static constexpr int radial_piece =  // float [warps][3][16][17], where storage is float
      radial_sums + 4 * warps * own_tables * 16 * radial_stride;
  static constexpr int radial_end = radial_piece + (Bytes == 4 ? 4 * warps * 3 * 16 * 17 : 0);

  static constexpr std::size_t bytes = Radial ? radial_end : linear_end;
  static_assert(tables % 16 == 0 && other_radial % 4 == 0 && radial_sums % 4 == 0);
  static_assert(Bytes != 2 || D != 16 || bytes <= 99 * 1024, "every device serves these");
};

/// What backward_contextual_window.cuh works on: four, six or eight tiles of 16 rows of 16 elements of 16 bits.
/// Rows of elements lie in 32 bytes, whose halves change places in every other four rows: so eight rows
/// of one half lie in different banks.
/// \tparam Long for windows of more than `contextual_short_capacity` tokens.
template <bool Radial, bool Long>
struct contextual_window_layout {
  /// One a warp. Most spherical windows have three tiles, of which six leave no room.
  static constexpr int tiles = Long ? 8 : Radial ? 6 : 4;
  /// In a turn: of long windows those of 9 tiles, cut into 5 and 4, have the fewest in a chunk.
  static constexpr int least_tiles = Long ? 4 : 1;
  static constexpr int min_blocks = Long ? 1 : Radial ? 2 : 3;
  static constexpr int capacity =
      Long ? contextual_window_capacity(2, 16) : contextual_short_capacity;
  /// Pieces of its queries that a warp holds.
  static constexpr int held_pieces = Long ? tiles : contextual_short_capacity / 16;
  static constexpr int row_bytes = 32;
  static constexpr int tile_bytes = 16 * row_bytes;
  static constexpr int table_bytes = 3 * tile_rows * row_bytes;
  static constexpr int cell_axes = Radial ? 2 : 3;
  /// Of a token's one-hot cells, or of its products by cell, in half.
  static constexpr int axes_bytes = cell_axes * tile_cells * 2;
  /// With the radial axis a long window's keys have all that pieces load in one row: one-hot cells, products, k and
  /// v. So a piece computes fewer addresses, for which there are no registers.
  static constexpr bool keys_together = Radial && Long;
  /// From row to row: eight rows lie in different banks.
  static constexpr int cell_bytes =
      keys_together ? 2 * axes_bytes + 2 * row_bytes + 16 : axes_bytes + (Radial ? 16 : 0);
  /// Sums by radial row of short windows take the place of products when pieces are there: so twelve tiles have room
  /// on a multiprocessor.
  static constexpr bool sums_late = Radial && !Long;
  static constexpr int radial_stride = tile_rows + 2;
  /// What short windows have by token and radial row, long ones have by radial row and token: of four lanes with the
  /// same token only those meet in a bank whose rows are the same modulo four. Bytes from a radial row to the next one:
  static constexpr bool by_radial_row = Radial && Long;
  static constexpr int radial_step = by_radial_row ? 4 * 8 : 4;
  /// From one query to the next one, and to the eighth.
  static constexpr int query_step = by_radial_row ? 4 : 4 * radial_stride;
  static constexpr int half_step = by_radial_row ? tile_rows * radial_step : 8 * query_step;
  /// Of keys 2t + c + 8n, from t, c and n to the next one: sums of dS of long windows, and products.
  static constexpr int sum_of_t = 4, sum_of_c = half_step, sum_of_n = 16;
  static constexpr int key_radial_step = by_radial_row ? 2 * 16 : 2;
  static constexpr int product_of_t = by_radial_row ? 4 : 4 * radial_stride;
  static constexpr int product_of_c = by_radial_row ? 2 : 2 * radial_stride;
  static constexpr int product_of_n = by_radial_row ? 16 : 16 * radial_stride;
  static constexpr int sum_bytes = 3 * tile_rows * 2;  ///< of a row, by table row

  static constexpr int magnitudes = 0;  // uint32 [tiles], and zeros
  /// Of the warp that plans short windows: which of its lanes are free, uint8 [32].
  static constexpr int free_lanes = 32;
  static constexpr int block_deltas = 64;
  static constexpr int block_radius = block_deltas + (sums_late ? 0 : 4 * 16 * tiles);
  static constexpr int plans =  // of turns: int4 [tiles],
      block_radius + (sums_late ? 0 : 4 * 16 * tiles);
  static constexpr int plan_used = 16 * tiles;       // int2: tiles, the largest width
  static constexpr int plan_slots = plan_used + 16;  // of short windows, int32 [tiles][16]
  /// Which short windows come next, int2: in the first plan.
  static constexpr int next_windows = plans + plan_used + 8;
  static constexpr int plan_bytes = plan_slots + (Long ? 0 : 4 * 16 * tiles);
  /// A turn of short windows is planned while the one before the last ends; with the radial axis not all warps
  /// have met since.
  static constexpr int plan_count = Long || !Radial ? 2 : 3;
  /// Of short windows those that wait for their turn, int2 [32]: the first slot, rows. Of long windows the slots
  /// of those that are not cut, int2, which window is next, and the windows of 32 probes, int2.
  static constexpr int waiting = plans + plan_count * plan_bytes;
  static constexpr int whole_windows = waiting;
  static constexpr int next_window = whole_windows + 16;
  static constexpr int probes = next_window + 48;
  static constexpr int next_turn = probes + 8 * 32;  // 32 bytes
  /// T [q, k, v][3 · tile_rows].
  static constexpr int tables = Long ? next_turn + 32 : waiting + 8 * 32;
  /// T [q, k, dO][tiles][16], k elsewhere where keys are together.
  static constexpr int rows = tables + 3 * table_bytes;
  static constexpr int regions =  // of each tile:
      rows + (keys_together ? 2 : 3) * tiles * tile_bytes;

  static constexpr int cells_bytes = 16 * cell_bytes;
  static constexpr int piece_bytes = 512;
  /// Of dS, of P, and where sums by radial row come later of places in these.
  static constexpr int kinds_of_pieces = sums_late ? 3 : 2;
  static constexpr int pieces_bytes = kinds_of_pieces * held_pieces * piece_bytes;
  /// Gq and Gv of the tile's rows, half [16][cell_bytes]; with the radial axis in registers.
  static constexpr bool own_cells = !Radial;
  static constexpr int query_radial_bytes = Radial ? 2 * half_step : 0;
  static constexpr int key_radial_bytes = by_radial_row ? tile_rows * key_radial_step
                                          : Radial      ? 2 * product_of_n
                                                        : 0;
  /// Long windows' sums by radial row: of rows' dS or of columns', and of P, which has 16 bits.
  static constexpr int gradient_sum_bytes = by_radial_row ? 2 * half_step : 0;
  static constexpr int weight_sum_bytes = by_radial_row ? half_step : 0;
  /// Long windows: first what belongs to queries, which stay for several chunks of keys.
  static constexpr int query_bytes = pieces_bytes + (own_cells ? 2 * cells_bytes : 0) +
                                     query_radial_bytes + gradient_sum_bytes + weight_sum_bytes;

  static constexpr int key_rows =  // [16][cell_bytes]: one-hot cells, Gk, k and v
      keys_together ? query_bytes + gradient_sum_bytes + key_radial_bytes : 0;
  static constexpr int k = key_rows + 2 * axes_bytes;
  static constexpr int values =  // T [16]: v
      keys_together ? k + row_bytes
      : Long        ? query_bytes
      : sums_late   ? pieces_bytes + cells_bytes
                    : 0;
  static constexpr int hot =  // half [16][cell_bytes]: one-hot cells
      keys_together ? key_rows
      : sums_late   ? pieces_bytes
                    : values + tile_bytes;
  static constexpr int key_cells =  // half [16][cell_bytes]: Gk
      keys_together ? key_rows + axes_bytes : values + tile_bytes + (sums_late ? 0 : cells_bytes);
  static constexpr int keys_end = keys_together ? key_rows : key_cells + cells_bytes;
  static constexpr int pieces =  // [held_pieces][kinds_of_pieces][piece_bytes]
      Long || sums_late ? 0 : keys_end;
  static constexpr int query_cells = sums_late ? keys_end : pieces + pieces_bytes;
  static constexpr int value_cells = query_cells + (own_cells ? cells_bytes : 0);
  static constexpr int query_radial =  // half2, pairs (Gq, Gv)
      value_cells + (own_cells ? cells_bytes : 0);
  static constexpr int query_end = query_radial + query_radial_bytes;
  static constexpr int key_radial =  // half
      keys_together ? query_bytes + gradient_sum_bytes
      : Long        ? keys_end
                    : query_end;
  static constexpr int key_end =
      keys_together ? key_rows + cells_bytes : key_radial + key_radial_bytes;
  static constexpr int radial_sums = query_end;  // of long windows, int32: dS of rows,
  static constexpr int weight_sums =
      radial_sums + gradient_sum_bytes;  // P, uint16 by rows g and g + 8,
  static constexpr int column_sums = weight_sums + weight_sum_bytes;  // dS of columns
  /// Of short windows: int32 [tile_rows][16][dS of rows, P], so that 16 rows meet no bank twice, and then int32
  /// [16][radial_stride], dS of columns.
  static constexpr int late_sums = values;
  static constexpr int row_sums_bytes = tile_rows * 16 * 2 * 4;
  static constexpr int column_sums_bytes = 16 * radial_stride * 4;
  /// When the pieces are done, their memory takes the sums by table row, of dTq, dTv and dTk. As with
  /// rows, 16 bytes change places in every other four.
  static constexpr int sums_bytes = 16 * sum_bytes;
  static constexpr int sums_of_keys = Long ? query_bytes : 2 * sums_bytes;
  static constexpr int region_bytes = Long || sums_late ? key_end : 3 * sums_bytes;
  /// Each tile's deltas and radii, float [16], where sums come late in the padding of rows of cells.
  static constexpr int deltas = sums_late ? regions + key_cells + axes_bytes : block_deltas;
  static constexpr int radius = sums_late ? regions + hot + axes_bytes : block_radius;
  static constexpr int token_stride = sums_late ? cell_bytes / 4 : 1;
  static constexpr int next_tile = sums_late ? region_bytes : 4 * 16;
  /// Of queries that are not the tile's keys, uint32 [tiles][16].
  static constexpr int query_codes = regions + tiles * region_bytes;
  /// Of the next turn's queries and keys, [2]: tokens, cells, radii, 4 bytes each [3][tiles][16].
  static constexpr int next_tokens = query_codes + (Long ? 4 * 16 * tiles : 0);
  /// O of long windows' queries, T [tiles][16].
  static constexpr int outs = next_tokens + (Long ? 2 * 3 * 4 * 16 * tiles : 0);
  static constexpr std::size_t bytes = outs + (Long ? tiles * tile_bytes : 0);
  static_assert(min_blocks * (bytes + 1024) <= 228 * 1024, "on a multiprocessor of the largest");
  static_assert(tables % 16 == 0 && cell_bytes % 16 == 0 && radial_sums % 16 == 0);
  static_assert(sums_of_keys + sums_bytes <= region_bytes && query_radial <= region_bytes);
  static_assert(!sums_late || (late_sums % 16 == 0 && late_sums + row_sums_bytes <= region_bytes));
  static_assert(!Long || 2 * sums_bytes <= query_bytes);
  static_assert(!keys_together || sums_of_keys + sums_bytes <= key_rows, "k is needed beside sums");
};

constexpr std::size_t contextual_window_bytes(bool radial, bool long_windows) {
  if (radial)
    return long_windows ? contextual_window_layout<true, true>::bytes
                        : contextual_window_layout<true, false>::bytes;
  return long_windows ? contextual_window_layout<false, true>::bytes
                      : contextual_window_layout<false, false>::bytes;
}
/// Blocks of the kernel of long windows, of all heads together: they fill the largest GPU of today.
inline constexpr int contextual_long_window_blocks = 132;
/// Parts of a head. Where heads do not divide the blocks, the last part of each is smaller, if some of these, one
/// after the other, fill each multiprocessor that is left. Without the radial axis they would begin too often for
/// what they do.
constexpr int contextual_long_parts(int heads, bool radial) {
  constexpr int blocks = contextual_long_window_blocks;
  if (heads > blocks) return 1;
  const int rest = blocks % heads;
  return blocks / heads + (radial && rest > 0 && heads % rest == 0 ? 1 : 0);
}
/// What a head has, in units of which a whole part has `heads`.
constexpr int contextual_long_whole(int heads, int parts) {
  constexpr int blocks = contextual_long_window_blocks;
  return parts > 1 && heads * parts > blocks ? blocks : heads * parts;
}

/// What a block of the contextual kernels asks for, on the side that asks for more.
template <int Bytes, int D>
constexpr std::size_t contextual_bytes(bool radial) {
  constexpr backward_side query = backward_side::query, key = backward_side::key;
  const std::size_t of_queries = radial ? contextual_gradient_layout<Bytes, D, query, true>::bytes
                                        : contextual_gradient_layout<Bytes, D, query, false>::bytes;
  const std::size_t of_keys = radial ? contextual_gradient_layout<Bytes, D, key, true>::bytes
                                     : contextual_gradient_layout<Bytes, D, key, false>::bytes;
  return of_queries > of_keys ? of_queries : of_keys;
}
/// \param head_dim padded, one for which `contextual_tiles_fit`.
constexpr std::size_t contextual_bytes(std::size_t element_bytes, int head_dim, bool radial) {
  if (element_bytes == 4)
    return head_dim == 16   ? contextual_bytes<4, 16>(radial)
           : head_dim == 32 ? contextual_bytes<4, 32>(radial)
                            : contextual_bytes<4, 64>(radial);
  return head_dim == 16   ? contextual_bytes<2, 16>(radial)
         : head_dim == 32 ? contextual_bytes<2, 32>(radial)
         : head_dim == 64 ? contextual_bytes<2, 64>(radial)
                          : contextual_bytes<2, 128>(radial);
}

}  // namespace winnow::detail
