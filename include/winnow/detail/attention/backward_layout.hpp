// SPDX-License-Identifier: Apache-2.0
/// \file
/// The shape of the backward kernels' tiles, and their shared memory. One description serves the
/// launch (how many bytes) and the kernel (where things are).
#pragma once

#include <cstddef>
#include <ostream>

#include "winnow/detail/attention/backward_problem.hpp"

namespace winnow::detail {

struct backward_tuning {
  int warps;       ///< a warp owns 16 rows: queries on the query side, keys on the key side
  int other_tile;  ///< rows of the other side that a block holds at a time, twice
  int min_blocks;  ///< blocks the compiler leaves room for on a multiprocessor

  [[nodiscard]] constexpr int rows() const { return 16 * warps; }
  [[nodiscard]] constexpr int threads() const { return 32 * warps; }
};

inline std::ostream& operator<<(std::ostream& out, const backward_tuning& tuning) {
  return out << tuning.rows() << " rows, " << tuning.other_tile << " of the other side, "
             << tuning.min_blocks << " blocks";
}

constexpr backward_tuning tune_backward(std::size_t element_bytes, int head_dim,
                                        position_encoding position) {
  const bool wide = element_bytes == 4;
  if (position == position_encoding::contextual) {
    if (head_dim > (wide ? 32 : 64)) return {2, 16, 1};
    return {4, 32, wide || head_dim > 32 ? 1 : 2};
  }
  if (wide) return head_dim <= 32 ? backward_tuning{4, 32, 3} : backward_tuning{2, 16, 2};
  if (head_dim <= 32) return {4, 64, head_dim <= 16 && position == position_encoding::none ? 5 : 4};
  return head_dim <= 64 ? backward_tuning{4, 32, 3} : backward_tuning{4, 16, 2};
}

/// The longest window that backward_window.cuh takes; 0: none.
constexpr int one_pass_capacity(std::size_t element_bytes, int head_dim) {
  if (element_bytes != 2) return 0;
  return head_dim == 16 ? 48 : head_dim == 32 ? 32 : head_dim == 64 ? 16 : 0;
}
constexpr int one_pass_blocks(int head_dim) {
  return head_dim == 16 ? 3 : head_dim == 32 ? 2 : 3;
}
/// Slots in which the windows of one warp start, and warps of a block.
inline constexpr int window_range = 64;
inline constexpr int window_warps = 4;

/// What backward_long.cuh works on. \tparam D padded head dim.
template <int D>
struct long_layout {
  static constexpr int warps = 4;
  static constexpr int rows = 32 * warps;
  static constexpr int others = D == 16 ? 128 : 64;
  static constexpr int min_blocks = D == 16 ? 4 : D == 32 ? 3 : 2;
  static constexpr int row_bytes = 2 * D + 16;
  static constexpr int spans = 0;                     // int2 [warps]
  static constexpr int windows = spans + 16 * warps;  // int2 [rows]
  static constexpr int tokens = windows + 8 * rows;   // int [rows]
  static constexpr int stats = tokens + 4 * rows;     // float2 [2][others], or float [rows]
  static_assert(4 * rows <= 16 * others);
  static constexpr int own = stats + 16 * others;  // T [q or k, dO or v][rows]
  /// On the query side k is used for a piece longer than v, when the next tile has begun.
  static constexpr int first_stages = 3;
  static constexpr int second_stages = 2;
  static constexpr int first = own + 2 * rows * row_bytes;  // T [first_stages][others]: k or q
  static constexpr int second =
      first + first_stages * others * row_bytes;  // T [second_stages][others]: v or dO
  /// The tokens of a tile of the other side, and of the next.
  static constexpr int other_tokens =
      second + second_stages * others * row_bytes;  // int [second_stages][others]
  /// Of the next tile of own rows: their windows and tokens, and the tokens of the first tile that it meets.
  static constexpr int next_windows = other_tokens + 4 * second_stages * others;  // int2 [rows]
  static constexpr int next_tokens = next_windows + 8 * rows;                     // int [rows]
  static constexpr int next_others = next_tokens + 4 * rows;                      // int [others]
  static constexpr int bytes = next_others + 4 * others;
  static_assert(bytes <= 99 * 1024 || D > 64);
};
inline constexpr int long_rows = 128;
/// Its blocks, two times as many as fit an H200, each of several tiles: some may find nothing to do, so
/// they are few enough to end soon.
constexpr int long_blocks(int head_dim) {
  return head_dim == 16 ? 8 * 132 : head_dim == 32 ? 6 * 132 : 4 * 132;
}

/// Are there backward kernels of long windows for the target sm_90a?
constexpr bool takes_wgmma_backward(std::size_t element_bytes, int head_dim) {
  return element_bytes == 2 && (head_dim == 32 || head_dim == 64);
}

/// Rows of a warpgroup. It takes the tiles of so many consecutive slots whose first and last slot lie in
/// windows of `wgmma_window` tokens or more with no other between them, and which are full.
inline constexpr int wgmma_rows = 64;
inline constexpr int wgmma_window = 192;
/// From so many tokens on it is worth two more launches.
inline constexpr int wgmma_tokens = 1024;

/// The largest window that backward_grid.cuh takes; 0: none.
constexpr int grid_capacity(std::size_t element_bytes, int head_dim) {
  return element_bytes == 2 && head_dim <= 64 ? 64 : 0;
}
/// \tparam D padded head dim.
template <int D>
struct grid_layout {
  static constexpr int tiles = 4;  ///< of 16 rows, one a warp
  static constexpr int rows = 16 * tiles;
  static constexpr int min_blocks = D <= 32 ? 4 : 3;
  static constexpr int row_bytes = 2 * D + 16;
  static constexpr int piece_stride = rows + 8;                    ///< elements between keys of dS
  static constexpr int magnitude = 0;                              // uint32 [tiles]
  static constexpr int stats = 64;                                 // float2 [rows]: LSE, -delta
  static constexpr int regions = stats + 8 * rows;                 // uint32 [rows]
  static constexpr int bias = regions + 4 * rows;                  // float [rows][rows]
  static constexpr int pieces = bias + 4 * rows * rows;            // T [rows][piece_stride]
  static constexpr int arrays = pieces + 2 * rows * piece_stride;  // T [q, k, v, dO][rows]
  static constexpr int bytes = arrays + 4 * rows * row_bytes;
  static_assert(bytes <= 99 * 1024);
};

/// Does the contextual encoding fit tiles of this storage type and padded head dim? Products of keys
/// and tables grow with the head dim; rounded to half, they take too much of half's limit beyond 32.
/// Those of float need shared memory beyond what there is at 128.
constexpr bool contextual_tiles_fit(dtype type, int head_dim) {
  return type == dtype::bfloat16 || head_dim <= (type == dtype::float16 ? 32 : 64);
}

/// \tparam Bytes size of an element. \tparam D padded head dim.
template <int Bytes, int D, position_encoding Position>
struct backward_layout {
  static constexpr backward_tuning tuning = tune_backward(Bytes, D, Position);
  static constexpr int rows = tuning.rows();
  static constexpr int others = tuning.other_tile;
  /// 16 bytes of padding a row: eight neighbouring rows then start in different banks.
  static constexpr int row_bytes = D * Bytes + 16;
  static constexpr int other_bytes = others * row_bytes;
  /// Floats between rows of a warp's 16 x 16 piece of dS.
  static constexpr int piece_stride = 17;

  static constexpr int magnitude = 0;               // uint32 [warps]
  static constexpr int own_stats = magnitude + 64;  // float2 [rows]: LSE, delta
  /// Pieces start anywhere in a tile and may reach behind it.
  static constexpr int column_stride = others + 32;
  static constexpr int other_codes = own_stats + 8 * rows;           // uint32 [2][column_stride]
  static constexpr int other_lse = other_codes + 8 * column_stride;  // float [2][column_stride]
  static constexpr int other_delta = other_lse + 8 * column_stride;  // float [2][column_stride]
  static constexpr int own_first = other_delta + 8 * column_stride;  // T [rows]: q or k
  static constexpr int own_second = own_first + rows * row_bytes;    // T [rows]: dO or v
  static constexpr int other_tiles = own_second + rows * row_bytes;  // T [2][first, second][others]
  static constexpr int tail = other_tiles + 4 * other_bytes;

  /// Bias: float [bias rows]; on the query side also float [2 · warps][bias rows] and
  /// float [warps][16][piece_stride].
  static constexpr int bias = tail;

  static constexpr std::size_t bytes(backward_side side, const backward_extent& extent) {
    if (Position != position_encoding::bias) return tail;
    const int bias_rows = extent.bias_rows;
    const int sums = side == backward_side::query ? 1 + 2 * tuning.warps : 1;
    const int piece = side == backward_side::query ? tuning.warps * 16 * piece_stride : 0;
    return bias + 4 * (static_cast<std::size_t>(sums) * static_cast<std::size_t>(bias_rows) +
                       static_cast<std::size_t>(piece));
  }
  static_assert(own_first % 16 == 0 && others % 16 == 0);
  static_assert(tail <= 99 * 1024);
};

}  // namespace winnow::detail
