// SPDX-License-Identifier: Apache-2.0
/// \file
/// Other work on the GPU, beside which results must stay the same.
#pragma once

#include "support/device.hpp"

namespace winnow::test {

static __global__ void keep_busy(float* sink, int turns) {
  float x = static_cast<float>(threadIdx.x);
  for (int i = 0; i < turns; ++i) x = x * 1.0000001f + 1e-9f;
  if (x == 12345.0f) *sink = x;
}

/// Fills half of the multiprocessors from a stream of its own.
class busy_gpu {
 public:
  busy_gpu() {
    check_cuda(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, 0),
               "cudaDeviceGetAttribute");
  }
  /// Returns at once; the work lasts longer than the calls beside it.
  void submit() { keep_busy<<<processors_ / 2, 1024, 0, stream_>>>(sink_.data(), 200000); }

 private:
  device_stream stream_;
  device_array<float> sink_{1};
  int processors_ = 0;
};

}  // namespace winnow::test
