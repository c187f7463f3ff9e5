// SPDX-License-Identifier: Apache-2.0
/// \file
/// The latency of a configuration of prune ratios as a sum of measured parts. Host only.
///
/// A call that runs out of memory returns out_of_memory.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "winnow/ratio_space.hpp"
#include "winnow/status.hpp"

namespace winnow {

/// Latency as a sum: a constant and one entry per block pair and ratio. A configuration then costs a
/// lookup instead of a run.
///
/// Two ways to measure it: the time of each pair at each ratio, with the rest of the network as the
/// constant; or the whole network dense as the constant, with entries that say how much one pair
/// alone at a ratio changes it (mostly negative). The unit is the caller's.
class latency_table {
 public:
  /// A table for no space.
  latency_table() = default;

  /// A table for the pairs and ratios of a space. Its entries are missing until they are set.
  static status make(const ratio_space& space, double constant, latency_table& result) noexcept;

  /// \param pair 0 … pairs() - 1. \param level 0 … levels() - 1. \param latency finite.
  status set(int pair, int level, double latency) noexcept;
  /// The constant plus the entries, summed in the order of the pairs.
  /// \param levels one per pair; their order inside a stage does not matter here.
  /// \return invalid_argument for a wrong number of pairs, a level outside the list or an entry
  ///         that is missing.
  status latency(const ratio_levels& levels, double& result) const noexcept;
  /// Fails with the first thing that is wrong unless the table serves `space` and misses no entry.
  status check(const ratio_space& space) const noexcept;

  /// Reads a table from a text file:
  ///
  ///     # lines like this one and empty lines are skipped
  ///     pair,ratio,latency
  ///     constant,,1.25
  ///     0,0,0.41
  ///     0,0.1,0.38
  ///
  /// The heading comes first; the constant and each pair and ratio of the space come once, in any
  /// order.
  /// \return invalid_argument as "FILE:LINE: what is wrong".
  static status load(const std::string& file, const ratio_space& space,
                     latency_table& result) noexcept;
  /// Writes the file that `load` reads; the numbers come back bit for bit. The file is replaced as
  /// a whole or not at all. \return invalid_argument if an entry is missing or writing fails.
  status save(const std::string& file) const noexcept;

 private:
  [[nodiscard]] std::size_t index(int pair, int level) const noexcept {
    return static_cast<std::size_t>(pair) * ratios_.size() + static_cast<std::size_t>(level);
  }
  status check_complete() const noexcept;

  int pairs_ = 0;
  std::vector<double> ratios_;
  double constant_ = 0.0;
  std::vector<double> entries_;  // [pairs, ratios], NaN where missing
};

}  // namespace winnow

#include "winnow/detail/search/table.hpp"
