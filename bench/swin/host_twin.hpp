// SPDX-License-Identifier: Apache-2.0
/// \file
/// The network on the host in FP32: the oracle of the device's. Naive, with the library's host twins for
/// windows, selection and attention, on the tokens of the padded maps and with the exact GELU.
#pragma once

#include <cstdint>
#include <vector>

#include "swin/model.hpp"
#include "swin/prune.hpp"
#include "swin/weights.hpp"

namespace winnow::swin {

/// The ranked windows of a stage: for both shifts the most important ones of each image, as many as the
/// first pruned block of that shift keeps; [batch, longest].
struct stage_ranking {
  std::vector<std::int32_t> ids[2];
};

struct host_result {
  /// The normed output of each stage, [batch, height * width, channels].
  std::vector<std::vector<float>> features;
  /// The importance of every window by stage and shift, [batch, windows]; empty where none is ranked.
  std::vector<std::vector<float>> importance[2];
  std::vector<stage_ranking> rankings;
};

/// \param images [batch, 3, height, width], normalised.
/// \param given windows to keep instead of the ranked ones; null: rank.
/// \param threads 0: one per hardware thread.
/// \throw support::input_error for a bad size or bad ratios.
host_result forward_on_host(const model& network, const weights& arrays, const image_size& size,
                            const std::vector<float>& images, const prune_ratios& ratios,
                            const std::vector<stage_ranking>* given = nullptr, int threads = 0);

}  // namespace winnow::swin
