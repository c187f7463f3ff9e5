// SPDX-License-Identifier: Apache-2.0
// The network on the GPU against its host twin: dense and pruned, in both storage types, on sizes that are
// and are not multiples of patches and windows.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "support/device.hpp"
#include "swin/backbone.hpp"
#include "swin/device_images.hpp"

namespace winnow::swin {
namespace {

struct device_case {
  const char* name;
  dtype type;
  image_size size;
  const char* prune;
  double tolerance;  ///< relative error of each stage's output
};

std::ostream& operator<<(std::ostream& out, const device_case& each) {
  return out << each.name << ", tolerance " << each.tolerance;
}

float rounded(float value, dtype type) {
  return type == dtype::float16 ? to_float(from_float<half>(value))
                                : to_float(from_float<bfloat16>(value));
}

/// Weights that both sides can hold.
weights rounded_weights(const model& network, dtype type) {
  weights result = random_weights(network, 1);
  for (const weight_spec& spec : weight_specs(network)) {
    std::vector<float> values = result.at(spec.name);
    for (float& value : values) value = rounded(value, type);
    result.set(spec.name, values);
  }
  return result;
}

std::vector<float> output_of(const backbone& network, int stage) {
  const auto count = static_cast<std::size_t>(network.output_elements(stage));
  std::vector<float> result(count);
  const auto convert = [&](auto element) {
    std::vector<decltype(element)> raw(count);
    test::check_cuda(
        cudaMemcpy(raw.data(), network.output(stage), count * 2, cudaMemcpyDeviceToHost),
        "copy to the host");
    for (std::size_t i = 0; i < count; ++i) result[i] = to_float(raw[i]);
  };
  if (network.type() == dtype::float16)
    convert(half());
  else
    convert(bfloat16());
  return result;
}

double relative_error(const std::vector<float>& value, const std::vector<float>& expected) {
  EXPECT_EQ(value.size(), expected.size());
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < value.size(); ++i) {
    difference += std::pow(static_cast<double>(value[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// A window that only one side keeps must be a near tie with the last one kept.
void expect_same_windows(const std::vector<std::int32_t>& ids, const std::vector<float>& importance,
                         int batch, double tolerance) {
  const std::size_t kept = ids.size() / static_cast<std::size_t>(batch);
  const std::size_t windows = importance.size() / static_cast<std::size_t>(batch);
  for (std::size_t b = 0; b < static_cast<std::size_t>(batch); ++b) {
    std::vector<bool> seen(windows, false);
    double least = 1e30, largest_left = 0.0;
    for (std::size_t k = 0; k < kept; ++k) {
      const auto id = static_cast<std::size_t>(ids[b * kept + k]);
      ASSERT_LT(id, windows);
      ASSERT_FALSE(seen[id]) << "window " << id << " is kept twice";
      seen[id] = true;
      least = std::min(least, static_cast<double>(importance[b * windows + id]));
    }
    for (std::size_t w = 0; w < windows; ++w)
      if (!seen[w])
        largest_left = std::max(largest_left, static_cast<double>(importance[b * windows + w]));
    if (kept > 0) {
      EXPECT_GE(least, largest_left * (1.0 - tolerance)) << "image " << b;
    }
  }
}

class device_network : public testing::TestWithParam<device_case> {};

TEST_P(device_network, matches_the_host_twin) {
  WINNOW_SKIP_WITHOUT_GPU();
  const device_case& each = GetParam();
  const model network;
  const weights arrays = rounded_weights(network, each.type);
  image_set images = synthetic_images(each.size.batch, each.size.height, each.size.width, 2);
  for (float& value : images.values) value = rounded(value, each.type);
  const prune_ratios ratios = parse_prune(each.prune, network);

  const device_weights on_device(network, arrays, each.type);
  matrix_products products(each.type);
  backbone device(network, on_device, products, each.size);
  device.set_prune(ratios);
  const auto batch = upload_batch(images, 0, each.size, each.type);
  device.forward(batch.data(), nullptr);
  const std::vector<stage_ranking> rankings = device.rankings();

  // The twin takes the device's windows, so that near ties do not count as errors.
  const host_result expected =
      forward_on_host(network, arrays, each.size, images.values, ratios, &rankings);
  for (int s = 0; s < network.stages(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    const double error = relative_error(output_of(device, s), expected.features[at]);
    EXPECT_LE(error, each.tolerance) << "stage " << s + 1;
    RecordProperty("stage_" + std::to_string(s + 1), std::to_string(error));
    std::printf("stage %d: relative error %.2e\n", s + 1, error);
    for (int shifted = 0; shifted < 2; ++shifted)
      if (!rankings[at].ids[shifted].empty())
        expect_same_windows(rankings[at].ids[shifted], expected.importance[shifted][at],
                            each.size.batch, each.tolerance);
  }
}

constexpr double half_tolerance = 5e-3;
constexpr double bfloat16_tolerance = 4e-2;

INSTANTIATE_TEST_SUITE_P(
    sizes, device_network,
    testing::Values(
        device_case{"half_dense", dtype::float16, {2, 112, 112}, "dense", half_tolerance},
        device_case{"half_padded", dtype::float16, {2, 102, 131}, "dense", half_tolerance},
        device_case{"half_smallest", dtype::float16, {1, 28, 28}, "dense", half_tolerance},
        device_case{"half_pruned", dtype::float16, {2, 224, 224}, "uniform60", half_tolerance},
        device_case{"half_second_block_ranks",
                    dtype::float16,
                    {2, 130, 112},
                    "0 0.5 | 0 0.5 | 0 | 0",
                    half_tolerance},
        device_case{"half_config3", dtype::float16, {3, 140, 196}, "config3", half_tolerance},
        device_case{"half_padded_pruned",
                    dtype::float16,
                    {2, 151, 187},
                    "0.3 0.5 | 0 0.25 | 0.1 0 0.2 0.6 0.5 0.9 | 0 0.5",
                    half_tolerance},
        device_case{"half_keeps_nothing", dtype::float16, {1, 60, 60}, "0.95", half_tolerance},
        device_case{"bfloat16_dense", dtype::bfloat16, {2, 112, 112}, "dense", bfloat16_tolerance},
        device_case{
            "bfloat16_pruned", dtype::bfloat16, {2, 151, 187}, "uniform60", bfloat16_tolerance}),
    [](const auto& of) { return of.param.name; });

/// A graph of the forward repeats bit for bit, whatever ran in between.
TEST(device_network_graph, repeats_bit_for_bit) {
  WINNOW_SKIP_WITHOUT_GPU();
  const model network;
  const image_size size{2, 140, 140};
  const device_weights arrays(network, random_weights(network, 1), dtype::float16);
  matrix_products products(dtype::float16);
  backbone device(network, arrays, products, size);
  device.set_prune(parse_prune("config3", network));
  const image_set images = synthetic_images(4, size.height, size.width, 2);
  const auto first = upload_batch(images, 0, size, dtype::float16);
  const auto second = upload_batch(images, 2, size, dtype::float16);

  const test::device_stream stream;
  const test::captured_graph graph(stream,
                                   [&](cudaStream_t) { device.forward(first.data(), stream); });
  const auto replay = [&] {
    graph.launch();
    test::synchronize();
    return output_of(device, 3);
  };
  const std::vector<float> expected = replay();
  device.forward(second.data(), stream);
  test::synchronize();
  EXPECT_NE(output_of(device, 3), expected);
  EXPECT_EQ(replay(), expected);
}

}  // namespace
}  // namespace winnow::swin
