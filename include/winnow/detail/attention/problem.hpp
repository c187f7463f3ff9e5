// SPDX-License-Identifier: Apache-2.0
/// \file
/// What an attention kernel is told: checked arguments as plain pointers and strides, one copy in
/// the kernel's parameters, and how a position encoding wants its groups.
#pragma once

#include <cstdint>

#include "winnow/attention.hpp"

namespace winnow::detail {

/// The rows of q, k, v, out or a gradient: element d of (token, head) lies at
/// `data[token * token_stride + head * head_stride + d]`.
struct row_view {
  const void* data = nullptr;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  /// Every row starts on 16 bytes, so that rows move as vectors.
  bool vectors = false;
};

/// Rows that start on 16 bytes and whose steps fit 32 bits, in bytes: an address is one
/// multiplication.
struct packed_view {
  char* data = nullptr;
  std::int32_t token_bytes = 0;
  std::int32_t head_bytes = 0;
};

/// One table [R, 3, heads, D], as the group owns it; null data: absent.
struct table_view {
  const void* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t axis_stride = 0;
  std::int64_t head_stride = 0;
  bool is_float = false;  ///< float elements beside a narrower storage type
  bool vectors = false;
};

/// Which code serves a group's encoding.
enum class encoding_path : int {
  tiles,  ///< matrix products over tiles of tokens
  rows    ///< one row at a time: what tiles have no room for
};

struct group_problem {
  int first_index = 0;  ///< the group's first head among those of this launch
  int first_head = 0;   ///< the group's first head in q
  int shares = 1;  ///< blocks of one head; contextual encoding, whose first_index counts blocks
  encoding_path path = encoding_path::tiles;
  position_encoding position = position_encoding::none;
  relative_kind kind = relative_kind::none;
  int quant_length = 1;
  float inverse_a = 0.0f;
  std::int64_t max_tokens = 0;
  const partition_counts* counts = nullptr;
  const std::int32_t* order = nullptr;
  const std::int32_t* offsets = nullptr;
  const std::int32_t* bounds = nullptr;
  const packed_position* positions = nullptr;
  const float* radius = nullptr;
  table_view table_q, table_k, table_v;
  const void* bias = nullptr;  ///< [(2w - 1)², heads]
  std::int64_t bias_row_stride = 0;
  std::int64_t bias_head_stride = 0;
  bool bias_is_float = false;
  int heads = 0;
  bool has_long_tiles = false;  ///< forward_long.cuh computes tiles in long windows
};

/// A kernel among those of its call, which run beside each other.
struct kernel_place {
  bool is_first = true;
  bool admits = false;       ///< the next kernel may begin when all blocks have
  bool admits_call = false;  ///< the next call may when they run out of work
};

struct forward_problem {
  row_view q, k, v, out;
  float* lse = nullptr;  ///< null: not wanted
  std::int64_t lse_token_stride = 0;
  std::int64_t lse_head_stride = 0;
  float scale = 1.0f;
  int head_dim = 0;
  bool zero_unassigned = false;
  int heads_per_block = 1;  ///< the launch sets it, and first_index to the group's first column
  kernel_place place;
  /// Groups of short windows have a kernel of their own.
  bool takes_windows = false;
  /// Which takes a few longer windows, too, instead of the kernel behind it.
  bool takes_longer = false;
  packed_view packed[4];  ///< q, k, v and out, for short windows
  /// Of the long windows' items so many are of all heads of their column, the others of one each.
  std::int64_t whole_items = INT64_MAX;
  int group_count = 0;
  group_problem groups[max_head_groups];
};

/// Contextual tiles hold quant lengths up to this in registers and shared memory; longer ones go
/// row by row. SphereFormer and Stratified Transformer use 24.
inline constexpr int tile_cells = 24;
/// Table rows of an axis, R <= 2 * tile_cells.
inline constexpr int tile_rows = 2 * tile_cells;
/// The largest bias table in shared memory: windows up to 32 x 32.
inline constexpr int tile_bias_rows = 63 * 63;

}  // namespace winnow::detail
