// SPDX-License-Identifier: Apache-2.0
/// \file
/// What winnow-eval measures. printing.hpp and json_report.hpp show it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "eval/array.hpp"
#include "eval/attention_sample.hpp"
#include "eval/backend.hpp"
#include "eval/inputs.hpp"
#include "eval/options.hpp"
#include "eval/statistics.hpp"

namespace winnow::eval {

/// A result in one number format against the same in a better one.
struct comparison {
  const char* name;
  dtype result;
  dtype expected;
};
inline constexpr std::array<comparison, 3> comparisons = {
    {{"half", dtype::float16, dtype::float32},
     {"bfloat16", dtype::bfloat16, dtype::float32},
     {"float", dtype::float32, dtype::float64}}};

/// The storage types that are run, each after the one it is compared with.
inline constexpr std::array<dtype, 4> storage_types = {dtype::float64, dtype::float32,
                                                       dtype::float16, dtype::bfloat16};

/// Errors of one tensor by comparison.
struct tensor_errors {
  std::string tensor;  ///< out, dq, dk, dv, dTq, dTk, dTv
  std::array<error_norms, comparisons.size()> errors;
};

/// Forward and backward in one storage type.
struct storage_run {
  dtype storage = dtype::float32;
  measurement forward;
  measurement backward;
  std::int64_t tensor_bytes = 0;  ///< inputs and outputs
  pair_list_bytes pair_list;
};

/// Plain or contextual attention in one kind of windows.
struct attention_evaluation {
  bool contextual = false;
  std::vector<storage_run> runs;  ///< in the order of `storage_types`
  tensor_errors out;
  std::array<std::vector<tensor_errors>, losses.size()> gradients;  ///< by loss

  [[nodiscard]] const storage_run& run(dtype storage) const;
};

/// One kind of windows.
struct window_evaluation {
  std::string kind;  ///< cubic, spherical
  std::string size;  ///< with units
  window_statistics statistics;
  measurement build;
  std::size_t partition_bytes = 0;
  std::optional<attention_sample> sample;     ///< none if no window has a fitting size
  std::vector<std::int32_t> window_of_token;  ///< only for a report
  std::vector<attention_evaluation> attention;
};

/// Builds the windows, runs attention in every storage type and compares.
std::vector<window_evaluation> evaluate(const options& asked, const token_set& tokens,
                                        backend& device);

}  // namespace winnow::eval
