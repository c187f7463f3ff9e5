// SPDX-License-Identifier: Apache-2.0
/// \file
/// Shared memory of the forward kernel for plain attention and bias. One description serves the launch (how many bytes) and the
/// kernel (where things are).
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/tuning.hpp"

namespace winnow::detail {

/// \tparam Bytes size of an element. \tparam D padded head dim.
template <int Bytes, int D, position_encoding Position>
struct forward_layout {
  static constexpr forward_tuning tuning = tune_forward(Bytes, D, Position);
  static_assert(Position != position_encoding::contextual, "see contextual_layout.hpp");
  static constexpr int stages = tuning.stages;
  static constexpr int rows = tuning.rows();
  static constexpr int keys = tuning.key_tile;
  /// 16 bytes of padding a row: eight neighbouring rows then start in different banks.
  static constexpr int row_bytes = D * Bytes + 16;
  static constexpr int tile_bytes = keys * row_bytes;

  /// Do warps take short windows by themselves (forward_window.cuh)?
  static constexpr bool takes_windows =
      Bytes == 2 && D <= 32 && Position == position_encoding::none;
  /// Do blocks walk over tiles of rows, of which forward_long.cuh may take some?
  static constexpr bool walks_tiles = Bytes == 2 && D <= 64 && Position == position_encoding::none;

  /// Whether a block may compute several heads.
  static constexpr bool many_heads = D * Bytes <= 256;
  /// Q of a block's next head comes with the head's first keys, into a buffer of its own.
  static constexpr int query_buffers = many_heads ? stages : 1;
  static constexpr int query_bytes = rows * row_bytes;

  /// A piece of 16 keys that begins at a tile's last key reads places behind it, and uses none.
  static constexpr int code_stride = keys + 16;

  static constexpr int bounds = 0;                         // int2 [rows]
  static constexpr int query_order = bounds + 8 * rows;    // int [rows]
  static constexpr int key_code = query_order + 4 * rows;  // uint32 [stages][code_stride]
  static constexpr int key_radius =
      key_code + 4 * stages * code_stride;  // float [stages][code_stride]
  // T [query_buffers][rows][row_bytes], T [stages][K, V][keys][row_bytes]
  static constexpr int query = key_radius + 4 * stages * code_stride;
  static constexpr int key_tiles = query + query_buffers * query_bytes;
  /// The bias tables of the block's heads in FP32.
  static constexpr int tail = key_tiles + 2 * stages * tile_bytes;
  static_assert(keys % 16 == 0);

  /// \param bias_floats of all bias tables that the block holds at a time.
  static constexpr std::size_t bytes(std::size_t bias_floats) { return tail + 4 * bias_floats; }
  static_assert(bytes(4 * 169) <= 99 * 1024);
};

/// Shared memory of forward_window.cuh. \tparam D padded head dim.
template <int D>
struct forward_window_layout {
  static constexpr int range = 32;     ///< slots in which a warp's windows start
  static constexpr int capacity = 48;  ///< tokens of a short window, and of what a warp loads
  static constexpr int heads = D == 16 ? 2 : 1;  ///< of a warp
  static constexpr int most_warps = 16;          ///< of a block, which has a multiprocessor

  // Of each warp.
  static constexpr int array_bytes = capacity * 2 * D;  // T [heads][q, k, v][capacity][D]
  /// Two heads of a token, which come together, lie in different banks.
  static constexpr int head_bytes = 3 * array_bytes + (heads == 2 ? 64 : 0);
  static constexpr int row_bytes = heads * head_bytes;
  /// What is known of a range: itself, its slots, and tokens as far as its last window reaches; twice.
  static constexpr int most_tokens = (range + capacity + 31) / 32 * 32;
  static constexpr int item = 0;                     // int2, see window_walk
  static constexpr int bounds = item + 16;           // int2 [range]
  static constexpr int tokens = bounds + 8 * range;  // int [most_tokens]
  static constexpr int list_bytes = tokens + 4 * most_tokens;
  static constexpr int warp_bytes = (row_bytes + 2 * list_bytes + 127) / 128 * 128;
  static constexpr int block_bytes = 4096;  ///< or less, what the warps share

  /// Windows of up to so many tokens are taken where short ones are, 16 rows of a head at a time.
  static constexpr int longest = 256;
  static constexpr int rows = 16;
  // The memory of a warp's rows then has: T [rows][D], T [k, v][keys][D], int [rows].
  static constexpr int query_bytes = rows * 2 * D;
  static constexpr int keys = (row_bytes - query_bytes - 4 * rows) / (4 * D) / 16 * 16;
  static constexpr int key_rows = query_bytes;
  static constexpr int value_rows = key_rows + keys * 2 * D;
  static constexpr int row_tokens = value_rows + keys * 2 * D;
  static_assert(keys > 0 && row_tokens + 4 * rows <= row_bytes && query_bytes % 128 == 0);
};

/// The windows of an image that forward_grid.cuh takes, in tokens: those that fill its tiles.
constexpr bool takes_grid(std::size_t element_bytes, int head_dim, int tokens) {
  return element_bytes == 2 && head_dim <= 32 && tokens > 32 && tokens <= 64;
}
/// Its shared memory. \tparam D padded head dim.
template <int D>
struct forward_grid_layout {
  static constexpr int tiles = 4;  ///< of 16 queries, one a warp
  static constexpr int rows = 16 * tiles;
  static constexpr int min_blocks = 4;
  static constexpr int row_bytes = 2 * D;
  static constexpr int array_bytes = rows * row_bytes;  // T [q, k, v][rows][D]
  static constexpr int tokens = 3 * array_bytes;        // int [rows]
  static constexpr int regions = tokens + 4 * rows;     // uint32 [rows]
  static constexpr int stage_bytes = regions + 4 * rows;
  static constexpr int codes = 2 * stage_bytes;   // int [rows]
  static constexpr int table = codes + 4 * rows;  // float [(2w - 1)²], w up to 8
  static constexpr int bytes = table + 4 * 225;
  static_assert(stage_bytes % 128 == 0);
  /// As many blocks as fit an H200.
  static constexpr int most_blocks = min_blocks * 132;
};

}  // namespace winnow::detail
