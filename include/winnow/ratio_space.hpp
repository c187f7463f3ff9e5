// SPDX-License-Identifier: Apache-2.0
/// \file
/// The prune ratios that a network's layers may have together. Host only.
///
/// A call that runs out of memory returns out_of_memory.
#pragma once

#include <cstdint>
#include <vector>

#include "winnow/status.hpp"

namespace winnow {

/// A configuration of a network: one level per block pair, stage after stage. A level is the place
/// of the pair's prune ratio in the list of its `ratio_space`.
using ratio_levels = std::vector<std::uint8_t>;

/// The configurations that are searched.
///
/// A network has stages of blocks. Two consecutive blocks, one with and one without shifted windows,
/// are a pair and share one ratio. Ratios come from a list and do not decrease inside a stage.
class ratio_space {
 public:
  /// The most block pairs and the most ratios of a space.
  static constexpr int max_pairs = 1024;
  static constexpr int max_ratios = 256;

  /// A space without stages, which no search accepts.
  ratio_space() = default;

  /// \param blocks blocks of each stage, for instance 2, 2, 6, 2; each even and >= 2.
  /// \param ratios the list, strictly increasing, each in [0, 1).
  static status make(const std::vector<int>& blocks, const std::vector<double>& ratios,
                     ratio_space& result) noexcept;
  /// With the ratios 0, 0.1, … 0.8.
  static status make(const std::vector<int>& blocks, ratio_space& result) noexcept;

  [[nodiscard]] const std::vector<double>& ratios() const noexcept { return ratios_; }
  [[nodiscard]] int levels() const noexcept { return static_cast<int>(ratios_.size()); }
  /// Block pairs of each stage, and of all.
  [[nodiscard]] const std::vector<int>& stage_pairs() const noexcept { return stage_pairs_; }
  [[nodiscard]] int pairs() const noexcept { return pairs_; }
  /// How many configurations there are; 2⁶⁴ - 1 stands for that many and more.
  [[nodiscard]] std::uint64_t count() const noexcept;

  /// Fails with the first pair that is wrong unless `levels` is a configuration of this space.
  status check(const ratio_levels& levels) const noexcept;
  /// Restores the order inside each stage. \param levels one per pair.
  void sort_stages(ratio_levels& levels) const noexcept;
  /// Goes to the next configuration in lexicographic order. All configurations are reached from
  /// the one of zeros. \return false after the last, which becomes the first.
  [[nodiscard]] bool next(ratio_levels& levels) const noexcept;

  /// The ratio of each block, as a network takes them.
  status block_ratios(const ratio_levels& levels, std::vector<double>& result) const noexcept;
  /// The inverse; a ratio must be one of the list.
  status find(const std::vector<double>& block_ratios, ratio_levels& result) const noexcept;

 private:
  std::vector<int> stage_pairs_;
  std::vector<double> ratios_;
  int pairs_ = 0;
};

}  // namespace winnow

#include "winnow/detail/search/space.hpp"
