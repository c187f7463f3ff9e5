// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// The ratio of each block in the next iteration of a training.
winnow::status next_ratios(const winnow::ratio_space& space, winnow::ratio_sampler& sampler,
                           std::vector<double>& ratios) {
  winnow::ratio_levels levels;
  WINNOW_TRY(sampler.sample(space, levels));
  return space.block_ratios(levels, ratios);
}
// ---

int main() {
  winnow::ratio_space space;
  check(winnow::ratio_space::make({2, 2, 6, 2}, space));
  winnow::ratio_sampler sampler(7);
  std::vector<double> ratios;
  for (int i = 0; i < 100; ++i) {
    check(next_ratios(space, sampler, ratios));
    check(ratios.size() == 12, "not a ratio for each block");
    for (std::size_t b = 0; b < 12; b += 2)
      check(ratios[b] == ratios[b + 1], "a pair has two ratios");
    check(ratios[4] <= ratios[6] && ratios[6] <= ratios[8], "ratios decrease inside a stage");
  }
  // A sampler made of the state of another goes on like that.
  winnow::ratio_sampler restored(sampler.state());
  std::vector<double> same;
  check(next_ratios(space, sampler, ratios));
  check(next_ratios(space, restored, same));
  check(ratios == same, "the checkpoint lost something");
}
