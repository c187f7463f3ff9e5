// SPDX-License-Identifier: Apache-2.0
/// \file
/// The network's weights in device memory, in the storage type.
#pragma once

#include <map>
#include <string>

#include "support/device_memory.hpp"
#include "swin/kernels.hpp"
#include "swin/weights.hpp"

namespace winnow::swin {

class device_weights {
 public:
  /// Patch merging's arrays are put into the order in which the kernels hold the four tokens: token by
  /// token instead of channel by channel. For the kernels of 96 channels that keep matrices in shared memory
  /// there are "patch_embed.packed", "stages.0.blocks.B.qkv" and "stages.0.blocks.B.mlp" besides.
  device_weights(const model& network, const weights& arrays, dtype type);

  [[nodiscard]] dtype type() const { return type_; }
  [[nodiscard]] const void* at(const std::string& name) const {
    return static_cast<const std::byte*>(memory_.data()) + offsets_.at(name);
  }
  [[nodiscard]] norm_weights norm(const std::string& name) const {
    return {at(name + ".weight"), at(name + ".bias")};
  }

 private:
  dtype type_;
  std::map<std::string, std::size_t> offsets_;
  support::device_memory memory_;
};

}  // namespace winnow::swin
