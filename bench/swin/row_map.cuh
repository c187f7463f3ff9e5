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

/// n / d for n below 2^21, from 1 / d: an eighth of the instructions of a division.
__device__ __forceinline__ int quotient(int n, float reciprocal) {
  return __float2int_rz((static_cast<float>(n) + 0.5f) * reciprocal);
}

/// The numbers of `block_rows` as the device wants them.
struct row_map {
  int height, width;                // of the map
  int padded_height, padded_width;  // a multiple of the window
  int columns, windows;             // of an image
  int kept, shift, id_stride;
  float per_column;  ///< 1 / columns
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
        per_column(1.0f / static_cast<float>(columns)),
        ids(rows.ids),
        ranks(rows.ranks) {}

  /// A place of the padded map as the rolled map has it.
  struct rolled_place {
    int window, token;  ///< of the image; of the window
  };
  __device__ __forceinline__ rolled_place rolled(int y, int x) const {
    const auto rolled_y = static_cast<unsigned>(y >= shift ? y - shift : y - shift + padded_height);
    const auto rolled_x = static_cast<unsigned>(x >= shift ? x - shift : x - shift + padded_width);
    const unsigned line = rolled_y / window_edge;
    const unsigned column = rolled_x / window_edge;
    return {static_cast<int>(line) * columns + static_cast<int>(column),
            static_cast<int>((rolled_y - line * window_edge) * window_edge + rolled_x -
                             column * window_edge)};
  }
  /// How many windows come before this one; too many if it is not wanted. Nothing but a load depends on
  /// conditions here, so that several of them are on their way at once.
  __device__ __forceinline__ int rank_of(int image, int window, bool wanted) const {
    int rank = wanted ? window : kept;
    if (wanted && ranks != nullptr) rank = ranks[image * windows + window];
    return rank;
  }
  /// The row of a place among those of its image; -1: not computed.
  __device__ __forceinline__ int row_of(int rank, int token) const {
    return rank < kept ? rank * window_tokens + token : -1;
  }
  /// The first row of an image.
  __device__ __forceinline__ std::int64_t first_row(int image) const {
    return static_cast<std::int64_t>(image) * (kept * window_tokens);
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

/// The `k`-th window of an image that is computed.
__device__ __forceinline__ int window_of(const row_map& map, int image, int k) {
  return map.ids != nullptr ? map.ids[image * map.id_stride + k] : k;
}

/// The place of a window's token in the padded map.
__device__ __forceinline__ place place_in_window(const row_map& map, int image, int window,
                                                 int token) {
  const int line = quotient(window, map.per_column);
  const int line_of_token = token / window_edge;
  int y = line * window_edge + line_of_token + map.shift;
  int x = (window - line * map.columns) * window_edge + (token - line_of_token * window_edge) +
          map.shift;
  if (y >= map.padded_height) y -= map.padded_height;
  if (x >= map.padded_width) x -= map.padded_width;
  return {image, y, x};
}

/// A place of the padded map from a row.
__device__ __forceinline__ place place_of(const row_map& map, int row) {
  const int window = row / window_tokens;
  const int image = window / map.kept;
  return place_in_window(map, image, window_of(map, image, window - image * map.kept),
                         row - window * window_tokens);
}

}  // namespace winnow::swin
