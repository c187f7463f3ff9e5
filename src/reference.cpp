// SPDX-License-Identifier: Apache-2.0
// The host twins for both accumulators, compiled once for everyone who links winnow::winnow.
#include "winnow/reference.hpp"

namespace winnow::reference {

template status attention_forward<float>(const attention_forward_arguments<void>&, int) noexcept;
template status attention_forward<double>(const attention_forward_arguments<void>&, int) noexcept;
template status attention_backward<float>(const attention_backward_arguments<void>&, int) noexcept;
template status attention_backward<double>(const attention_backward_arguments<void>&, int) noexcept;
template status window_importance<float>(const grid_window&, const tensor_view<const void, 3>&,
                                         const tensor_view<float, 2>&, int) noexcept;
template status window_importance<double>(const grid_window&, const tensor_view<const void, 3>&,
                                          const tensor_view<float, 2>&, int) noexcept;

}  // namespace winnow::reference
