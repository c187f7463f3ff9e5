// SPDX-License-Identifier: Apache-2.0
/// \file
/// Which place of the image a compact row belongs to, and the inverse.
#pragma once

#include <cstdint>

#include "swin/kernels.hpp"
#include "winnow/relative_position.hpp"

namespace winnow::swin {

/// A place of the padded map.
struct place {
  int image, y, x;
};

/// The numbers of `block_rows` as the device wants them.
struct row_map {
  int height, width;                // of the map
  int padded_height, padded_width;  // a multiple of the window
  int columns, windows;             // of an image
  int kept, shift, id_stride;
  const std::int32_t* ids;
  const std::int32_t* ranks;

  explicit row_map(const block_rows& rows)
      : height(rows.map.height),
        width(rows.map.width),
        padded_height(rows.map.rows() * window_edge),
        padded_width(rows.map.columns() * window_edge),
        columns(rows.map.columns()),
        windows(static_cast<int>(rows.map.windows_per_image())),
        kept(rows.kept),
        shift(rows.map.shift),
        id_stride(rows.id_stride),
        ids(rows.ids),
        ranks(rows.ranks) {}

  /// The row of a place of the padded map; -1: not computed.
  __device__ __forceinline__ int row_of(int image, int y, int x) const {
    int rolled_y = y - shift;
    int rolled_x = x - shift;
    if (rolled_y < 0) rolled_y += padded_height;
    if (rolled_x < 0) rolled_x += padded_width;
    const int window = rolled_y / window_edge * columns + rolled_x / window_edge;
    const int rank = ranks != nullptr ? ranks[image * windows + window] : window;
    if (rank >= kept) return -1;
    return (image * kept + rank) * window_tokens + rolled_y % window_edge * window_edge +
           rolled_x % window_edge;
  }
  /// Whether a place is a token of the map, not of its padding.
  __device__ __forceinline__ bool inside(const place& where) const {
    return where.y < height && where.x < width;
  }
  __device__ __forceinline__ std::int64_t token_at(const place& where) const {
    return (static_cast<std::int64_t>(where.image) * height + where.y) * width + where.x;
  }
  /// Position for attention of a place of the padded map.
  __device__ __forceinline__ packed_position position_of(int y, int x) const {
    const int rolled_y = y >= shift ? y - shift : y - shift + padded_height;
    const int rolled_x = x >= shift ? x - shift : x - shift + padded_width;
    const int region = shift == 0 ? 0
                                  : (rolled_y >= padded_height - shift ? 2 : 0) +
                                        (rolled_x >= padded_width - shift ? 1 : 0);
    return pack_position(rolled_x % window_edge, rolled_y % window_edge, region);
  }
};

/// A place of the padded map from a row.
__device__ __forceinline__ place place_of(const row_map& map, int row) {
  const int window = row / window_tokens;
  const int inside = row % window_tokens;
  const int image = window / map.kept;
  const int k = window % map.kept;
  const int id = map.ids != nullptr ? map.ids[image * map.id_stride + k] : k;
  int y = id / map.columns * window_edge + inside / window_edge + map.shift;
  int x = id % map.columns * window_edge + inside % window_edge + map.shift;
  if (y >= map.padded_height) y -= map.padded_height;
  if (x >= map.padded_width) x -= map.padded_width;
  return {image, y, x};
}

}  // namespace winnow::swin
