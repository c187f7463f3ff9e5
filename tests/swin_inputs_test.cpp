// SPDX-License-Identifier: Apache-2.0
// What users give the Swin backbone: ratios, weights, images, a command for scores; and the picture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/npy.hpp"
#include "support/temporary_folder.hpp"
#include "swin/images.hpp"
#include "swin/prune.hpp"
#include "swin/scatter_plot.hpp"
#include "swin/score_command.hpp"
#include "swin/weights.hpp"

namespace winnow::swin {
namespace {

using support::input_error;
using testing::HasSubstr;

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const input_error& error) {
    return error.what();
  }
  return "no error";
}

std::string prune_error(const std::string& text) {
  return message_of([&] { (void)parse_prune(text, model()); });
}

TEST(prune_ratios, reads_names_numbers_and_lists) {
  const model network;
  EXPECT_TRUE(is_dense(parse_prune("dense", network)));
  EXPECT_EQ(to_text(parse_prune("config3", network)),
            "0.7 0.7 | 0 0 | 0.2 0.2 0.4 0.4 0.5 0.5 | 0 0");
  EXPECT_EQ(parse_prune("0.6", network), parse_prune("uniform60", network));
  EXPECT_EQ(parse_prune("0.7|0|0.2 0.2 0.4 0.4 0.5 0.5|0", network),
            parse_prune("config3", network));
  EXPECT_EQ(split_stages({.1, .1, .2, .2, .3, .3, .3, .3, .3, .3, .4, .4}, network),
            parse_prune("0.1 | 0.2 | 0.3 | 0.4", network));
}

TEST(prune_ratios, says_what_is_wrong) {
  EXPECT_THAT(prune_error("1"), HasSubstr("stage 1, block 1: ratio 1, must be in [0, 1)"));
  EXPECT_THAT(prune_error("0 | 0 -0.1 | 0 | 0"), HasSubstr("stage 2, block 2: ratio -0.1"));
  EXPECT_THAT(prune_error("nan"), HasSubstr("must be in [0, 1)"));
  EXPECT_THAT(prune_error("much"), HasSubstr("\"much\" is neither a number nor a name"));
  EXPECT_THAT(prune_error("0.5x"), HasSubstr("\"0.5x\""));
  EXPECT_THAT(prune_error(""), HasSubstr("prune: "));
  EXPECT_THAT(prune_error("0 | 0"), HasSubstr("2 stages are given, not 4"));
  EXPECT_THAT(prune_error("0 | 0 | 0 | 0 | 0"), HasSubstr("more than 4 stages"));
  EXPECT_THAT(prune_error("0.1 0.2"), HasSubstr("neither one ratio nor"));
  EXPECT_THAT(prune_error("0 | 0 | 0 0 0 | 0"), HasSubstr("stage 3 has 3 ratios and 6 blocks"));
}

TEST(prune_ratios, later_blocks_keep_a_prefix) {
  EXPECT_THAT(prune_error("0 | 0 | 0.5 0.5 0.4 0.5 0.5 0.5 | 0"),
              HasSubstr("stage 3, block 3: ratio 0.4 keeps more windows than 0.5"));
  // Each shift has its own ranking, and dense blocks need none.
  EXPECT_EQ(prune_error("0 | 0 | 0.5 0.2 0 0.3 0.6 0.2 | 0"), "no error");
}

TEST(prune_ratios, counts_windows_as_the_library_does) {
  const grid_window map = map_of_stage({1, 672, 672}, 0);
  const stage_pruning pruning = pruning_of({0.7, 0.0}, map);
  EXPECT_EQ(pruning.kept, (std::vector<std::int64_t>{172, 576}));
  EXPECT_EQ(pruning.ranked_at, 0);
  EXPECT_EQ(pruning.longest[0], 172);
  EXPECT_EQ(pruning.longest[1], 0);
}

TEST(image_sizes, an_image_holds_a_window) {
  EXPECT_EQ(message_of([] { check(image_size{1, 28, 40}); }), "no error");
  EXPECT_THAT(message_of([] { check(image_size{1, 27, 40}); }), HasSubstr("27 x 40"));
  EXPECT_THAT(message_of([] { check(image_size{0, 28, 28}); }), HasSubstr("batch"));
  const grid_window last = map_of_stage({1, 100, 61}, 3);
  EXPECT_EQ(last.height, 4);  // 25, 13, 7, 4
  EXPECT_EQ(last.width, 2);   // 16, 8, 4, 2
}

model tiny_model() {
  model network;
  network.channels = 8;
  network.depths = {2};
  network.heads = {1};
  return network;
}

class weight_folder : public testing::Test {
 protected:
  weight_folder() {
    const weights arrays = random_weights(network_, 5);
    for (const weight_spec& spec : weight_specs(network_))
      support::write_npy(file(spec.name), spec.shape, arrays.at(spec.name));
  }
  [[nodiscard]] std::filesystem::path file(const std::string& name) const {
    return folder_.path() / (name + ".npy");
  }
  [[nodiscard]] std::string error() const {
    return message_of([&] { (void)load_weights(folder_.path(), network_); });
  }
  model network_ = tiny_model();
  test::temporary_folder folder_;
};

TEST_F(weight_folder, comes_back_bit_for_bit) {
  const weights read = load_weights(folder_.path(), network_);
  const weights expected = random_weights(network_, 5);
  for (const weight_spec& spec : weight_specs(network_))
    EXPECT_EQ(read.at(spec.name), expected.at(spec.name)) << spec.name;
}

TEST_F(weight_folder, takes_a_checkpoints_prefix_and_other_floats) {
  const std::string name = "norm0.bias";
  std::filesystem::remove(file(name));
  support::write_npy(file("backbone." + name), {8}, std::vector<double>(8, 0.25));
  EXPECT_EQ(load_weights(folder_.path(), network_).at(name), std::vector<float>(8, 0.25f));
}

TEST_F(weight_folder, names_what_is_missing_or_wrong) {
  const std::string name = "stages.0.blocks.1.ffn.layers.0.0.weight";
  support::write_npy(file(name), {8, 32}, std::vector<float>(256));
  EXPECT_THAT(error(), HasSubstr(name + ".npy: shape is (8, 32), must be (32, 8)"));
  support::write_npy(file(name), {32, 8}, std::vector<std::int32_t>(256));
  EXPECT_THAT(error(), HasSubstr("elements are <i4"));
  support::write_npy(file(name), {32, 8}, std::vector<float>(256, HUGE_VALF));
  EXPECT_THAT(error(), HasSubstr("element 0 is not finite"));
  std::filesystem::remove(file(name));
  EXPECT_THAT(error(), HasSubstr(name + ".npy"));
  EXPECT_THAT(message_of([&] { (void)load_weights(folder_.path() / "none", network_); }),
              HasSubstr("is not a folder"));
}

TEST(random_weights_of, the_same_seed_are_the_same) {
  const model network = tiny_model();
  const std::string name = "stages.0.blocks.0.attn.w_msa.qkv.weight";
  EXPECT_EQ(random_weights(network, 1).at(name), random_weights(network, 1).at(name));
  EXPECT_NE(random_weights(network, 1).at(name), random_weights(network, 2).at(name));
}

TEST(image_files, are_read_and_checked) {
  const test::temporary_folder folder;
  const auto error = [&] { return message_of([&] { (void)load_images(folder.path()); }); };
  EXPECT_THAT(error(), HasSubstr("holds no image"));
  support::write_npy(folder.path() / "a.npy", {2, 3, 28, 32}, std::vector<float>(2 * 3 * 28 * 32));
  support::write_npy(folder.path() / "b.npy", {3, 28, 32}, std::vector<float>(3 * 28 * 32, 1.0f));
  const image_set images = load_images(folder.path());
  EXPECT_EQ(images.count, 3);
  EXPECT_EQ(images.values.back(), 1.0f);
  support::write_npy(folder.path() / "c.npy", {3, 32, 28}, std::vector<float>(3 * 28 * 32));
  EXPECT_THAT(error(), HasSubstr("c.npy: images are 32 x 28, those before are 28 x 32"));
  support::write_npy(folder.path() / "c.npy", {1, 28, 32}, std::vector<float>(28 * 32));
  EXPECT_THAT(error(), HasSubstr("c.npy: shape is (1, 28, 32)"));
  support::write_npy(folder.path() / "c.npy", {3, 28, 32}, std::vector<std::uint8_t>(3 * 28 * 32));
  EXPECT_THAT(error(), HasSubstr("c.npy: elements are"));
  std::filesystem::remove(folder.path() / "c.npy");
  support::write_npy(folder.path() / "c.npy", {3, 28, 32}, std::vector<float>(3 * 28 * 32, NAN));
  EXPECT_THAT(error(), HasSubstr("c.npy: a value is not finite"));
}

TEST(score_commands, return_the_last_line) {
  EXPECT_EQ(run_score_command("echo noise; echo 0.25; true", {}), 0.25);
  EXPECT_EQ(run_score_command("f() { echo \"$2\"; }; f", {0.1, 0.7}), 0.7);
  EXPECT_THAT(message_of([] { run_score_command("exit 3;", {}); }), HasSubstr("failed"));
  EXPECT_THAT(message_of([] { run_score_command("echo good #", {}); }),
              HasSubstr("printed \"good\" last"));
  EXPECT_THAT(message_of([] { run_score_command("true #", {}); }), HasSubstr("not a number"));
}

TEST(scatter_plots, mark_the_front) {
  const std::string picture =
      scatter_plot({{1.0, 0.5, true, "a < b"}, {2.0, 0.4, false, "c"}, {3.0, 0.9, true, "d"}}, "T",
                   "ms", "score");
  EXPECT_THAT(picture, testing::StartsWith("<svg"));
  EXPECT_THAT(picture, testing::EndsWith("</svg>\n"));
  EXPECT_THAT(picture, HasSubstr("a &lt; b"));
  EXPECT_THAT(picture, HasSubstr("<polyline"));
  std::size_t circles = 0;
  for (std::size_t at = 0; (at = picture.find("<circle", at)) != std::string::npos; ++at) ++circles;
  EXPECT_EQ(circles, 3u);
}

TEST(scatter_plots, of_nothing_and_of_one_point_are_pictures) {
  EXPECT_THAT(scatter_plot({}, "T", "x", "y"), testing::Not(HasSubstr("<circle")));
  EXPECT_THAT(scatter_plot({{0.0, 0.0, true, ""}}, "T", "x", "y"), testing::Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace winnow::swin
