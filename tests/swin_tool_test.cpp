// SPDX-License-Identifier: Apache-2.0
// winnow-swin as its users see it: what it says about bad input, and where there is a GPU what it measures
// and finds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/device.hpp"
#include "support/npy.hpp"
#include "support/run_program.hpp"

namespace winnow::test {
namespace {

using testing::HasSubstr;

outcome run(const std::string& arguments) {
  return run_program(WINNOW_SWIN, arguments);
}

void expect_refused(const std::string& arguments, const std::string& reason) {
  const outcome result = run(arguments);
  EXPECT_EQ(result.exit_code, 2) << arguments;
  EXPECT_THAT(result.err, HasSubstr(reason));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

TEST(swin_tool, refuses_bad_options) {
  expect_refused("", "options");
  expect_refused("latency --prune 1.5", "ratio 1.5, must be in [0, 1)");
  expect_refused("latency --prune '0 | 0'", "2 stages are given, not 4");
  expect_refused("latency --image 20", "20 x 20");
  expect_refused("latency --image 20y", "must be HEIGHT or HEIGHTxWIDTH");
  expect_refused("latency --batch 0", "--batch");
  expect_refused("latency --dtype float", "--dtype");
  expect_refused("search --image 672x12", "672 x 12");
  expect_refused("search --population 1", "--population");
  expect_refused("search --min 2 --max 1", "must not be less than --min");
  expect_refused("search --max nan", "must not be less than --min");
  expect_refused("search --log /no/such/folder/a.csv", "/no/such/folder/a.csv: cannot be written");
}

TEST(swin_tool, says_where_there_is_no_gpu) {
  if (missing_gpu().empty()) GTEST_SKIP() << "there is a GPU";
  expect_refused("latency", "no GPU can be used");
  expect_refused("search", "no GPU can be used");
}

constexpr const char* quick = " --image 112 --batch 1 --warm-up 2 --repeats 4 ";

TEST(swin_tool, refuses_bad_files) {
  WINNOW_SKIP_WITHOUT_GPU();
  const temporary_folder folder;
  const std::string path = folder.path().string();
  expect_refused("latency --weights " + path + quick, "patch_embed.projection.weight.npy");
  expect_refused("latency --images " + path + quick, "holds no image");
  support::write_npy(folder.path() / "a.npy", {3, 56, 56}, std::vector<float>(3 * 56 * 56));
  expect_refused("latency --images " + path + quick, "images are 56 x 56");
}

TEST(swin_tool, measures_dense_and_pruned) {
  WINNOW_SKIP_WITHOUT_GPU();
  const temporary_folder folder;
  const std::string json = (folder.path() / "latency.json").string();
  const outcome result = run("latency --prune config3 --prune 0.5 --json " + json + quick);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("dense"));
  EXPECT_THAT(result.out, HasSubstr("config3"));
  EXPECT_THAT(text_of(json), HasSubstr("\"wall_ms\""));
}

TEST(swin_tool, searches_and_draws) {
  WINNOW_SKIP_WITHOUT_GPU();
  const temporary_folder folder;
  const std::string path = folder.path().string() + "/";
  const std::string files =
      " --log " + path + "a.csv --picture " + path + "a.svg --table " + path + "a.table";
  const outcome first = run("search --generations 2 --population 4" + files + quick);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_THAT(first.out, HasSubstr("generation 2 of 2: "));
  EXPECT_THAT(first.out, HasSubstr("best: "));
  EXPECT_THAT(text_of(path + "a.csv"), testing::StartsWith("latency_ms,score,on_front,ratios\n"));
  EXPECT_THAT(text_of(path + "a.svg"), testing::StartsWith("<svg"));

  const outcome scored =
      run("search --generations 1 --population 4 --score 'echo 1 #'" + files + quick);
  EXPECT_EQ(scored.exit_code, 0) << scored.err;
  expect_refused("search --generations 1 --score false" + files + quick, "failed with status");
  expect_refused("search --max 0.000001 --min 0" + files + quick, "nearest");
}

}  // namespace
}  // namespace winnow::test
