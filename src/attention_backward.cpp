// SPDX-License-Identifier: Apache-2.0
// The backward call of winnow::winnow: its dispatch over the instances that this build compiled.
#include "winnow/detail/attention/backward.hpp"
#include "winnow_instances.hpp"

namespace winnow {
namespace {

constexpr detail::backward_instance instances[] = {
#define WINNOW_INSTANCE(T, D) detail::backward_instance_of<T, D, WINNOW_HOPPER>(),
    WINNOW_ATTENTION_INSTANCES(WINNOW_INSTANCE)
#undef WINNOW_INSTANCE
};

}  // namespace

std::size_t attention_backward_workspace_bytes(
    const attention_backward_arguments<void>& arguments) noexcept {
  return detail::attention_backward_workspace_bytes(instances, arguments);
}

status attention_backward(const attention_backward_arguments<void>& arguments, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  return detail::attention_backward(instances, arguments, workspace, workspace_bytes, stream);
}

}  // namespace winnow
