// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the kernels that renew tokens share: where a token's old change and its next row are, and what
/// is done with the new token.
#pragma once

#include "swin/row_map.cuh"
#include "swin/row_norm.cuh"

namespace winnow::swin {

template <class T>
struct token_arguments {
  explicit token_arguments(const token_update& update)
      : stream(static_cast<T*>(update.stream)),
        change(static_cast<const T*>(update.change)),
        magnitude(update.magnitude),
        rows(static_cast<T*>(update.rows)),
        norm_weight(static_cast<const T*>(update.norm.weight)),
        norm_bias(static_cast<const T*>(update.norm.bias)),
        positions(update.positions),
        changed(update.changed),
        next(update.next),
        batch(update.map.batch),
        height(update.map.height),
        width(update.map.width) {
    // Rows of padding are to be zeroed, too.
    scan_height = rows != nullptr ? next.padded_height : height;
    scan_width = rows != nullptr ? next.padded_width : width;
  }
  T* stream;
  const T* change;
  float* magnitude;
  T* rows;
  const T* norm_weight;
  const T* norm_bias;
  std::uint32_t* positions;
  row_map changed, next;
  int batch, height, width, scan_height, scan_width;
};

/// One place of the map, or of its padding.
struct token_spot {
  int image, y, x;
  bool inside;         ///< the map
  int from, to;        ///< rows in the last block and in the next; -1: none
  std::int64_t token;  ///< if inside
};

/// \param index of the place among all that are scanned; too large ones are no place.
template <class T>
__device__ __forceinline__ token_spot locate(const token_arguments<T>& work, unsigned index) {
  const unsigned per_image = static_cast<unsigned>(work.scan_height * work.scan_width);
  const bool present = index < per_image * static_cast<unsigned>(work.batch);
  token_spot spot;
  spot.image = present ? static_cast<int>(index / per_image) : 0;
  const unsigned rest = present ? index - static_cast<unsigned>(spot.image) * per_image : 0;
  spot.y = static_cast<int>(rest / static_cast<unsigned>(work.scan_width));
  spot.x = static_cast<int>(rest) - spot.y * work.scan_width;
  spot.inside = present && spot.y < work.height && spot.x < work.width;
  spot.from =
      spot.inside && work.change != nullptr ? work.changed.row_of(spot.image, spot.y, spot.x) : -1;
  spot.to = present && work.rows != nullptr ? work.next.row_of(spot.image, spot.y, spot.x) : -1;
  spot.token = (static_cast<std::int64_t>(spot.image) * work.height + spot.y) * work.width + spot.x;
  return spot;
}

/// Writes what is wanted of a token: itself, if it is new, its magnitude, its norm. All lanes of a warp
/// take part.
template <class T, int Lanes>
__device__ __forceinline__ void finish(const token_arguments<T>& work, const token_spot& spot,
                                       token_row<T, Lanes> value, bool renewed, int lane) {
  constexpr int channels = token_row<T, Lanes>::channels;
  if (renewed) {
    value.round();
    value.store(work.stream + spot.token * channels, lane);
  }
  if (work.magnitude != nullptr) {
    const float magnitude = value.magnitude();
    if (spot.inside && lane == 0) work.magnitude[spot.token] = magnitude;
  }
  if (work.rows == nullptr) return;
  token_row<T, Lanes> normed = value.normed(work.norm_weight, work.norm_bias, norm_epsilon, lane);
  if (spot.to < 0) return;
  if (!spot.inside) normed.clear();
  normed.store(work.rows + std::int64_t{spot.to} * channels, lane);
  if (work.positions != nullptr && lane == 0)
    work.positions[spot.to] = work.next.position_of(spot.y, spot.x);
}

}  // namespace winnow::swin
