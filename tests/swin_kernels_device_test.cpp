// SPDX-License-Identifier: Apache-2.0
// The backbone's own kernels, one by one, against sums in double: maps that are no multiple of the window
// or of a patch, all windows and some of them, with and without a shift, so that counts of rows are odd and
// tiles of them partly empty.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "support/device.hpp"
#include "swin/kernels.hpp"
#include "winnow/detail/partition/grid.hpp"

namespace winnow::swin {
namespace {

using values = std::vector<float>;

std::size_t index(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class T>
class device_kernels : public testing::Test {
 protected:
  static constexpr dtype type = std::is_same_v<T, half> ? dtype::float16 : dtype::bfloat16;
  static constexpr double tolerance = std::is_same_v<T, half> ? 1e-3 : 8e-3;

  void SetUp() override { WINNOW_SKIP_WITHOUT_GPU(); }

  /// Normal random numbers that T can hold.
  values random(std::int64_t count, float deviation, float mean = 0.0f) {
    std::normal_distribution<float> distribution(mean, deviation);
    values result(index(count));
    for (float& value : result) value = to_float(from_float<T>(distribution(generator_)));
    return result;
  }
  static test::device_array<T> upload(const values& from) {
    std::vector<T> elements;
    for (const float value : from) elements.push_back(from_float<T>(value));
    return test::device_array<T>(elements);
  }
  static values download(const test::device_array<T>& from) {
    test::synchronize();
    EXPECT_TRUE(from.guards_intact());
    values result;
    for (const T value : from.to_host()) result.push_back(to_float(value));
    return result;
  }
  static void expect_close(const values& value, const std::vector<double>& expected) {
    ASSERT_EQ(value.size(), expected.size());
    double difference = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < value.size(); ++i) {
      difference += std::pow(value[i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    EXPECT_LE(std::sqrt(difference / norm), tolerance);
  }

 private:
  std::mt19937 generator_{1};
};
using storage_types = testing::Types<half, bfloat16>;
TYPED_TEST_SUITE(device_kernels, storage_types);

/// w [outputs, inputs] · x + bias.
std::vector<double> product(const values& w, const std::vector<double>& x, const values& bias) {
  std::vector<double> result(bias.begin(), bias.end());
  for (std::size_t o = 0; o < result.size(); ++o)
    for (std::size_t i = 0; i < x.size(); ++i) result[o] += double{w[o * x.size() + i]} * x[i];
  return result;
}

std::vector<double> normed(const std::vector<double>& x, const values& weight, const values& bias) {
  const auto count = static_cast<double>(x.size());
  double mean = 0.0, squares = 0.0;
  for (const double value : x) mean += value / count;
  for (const double value : x) squares += std::pow(value - mean, 2) / count;
  std::vector<double> result;
  for (std::size_t i = 0; i < x.size(); ++i)
    result.push_back((x[i] - mean) / std::sqrt(squares + norm_epsilon) * weight[i] + bias[i]);
  return result;
}

template <class Number>
std::vector<double> row_of(const std::vector<Number>& rows, std::int64_t row, int channels) {
  const auto first = rows.begin() + row * channels;
  return {first, first + channels};
}
void set_row(std::vector<double>& rows, std::int64_t row, const std::vector<double>& value) {
  std::copy(value.begin(), value.end(),
            rows.begin() + row * static_cast<std::int64_t>(value.size()));
}

/// Rows of some windows, in an order of their own, or of all.
class kept_rows {
 public:
  kept_rows(const grid_window& map, bool all) {
    const auto windows = static_cast<int>(map.windows_per_image());
    rows.map = map;
    rows.kept = all ? windows : windows - 2;
    const grid_window whole = padded(map);
    std::vector<std::int32_t> ids, ranks(index(std::int64_t{map.batch} * windows));
    for (int b = 0; b < map.batch; ++b)
      for (int k = 0; k < windows; ++k) {
        const int id = all ? k : (k * 5 + b) % windows;
        ids.push_back(id);
        ranks[index(std::int64_t{b} * windows + id)] = k;
        for (int i = 0; k < rows.kept && i < window_tokens; ++i) {
          const auto spot = detail::locate_in_grid(whole, id, i);
          const int y = spot.token / whole.width, x = spot.token % whole.width;
          tokens.push_back(y < map.height && x < map.width
                               ? (std::int64_t{b} * map.height + y) * map.width + x
                               : -1);
          positions.push_back(spot.position);
        }
      }
    if (all) return;
    ids_ = test::device_array<std::int32_t>(ids);
    ranks_ = test::device_array<std::int32_t>(ranks);
    rows.ids = ids_.data();
    rows.ranks = ranks_.data();
    rows.id_stride = windows;
  }
  block_rows rows;
  std::vector<std::int64_t> tokens;        ///< of each row; -1: padding
  std::vector<packed_position> positions;  ///< of each row for attention

 private:
  test::device_array<std::int32_t> ids_, ranks_;
};

/// Tokens with what a block changes.
std::vector<double> sums_of(const values& stream, const values& change, const kept_rows& changed,
                            int channels) {
  std::vector<double> x(stream.begin(), stream.end());
  for (std::size_t r = 0; r < changed.tokens.size(); ++r)
    for (int c = 0; changed.tokens[r] >= 0 && c < channels; ++c)
      x[index(changed.tokens[r] * channels + c)] += change[r * index(channels) + index(c)];
  return x;
}

/// The norms of rows, 0 for padding.
std::vector<double> norms_of(const std::vector<double>& x, const kept_rows& kept, int channels,
                             const values& weight, const values& bias) {
  std::vector<double> rows(kept.tokens.size() * index(channels));
  for (std::size_t r = 0; r < kept.tokens.size(); ++r)
    if (kept.tokens[r] >= 0)
      set_row(rows, static_cast<std::int64_t>(r),
              normed(row_of(x, kept.tokens[r], channels), weight, bias));
  return rows;
}

template <class Body>
void for_all_rows(Body&& body) {
  for (const bool all : {true, false})
    for (const int shift : {0, shift_of_odd_blocks}) {
      SCOPED_TRACE((all ? "all windows, shift " : "some windows, shift ") + std::to_string(shift));
      body(kept_rows({2, 20, 25, window_edge, shift}, all));
    }
}

TYPED_TEST(device_kernels, computes_q_k_and_v_from_the_stream) {
  constexpr int channels = fused_channels;
  for_all_rows([&](const kept_rows& kept) {
    const std::int64_t count = kept.rows.count();
    const values stream = this->random(kept.rows.map.tokens() * channels, 1.0f, 0.3f);
    const values weight = this->random(channels, 0.2f, 1.0f), shift = this->random(channels, 0.2f);
    const values w = this->random(3 * channels * channels, 0.1f);
    const values bias = this->random(3 * channels, 0.3f);
    const auto on_device = this->upload(stream), w_on_device = this->upload(pack_qkv(w));
    const auto weight_on_device = this->upload(weight), shift_on_device = this->upload(shift);
    const auto bias_on_device = this->upload(bias);
    const test::device_array<TypeParam> rows(count * 3 * channels);
    const test::device_array<std::uint32_t> positions(count);
    fused_qkv work;
    work.block = kept.rows;
    work.stream = on_device.data();
    work.norm = {weight_on_device.data(), shift_on_device.data()};
    work.matrix = w_on_device.data();
    work.bias = bias_on_device.data();
    work.rows = rows.data();
    work.positions = positions.data();
    test::check_cuda(launch_fused_qkv(this->type, work, nullptr), "q, k, v");

    std::vector<double> expected(index(count * 3 * channels));
    for (std::int64_t r = 0; r < count; ++r) {
      std::vector<double> x(channels, 0.0);
      if (kept.tokens[index(r)] >= 0)
        x = normed(row_of(stream, kept.tokens[index(r)], channels), weight, shift);
      set_row(expected, r, product(w, x, bias));
    }
    this->expect_close(this->download(rows), expected);
    EXPECT_TRUE(positions.guards_intact());
    EXPECT_EQ(positions.to_host(), kept.positions);
  });
}

TYPED_TEST(device_kernels, finishes_a_block_in_one_pass) {
  constexpr int channels = fused_channels;
  constexpr int hidden = mlp_ratio * channels;
  for_all_rows([&](const kept_rows& kept) {
    const std::int64_t count = kept.rows.count();
    const values stream = this->random(kept.rows.map.tokens() * channels, 1.0f, 0.3f);
    const values attended = this->random(count * channels, 1.0f);
    const values weight = this->random(channels, 0.2f, 1.0f), shift = this->random(channels, 0.2f);
    const values projection = this->random(channels * channels, 0.1f);
    const values projection_bias = this->random(channels, 0.3f);
    const values w1 = this->random(hidden * channels, 0.1f), b1 = this->random(hidden, 0.3f);
    const values w2 = this->random(hidden * channels, 0.1f), b2 = this->random(channels, 0.3f);
    const auto on_device = this->upload(stream), attended_on_device = this->upload(attended);
    const auto weight_on_device = this->upload(weight), shift_on_device = this->upload(shift);
    const auto matrices = this->upload(pack_mlp(projection, w1, w2));
    const auto projection_bias_on_device = this->upload(projection_bias);
    const auto b1_on_device = this->upload(b1), b2_on_device = this->upload(b2);
    fused_mlp work;
    work.block = kept.rows;
    work.stream = on_device.data();
    work.attended = attended_on_device.data();
    work.projection_bias = projection_bias_on_device.data();
    work.norm = {weight_on_device.data(), shift_on_device.data()};
    work.matrices = matrices.data();
    work.hidden_bias = b1_on_device.data();
    work.bias = b2_on_device.data();
    test::check_cuda(launch_fused_mlp(this->type, work, nullptr), "MLP");

    std::vector<double> expected(stream.begin(), stream.end());
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t token = kept.tokens[index(r)];
      if (token < 0) continue;
      std::vector<double> x = row_of(stream, token, channels);
      const auto added = product(projection, row_of(attended, r, channels), projection_bias);
      for (int c = 0; c < channels; ++c) x[index(c)] += added[index(c)];
      std::vector<double> inner = product(w1, normed(x, weight, shift), b1);
      for (double& value : inner) value *= 0.5 * (1.0 + std::erf(value / std::sqrt(2.0)));
      const auto result = product(w2, inner, b2);
      for (int c = 0; c < channels; ++c) x[index(c)] += result[index(c)];
      set_row(expected, token, x);
    }
    this->expect_close(this->download(on_device), expected);
  });
}

TYPED_TEST(device_kernels, embeds_patches) {
  constexpr int channels = fused_channels;
  for (const auto& [height, width] : {std::pair{28, 36}, {30, 37}, {33, 35}}) {
    SCOPED_TRACE(std::to_string(height) + " x " + std::to_string(width));
    const image_size size{3, height, width};
    const grid_window map = map_of_stage(size, 0);
    const values image = this->random(std::int64_t{3} * image_channels * height * width, 1.0f);
    const values w = this->random(channels * patch_values, 0.2f);
    const values bias = this->random(channels, 0.3f);
    const values weight = this->random(channels, 0.2f, 1.0f), shift = this->random(channels, 0.2f);
    const auto image_on_device = this->upload(image), w_on_device = this->upload(pack_embedding(w));
    const auto bias_on_device = this->upload(bias);
    const auto weight_on_device = this->upload(weight), shift_on_device = this->upload(shift);
    const test::device_array<TypeParam> stream(map.tokens() * channels);
    const test::device_array<float> magnitude(map.tokens());
    patch_embedding work;
    work.size = size;
    work.images = image_on_device.data();
    work.weight = w_on_device.data();
    work.bias = bias_on_device.data();
    work.norm = {weight_on_device.data(), shift_on_device.data()};
    work.stream = stream.data();
    work.magnitude = magnitude.data();
    test::check_cuda(launch_embedding(this->type, work, nullptr), "embedding");

    std::vector<double> expected(index(map.tokens() * channels));
    const values found = this->download(stream);
    const std::vector<float> magnitudes = magnitude.to_host();
    for (std::int64_t t = 0; t < map.tokens(); ++t) {
      std::vector<double> patch(patch_values, 0.0);
      for (int i = 0; i < patch_values; ++i) {
        const std::int64_t line = t / map.width % map.height * patch_edge + i / patch_edge % 4;
        const std::int64_t column = t % map.width * patch_edge + i % patch_edge;
        const std::int64_t plane =
            t / (std::int64_t{map.height} * map.width) * image_channels + i / 16;
        if (line < height && column < width)
          patch[index(i)] = image[index((plane * height + line) * width + column)];
      }
      set_row(expected, t, normed(product(w, patch, bias), weight, shift));
      double mean = 0.0;
      for (const double value : row_of(found, t, channels)) mean += std::abs(value) / channels;
      EXPECT_NEAR(magnitudes[index(t)], mean, 1e-5);
    }
    this->expect_close(found, expected);
  }
}

TYPED_TEST(device_kernels, renews_rows) {
  for (const int channels : {96, 192, 384, 768})
    for_all_rows([&](const kept_rows& kept) {
      SCOPED_TRACE(std::to_string(channels) + " channels");
      const values stream = this->random(kept.rows.map.tokens() * channels, 1.0f, 0.3f);
      const values change = this->random(std::int64_t{kept.rows.count()} * channels, 1.0f);
      const values weight = this->random(channels, 0.2f, 1.0f);
      const values shift = this->random(channels, 0.2f);
      const auto on_device = this->upload(stream), change_on_device = this->upload(change);
      const auto weight_on_device = this->upload(weight), shift_on_device = this->upload(shift);
      const test::device_array<TypeParam> rows(std::int64_t{kept.rows.count()} * channels);
      const test::device_array<std::uint32_t> positions(kept.rows.count());
      row_update work;
      work.channels = channels;
      work.block = kept.rows;
      work.stream = on_device.data();
      work.change = change_on_device.data();
      work.rows = rows.data();
      work.norm = {weight_on_device.data(), shift_on_device.data()};
      work.positions = positions.data();
      test::check_cuda(launch_row_update(this->type, work, nullptr), "row update");

      const std::vector<double> sums = sums_of(stream, change, kept, channels);
      this->expect_close(this->download(on_device), sums);
      this->expect_close(this->download(rows), norms_of(sums, kept, channels, weight, shift));
      EXPECT_EQ(positions.to_host(), kept.positions);
    });
}

TYPED_TEST(device_kernels, renews_tokens_between_blocks) {
  for (const int channels : {96, 192, 384, 768})
    for (const bool all : {true, false}) {
      SCOPED_TRACE(std::to_string(channels) + (all ? " channels, all" : " channels, some"));
      grid_window map{2, 20, 25, window_edge, 0};
      const kept_rows changed(map, all);
      map.shift = shift_of_odd_blocks;
      const kept_rows next(map, all);
      const values stream = this->random(map.tokens() * channels, 1.0f, 0.3f);
      const values change = this->random(std::int64_t{changed.rows.count()} * channels, 1.0f);
      const values weight = this->random(channels, 0.2f, 1.0f);
      const values shift = this->random(channels, 0.2f);
      const auto on_device = this->upload(stream), change_on_device = this->upload(change);
      const auto weight_on_device = this->upload(weight), shift_on_device = this->upload(shift);
      const test::device_array<TypeParam> rows(std::int64_t{next.rows.count()} * channels);
      const test::device_array<float> magnitude(map.tokens());
      const test::device_array<std::uint32_t> positions(next.rows.count());
      token_update work;
      work.channels = channels;
      work.map = map;
      work.stream = on_device.data();
      work.change = change_on_device.data();
      work.changed = changed.rows;
      work.magnitude = magnitude.data();
      work.rows = rows.data();
      work.next = next.rows;
      work.norm = {weight_on_device.data(), shift_on_device.data()};
      work.positions = positions.data();
      test::check_cuda(launch_token_update(this->type, work, nullptr), "token update");

      const std::vector<double> sums = sums_of(stream, change, changed, channels);
      this->expect_close(this->download(on_device), sums);
      this->expect_close(this->download(rows), norms_of(sums, next, channels, weight, shift));
      EXPECT_EQ(positions.to_host(), next.positions);
      std::vector<double> magnitudes(index(map.tokens()));
      for (std::size_t i = 0; i < sums.size(); ++i)
        magnitudes[i / index(channels)] += std::abs(sums[i]) / channels;
      this->expect_close(magnitude.to_host(), magnitudes);
    }
}

TYPED_TEST(device_kernels, ends_stages) {
  for (const int channels : {96, 192, 384, 768})
    for (const bool merges : {true, false}) {
      SCOPED_TRACE(std::to_string(channels) + (merges ? " channels, merged" : " channels"));
      const grid_window map{2, 15, 19, window_edge, shift_of_odd_blocks};
      const kept_rows kept(map, false);
      const int places_down = round_up_div(map.height, 2), across = round_up_div(map.width, 2);
      const values stream = this->random(map.tokens() * channels, 1.0f, 0.3f);
      const values change = this->random(std::int64_t{kept.rows.count()} * channels, 1.0f);
      const values weight = this->random(channels, 0.2f, 1.0f),
                   shift = this->random(channels, 0.2f);
      const values merge_weight = this->random(4 * channels, 0.2f, 1.0f);
      const values merge_shift = this->random(4 * channels, 0.2f);
      const auto on_device = this->upload(stream), change_on_device = this->upload(change);
      const auto weight_on_device = this->upload(weight), shift_on_device = this->upload(shift);
      const auto merge_weight_on_device = this->upload(merge_weight);
      const auto merge_shift_on_device = this->upload(merge_shift);
      const test::device_array<TypeParam> output(map.tokens() * channels);
      const test::device_array<TypeParam> merged(std::int64_t{map.batch} * places_down * across *
                                                 4 * channels);
      stage_end work;
      work.channels = channels;
      work.map = map;
      work.stream = on_device.data();
      work.change = change_on_device.data();
      work.changed = kept.rows;
      work.output = output.data();
      work.norm = {weight_on_device.data(), shift_on_device.data()};
      if (merges) {
        work.merged = merged.data();
        work.merge_norm = {merge_weight_on_device.data(), merge_shift_on_device.data()};
      }
      test::check_cuda(launch_stage_end(this->type, work, nullptr), "stage end");

      std::vector<double> x(stream.begin(), stream.end()), expected(x.size());
      for (std::size_t r = 0; r < kept.tokens.size(); ++r)
        for (int c = 0; kept.tokens[r] >= 0 && c < channels; ++c)
          x[index(kept.tokens[r] * channels + c)] += change[r * index(channels) + index(c)];
      for (std::int64_t t = 0; t < map.tokens(); ++t)
        set_row(expected, t, normed(row_of(x, t, channels), weight, shift));
      this->expect_close(this->download(output), expected);
      if (!merges) continue;
      std::vector<double> expected_merged(index(merged.size()));
      for (std::int64_t p = 0; p < merged.size() / (4 * channels); ++p) {
        std::vector<double> four;
        for (int corner = 0; corner < 4; ++corner) {
          const std::int64_t y = p / across % places_down * 2 + corner / 2;
          const std::int64_t column = p % across * 2 + corner % 2;
          const std::int64_t image = p / across / places_down;
          std::vector<double> token(index(channels), 0.0);
          if (y < map.height && column < map.width)
            token = row_of(x, (image * map.height + y) * map.width + column, channels);
          four.insert(four.end(), token.begin(), token.end());
        }
        set_row(expected_merged, p, normed(four, merge_weight, merge_shift));
      }
      this->expect_close(this->download(merged), expected_merged);
    }
}

}  // namespace
}  // namespace winnow::swin
