// SPDX-License-Identifier: Apache-2.0
/// \file
/// A CUDA runtime that launches nothing and looks at everything that it is asked to launch. It takes
/// the place of the real one, function by function, in the one program whose source includes this.
///
/// Device calls can thus be fuzzed with any arguments, on any machine: their memory is addresses where
/// nothing is, so a host that looked there would crash.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>

#include "memory.hpp"

namespace winnow::fuzz {

/// Of a block on compute capability 9.0.
inline constexpr int most_shared_bytes = 227 * 1024;

/// What a call under test asked of the runtime.
struct runtime_log {
  int submitted = 0;      ///< launches, clears and copies
  int refuse_after = -1;  ///< the submission after so many is refused; negative: none is
  bool refused = false;
  std::map<const void*, int> shared_bytes;  ///< what kernels were allowed beyond 48 KiB

  cudaError_t submit() {
    require(!refused, "nothing is launched after a refusal");
    refused = submitted == refuse_after;
    if (refused) return cudaErrorUnknown;
    ++submitted;
    return cudaSuccess;
  }

  /// Would a GPU of compute capability 9.0 take this launch?
  cudaError_t launch(const void* kernel, dim3 blocks, dim3 threads, std::size_t bytes) {
    require(kernel != nullptr, "a launch has a kernel");
    require(blocks.x >= 1 && blocks.x <= 0x7fffffffu && blocks.y >= 1 && blocks.y <= 65535 &&
                blocks.z >= 1 && blocks.z <= 65535,
            "a grid is legal");
    require(threads.x >= 1 && threads.x * threads.y * threads.z <= 1024, "a block is legal");
    const auto allowed = shared_bytes.find(kernel);
    require(bytes <= 48 * 1024 || (allowed != shared_bytes.end() &&
                                   bytes <= static_cast<std::size_t>(allowed->second)),
            "shared memory is allowed before it is used");
    return submit();
  }
};

inline runtime_log& runtime() {
  static runtime_log log;
  return log;
}

/// Makes a device call on arguments that are addresses where nothing is.
template <class Call>
status device_call(byte_source& source, Call&& make) {
  runtime_log& log = runtime();
  log = {};
  if (source.rarely(8)) log.refuse_after = source.pick(4);
  status result = make();
  if (result.ok()) {
    require(!log.refused, "a refused launch is a failure");
  } else {
    require(result.message()[0] != '\0', "a failure has a message");
    require(result.code() == status_code::cuda_error ? log.refused : log.submitted == 0,
            "a failed call has launched nothing, unless a launch was refused");
  }
  return result;
}

/// A workspace of mostly the size wanted, and what a call may make of it.
class device_workspace {
 public:
  device_workspace(byte_source& source, memory& arguments, std::size_t wanted)
      : wanted_(wanted),
        bytes_(static_cast<std::size_t>(source.integer(static_cast<std::int64_t>(wanted)))),
        data_(source.rarely(32) ? nullptr : arguments.array<std::max_align_t>(1, [] {
          return std::max_align_t{};
        })) {
    if (data_ != nullptr && source.rarely(32)) data_ = static_cast<std::byte*>(data_) + 8;
  }
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

  void check(const status& result) const {
    require(result.code() != status_code::workspace_too_small || bytes_ < wanted_,
            "a workspace of the size asked for is large enough");
    require(!result.ok() || runtime().submitted == 0 || bytes_ >= wanted_,
            "a workspace that is too small is refused");
  }

 private:
  std::size_t wanted_;
  std::size_t bytes_;
  void* data_;
};

}  // namespace winnow::fuzz

extern "C" {

cudaError_t cudaLaunchKernel(const void* kernel, dim3 blocks, dim3 threads, void** arguments,
                             std::size_t bytes, cudaStream_t) {
  winnow::fuzz::require(arguments != nullptr, "a launch has arguments");
  return winnow::fuzz::runtime().launch(kernel, blocks, threads, bytes);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                void** arguments) {
  winnow::fuzz::require(arguments != nullptr, "a launch has arguments");
  return winnow::fuzz::runtime().launch(kernel, config->gridDim, config->blockDim,
                                        config->dynamicSmemBytes);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
    return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
  winnow::fuzz::require(attribute == cudaFuncAttributeMaxDynamicSharedMemorySize,
                        "only shared memory is asked for");
  if (value < 0 || value > winnow::fuzz::most_shared_bytes) return cudaErrorInvalidValue;
  winnow::fuzz::runtime().shared_bytes[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* target, int, std::size_t bytes, cudaStream_t) {
  winnow::fuzz::require(target != nullptr && bytes > 0, "a clear has something to clear");
  return winnow::fuzz::runtime().submit();
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  winnow::fuzz::require(target != nullptr && source != nullptr && bytes > 0,
                        "a copy has something to copy");
  return winnow::fuzz::runtime().submit();
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = winnow::fuzz::most_shared_bytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = winnow::fuzz::most_shared_bytes + 1024;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    default:
      winnow::fuzz::require(false, "the attribute is one that this runtime knows");
      return cudaErrorInvalidValue;
  }
}

}  // extern "C"
