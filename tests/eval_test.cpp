// SPDX-License-Identifier: Apache-2.0
// Runs the tool itself, on little: what it prints, writes and returns, above all for bad input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "support/npy.hpp"
#include "support/run_program.hpp"

namespace winnow {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

test::outcome eval(const std::string& arguments) {
  return test::run_program(WINNOW_EVAL, arguments);
}

class eval_tool : public ::testing::Test {
 protected:
  /// A path in the test's own folder, as the shell reads it.
  [[nodiscard]] std::string quoted(const std::string& name) const {
    return "'" + (folder_.path() / name).string() + "'";
  }
  /// Exit 2, one line that says what is wrong, and no files.
  void expect_refused(const std::string& arguments, const std::string& message) const {
    const test::outcome result = eval(arguments + " --json " + quoted("report.json"));
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.err, StartsWith("winnow-eval: "));
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_.path()))
      EXPECT_THAT(entry.path().string(), ::testing::Not(HasSubstr("report"))) << arguments;
  }
  [[nodiscard]] json report() const {
    return json::parse(test::text_of(folder_.path() / "report.json"));
  }

  const test::temporary_folder folder_;
};

TEST_F(eval_tool, evaluates_the_simulated_scan) {
  const test::outcome result =
      eval("--max-tokens 1500 --head-dim 8 --threads 2 --json " + quoted("report.json"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, IsEmpty());  // no progress where stderr is a file
  for (const char* table : {"WINDOWS", "MEMORY", "PRECISION", "TIME"})
    EXPECT_THAT(result.out, HasSubstr(table));

  const json written = report();
  EXPECT_GT(written.at("points"), 80000);
  EXPECT_EQ(written.at("tokens").at("evaluated"), 1500);
  EXPECT_FALSE(written.at("commit").get<std::string>().empty());
  EXPECT_EQ(written.at("machine").at("threads"), 2);
  ASSERT_EQ(written.at("windows").size(), 2u);
  for (const json& windows : written.at("windows")) {
    const std::int64_t pairs = windows.at("pairs");
    EXPECT_GE(pairs, 1500);
    for (const json& attention : windows.at("attention")) {
      const bool contextual = attention.at("position") == "contextual";
      EXPECT_EQ(attention.at("runs").at("float16").at("pair_list_bytes").at("forward"),
                pairs * ((contextual ? 20 : 8) + 2 * 2 * 2));
      EXPECT_GT(attention.at("runs").at("float32").at("backward").at("seconds"), 0.0);
      const json& errors = attention.at("errors");
      const json& gradients = errors.at("gradients_of_normal_loss");
      EXPECT_EQ(gradients.size(), contextual ? 6u : 3u);
      // Rounding of the inputs included; what is promised without it is tested elsewhere.
      EXPECT_LT(errors.at("out").at("half").at("relative"), 2e-3);
      for (const auto& [tensor, error] : gradients.items()) {
        EXPECT_LT(error.at("float").at("relative"), 2e-5) << tensor;
        EXPECT_LT(error.at("half").at("relative"), 4e-3) << tensor;
        EXPECT_LT(error.at("bfloat16").at("relative"), 3e-2) << tensor;
      }
    }
  }
}

TEST_F(eval_tool, evaluates_ready_tokens) {
  // Two tokens of one batch item share a window, the third is in another item.
  support::write_npy<float>(folder_.path() / "coords.npy", {3, 3}, {5, 5, 5, 5, 5, 5, 5, 5, 5});
  support::write_npy<std::int32_t>(folder_.path() / "batch.npy", {3}, {0, 1, 0});
  const test::outcome result = eval("--coords " + quoted("coords.npy") + " --batch-ids " +
                                    quoted("batch.npy") + " --json " + quoted("report.json"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json written = report();
  for (const json& windows : written.at("windows")) {
    EXPECT_EQ(windows.at("windows"), 2);
    EXPECT_EQ(windows.at("pairs"), 5);
    EXPECT_EQ(windows.at("window_tokens").at("max"), 2);
  }
}

TEST_F(eval_tool, evaluates_copies_as_batch_items) {
  support::write_npy<float>(folder_.path() / "scan.npy", {2, 3}, {5, 5, 5, 9, 9, 9});
  const test::outcome result =
      eval("--scan " + quoted("scan.npy") + " --copies 3 --json " + quoted("report.json"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(report().at("tokens").at("evaluated"), 6);
  EXPECT_EQ(report().at("windows").at(0).at("windows"), 6);
}

TEST_F(eval_tool, evaluates_zero_tokens) {
  const test::outcome result = eval("--max-tokens 0 --json " + quoted("report.json"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(report().at("windows").at(1).at("pairs"), 0);
}

TEST_F(eval_tool, never_falls_back_to_another_device) {
#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
  ASSERT_EQ(setenv("CUDA_VISIBLE_DEVICES", "-1", 1), 0);  // hides the GPU, if there is one
  expect_refused("--device cuda", "--device cuda: no GPU can be used");
#else
  expect_refused("--device cuda", "--device cuda: this build of winnow-eval has no CUDA support");
#endif
}

TEST_F(eval_tool, refuses_bad_options) {
  expect_refused("--frobnicate", "--frobnicate");
  expect_refused("--voxel 0", "--voxel: must be a finite number > 0, is 0");
  expect_refused("--voxel nan", "--voxel");
  expect_refused("--cubic-window -1", "--cubic-window");
  expect_refused("--spherical-window 2 0 80", "--spherical-window");
  expect_refused("--spherical-window 2 2", "--spherical-window");
  expect_refused("--quant-length 0", "--quant-length");
  expect_refused("--heads 0", "--heads");
  expect_refused("--head-dim 12", "--head-dim: must be a multiple of 8 up to 128, is 12");
  expect_refused("--device tpu", "--device");
  expect_refused("--max-tokens -1", "--max-tokens");
  expect_refused("--scan x --format las", "--format");
  expect_refused("--format kitti", "--format requires --scan");
  expect_refused("--scan x --coords y", "--scan excludes --coords");
  expect_refused("--batch-ids x", "--batch-ids requires --coords");
}

TEST_F(eval_tool, refuses_bad_files) {
  expect_refused("--scan " + quoted("absent.bin"), "absent.bin: no such file");
  std::ofstream(folder_.path() / "empty.bin");
  expect_refused("--scan " + quoted("empty.bin"), "empty.bin: empty file");
  std::ofstream(folder_.path() / "short.bin") << "seventeen bytes..";
  expect_refused("--scan " + quoted("short.bin"), "short.bin: truncated or of unknown format");
  expect_refused("--scan " + quoted(""), "not a regular file");

  support::write_npy<float>(folder_.path() / "coords.npy", {1, 3}, {1, 2, 3});
  support::write_npy<std::int32_t>(folder_.path() / "two.npy", {2}, {0, 0});
  support::write_npy<std::int32_t>(folder_.path() / "negative.npy", {1}, {-1});
  support::write_npy<float>(folder_.path() / "float.npy", {1}, {0});
  const std::string coords = "--coords " + quoted("coords.npy") + " --batch-ids ";
  expect_refused(coords + quoted("two.npy"), "has shape (2,), the coordinates have 1 tokens");
  expect_refused(coords + quoted("negative.npy"), "token 0: batch id is not in 0 to 2^31 - 1");
  expect_refused(coords + quoted("float.npy"), "has elements <f4, batch ids need <i4 or <i8");
}

TEST_F(eval_tool, refuses_an_unwritable_report_before_the_work) {
  const test::outcome result = eval("--json " + quoted("absent/report.json"));
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, HasSubstr("there is no folder"));
}

TEST_F(eval_tool, writes_a_report) {
  // A name that would be markup, and a folder that is not there yet.
  support::write_npy<float>(folder_.path() / "a<b>&'c.npy", {3, 3}, {5, 5, 5, 5, 5, 5, 9, 9, 9});
  const test::outcome result = eval("--scan \"" + (folder_.path() / "a<b>&'c.npy").string() +
                                    "\" --voxel 0.001 --report " + quoted("folder"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("folder/report.html\n"));
  const std::string page = test::text_of(folder_.path() / "folder" / "report.html");
  EXPECT_THAT(page, HasSubstr("a&lt;b&gt;&amp;&#39;c.npy (npy)"));
  EXPECT_THAT(page, ::testing::Not(HasSubstr("a<b>")));
  EXPECT_THAT(page, ::testing::EndsWith("</html>\n"));
  // The command again, as a shell reads it.
  EXPECT_THAT(page, HasSubstr("winnow-eval --scan &#39;"));
}

TEST_F(eval_tool, reports_zero_tokens) {
  const test::outcome result = eval("--max-tokens 0 --report " + quoted("folder"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(test::text_of(folder_.path() / "folder" / "report.html"),
              HasSubstr("There are no tokens to draw"));
}

TEST_F(eval_tool, refuses_an_unwritable_report_folder_before_the_work) {
  const auto expect_refusal = [&](const std::string& folder, const std::string& message) {
    const test::outcome result = eval("--report " + folder);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, HasSubstr(message));
  };
  expect_refusal(quoted("absent/folder"), "absent/folder: this folder cannot be made");
  std::ofstream(folder_.path() / "file");
  expect_refusal(quoted("file"), "file: is not a folder");
  if (geteuid() != 0) {  // root may write anywhere
    fs::create_directory(folder_.path() / "locked");
    fs::permissions(folder_.path() / "locked", fs::perms::owner_read | fs::perms::owner_exec);
    expect_refusal(quoted("locked"), "locked: this folder cannot be written to");
  }
}

TEST(eval_help, is_printed) {
  const test::outcome help = eval("--help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("--spherical-window"));
  const test::outcome version = eval("--version");
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, StartsWith("winnow-eval "));
}

}  // namespace
}  // namespace winnow
