// SPDX-License-Identifier: Apache-2.0
// The parts of winnow-eval's report. check_report.py looks at a whole one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "eval/attention_sample.hpp"
#include "eval/json_report.hpp"
#include "eval/printing.hpp"
#include "eval/published.hpp"
#include "eval/report/chart.hpp"
#include "eval/report/html.hpp"
#include "eval/report/page.hpp"
#include "eval/report/png.hpp"
#include "eval/report/scan_picture.hpp"
#include "eval/report/window_picture.hpp"
#include "eval/statistics.hpp"
#include "support/random.hpp"
#include "support/run_program.hpp"
#include "winnow/reference.hpp"

namespace winnow::eval {
namespace {

using report::escaped;
using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Not;

/// Unpacks a deflate stream of one block in the fixed code (RFC 1951).
class fixed_inflate {
 public:
  explicit fixed_inflate(const std::string& bytes) : bytes_(bytes) {}

  std::string run() {
    EXPECT_EQ(bits(1), 1);  // the last block
    EXPECT_EQ(bits(2), 1);  // in the fixed code
    std::string result;
    for (int symbol = next_symbol(); symbol != 256; symbol = next_symbol()) {
      if (symbol < 256) {
        result += static_cast<char>(symbol);
        continue;
      }
      const int length = symbol == 285 ? 258 : 3 + joined(symbol - 257, 4);
      int code = 0;
      for (int bit = 0; bit < 5; ++bit) code = 2 * code + bits(1);
      const auto distance = static_cast<std::size_t>(1 + joined(code, 2));
      if (distance > result.size()) {
        ADD_FAILURE() << "a repeat from before the beginning";
        return result;
      }
      for (int n = 0; n < length; ++n) result += result[result.size() - distance];
    }
    return result;
  }

 private:
  int bits(int count) {
    int value = 0;
    for (int bit = 0; bit < count; ++bit, ++at_)
      value |= (static_cast<unsigned char>(bytes_.at(at_ / 8)) >> at_ % 8 & 1) << bit;
    return value;
  }
  int joined(int code, int per_octave) {
    if (code < 2 * per_octave) return code;
    const int open = code / per_octave - 1;
    return ((per_octave + code % per_octave) << open) + bits(open);
  }
  int next_symbol() {
    int code = 0;
    for (int length = 1; length <= 9; ++length) {
      code = 2 * code + bits(1);
      if (length == 7 && code < 24) return 256 + code;
      if (length == 8 && code >= 0x30 && code < 0xc0) return code - 0x30;
      if (length == 8 && code >= 0xc0 && code < 0xc8) return 280 + code - 0xc0;
      if (length == 9) return 144 + code - 0x190;
    }
    return 256;
  }

  const std::string& bytes_;
  std::size_t at_ = 0;
};

/// The content of the first chunk of a type.
std::string chunk(const std::string& png, const std::string& type) {
  const std::size_t at = png.find(type);
  if (at == std::string::npos) return {};
  std::size_t length = 0;
  for (std::size_t n = at - 4; n < at; ++n)
    length = length << 8 | static_cast<unsigned char>(png[n]);
  return png.substr(at + 4, length);
}

TEST(png, keeps_every_pixel) {
  support::random_source random(3);
  report::indexed_image image;
  image.width = 301;
  image.height = 173;
  image.palette = {{0, 0, 0, 0}, {1, 2, 3, 255}, {4, 5, 6, 255}};
  image.pixels.resize(std::size_t{301} * 173);
  // Noise, then long runs, whose repeats take every length code.
  for (std::size_t n = 0; n < image.pixels.size(); ++n)
    image.pixels[n] = n < 9000 ? static_cast<std::uint8_t>(random.uniform(0.0, 256.0))
                               : static_cast<std::uint8_t>(n % 977 < n % 331 ? 1 : 2);
  const std::string file = report::png(image);
  EXPECT_EQ(file.substr(0, 8), "\x89PNG\r\n\x1a\n");
  EXPECT_EQ(chunk(file, "PLTE"), std::string("\0\0\0\1\2\3\4\5\6", 9));
  EXPECT_EQ(chunk(file, "tRNS"), std::string("\0\xff\xff", 3));
  EXPECT_EQ(file.substr(file.size() - 8), "IEND\xae\x42\x60\x82");  // the known CRC of nothing
  const std::string data = chunk(file, "IDAT").substr(2);
  const std::string rows = fixed_inflate(data).run();
  ASSERT_EQ(rows.size(), std::size_t{302} * 173);
  for (std::size_t y = 0; y < 173; ++y)
    for (std::size_t x = 0; x < 302; ++x)
      ASSERT_EQ(static_cast<std::uint8_t>(rows[y * 302 + x]),
                x == 0 ? 0 : image.pixels[y * 301 + x - 1])
          << x << ' ' << y;
}

TEST(png, packs_empty_pictures_tightly) {
  report::indexed_image image;
  image.width = image.height = 880;
  image.palette = {{0, 0, 0, 0}};
  image.pixels.resize(std::size_t{880} * 880);
  EXPECT_LT(report::png(image).size(), 6000u);
}

TEST(base64, knows_the_test_vectors) {
  EXPECT_EQ(report::base64(""), "");
  EXPECT_EQ(report::base64("f"), "Zg==");
  EXPECT_EQ(report::base64("fo"), "Zm8=");
  EXPECT_EQ(report::base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(report::base64("\xff\xfe"), "//4=");
}

TEST(html, escapes) {
  EXPECT_EQ(escaped("<a href=\"x\">'&'</a>"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
  report::table shown("<caption>", {"<first>", "<second>"});
  shown.group("<group>");
  shown.row("<row>", {report::cell("<cell>")});
  const std::string html = shown.html();
  for (const char* each : {"caption", "first", "second", "group", "row", "cell"}) {
    EXPECT_THAT(html, HasSubstr(std::string("&lt;") + each + "&gt;"));
  }
}

TEST(html, tables_have_no_holes) {
  report::table shown("caption", {"first", "second"});
  EXPECT_THROW(shown.row("row", {}), std::logic_error);
  EXPECT_THROW(shown.row("row", {report::cell("")}), std::logic_error);
}

TEST(statistics, bins_window_sizes_by_powers_of_two) {
  std::vector<std::int32_t> offsets = {0, 1, 2, 5, 12};
  partition_counts counts{4, 12, 12, 7};
  partition windows;
  windows.counts = &counts;
  windows.offsets = offsets.data();
  const window_statistics result = statistics_of(windows);
  ASSERT_EQ(result.bins.size(), 3u);
  EXPECT_EQ(result.bins[0].windows, 2);
  EXPECT_EQ(result.bins[1].tokens, 3);
  EXPECT_EQ(result.bins[2].from, 4);
  EXPECT_EQ(result.bins[2].to, 7);
  EXPECT_EQ(result.bins[2].tokens, 7);
}

array normal_array(std::int64_t elements, support::random_source& random) {
  array result(dtype::float32, elements);
  for (std::int64_t n = 0; n < elements; ++n)
    result.as<float>()[n] = static_cast<float>(random.normal());
  return result;
}

/// Some twenty tokens in one cubic window, a few in others.
class attention_weights_test : public ::testing::Test {
 protected:
  attention_weights_test() {
    support::random_source random(1);
    for (int n = 0; n < 30; ++n) {
      support::point& added = coordinates_.emplace_back();
      for (float& each : added)
        each = static_cast<float>(random.uniform(0.0, 0.9) + (n % 3 == 2 ? 5.0 * n : 0.0));
    }
    coordinates_.front() = {0.0f, 0.0f, 0.0f};
    window_.size = {1.0f, 1.0f, 1.0f};
    window_.quant_length = 6;
    windows_ = reference::host_partition(shape_of(window_, 30));
    point_set points;
    points.coordinates = tensor_view<const float, 2>(coordinates_.front().data(), {30, 3});
    EXPECT_TRUE(reference::build_partition(window_, points, windows_.view()).ok());
    tensors_.tokens = 30;
    tensors_.heads = 2;
    tensors_.head_dim = 8;
    for (array* each : {&tensors_.q, &tensors_.k}) *each = normal_array(30 * 2 * 8, random);
    for (array* each : {&tensors_.table_q, &tensors_.table_k, &tensors_.table_v})
      *each = normal_array(11 * 3 * 2 * 8, random);
  }

  /// The softmax row as the formula says it.
  [[nodiscard]] std::vector<double> naive(const sampled_query& at) const {
    const partition& windows = windows_.view();
    std::vector<double> weights;
    double sum = 0.0;
    const std::int64_t i = windows.order[at.slot];
    for (int slot = windows.offsets[at.window]; slot < windows.offsets[at.window + 1]; ++slot) {
      const std::int64_t j = windows.order[slot];
      double logit = 0.0;
      for (std::int64_t d = 0; d < 8; ++d) {
        const double q = static_cast<double>(1.0f / std::sqrt(8.0f)) *
                         tensors_.q.as<float>()[(2 * i + at.head) * 8 + d];
        const double k = tensors_.k.as<float>()[(2 * j + at.head) * 8 + d];
        logit += q * k;
        for (int axis = 0; axis < 3 && tensors_.table_rows > 0; ++axis) {
          const std::int64_t row = difference_row(unpack_position(windows.position[at.slot], axis),
                                                  unpack_position(windows.position[slot], axis), 6);
          const std::int64_t place = ((row * 3 + axis) * 2 + at.head) * 8 + d;
          logit +=
              q * tensors_.table_q.as<float>()[place] + k * tensors_.table_k.as<float>()[place];
        }
      }
      weights.push_back(std::exp(logit));
      sum += weights.back();
    }
    for (double& each : weights) each /= sum;
    return weights;
  }

  std::vector<support::point> coordinates_;
  cubic_window window_;
  reference::host_partition windows_;
  attention_tensors tensors_;
};

TEST_F(attention_weights_test, are_the_softmax_row) {
  std::optional<sampled_query> picked = pick_query(windows_.view(), coordinates_);
  ASSERT_TRUE(picked);
  const attention_sample sample = describe(*picked, windows_.view(), coordinates_);
  EXPECT_EQ(sample.tokens.size(), 20u);  // more than the head dim
  for (const int rows : {0, 11}) {
    for (const int head : {0, 1}) {
      tensors_.table_rows = rows;
      picked->head = head;
      const std::vector<double> weights = attention_weights(windows_.view(), *picked, tensors_);
      const std::vector<double> expected = naive(*picked);
      ASSERT_EQ(weights.size(), expected.size());
      for (std::size_t n = 0; n < weights.size(); ++n)
        EXPECT_THAT(weights[n], DoubleNear(expected[n], 1e-12)) << rows << ' ' << head << ' ' << n;
    }
  }
}

TEST_F(attention_weights_test, need_a_window_of_two_tokens) {
  window_.size = {1e-4f, 1e-4f, 1e-4f};
  point_set points;
  points.coordinates = tensor_view<const float, 2>(coordinates_.front().data(), {30, 3});
  ASSERT_TRUE(reference::build_partition(window_, points, windows_.view()).ok());
  EXPECT_FALSE(pick_query(windows_.view(), coordinates_));
}

TEST(scan_picture, draws_odd_scans) {
  token_set tokens;
  tokens.coordinates = {{1.0f, 2.0f, 3.0f}, {1e30f, -1e30f, 0.0f}};
  tokens.batch = {0, 0};
  const report::square view = report::whole_scan(tokens);
  EXPECT_TRUE(std::isfinite(view.side));
  EXPECT_THAT(report::draw_scan({view, view, 0.05, "<title>"}, tokens, {0, 1}),
              HasSubstr("&lt;title&gt;"));
  tokens.coordinates.pop_back();
  tokens.batch.pop_back();
  EXPECT_GT(report::whole_scan(tokens).side, 0.0);
}

/// Stands for a GPU.
class other_device : public backend {
 public:
  [[nodiscard]] std::string description() const override { return "<some> GPU"; }
  [[nodiscard]] dtype usual_storage() const override { return dtype::float16; }
  std::unique_ptr<built_partition> build(const point_window&, const token_set&) override {
    return nullptr;
  }
  attention_result run(const built_partition&, const attention_tensors&, dtype) override {
    return {};
  }
};

/// A run of the reference benchmark, all numbers 0 but those that tell it from others.
class reference_benchmark : public ::testing::Test {
 protected:
  reference_benchmark() {
    tokens_.source = "<source> & 'more'";
    tokens_.coordinates.resize(published::tokens);
    tokens_.batch.resize(published::tokens);
    for (const char* kind : {"cubic", "spherical"}) {
      window_evaluation& windows = windows_.emplace_back();
      windows.kind = kind;
      windows.size = "2 deg, 2 deg, 80 m";
      windows.statistics.windows = 78294;
      windows.window_of_token.resize(published::tokens);
      for (const bool contextual : {false, true}) {
        attention_evaluation& attention = windows.attention.emplace_back();
        attention.contextual = contextual;
        attention.out.tensor = "out";
        for (auto& rows : attention.gradients)
          for (const char* name : {"dq", "dk", "dv", "dTq", "dTk", "dTv"})
            if (rows.size() < 3 || contextual) rows.push_back({name, {}});
        for (const dtype storage : storage_types)
          attention.runs.push_back({storage, {}, {}, 0, {}});
      }
    }
    windows_[0].attention[1].runs[2].forward.seconds = 0.000123;
    windows_[0].attention[1].out.errors[1].largest = NAN;
  }

  [[nodiscard]] std::string page() const {
    return report::make_page(make_json(asked_, tokens_, device_, windows_), tokens_, windows_);
  }
  [[nodiscard]] std::string printed() const {
    const test::temporary_folder folder;
    std::FILE* file = std::fopen((folder.path() / "text").c_str(), "w");
    print_published(file, asked_, tokens_, device_, windows_);
    std::fclose(file);
    return test::text_of(folder.path() / "text");
  }

  options asked_;
  token_set tokens_;
  other_device device_;
  std::vector<window_evaluation> windows_;
};

TEST_F(reference_benchmark, stands_beside_published_figures) {
  const std::string html = page();
  for (const char* each : {"winnow, cubic", "winnow, half", "580 MB", "3.2e-1", "4,734 ms",
                           "0.12 ms", "The GPUs differ", "on another GPU", "nan"})
    EXPECT_THAT(html, HasSubstr(each));
  const std::string text = printed();
  for (const char* each : {"winnow, spherical", "580 MB", "3.8e-2", "1.3e-2 to 4.1e-2", "4,734",
                           "0.12", "The GPUs differ", "NVIDIA H200", "<some> GPU", "nan"})
    EXPECT_THAT(text, HasSubstr(each));
}

TEST_F(reference_benchmark, is_no_other_run) {
  windows_[0].statistics.windows = 78295;
  EXPECT_THAT(printed(), HasSubstr("belong to other windows"));
  asked_.heads = 4;
  EXPECT_THAT(page(), HasSubstr("apply to the reference benchmark of 268,720 tokens only"));
  tokens_.coordinates.pop_back();
  EXPECT_EQ(printed(), "");
}

TEST_F(reference_benchmark, shows_names_as_text) {
  asked_.command_line = "winnow-eval --scan '</pre><script>'";
  const std::string html = page();
  EXPECT_THAT(html, HasSubstr("&lt;source&gt; &amp; &#39;more&#39;"));
  EXPECT_THAT(html, HasSubstr("&lt;/pre&gt;&lt;script&gt;"));
  EXPECT_THAT(html, HasSubstr("&lt;some&gt; GPU"));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("<source>")));
  EXPECT_THAT(html, Not(HasSubstr("http")));
}

}  // namespace
}  // namespace winnow::eval
