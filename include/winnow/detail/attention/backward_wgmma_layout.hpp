// SPDX-License-Identifier: Apache-2.0
/// \file
/// The shape of the blocks of backward_long_wgmma.cuh, and their shared memory.
#pragma once

#include <cstddef>

#include "winnow/detail/attention/backward_layout.hpp"

namespace winnow::detail {

/// \tparam D padded head dim.
template <int D, backward_side Side>
struct backward_wgmma_layout {
  static constexpr int head_dim = D;
  static constexpr backward_side side = Side;
  static constexpr int groups = Side == backward_side::query ? 3 : 2;  ///< warpgroups that multiply
  static constexpr int rows = groups * wgmma_rows;
  static constexpr int warps = 4 * groups + 4;  ///< the last four copy
  /// Of a thread that multiplies and of one that copies; they start with 128 each, or with 168.
  static constexpr int registers = groups == 2 ? (D == 64 ? 232 : 224) : D == 64 ? 160 : 152;
  static constexpr int copy_registers = groups == 2 ? (D == 64 ? 40 : 56) : D == 64 ? 32 : 56;
  static constexpr int others = 64;  ///< rows of a tile of the other side
  static constexpr int stages = D == 64 ? 6 : 8;
  static constexpr int pending = 2;  ///< stages that may be on their way when one is announced

  static constexpr int row_bytes = 2 * D;  ///< swizzled: see wgmma.cuh
  static constexpr int tile_bytes = others * row_bytes;
  static constexpr int own_bytes = rows * row_bytes;

  // Everything of own rows is there twice, for one item and the next.
  static constexpr int own_first = 0;                           // T [2][rows]: q or k
  static constexpr int own_second = own_first + 2 * own_bytes;  // T [2][rows]: dO or v
  /// Has the query side O in shared memory, too?
  static constexpr bool holds_out = Side == backward_side::query && D <= 32;
  static constexpr int own_out = own_second + 2 * own_bytes;  // T [2][rows]
  static constexpr int first_tiles =
      own_out + (holds_out ? 2 : 0) * own_bytes;  // T [stages][others]: k or q
  static constexpr int second_tiles =
      first_tiles + stages * tile_bytes;  // T [stages][others]: v or dO
  static constexpr int column_lse = second_tiles + stages * tile_bytes;  // float [stages][others]
  static constexpr int column_delta = column_lse + 4 * stages * others;  // float [stages][others]
  static constexpr int full = column_delta + 4 * stages * others;        // barriers [stages]
  static constexpr int empty = full + 8 * stages;                        // barriers [stages]
  static constexpr int own_empty = empty + 8 * stages;                   // barriers [2]
  static constexpr int items = own_empty + 8 * 2;                        // int4 [warps][32]
  static constexpr int windows = items + 16 * 32 * warps;                // int2 [2][rows]
  static constexpr int tokens = windows + 8 * 2 * rows;                  // int [2][rows]
  static constexpr int deltas = tokens + 4 * 2 * rows;                   // float [rows]
  static constexpr int own_lse = deltas + 4 * rows;                      // float [2][rows]
  static constexpr int scales = own_lse + 4 * 2 * rows;                  // float2 [2]
  static constexpr int bytes = scales + 8 * 2;
  static_assert(own_first % 1024 == 0 && own_second % 1024 == 0 && first_tiles % 1024 == 0 &&
                second_tiles % 1024 == 0 && full % 8 == 0 && items % 16 == 0);
  static_assert(bytes <= 227 * 1024 || D > 64);
};

}  // namespace winnow::detail
