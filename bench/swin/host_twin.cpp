// SPDX-License-Identifier: Apache-2.0
#include "swin/host_twin.hpp"

#include <cmath>
#include <stdexcept>

#include "winnow/detail/util/parallel.hpp"
#include "winnow/reference.hpp"

namespace winnow::swin {
namespace {

using values = std::vector<float>;

void require(const status& outcome) {
  if (!outcome.ok()) throw std::runtime_error(outcome.message());
}

std::size_t index(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

class host_network {
 public:
  host_network(const model& network, const weights& arrays, const image_size& size, int threads)
      : network_(network), arrays_(arrays), size_(size), threads_(threads) {}

  values embed(const values& images) const;
  values block(int stage, int number, const values& x, const window_selection* kept) const;
  values merge(int stage, const values& x) const;
  values norm(const std::string& name, const values& x) const;

 private:
  values linear(const std::string& name, const values& x, std::int64_t inputs,
                bool has_bias = true) const;
  values attend(int stage, int number, const values& rows, const window_selection* kept) const;
  template <class Body>
  void for_each(std::int64_t count, Body&& body) const {
    require(detail::parallel_for(count, threads_, body));
  }

  const model& network_;
  const weights& arrays_;
  image_size size_;
  int threads_;
};

values host_network::linear(const std::string& name, const values& x, std::int64_t inputs,
                            bool has_bias) const {
  const values& weight = arrays_.at(name + ".weight");
  const std::int64_t outputs = static_cast<std::int64_t>(weight.size()) / inputs;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / inputs;
  values transposed(weight.size());
  for (std::int64_t o = 0; o < outputs; ++o)
    for (std::int64_t i = 0; i < inputs; ++i)
      transposed[index(i * outputs + o)] = weight[index(o * inputs + i)];
  values result(index(rows * outputs));
  for_each(rows, [&](std::int64_t r) {
    float* out = result.data() + r * outputs;
    if (has_bias) {
      const values& bias = arrays_.at(name + ".bias");
      for (std::int64_t o = 0; o < outputs; ++o) out[o] = bias[index(o)];
    }
    for (std::int64_t i = 0; i < inputs; ++i) {
      const float factor = x[index(r * inputs + i)];
      const float* row = transposed.data() + i * outputs;
      for (std::int64_t o = 0; o < outputs; ++o) out[o] += factor * row[o];
    }
  });
  return result;
}

values host_network::norm(const std::string& name, const values& x) const {
  const values& weight = arrays_.at(name + ".weight");
  const values& bias = arrays_.at(name + ".bias");
  const std::int64_t channels = static_cast<std::int64_t>(weight.size());
  values result(x.size());
  for_each(static_cast<std::int64_t>(x.size()) / channels, [&](std::int64_t r) {
    const float* row = x.data() + r * channels;
    double mean = 0.0, variance = 0.0;
    for (std::int64_t c = 0; c < channels; ++c) mean += row[c];
    mean /= static_cast<double>(channels);
    for (std::int64_t c = 0; c < channels; ++c) variance += (row[c] - mean) * (row[c] - mean);
    variance /= static_cast<double>(channels);
    const double scale = 1.0 / std::sqrt(variance + static_cast<double>(norm_epsilon));
    for (std::int64_t c = 0; c < channels; ++c)
      result[index(r * channels + c)] =
          static_cast<float>((row[c] - mean) * scale) * weight[index(c)] + bias[index(c)];
  });
  return result;
}

values host_network::embed(const values& images) const {
  const grid_window map = map_of_stage(size_, 0);
  values patches(index(map.tokens() * patch_values));
  for_each(map.tokens(), [&](std::int64_t token) {
    const std::int64_t image = token / (map.height * map.width);
    const int first_y = static_cast<int>(token / map.width % map.height) * patch_edge;
    const int first_x = static_cast<int>(token % map.width) * patch_edge;
    for (int i = 0; i < patch_values; ++i) {
      const int channel = i / (patch_edge * patch_edge);
      const int y = first_y + i / patch_edge % patch_edge;
      const int x = first_x + i % patch_edge;
      if (y < size_.height && x < size_.width)
        patches[index(token * patch_values + i)] = images[index(
            ((image * image_channels + channel) * size_.height + y) * size_.width + x)];
    }
  });
  return norm("patch_embed.norm", linear("patch_embed.projection", patches, patch_values));
}

/// Attention of the padded map's rows [tokens, channels]; rows in no kept window stay 0.
values host_network::attend(int stage, int number, const values& rows,
                            const window_selection* kept) const {
  const std::string prefix = block_prefix(stage, number) + "attn.w_msa.";
  const grid_window grid = padded(map_of_stage(size_, stage, shift_of_block(number)));
  const std::int64_t channels = network_.channels_of(stage);
  const int heads = network_.heads_of(stage);
  const std::int64_t dim = channels / heads;
  const values qkv = linear(prefix + "qkv", rows, channels);

  const reference::host_partition partition(shape_of(grid, kept));
  require(reference::build_partition(grid, kept, partition.view(), threads_));
  head_group<float> group;
  group.heads = heads;
  group.windows = partition.view();
  group.position = position_encoding::bias;
  group.bias_table = {arrays_.at(prefix + "relative_position_bias_table").data(),
                      {bias_rows, heads}};
  values out(index(grid.tokens() * channels));
  const tensor_layout<3> slice = {{grid.tokens(), heads, dim}, {3 * channels, dim, 1}};
  attention_forward_arguments<float> arguments;
  arguments.q = {qkv.data(), slice};
  arguments.k = {qkv.data() + channels, slice};
  arguments.v = {qkv.data() + 2 * channels, slice};
  arguments.out = {out.data(), {grid.tokens(), heads, dim}};
  arguments.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  arguments.groups = &group;
  arguments.group_count = 1;
  require(reference::attention_forward<float>(arguments, threads_));
  return linear(prefix + "proj", out, channels);
}

/// Whether each token of a padded map lies in a kept window.
std::vector<bool> kept_tokens(const grid_window& grid, const window_selection* kept) {
  std::vector<bool> result(index(grid.tokens()), kept == nullptr);
  if (kept == nullptr) return result;
  const reference::host_partition partition(shape_of(grid, kept));
  require(reference::build_partition(grid, kept, partition.view()));
  for (std::int32_t slot = 0; slot < partition.counts().assigned; ++slot)
    result[index(partition.view().order[slot])] = true;
  return result;
}

values host_network::block(int stage, int number, const values& x,
                           const window_selection* kept) const {
  const std::string prefix = block_prefix(stage, number);
  const std::int64_t channels = network_.channels_of(stage);
  const grid_window map = map_of_stage(size_, stage, shift_of_block(number));
  const grid_window whole = padded(map);
  const auto padded_token = [&](std::int64_t token) {
    const std::int64_t row = token / map.width;  // over all images
    const std::int64_t y = row / map.height * whole.height + row % map.height;
    return y * whole.width + token % map.width;
  };
  const values normed = norm(prefix + "norm1", x);
  values rows(index(whole.tokens() * channels));
  for (std::int64_t t = 0; t < map.tokens(); ++t)
    for (std::int64_t c = 0; c < channels; ++c)
      rows[index(padded_token(t) * channels + c)] = normed[index(t * channels + c)];
  const values attended = attend(stage, number, rows, kept);
  const std::vector<bool> computed = kept_tokens(whole, kept);

  values result = x;
  for (std::int64_t t = 0; t < map.tokens(); ++t)
    if (computed[index(padded_token(t))])
      for (std::int64_t c = 0; c < channels; ++c)
        result[index(t * channels + c)] += attended[index(padded_token(t) * channels + c)];
  values hidden = linear(prefix + "ffn.layers.0.0", norm(prefix + "norm2", result), channels);
  for (float& value : hidden)
    value = 0.5f * value * (1.0f + std::erf(value * 0.70710678118654752f));
  const values change = linear(prefix + "ffn.layers.1", hidden, mlp_ratio * channels);
  for (std::int64_t t = 0; t < map.tokens(); ++t)
    if (computed[index(padded_token(t))])
      for (std::int64_t c = 0; c < channels; ++c)
        result[index(t * channels + c)] += change[index(t * channels + c)];
  return result;
}

/// The four tokens of a place, channel by channel, absent ones 0; then norm and reduction.
values host_network::merge(int stage, const values& x) const {
  const std::string prefix = "stages." + std::to_string(stage) + ".downsample.";
  const grid_window map = map_of_stage(size_, stage);
  const grid_window next = map_of_stage(size_, stage + 1);
  const std::int64_t channels = network_.channels_of(stage);
  values rows(index(next.tokens() * 4 * channels));
  for_each(next.tokens(), [&](std::int64_t token) {
    const std::int64_t image = token / (next.height * next.width);
    for (int q = 0; q < 4; ++q) {
      const std::int64_t y = token / next.width % next.height * 2 + q / 2;
      const std::int64_t column = token % next.width * 2 + q % 2;
      if (y >= map.height || column >= map.width) continue;
      const std::int64_t from = (image * map.height + y) * map.width + column;
      for (std::int64_t c = 0; c < channels; ++c)
        rows[index((token * channels + c) * 4 + q)] = x[index(from * channels + c)];
    }
  });
  return linear(prefix + "reduction", norm(prefix + "norm", rows), 4 * channels, false);
}

values importance_of(const grid_window& map, const values& x, std::int64_t channels, int threads) {
  values result(index(map.windows()));
  const tensor_view<const float, 3> features(
      x.data(), {map.batch, std::int64_t{map.height} * map.width, channels});
  require(reference::window_importance<float>(
      map, features, {result.data(), {map.batch, map.windows_per_image()}}, threads));
  return result;
}

}  // namespace

host_result forward_on_host(const model& network, const weights& arrays, const image_size& size,
                            const std::vector<float>& images, const prune_ratios& ratios,
                            const std::vector<stage_ranking>* given, int threads) {
  check(size);
  check(ratios, network);
  const host_network layers(network, arrays, size, threads);
  host_result result;
  for (std::vector<values>& each : result.importance) each.resize(index(network.stages()));
  result.rankings.resize(index(network.stages()));
  values x = layers.embed(images);
  for (int s = 0; s < network.stages(); ++s) {
    const stage_pruning pruning = pruning_of(ratios[index(s)], map_of_stage(size, s));
    stage_ranking& ranking = result.rankings[index(s)];
    for (int b = 0; b < network.depth_of(s); ++b) {
      if (b == pruning.ranked_at)
        for (int shifted = 0; shifted < 2; ++shifted) {
          const grid_window map = map_of_stage(size, s, shifted ? shift_of_odd_blocks : 0);
          values& importance = result.importance[shifted][index(s)];
          importance = importance_of(map, x, network.channels_of(s), threads);
          ranking.ids[shifted].resize(index(map.batch * pruning.longest[shifted]));
          require(reference::select_most_important(
              tensor_view<const float, 2>(importance.data(), {map.batch, map.windows_per_image()}),
              uniform_selection(map.batch, map.windows_per_image(), pruning.longest[shifted],
                                ranking.ids[shifted].data())));
          if (given != nullptr) ranking.ids[shifted] = (*given)[index(s)].ids[shifted];
        }
      if (!pruning.pruned[index(b)]) {
        x = layers.block(s, b, x, nullptr);
        continue;
      }
      window_selection kept;
      require(prefix(uniform_selection(size.batch, map_of_stage(size, s).windows_per_image(),
                                       pruning.longest[b % 2], ranking.ids[b % 2].data()),
                     pruning.kept[index(b)], kept));
      x = layers.block(s, b, x, &kept);
    }
    result.features.push_back(layers.norm("norm" + std::to_string(s), x));
    if (s + 1 < network.stages()) x = layers.merge(s, x);
  }
  return result;
}

}  // namespace winnow::swin
