// SPDX-License-Identifier: Apache-2.0
#include "own_kernels.hpp"

// ---
#include "winnow/attention_kernels.cuh"

using kernels = winnow::attention_kernels<winnow::attention_kernel<winnow::half, 24>,
                                          winnow::attention_kernel<winnow::half, 48>>;

winnow::status forward(const winnow::attention_forward_arguments<winnow::half>& arguments,
                       cudaStream_t stream) {
  return kernels::forward(arguments, nullptr, 0, stream);
}
// ---
