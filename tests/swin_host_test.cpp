// SPDX-License-Identifier: Apache-2.0
// The host twin of the Swin backbone against a second implementation, in double and written the way the
// network is usually described: pad, roll, cut into windows, attend with an explicit mask, undo.
#include <gtest/gtest.h>

#include <cmath>

#include "swin/host_twin.hpp"
#include "swin/images.hpp"
#include "winnow/reference.hpp"

namespace winnow::swin {
namespace {

using matrix = std::vector<std::vector<double>>;  // a row for each token

model small_model() {
  model network;
  network.channels = 16;
  network.depths = {2, 2};
  network.heads = {2, 4};
  return network;
}

/// The network of one image, token by token.
class plain_network {
 public:
  plain_network(const model& network, const weights& arrays, const image_size& size)
      : network_(network), arrays_(arrays), size_(size) {}

  std::vector<matrix> forward(const std::vector<float>& image) const {
    int height = round_up_div(size_.height, patch_edge);
    int width = round_up_div(size_.width, patch_edge);
    matrix x = embed(image, height, width);
    std::vector<matrix> outputs;
    for (int s = 0; s < network_.stages(); ++s) {
      for (int b = 0; b < network_.depth_of(s); ++b) x = block(s, b, x, height, width);
      outputs.push_back(norm("norm" + std::to_string(s), x));
      if (s + 1 == network_.stages()) break;
      x = merge("stages." + std::to_string(s) + ".downsample.", x, height, width);
      height = (height + 1) / 2;
      width = (width + 1) / 2;
    }
    return outputs;
  }

 private:
  std::vector<double> linear(const std::string& name, const std::vector<double>& x,
                             bool has_bias = true) const {
    const std::vector<float>& weight = arrays_.at(name + ".weight");
    std::vector<double> y(weight.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o) {
      y[o] = has_bias ? arrays_.at(name + ".bias")[o] : 0.0;
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += x[i] * weight[o * x.size() + i];
    }
    return y;
  }

  matrix norm(const std::string& name, matrix rows) const {
    for (std::vector<double>& x : rows) {
      const double n = static_cast<double>(x.size());
      double mean = 0.0, variance = 0.0;
      for (const double value : x) mean += value / n;
      for (const double value : x) variance += (value - mean) * (value - mean) / n;
      for (std::size_t c = 0; c < x.size(); ++c)
        x[c] = (x[c] - mean) / std::sqrt(variance + 1e-5) * arrays_.at(name + ".weight")[c] +
               arrays_.at(name + ".bias")[c];
    }
    return rows;
  }

  matrix embed(const std::vector<float>& image, int height, int width) const {
    matrix x;
    for (int y = 0; y < height; ++y)
      for (int column = 0; column < width; ++column) {
        std::vector<double> patch;
        for (int c = 0; c < 3; ++c)
          for (int py = 4 * y; py < 4 * y + 4; ++py)
            for (int px = 4 * column; px < 4 * column + 4; ++px)
              patch.push_back(
                  py < size_.height && px < size_.width
                      ? image[static_cast<std::size_t>((c * size_.height + py) * size_.width + px)]
                      : 0.0);
        x.push_back(linear("patch_embed.projection", patch));
      }
    return norm("patch_embed.norm", x);
  }

  /// Rows of one window -> rows. `region` says which tokens may see each other.
  matrix attend(const std::string& prefix, int heads, const matrix& window,
                const std::vector<int>& region) const {
    const std::size_t channels = window[0].size();
    const std::size_t dim = channels / static_cast<std::size_t>(heads);
    const std::vector<float>& table = arrays_.at(prefix + "relative_position_bias_table");
    matrix qkv, out;
    for (const std::vector<double>& row : window) qkv.push_back(linear(prefix + "qkv", row));
    for (int i = 0; i < 49; ++i) {
      std::vector<double> mixed(channels, 0.0);
      for (std::size_t h = 0; h < static_cast<std::size_t>(heads); ++h) {
        std::vector<double> weight(49);
        double sum = 0.0;
        for (int j = 0; j < 49; ++j) {
          const int row = (i / 7 - j / 7 + 6) * 13 + i % 7 - j % 7 + 6;
          double logit = table[static_cast<std::size_t>(row * heads) + h];
          for (std::size_t d = 0; d < dim; ++d)
            logit += qkv[static_cast<std::size_t>(i)][h * dim + d] *
                     qkv[static_cast<std::size_t>(j)][channels + h * dim + d] /
                     std::sqrt(static_cast<double>(dim));
          if (region[static_cast<std::size_t>(i)] != region[static_cast<std::size_t>(j)])
            logit -= 1e9;
          weight[static_cast<std::size_t>(j)] = std::exp(logit);
          sum += weight[static_cast<std::size_t>(j)];
        }
        for (std::size_t j = 0; j < 49; ++j)
          for (std::size_t d = 0; d < dim; ++d)
            mixed[h * dim + d] += weight[j] / sum * qkv[j][2 * channels + h * dim + d];
      }
      out.push_back(linear(prefix + "proj", mixed));
    }
    return out;
  }

  matrix block(int stage, int number, matrix x, int height, int width) const {
    const std::string prefix = block_prefix(stage, number);
    const int shift = number % 2 == 1 ? 3 : 0;
    const int down = (height + 6) / 7, across = (width + 6) / 7;
    const matrix normed = norm(prefix + "norm1", x);
    for (int w = 0; w < down * across; ++w) {
      matrix window;
      std::vector<int> tokens, region;
      for (int t = 0; t < 49; ++t) {
        const int rolled_y = w / across * 7 + t / 7, rolled_x = w % across * 7 + t % 7;
        const int y = (rolled_y + shift) % (7 * down), column = (rolled_x + shift) % (7 * across);
        const bool inside = y < height && column < width;
        tokens.push_back(inside ? y * width + column : -1);
        window.push_back(inside ? normed[static_cast<std::size_t>(y * width + column)]
                                : std::vector<double>(x[0].size(), 0.0));
        region.push_back(
            shift == 0 ? 0 : 2 * (rolled_y >= 7 * down - 3) + (rolled_x >= 7 * across - 3));
      }
      const matrix attended =
          attend(prefix + "attn.w_msa.", network_.heads_of(stage), window, region);
      for (std::size_t t = 0; t < 49; ++t)
        if (tokens[t] >= 0)
          for (std::size_t c = 0; c < x[0].size(); ++c)
            x[static_cast<std::size_t>(tokens[t])][c] += attended[t][c];
    }
    const matrix second = norm(prefix + "norm2", x);
    for (std::size_t t = 0; t < x.size(); ++t) {
      std::vector<double> hidden = linear(prefix + "ffn.layers.0.0", second[t]);
      for (double& value : hidden) value *= 0.5 * (1.0 + std::erf(value / std::sqrt(2.0)));
      const std::vector<double> change = linear(prefix + "ffn.layers.1", hidden);
      for (std::size_t c = 0; c < change.size(); ++c) x[t][c] += change[c];
    }
    return x;
  }

  matrix merge(const std::string& prefix, const matrix& x, int height, int width) const {
    matrix rows;
    for (int y = 0; y < height; y += 2)
      for (int column = 0; column < width; column += 2) {
        std::vector<double> row;
        for (std::size_t c = 0; c < x[0].size(); ++c)
          for (int q = 0; q < 4; ++q)
            row.push_back(y + q / 2 < height && column + q % 2 < width
                              ? x[static_cast<std::size_t>((y + q / 2) * width + column + q % 2)][c]
                              : 0.0);
        rows.push_back(row);
      }
    matrix result;
    for (const std::vector<double>& row : norm(prefix + "norm", rows))
      result.push_back(linear(prefix + "reduction", row, false));
    return result;
  }

  const model& network_;
  const weights& arrays_;
  image_size size_;
};

class host_twin_of_size : public testing::TestWithParam<image_size> {};

TEST_P(host_twin_of_size, matches_a_plain_network_in_double) {
  const image_size size = GetParam();
  const model network = small_model();
  const weights arrays = random_weights(network, 3);
  const image_set images = synthetic_images(size.batch, size.height, size.width, 4);
  const host_result twin =
      forward_on_host(network, arrays, size, images.values, parse_prune("0 0 | 0 0", network));
  const std::size_t length = images.values.size() / static_cast<std::size_t>(size.batch);
  for (std::size_t b = 0; b < static_cast<std::size_t>(size.batch); ++b) {
    const auto first = images.values.begin() + static_cast<std::ptrdiff_t>(b * length);
    const std::vector<matrix> expected =
        plain_network(network, arrays, size)
            .forward({first, first + static_cast<std::ptrdiff_t>(length)});
    for (std::size_t s = 0; s < expected.size(); ++s) {
      const std::size_t tokens = expected[s].size(), channels = expected[s][0].size();
      ASSERT_EQ(twin.features[s].size(), static_cast<std::size_t>(size.batch) * tokens * channels);
      for (std::size_t t = 0; t < tokens; ++t)
        for (std::size_t c = 0; c < channels; ++c)
          ASSERT_NEAR(twin.features[s][(b * tokens + t) * channels + c], expected[s][t][c], 2e-4)
              << "image " << b << ", stage " << s << ", token " << t << ", channel " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(sizes, host_twin_of_size,
                         testing::Values(image_size{1, 28, 28}, image_size{2, 56, 84},
                                         image_size{1, 61, 90}),
                         [](const auto& of) {
                           return std::to_string(of.param.height) + "x" +
                                  std::to_string(of.param.width);
                         });

class host_twin : public testing::Test {
 protected:
  host_result forward(const std::string& prune, const std::vector<stage_ranking>* given = nullptr) {
    return forward_on_host(network_, arrays_, size_, images_.values, parse_prune(prune, network_),
                           given);
  }
  model network_ = small_model();
  image_size size_{2, 112, 84};  // 4 x 3 windows, then 2 x 2
  weights arrays_ = random_weights(network_, 3);
  image_set images_ = synthetic_images(2, 112, 84, 4);
};

TEST_F(host_twin, ranks_only_the_shifts_that_are_pruned) {
  const host_result result = forward("0.5 0 | 0");
  EXPECT_EQ(result.rankings[0].ids[0].size(), 2u * 6u);
  EXPECT_TRUE(result.rankings[0].ids[1].empty());
  EXPECT_TRUE(result.importance[0][1].empty());
}

TEST_F(host_twin, tokens_of_dropped_windows_pass_unchanged) {
  // With the last block's changes gone the first stage is its input, except in the kept window.
  const host_result some = forward("0.9 0.9 | 0 0");
  ASSERT_EQ(some.rankings[0].ids[0].size(), 2u);
  weights silent = arrays_;
  for (const char* name : {"attn.w_msa.proj", "ffn.layers.1"})
    for (int b = 0; b < 2; ++b)
      for (const char* part : {".weight", ".bias"}) {
        const std::string full = block_prefix(0, b) + name + part;
        silent.set(full, std::vector<float>(silent.at(full).size(), 0.0f));
      }
  const host_result none = forward_on_host(network_, silent, size_, images_.values,
                                           parse_prune("0.9 0.9 | 0 0", network_));
  const grid_window map = map_of_stage(size_, 0);
  int changed = 0;
  for (std::int64_t t = 0; t < map.tokens(); ++t) {
    bool equal = true;
    for (std::int64_t c = 0; c < network_.channels; ++c) {
      const auto i = static_cast<std::size_t>(t * network_.channels + c);
      equal &= some.features[0][i] == none.features[0][i];
    }
    changed += !equal;
  }
  EXPECT_GE(changed, 2 * 49);      // at least one kept window an image
  EXPECT_LE(changed, 2 * 2 * 49);  // at most two, one of each shift
}

TEST_F(host_twin, ranks_once_a_stage_and_keeps_prefixes) {
  model network = small_model();
  network.depths = {4, 2};
  const weights arrays = random_weights(network, 3);
  const host_result result = forward_on_host(network, arrays, size_, images_.values,
                                             parse_prune("0 0.25 0.5 0.5 | 0 0", network));
  // Both shifts are ranked from the input of the second block; the first pruned block of each says how
  // many windows: 9 and 6 of 12.
  EXPECT_EQ(result.rankings[0].ids[1].size(), 2u * 9u);
  EXPECT_EQ(result.rankings[0].ids[0].size(), 2u * 6u);
}

TEST_F(host_twin, takes_windows_from_outside) {
  const host_result own = forward("0.5 0.5 | 0 0");
  const host_result same = forward("0.5 0.5 | 0 0", &own.rankings);
  EXPECT_EQ(same.features, own.features);
  std::vector<stage_ranking> other = own.rankings;
  other[0].ids[0] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const host_result different = forward("0.5 0.5 | 0 0", &other);
  EXPECT_EQ(different.rankings[0].ids[0], other[0].ids[0]);
  EXPECT_NE(different.features[0], own.features[0]);
}

TEST_F(host_twin, does_not_depend_on_threads) {
  const prune_ratios ratios = parse_prune("0.5 0.5 | 0.5 0.5", network_);
  const auto run = [&](int threads) {
    return forward_on_host(network_, arrays_, size_, images_.values, ratios, nullptr, threads)
        .features;
  };
  EXPECT_EQ(run(1), run(3));
}

}  // namespace
}  // namespace winnow::swin
