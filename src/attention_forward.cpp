// SPDX-License-Identifier: Apache-2.0
// The forward call of winnow::winnow: its dispatch over the instances that this build compiled.
#include "winnow/detail/attention/forward.hpp"
#include "winnow_instances.hpp"

namespace winnow {
namespace {

constexpr detail::forward_instance instances[] = {
#define WINNOW_INSTANCE(T, D) detail::instance_of<T, D, WINNOW_HOPPER>(),
    WINNOW_ATTENTION_INSTANCES(WINNOW_INSTANCE)
#undef WINNOW_INSTANCE
};

}  // namespace

std::size_t attention_forward_workspace_bytes(const attention_forward_arguments<void>&) noexcept {
  return 0;
}

status attention_forward(const attention_forward_arguments<void>& arguments, void*, std::size_t,
                         cudaStream_t stream) noexcept {
  return detail::attention_forward(instances, arguments, stream);
}

}  // namespace winnow
