// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the host asks about the current device.
/// Needs the CUDA toolkit.
#pragma once

#include <cuda_runtime_api.h>

namespace winnow::detail {

/// An attribute of the current device; -1 if it cannot be had.
inline int device_attribute(cudaDeviceAttr attribute) noexcept {
  int device = 0;
  int value = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return known ? value : -1;
}

/// Has the current device the instructions of the target sm_90a?
inline bool is_hopper() noexcept {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

}  // namespace winnow::detail
