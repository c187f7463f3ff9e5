// SPDX-License-Identifier: Apache-2.0
#include "own_kernels.hpp"
#include "winnow/attention_kernels.cuh"

using kernels = winnow::attention_kernels<winnow::attention_kernel<winnow::half, 24>,
                                          winnow::attention_kernel<winnow::half, 48>>;

std::size_t backward_workspace_bytes(
    const winnow::attention_backward_arguments<winnow::half>& arguments) {
  return kernels::backward_workspace_bytes(arguments);
}

winnow::status backward(const winnow::attention_backward_arguments<winnow::half>& arguments,
                        void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  return kernels::backward(arguments, workspace, workspace_bytes, stream);
}
