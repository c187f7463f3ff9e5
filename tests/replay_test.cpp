// SPDX-License-Identifier: Apache-2.0
// Runs the tool itself: what it prints, writes and returns, above all for bad cases.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "support/npy.hpp"
#include "support/run_program.hpp"
#include "support/temporary_folder.hpp"

namespace winnow {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const fs::path cases = WINNOW_TEST_CASES;

using test::outcome;
using test::text_of;

outcome replay(const std::string& arguments) {
  return test::run_program(WINNOW_REPLAY, arguments);
}

std::string quoted(const fs::path& path) {
  return "'" + path.string() + "'";
}

void replace_in(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = text_of(path);
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from << " is not in " << path;
  text.replace(at, from.size(), to);
  std::ofstream(path) << text;
}

/// Sets the first element of an array.
template <class T>
void set_first(const fs::path& path, T value) {
  const support::npy_array array = support::read_npy(path);
  std::vector<T> values(array.as<T>(), array.as<T>() + array.elements());
  values.at(0) = value;
  support::write_npy(path, array.shape, values);
}

void copy_case(const std::string& name, const fs::path& to) {
  fs::copy(cases / name, to, fs::copy_options::recursive);
}

struct bad_case {
  std::string name;
  std::string base;                            ///< a good case
  std::function<void(const fs::path&)> spoil;  ///< a copy of it
  std::string message;                         ///< what the line on stderr must contain
};

void PrintTo(const bad_case& bad, std::ostream* stream) {
  *stream << bad.name;
}

std::function<void(const fs::path&)> edit(const std::string& from, const std::string& to) {
  return [=](const fs::path& folder) { replace_in(folder / "case.json", from, to); };
}

std::function<void(const fs::path&)> remove(const std::string& file) {
  return [=](const fs::path& folder) { fs::remove(folder / file); };
}

std::function<void(const fs::path&)> resize(const std::string& file, std::uintmax_t size) {
  return [=](const fs::path& folder) { fs::resize_file(folder / file, size); };
}

template <class T>
std::function<void(const fs::path&)> first(const std::string& file, T value) {
  return [=](const fs::path& folder) { set_first<T>(folder / file, value); };
}

template <class T>
std::function<void(const fs::path&)> array(const std::string& file,
                                           std::vector<std::int64_t> shape) {
  return [=](const fs::path& folder) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape) elements *= extent;
    support::write_npy(folder / file, shape, std::vector<T>(static_cast<std::size_t>(elements)));
  };
}

const float nan = std::numeric_limits<float>::quiet_NaN();

const bad_case bad_cases[] = {
    {"no_json", "cubic_plain", remove("case.json"), "case.json: no such file"},
    {"empty_json", "cubic_plain", resize("case.json", 0), "case.json: broken JSON"},
    {"cut_json", "cubic_plain", resize("case.json", 40), "case.json: broken JSON"},
    {"json_list", "cubic_plain",
     [](const fs::path& folder) { std::ofstream(folder / "case.json") << "[1]"; },
     "case.json: must be an object"},
    {"huge_number", "cubic_plain", edit("\"scale\": ", "\"scale\": 1e999"),
     "case.json: broken JSON"},
    {"unknown_key", "cubic_plain", edit("\"scale\"", "\"shale\": 1, \"scale\""),
     "case.json: unknown key \"shale\""},
    {"unknown_window_key", "cubic_plain", edit("\"size\"", "\"sizes\": 1, \"size\""),
     "case.json: window: unknown key \"sizes\""},
    {"repeated_key", "cubic_plain", edit("\"scale\"", "\"scale\": 1, \"scale\""),
     "case.json: repeated key \"scale\""},
    {"missing_key", "cubic_plain", edit("\"shifted\": false,", ""),
     "case.json: window: key \"shifted\" is missing"},
    {"unknown_op", "cubic_plain", edit("window_attention", "window_attentions"),
     "case.json: op: \"window_attentions\", must be one of"},
    {"wrong_type", "cubic_plain", edit("false", "0"), "case.json: window.shifted: 0, must be true"},
    {"fraction", "cubic_plain", edit("\"quant_length\": 1", "\"quant_length\": 1.5"),
     "case.json: window.quant_length: 1.5, must be an integer"},
    {"quant_length_0", "cubic_plain", edit("\"quant_length\": 1", "\"quant_length\": 0"),
     "case.json: window.quant_length: 0, must be"},
    {"quant_length_huge", "cubic_plain",
     edit("\"quant_length\": 1", "\"quant_length\": 18446744073709551615"),
     "case.json: window.quant_length: 18446744073709551615, must be"},
    {"size_0", "cubic_plain", edit("0.7", "0"), "case.json: window.size: "},
    {"size_negative", "cubic_plain", edit("0.7", "-0.7"), "case.json: window.size: "},
    {"size_of_two_axes", "cubic_plain", edit("0.7,", ""), "case.json: window.size: "},
    {"bias_without_grid", "cubic_plain", edit("\"none\"", "\"bias\""), "case.json: position: "},
    {"contextual_grid", "grid_bias_shift", edit("\"bias\"", "\"contextual\""),
     "case.json: position: "},
    {"groups_and_window", "head_groups", edit("\"scale\"", "\"position\": \"none\", \"scale\""),
     "case.json: unknown key \"position\""},
    {"too_few_heads", "head_groups", edit("\"heads\": 2", "\"heads\": 1"),
     "case.json: head_groups: their heads add up to 2, but q has 3"},
    {"bad_group", "head_groups", edit("\"spherical\"", "\"sphere\""),
     "case.json: head_groups[1].window.type: \"sphere\""},
    {"prune_ratio", "selection_plain", edit("0.25", "1.25"), "case.json: prune_ratio: 1.25, must"},
    {"shift_too_large", "selection_plain", edit("\"shift\": 0", "\"shift\": 7"),
     "case.json: shift: 7, must be an integer from 0 to 6"},
    {"huge_grid", "selection_plain", edit("\"height\": 14", "\"height\": 2147483647"),
     "case.json: batch: "},

    {"no_q", "cubic_plain", remove("q.npy"), "q.npy: no such file"},
    {"no_coords", "cubic_plain", remove("coords.npy"), "coords.npy: no such file"},
    {"empty_file", "cubic_plain", resize("k.npy", 0), "k.npy: empty file"},
    {"cut_header", "cubic_plain", resize("k.npy", 60), "k.npy: truncated .npy header"},
    {"cut_data", "cubic_plain", resize("k.npy", 300), "k.npy: truncated: "},
    {"trailing_bytes", "cubic_plain", resize("k.npy", 100000), "k.npy: trailing bytes: "},
    {"wrong_shape", "cubic_plain", array<float>("v.npy", {60, 2, 8}),
     "v.npy: shape is (60, 2, 8), must be (60, 1, 16)"},
    {"wrong_rank", "cubic_plain", array<float>("q.npy", {60, 16}),
     "q.npy: shape is (60, 16), must be (N, H, D)"},
    {"wrong_element", "cubic_plain", array<double>("k.npy", {60, 1, 16}),
     "k.npy: elements are <f8, must be <f4"},
    {"wrong_batch_element", "cubic_plain", array<std::int64_t>("batch.npy", {60}), "batch.npy: "},
    {"no_table", "cubic_table_q", remove("table_q.npy"), "table_q.npy: contextual position needs"},
    {"table_rows", "cubic_table_q", edit("\"quant_length\": 3", "\"quant_length\": 4"),
     "table_q.npy: shape is (5, 3, 1, 8), must be (7, 3, 1, 8)"},
    {"even_table_rows", "labels_contextual", array<float>("table_q.npy", {8, 3, 2, 8}),
     "table_q.npy: shape is (8, 3, 2, 8), which has no quant length"},
    {"tables_disagree", "labels_contextual", array<float>("table_k.npy", {7, 3, 2, 8}),
     "table_k.npy: shape is (7, 3, 2, 8), must be (9, 3, 2, 8)"},
    {"no_group_table", "grid_head_groups", remove("bias_table.0.npy"),
     "bias_table.0.npy: no such file"},
    {"no_labels", "labels_plain", remove("labels.npy"), "labels.npy: no such file"},
    {"no_positions", "labels_contextual", remove("positions.npy"), "positions.npy: no such file"},
    {"no_radius", "labels_radius", remove("radius.npy"), "radius.npy: "},
    {"not_the_grids_tokens", "grid_bias_shift", edit("\"height\": 8", "\"height\": 12"),
     "q.npy: has 96 tokens, but the grid has 144"},
    {"kept_shape", "grid_bias_kept", array<std::int32_t>("kept.npy", {6}),
     "kept.npy: shape is (6,)"},
    {"features_shape", "selection_plain", array<float>("features.npy", {2, 10, 3}),
     "features.npy: shape is (2, 10, 3), must be (2, 294, C)"},
    {"no_channels", "selection_plain", array<float>("features.npy", {2, 294, 0}), "features.npy: "},

    {"negative_batch", "cubic_plain", first<std::int32_t>("batch.npy", -1), "batch: "},
    {"nan_coordinate", "cubic_plain", first<float>("coords.npy", nan), "coordinates: "},
    {"head_dim", "cubic_plain",
     [](const fs::path& folder) {
       for (const char* file : {"q.npy", "k.npy", "v.npy", "grad_out.npy"}) {
         array<float>(file, {60, 1, 12})(folder);
       }
     },
     "head dim 12"},
    {"wrap", "spherical_wrap", edit("90.0", "70.0"), "size: "},
    {"position_out_of_range", "labels_contextual", first<std::int32_t>("positions.npy", 5),
     "positions: "},
    {"kept_out_of_range", "grid_bias_kept", first<std::int32_t>("kept.npy", 6), "kept: "},
    {"kept_twice", "grid_bias_kept", first<std::int32_t>("kept.npy", 3), "kept: "},
    {"group_kept_out_of_range", "grid_head_groups", first<std::int32_t>("kept.0.npy", -1),
     "head group 0: kept: "},
    {"no_whole_windows", "grid_bias_shift",
     [](const fs::path& folder) {
       edit("\"window\": 4", "\"window\": 5")(folder);
       edit("\"bias\"", "\"none\"")(folder);
     },
     "height: 8, must be a multiple"},

    {"no_expected", "cubic_plain",
     [](const fs::path& folder) { fs::remove_all(folder / "expected"); },
     "expected: no such directory"},
    {"nothing_expected", "cubic_plain",
     [](const fs::path& folder) {
       fs::remove_all(folder / "expected");
       fs::create_directory(folder / "expected");
     },
     "expected: holds no array"},
    {"expected_too_much", "cubic_plain", remove("grad_out.npy"), "the case has no such result"},
    {"expected_shape", "cubic_plain", array<float>("expected/lse.npy", {60}),
     "lse.npy: shape is (60,), the result's is (60, 1)"},
    {"expected_cut", "cubic_plain", resize("expected/out.npy", 200), "out.npy: truncated: "},
};

class replay_refuses : public ::testing::TestWithParam<bad_case> {};

TEST_P(replay_refuses, in_one_line_and_writes_nothing) {
  const test::temporary_folder folder;
  const fs::path copy = folder.path() / "case";
  const fs::path out = folder.path() / "results";
  copy_case(GetParam().base, copy);
  ASSERT_NO_FATAL_FAILURE(GetParam().spoil(copy));
  const outcome got = replay(quoted(copy) + " --check --out " + quoted(out));
  EXPECT_EQ(got.exit_code, 2);
  EXPECT_THAT(got.err, AllOf(HasSubstr(copy.string()), HasSubstr(GetParam().message)));
  EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
  EXPECT_THAT(got.out, IsEmpty());
  EXPECT_FALSE(fs::exists(out));
}

INSTANTIATE_TEST_SUITE_P(bad_cases, replay_refuses, ::testing::ValuesIn(bad_cases),
                         [](const auto& tested) { return tested.param.name; });

struct bad_command {
  std::string name, arguments, message;
};

void PrintTo(const bad_command& bad, std::ostream* stream) {
  *stream << bad.name;
}

const bad_command bad_commands[] = {
#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
    {"cuda", "--device cuda", "--device cuda: no GPU can be used"},
#else
    {"cuda", "--device cuda", "--device cuda: this build has no CUDA device support"},
#endif
    {"unknown_device", "--device tpu", "--device"},
    {"unknown_dtype", "--dtype fp64", "--dtype"},
    {"numeric_dtype", "--dtype 1", "--dtype"},
    {"unknown_option", "--chekc", "--chekc"},
    {"tolerance_alone", "--tolerance 0.1", "--check"},
    {"tolerance_nan", "--check --tolerance nan", "--tolerance"},
    {"tolerance_0", "--check --tolerance 0", "--tolerance"},
    {"tolerance_word", "--check --tolerance much", "--tolerance"},
    {"two_cases", "another", "another"},
};

class replay_refuses_command : public ::testing::TestWithParam<bad_command> {};

TEST_P(replay_refuses_command, in_one_line_and_writes_nothing) {
  const test::temporary_folder folder;
  const fs::path out = folder.path() / "results";
  ASSERT_EQ(setenv("CUDA_VISIBLE_DEVICES", "-1", 1), 0);  // hides the GPU, if there is one
  const outcome got =
      replay(quoted(cases / "cubic_plain") + " " + GetParam().arguments + " --out " + quoted(out));
  EXPECT_EQ(got.exit_code, 2);
  EXPECT_THAT(got.err, HasSubstr(GetParam().message));
  EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
  EXPECT_THAT(got.out, IsEmpty());
  EXPECT_FALSE(fs::exists(out));
}

INSTANTIATE_TEST_SUITE_P(bad_commands, replay_refuses_command, ::testing::ValuesIn(bad_commands),
                         [](const auto& tested) { return tested.param.name; });

TEST(replay, wants_a_folder_that_exists) {
  EXPECT_EQ(replay("").exit_code, 2);
  const outcome got = replay("/nonexistent/case");
  EXPECT_EQ(got.exit_code, 2);
  EXPECT_EQ(got.err, "winnow-replay: /nonexistent/case: no such directory\n");
}

TEST(replay, does_not_write_over_a_file_given_as_folder) {
  const test::temporary_folder folder;
  std::ofstream(folder.path() / "file") << "mine";
  const outcome got =
      replay(quoted(cases / "cubic_plain") + " --out " + quoted(folder.path() / "file"));
  EXPECT_EQ(got.exit_code, 2);
  EXPECT_EQ(text_of(folder.path() / "file"), "mine");
}

TEST(replay, explains_itself) {
  const outcome got = replay("--help");
  EXPECT_EQ(got.exit_code, 0);
  EXPECT_THAT(got.out, HasSubstr("--tolerance"));
}

TEST(replay, writes_what_it_compares) {
  const test::temporary_folder folder;
  const outcome got = replay(quoted(cases / "head_groups") + " --out " + quoted(folder.path()));
  ASSERT_EQ(got.exit_code, 0) << got.err;
  std::vector<std::string> written;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    const fs::path name = entry.path().filename();
    written.push_back(name.string());
    const support::npy_array expected = support::read_npy(cases / "head_groups/expected" / name);
    EXPECT_EQ(support::read_npy(entry.path()).shape, expected.shape) << name;
  }
  EXPECT_EQ(written.size(), 11U);  // out, lse, three gradients and two groups' three tables
}

TEST(replay, fails_where_a_result_is_not_the_expected_one) {
  const test::temporary_folder folder;
  const fs::path copy = folder.path() / "case";
  copy_case("cubic_table_q", copy);
  set_first<float>(copy / "expected/grad_table_q.npy", 7.0f);
  const outcome got = replay(quoted(copy) + " --check");
  EXPECT_EQ(got.exit_code, 1);
  EXPECT_THAT(got.err, IsEmpty());
  EXPECT_THAT(got.out, HasSubstr("out: relative error"));
  EXPECT_EQ(std::count(got.out.begin(), got.out.end(), '\n'), 6);
  std::istringstream lines(got.out);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_THAT(line, HasSubstr(line.rfind("grad_table_q:", 0) == 0 ? ", FAIL" : ", ok"));
  }
  EXPECT_EQ(replay(quoted(copy) + " --check --tolerance 10").exit_code, 0);
}

TEST(replay, compares_only_what_is_expected) {
  const test::temporary_folder folder;
  const fs::path copy = folder.path() / "case";
  copy_case("cubic_table_q", copy);
  fs::remove(copy / "expected/grad_table_q.npy");
  const outcome got = replay(quoted(copy) + " --check");
  EXPECT_EQ(got.exit_code, 0);
  EXPECT_THAT(got.out, Not(HasSubstr("grad_table_q")));
}

TEST(replay, puts_tokens_without_batch_ids_into_one_item) {
  const test::temporary_folder folder;
  const fs::path copy = folder.path() / "case";
  copy_case("cubic_plain", copy);  // all in item 0
  fs::remove(copy / "batch.npy");
  EXPECT_EQ(replay(quoted(copy) + " --check").exit_code, 0);
}

TEST(replay, fails_where_other_windows_are_kept) {
  const test::temporary_folder folder;
  const fs::path copy = folder.path() / "case";
  copy_case("selection_plain", copy);
  const support::npy_array kept = support::read_npy(copy / "expected/kept.npy");
  set_first<std::int32_t>(copy / "expected/kept.npy", kept.as<std::int32_t>()[1]);
  EXPECT_EQ(replay(quoted(copy) + " --check").exit_code, 1);
  EXPECT_EQ(replay(quoted(copy) + " --check --tolerance 1").exit_code, 1);
}

}  // namespace
}  // namespace winnow
