// SPDX-License-Identifier: Apache-2.0
/// \file
/// The tokens of one window and how much one of them attends to each.
#pragma once

#include <string>
#include <vector>

#include "eval/attention_sample.hpp"

namespace winnow::eval::report {

/// \param kind cubic: an oblique view of the window; spherical: its distances from the sensor and
///        its bearings.
/// \param weights one per token of the sample. The area of a dot is its share of `largest`.
std::string draw_window(const std::string& kind, const attention_sample& sample,
                        const std::vector<double>& weights, double largest,
                        const std::string& title);

/// How concentrated the weights are, in words.
std::string summary_of(const std::vector<double>& weights);

}  // namespace winnow::eval::report
