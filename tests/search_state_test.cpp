// SPDX-License-Identifier: Apache-2.0
// A search that was interrupted ends as if it had not been, and believes no file that is not its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "support/search_problem.hpp"
#include "support/temporary_folder.hpp"
#include "winnow/search.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;
using testing::HasSubstr;
using testing::StartsWith;

const status interruption = status::failure(status_code::cuda_error, "interrupted");

class SearchState : public testing::TestWithParam<search_method> {
 protected:
  SearchState() {
    options_.method = GetParam();
    options_.state_file = file("state.txt");
    options_.save_interval = std::chrono::hours(1);
  }

  std::string file(const char* name) const { return (folder_.path() / name).string(); }

  /// The search without interruption, and the file that it leaves.
  search_result uninterrupted(std::string& state) {
    search_options options = options_;
    options.state_file = file("uninterrupted.txt");
    std::filesystem::remove(options.state_file);
    search_result result;
    const status done = search_ratios(problem_, options, result);
    EXPECT_TRUE(done.ok()) << done.message();
    state = read_text(options.state_file);
    return result;
  }

  temporary_folder folder_;
  ratio_space space_ = make_space({2, 2, 6, 2});
  latency_table table_ = make_table(space_);
  search_problem problem_ = make_problem(space_, table_, 7.0, 8.0);
  search_options options_ = make_options(6, 20, 5, 21);
  search_result result_;
};

INSTANTIATE_TEST_SUITE_P(Methods, SearchState,
                         testing::Values(search_method::random, search_method::evolutionary),
                         [](const testing::TestParamInfo<search_method>& method) {
                           return method.param == search_method::random ? "Random" : "Evolutionary";
                         });

TEST_P(SearchState, GoesOnAfterEachGeneration) {
  std::string expected_state;
  const search_result expected = uninterrupted(expected_state);
  for (int stop = 1; stop <= options_.generations; ++stop) {
    std::filesystem::remove(options_.state_file);
    call_counts calls;
    problem_.score = count_scores(calls);
    int first = 0;
    problem_.progress = [&](const search_progress& progress) {
      if (first == 0) first = progress.generation;
      return progress.generation == stop ? interruption : status();
    };
    EXPECT_STREQ(search_ratios(problem_, options_, result_).message(), "interrupted");
    first = 0;
    problem_.progress = [&](const search_progress& progress) -> status {
      if (first == 0) first = progress.generation;
      return {};
    };
    WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));
    EXPECT_EQ(first, stop < options_.generations ? stop + 1 : 0);
    expect_same(result_, expected);
    EXPECT_EQ(read_text(options_.state_file), expected_state);
    EXPECT_EQ(calls.size(), expected.scored.size());
    for (const auto& [ratios, count] : calls) ASSERT_EQ(count, 1);
  }
}

// Interrupted again and again, in each evaluation once, by a measurement that never repeats itself.
TEST_P(SearchState, GoesOnAfterEachEvaluation) {
  int measured = 0;
  int scored = 0;
  int budget = 0;  // evaluations before the next interruption
  problem_.table = nullptr;
  problem_.latency = [&](const std::vector<double>& ratios, double& latency) -> status {
    if (budget-- == 0) return interruption;
    WINNOW_TRY(measure(space_, table_)(ratios, latency));
    latency += 1e-3 * (++measured % 7);
    return {};
  };
  problem_.score = [&](const std::vector<double>& ratios, double& score) -> status {
    if (budget-- == 0) return interruption;
    score = toy_score(ratios) + 1e-3 * (++scored % 5);
    return {};
  };
  budget = -1;
  problem_.min_latency = 6.0;
  problem_.max_latency = 9.0;
  options_.generations = 3;
  options_.population = 9;
  std::string expected_state;
  const search_result expected = uninterrupted(expected_state);
  const int evaluations = measured + scored;

  for (const int step : {1, 7}) {
    std::filesystem::remove(options_.state_file);
    measured = scored = 0;
    int interruptions = 0;
    for (;; ++interruptions) {
      budget = step;
      const status done = search_ratios(problem_, options_, result_);
      if (done.ok()) break;
      ASSERT_STREQ(done.message(), "interrupted");
    }
    EXPECT_EQ(interruptions, (evaluations - 1) / step);
    EXPECT_EQ(measured + scored, evaluations);
    expect_same(result_, expected);
    EXPECT_EQ(read_text(options_.state_file), expected_state);
  }
}

TEST_P(SearchState, SavesWhenTimeHasPassed) {
  options_.save_interval = std::chrono::milliseconds(0);
  int scored = 0;
  problem_.score = [&](const std::vector<double>& ratios, double& score) -> status {
    EXPECT_THAT(read_text(options_.state_file),
                HasSubstr("\nscored " + std::to_string(scored++) + "\n"));
    score = toy_score(ratios);
    return {};
  };
  WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));

  std::filesystem::remove(options_.state_file);
  options_.save_interval = std::chrono::hours(1);
  problem_.score = [&](const std::vector<double>& ratios, double& score) -> status {
    const bool first_generation =
        read_text(options_.state_file).find("\ngeneration 0\n") != std::string::npos;
    if (first_generation) {
      EXPECT_THAT(read_text(options_.state_file), HasSubstr("\nscored 0\n"));
    }
    score = toy_score(ratios);
    return {};
  };
  WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));
}

TEST_P(SearchState, SearchesOn) {
  options_.generations = 9;
  std::string expected_state;
  const search_result expected = uninterrupted(expected_state);
  for (const int generations : {2, 3, 9}) {
    options_.generations = generations;
    WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));
  }
  expect_same(result_, expected);
  EXPECT_EQ(read_text(options_.state_file), expected_state);

  // What is done already comes back without a question.
  problem_.score = [](const std::vector<double>&, double&) { return interruption; };
  problem_.progress = [](const search_progress&) { return interruption; };
  options_.generations = 5;
  search_result again;
  WINNOW_ASSERT_OK(search_ratios(problem_, options_, again));
  expect_same(again, expected);
}

TEST_P(SearchState, KeepsOpenBands) {
  problem_.min_latency = -std::numeric_limits<double>::infinity();
  problem_.max_latency = std::numeric_limits<double>::infinity();
  WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));
  EXPECT_THAT(read_text(options_.state_file), HasSubstr("\nband -inf inf\n"));
  WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));
}

TEST_P(SearchState, NeedsAPlaceBeforeItStarts) {
  int calls = 0;
  problem_.score = [&](const std::vector<double>&, double&) -> status {
    ++calls;
    return {};
  };
  options_.state_file = file("nowhere/state.txt");
  EXPECT_THAT(search_ratios(problem_, options_, result_).message(), HasSubstr("cannot be written"));
  options_.state_file = folder_.path().string();
  EXPECT_THAT(search_ratios(problem_, options_, result_).message(), HasSubstr("Is a directory"));
  options_.state_file = std::string(5000, 'x');
  EXPECT_THAT(search_ratios(problem_, options_, result_).message(), HasSubstr("cannot be found"));
  EXPECT_EQ(calls, 0);
}

TEST_P(SearchState, IsRefusedByAnotherSearch) {
  WINNOW_ASSERT_OK(search_ratios(problem_, options_, result_));
  const std::string state = read_text(options_.state_file);
  const auto message = [&](auto&& change) -> std::string {
    search_problem problem = problem_;
    search_options options = options_;
    change(problem, options);
    const status done = search_ratios(problem, options, result_);
    EXPECT_EQ(done.code(), status_code::invalid_argument);
    EXPECT_EQ(read_text(options_.state_file), state);
    const std::string text = done.message();
    EXPECT_EQ(text.substr(0, options_.state_file.size()), options_.state_file);
    return text.substr(options_.state_file.size());
  };
  const latency_table other = make_table(make_space({2, 2, 8}));
  EXPECT_THAT(message([](auto&, auto& o) {
                o.method = o.method == search_method::random ? search_method::evolutionary
                                                             : search_method::random;
              }),
              StartsWith(":2: \"method "));
  EXPECT_EQ(message([&](auto& p, auto&) {
              p.space = make_space({2, 2, 8});
              p.table = &other;
            }),
            ":3: \"stage_pairs 1 1 3 1\", but this search has \"stage_pairs 1 1 4\"");
  EXPECT_THAT(message([&](auto& p, auto&) {
                p.table = nullptr;
                p.latency = measure(space_, table_);
              }),
              StartsWith(":5: \"latency table\""));
  EXPECT_EQ(message([](auto& p, auto&) { p.max_latency = 8.5; }),
            ":6: \"band 7 8\", but this search has \"band 7 8.5\"");
  EXPECT_THAT(message([](auto&, auto& o) { o.population = 21; }), StartsWith(":7: "));
  EXPECT_THAT(message([](auto&, auto& o) { o.parents = 6; }), StartsWith(":8: "));
  EXPECT_THAT(message([](auto&, auto& o) { o.mutation_probability = 0.2; }), StartsWith(":9: "));
  EXPECT_THAT(message([](auto&, auto& o) { o.max_draws = 6; }), StartsWith(":10: "));
  EXPECT_EQ(message([](auto&, auto& o) { o.seed = 22; }),
            ":11: \"seed 21\", but this search has \"seed 22\"");
  latency_table slower = table_;
  for (int level = 0; level < 9; ++level) WINNOW_ASSERT_OK(slower.set(0, level, 1.0));
  EXPECT_THAT(message([&](auto& p, auto&) { p.table = &slower; }), HasSubstr("but the table says"));
}

/// The lines of a file, changed one by one.
class SearchStateFile : public testing::Test {
 protected:
  SearchStateFile() {
    options_.state_file = (folder_.path() / "state.txt").string();
    // By callback, so that there are measured configurations in the file.
    problem_.table = nullptr;
    problem_.latency = measure(space_, table_);
    problem_.score = toy_scores();
    problem_.min_latency = 5.0;
    const status done = search_ratios(problem_, options_, result_);
    EXPECT_TRUE(done.ok()) << done.message();
    state_ = read_text(options_.state_file);
    std::size_t begin = 0;
    for (std::size_t end; (end = state_.find('\n', begin)) != std::string::npos; begin = end + 1)
      lines_.push_back(state_.substr(begin, end - begin));
  }

  /// What a search says about a file.
  std::string message(const std::string& text) {
    write_text(options_.state_file, text);
    search_result result;
    const status done = search_ratios(problem_, options_, result);
    const std::string said = done.message();
    if (done.ok()) return said;
    EXPECT_EQ(done.code(), status_code::invalid_argument);
    EXPECT_EQ(said.substr(0, options_.state_file.size()), options_.state_file);
    return said.substr(options_.state_file.size());
  }

  static std::string join(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) (text += line) += '\n';
    return text;
  }

  /// Line `number`, counted from 1, replaced.
  std::string with_line(std::size_t number, const std::string& line) const {
    std::vector<std::string> lines = lines_;
    lines.at(number - 1) = line;
    return join(lines);
  }

  temporary_folder folder_;
  ratio_space space_ = make_space({2, 4}, {0.0, 0.3, 0.6});
  latency_table table_ = make_table(space_);
  search_problem problem_ = make_problem(space_, table_, 0.0, 100.0);
  search_options options_ = make_options(2, 5, 2, 23);
  search_result result_;
  std::string state_;
  std::vector<std::string> lines_;
};

TEST_F(SearchStateFile, IsRefusedWhenCut) {
  for (std::size_t size = state_.size() - 1; size > 0; size -= std::min<std::size_t>(size, 3))
    ASSERT_THAT(message(state_.substr(0, size)), StartsWith(":")) << size;
}

TEST_F(SearchStateFile, IsRefusedWithALineTooFewOrTooMany) {
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    std::vector<std::string> lines = lines_;
    lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(i));
    ASSERT_THAT(message(join(lines)), StartsWith(":")) << "without " << lines_[i];
    lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(i), 2, lines_[i]);
    ASSERT_THAT(message(join(lines)), StartsWith(":")) << "twice " << lines_[i];
  }
}

TEST_F(SearchStateFile, IsRefusedWithAStrangeCharacter) {
  const std::string strange("x\0\n ", 4);
  for (std::size_t i = 0; i < state_.size(); ++i) {
    std::string text = state_;
    text[i] = strange[i % 4] != text[i] ? strange[i % 4] : '!';
    ASSERT_THAT(message(text), StartsWith(":")) << "character " << i << " of\n" << text;
  }
}

TEST_F(SearchStateFile, NamesWhatContradictsItself) {
  const auto line = [&](const std::string& begin) {
    for (std::size_t i = 0; i < lines_.size(); ++i)
      if (lines_[i].rfind(begin, 0) == 0) return i + 1;
    ADD_FAILURE() << "no line begins with " << begin;
    return std::size_t{1};
  };
  const auto said = [&](std::size_t number, const std::string& replacement,
                        const std::string& expected) {
    EXPECT_EQ(message(with_line(number, replacement)), ":" + std::to_string(number) + expected);
  };
  const std::size_t generation = line("generation 2");
  const std::size_t settled = line("settled ");
  const std::size_t members = line("members ");
  const std::size_t scored = line("scored ");
  const std::size_t measured = line("measured ");
  const std::string count = std::to_string(result_.scored.size());
  ASSERT_GE(lines_.size(), measured + 3) << "two measured configurations and the end";

  said(1, "winnow-search 2", ": \"winnow-search 2\", but this search has \"winnow-search 1\"");
  said(generation, "generation two", ": \"generation two\", must be generation and a number");
  said(generation, "generation -1", ": generation: -1, must be >= 0");
  said(generation, "generation 99999999999",
       ": \"generation 99999999999\", must be generation and a number");
  said(generation, "generations 2", ": \"generations 2\", must be generation and a number");
  said(settled, "settled 0", ": settled: 0 configurations after 2 generations");
  said(members, "members " + count, ": members: \"" + count + "\", must be below " + count);
  said(members, "members 1 0 1", ": members: 1, is there already");
  said(members, "members 0 1 2 3 4 5", ": members: 6, but the population is 5");
  said(members, "members ", ": members: \"\", must be below " + count);
  said(members, "member", ": \"member\", must be members");
  said(scored, "scored 1", ": scored: 1, but settled is " + count);
  said(scored + 1, "0 0 1", ": 3 fields, must be 3 levels and 2 numbers");
  said(scored + 1, "0 0 0 5 1 1", ": 6 fields, must be 3 levels and 2 numbers");
  said(scored + 1, "0 0 256 5 1", ": levels[2]: \"256\", is no level");
  said(scored + 1, "0 0 3 5 1", ": levels[2]: 3, but the space has 3 ratios");
  said(scored + 1, "0 1 0 5 1", ": levels[2]: 0 follows 1, must not decrease inside a stage");
  said(scored + 1, "0 0 0 5 nan", ": \"nan\", must be a finite number");
  said(scored + 1, "0 0 0 inf 1", ": \"inf\", must be a finite number");
  said(scored + 1, "0 0 0 4 1", ": latency: 4, is outside the band");
  said(scored + 2, lines_[scored], ": this configuration is there already");
  said(measured + 1, lines_[scored].substr(0, 6) + "1", ": this configuration is there already");
  EXPECT_THAT(message(with_line(measured, "measured 99")),
              HasSubstr(": 1 fields, must be 3 levels and 1 numbers"));
}

TEST_F(SearchStateFile, HoldsNoMeasurementsWithATable) {
  problem_.table = &table_;
  problem_.latency = nullptr;
  std::vector<std::string> lines = lines_;
  for (std::string& line : lines)
    if (line == "latency callback") line = "latency table";
  EXPECT_THAT(message(join(lines)), HasSubstr(", must be 0 with a table"));
}

}  // namespace
