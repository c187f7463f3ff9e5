// SPDX-License-Identifier: Apache-2.0
/// \file
/// The network on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <vector>

#include "support/device_memory.hpp"
#include "swin/device_weights.hpp"
#include "swin/gemm.hpp"
#include "swin/host_twin.hpp"
#include "swin/prune.hpp"
#include "winnow/attention.hpp"

namespace winnow::swin {

/// Swin-T for one size of images. Owns its feature maps and buffers, sized for the dense forward, and
/// serves one prune configuration at a time. Refers to the network and the weights.
///
/// `forward` only submits work, so that it can be captured in a CUDA graph; the graph holds as long as
/// the configuration does.
class backbone {
 public:
  /// \throw support::input_error for a bad size; std::runtime_error if the GPU cannot be used.
  backbone(const model& network, const device_weights& arrays, matrix_products& products,
           const image_size& size);

  /// Dense at first. \throw support::input_error for bad ratios.
  void set_prune(const prune_ratios& ratios);

  /// What is submitted: everything, or without ranking windows, for which earlier rankings serve.
  enum class mode { complete, given_rankings };
  /// Called after each stage with its number.
  using stage_hook = std::function<void(int, cudaStream_t)>;
  /// \param images [batch, 3, height, width] of the storage type, normalised; aligned to 16 bytes.
  void forward(const void* images, cudaStream_t stream, mode what = mode::complete,
               const stage_hook& after = {});

  [[nodiscard]] const image_size& size() const { return size_; }
  [[nodiscard]] std::size_t stage_count() const { return stages_.size(); }
  [[nodiscard]] dtype type() const { return arrays_.type(); }
  /// The normed output of a stage, [batch, height * width, channels], device memory.
  [[nodiscard]] const void* output(int stage) const { return at(stage).output.data(); }
  [[nodiscard]] std::int64_t output_elements(int stage) const {
    return at(stage).map.tokens() * network_.channels_of(stage);
  }
  /// Copies of what was ranked; waits for the device.
  [[nodiscard]] std::vector<stage_ranking> rankings() const;
  [[nodiscard]] std::vector<float> importance(int stage, int shifted) const;
  /// Device memory of this object.
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  struct stage_state {
    grid_window map;
    int windows = 0;  ///< of an image
    stage_pruning pruning;
    support::device_memory stream, output;
    support::device_memory dense_positions[2];
    support::device_memory counts;  ///< partition_counts of each block
    support::device_memory ids[2], ranks[2], importance[2];
  };
  [[nodiscard]] const stage_state& at(int stage) const {
    return stages_[static_cast<std::size_t>(stage)];
  }
  support::device_memory allocate(std::size_t bytes) {
    bytes_ += bytes;
    return support::device_memory(bytes);
  }
  void make_stage(int stage);
  void make_shared_buffers();
  [[nodiscard]] block_rows rows_of(int stage, int block) const;
  template <class Visit>
  void visit_products(Visit&& visit) const;
  void embed(float* magnitude, cudaStream_t stream);
  void run_stage(int stage, mode what, cudaStream_t stream);
  void prepare_fused(int stage, int block, bool ranks, cudaStream_t stream);
  void prepare_rows(int stage, int block, int previous, bool ranks, cudaStream_t stream);
  [[nodiscard]] token_update token_update_of(int stage, int previous) const;
  void run_block(int stage, int block, cudaStream_t stream);
  /// Whether a stage's blocks are one kernel before attention and one after it, which leave no change to
  /// be added.
  [[nodiscard]] bool fuses(int stage) const {
    return network_.channels_of(stage) == fused_channels;
  }
  void start_fused(int stage, int block, cudaStream_t stream);
  void finish_fused(int stage, int block, cudaStream_t stream);
  void attend(int stage, int block, cudaStream_t stream);
  void end_stage(int stage, int previous, cudaStream_t stream);
  [[nodiscard]] ranking ranking_of(int stage) const;
  /// Where a block's positions for attention go; null: all windows, whose positions are known beforehand.
  [[nodiscard]] std::uint32_t* positions_of(const block_rows& rows) const;
  [[nodiscard]] product qkv_product(int stage, int block) const;
  [[nodiscard]] product projection_product(int stage, int block) const;
  [[nodiscard]] product expansion_product(int stage, int block) const;
  [[nodiscard]] product contraction_product(int stage, int block) const;
  [[nodiscard]] product merge_product(int stage) const;
  /// Room for qkv beside what attention makes of it, later for the hidden layer.
  [[nodiscard]] void* attended(int stage, int block) const;

  const model& network_;
  const device_weights& arrays_;
  matrix_products& products_;
  image_size size_;
  const void* images_ = nullptr;  ///< of the forward that is being submitted
  std::size_t bytes_ = 0;
  std::vector<stage_state> stages_;
  // Compact rows of the block that runs.
  support::device_memory normed_, wide_, change_;
  support::device_memory magnitude_;
  // The partition of compact rows: window after window, in place.
  support::device_memory order_, offsets_, bounds_, positions_;
};

}  // namespace winnow::swin
