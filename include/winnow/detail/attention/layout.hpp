// SPDX-License-Identifier: Apache-2.0
/// \file
/// Shared memory of the forward kernel. One description serves the launch (how many bytes) and the
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
  static constexpr bool contextual = Position == position_encoding::contextual;
  static constexpr int stages = tuning.stages;
  static constexpr int rows = tuning.rows();
  static constexpr int keys = tuning.key_tile;
  /// 16 bytes of padding a row: eight neighbouring rows then start in different banks.
  static constexpr int row_bytes = D * Bytes + 16;
  static constexpr int tile_bytes = keys * row_bytes;
  /// The one-hot positions of a key in half.
  static constexpr int one_hot_stride = 3 * tile_cells + 16;
  /// Sums of weights by radial table row.
  static constexpr int radial_stride = tile_rows + 4;
  /// Table products of one token in FP32: two axes of cells, then cells or radial table rows.
  static constexpr int linear_products = 3 * tile_cells + 4;
  static constexpr int radial_products = 2 * tile_cells + tile_rows + 4;

  /// Q of a block's next head. Contextual: it is requested as soon as the fragments of this head's
  /// are in registers. Else it comes with the head's first keys, into a buffer of its own.
  static constexpr bool one_query_buffer = contextual && Bytes == 2;
  static constexpr int axis_bytes = tile_rows * row_bytes;  // of the value table
  /// Whether a block may compute several heads: see `value_table`.
  static constexpr bool many_heads =
      contextual
          ? 2 * keys * one_hot_stride + 4 * keys * linear_products >= axis_bytes && D * Bytes <= 64
          : D * Bytes <= 256;
  static constexpr int query_buffers = many_heads && !one_query_buffer ? stages : 1;
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
  /// None and bias: the bias tables of the block's heads in FP32. Contextual: half
  /// [keys][one_hot_stride], float [keys][products], float [rows][products], and with a radial axis
  /// uint32 [rows][radial_stride], where `products` depends on the axis.
  static constexpr int tail = key_tiles + 2 * stages * tile_bytes;
  static constexpr int one_hot = tail;
  static constexpr int key_products = one_hot + 2 * keys * one_hot_stride;
  static WINNOW_HOST_DEVICE constexpr int products(bool radial) {
    return radial ? radial_products : linear_products;
  }
  static WINNOW_HOST_DEVICE constexpr int query_products(bool radial) {
    return key_products + 4 * keys * products(radial);
  }
  static WINNOW_HOST_DEVICE constexpr int radial_sums(bool radial) {
    return query_products(radial) + 4 * rows * products(radial);
  }

  /// When a head's keys are done, the value table takes the place of their one-hot positions and
  /// products, so many axes at a time. Where not even one fits, it takes the key tiles as well, and
  /// then a block has one head, as no tile of a next one may be under way.
  static constexpr int value_table = many_heads ? one_hot : key_tiles;
  static constexpr int value_space = query_products(false) - value_table;
  static constexpr int value_axes = value_space / axis_bytes < 3 ? value_space / axis_bytes : 3;
  static_assert(!contextual || value_axes >= 1, "the value table has to fit, axis by axis");
  static_assert(!contextual || tuning.units == tuning.wide_units);
  static_assert(keys % 16 == 0 && (!contextual || tuning.warps % (keys / 16) == 0));

  /// \param bias_floats of all bias tables that the block holds at a time.
  static constexpr std::size_t bytes(bool radial, std::size_t bias_floats) {
    return contextual ? radial_sums(radial) + (radial ? 4 * rows * radial_stride : 0)
                      : tail + 4 * bias_floats;
  }
  static_assert(bytes(true, 4 * 169) <= 99 * 1024);
};

}  // namespace winnow::detail
