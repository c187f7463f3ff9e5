// SPDX-License-Identifier: Apache-2.0
/// \file
/// A partition says which token lies in which window. It is built once from coordinates, labels or
/// an image grid and then used by every attention call on the same tokens.
///
/// The builders for host memory are in `reference.hpp`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/relative_position.hpp"
#include "winnow/selection.hpp"
#include "winnow/status.hpp"
#include "winnow/tensor.hpp"
#include "winnow/window.hpp"

namespace winnow {

/// Points and the batch item each belongs to.
struct point_set {
  /// [N, 3] Cartesian, float32 or int32, inner stride 1. Spherical windows want the sensor at 0.
  /// All coordinates finite.
  tensor_view<const void, 2> coordinates;
  /// [N], >= 0, in any order; null puts every token into batch item 0.
  const std::int32_t* batch = nullptr;
  /// The number of tokens in the memory of `coordinates`, at most N; null: N. On the device this is
  /// how frames of different size run under one captured graph.
  const std::int32_t* num_tokens = nullptr;
};

/// Window ids of tokens, and optionally their positions.
struct label_set {
  /// [N]; negative: in no window.
  const std::int32_t* labels = nullptr;
  std::int64_t tokens = 0;
  /// [N, 3], each in [0, quant_length); null: none.
  const std::int32_t* positions = nullptr;
  /// [N], finite; only with positions; null: none.
  const float* radius = nullptr;
  /// As in `point_set`.
  const std::int32_t* num_tokens = nullptr;
};

/// The numbers of a partition that only its memory knows.
struct partition_counts {
  std::int32_t windows;   ///< non-empty windows; for a grid, the selected ones
  std::int32_t tokens;    ///< tokens partitioned, those in no window included
  std::int32_t assigned;  ///< tokens that lie in a window, `offsets[windows]`
  std::int32_t largest;   ///< tokens of the largest window
};

/// A partition in memory that the caller owns, all of it on the host or all of it on the device.
///
/// A *slot* is an index into `order`. Slots are sorted by window; inside a window tokens keep the
/// caller's order (for a grid, raster order in the rolled window). Tokens in no window follow the
/// last window, ascending; their bounds are empty.
struct partition {
  std::int64_t max_tokens = 0;
  std::int64_t max_windows = 0;
  partition_counts* counts = nullptr;
  std::int32_t* order = nullptr;    ///< [max_tokens] slot -> token
  std::int32_t* offsets = nullptr;  ///< [max_windows + 1] window -> first slot
  std::int32_t* bounds = nullptr;   ///< [max_tokens, 2] slot -> its window's slots [first, last)
  packed_position* position = nullptr;  ///< [max_tokens] by slot; null for plain windows
  float* radius = nullptr;              ///< [max_tokens] by slot; null unless spherical
  relative_position relative;
};

/// What sizes a partition's memory: upper bounds known on the host, and the kind of positions.
struct partition_shape {
  std::int64_t max_tokens = 0;
  std::int64_t max_windows = 0;
  relative_position relative;
};

/// The shape of a partition of at most `max_tokens` tokens by the given windows.
[[nodiscard]] partition_shape shape_of(const cubic_window& window,
                                       std::int64_t max_tokens) noexcept;
[[nodiscard]] partition_shape shape_of(const spherical_window& window,
                                       std::int64_t max_tokens) noexcept;
/// `labels` says whether positions and radius are present.
[[nodiscard]] partition_shape shape_of(const labels_window& window,
                                       const label_set& labels) noexcept;
/// \param kept the selection the partition will be built from; null: every window.
[[nodiscard]] partition_shape shape_of(const grid_window& window,
                                       const window_selection* kept = nullptr) noexcept;

/// Bytes of memory for a partition of this shape: at most 24 a token and 4 a window, aligned to
/// 256. 0 for a shape that `bind_partition` rejects.
[[nodiscard]] std::size_t partition_bytes(const partition_shape& shape) noexcept;

/// Points `result` into `memory`, which stays the caller's and is not touched.
///
/// \param memory host or device memory, aligned to 16 bytes.
/// \param bytes its size, at least `partition_bytes(shape)`.
/// \return invalid_argument for a negative shape, more than 2³¹ - 1 tokens or windows, or null or
///         misaligned memory; workspace_too_small.
status bind_partition(const partition_shape& shape, void* memory, std::size_t bytes,
                      partition& result) noexcept;

}  // namespace winnow

#include "winnow/detail/partition/partition.hpp"
