// SPDX-License-Identifier: Apache-2.0
/// \file
/// Sums for the fidelity of feature maps: a fixed number of blocks strides over both arrays, each writes
/// one pair of sums, so that results repeat. Bound by traffic; runs once per scored batch.
#include "swin/fidelity.hpp"

namespace winnow::swin {
namespace {

constexpr int threads = 256;

__device__ float block_sum(float value) {
  __shared__ float warps[threads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0.0f;
  for (const float each : warps) value += each;
  return value;
}

template <class T>
__global__ void __launch_bounds__(threads)
    difference_kernel(const T* __restrict__ a, const T* __restrict__ b, std::int64_t count,
                      float* partial) {
  float difference = 0.0f;
  float norm = 0.0f;
  for (std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x; i < count;
       i += std::int64_t{difference_partials} * threads) {
    const float expected = static_cast<float>(b[i]);
    const float delta = static_cast<float>(a[i]) - expected;
    difference += delta * delta;
    norm += expected * expected;
  }
  difference = block_sum(difference);
  norm = block_sum(norm);
  if (threadIdx.x > 0) return;
  partial[2 * blockIdx.x] = difference;
  partial[2 * blockIdx.x + 1] = norm;
}

}  // namespace

cudaError_t launch_difference(dtype type, const void* a, const void* b, std::int64_t count,
                              float* partial, cudaStream_t stream) {
  const auto launch = [&](auto element) {
    using T = decltype(element);
    difference_kernel<<<difference_partials, threads, 0, stream>>>(
        static_cast<const T*>(a), static_cast<const T*>(b), count, partial);
    return cudaGetLastError();
  };
  if (type == dtype::float16) return launch(half());
  if (type == dtype::bfloat16) return launch(bfloat16());
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
