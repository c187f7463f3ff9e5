// SPDX-License-Identifier: Apache-2.0
/// \file
/// The typed forms of the device calls: they differ from the type-erased ones in nothing but the
/// argument.
/// Needs the CUDA toolkit.
#pragma once

#include "winnow/detail/attention/erase.hpp"

namespace winnow {

template <class T, class Table, class>
std::size_t attention_forward_workspace_bytes(
    const attention_forward_arguments<T, Table>& arguments) noexcept {
  return attention_forward_workspace_bytes(detail::erased_forward(arguments).arguments);
}

template <class T, class Table, class>
status attention_forward(const attention_forward_arguments<T, Table>& arguments, void* workspace,
                         std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  return attention_forward(detail::erased_forward(arguments).arguments, workspace, workspace_bytes,
                           stream);
}

template <class T, class Table, class>
std::size_t attention_backward_workspace_bytes(
    const attention_backward_arguments<T, Table>& arguments) noexcept {
  return attention_backward_workspace_bytes(detail::erased_backward(arguments).arguments);
}

template <class T, class Table, class>
status attention_backward(const attention_backward_arguments<T, Table>& arguments, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  return attention_backward(detail::erased_backward(arguments).arguments, workspace,
                            workspace_bytes, stream);
}

}  // namespace winnow
