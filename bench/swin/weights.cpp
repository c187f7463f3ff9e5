// SPDX-License-Identifier: Apache-2.0
#include "swin/weights.hpp"

#include <cmath>

#include "support/npy.hpp"
#include "support/random.hpp"

namespace winnow::swin {
namespace {

void add_linear(std::vector<weight_spec>& list, const std::string& name, std::int64_t outputs,
                std::int64_t inputs) {
  list.push_back({name + ".weight", {outputs, inputs}});
  list.push_back({name + ".bias", {outputs}});
}

void add_norm(std::vector<weight_spec>& list, const std::string& name, std::int64_t channels) {
  list.push_back({name + ".weight", {channels}});
  list.push_back({name + ".bias", {channels}});
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::vector<float> read_array(const std::filesystem::path& folder, const weight_spec& spec) {
  std::filesystem::path path = folder / ("backbone." + spec.name + ".npy");
  if (!std::filesystem::exists(path)) path = folder / (spec.name + ".npy");
  const support::npy_array array = support::read_npy(path);
  if (array.shape != spec.shape)
    throw support::input_error(path.string(), "shape is " + support::shape_text(array.shape) +
                                                  ", must be " + support::shape_text(spec.shape));
  if (array.element != support::npy_element::float16 &&
      array.element != support::npy_element::float32 &&
      array.element != support::npy_element::float64)
    throw support::input_error(path.string(), std::string("elements are ") +
                                                  support::descriptor_of(array.element) +
                                                  ", must be floating-point numbers");
  const std::vector<double> values = array.to_doubles();
  std::vector<float> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    result[i] = static_cast<float>(values[i]);
    if (!std::isfinite(result[i]))
      throw support::input_error(path.string(),
                                 "element " + std::to_string(i) + " is not finite in float32");
  }
  return result;
}

}  // namespace

std::string block_prefix(int stage, int block) {
  return "stages." + std::to_string(stage) + ".blocks." + std::to_string(block) + ".";
}

std::vector<weight_spec> weight_specs(const model& network) {
  std::vector<weight_spec> list;
  list.push_back({"patch_embed.projection.weight",
                  {network.channels, image_channels, patch_edge, patch_edge}});
  list.push_back({"patch_embed.projection.bias", {network.channels}});
  add_norm(list, "patch_embed.norm", network.channels);
  for (int s = 0; s < network.stages(); ++s) {
    const std::int64_t channels = network.channels_of(s);
    for (int b = 0; b < network.depth_of(s); ++b) {
      const std::string prefix = block_prefix(s, b);
      add_norm(list, prefix + "norm1", channels);
      list.push_back(
          {prefix + "attn.w_msa.relative_position_bias_table", {bias_rows, network.heads_of(s)}});
      add_linear(list, prefix + "attn.w_msa.qkv", 3 * channels, channels);
      add_linear(list, prefix + "attn.w_msa.proj", channels, channels);
      add_norm(list, prefix + "norm2", channels);
      add_linear(list, prefix + "ffn.layers.0.0", mlp_ratio * channels, channels);
      add_linear(list, prefix + "ffn.layers.1", channels, mlp_ratio * channels);
    }
    if (s + 1 < network.stages()) {
      const std::string prefix = "stages." + std::to_string(s) + ".downsample.";
      add_norm(list, prefix + "norm", 4 * channels);
      list.push_back({prefix + "reduction.weight", {2 * channels, 4 * channels}});
    }
    add_norm(list, "norm" + std::to_string(s), channels);
  }
  return list;
}

weights load_weights(const std::filesystem::path& folder, const model& network) {
  if (!std::filesystem::is_directory(folder))
    throw support::input_error(folder.string(), "is not a folder");
  weights result;
  for (const weight_spec& spec : weight_specs(network))
    result.set(spec.name, read_array(folder, spec));
  return result;
}

weights random_weights(const model& network, std::uint64_t seed) {
  support::random_source random(seed);
  weights result;
  for (const weight_spec& spec : weight_specs(network)) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : spec.shape) elements *= extent;
    double centre = 0.0, deviation = 0.02;
    if (ends_with(spec.name, "bias_table")) {
      deviation = 0.5;
    } else if (spec.shape.size() > 1) {
      deviation = std::sqrt(static_cast<double>(spec.shape[0]) / static_cast<double>(elements));
    } else if (ends_with(spec.name, "weight")) {
      centre = 1.0;
      deviation = 0.1;
    }
    const double reach = deviation * std::sqrt(3.0);
    std::vector<float> values(static_cast<std::size_t>(elements));
    for (float& value : values)
      value = static_cast<float>(random.uniform(centre - reach, centre + reach));
    result.set(spec.name, std::move(values));
  }
  return result;
}

}  // namespace winnow::swin
