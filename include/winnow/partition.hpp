// SPDX-License-Identifier: Apache-2.0
/// \file
/// A partition says which token lies in which window. It is built once from coordinates, labels or
/// an image grid and then used by every attention call on the same tokens.
///
/// The builders for host memory are in `reference.hpp`, those for device memory at the end of this
/// file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>

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
  /// `partition_flag` bits: what a device builder found wrong in the data. Host builders fail
  /// instead and leave 0.
  std::uint32_t flags = 0;
};

/// What a device builder can only find while it runs. A token with bad data lies in no window, a
/// selection with bad data selects nothing; memory stays sound in every case.
enum class partition_flag : std::uint32_t {
  not_finite = 1u << 0,        ///< a coordinate or radius is NaN or infinite, or a radius overflows
  negative_batch = 1u << 1,    ///< a batch id is negative
  far_cell = 1u << 2,          ///< a token lies 2^30 or more windows from the origin
  outside_bounds = 1u << 3,    ///< a token lies outside the given `partition_bounds`
  wide_span = 1u << 4,         ///< cells and batch items span 2^63 or more windows: none is built
  too_many_windows = 1u << 5,  ///< tokens beyond the result's `max_windows` lie in no window
  token_count = 1u << 6,       ///< `num_tokens` was outside [0, N] and was clamped
  bad_position = 1u << 7,      ///< a given position is outside [0, quant_length)
  kept_id = 1u << 8,           ///< a selected id is outside the image's windows
  kept_twice = 1u << 9,        ///< a window is selected twice
  kept_offsets = 1u << 10  ///< a ragged selection's offsets are no ranges of the image's windows
};

/// Ok, or invalid_argument that names the first flag of counts copied to the host.
[[nodiscard]] status check_flags(const partition_counts& counts) noexcept;

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

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include <cuda_runtime_api.h>

namespace winnow {

/// \name Builders for device memory
///
/// The same partitions as the host builders of `reference.hpp` make, bit for bit; spherical ones
/// except for tokens within 1e-5 of a cell border, since atan2 differs. Every pointer inside the
/// arguments is device memory, `num_tokens` too.
///
/// A call submits a few kernels to `stream` and returns. It never allocates, synchronises or reads
/// device memory on the host, so it can be captured in a CUDA graph, whose replays may see other
/// coordinates and another `*num_tokens`. Results repeat bit for bit. Rows of the result from
/// `*num_tokens` on are untouched.
///
/// Arguments are checked before anything is submitted: invalid_argument, workspace_too_small, or
/// cuda_error if a launch is refused. What only the data shows sets a `partition_flag`.
/// @{

/// A box of Cartesian coordinates, in their unit, bounds included.
struct coordinate_box {
  std::array<double, 3> lower{};
  std::array<double, 3> upper{};
};

/// What the caller knows about the data beforehand. Builders are correct without; with it, sort
/// keys are known to be short, which saves launches and workspace. A token that breaks a bound by
/// whole windows lies in no window and raises `outside_bounds`.
struct partition_bounds {
  /// Batch ids lie in [0, batch_items); 0: unknown.
  std::int32_t batch_items = 0;
  /// Holds all points.
  std::optional<coordinate_box> box{};
  /// Labels lie below this; 0: unknown.
  std::int32_t labels = 0;
};

/// Bytes of workspace for `build_partition` with the same arguments; 0 for arguments that it
/// rejects. Only the shape and the dtype of the points count, not their memory. A grid with every
/// window selected needs none.
[[nodiscard]] std::size_t build_partition_workspace_bytes(
    const cubic_window& window, const point_set& points,
    const partition_bounds& bounds = {}) noexcept;
[[nodiscard]] std::size_t build_partition_workspace_bytes(
    const spherical_window& window, const point_set& points,
    const partition_bounds& bounds = {}) noexcept;
[[nodiscard]] std::size_t build_partition_workspace_bytes(
    const labels_window& window, const label_set& labels,
    const partition_bounds& bounds = {}) noexcept;
[[nodiscard]] std::size_t build_partition_workspace_bytes(
    const grid_window& window, const window_selection* kept = nullptr) noexcept;

/// Partitions points into cubic or spherical windows, or tokens by labels.
///
/// \param result bound with `bind_partition` to at least `shape_of(window, N)`; `max_windows` may be
///        smaller where the caller knows better. Its previous content does not matter.
/// \param workspace device memory aligned to 16 bytes, free again when the work is done.
status build_partition(const cubic_window& window, const point_set& points,
                       const partition_bounds& bounds, const partition& result, void* workspace,
                       std::size_t workspace_bytes, cudaStream_t stream) noexcept;
status build_partition(const spherical_window& window, const point_set& points,
                       const partition_bounds& bounds, const partition& result, void* workspace,
                       std::size_t workspace_bytes, cudaStream_t stream) noexcept;
status build_partition(const labels_window& window, const label_set& labels,
                       const partition_bounds& bounds, const partition& result, void* workspace,
                       std::size_t workspace_bytes, cudaStream_t stream) noexcept;
/// Partitions the tokens of images. `kept` points to host memory, its ids and offsets to device
/// memory: they are read when the work runs. Null: every window.
status build_partition(const grid_window& window, const window_selection* kept,
                       const partition& result, void* workspace, std::size_t workspace_bytes,
                       cudaStream_t stream) noexcept;

/// One of several partitions of the same points.
struct point_partition {
  std::variant<cubic_window, spherical_window> window;
  partition result;
};

/// The most partitions of one joint build.
inline constexpr int max_joint_partitions = 8;

/// Builds several partitions of the same points in as many launches as the longest of them takes:
/// the points are measured once, and every sort pass serves all partitions. The results are those
/// of the separate calls.
/// \param items `count` of them, 1 to `max_joint_partitions`, in host memory, read before the call
///        returns. Results share no memory.
status build_partitions(const point_partition* items, int count, const point_set& points,
                        const partition_bounds& bounds, void* workspace,
                        std::size_t workspace_bytes, cudaStream_t stream) noexcept;
/// Bytes of workspace for `build_partitions`; looks at the items' windows only.
[[nodiscard]] std::size_t build_partitions_workspace_bytes(
    const point_partition* items, int count, const point_set& points,
    const partition_bounds& bounds = {}) noexcept;

/// Submits a copy of a device partition's counts and flags. `*host` (pinned memory, if the copy
/// shall not wait for the stream) is valid once the stream has got there; `check_flags` reads it.
status copy_counts(const partition& source, partition_counts* host, cudaStream_t stream) noexcept;

/// @}

}  // namespace winnow
#endif
