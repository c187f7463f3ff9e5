// SPDX-License-Identifier: Apache-2.0
// What the device builders of partitions promise beside the right lists: graphs, repetition, flags for
// bad data, checked arguments, workspaces.
#include <limits>
#include <string>

#include "support/device_partition.hpp"

namespace winnow::test {
namespace {

using floats = std::vector<float>;
using ints = std::vector<std::int32_t>;

TEST(partition_graph, replays_with_other_points_and_another_number) {
  WINNOW_SKIP_WITHOUT_GPU();
  constexpr std::int64_t capacity = 40000;
  device_points<float> points({}, {0}, capacity);
  points.assign(random_points(10, 1, 1, 1).coordinates, ints(10, 0));
  const cubic_window cubic{{0.5f, 0.5f, 0.5f}, false, 24};
  const spherical_window ball{{4, 4, 80}, false, 24, 0.0125f};
  device_partition cubes(shape_of(cubic, capacity));
  device_partition balls(shape_of(ball, capacity));
  const point_partition items[] = {{cubic, cubes.view()}, {ball, balls.view()}};
  device_array<std::byte> workspace(
      static_cast<std::int64_t>(build_partitions_workspace_bytes(items, 2, points.view(true))));
  const device_stream stream;
  const captured_graph graph(stream, [&](cudaStream_t s) {
    const status built =
        build_partitions(items, 2, points.view(true), {}, workspace.data(), workspace.bytes(), s);
    ASSERT_TRUE(built.ok()) << built.message();
  });
  for (const std::int64_t tokens : {std::int64_t{40000}, std::int64_t{1}, std::int64_t{0},
                                    std::int64_t{2048}, std::int64_t{33333}}) {
    SCOPED_TRACE(tokens);
    const random_points random(tokens, 3, tokens % 2 == 0 ? 10.0f : 40.0f,
                               static_cast<std::uint64_t>(tokens));
    points.assign(random.coordinates, tokens > 0 ? random.batch : ints{});
    cubes.poison();
    balls.poison();
    graph.launch();
    stream.synchronize();
    const auto host = partition_points(cubic, host_points(random.coordinates, random.batch));
    expect_same_partition(cubes.read().view(), host.view());
    expect_sound(balls.read().view());
    EXPECT_EQ(balls.read().counts().assigned, tokens);
    EXPECT_TRUE(workspace.guards_intact() && cubes.guards_intact() && balls.guards_intact());
  }
}

TEST(partition_graph, repeats_bit_for_bit) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points random(30000, 2, 20, 15);
  const device_points<float> points(random.coordinates, random.batch);
  const spherical_window window{{3, 3, 80}, false, 24, 0.0125f};
  const device_partition first(shape_of(window, points.capacity()));
  const device_partition second(shape_of(window, points.capacity()));
  build_on_device(window, points.view(), {}, first);
  build_on_device(window, points.view(), {}, second);
  EXPECT_EQ(first.read().bytes(), second.read().bytes());
}

/// The tokens that the host would partition once the bad ones are gone.
void expect_only_good_tokens(const partition& device, const cubic_window& window,
                             const floats& coordinates, const ints& batch,
                             const std::vector<bool>& good) {
  expect_sound(device);
  if (::testing::Test::HasFatalFailure()) return;
  floats kept_coordinates;
  ints kept_batch;
  ints kept;
  ints rest;
  for (std::size_t i = 0; i < good.size(); ++i) {
    (good[i] ? kept : rest).push_back(static_cast<std::int32_t>(i));
    if (!good[i]) continue;
    kept_coordinates.insert(kept_coordinates.end(), coordinates.begin() + 3 * i,
                            coordinates.begin() + 3 * i + 3);
    kept_batch.push_back(batch[i]);
  }
  const auto host = partition_points(window, host_points(kept_coordinates, kept_batch));
  ASSERT_EQ(device.counts->assigned, static_cast<std::int32_t>(kept.size()));
  ASSERT_EQ(device.counts->windows, host.counts().windows);
  for (std::size_t slot = 0; slot < kept.size(); ++slot) {
    ASSERT_EQ(device.order[slot], kept[static_cast<std::size_t>(host.view().order[slot])]);
    ASSERT_EQ(device.position[slot], host.view().position[slot]);
    ASSERT_EQ(device.bounds[2 * slot], host.view().bounds[2 * slot]);
  }
  for (std::size_t i = 0; i < rest.size(); ++i) ASSERT_EQ(device.order[kept.size() + i], rest[i]);
}

TEST(partition_flags, bad_tokens_lie_in_no_window) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points clean(6000, 2, 10, 16);
  cubic_window window{{1, 1, 1}, false, 24};
  window.origin = {{-10, -10, -10}};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const auto bounds = box_of(clean.coordinates, clean.batch);
  struct surprise {
    const char* name;
    float x;
    std::int32_t item;
    bool bounded;
    partition_flag flag;
  };
  for (const surprise& s :
       {surprise{"NaN", nan, 0, false, partition_flag::not_finite},
        surprise{"infinity", -inf, 0, true, partition_flag::not_finite},
        surprise{"negative batch", 1, -1, false, partition_flag::negative_batch},
        surprise{"far", 3e38f, 0, false, partition_flag::far_cell},
        surprise{"outside the box", 500, 0, true, partition_flag::outside_bounds},
        surprise{"far outside the box", 1e30f, 0, true, partition_flag::far_cell},
        surprise{"outside the items", 1, 900000, true, partition_flag::outside_bounds}}) {
    SCOPED_TRACE(s.name);
    floats coordinates = clean.coordinates;
    ints batch = clean.batch;
    std::vector<bool> good(batch.size(), true);
    for (const std::size_t token : {std::size_t{0}, std::size_t{31}, std::size_t{5999}}) {
      coordinates[3 * token] = s.x;
      batch[token] = s.item;
      good[token] = false;
    }
    const device_points<float> points(coordinates, batch);
    const device_partition result(shape_of(window, points.capacity()));
    build_on_device(window, points.view(), s.bounded ? bounds : partition_bounds{}, result);
    const auto read = result.read();
    EXPECT_EQ(read.counts().flags, static_cast<std::uint32_t>(s.flag));
    EXPECT_FALSE(check_flags(read.counts()).ok());
    expect_only_good_tokens(read.view(), window, coordinates, batch, good);
  }
}

TEST(partition_flags, a_span_beyond_63_bits_builds_nothing) {
  WINNOW_SKIP_WITHOUT_GPU();
  const floats coordinates{-1e9f, -1e9f, -1e9f, 1e9f, 1e9f, 1e9f};
  const device_points<float> points(coordinates, {0, 2000000000});
  cubic_window window{{1, 1, 1}, false, 24};
  window.origin = {{0, 0, 0}};
  const device_partition result(shape_of(window, 2));
  build_on_device(window, points.view(), {}, result);
  const auto read = result.read();
  expect_sound(read.view());
  EXPECT_EQ(read.counts().flags, static_cast<std::uint32_t>(partition_flag::wide_span));
  EXPECT_EQ(read.counts().windows, 0);
}

TEST(partition_flags, the_number_of_tokens_is_clamped) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points random(3000, 2, 10, 17);
  device_points<float> points(random.coordinates, random.batch);
  const cubic_window window{{1, 1, 1}, false, 24};
  for (const std::int32_t count : {-1, 3001, 2147483647, std::int32_t{-2147483647 - 1}}) {
    points.set_count(count);
    const device_partition result(shape_of(window, points.capacity()));
    build_on_device(window, points.view(true), {}, result);
    const auto read = result.read();
    expect_sound(read.view());
    EXPECT_EQ(read.counts().flags, static_cast<std::uint32_t>(partition_flag::token_count));
    EXPECT_EQ(read.counts().tokens, count < 0 ? 0 : 3000);
  }
}

TEST(partition_flags, windows_beyond_the_room_are_dropped) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points random(9000, 2, 10, 18);
  const device_points<float> points(random.coordinates, random.batch);
  const cubic_window window{{1, 1, 1}, false, 24};
  const auto host = partition_points(window, random.view());
  for (const std::int32_t room : {0, 1, 100, host.counts().windows - 1, host.counts().windows}) {
    SCOPED_TRACE(room);
    partition_shape shape = shape_of(window, points.capacity());
    shape.max_windows = room;
    const device_partition result(shape);
    build_on_device(window, points.view(), {}, result);
    const auto read = result.read();
    expect_sound(read.view());
    EXPECT_EQ(read.counts().windows, room);
    EXPECT_EQ(read.counts().assigned, host.view().offsets[room]);
    EXPECT_TRUE(same("order", read.view().order, host.view().order, 9000));
    EXPECT_EQ(read.counts().flags,
              room == host.counts().windows
                  ? 0u
                  : static_cast<std::uint32_t>(partition_flag::too_many_windows));
  }
}

TEST(partition_counts_copy, arrives_with_the_stream) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points random(100, 1, 1, 19);
  const device_points<float> points(random.coordinates, random.batch);
  const cubic_window window{{1, 1, 1}, false, 24};
  const device_partition result(shape_of(window, 100));
  build_on_device(window, points.view(), {}, result);
  partition_counts counts{};
  const device_stream stream;
  WINNOW_ASSERT_OK(copy_counts(result.view(), &counts, stream));
  stream.synchronize();
  EXPECT_EQ(counts.tokens, 100);
  WINNOW_ASSERT_OK(check_flags(counts));
  EXPECT_EQ(copy_counts(result.view(), nullptr, stream).code(), status_code::invalid_argument);
  EXPECT_EQ(copy_counts({}, &counts, stream).code(), status_code::invalid_argument);
}

TEST(partition_arguments, are_checked_before_anything_is_written) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points random(500, 2, 10, 20);
  const device_points<float> points(random.coordinates, random.batch);
  const cubic_window good{{1, 1, 1}, false, 24};
  const device_partition result(shape_of(good, 500));
  const std::size_t bytes = build_partition_workspace_bytes(good, points.view());
  device_array<std::byte> workspace(static_cast<std::int64_t>(bytes) + 16);
  const device_stream stream;
  const auto code = [&](const cubic_window& window, const point_set& set, const partition& to,
                        const partition_bounds& bounds, std::byte* memory, std::size_t size) {
    const status s = build_partition(window, set, bounds, to, memory, size, stream);
    EXPECT_NE(std::string(s.message()), "");
    return s.code();
  };
  constexpr auto invalid = status_code::invalid_argument;
  std::byte* memory = workspace.data();
  cubic_window bad = good;
  bad.size[1] = 0;
  EXPECT_EQ(code(bad, points.view(), result.view(), {}, memory, bytes), invalid);
  bad = good;
  bad.quant_length = 257;
  EXPECT_EQ(code(bad, points.view(), result.view(), {}, memory, bytes), invalid);
  bad = good;
  bad.quant_length = 12;  // not what the result was bound for
  EXPECT_EQ(code(bad, points.view(), result.view(), {}, memory, bytes), invalid);
  point_set set = points.view();
  set.coordinates.shape[1] = 2;
  EXPECT_EQ(code(good, set, result.view(), {}, memory, bytes), invalid);
  set = points.view();
  set.coordinates.data = nullptr;
  EXPECT_EQ(code(good, set, result.view(), {}, memory, bytes), invalid);
  partition_bounds bounds;
  bounds.batch_items = -1;
  EXPECT_EQ(code(good, points.view(), result.view(), bounds, memory, bytes), invalid);
  bounds = {};
  bounds.box = coordinate_box{{0, 0, 0}, {1, -1, 1}};
  EXPECT_EQ(code(good, points.view(), result.view(), bounds, memory, bytes), invalid);
  EXPECT_EQ(code(good, points.view(), {}, {}, memory, bytes), invalid);
  partition small = result.view();
  small.max_tokens = 499;
  EXPECT_EQ(code(good, points.view(), small, {}, memory, bytes), invalid);
  EXPECT_EQ(code(good, points.view(), result.view(), {}, nullptr, bytes), invalid);
  EXPECT_EQ(code(good, points.view(), result.view(), {}, memory + 1, bytes), invalid);
  EXPECT_EQ(code(good, points.view(), result.view(), {}, memory, bytes - 1),
            status_code::workspace_too_small);
  const point_partition twice[] = {{good, result.view()}, {good, result.view()}};
  EXPECT_EQ(build_partitions(twice, 2, points.view(), {}, memory, 1 << 30, stream).code(), invalid);
  EXPECT_EQ(build_partitions(twice, 0, points.view(), {}, memory, bytes, stream).code(), invalid);
  EXPECT_EQ(build_partitions(twice, 9, points.view(), {}, memory, bytes, stream).code(), invalid);
  EXPECT_EQ(build_partitions(nullptr, 1, points.view(), {}, memory, bytes, stream).code(), invalid);
  EXPECT_EQ(build_partition_workspace_bytes(bad = {{0, 1, 1}, false, 24}, points.view()), 0u);
  stream.synchronize();
  if (!bare_arrays()) EXPECT_TRUE(result.untouched());
}

TEST(partition_workspace, shrinks_with_bounds_and_needs_no_memory_to_be_asked) {
  // Host arithmetic only: runs without a GPU, too.
  const point_set points{tensor_view<const float, 2>(nullptr, {100000, 3}), nullptr, nullptr};
  const cubic_window window{{0.3f, 0.3f, 0.3f}, false, 24};
  partition_bounds bounds;
  bounds.box = coordinate_box{{-100, -100, -4}, {100, 100, 8}};
  const std::size_t free = build_partition_workspace_bytes(window, points);
  const std::size_t bounded = build_partition_workspace_bytes(window, points, bounds);
  EXPECT_GT(free, bounded);
  EXPECT_GT(bounded, 0u);
}

}  // namespace
}  // namespace winnow::test
