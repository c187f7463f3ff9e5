// SPDX-License-Identifier: Apache-2.0
/// \file
/// How close pruned feature maps come to dense ones.
#pragma once

#include <vector>

#include "swin/backbone.hpp"
#include "swin/device_images.hpp"

namespace winnow::swin {

/// Sums over `count` elements: |a - b|² and |b|². `partial` holds `difference_partials` pairs; the sums
/// are taken in a fixed order.
inline constexpr int difference_partials = 512;
cudaError_t launch_difference(dtype type, const void* a, const void* b, std::int64_t count,
                              float* partial, cudaStream_t stream);

/// The fidelity of pruned forwards on a set of images.
class fidelity {
 public:
  /// Runs the dense network on all images and keeps its outputs in device memory.
  fidelity(backbone& network, const model& shape, const image_set& images);

  /// 1 - |pruned - dense| / |dense|, the mean over batches and stages; 1 means equal. Leaves the network
  /// set to these ratios.
  [[nodiscard]] double of(const prune_ratios& ratios);

 private:
  backbone& network_;
  const model& shape_;
  std::vector<support::device_memory> batches_;
  std::vector<std::vector<support::device_memory>> dense_;  // by batch and stage
  support::device_memory partial_;
};

}  // namespace winnow::swin
