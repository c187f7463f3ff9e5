// SPDX-License-Identifier: Apache-2.0
// The simulated scans of the benchmarks against the statistics of recorded ones (six turns of an
// off-road vehicle's 64-beam sensor, voxels of 5 cm): tokens, pairs and windows at SphereFormer's
// five stages.
#include "support/scan_workload.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/npy.hpp"
#include "support/temporary_folder.hpp"
#include "winnow/reference.hpp"

namespace winnow::support {
namespace {

/// Tokens of a window: the median, and what 90 % and 99 % of the windows do not exceed.
struct window_statistics {
  double pairs;
  int p50, p90, p99;  ///< 0 where the recorded figure is not known
};

struct stage_statistics {
  int stage;
  double tokens;
  window_statistics cubic, spherical;
};

std::ostream& operator<<(std::ostream& out, const stage_statistics& s) {
  return out << "stage " << s.stage;
}

const stage_statistics recorded[] = {
    {1, 315785, {3346219, 2, 7, 19}, {10564683, 24, 44, 47}},
    {2, 220710, {3550928, 0, 0, 0}, {13402076, 0, 0, 0}},
    {3, 134811, {3499455, 5, 24, 63}, {13274991, 31, 128, 180}},
    {4, 66574, {2679128, 0, 0, 0}, {8192904, 0, 0, 0}},
    {5, 25351, {1135035, 10, 44, 82}, {2326045, 17, 102, 176}},
};

template <class Window>
window_statistics measure(const Window& window, const scan_stage& scan) {
  const point_set points{tensor_view<const float, 2>(scan.coordinates.data(), {scan.tokens(), 3}),
                         scan.batch.data(), nullptr};
  const reference::host_partition windows(shape_of(window, scan.tokens()));
  const status done = reference::build_partition(window, points, windows.view());
  EXPECT_TRUE(done.ok()) << done.message();
  std::vector<int> sizes;
  window_statistics result{};
  for (std::int32_t w = 0; w < windows.counts().windows; ++w) {
    sizes.push_back(windows.view().offsets[w + 1] - windows.view().offsets[w]);
    result.pairs += static_cast<double>(sizes.back()) * sizes.back();
  }
  std::sort(sizes.begin(), sizes.end());
  const auto at = [&](double share) {
    return sizes[static_cast<std::size_t>(share * static_cast<double>(sizes.size() - 1))];
  };
  result.p50 = at(0.5);
  result.p90 = at(0.9);
  result.p99 = at(0.99);
  return result;
}

const std::vector<scan_stage>& simulated() {
  static const std::vector<scan_stage> stages = simulate_stages();
  return stages;
}

class simulated_stage : public ::testing::TestWithParam<stage_statistics> {
 protected:
  static void compare(const window_statistics& found, const window_statistics& wanted) {
    EXPECT_NEAR(found.pairs / wanted.pairs, 1.0, 0.12) << "pairs";
    const int sizes[][2] = {
        {found.p50, wanted.p50}, {found.p90, wanted.p90}, {found.p99, wanted.p99}};
    for (const auto& [size, recorded_size] : sizes) {
      if (recorded_size == 0) continue;
      // Small sizes are integers next to each other, large ones fall within two fifths.
      EXPECT_NEAR(size, recorded_size, std::max(2.0, 0.4 * recorded_size));
    }
  }
};

TEST_P(simulated_stage, resembles_the_recorded_one) {
  const stage_statistics& wanted = GetParam();
  const scan_stage& scan = simulated()[static_cast<std::size_t>(wanted.stage) - 1];
  EXPECT_NEAR(static_cast<double>(scan.tokens()) / wanted.tokens, 1.0, 0.1);
  const float edge = 0.3f * static_cast<float>(1 << (wanted.stage - 1));
  {
    SCOPED_TRACE("cubic");
    compare(measure(cubic_window{{edge, edge, edge}, false, 24, {}}, scan), wanted.cubic);
  }
  const float angles[] = {2.0f, 3.0f, 4.5f, 6.75f, 10.125f};
  spherical_window sphere;
  sphere.size = {angles[wanted.stage - 1], angles[wanted.stage - 1], 80.0f};
  sphere.quant_length = 24;
  sphere.exponential_a = 0.0125f;
  SCOPED_TRACE("spherical");
  compare(measure(sphere, scan), wanted.spherical);
}
INSTANTIATE_TEST_SUITE_P(stages, simulated_stage, ::testing::ValuesIn(recorded));

TEST(simulated_stages, hold_w1_and_come_scan_by_scan) {
  EXPECT_GE(simulated()[0].tokens(), w1_tokens);
  for (const scan_stage& stage : simulated()) {
    EXPECT_EQ(stage.coordinates.size(), 3 * stage.batch.size());
    EXPECT_TRUE(std::is_sorted(stage.batch.begin(), stage.batch.end()));
    EXPECT_EQ(stage.batch.front(), 0);
    EXPECT_EQ(stage.batch.back(), 5);
    for (const float x : stage.coordinates) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST(simulated_stages, repeat_for_a_seed_and_only_for_that) {
  const auto once = simulate_stages({}, 1);
  meadow_options other;
  other.seed = 7;
  EXPECT_EQ(simulate_stages({}, 1)[2].coordinates, once[2].coordinates);
  EXPECT_NE(simulate_stages(other, 1)[2].coordinates, once[2].coordinates);
}

TEST(read_stages, reads_what_was_written) {
  const test::temporary_folder folder;
  const auto stages = simulate_stages({}, 1);
  for (int s = 1; s <= scan_stages; ++s) {
    const scan_stage& stage = stages[static_cast<std::size_t>(s) - 1];
    const std::string name = "stage" + std::to_string(s);
    write_npy(folder.path() / (name + "_coords.npy"), {stage.tokens(), 3}, stage.coordinates);
    write_npy(folder.path() / (name + "_batch.npy"), {stage.tokens()}, stage.batch);
  }
  const auto read = read_stages(folder.path());
  for (std::size_t s = 0; s < stages.size(); ++s) {
    EXPECT_EQ(read[s].coordinates, stages[s].coordinates);
    EXPECT_EQ(read[s].batch, stages[s].batch);
  }
}

}  // namespace
}  // namespace winnow::support
