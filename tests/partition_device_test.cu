// SPDX-License-Identifier: Apache-2.0
// Partitions of points, built on the GPU, against the host twins.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "support/device_partition.hpp"

namespace winnow::test {
namespace {

using floats = std::vector<float>;
using ints = std::vector<std::int32_t>;

/// Builds on both sides and expects the same lists.
template <class T>
void expect_twins(const cubic_window& window, const std::vector<T>& coordinates, const ints& batch,
                  const partition_bounds& bounds = {}) {
  const device_points<T> points(coordinates, batch);
  const device_partition result(shape_of(window, points.capacity()));
  build_on_device(window, points.view(), bounds, result);
  if (::testing::Test::HasFatalFailure()) return;
  const auto host = partition_points(window, host_points(coordinates, batch));
  expect_same_partition(result.read().view(), host.view());
}

struct random_case {
  std::int64_t tokens;
  int batch_items;
  float extent;
  float size;
  bool shifted;
  bool bounded;
  bool given_origin;
};

void PrintTo(const random_case& c, std::ostream* out) {
  *out << c.tokens << " tokens, " << c.batch_items << " items, box " << c.extent << ", windows "
       << c.size << (c.shifted ? ", shifted" : "") << (c.bounded ? ", bounded" : "")
       << (c.given_origin ? ", origin" : "");
}

class cubic_partition : public ::testing::TestWithParam<random_case> {};

TEST_P(cubic_partition, equals_the_host) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_case& c = GetParam();
  const random_points points(c.tokens, c.batch_items, c.extent,
                             static_cast<std::uint64_t>(c.tokens) * 7 + 1);
  cubic_window window{{c.size, c.size * 1.25f, c.size * 0.5f}, c.shifted, 24};
  if (c.given_origin) window.origin = {{-0.75 * c.extent, 0.1, 0.0}};
  const auto bounds = c.bounded ? box_of(points.coordinates, points.batch) : partition_bounds{};
  expect_twins(window, points.coordinates, points.batch, bounds);
}

INSTANTIATE_TEST_SUITE_P(random, cubic_partition,
                         ::testing::Values(random_case{0, 1, 1, 1, false, false, false},
                                           random_case{1, 1, 1, 1, false, false, false},
                                           random_case{2, 1, 10, 1, true, true, false},
                                           random_case{33, 3, 10, 1, false, false, true},
                                           random_case{1000, 2, 5, 1, true, true, true},
                                           random_case{2047, 1, 20, 1, false, true, false},
                                           random_case{2048, 4, 20, 1, true, false, false},
                                           random_case{2049, 4, 2, 1, false, true, true},
                                           random_case{5000, 3, 1000, 0.01f, true, false, false},
                                           random_case{5000, 3, 1000, 0.01f, false, true, true},
                                           random_case{70000, 6, 50, 0.3f, true, true, false},
                                           random_case{70000, 6, 50, 0.3f, false, false, false}));

// Beyond 2^20 tokens tiles are larger.
INSTANTIATE_TEST_SUITE_P(large, cubic_partition,
                         ::testing::Values(random_case{100000, 5, 100, 4, true, true, true},
                                           random_case{300001, 2, 30, 0.5f, false, false, true},
                                           random_case{1200000, 3, 100, 0.5f, true, true, false},
                                           random_case{1100001, 3, 100, 0.5f, false, false, true},
                                           random_case{1050000, 1, 3e5f, 0.5f, false, false, false},
                                           random_case{1050000, 1, 3, 2, false, false, false}));

TEST(cubic_partition, without_batch_ids) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points points(3000, 1, 10, 5);
  expect_twins({{1, 1, 1}, false, 8}, points.coordinates, {});
}

TEST(cubic_partition, all_tokens_in_one_window) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points points(60000, 1, 1, 6);
  expect_twins({{100, 100, 100}, false, 256}, points.coordinates, points.batch);
}

TEST(cubic_partition, a_long_window_between_short_ones) {
  WINNOW_SKIP_WITHOUT_GPU();
  // Runs that begin and end inside tiles, on their edges, and span many of them.
  for (const int long_run : {31, 32, 33, 2047, 2048, 2049, 4096, 50000}) {
    floats coordinates;
    for (int i = 0; i < 2000; ++i)
      coordinates.insert(coordinates.end(), {static_cast<float>(i / 3), 0, 0});
    for (int i = 0; i < long_run; ++i) coordinates.insert(coordinates.end(), {5000.5f, 0, 0});
    for (int i = 0; i < 3000; ++i)
      coordinates.insert(coordinates.end(), {6000.0f + static_cast<float>(i / 2), 0, 0});
    SCOPED_TRACE(long_run);
    expect_twins({{1, 1, 1}, false, 4}, coordinates, {});
  }
}

TEST(cubic_partition, every_token_alone) {
  WINNOW_SKIP_WITHOUT_GPU();
  floats coordinates;
  for (int i = 0; i < 40000; ++i)
    coordinates.insert(coordinates.end(), {static_cast<float>(i * 7919 % 40000), 0.5f, -3.0f});
  expect_twins({{1, 1, 1}, false, 1}, coordinates, {});
}

TEST(cubic_partition, far_from_the_origin_negative_and_duplicate) {
  WINNOW_SKIP_WITHOUT_GPU();
  random_points points(4000, 2, 20, 7);
  for (std::size_t i = 0; i < points.coordinates.size(); ++i) points.coordinates[i] -= 1e6f;
  const floats once = points.coordinates;
  points.coordinates.insert(points.coordinates.end(), once.begin(), once.end());
  const ints items = points.batch;
  points.batch.insert(points.batch.end(), items.begin(), items.end());
  expect_twins({{0.7f, 0.7f, 0.7f}, true, 24}, points.coordinates, points.batch);
  cubic_window given{{0.7f, 0.7f, 0.7f}, true, 24};
  given.origin = {{1e6, -1e6, 5.0}};
  expect_twins(given, points.coordinates, points.batch);
}

TEST(cubic_partition, on_cell_borders) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(8);
  for (const float size : {0.3f, 0.1f, 1.0f, 3.0f}) {
    floats coordinates;
    ints batch;
    for (int i = 0; i < 9000; ++i) {
      const float at = static_cast<float>(static_cast<int>(engine() % 400) - 200) * size;
      const float near = std::nextafter(at, engine() % 2 == 0 ? 1e9f : -1e9f);
      coordinates.push_back(engine() % 2 == 0 ? at : near);
      if (i % 3 == 0) batch.push_back(static_cast<std::int32_t>(engine() % 3));
    }
    SCOPED_TRACE(size);
    expect_twins({{size, size, size}, true, 24}, coordinates, batch);
    cubic_window given{{size, size, size}, false, 24};
    given.origin = {{0, 0, 0}};
    expect_twins(given, coordinates, batch, box_of(coordinates, batch));
  }
}

TEST(cubic_partition, empty_batch_items_and_large_ids) {
  WINNOW_SKIP_WITHOUT_GPU();
  random_points points(5000, 4, 10, 9);
  const ints ids{3, 70, 2147483647, 1000000};
  for (std::int32_t& item : points.batch) item = ids[static_cast<std::size_t>(item)];
  expect_twins({{1, 1, 1}, false, 24}, points.coordinates, points.batch);
}

TEST(cubic_partition, keys_wider_than_32_bits) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const float extent : {2e3f, 2e4f, 3e5f}) {
    random_points points(20000, 3, extent, 10);
    // Some company, so that not every window holds one token.
    for (std::size_t i = 3000; i + 1 < points.coordinates.size(); i += 2)
      points.coordinates[i] = points.coordinates[i % 3000];
    SCOPED_TRACE(extent);
    expect_twins({{0.5f, 0.5f, 0.5f}, false, 24}, points.coordinates, points.batch);
  }
}

TEST(cubic_partition, of_integers) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(11);
  for (const std::int32_t offset : {0, 2000000000, -2147483000}) {
    ints coordinates;
    ints batch;
    for (int i = 0; i < 12000; ++i)
      coordinates.push_back(offset + static_cast<std::int32_t>(engine() % 300));
    for (int i = 0; i < 4000; ++i) batch.push_back(static_cast<std::int32_t>(engine() % 2));
    SCOPED_TRACE(offset);
    cubic_window window{{6, 6, 6}, true, 6};
    expect_twins(window, coordinates, batch);
    window.origin = {{offset + 10.0, static_cast<double>(offset), offset - 5.0}};
    partition_bounds bounds;
    bounds.batch_items = 2;
    bounds.box = coordinate_box{};
    bounds.box->lower.fill(offset);
    bounds.box->upper.fill(offset + 299.0);
    expect_twins(window, coordinates, batch, bounds);
  }
}

TEST(cubic_partition, of_strided_rows) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points points(3000, 2, 10, 12);
  floats rows;  // x, y, z, intensity
  for (std::int64_t i = 0; i < points.tokens(); ++i) {
    rows.insert(rows.end(), points.coordinates.begin() + 3 * i,
                points.coordinates.begin() + 3 * i + 3);
    rows.push_back(std::numeric_limits<float>::quiet_NaN());
  }
  const device_array<float> memory(rows);
  const device_array<std::int32_t> batch(points.batch);
  tensor_view<const float, 2> view(memory.data(), {points.tokens(), 3});
  view.stride[0] = 4;
  const cubic_window window{{1, 1, 1}, false, 24};
  const device_partition result(shape_of(window, points.tokens()));
  build_on_device(window, point_set{view, batch.data(), nullptr}, {}, result);
  const auto host = partition_points(window, points.view());
  expect_same_partition(result.read().view(), host.view());
}

/// Is the token so near to a border of a cell or position that atan2 decides?
bool near_a_border(const float* at, const float* origin, const spherical_window& window) {
  for (int a = 0; a < 3; ++a) {
    const double u =
        (static_cast<double>(at[a]) - origin[a]) / window.size[a] + (window.shifted ? 0.5 : 0.0);
    const double fine = u * window.quant_length;
    // A few units in the last place of the angle, seen in cells.
    const double slack = 2e-4 / window.size[a] * window.quant_length;
    if (std::fabs(fine - std::nearbyint(fine)) < slack) return true;
  }
  return false;
}

void expect_spherical_twins(const spherical_window& window, const floats& coordinates,
                            const ints& batch) {
  const device_points<float> points(coordinates, batch);
  const device_partition result(shape_of(window, points.capacity()));
  build_on_device(window, points.view(), box_of(coordinates, batch), result);
  ASSERT_FALSE(::testing::Test::HasFatalFailure());
  const auto read = result.read();
  const partition& device = read.view();
  expect_sound(device);
  EXPECT_EQ(device.counts->flags, 0u);
  const point_set on_host = host_points(coordinates, batch);
  const auto twin = partition_points(window, on_host);
  const partition& host = twin.view();
  const std::int64_t tokens = points.capacity();
  floats at(static_cast<std::size_t>(3 * tokens));
  WINNOW_ASSERT_OK(
      reference::spherical_coordinates(on_host, tensor_view<float, 2>(at.data(), {tokens, 3})));
  float origin[3] = {1e30f, 1e30f, 1e30f};
  for (std::size_t i = 0; i < at.size(); ++i) origin[i % 3] = std::min(origin[i % 3], at[i]);
  for (int a = 0; window.origin && a < 3; ++a)
    origin[a] = static_cast<float>((*window.origin)[static_cast<std::size_t>(a)]);

  ASSERT_EQ(device.counts->tokens, tokens);
  ASSERT_EQ(device.counts->assigned, tokens);
  std::vector<std::int64_t> slot_of(static_cast<std::size_t>(tokens));
  for (std::int64_t slot = 0; slot < tokens; ++slot)
    slot_of[static_cast<std::size_t>(device.order[slot])] = slot;
  std::map<std::int32_t, std::int32_t> window_of;  // first host slot -> first device slot
  std::int64_t left_out = 0;
  std::int32_t last_window = -1;
  for (std::int64_t slot = 0; slot < tokens; ++slot) {
    const std::int32_t token = host.order[slot];
    if (near_a_border(at.data() + 3 * std::int64_t{token}, origin, window)) {
      ++left_out;
      continue;
    }
    const std::int64_t other = slot_of[static_cast<std::size_t>(token)];
    ASSERT_EQ(device.position[other], host.position[slot]) << "token " << token;
    ASSERT_EQ(device.radius[other], host.radius[slot]) << "token " << token;
    const auto known = window_of.emplace(host.bounds[2 * slot], device.bounds[2 * other]);
    ASSERT_EQ(known.first->second, device.bounds[2 * other]) << "token " << token;
    // Windows come in the same order.
    ASSERT_GE(known.first->second, last_window);
    last_window = known.first->second;
  }
  EXPECT_LE(left_out, tokens / 8 + 8) << "the test leaves out too much";
}

TEST(spherical_partition, equals_the_host_but_on_borders) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points points(60000, 3, 60, 13);
  for (const bool shifted : {false, true})
    for (const bool wrap : {false, true}) {
      spherical_window window{{2, 2, 80}, shifted, 24, 0.0125f};
      window.wrap_theta = wrap;
      SCOPED_TRACE(::testing::Message() << "shifted " << shifted << ", wrap " << wrap);
      expect_spherical_twins(window, points.coordinates, points.batch);
      window.size = {11.25f, 7, 15};
      window.origin = {{0.0, 3.0, -1.0}};
      expect_spherical_twins(window, points.coordinates, points.batch);
    }
}

TEST(spherical_partition, of_points_on_the_axes) {
  WINNOW_SKIP_WITHOUT_GPU();
  floats coordinates;
  for (const float x : {-1.0f, -0.0f, 0.0f, 1.0f})
    for (const float y : {-1.0f, -0.0f, 0.0f, 1.0f})
      for (const float z : {-1.0f, -0.0f, 0.0f, 1.0f})
        coordinates.insert(coordinates.end(), {x, y, z});
  spherical_window window{{7, 7, 80}, false, 24, 0.0125f};
  window.origin = {{-0.3, -0.3, -0.3}};
  expect_spherical_twins(window, coordinates, {});
}

TEST(joint_build, equals_separate_builds) {
  WINNOW_SKIP_WITHOUT_GPU();
  const random_points random(50000, 4, 60, 14);
  const device_points<float> points(random.coordinates, random.batch);
  const std::vector<std::variant<cubic_window, spherical_window>> windows{
      cubic_window{{0.3f, 0.3f, 0.3f}, false, 24}, spherical_window{{2, 2, 80}, false, 24, 0.0125f},
      cubic_window{{1e-4f, 1e-4f, 1e-4f}, true, 24},  // wide keys beside narrow ones
      cubic_window{{200, 200, 200}, true, 24}, spherical_window{{1.5f, 3, 10}, true, 8, 0.05f}};
  for (const bool bounded : {false, true}) {
    const auto bounds = bounded ? box_of(random.coordinates, random.batch) : partition_bounds{};
    std::vector<device_partition> joint;
    std::vector<device_partition> separate;
    std::vector<point_partition> items;
    for (const auto& window : windows)
      std::visit(
          [&](const auto& w) {
            joint.emplace_back(shape_of(w, points.capacity()));
            separate.emplace_back(shape_of(w, points.capacity()));
            build_on_device(w, points.view(), bounds, separate.back());
          },
          window);
    for (std::size_t i = 0; i < windows.size(); ++i) items.push_back({windows[i], joint[i].view()});
    const int count = static_cast<int>(items.size());
    device_array<std::byte> workspace(static_cast<std::int64_t>(
        build_partitions_workspace_bytes(items.data(), count, points.view(), bounds)));
    const device_stream stream;
    WINNOW_ASSERT_OK(build_partitions(items.data(), count, points.view(), bounds, workspace.data(),
                                      workspace.bytes(), stream));
    stream.synchronize();
    EXPECT_TRUE(workspace.guards_intact());
    for (std::size_t i = 0; i < windows.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_TRUE(joint[i].guards_intact());
      expect_same_partition(joint[i].read().view(), separate[i].read().view());
    }
  }
}

}  // namespace
}  // namespace winnow::test
