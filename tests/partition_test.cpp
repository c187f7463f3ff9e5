// SPDX-License-Identifier: Apache-2.0
// Host builders of partitions against a map of windows that is filled token by token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "support/partitions.hpp"

namespace winnow::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// What a partition should say, independent of how it is built: windows in key order, tokens in
/// the caller's order inside a window.
struct expected_partition {
  std::vector<std::vector<std::int32_t>> windows;
  std::vector<std::int32_t> unassigned;
};

void expect_same(const partition& actual, const expected_partition& expected) {
  std::int32_t slot = 0;
  std::int32_t largest = 0;
  ASSERT_EQ(actual.counts->windows, static_cast<std::int32_t>(expected.windows.size()));
  for (std::size_t w = 0; w < expected.windows.size(); ++w) {
    const auto& tokens = expected.windows[w];
    const std::int32_t first = slot;
    const auto last = first + static_cast<std::int32_t>(tokens.size());
    ASSERT_EQ(actual.offsets[w], first);
    largest = std::max(largest, last - first);
    for (std::int32_t token : tokens) {
      ASSERT_EQ(actual.order[slot], token) << "slot " << slot;
      ASSERT_EQ(actual.bounds[2 * slot], first);
      ASSERT_EQ(actual.bounds[2 * slot + 1], last);
      ++slot;
    }
  }
  ASSERT_EQ(actual.offsets[expected.windows.size()], slot);
  ASSERT_EQ(actual.counts->assigned, slot);
  ASSERT_EQ(actual.counts->largest, largest);
  for (std::int32_t token : expected.unassigned) {
    ASSERT_EQ(actual.order[slot], token);
    ASSERT_EQ(actual.bounds[2 * slot], slot);
    ASSERT_EQ(actual.bounds[2 * slot + 1], slot);
    ++slot;
  }
  ASSERT_EQ(actual.counts->tokens, slot);
}

struct cubic_case {
  std::string name;
  std::int64_t tokens;
  int batch_items;
  float extent;
  std::array<float, 3> size;
  bool shifted;
  int quant_length;
  std::optional<std::array<double, 3>> origin;
  friend std::ostream& operator<<(std::ostream& out, const cubic_case& c) { return out << c.name; }
};

class CubicPartition : public ::testing::TestWithParam<cubic_case> {};

TEST_P(CubicPartition, EqualsTheFormula) {
  const cubic_case& c = GetParam();
  const random_points points(c.tokens, c.batch_items, c.extent, 7);
  const cubic_window window{c.size, c.shifted, c.quant_length, c.origin};
  const auto built = partition_points(window, points.view());

  std::array<float, 3> origin{};
  for (int a = 0; a < 3; ++a) {
    float low = std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < c.tokens; ++i) low = std::min(low, points.coordinates[3 * i + a]);
    origin[a] = c.origin ? static_cast<float>((*c.origin)[a]) : low;
  }
  std::map<std::array<int, 4>, std::vector<std::int32_t>> windows;
  std::vector<std::array<int, 3>> positions;
  for (std::int64_t i = 0; i < c.tokens; ++i) {
    std::array<int, 3> cell{};
    std::array<int, 3> position{};
    for (int a = 0; a < 3; ++a) {
      const float moved = points.coordinates[3 * i + a] - origin[a];
      const float u = (moved + (c.shifted ? c.size[a] / 2 : 0.0f)) / c.size[a];
      cell[a] = static_cast<int>(std::floor(u));
      const float fraction = u - static_cast<float>(cell[a]);
      position[a] = std::min(c.quant_length - 1,
                             static_cast<int>(fraction * static_cast<float>(c.quant_length)));
    }
    positions.push_back(position);
    windows[{points.batch[i], cell[2], cell[1], cell[0]}].push_back(static_cast<std::int32_t>(i));
  }
  expected_partition expected;
  for (const auto& [key, tokens] : windows) expected.windows.push_back(tokens);
  expect_same(built.view(), expected);
  for (std::int32_t slot = 0; slot < built.counts().tokens; ++slot)
    for (int a = 0; a < 3; ++a)
      ASSERT_EQ(unpack_position(built.view().position[slot], a),
                positions[built.view().order[slot]][a]);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CubicPartition,
    ::testing::Values(cubic_case{"one", 1, 1, 1.0f, {1, 1, 1}, false, 4, {}},
                      cubic_case{"few", 100, 3, 1.0f, {0.5f, 0.7f, 0.9f}, false, 24, {}},
                      cubic_case{"shifted", 1000, 2, 4.0f, {0.5f, 0.5f, 0.5f}, true, 24, {}},
                      cubic_case{"origin", 1000, 2, 4.0f, {1, 1, 1}, false, 16, {{-2.0, 1.0, 0.1}}},
                      cubic_case{"together", 5000, 1, 1.0f, {10, 10, 10}, false, 256, {}},
                      cubic_case{"alone", 5000, 4, 100.0f, {0.001f, 0.001f, 0.001f}, true, 1, {}},
                      cubic_case{"many", 50000, 7, 30.0f, {0.3f, 0.3f, 0.3f}, false, 24, {}}),
    [](const auto& shape) { return shape.param.name; });

TEST(CubicPartition, PlacesTokensOnBordersAndFarFromTheOrigin) {
  // Exact in float: cells of 0.5 seen from 1024 and from a million.
  const std::vector<float> coordinates = {1024.0f, 0,           0, 1024.5f,    0,           0,
                                          1023.5f, 0,           0, 1000000.0f, 0,           0,
                                          1024.0f, -1048576.0f, 0, 1024.25f,   0.49999997f, 0};
  point_set points;
  points.coordinates = tensor_view<const float, 2>(coordinates.data(), {6, 3});
  const auto built =
      partition_points(cubic_window{{0.5f, 0.5f, 0.5f}, false, 8, {{1024.0, 0.0, 0.0}}}, points);
  // y = -1048576 comes first; then x = 1023.5 (cell -1), 1024 and 1024.25 (0), 1024.5 (1), 10⁶.
  expect_same(built.view(), {{{4}, {2}, {0, 5}, {1}, {3}}, {}});
  EXPECT_EQ(unpack_position(built.view().position[3], 0), 4);
  EXPECT_EQ(unpack_position(built.view().position[3], 1), 7);
}

TEST(CubicPartition, IntegerCoordinatesSubtractTheOriginExactly) {
  constexpr std::int32_t far = 2000000001;  // not a float
  const std::vector<std::int32_t> coordinates = {far,     -far, 0, far + 1, -far, 0,
                                                 far + 2, -far, 0, far + 5, -far, 0};
  point_set points;
  points.coordinates = tensor_view<const std::int32_t, 2>(coordinates.data(), {4, 3});
  const auto built = partition_points(cubic_window{{2, 2, 2}, false, 2, {}}, points);
  expect_same(built.view(), {{{0, 1}, {2}, {3}}, {}});
  const auto given = partition_points(
      cubic_window{{2, 2, 2}, false, 2, {{double{far} - 1, double{-far}, 0.0}}}, points);
  expect_same(given.view(), {{{0}, {1, 2}, {3}}, {}});
}

TEST(CubicPartition, ReadsStridedCoordinatesAndFewerTokens) {
  const random_points points(300, 2, 2.0f, 9);
  std::vector<float> records(5 * 300, std::numeric_limits<float>::quiet_NaN());
  for (int i = 0; i < 300; ++i)
    for (int a = 0; a < 3; ++a) records[5 * i + a] = points.coordinates[3 * i + a];
  tensor_layout<2> layout;
  layout.shape[0] = 300, layout.shape[1] = 3, layout.stride[0] = 5, layout.stride[1] = 1;
  const std::int32_t fewer = 123;
  const cubic_window window{{0.5f, 0.5f, 0.5f}, false, 4, {}};
  const auto strided = partition_points(
      window, {tensor_view<const float, 2>(records.data(), layout), points.batch.data(), &fewer});
  point_set first = points.view();
  first.coordinates.shape[0] = fewer;
  const auto packed = partition_points(window, first);
  ASSERT_EQ(strided.counts().tokens, fewer);
  for (int slot = 0; slot < fewer; ++slot)
    ASSERT_EQ(strided.view().order[slot], packed.view().order[slot]);
}

TEST(CubicPartition, DoesNotDependOnTheNumberOfThreads) {
  const random_points points(40000, 3, 20.0f, 11);
  const cubic_window window{{0.4f, 0.4f, 0.4f}, true, 24, {}};
  reference::host_partition one(shape_of(window, 40000));
  WINNOW_ASSERT_OK(reference::build_partition(window, points.view(), one.view(), 1));
  for (int threads : {2, 3, 8}) {
    reference::host_partition many(shape_of(window, 40000));
    WINNOW_ASSERT_OK(reference::build_partition(window, points.view(), many.view(), threads));
    for (int slot = 0; slot < 40000; ++slot) {
      ASSERT_EQ(one.view().order[slot], many.view().order[slot]);
      ASSERT_EQ(one.view().position[slot], many.view().position[slot]);
    }
  }
}

TEST(SphericalPartition, EqualsTheFormulaAwayFromBorders) {
  const random_points points(20000, 2, 40.0f, 13);
  const spherical_window window{{2.0f, 2.0f, 20.0f}, true, 24, 0.0125f, {}, false};
  const auto built = partition_points(window, points.view());
  std::vector<float> sphere(3 * 20000);
  WINNOW_ASSERT_OK(reference::spherical_coordinates(
      points.view(), tensor_view<float, 2>(sphere.data(), {20000, 3})));
  std::array<double, 3> origin{1e9, 1e9, 1e9};
  constexpr double degrees = 57.295779513082320877;
  for (int i = 0; i < 20000; ++i) {
    const double x = points.coordinates[3 * i];
    const double y = points.coordinates[3 * i + 1];
    const double z = points.coordinates[3 * i + 2];
    EXPECT_NEAR(sphere[3 * i], std::atan2(y, x) * degrees + 180.0, 4e-5);
    EXPECT_NEAR(sphere[3 * i + 1], std::atan2(std::hypot(x, y), z) * degrees, 4e-5);
    EXPECT_NEAR(sphere[3 * i + 2], std::sqrt(x * x + y * y + z * z), 1e-5);
    for (int a = 0; a < 3; ++a) origin[a] = std::min<double>(origin[a], sphere[3 * i + a]);
  }
  // Tokens of one window share their cell; windows come in (batch, z, y, x) order.
  std::array<int, 4> previous{-1, 0, 0, 0};
  for (int w = 0; w < built.counts().windows; ++w) {
    std::array<int, 4> cell{};
    for (int slot = built.view().offsets[w]; slot < built.view().offsets[w + 1]; ++slot) {
      const int token = built.view().order[slot];
      std::array<int, 4> mine{points.batch[token], 0, 0, 0};
      bool near_border = false;
      for (int a = 0; a < 3; ++a) {
        const double u = (sphere[3 * token + a] - origin[a]) / window.size[a] + 0.5;
        near_border = near_border || std::fabs(u - std::nearbyint(u)) < 1e-4;
        mine[3 - a] = static_cast<int>(std::floor(u));
      }
      EXPECT_EQ(built.view().radius[slot], sphere[3 * token + 2]);
      if (near_border) continue;
      if (cell != std::array<int, 4>{}) {
        EXPECT_EQ(mine, cell);
      }
      cell = mine;
    }
    if (cell == std::array<int, 4>{}) continue;
    EXPECT_LT(previous, cell);
    previous = cell;
  }
}

TEST(SphericalPartition, WrapJoinsBothSidesOfTheirSeam) {
  // Three tokens around theta = 0°/360° and one opposite; 36 windows of 10°, shifted by 5°.
  const std::vector<float> coordinates = {-1.0f, 0.01f, 0.0f, -1.0f, -0.01f, 0.0f,
                                          -1.0f, 0.02f, 0.0f, 1.0f,  0.0f,   0.0f};
  point_set points;
  points.coordinates = tensor_view<const float, 2>(coordinates.data(), {4, 3});
  const auto origin = std::array<double, 3>{0.0, 0.0, 0.0};
  const auto open = partition_points(
      spherical_window{{10.0f, 30.0f, 10.0f}, true, 4, 0.1f, origin, false}, points);
  expect_same(open.view(), {{{1}, {3}, {0, 2}}, {}});
  const auto joined = partition_points(
      spherical_window{{10.0f, 30.0f, 10.0f}, true, 4, 0.1f, origin, true}, points);
  expect_same(joined.view(), {{{0, 1, 2}, {3}}, {}});
}

TEST(LabelsPartition, OrdersByLabelAndKeepsTheRestBehind) {
  const std::vector<std::int32_t> labels = {7, -1, 3, 7, std::numeric_limits<int>::max(), -9, 3, 0};
  const std::vector<std::int32_t> positions = {0, 1, 2, 0, 0, 0, 3, 3, 3, 1, 1, 1,
                                               2, 2, 2, 0, 0, 0, 1, 0, 3, 0, 0, 0};
  label_set set;
  set.labels = labels.data();
  set.tokens = 8;
  set.positions = positions.data();
  const auto built = partition_labels({4, 0.0f}, set);
  expect_same(built.view(), {{{7}, {2, 6}, {0, 3}, {4}}, {1, 5}});
  EXPECT_EQ(built.view().position[3], pack_position(0, 1, 2));
  EXPECT_EQ(built.view().position[2], pack_position(1, 0, 3));
}

TEST(LabelsPartition, AllTokensInNoWindow) {
  const std::vector<std::int32_t> labels(5, -1);
  label_set set;
  set.labels = labels.data();
  set.tokens = 5;
  expect_same(partition_labels({}, set).view(), {{}, {0, 1, 2, 3, 4}});
}

struct grid_case {
  grid_window grid;
  bool select;
  friend std::ostream& operator<<(std::ostream& out, const grid_case& c) {
    return out << c.grid.batch << "x" << c.grid.height << "x" << c.grid.width << " window "
               << c.grid.window << " shift " << c.grid.shift << (c.select ? " selected" : "");
  }
};

class GridPartition : public ::testing::TestWithParam<grid_case> {};

TEST_P(GridPartition, EqualsTheRolledImage) {
  const grid_window& grid = GetParam().grid;
  const bool select = GetParam().select;
  const int per_image = static_cast<int>(grid.windows_per_image());
  const int kept = select ? per_image / 2 : per_image;
  std::vector<std::int32_t> ids;
  for (int b = 0; b < grid.batch; ++b)
    for (int i = 0; i < kept; ++i) ids.push_back(select ? per_image - 1 - (i + b) % per_image : i);
  const window_selection selection = uniform_selection(grid.batch, per_image, kept, ids.data());
  const auto built = partition_grid(grid, select ? &selection : nullptr);

  const auto roll = [&](int at, int extent) { return (at + grid.shift) % extent; };
  const auto side = [&](int at, int extent) {
    // Swin's three bands of the rolled image: inside, last window before the seam, behind it.
    return at < extent - grid.window ? 0 : at < extent - grid.shift ? 1 : 2;
  };
  expected_partition expected;
  std::vector<bool> computed(static_cast<std::size_t>(grid.tokens()));
  std::size_t slot = 0;
  for (int b = 0; b < grid.batch; ++b) {
    for (int i = 0; i < kept; ++i) {
      const int id = ids[b * kept + i];
      auto& tokens = expected.windows.emplace_back();
      const int columns = grid.width / grid.window;
      std::vector<int> bands;
      const std::size_t first = slot;
      for (int dy = 0; dy < grid.window; ++dy)
        for (int dx = 0; dx < grid.window; ++dx, ++slot) {
          const int y = id / columns * grid.window + dy;
          const int x = id % columns * grid.window + dx;
          tokens.push_back((b * grid.height + roll(y, grid.height)) * grid.width +
                           roll(x, grid.width));
          computed[tokens.back()] = true;
          bands.push_back(3 * side(y, grid.height) + side(x, grid.width));
          EXPECT_EQ(unpack_position(built.view().position[slot], 0), dx);
          EXPECT_EQ(unpack_position(built.view().position[slot], 1), dy);
        }
      if (grid.shift == 0) bands.assign(bands.size(), 0);
      // Same band if and only if same region.
      for (std::size_t s = 0; s < bands.size(); ++s)
        for (std::size_t t = 0; t < bands.size(); ++t)
          ASSERT_EQ(bands[s] == bands[t], unpack_position(built.view().position[first + s], 2) ==
                                              unpack_position(built.view().position[first + t], 2));
    }
  }
  for (std::int32_t token = 0; token < grid.tokens(); ++token)
    if (!computed[token]) expected.unassigned.push_back(token);
  expect_same(built.view(), expected);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GridPartition,
    ::testing::Values(grid_case{{1, 7, 7, 7, 0}, false}, grid_case{{1, 7, 7, 7, 3}, false},
                      grid_case{{2, 14, 21, 7, 3}, false}, grid_case{{2, 14, 21, 7, 3}, true},
                      grid_case{{3, 8, 4, 2, 1}, true}, grid_case{{1, 5, 3, 1, 0}, true},
                      grid_case{{0, 14, 14, 7, 3}, false}));

TEST(GridPartition, TakesARaggedSelection) {
  std::vector<std::int32_t> ids = {3, 1, 0};
  std::vector<std::int32_t> offsets = {0, 2, 2, 3};
  const grid_window grid{3, 4, 4, 2, 0};
  const window_selection kept = ragged_selection(3, 4, ids.data(), offsets.data());
  const auto built = partition_grid(grid, &kept);
  ASSERT_EQ(built.counts().windows, 3);
  EXPECT_EQ(built.view().order[0], 10);
  EXPECT_EQ(built.view().order[4], 2);
  EXPECT_EQ(built.view().order[8], 32);
  EXPECT_EQ(built.counts().assigned, 12);
  EXPECT_EQ(built.view().order[12], 0);
}

TEST(Partition, ZeroTokens) {
  point_set none;
  none.coordinates = tensor_view<const float, 2>(nullptr, {0, 3});
  expect_same(partition_points(cubic_window{{1, 1, 1}, false, 4, {}}, none).view(), {});
  expect_same(partition_points(spherical_window{{1, 1, 1}, false, 4, 0.1f, {}, false}, none).view(),
              {});
  expect_same(partition_labels({}, {}).view(), {});
}

TEST(Partition, MemoryIsAtMost24BytesAToken) {
  const spherical_window window{{1, 1, 1}, false, 24, 0.1f, {}, false};
  constexpr std::int64_t tokens = 1000000;
  EXPECT_LE(partition_bytes(shape_of(window, tokens)), std::size_t{24} * tokens + 4096);
  EXPECT_EQ(partition_bytes({-1, 0, {}}), 0u);
  EXPECT_EQ(partition_bytes({std::int64_t{1} << 31, 0, {}}), 0u);
}

TEST(Partition, BindChecksTheMemory) {
  partition bound;
  alignas(256) std::byte memory[4096];
  const partition_shape shape{4, 4, {}};
  const auto message = [&](void* at, std::size_t bytes) {
    return std::string(bind_partition(shape, at, bytes, bound).message());
  };
  EXPECT_THAT(message(nullptr, 4096), HasSubstr("memory: is null"));
  EXPECT_THAT(message(memory + 4, 4092), HasSubstr("aligned to 16"));
  EXPECT_EQ(bind_partition(shape, memory, 10, bound).code(), status_code::workspace_too_small);
  EXPECT_THAT(message(memory, 10), HasSubstr("bytes: 10, the partition needs"));
  EXPECT_EQ(bound.order, nullptr);
  WINNOW_ASSERT_OK(bind_partition(shape, memory, sizeof memory, bound));
  EXPECT_EQ(static_cast<void*>(bound.counts), memory);
}

/// Builds from three tokens after `change` has spoiled something; nothing may be written.
template <class Change>
void expect_rejected(Change&& change, const std::string& words) {
  std::vector<float> coordinates = {0, 0, 0, 1, 1, 1, 2, 2, 2};
  std::vector<std::int32_t> batch = {0, 0, 0};
  point_set points;
  points.coordinates = tensor_view<const float, 2>(coordinates.data(), {3, 3});
  points.batch = batch.data();
  cubic_window cubic{{1, 1, 1}, false, 4, {}};
  spherical_window spherical{{10, 10, 10}, false, 4, 0.1f, {}, false};
  reference::host_partition for_cubic(shape_of(cubic, 3));
  reference::host_partition for_spherical(shape_of(spherical, 3));
  partition result = for_cubic.view();
  std::fill_n(result.order, 3, -77);
  std::fill_n(for_spherical.view().order, 3, -77);
  const bool use_spherical = change(coordinates, batch, points, cubic, spherical, result);
  const status built = use_spherical
                           ? reference::build_partition(spherical, points, for_spherical.view())
                           : reference::build_partition(cubic, points, result);
  EXPECT_EQ(built.code(), status_code::invalid_argument) << words;
  EXPECT_THAT(built.message(), HasSubstr(words));
  EXPECT_THAT(std::vector<int>(for_cubic.view().order, for_cubic.view().order + 3),
              ElementsAre(-77, -77, -77));
  EXPECT_THAT(std::vector<int>(for_spherical.view().order, for_spherical.view().order + 3),
              ElementsAre(-77, -77, -77));
}

#define WINNOW_REJECTS(words, use_spherical, ...)                                   \
  expect_rejected(                                                                  \
      [](auto& coordinates, auto& batch, point_set& points, cubic_window& cubic,    \
         spherical_window& spherical, partition& result) {                          \
        (void)coordinates, (void)batch, (void)points, (void)cubic, (void)spherical; \
        (void)result;                                                               \
        __VA_ARGS__;                                                                \
        return use_spherical;                                                       \
      },                                                                            \
      words)

TEST(Partition, NamesWhatIsWrong) {
  constexpr static float infinity = std::numeric_limits<float>::infinity();
  WINNOW_REJECTS("coordinates: token 1 is (1, nan, 1)", false,
                 coordinates[4] = std::numeric_limits<float>::quiet_NaN());
  WINNOW_REJECTS("coordinates: token 2 is (inf", true, coordinates[6] = infinity);
  WINNOW_REJECTS("batch: token 2 has batch id -4", false, batch[2] = -4);
  WINNOW_REJECTS("coordinates: token 1 lies 2^30", false, coordinates[3] = 1e20f);
  WINNOW_REJECTS("must be fewer than 2^63", false,
                 coordinates = {0, 0, 0, 1e9f, 1e9f, 1e9f, 2, 2, 2});
  WINNOW_REJECTS("radius of token 1 overflows", true, coordinates[3] = 3e38f);
  WINNOW_REJECTS("coordinates: is null", false, points.coordinates.data = nullptr);
  WINNOW_REJECTS("must be [N, 3]", false, points.coordinates.shape[1] = 2);
  WINNOW_REJECTS("shape[0] is -1", false, points.coordinates.shape[0] = -1);
  WINNOW_REJECTS("innermost stride is 2", false, points.coordinates.stride[1] = 2);
  WINNOW_REJECTS("dtype is float16", false, points.coordinates.type = dtype::float16);
  WINNOW_REJECTS("quant_length: 0", false, cubic.quant_length = 0);
  WINNOW_REJECTS("quant_length: 257", true, spherical.quant_length = 257);
  WINNOW_REJECTS("size: 0 on axis 1", false, cubic.size[1] = 0.0f);
  WINNOW_REJECTS("size: -1 on axis 0", true, spherical.size[0] = -1.0f);
  WINNOW_REJECTS("size: nan on axis 2", false,
                 cubic.size[2] = std::numeric_limits<float>::quiet_NaN());
  WINNOW_REJECTS("exponential_a: 0", true, spherical.exponential_a = 0.0f);
  WINNOW_REJECTS("360 must be a multiple", true, spherical.size[0] = 7.0f;
                 spherical.wrap_theta = true);
  WINNOW_REJECTS("origin: inf on axis 0", false,
                 cubic.origin = std::array<double, 3>{double{infinity}, 0, 0});
  WINNOW_REJECTS("result: has no memory", false, result.order = nullptr);
  WINNOW_REJECTS("result: was bound for other positions", false, cubic.quant_length = 5);
  WINNOW_REJECTS("result: has room for 2 tokens, needs 3", false, result.max_tokens = 2);
  WINNOW_REJECTS("result: has room for 1 windows, the tokens lie in 3", false,
                 result.max_windows = 1);
}

TEST(LabelsPartition, NamesWhatIsWrong) {
  std::vector<std::int32_t> labels = {0, 0, 1};
  std::vector<std::int32_t> positions = {0, 0, 0, 1, 1, 1, 2, 2, 2};
  std::vector<float> radius = {1.0f, 2.0f, 3.0f};
  const auto message = [&](int quant_length, float a, bool with_positions) {
    label_set set;
    set.labels = labels.data();
    set.tokens = 3;
    set.positions = with_positions ? positions.data() : nullptr;
    set.radius = radius.data();
    const labels_window window{quant_length, a};
    reference::host_partition result(shape_of(window, set));
    return std::string(reference::build_partition(window, set, result.view()).message());
  };
  EXPECT_EQ(message(3, 0.1f, true), "");
  EXPECT_THAT(message(2, 0.1f, true), HasSubstr("positions: token 2 has 2 on axis 0"));
  EXPECT_THAT(message(0, 0.1f, true), HasSubstr("quant_length: 0"));
  EXPECT_THAT(message(3, -0.1f, true), HasSubstr("exponential_a: -0.1"));
  EXPECT_THAT(message(3, 0.1f, false), HasSubstr("radius: is given without positions"));
  radius[1] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(message(3, 0.1f, true), HasSubstr("radius: token 1 has inf"));
}

TEST(GridPartition, NamesWhatIsWrong) {
  const auto message = [](grid_window grid, std::vector<std::int32_t> ids, std::int64_t windows) {
    reference::host_partition result(shape_of(grid_window{1, 4, 4, 2, 0}));
    const auto kept = static_cast<std::int64_t>(ids.size());
    const window_selection selection = uniform_selection(1, windows, kept, ids.data());
    return std::string(reference::build_partition(grid, &selection, result.view()).message());
  };
  EXPECT_EQ(message({1, 4, 4, 2, 0}, {3, 0}, 4), "");
  EXPECT_THAT(message({1, 5, 4, 2, 0}, {0}, 4), HasSubstr("grid.height: 5"));
  EXPECT_THAT(message({1, 4, 3, 2, 0}, {0}, 4), HasSubstr("grid.width: 3"));
  EXPECT_THAT(message({1, 4, 4, 0, 0}, {0}, 4), HasSubstr("grid.window: 0"));
  EXPECT_THAT(message({1, 4, 4, 2, 2}, {0}, 4), HasSubstr("grid.shift: 2"));
  EXPECT_THAT(message({2, 4, 4, 2, 0}, {0}, 4), HasSubstr("selects from 1 images"));
  EXPECT_THAT(message({1, 4, 4, 2, 0}, {0}, 5), HasSubstr("selects from 5 windows"));
  EXPECT_THAT(message({1, 4, 4, 2, 0}, {4}, 4), HasSubstr("window id 4 of image 0"));
  EXPECT_THAT(message({1, 4, 4, 2, 0}, {1, 1}, 4), HasSubstr("appears twice"));
  EXPECT_THAT(message({1, 8, 8, 2, 0}, {1}, 16), HasSubstr("room for 16 tokens, needs 64"));
  EXPECT_THAT(message({2000000000, 4, 4, 2, 0}, {1}, 4), HasSubstr("fewer than 2^31"));
}

}  // namespace
}  // namespace winnow::test
