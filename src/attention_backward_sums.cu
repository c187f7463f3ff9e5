// SPDX-License-Identifier: Apache-2.0
// The last step of table gradients, compiled once for all instances.
#include "winnow/detail/attention/backward_sums.cuh"

namespace winnow::detail {

template cudaError_t launch_parts_sums<summing_warps>(const parts_sums&, cudaStream_t) noexcept;

}  // namespace winnow::detail
