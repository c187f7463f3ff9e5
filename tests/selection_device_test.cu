// SPDX-License-Identifier: Apache-2.0
// Selection on the GPU against the host twins.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "support/device_partition.hpp"
#include "winnow/reference.hpp"

namespace winnow::test {
namespace {

using floats = std::vector<float>;
using ints = std::vector<std::int32_t>;
using bytes = std::vector<std::uint8_t>;

const grid_window some_grids[] = {
    {1, 7, 7, 7, 0},   {4, 168, 168, 7, 0}, {2, 168, 168, 7, 3},     {3, 30, 45, 7, 3},
    {2, 5, 100, 8, 5}, {1, 3, 2, 7, 6},     {2, 300, 300, 256, 100}, {5, 20, 20, 1, 0},
    {0, 7, 7, 7, 0},   {3, 0, 7, 7, 2},     {2, 64, 48, 4, 1},
};

std::string name_of(const grid_window& grid) {
  return std::to_string(grid.batch) + " x " + std::to_string(grid.height) + " x " +
         std::to_string(grid.width) + ", window " + std::to_string(grid.window) + ", shift " +
         std::to_string(grid.shift);
}

/// Importance on both sides of random features in rows `row` elements apart.
template <class T>
void expect_importance(const grid_window& grid, std::int64_t channels, std::int64_t row) {
  SCOPED_TRACE(name_of(grid) + ", " + std::to_string(channels) + " channels, rows of " +
               std::to_string(row));
  const std::int64_t per_image = std::int64_t{grid.height} * grid.width;
  std::mt19937 engine(31);
  std::normal_distribution<float> normal;
  std::vector<T> features;
  for (std::int64_t i = 0; i < grid.batch * per_image * row; ++i)
    features.push_back(from_float<T>(normal(engine)));
  const device_array<T> memory(features);
  const auto view_of = [&](const T* data) {
    tensor_view<const T, 3> view(data, {grid.batch, per_image, channels});
    view.stride[1] = row;
    view.stride[0] = row * per_image;
    return view;
  };
  const std::int64_t windows = grid.windows_per_image();
  const device_array<float> importance(grid.batch * windows);
  const device_stream stream;
  WINNOW_ASSERT_OK(
      window_importance(grid, view_of(memory.data()),
                        tensor_view<float, 2>(importance.data(), {grid.batch, windows}), stream));
  stream.synchronize();
  EXPECT_TRUE(importance.guards_intact());
  floats host(static_cast<std::size_t>(grid.batch * windows));
  WINNOW_ASSERT_OK(reference::window_importance<double>(
      grid, view_of(features.data()), tensor_view<float, 2>(host.data(), {grid.batch, windows})));
  const floats device = importance.to_host();
  for (std::size_t i = 0; i < host.size(); ++i)
    ASSERT_NEAR(device[i], host[i], 1e-6f * host[i]) << "window " << i;
}

TEST(device_importance, equals_the_host) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const grid_window& grid : some_grids) {
    const std::int64_t channels = grid.height * grid.width > 20000 ? 96 : 40;
    expect_importance<half>(grid, channels, channels);
    expect_importance<bfloat16>(grid, 24, 32);
    expect_importance<float>(grid, 12, 12);
    expect_importance<half>(grid, 13, 13);  // no vectors
    expect_importance<half>(grid, 16, 17);  // rows at odd addresses
    expect_importance<bfloat16>(grid, 1, 1);
  }
  expect_importance<half>({1, 14, 14, 7, 3}, 768, 768);
  expect_importance<float>({1, 14, 14, 7, 3}, 3000, 3000);
  expect_importance<float>({1, 14, 14, 7, 3}, 1001, 1001);
}

TEST(device_importance, keeps_nan_and_infinity_in_their_windows) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window grid{1, 14, 14, 7, 0};
  floats features(14 * 14 * 8, -1.0f);
  features[0] = std::numeric_limits<float>::quiet_NaN();
  features[8 * 13] = -std::numeric_limits<float>::infinity();
  const device_array<float> memory(features);
  const device_array<float> importance(4);
  const device_stream stream;
  WINNOW_ASSERT_OK(window_importance(grid, tensor_view<const float, 3>(memory.data(), {1, 196, 8}),
                                     tensor_view<float, 2>(importance.data(), {1, 4}), stream));
  stream.synchronize();
  const floats found = importance.to_host();
  EXPECT_TRUE(std::isnan(found[0]));
  EXPECT_EQ(found[1], std::numeric_limits<float>::infinity());
  EXPECT_EQ(found[2], 7.0f);
  EXPECT_EQ(found[3], 7.0f);
}

/// Few distinct values, so that there are ties, and some that are no ordinary numbers.
floats random_importance(std::int64_t count, int distinct, std::uint32_t seed) {
  std::mt19937 engine(seed);
  floats values;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto draw = static_cast<int>(engine() % static_cast<unsigned>(distinct + 6));
    values.push_back(draw == distinct       ? std::numeric_limits<float>::quiet_NaN()
                     : draw == distinct + 1 ? -std::numeric_limits<float>::quiet_NaN()
                     : draw == distinct + 2 ? std::numeric_limits<float>::infinity()
                     : draw == distinct + 3 ? -std::numeric_limits<float>::infinity()
                     : draw == distinct + 4 ? -0.0f
                                            : static_cast<float>(draw) * 0.37f - 3.7f);
  }
  return values;
}

void expect_ranking(int images, std::int64_t windows, std::int64_t kept, std::int64_t row,
                    int distinct) {
  SCOPED_TRACE(std::to_string(images) + " images, " + std::to_string(kept) + " of " +
               std::to_string(windows));
  const floats values = random_importance(images * row, distinct, 32);
  const device_array<float> importance(values);
  const device_array<std::int32_t> ids(images * windows);
  tensor_view<const float, 2> on_device(importance.data(), {images, windows});
  tensor_view<const float, 2> on_host(values.data(), {images, windows});
  on_device.stride[0] = on_host.stride[0] = row;
  // Rows of the result are longer than what is kept.
  window_selection device{images, windows, ids.data(), nullptr, windows, kept};
  ints expected(static_cast<std::size_t>(images * windows));
  window_selection host = device;
  host.ids = expected.data();
  device_array<std::byte> workspace(
      static_cast<std::int64_t>(select_most_important_workspace_bytes(images, windows)));
  const device_stream stream;
  WINNOW_ASSERT_OK(
      select_most_important(on_device, device, workspace.data(), workspace.bytes(), stream));
  stream.synchronize();
  WINNOW_ASSERT_OK(reference::select_most_important(on_host, host));
  EXPECT_TRUE(workspace.guards_intact() && ids.guards_intact());
  const ints found = ids.to_host();
  for (int image = 0; image < images; ++image) {
    const std::int64_t first = image * windows;
    ASSERT_TRUE(same("ids", found.data() + first, expected.data() + first, kept));
    ASSERT_TRUE(is_poison(found.data(), first + kept, first + windows));
  }
}

TEST(device_ranking, equals_the_host) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const std::int64_t windows : {1, 31, 33, 576, 1025, 8192, 8193, 20000})
    for (const double ratio : {0.0, 0.6, 0.99})
      for (const int distinct : {1, 20, 1000000})
        expect_ranking(windows > 2000 ? 2 : 5, windows, kept_windows(windows, ratio), windows + 3,
                       distinct);
  expect_ranking(1, 30000, 17, 30000, 100);
  expect_ranking(4, 576, 0, 576, 5);
  expect_ranking(0, 576, 10, 576, 5);
  expect_ranking(70000, 3, 2, 3, 4);
}

/// A ragged selection in device memory that matches the host's.
template <class Select, class Reference>
void expect_ragged(int images, std::int64_t windows, std::size_t workspace_bytes, Select&& select,
                   Reference&& reference) {
  const device_array<std::int32_t> ids(images * windows);
  const device_array<std::int32_t> offsets(images + 1);
  device_array<std::byte> workspace(static_cast<std::int64_t>(workspace_bytes));
  const device_stream stream;
  WINNOW_ASSERT_OK(select(ragged_selection(images, windows, ids.data(), offsets.data()),
                          workspace.data(), workspace.bytes(), stream));
  stream.synchronize();
  EXPECT_TRUE(ids.guards_intact() && offsets.guards_intact() && workspace.guards_intact());
  ints host_ids(static_cast<std::size_t>(images * windows));
  ints host_offsets(static_cast<std::size_t>(images) + 1);
  WINNOW_ASSERT_OK(
      reference(ragged_selection(images, windows, host_ids.data(), host_offsets.data())));
  const ints found = ids.to_host();
  EXPECT_TRUE(same("offsets", offsets.to_host().data(), host_offsets.data(), images + 1));
  EXPECT_TRUE(same("ids", found.data(), host_ids.data(), host_offsets.back()));
  EXPECT_TRUE(is_poison(found.data(), host_offsets.back(), images * windows));
}

TEST(device_ragged_selection, equals_the_host) {
  WINNOW_SKIP_WITHOUT_GPU();
  for (const int images : {0, 1, 4, 300})
    for (const std::int64_t windows : {0, 1, 576, 4096, 5000}) {
      if (images * windows > 200000) continue;
      SCOPED_TRACE(std::to_string(images) + " x " + std::to_string(windows));
      const floats values = random_importance(images * windows, 20, 33);
      const device_array<float> importance(values);
      const tensor_view<const float, 2> on_host(values.data(), {images, windows});
      const tensor_view<const float, 2> on_device(importance.data(), {images, windows});
      for (const float threshold : {-std::numeric_limits<float>::infinity(), 0.0f, 2.9f,
                                    std::numeric_limits<float>::infinity()})
        expect_ragged(
            images, windows, select_above_workspace_bytes(images, windows),
            [&](const window_selection& result, void* memory, std::size_t size, cudaStream_t s) {
              return select_above(on_device, threshold, result, memory, size, s);
            },
            [&](const window_selection& result) {
              return reference::select_above(on_host, threshold, result);
            });
      bytes mask;
      for (std::size_t i = 0; i < values.size(); ++i)
        mask.push_back(values[i] > 0 ? static_cast<std::uint8_t>(i % 255 + 1) : 0);
      const device_array<std::uint8_t> device_mask(mask);
      expect_ragged(
          images, windows, select_window_mask_workspace_bytes(images, windows),
          [&](const window_selection& result, void* memory, std::size_t size, cudaStream_t s) {
            return select_window_mask(
                tensor_view<const std::uint8_t, 2>(device_mask.data(), {images, windows}), result,
                memory, size, s);
          },
          [&](const window_selection& result) {
            return reference::select_window_mask(
                tensor_view<const std::uint8_t, 2>(mask.data(), {images, windows}), result);
          });
    }
}

TEST(device_ragged_selection, of_token_masks) {
  WINNOW_SKIP_WITHOUT_GPU();
  std::mt19937 engine(34);
  for (const grid_window& grid : some_grids)
    for (const unsigned rarity : {1u, 60u, 100000u}) {
      SCOPED_TRACE(name_of(grid));
      const std::int64_t tokens = std::int64_t{grid.height} * grid.width;
      bytes mask;
      for (std::int64_t i = 0; i < grid.batch * tokens; ++i)
        mask.push_back(engine() % rarity == 0 ? 200 : 0);
      const device_array<std::uint8_t> device_mask(mask);
      expect_ragged(
          grid.batch, grid.windows_per_image(), select_token_mask_workspace_bytes(grid),
          [&](const window_selection& result, void* memory, std::size_t size, cudaStream_t s) {
            return select_token_mask(
                grid, tensor_view<const std::uint8_t, 2>(device_mask.data(), {grid.batch, tokens}),
                result, memory, size, s);
          },
          [&](const window_selection& result) {
            return reference::select_token_mask(
                grid, tensor_view<const std::uint8_t, 2>(mask.data(), {grid.batch, tokens}),
                result);
          });
    }
}

TEST(device_selection, from_features_to_the_partition_in_one_graph) {
  WINNOW_SKIP_WITHOUT_GPU();
  const grid_window grid{3, 56, 56, 7, 3};
  const std::int64_t windows = grid.windows_per_image();
  const std::int64_t kept = kept_windows(windows, 0.6);
  device_array<half> features(grid.tokens() * 32);
  const device_array<float> importance(grid.batch * windows);
  const device_array<std::int32_t> ids(grid.batch * kept);
  const tensor_view<const half, 3> view(features.data(), {grid.batch, 56 * 56, 32});
  const tensor_view<float, 2> map(importance.data(), {grid.batch, windows});
  const window_selection ranking = uniform_selection(grid.batch, windows, kept, ids.data());
  window_selection later;
  WINNOW_ASSERT_OK(prefix(ranking, kept / 2, later));
  device_partition first(shape_of(grid, &ranking));
  device_partition second(shape_of(grid, &later));
  const device_array<std::byte> workspace(
      static_cast<std::int64_t>(build_partition_workspace_bytes(grid, &ranking)));
  const device_stream stream;
  const captured_graph graph(stream, [&](cudaStream_t s) {
    WINNOW_ASSERT_OK(window_importance(grid, view, map, s));
    WINNOW_ASSERT_OK(select_most_important(map, ranking, nullptr, 0, s));
    WINNOW_ASSERT_OK(
        build_partition(grid, &ranking, first.view(), workspace.data(), workspace.bytes(), s));
    WINNOW_ASSERT_OK(
        build_partition(grid, &later, second.view(), workspace.data(), workspace.bytes(), s));
  });
  std::mt19937 engine(35);
  std::normal_distribution<float> normal;
  for (int frame = 0; frame < 3; ++frame) {
    SCOPED_TRACE(frame);
    std::vector<half> values;
    for (std::int64_t i = 0; i < features.size(); ++i)
      values.push_back(from_float<half>(normal(engine)));
    features.copy_from(values);
    first.poison();
    second.poison();
    graph.launch();
    stream.synchronize();
    // The ranking of the device's own importance: near ties are not what this test is about.
    const floats map_on_host = importance.to_host();
    ints ids_on_host(static_cast<std::size_t>(ids.size()));
    window_selection host = ranking;
    host.ids = ids_on_host.data();
    WINNOW_ASSERT_OK(reference::select_most_important(
        tensor_view<const float, 2>(map_on_host.data(), {grid.batch, windows}), host));
    expect_same_partition(first.read().view(), partition_grid(grid, &host).view());
    WINNOW_ASSERT_OK(prefix(host, kept / 2, host));
    expect_same_partition(second.read().view(), partition_grid(grid, &host).view());
  }
}

TEST(device_selection, rejects_bad_arguments_before_anything_is_written) {
  WINNOW_SKIP_WITHOUT_GPU();
  constexpr auto invalid = status_code::invalid_argument;
  const grid_window grid{2, 14, 14, 7, 0};
  const device_array<float> features(2 * 196 * 8);
  const device_array<float> importance(8);
  const device_array<std::int32_t> ids(8);
  const device_array<std::int32_t> offsets(3);
  const device_array<std::uint8_t> mask(2 * 196);
  const device_array<std::byte> workspace(1 << 20);
  const device_stream stream;
  const tensor_view<const float, 3> view(features.data(), {2, 196, 8});
  const tensor_view<float, 2> map(importance.data(), {2, 4});
  const tensor_view<const float, 2> values = map;

  EXPECT_EQ(window_importance({2, 14, 14, 0, 0}, view, map, stream).code(), invalid);
  EXPECT_EQ(window_importance({2, 14, 15, 7, 0}, view, map, stream).code(), invalid);
  EXPECT_EQ(window_importance(grid, tensor_view<const float, 3>(nullptr, {2, 196, 8}), map, stream)
                .code(),
            invalid);
  EXPECT_EQ(window_importance(grid, view, {importance.data(), {2, 3}}, stream).code(), invalid);
  const tensor_view<const double, 3> doubles(reinterpret_cast<const double*>(features.data()),
                                             {2, 196, 4});
  EXPECT_EQ(window_importance(grid, doubles, map, stream).code(), status_code::unsupported);

  const auto uniform = uniform_selection(2, 4, 3, ids.data());
  const auto ragged = ragged_selection(2, 4, ids.data(), offsets.data());
  EXPECT_EQ(select_most_important(values, ragged, nullptr, 0, stream).code(), invalid);
  EXPECT_EQ(
      select_most_important(values, uniform_selection(2, 4, 5, ids.data()), nullptr, 0, stream)
          .code(),
      invalid);
  const device_array<float> large(9000);
  const tensor_view<const float, 2> many(large.data(), {1, 9000});
  EXPECT_EQ(
      select_most_important(many, uniform_selection(1, 9000, 1, ids.data()), nullptr, 0, stream)
          .code(),
      invalid);
  EXPECT_EQ(select_most_important(many, uniform_selection(1, 9000, 1, ids.data()), workspace.data(),
                                  100, stream)
                .code(),
            status_code::workspace_too_small);
  std::byte* memory = workspace.data();
  EXPECT_EQ(select_above(values, std::nanf(""), ragged, memory, 256, stream).code(), invalid);
  EXPECT_EQ(select_above(values, 1.0f, uniform, memory, 256, stream).code(), invalid);
  EXPECT_EQ(select_above(values, 1.0f, ragged, memory + 4, 256, stream).code(), invalid);
  const tensor_view<const std::uint8_t, 2> tokens(mask.data(), {2, 196});
  EXPECT_EQ(select_window_mask(tokens, ragged, memory, 256, stream).code(), invalid);
  EXPECT_EQ(select_token_mask({2, 14, 7, 7, 0}, tokens, ragged, memory, 4096, stream).code(),
            invalid);
  EXPECT_EQ(select_token_mask(grid, tokens, ragged, memory, 1, stream).code(),
            status_code::workspace_too_small);
  stream.synchronize();
  EXPECT_TRUE(is_poison(importance.to_host().data(), 0, 8));
  EXPECT_TRUE(is_poison(ids.to_host().data(), 0, 8));
  EXPECT_TRUE(is_poison(offsets.to_host().data(), 0, 3));
}

}  // namespace
}  // namespace winnow::test
