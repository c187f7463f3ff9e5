// SPDX-License-Identifier: Apache-2.0
// Partitions of labels and grids, built on the GPU, against the host twins.
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "support/device_partition.hpp"

namespace winnow::test {
namespace {

using ints = std::vector<std::int32_t>;

/// Labels in host memory and a copy in device memory.
struct twin_labels {
  ints labels;
  ints positions;
  std::vector<float> radius;
  std::vector<device_array<std::int32_t>> arrays;
  device_array<float> device_radius;

  [[nodiscard]] label_set host() const {
    label_set set;
    set.labels = labels.data();
    set.tokens = static_cast<std::int64_t>(labels.size());
    set.positions = positions.empty() ? nullptr : positions.data();
    set.radius = radius.empty() ? nullptr : radius.data();
    return set;
  }
  [[nodiscard]] label_set device() {
    arrays.clear();
    arrays.emplace_back(labels);
    arrays.emplace_back(positions);
    device_radius = device_array<float>(radius);
    label_set set = host();
    set.labels = arrays[0].data();
    if (set.positions != nullptr) set.positions = arrays[1].data();
    if (set.radius != nullptr) set.radius = device_radius.data();
    return set;
  }
};

void expect_twins(const labels_window& window, twin_labels& tokens,
                  const partition_bounds& bounds = {}) {
  const label_set set = tokens.device();
  const device_partition result(shape_of(window, set));
  build_on_device(window, set, bounds, result);
  if (::testing::Test::HasFatalFailure()) return;
  const auto host = partition_labels(window, tokens.host());
  expect_same_partition(result.read().view(), host.view());
}

TEST(labels_partition, equals_the_host) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(21);
  for (const int tokens : {0, 1, 100, 2048, 50000})
    for (const int ids : {1, 7, 3000}) {
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << ids << " ids");
      twin_labels set;
      for (int i = 0; i < tokens; ++i)
        set.labels.push_back(static_cast<std::int32_t>(engine() % (2u * ids)) - ids / 2);
      expect_twins({}, set);
      partition_bounds bounds;
      bounds.labels = 2 * ids;
      expect_twins({}, set, bounds);
      for (int i = 0; i < 3 * tokens; ++i)
        set.positions.push_back(static_cast<std::int32_t>(engine() % 24));
      labels_window window{24, 0.0125f};
      expect_twins(window, set);
      for (int i = 0; i < tokens; ++i) set.radius.push_back(static_cast<float>(engine() % 80));
      expect_twins(window, set);
    }
}

TEST(labels_partition, of_extreme_ids) {
  WINNOW_SKIP_WITHOUT_GPU();
  twin_labels set;
  set.labels = {5, 2147483647, 0, -1, 2147483647, -2147483647 - 1, 5, 2147483646};
  expect_twins({}, set);
  set.labels.assign(5000, -3);
  expect_twins({}, set);
}

TEST(labels_partition, flags_bad_tokens) {
  WINNOW_SKIP_WITHOUT_GPU();
  twin_labels set;
  for (int i = 0; i < 3000; ++i) {
    set.labels.push_back(i % 50);
    set.radius.push_back(1.0f);
    for (int a = 0; a < 3; ++a) set.positions.push_back(i % 8);
  }
  const labels_window window{8, 0.1f};
  const auto flags = [&](const partition_bounds& bounds, std::int32_t missing) {
    const label_set tokens = set.device();
    const device_partition result(shape_of(window, tokens));
    build_on_device(window, tokens, bounds, result);
    const auto read = result.read();
    expect_sound(read.view());
    EXPECT_EQ(read.counts().assigned, 3000 - missing);
    return read.counts().flags;
  };
  EXPECT_EQ(flags({}, 0), 0u);
  partition_bounds bounds;
  bounds.labels = 49;
  EXPECT_EQ(flags(bounds, 60), static_cast<std::uint32_t>(partition_flag::outside_bounds));
  set.positions[0] = 8;
  set.positions[3001] = -1;
  EXPECT_EQ(flags({}, 2), static_cast<std::uint32_t>(partition_flag::bad_position));
  set.positions[0] = set.positions[3001] = 0;
  set.radius[77] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(flags({}, 1), static_cast<std::uint32_t>(partition_flag::not_finite));
}

/// Builds a grid partition with a workspace of exactly the promised size.
void build_grid(const grid_window& grid, const window_selection* kept,
                const device_partition& result) {
  const device_stream stream;
  device_array<std::byte> workspace(
      static_cast<std::int64_t>(build_partition_workspace_bytes(grid, kept)));
  WINNOW_ASSERT_OK(
      build_partition(grid, kept, result.view(), workspace.data(), workspace.bytes(), stream));
  stream.synchronize();
  EXPECT_TRUE(workspace.guards_intact() && result.guards_intact());
}

const grid_window some_grids[] = {{1, 7, 7, 7, 0},         {2, 14, 21, 7, 3}, {4, 168, 168, 7, 0},
                                  {4, 168, 168, 7, 3},     {3, 12, 8, 4, 1},  {5, 6, 6, 1, 0},
                                  {1, 256, 256, 256, 255}, {0, 7, 7, 7, 0},   {2, 0, 14, 7, 2}};

TEST(grid_partition, of_all_windows) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const grid_window& grid : some_grids) {
    SCOPED_TRACE(::testing::Message() << grid.batch << " x " << grid.height << " x " << grid.width);
    const device_partition result(shape_of(grid));
    build_grid(grid, nullptr, result);
    expect_same_partition(result.read().view(), partition_grid(grid).view());
  }
}

TEST(grid_partition, of_a_uniform_selection) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(22);
  for (const grid_window& grid : some_grids)
    for (const double ratio : {0.0, 0.3, 0.9, 1.0}) {
      SCOPED_TRACE(::testing::Message()
                   << grid.batch << " x " << grid.height << " x " << grid.width << ", " << ratio);
      const std::int64_t windows = grid.windows_per_image();
      const std::int64_t kept = kept_windows(windows, ratio);
      // A prefix of a longer ranking, so rows are farther apart than they are long.
      ints ids;
      for (int image = 0; image < grid.batch; ++image) {
        ints all(static_cast<std::size_t>(windows));
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), engine);
        ids.insert(ids.end(), all.begin(), all.end());
      }
      device_array<std::int32_t> memory(ids);
      window_selection host = uniform_selection(grid.batch, windows, windows, ids.data());
      WINNOW_ASSERT_OK(prefix(host, kept, host));
      window_selection device = host;
      device.ids = memory.data();
      const device_partition result(shape_of(grid, &device));
      build_grid(grid, &device, result);
      expect_same_partition(result.read().view(), partition_grid(grid, &host).view());
    }
}

TEST(grid_partition, of_a_ragged_selection) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(23);
  for (const grid_window& grid : some_grids) {
    SCOPED_TRACE(::testing::Message() << grid.batch << " x " << grid.height << " x " << grid.width);
    const std::int64_t windows = grid.windows_per_image();
    ints ids(static_cast<std::size_t>(grid.batch * windows), -7);
    ints offsets{0};
    for (int image = 0; image < grid.batch; ++image) {
      std::int32_t count = offsets.back();
      for (std::int64_t id = 0; id < windows; ++id)
        if (image != 1 && engine() % 3 == 0)  // image 1 keeps nothing
          ids[static_cast<std::size_t>(count++)] = static_cast<std::int32_t>(id);
      offsets.push_back(count);
    }
    const device_array<std::int32_t> device_ids(ids);
    const device_array<std::int32_t> device_offsets(offsets);
    const auto host = ragged_selection(grid.batch, windows, ids.data(), offsets.data());
    const auto device =
        ragged_selection(grid.batch, windows, device_ids.data(), device_offsets.data());
    const device_partition result(shape_of(grid, &device));
    build_grid(grid, &device, result);
    expect_same_partition(result.read().view(), partition_grid(grid, &host).view());
  }
}

TEST(grid_partition, a_bad_selection_selects_nothing) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window grid{2, 28, 28, 7, 2};  // 16 windows an image
  const auto flags_of = [&](const ints& ids, const ints& offsets, std::int64_t room) {
    const device_array<std::int32_t> device_ids(ids);
    const device_array<std::int32_t> device_offsets(offsets);
    const window_selection kept =
        offsets.empty()
            ? uniform_selection(2, 16, static_cast<std::int64_t>(ids.size()) / 2, device_ids.data())
            : ragged_selection(2, 16, device_ids.data(), device_offsets.data());
    partition_shape shape = shape_of(grid, &kept);
    if (room >= 0) shape.max_windows = room;
    const device_partition result(shape);
    build_grid(grid, &kept, result);
    const auto read = result.read();
    expect_sound(read.view());
    if (read.counts().flags != 0) EXPECT_EQ(read.counts().windows, 0);
    return read.counts().flags;
  };
  ints ids(32, 0);
  const auto flag = [](partition_flag f) { return static_cast<std::uint32_t>(f); };
  EXPECT_EQ(flags_of({3, 1, 0, 15}, {}, -1), 0u);
  EXPECT_EQ(flags_of({3, 16, 0, 1}, {}, -1), flag(partition_flag::kept_id));
  EXPECT_EQ(flags_of({3, -1, 0, 1}, {}, -1), flag(partition_flag::kept_id));
  EXPECT_EQ(flags_of({3, 2, 5, 5}, {}, -1), flag(partition_flag::kept_twice));
  std::iota(ids.begin(), ids.begin() + 16, 0);
  EXPECT_EQ(flags_of(ids, {0, 3, 4}, -1), 0u);
  EXPECT_EQ(flags_of(ids, {0, 3, 4}, 4), 0u);
  EXPECT_EQ(flags_of(ids, {0, 3, 4}, 3), flag(partition_flag::too_many_windows));
  for (const ints& offsets : {ints{0, -5, 4}, ints{0, 17, 17}, ints{0, 16, 33}, ints{5, 3, 9},
                              ints{2147483647, -2147483647, 0}, ints{0, 4, 3}})
    EXPECT_NE(flags_of(ids, offsets, -1) & flag(partition_flag::kept_offsets), 0u)
        << offsets[0] << " " << offsets[1] << " " << offsets[2];
}

TEST(grid_partition, rejects_bad_arguments) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window grid{2, 28, 28, 7, 2};
  const device_array<std::int32_t> ids(ints{0, 1, 2, 3});
  const window_selection kept = uniform_selection(2, 16, 2, ids.data());
  const device_partition result(shape_of(grid));
  const std::size_t bytes = build_partition_workspace_bytes(grid, &kept);
  device_array<std::byte> workspace(static_cast<std::int64_t>(bytes));
  const device_stream stream;
  const auto code = [&](const grid_window& window, const window_selection* selection,
                        std::size_t size) {
    return build_partition(window, selection, result.view(), workspace.data(), size, stream).code();
  };
  constexpr auto invalid = status_code::invalid_argument;
  EXPECT_EQ(code({2, 28, 27, 7, 2}, nullptr, bytes), invalid);
  EXPECT_EQ(code({2, 28, 28, 7, 7}, nullptr, bytes), invalid);
  EXPECT_EQ(code({2, 56, 28, 7, 2}, nullptr, bytes), invalid);  // larger than the result
  window_selection bad = kept;
  bad.images = 3;
  EXPECT_EQ(code(grid, &bad, bytes), invalid);
  bad = kept;
  bad.kept = 17;
  EXPECT_EQ(code(grid, &bad, bytes), invalid);
  bad = kept;
  bad.ids = nullptr;
  EXPECT_EQ(code(grid, &bad, bytes), invalid);
  EXPECT_EQ(code(grid, &kept, bytes - 1), status_code::workspace_too_small);
  stream.synchronize();
  if (!bare_arrays()) EXPECT_TRUE(result.untouched());
}

}  // namespace
}  // namespace winnow::test
