// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the backward kernels are told, and how their workspace is laid out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/partition/partition.hpp"

namespace winnow::detail {

/// Which rows a block owns. Query tiles give dq, dTq, dTv and dB, key tiles dk, dv and dTk.
enum class backward_side : int { query, key };

/// One group's gradients of tables on their way: each block sums up a part, and the parts are summed
/// up in order afterwards. Laid out [heads][parts_per_head][axis][row][head_dim] for tables, with padded
/// rows in the order of tiles where those give them, and [heads][parts_per_head][rows] for the bias. Null:
/// not wanted.
struct table_parts {
  float* table_q = nullptr;
  float* table_k = nullptr;
  float* table_v = nullptr;
  float* bias = nullptr;
};

struct backward_group {
  group_problem problem;
  table_parts parts;
};

/// All but the groups. The kernels that differentiate plain windows and grids take it a second time,
/// as a parameter whose address goes nowhere: what is read from it is a constant to the compiler, not
/// a load.
struct backward_rows {
  row_view q, k, v, out, grad_out;
  /// Null data: not wanted.
  row_view grad_q, grad_k, grad_v;
  const float* lse = nullptr;
  std::int64_t lse_token_stride = 0;
  std::int64_t lse_head_stride = 0;
  float scale = 1.0f;
  int head_dim = 0;
  bool accumulate = false;
  bool zero_unassigned = false;
  /// Of windows too long for one pass, those that is_wgmma_tile names are backward_long_wgmma.cuh's.
  bool by_warpgroups = false;
  kernel_place place;  ///< of the kernels of plain windows
  /// delta_i = dO_i·O_i, [heads, max_tokens] by slot; query tiles write it, key tiles read it.
  float* delta = nullptr;
  /// The largest biased FP32 exponent among the finite elements of dO in 16 consecutive slots,
  /// [heads, magnitude_stride]. Rounding dS to 16 bits is relative to it.
  std::uint8_t* magnitude = nullptr;
  std::int64_t max_tokens = 0;
  std::int64_t magnitude_stride = 0;
  int heads = 0;  ///< of this launch
  /// Block b of a head takes tiles (row path: slots) b, b + blocks_per_head, ...
  int blocks_per_head = 1;
  /// Parts of a table's gradient, a block of a head each. More than `blocks_per_head` where contextual windows
  /// go in one pass: the first `short_parts` are those of short windows, to which windows too long for one
  /// pass add, the others those of long ones.
  int parts_per_head = 1;
  int short_parts = 1;
  /// Of what a head has of long contextual windows, a block takes `heads`; the last one of each head the rest.
  int long_whole = 0;
  /// Of short contextual windows: sums of prices, [groups][contextual_priced_ranges].
  std::uint32_t* prices = nullptr;
  /// Not 0: windows of up to so many tokens are differentiated in one pass by backward_window.cuh, and
  /// longer ones by backward_long.cuh.
  int one_pass = 0;
};

struct backward_problem : backward_rows {
  int group_count = 0;
  backward_group groups[max_head_groups];
};
static_assert(sizeof(backward_problem) + sizeof(backward_rows) <= 4000,
              "kernel parameters end at 4 KB");

/// What decides on the shared memory of a launch.
struct backward_extent {
  int bias_rows = 0;    ///< of the largest bias table
  bool radial = false;  ///< contextual groups have the radial axis
};

/// All the partial sums of tables together may take this much.
inline constexpr std::int64_t table_parts_limit = std::int64_t{64} << 20;
/// Rows of a bias table up to which each half warp sums dB in shared memory.
inline constexpr int shared_bias_rows = 31 * 31;

}  // namespace winnow::detail
