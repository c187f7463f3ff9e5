// SPDX-License-Identifier: Apache-2.0
/// \file
/// The arguments of window attention, forward and backward.
///
/// With s the softmax scale, q' = s·q, r_a(i, j) the relative index on axis a and sums over the
/// window of i:
///
///     S_ij  = q'_i·k_j + q'_i·Σ_a Tq[r_a, a] + k_j·Σ_a Tk[r_a, a]   contextual
///     S_ij  = q'_i·k_j + B[r(i, j), h]                              bias
///     P     = softmax_j(S),  O_i = Σ_j P_ij (v_j + Σ_a Tv[r_a, a]),  LSE_i = log Σ_j exp S_ij
///
/// Across the seam of a shifted grid S is -inf, whatever the position encoding. Accumulation is in
/// FP32 (host twins: in their accumulator). Results repeat bit for bit. NaN and infinity in q, k, v
/// and dO are data; they reach no other window.
///
/// Every struct comes typed and type-erased: `attention_forward_arguments<half>` converts to
/// `attention_forward_arguments<void>`, whose views carry a dtype. The host calls are in
/// `reference.hpp`; `attention_kernels.cuh` compiles the device calls for other head dims.
#pragma once

#include <cstddef>
#include <type_traits>

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "winnow/partition.hpp"
#include "winnow/status.hpp"
#include "winnow/tensor.hpp"

namespace winnow {

enum class position_encoding : int {
  none,
  contextual,  ///< tables that meet q, k and v (cRPE of Stratified Transformer and SphereFormer)
  bias         ///< Swin's additive bias table
};

/// The most head groups of one call.
inline constexpr int max_head_groups = 8;
/// The largest head dim; every head dim is a multiple of 8.
inline constexpr int max_head_dim = 128;

namespace detail {
/// LSE and the gradients of tables are float, and double where the storage is double.
template <class T>
using wide_t = std::conditional_t<std::is_void_v<T>, void,
                                  std::conditional_t<std::is_same_v<T, double>, double, float>>;
}  // namespace detail

/// Consecutive heads that share a partition and its tables. SphereFormer has two groups: cubic
/// windows for the first ⌊H/2⌋ heads, spherical windows for the rest.
/// \tparam Table element type of tables and bias: the storage type of q or float; void: at run
/// time.
template <class Table = void>
struct head_group {
  int heads = 0;
  /// Same number of tokens in every group of a call.
  partition windows;
  position_encoding position = position_encoding::none;
  /// [R, 3, heads, D], R = `windows.relative.table_rows()`; contextual only, each may be absent.
  tensor_view<const Table, 4> table_q, table_k, table_v;
  /// [(2w - 1)², heads]; bias only, and then required.
  tensor_view<const Table, 2> bias_table;
};

/// Gradients of one head group's tables, float (double for double storage); absent: not computed.
template <class T = void>
struct head_group_gradients {
  /// [R, 3, heads, D]; only where the group has the table.
  tensor_view<detail::wide_t<T>, 4> table_q, table_k, table_v;
  /// [(2w - 1)², heads]
  tensor_view<detail::wide_t<T>, 2> bias_table;
};

/// \tparam T storage type: float, half, bfloat16 (host twins also double); void: at run time.
template <class T = void, class Table = T>
struct attention_forward_arguments {
  /// [N, H, D], inner stride 1, any other strides (packed QKV works), one dtype. N = 0 is fine.
  tensor_view<const T, 3> q, k, v;
  /// [N, H, D]; aliases no input. Row n holds the result of token n, in the caller's order.
  tensor_view<T, 3> out;
  /// [N, H], natural log; inner stride 1; may be absent.
  tensor_view<detail::wide_t<T>, 2> lse;
  /// The softmax scale s; finite. Usually 1/sqrt(D).
  float scale = 1.0f;
  /// `group_count` groups whose heads add up to H; group g owns the heads after those of g - 1.
  const head_group<Table>* groups = nullptr;
  int group_count = 0;
  /// Rows of tokens in no window: false leaves them untouched, true zeroes out and lse.
  bool zero_unassigned = false;
};

/// \copydetails attention_forward_arguments
template <class T = void, class Table = T>
struct attention_backward_arguments {
  /// As in the forward call.
  tensor_view<const T, 3> q, k, v;
  /// What the forward call returned; lse is required.
  tensor_view<const T, 3> out;
  tensor_view<const detail::wide_t<T>, 2> lse;
  /// [N, H, D], the gradient of the loss by `out`.
  tensor_view<const T, 3> grad_out;
  /// [N, H, D]; each may be absent. They alias no input and not each other.
  tensor_view<T, 3> grad_q, grad_k, grad_v;
  float scale = 1.0f;
  const head_group<Table>* groups = nullptr;
  /// [group_count], or null when no gradient of a table is wanted.
  const head_group_gradients<T>* group_gradients = nullptr;
  int group_count = 0;
  /// false: gradients are overwritten; true: they are added to what is there.
  bool accumulate = false;
  /// Rows of tokens in no window: false leaves them untouched; true zeroes their gradients, unless
  /// `accumulate` is set.
  bool zero_unassigned = false;
};

/// Checks everything that the host can know about the arguments: shapes, strides, pointers, dtypes,
/// groups, tables. Every attention call does this first.
status validate(const attention_forward_arguments<void>& arguments) noexcept;
status validate(const attention_backward_arguments<void>& arguments) noexcept;

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
/// Bytes of device memory that `attention_forward` wants for these arguments; 0 today.
[[nodiscard]] std::size_t attention_forward_workspace_bytes(
    const attention_forward_arguments<void>& arguments) noexcept;

/// Attention forward on the GPU; the formulas are at the top of this file.
///
/// All pointers are device memory, those inside the partitions included, whose counts the host
/// never reads: a captured graph runs frames of any size up to `max_tokens`. The call neither
/// allocates nor synchronises, is capturable, keeps no state, and serves the current device. It
/// makes one launch for all groups of the same position encoding, and another one for long windows
/// without an encoding.
///
/// Rows of q, k, v and out that start on 16 bytes are the fast case. So are contextual tables of a
/// quant length up to 24 and bias tables of windows up to 32 x 32; larger ones are computed row by
/// row, slowly.
///
/// Determinism: every result repeats bit for bit, and does not depend on what else runs.
/// Memory: none beyond the arguments.
///
/// \param workspace at least `attention_forward_workspace_bytes` bytes; null where that is 0.
/// \return as `validate`; unsupported for float64 and for storage types and head dims that were not
///         compiled; workspace_too_small; cuda_error. A failed call has launched nothing, except
///         where the CUDA runtime refuses the second of two launches.
status attention_forward(const attention_forward_arguments<void>& arguments, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept;

/// The typed forms.
template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
std::size_t attention_forward_workspace_bytes(
    const attention_forward_arguments<T, Table>& arguments) noexcept;
template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
status attention_forward(const attention_forward_arguments<T, Table>& arguments, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept;

/// Bytes of device memory that `attention_backward` wants for these arguments: at most 4·H + 16 a
/// token, and up to 64 MB where gradients of tables are asked for. 0 for arguments that the call
/// rejects. Looks at no memory that the views point to.
[[nodiscard]] std::size_t attention_backward_workspace_bytes(
    const attention_backward_arguments<void>& arguments) noexcept;

/// Attention backward on the GPU; the formulas follow from those at the top of this file.
///
/// As for `attention_forward`: all pointers are device memory, the host never reads counts, the call
/// neither allocates nor synchronises, is capturable, keeps no state, and serves the current device.
/// It makes up to three launches for all groups of the same position encoding, and one more for all
/// tables.
///
/// Rows of half and bfloat16 that start on 16 bytes are the fast case, with bias in windows of up to
/// 8 x 8: short windows and those with bias then take one pass over their pairs instead of two.
///
/// P is recomputed from q, k and LSE; nothing of the size of the pairs is stored. dS is rounded to
/// the storage type relative to the largest finite |dO| around, so that gradients of 1e-7 do not
/// vanish in half. Tables whose gradients are wanted are summed up by a number of blocks that does
/// not depend on the device.
///
/// Determinism: every gradient repeats bit for bit, whatever else runs; there are no atomics.
/// NaN and infinity: those of one window reach no gradient of another window's rows; the gradients
/// of tables, which sum over all windows, may become NaN as a whole.
/// Memory: the workspace, whose content matters neither before nor after.
///
/// \param workspace at least `attention_backward_workspace_bytes` bytes, aligned to 16.
/// \return as `validate`; unsupported for float64 and for storage types and head dims that were not
///         compiled; workspace_too_small; cuda_error. A failed call has launched nothing, except
///         where the CUDA runtime refuses one of several launches.
status attention_backward(const attention_backward_arguments<void>& arguments, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept;

/// The typed forms.
template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
std::size_t attention_backward_workspace_bytes(
    const attention_backward_arguments<T, Table>& arguments) noexcept;
template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
status attention_backward(const attention_backward_arguments<T, Table>& arguments, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept;
#endif

}  // namespace winnow

#include "winnow/detail/attention/validate.hpp"
#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include "winnow/detail/attention/erase.hpp"
#endif
