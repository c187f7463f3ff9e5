// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the guide's snippets for the GPU are tested with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "check.hpp"
#include "winnow/storage.hpp"

inline void check_cuda(cudaError_t error) {
  check(error == cudaSuccess, cudaGetErrorString(error));
}

/// Ends the program as skipped where there is no GPU; 77 is what CMakeLists.txt says.
inline void skip_without_gpu() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) std::exit(77);
}

/// Device memory for the process's lifetime.
inline void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes > 0 ? bytes : 1));
  return memory;
}

template <class T>
T* to_device(const std::vector<T>& values) {
  auto* memory = static_cast<T*>(allocate(values.size() * sizeof(T)));
  check_cuda(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return memory;
}

/// Waits for the device first.
template <class T>
std::vector<T> to_host(const T* memory, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  check_cuda(cudaDeviceSynchronize());
  check_cuda(cudaMemcpy(values.data(), memory, values.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

inline std::vector<winnow::half> halves(const std::vector<float>& values) {
  std::vector<winnow::half> result;
  for (const float value : values) result.push_back(winnow::from_float<winnow::half>(value));
  return result;
}

inline std::vector<float> floats(const std::vector<winnow::half>& values) {
  std::vector<float> result;
  for (const winnow::half& value : values) result.push_back(winnow::to_float(value));
  return result;
}
