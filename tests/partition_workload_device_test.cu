// SPDX-License-Identifier: Apache-2.0
// Partitions of whole LiDAR scans on the GPU against the host twins. The scans come from the folder
// that WINNOW_WORKLOADS names: stage1_coords.npy [N, 3] and stage1_batch.npy [N] up to stage 5.
#include <cstdlib>
#include <filesystem>

#include "support/device_partition.hpp"
#include "support/npy.hpp"

namespace winnow::test {
namespace {

class workload_partition : public ::testing::TestWithParam<int> {};

TEST_P(workload_partition, equals_the_host) {
  WINNOW_SKIP_WITHOUT_GPU();
  const char* folder = std::getenv("WINNOW_WORKLOADS");
  if (folder == nullptr) GTEST_SKIP() << "WINNOW_WORKLOADS names no folder of scans";
  const std::string stage = "stage" + std::to_string(GetParam());
  const auto coordinates =
      support::read_npy(std::filesystem::path(folder) / (stage + "_coords.npy"));
  const auto batch = support::read_npy(std::filesystem::path(folder) / (stage + "_batch.npy"));
  const std::int64_t tokens = batch.elements();
  const std::vector<float> points(coordinates.as<float>(), coordinates.as<float>() + 3 * tokens);
  const std::vector<std::int32_t> items(batch.as<std::int32_t>(),
                                        batch.as<std::int32_t>() + tokens);
  const float size = 0.3f * static_cast<float>(1 << (GetParam() - 1));
  for (const bool shifted : {false, true}) {
    const cubic_window window{{size, size, size}, shifted, 24};
    const device_points<float> on_device(points, items);
    const device_partition result(shape_of(window, tokens));
    build_on_device(window, on_device.view(), {}, result);
    const auto host = partition_points(window, host_points(points, items));
    expect_same_partition(result.read().view(), host.view());

    // Spherical windows differ on borders; a few tokens may change windows, no list may break.
    const spherical_window ball{{2.0f * size / 0.3f, 2.0f, 80.0f}, shifted, 24, 0.0125f};
    const device_partition balls(shape_of(ball, tokens));
    build_on_device(ball, on_device.view(), {}, balls);
    const auto twin = partition_points(ball, host_points(points, items));
    const auto read = balls.read();
    expect_sound(read.view());
    EXPECT_EQ(read.counts().flags, 0u);
    EXPECT_EQ(read.counts().assigned, tokens);
    EXPECT_NEAR(read.counts().windows, twin.counts().windows, 0.001 * twin.counts().windows + 2);
  }
}

INSTANTIATE_TEST_SUITE_P(stages, workload_partition, ::testing::Range(1, 6));

}  // namespace
}  // namespace winnow::test
