// SPDX-License-Identifier: Apache-2.0
#include "eval/published.hpp"

namespace winnow::eval::published {

bool is_reference_benchmark(const options& asked, const token_set& evaluated,
                            const std::vector<window_evaluation>& windows) {
  const options usual;
  const bool has_its_geometry = asked.cubic_window == usual.cubic_window &&
                                asked.spherical_window == usual.spherical_window &&
                                asked.quant_length == usual.quant_length &&
                                asked.exponential_a == usual.exponential_a &&
                                asked.heads == usual.heads && asked.head_dim == usual.head_dim;
  // As many tokens of another scan make other windows.
  constexpr std::int64_t cubic_windows = 78294;
  return has_its_geometry && evaluated.size() == tokens && !windows.empty() &&
         windows.front().statistics.windows == cubic_windows;
}

}  // namespace winnow::eval::published
