// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a command works with: the network with its weights on the GPU, images, and their names.
#pragma once

#include <memory>
#include <string>

#include "swin/backbone.hpp"
#include "swin/device_images.hpp"
#include "swin/options.hpp"

namespace winnow::swin {

class session {
 public:
  /// \throw support::input_error for files and sizes that cannot be used, and where there is no GPU.
  explicit session(const common_options& asked);

  [[nodiscard]] const model& network_model() const { return model_; }
  [[nodiscard]] backbone& network() { return *network_; }
  [[nodiscard]] const image_set& images() const { return images_; }
  [[nodiscard]] const image_size& size() const { return size_; }
  /// The batch that is measured.
  [[nodiscard]] const void* first_batch() const { return first_batch_.data(); }
  /// "NVIDIA H200, ..., half, 4 x 3 x 672 x 672, random weights, synthetic images"
  [[nodiscard]] const std::string& description() const { return description_; }

 private:
  model model_;
  image_size size_;
  image_set images_;
  support::device_memory first_batch_;
  std::unique_ptr<device_weights> weights_;
  std::unique_ptr<matrix_products> products_;
  std::unique_ptr<backbone> network_;
  std::string description_;
};

}  // namespace winnow::swin
