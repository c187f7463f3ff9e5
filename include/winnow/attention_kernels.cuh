// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention on the GPU for storage types and head dims of your own: compiled by your own nvcc from
/// `winnow::headers`, without winnow's library.
///
///     using kernels = winnow::attention_kernels<winnow::attention_kernel<winnow::half, 24>,
///                                               winnow::attention_kernel<winnow::half, 48>>;
///     WINNOW_TRY(kernels::forward(arguments, nullptr, 0, stream));
///
/// The calls are those of `attention.hpp` by other names: what is said there of shapes, memory,
/// streams, errors and determinism holds here. They may live beside winnow's library in one program.
///
/// Partitions may come from anywhere: those of winnow::winnow's device builders serve every head dim,
/// and one that a host builder made may be copied byte by byte.
///
/// Cost: a pair is compiled for all three position encodings, which takes nvcc some ten seconds for
/// each direction and architecture. What no call names is not compiled; with `forward` in one source
/// file and `backward` in another they build side by side.
#pragma once

#if !defined(WINNOW_WITH_CUDA) || !WINNOW_WITH_CUDA
#error "winnow was configured without CUDA"
#endif

#include <cstddef>
#include <type_traits>

#include "winnow/attention.hpp"
#include "winnow/detail/attention/backward.hpp"
#include "winnow/detail/attention/backward_launch.cuh"
#include "winnow/detail/attention/backward_sums.cuh"
#include "winnow/detail/attention/forward.hpp"
#include "winnow/detail/attention/forward_launch.cuh"
#include "winnow/storage.hpp"

namespace winnow {

/// What to compile kernels for.
/// \tparam T storage type: float, half or bfloat16.
/// \tparam HeadDim a multiple of 8 up to `max_head_dim`.
template <class T, int HeadDim>
struct attention_kernel {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat16>,
                "the storage types are float, half and bfloat16");
  static_assert(HeadDim > 0 && HeadDim % 8 == 0 && HeadDim <= max_head_dim,
                "a head dim is a multiple of 8 up to max_head_dim");

  using storage_type = T;
  /// Tiles are 16, 32, 64 or 128 wide. Calls of any head dim up to this one run on them; memory
  /// traffic is that of the call's own head dim, arithmetic that of the tile.
  static constexpr int tile_width = HeadDim <= 16   ? 16
                                    : HeadDim <= 32 ? 32
                                    : HeadDim <= 64 ? 64
                                                    : 128;
};

/// Attention over the kernels named. A call takes the narrowest that fits it.
/// \tparam Kernels each an `attention_kernel`, at least one.
template <class... Kernels>
struct attention_kernels {
  static_assert(sizeof...(Kernels) > 0, "name at least one attention_kernel");

  /// As `attention_forward_workspace_bytes`.
  [[nodiscard]] static std::size_t forward_workspace_bytes(
      const attention_forward_arguments<void>&) noexcept {
    return 0;
  }
  /// As `attention_forward`, with `unsupported` for what none of the kernels fits.
  static status forward(const attention_forward_arguments<void>& arguments, void* /*workspace*/,
                        std::size_t /*workspace_bytes*/, cudaStream_t stream) noexcept {
    return detail::attention_forward(forward_instances, arguments, stream);
  }

  /// As `attention_backward_workspace_bytes`; 0 also for what none of the kernels fits.
  [[nodiscard]] static std::size_t backward_workspace_bytes(
      const attention_backward_arguments<void>& arguments) noexcept {
    return detail::attention_backward_workspace_bytes(backward_instances, arguments);
  }
  /// As `attention_backward`, with `unsupported` for what none of the kernels fits.
  static status backward(const attention_backward_arguments<void>& arguments, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept {
    return detail::attention_backward(backward_instances, arguments, workspace, workspace_bytes,
                                      stream);
  }

  /// The typed forms.
  template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
  [[nodiscard]] static std::size_t forward_workspace_bytes(
      const attention_forward_arguments<T, Table>& arguments) noexcept {
    return forward_workspace_bytes(detail::erased_forward(arguments).arguments);
  }
  template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
  static status forward(const attention_forward_arguments<T, Table>& arguments, void* workspace,
                        std::size_t workspace_bytes, cudaStream_t stream) noexcept {
    return forward(detail::erased_forward(arguments).arguments, workspace, workspace_bytes, stream);
  }
  template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
  [[nodiscard]] static std::size_t backward_workspace_bytes(
      const attention_backward_arguments<T, Table>& arguments) noexcept {
    return backward_workspace_bytes(detail::erased_backward(arguments).arguments);
  }
  template <class T, class Table, class = std::enable_if_t<!std::is_void_v<T>>>
  static status backward(const attention_backward_arguments<T, Table>& arguments, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept {
    return backward(detail::erased_backward(arguments).arguments, workspace, workspace_bytes,
                    stream);
  }

 private:
  // Each is instantiated, with its kernels, only where a call above is.
  static constexpr detail::forward_instance forward_instances[sizeof...(Kernels)] = {
      detail::instance_of<typename Kernels::storage_type, Kernels::tile_width>()...};
  static constexpr detail::backward_instance backward_instances[sizeof...(Kernels)] = {
      detail::backward_instance_of<typename Kernels::storage_type, Kernels::tile_width>()...};
};

}  // namespace winnow
