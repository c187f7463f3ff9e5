// SPDX-License-Identifier: Apache-2.0
/// \file
/// Prune ratios for the iterations of a training. Host only.
///
/// Source: SparseViT, sparsity-aware adaptation.
#pragma once

#include <cstdint>

#include "winnow/ratio_space.hpp"
#include "winnow/status.hpp"

namespace winnow {

/// Draws the ratios of a training iteration, so that one network learns to run at all of them
/// (SparseViT's sparsity-aware adaptation).
///
/// Each block pair draws independently and uniformly from the list; then each stage is sorted. A
/// stage's pairs are thus the order statistics of uniform draws, and a configuration is as likely as
/// there are ways to draw it: in a stage of three pairs 0.2 0.5 0.5 comes three times as often as
/// 0.5 0.5 0.5. Stages are independent.
///
/// Random numbers come from winnow's own generator: workers that share a seed draw the same sequence,
/// whatever their compilers and standard libraries.
class ratio_sampler {
 public:
  explicit ratio_sampler(std::uint64_t seed) noexcept : state_(seed) {}

  /// \return invalid_argument for a space without stages.
  status sample(const ratio_space& space, ratio_levels& result) noexcept;
  /// A sampler seeded with this goes on from here; for checkpoints.
  [[nodiscard]] std::uint64_t state() const noexcept { return state_; }

 private:
  std::uint64_t state_;
};

}  // namespace winnow

#include "winnow/detail/search/sampler.hpp"
