// SPDX-License-Identifier: Apache-2.0
/// \file
/// Launches a kernel whose blocks stay for all the work there is.
#pragma once

#include <algorithm>
#include <cstddef>

#include "winnow/detail/util/device.cuh"

namespace winnow::swin {

/// One wave of blocks, or fewer.
/// \param wanted blocks there is work for. \param resident blocks of a multiprocessor.
template <class... Parameters, class... Arguments>
cudaError_t launch_wave(void (*kernel)(Parameters...), int wanted, int resident, int threads,
                        std::size_t shared_bytes, cudaStream_t stream,
                        const Arguments&... arguments) {
  int device = 0;
  int processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = detail::allow_shared_memory(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(wanted, processors * resident);
  return detail::launch_kernel(kernel, static_cast<unsigned>(blocks), threads, shared_bytes, stream,
                               arguments...);
}

}  // namespace winnow::swin
