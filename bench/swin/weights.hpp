// SPDX-License-Identifier: Apache-2.0
/// \file
/// The network's weights in host memory, under the names of mmdet's checkpoints.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "swin/model.hpp"

namespace winnow::swin {

/// A name and a shape, for instance "stages.0.blocks.1.attn.w_msa.qkv.weight" and {288, 96}.
struct weight_spec {
  std::string name;
  std::vector<std::int64_t> shape;
};

/// All arrays of a network, in the order of the forward pass. Matrices are [outputs, inputs]; those of
/// `downsample` take the four tokens of a place channel by channel, as torch.nn.Unfold puts them.
std::vector<weight_spec> weight_specs(const model& network);

/// The prefix of a block's names: "stages.S.blocks.B.".
std::string block_prefix(int stage, int block);

class weights {
 public:
  /// \throw std::out_of_range for a name that is not the network's.
  [[nodiscard]] const std::vector<float>& at(const std::string& name) const {
    return arrays_.at(name);
  }
  void set(const std::string& name, std::vector<float> values) {
    arrays_[name] = std::move(values);
  }

 private:
  std::map<std::string, std::vector<float>> arrays_;
};

/// Reads NAME.npy of every array from a folder; "backbone.NAME.npy" will do, too. Other files do not
/// matter. Any floating-point type is taken.
/// \throw support::input_error naming the file that is missing, misshapen or not finite.
weights load_weights(const std::filesystem::path& folder, const model& network);

/// Uniform weights that keep the variance of what passes through them, small biases, norms near 1, and
/// bias tables of standard deviation 0.5. The same for the same seed on every machine.
weights random_weights(const model& network, std::uint64_t seed);

}  // namespace winnow::swin
