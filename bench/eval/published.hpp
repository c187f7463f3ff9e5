// SPDX-License-Identifier: Apache-2.0
/// \file
/// What others have published or reached on the reference benchmark: 268,720 tokens, two heads of
/// 16, cubic windows of 0.3 m and spherical ones of 2 degrees, 2 degrees, 80 m.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "eval/evaluation.hpp"

namespace winnow::eval::published {

inline constexpr std::int64_t tokens = 268720;

/// Was that benchmark what has been run? Other figures stand beside these in vain.
bool is_reference_benchmark(const options& asked, const token_set& tokens,
                            const std::vector<window_evaluation>& windows);

/// Where `memory` and `errors` come from.
inline constexpr const char* fork =
    "figures published with the FP16/BF16 fork of SparseTransformer (SpTr), on another GPU";
/// Where `times` come from.
inline constexpr const char* side_by_side =
    "GPU time on one NVIDIA H200, all operators measured side by side";

/// Peak memory of a training step in MB.
struct memory_figure {
  bool contextual;
  double float32, float16;
};
inline constexpr std::array<memory_figure, 2> memory = {{{false, 580, 386}, {true, 622, 406}}};

/// Largest error of half and bfloat16 against the same operator in float.
struct error_figure {
  bool contextual;
  double float16, bfloat16;
};
inline constexpr std::array<error_figure, 2> output_errors = {
    {{false, 2.7e-2, 3.2e-1}, {true, 3.8e-2, 2.5e-1}}};
/// Of the tables' gradients, from the smallest to the largest.
inline constexpr std::array<double, 2> table_gradient_errors = {1.3e-2, 4.1e-2};

/// Milliseconds; none where an operator cannot do it.
struct time_figure {
  bool spherical, contextual, with_backward;
  double sptr_half, sptr_float;
  std::optional<double> flash_attention, flex_attention;
};
inline constexpr std::array<time_figure, 8> times = {{
    {false, false, false, 0.55, 0.67, {}, 0.17},
    {false, false, true, 1.59, 1.77, {}, 0.97},
    {false, true, false, 0.80, 0.95, {}, 1.79},
    {false, true, true, 4734, 18.8, {}, {}},
    {true, false, false, 1.24, 1.51, 0.41, 0.22},
    {true, false, true, 3.41, 4.12, 1.66, 0.98},
    {true, true, false, 1.97, 2.37, {}, 2.14},
    {true, true, true, 2945, 21.7, {}, {}},
}};
/// About `flash_attention` and `flex_attention`.
inline constexpr const char* times_note =
    "FlashAttention-2 (varlen) fails on the 78,294 cubic windows. FlexAttention's contextual times "
    "are\nwithout the table that meets v.";

}  // namespace winnow::eval::published
