// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <vector>

#include "eval/evaluation.hpp"

namespace winnow::eval {

/// What is about to be evaluated.
void print_inputs(std::FILE* file, const options& asked, const token_set& tokens,
                  const backend& device);
/// Windows, memory, precision and time.
void print_tables(std::FILE* file, const options& asked, const token_set& tokens,
                  const backend& device, const std::vector<window_evaluation>& windows);

/// Published figures beside this run's, where that is the same benchmark.
void print_published(std::FILE* file, const options& asked, const token_set& tokens,
                     const backend& device, const std::vector<window_evaluation>& windows);

}  // namespace winnow::eval
