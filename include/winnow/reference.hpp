// SPDX-License-Identifier: Apache-2.0
/// \file
/// Host twins: the same arguments as the device calls, on host memory, without workspace and
/// stream.
///
/// They are the oracle of the library: naive and readable, parallel over rows, O(N) memory beyond
/// the arguments, results independent of the number of threads. Each call returns when its work is
/// done. Temporaries come from the heap; when that fails the call returns out_of_memory.
///
/// `threads`: how many threads a call may use; 0 means one per hardware thread.
#pragma once

#include <memory>
#include <type_traits>

#include "winnow/attention.hpp"
#include "winnow/partition.hpp"
#include "winnow/selection.hpp"

namespace winnow::reference {

/// A partition that owns its host memory.
class host_partition {
 public:
  host_partition() = default;
  /// Allocates for the shape; throws std::bad_alloc. An illegal shape leaves a partition without
  /// memory, which every builder rejects.
  explicit host_partition(const partition_shape& shape)
      : bytes_(partition_bytes(shape)), memory_(bytes_ ? new std::byte[bytes_] : nullptr) {
    if (!bind_partition(shape, memory_.get(), bytes_, view_).ok()) view_ = {};
  }
  [[nodiscard]] const partition& view() const noexcept { return view_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] const partition_counts& counts() const noexcept { return *view_.counts; }

 private:
  std::size_t bytes_ = 0;
  std::unique_ptr<std::byte[]> memory_;
  partition view_;
};

/// Partitions points into cubic or spherical windows.
///
/// \param result bound with `bind_partition` to at least `shape_of(window, points)`.
/// \return invalid_argument for a bad window, shape or pointer, a non-finite coordinate, a negative
///         batch id (each named with its token), a token 2³⁰ or more windows from the origin, or
///         cells and batch items that span 2⁶³ or more windows.
status build_partition(const cubic_window& window, const point_set& points, const partition& result,
                       int threads = 0) noexcept;
status build_partition(const spherical_window& window, const point_set& points,
                       const partition& result, int threads = 0) noexcept;
/// Partitions tokens by given ids.
status build_partition(const labels_window& window, const label_set& labels,
                       const partition& result, int threads = 0) noexcept;
/// Partitions the tokens of images; windows follow (image, order of the selection).
/// \param kept null: every window. A duplicate or out-of-range id is an invalid argument.
status build_partition(const grid_window& window, const window_selection* kept,
                       const partition& result, int threads = 0) noexcept;

/// Spherical coordinates [N, 3] (theta, beta in degrees, r) as `build_partition` computes them.
status spherical_coordinates(const point_set& points, const tensor_view<float, 2>& result,
                             int threads = 0) noexcept;

/// Importance of windows: the L2 norm, over a window's tokens, of the mean over channels of |x|.
/// Source: SparseViT, window activation magnitude.
///
/// \tparam Accumulator float or double.
/// \param grid height and width of the features; padding up to a multiple of the window counts 0.
/// \param features [B, height·width, C], float32, float16, bfloat16 or float64, inner stride 1.
/// \param importance [B, windows_per_image()], inner stride 1.
template <class Accumulator>
status window_importance(const grid_window& grid, const tensor_view<const void, 3>& features,
                         const tensor_view<float, 2>& importance, int threads = 0) noexcept;

/// The `result.kept` most important windows of each image, most important first; ties to the lower
/// id; NaN counts as most important. `result` is uniform and says how many are kept.
status select_most_important(const tensor_view<const float, 2>& importance,
                             const window_selection& result) noexcept;
/// The windows with importance >= threshold, or NaN, ids ascending. `result` is ragged.
status select_above(const tensor_view<const float, 2>& importance, float threshold,
                    const window_selection& result) noexcept;
/// The windows whose byte in `mask` [B, windows] is not 0, ids ascending. `result` is ragged.
status select_window_mask(const tensor_view<const std::uint8_t, 2>& mask,
                          const window_selection& result) noexcept;
/// The windows with any token whose byte in `mask` [B, height·width] is not 0, ids ascending.
/// `result` is ragged.
status select_token_mask(const grid_window& grid, const tensor_view<const std::uint8_t, 2>& mask,
                         const window_selection& result) noexcept;

/// Attention forward; see `attention.hpp` for the formulas.
/// \tparam Accumulator float or double: the type of all arithmetic.
template <class Accumulator>
status attention_forward(const attention_forward_arguments<void>& arguments,
                         int threads = 0) noexcept;

/// Attention backward:
///
///     dP_ij = dO_i·(v_j + Σ_a Tv[r_a, a]),  dS_ij = P_ij (dP_ij - dO_i·O_i)
///     dq_i = s Σ_j dS_ij (k_j + Σ_a Tq[r_a, a]),  dk_j = Σ_i dS_ij (q'_i + Σ_a Tk[r_a, a])
///     dv_j = Σ_i P_ij dO_i,  dTq[r, a] = Σ dS_ij q'_i,  dTk[r, a] = Σ dS_ij k_j
///     dTv[r, a] = Σ P_ij dO_i,  dB[r] = Σ dS_ij
template <class Accumulator>
status attention_backward(const attention_backward_arguments<void>& arguments,
                          int threads = 0) noexcept;

/// The typed forms; they differ from the type-erased ones in nothing but the argument.
template <class Accumulator, class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
status attention_forward(const attention_forward_arguments<T, Table>& arguments,
                         int threads = 0) noexcept;
template <class Accumulator, class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
status attention_backward(const attention_backward_arguments<T, Table>& arguments,
                          int threads = 0) noexcept;

}  // namespace winnow::reference

#include "winnow/detail/reference/attention_backward.hpp"
#include "winnow/detail/reference/attention_forward.hpp"
#include "winnow/detail/reference/partition.hpp"
#include "winnow/detail/reference/selection.hpp"
