// SPDX-License-Identifier: Apache-2.0
#include "winnow/latency_table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <clocale>
#include <filesystem>
#include <limits>
#include <ostream>

#include "support/search_problem.hpp"
#include "support/temporary_folder.hpp"

namespace {

using namespace winnow;
using namespace winnow::test;
using testing::HasSubstr;
using testing::StartsWith;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

TEST(LatencyTable, SumsTheEntriesOfItsPairs) {
  const ratio_space space = make_space({2, 4}, {0.0, 0.5});
  latency_table table;
  WINNOW_ASSERT_OK(latency_table::make(space, 100.0, table));
  for (int pair = 0; pair < 3; ++pair)
    for (int level = 0; level < 2; ++level)
      WINNOW_ASSERT_OK(table.set(pair, level, (level == 0 ? 1 : -0.25) * (pair + 1)));
  EXPECT_EQ(latency_of(table, {0, 0, 0}), 106.0);
  EXPECT_EQ(latency_of(table, {1, 0, 0}), 104.75);
  EXPECT_EQ(latency_of(table, {0, 0, 1}), 102.25);
  EXPECT_EQ(latency_of(table, {1, 1, 1}), 98.5);
  EXPECT_EQ(latency_of(table, {0, 1, 0}), 103.5);  // its order is no business of the table's
}

TEST(LatencyTable, NamesWhatItCannotAnswer) {
  const ratio_space space = make_space({2, 4}, {0.0, 0.5});
  latency_table table;
  WINNOW_ASSERT_OK(latency_table::make(space, 1.0, table));
  WINNOW_ASSERT_OK(table.set(0, 0, 1.0));
  WINNOW_ASSERT_OK(table.set(1, 0, 1.0));
  WINNOW_ASSERT_OK(table.set(2, 0, 1.0));
  double latency = 42.0;
  EXPECT_STREQ(table.latency({0, 0}, latency).message(),
               "levels: 2 of them, but the table has 3 block pairs");
  EXPECT_STREQ(table.latency({0, 2, 0}, latency).message(),
               "levels[1]: 2, but the table has 2 ratios");
  EXPECT_STREQ(table.latency({0, 0, 1}, latency).message(),
               "table: the entry of pair 2 at ratio 0.5 is missing");
  WINNOW_ASSERT_OK(table.set(1, 0, 1e308));
  WINNOW_ASSERT_OK(table.set(2, 0, 1e308));
  EXPECT_THAT(table.latency({0, 0, 0}, latency).message(), HasSubstr("must be finite"));
  EXPECT_EQ(latency, 42.0);
}

TEST(LatencyTable, NamesAWrongEntry) {
  const ratio_space space = make_space({2, 4}, {0.0, 0.5});
  latency_table table;
  EXPECT_THAT(latency_table::make(space, nan, table).message(), StartsWith("constant: "));
  EXPECT_STREQ(latency_table::make(ratio_space(), 0, table).message(), "space: has no stages");
  EXPECT_STREQ(table.set(0, 0, 1).message(), "pair: 0, but the table has 0 block pairs");
  WINNOW_ASSERT_OK(latency_table::make(space, 1.0, table));
  EXPECT_STREQ(table.set(3, 0, 1).message(), "pair: 3, but the table has 3 block pairs");
  EXPECT_STREQ(table.set(-1, 0, 1).message(), "pair: -1, but the table has 3 block pairs");
  EXPECT_STREQ(table.set(0, 2, 1).message(), "level: 2, but the table has 2 ratios");
  EXPECT_STREQ(table.set(0, -1, 1).message(), "level: -1, but the table has 2 ratios");
  EXPECT_STREQ(table.set(0, 0, infinity).message(), "latency: inf, must be finite");
}

TEST(LatencyTable, KnowsItsSpace) {
  const ratio_space space = make_space({2, 4}, {0.0, 0.5});
  const latency_table table = make_table(space);
  WINNOW_ASSERT_OK(table.check(space));
  EXPECT_STREQ(table.check(make_space({2, 2}, {0.0, 0.5})).message(),
               "table: has 3 block pairs, but the space has 2");
  EXPECT_THAT(table.check(make_space({2, 4}, {0.0, 0.6})).message(), HasSubstr("other ratios"));
  latency_table incomplete;
  WINNOW_ASSERT_OK(latency_table::make(space, 1.0, incomplete));
  EXPECT_STREQ(incomplete.check(space).message(),
               "table: the entry of pair 0 at ratio 0 is missing");
}

class LatencyTableFile : public testing::Test {
 protected:
  status load(const std::string& text) {
    write_text(file_, text);
    return latency_table::load(file_, space_, table_);
  }

  temporary_folder folder_;
  std::string file_ = (folder_.path() / "table.csv").string();
  ratio_space space_ = make_space({2, 2}, {0.0, 0.5});
  latency_table table_;
};

TEST_F(LatencyTableFile, IsReadInAnyOrder) {
  WINNOW_ASSERT_OK(
      load("# measured on a Tuesday\n\npair,ratio,latency\n1,0.5,-2e-1\r\n0,0,1\n"
           "# the rest\nconstant,,10\n0,0.5,0.5\n1,0.0,2"));
  EXPECT_EQ(latency_of(table_, {0, 0}), 13.0);
  EXPECT_EQ(latency_of(table_, {1, 0}), 12.5);
  EXPECT_EQ(latency_of(table_, {0, 1}), 10.8);
}

TEST_F(LatencyTableFile, GivesBackEveryBit) {
  const ratio_space space = make_space({2, 2, 6, 2});
  detail::search_random random(9);
  const auto number = [&] { return (static_cast<double>(random.next() >> 11) - 0x1p52) * 0x1p-60; };
  latency_table table;
  WINNOW_ASSERT_OK(latency_table::make(space, number(), table));
  for (int pair = 0; pair < space.pairs(); ++pair)
    for (int level = 0; level < space.levels(); ++level)
      WINNOW_ASSERT_OK(table.set(pair, level, number()));
  // Where there is one, a locale with decimal commas must not matter.
  const char* const locale = std::setlocale(LC_NUMERIC, "de_DE.UTF-8");
  WINNOW_ASSERT_OK(table.save(file_));
  WINNOW_ASSERT_OK(table.save(file_));  // replaces
  WINNOW_ASSERT_OK(latency_table::load(file_, space, table_));
  if (locale != nullptr) std::setlocale(LC_NUMERIC, "C");
  EXPECT_FALSE(std::filesystem::exists(file_ + ".tmp"));
  for (ratio_levels levels(6, 0); space.next(levels);)
    ASSERT_EQ(latency_of(table_, levels), latency_of(table, levels));
}

struct bad_table {
  const char* text;
  const char* message;
};

std::ostream& operator<<(std::ostream& out, const bad_table& c) {
  return out << c.message;
}

class BadTable : public LatencyTableFile, public testing::WithParamInterface<bad_table> {};

TEST_P(BadTable, IsNamedWithItsLine) {
  const status loaded = load(GetParam().text);
  EXPECT_EQ(loaded.code(), status_code::invalid_argument);
  EXPECT_EQ(loaded.message(), file_ + GetParam().message);
  EXPECT_FALSE(table_.check(space_).ok());  // still the one for no space
}

INSTANTIATE_TEST_SUITE_P(
    Lines, BadTable,
    testing::Values(
        bad_table{"", ":1: ends without the heading pair,ratio,latency"},
        bad_table{"# empty\n", ":2: ends without the heading pair,ratio,latency"},
        bad_table{"0,0,1\n", ":1: \"0,0,1\", must be the heading pair,ratio,latency"},
        bad_table{"pair,ratio,latency\n0,0,1\n", ":3: ends without the constant"},
        bad_table{"pair,ratio,latency\nconstant,,1\n0,0,1\n0,0.5,1\n1,0,1\n",
                  ":6: ends too early: table: the entry of pair 1 at ratio 0.5 is missing"},
        bad_table{"pair,ratio,latency\n0,0\n", ":2: 2 fields, must be pair,ratio,latency"},
        bad_table{"pair,ratio,latency\n\n0,0,1,\n", ":3: 4 fields, must be pair,ratio,latency"},
        bad_table{"pair,ratio,latency\n0,0,\n", ":2: latency: \"\", must be a finite number"},
        bad_table{"pair,ratio,latency\n0,0,1 \n", ":2: latency: \"1 \", must be a finite number"},
        bad_table{"pair,ratio,latency\n0,0,nan\n", ":2: latency: \"nan\", must be a finite number"},
        bad_table{"pair,ratio,latency\n0,0,1e999\n",
                  ":2: latency: \"1e999\", must be a finite number"},
        bad_table{"pair,ratio,latency\n2,0,1\n", ":2: pair: \"2\", must be 0 to 1 or constant"},
        bad_table{"pair,ratio,latency\n-1,0,1\n", ":2: pair: \"-1\", must be 0 to 1 or constant"},
        bad_table{"pair,ratio,latency\n0.0,0,1\n", ":2: pair: \"0.0\", must be 0 to 1 or constant"},
        bad_table{"pair,ratio,latency\n0,0.4,1\n", ":2: ratio: \"0.4\", is no ratio of the space"},
        bad_table{"pair,ratio,latency\n0,,1\n", ":2: ratio: \"\", is no ratio of the space"},
        bad_table{"pair,ratio,latency\n0,0.5x,1\n",
                  ":2: ratio: \"0.5x\", is no ratio of the space"},
        bad_table{"pair,ratio,latency\n0,0,1\n0,0.0,1\n", ":3: pair 0 at ratio 0 is there already"},
        bad_table{"pair,ratio,latency\nconstant,,1\nconstant,,1\n",
                  ":3: the constant is there already"},
        bad_table{"pair,ratio,latency\nconstant,0,1\n", ":2: ratio: \"0\", the constant has none"},
        bad_table{"pair,ratio,latency\n\t\x01\x7f,0,1\n",
                  ":2: pair: \"???\", must be 0 to 1 or constant"},
        bad_table{"pair,ratio,latency\n0123456789012345678901234567890123456789X,0,1\n",
                  ":2: pair: \"0123456789012345678901234567890123456789...\", must be 0 to 1 or "
                  "constant"}));

TEST_F(LatencyTableFile, ThatCannotBeReadIsNamed) {
  EXPECT_EQ(latency_table::load(file_, space_, table_).message(),
            file_ + ": cannot be opened: No such file or directory");
  EXPECT_EQ(latency_table::load(folder_.path().string(), space_, table_).message(),
            folder_.path().string() + ": cannot be read: Is a directory");
  const std::string long_name = std::string(300, 'x') + "/table.csv";
  EXPECT_EQ(latency_table::load(long_name, space_, table_).message(),
            "..." + std::string(87, 'x') + "/table.csv: cannot be opened: File name too long");
  EXPECT_STREQ(latency_table::load(file_, ratio_space(), table_).message(), "space: has no stages");
}

TEST_F(LatencyTableFile, ThatCannotBeWrittenIsNamed) {
  const latency_table table = make_table(space_);
  const std::string file = (folder_.path() / "nowhere" / "table.csv").string();
  EXPECT_EQ(table.save(file).message(),
            file + ".tmp: cannot be written: No such file or directory");
  // A folder cannot be replaced by a file, and nothing is left behind.
  std::filesystem::create_directories(folder_.path() / "folder" / "inner");
  const std::string folder = (folder_.path() / "folder").string();
  EXPECT_THAT(table.save(folder).message(), StartsWith(folder + ": cannot be written: "));
  EXPECT_FALSE(std::filesystem::exists(folder + ".tmp"));
}

TEST_F(LatencyTableFile, IsNotWrittenIncomplete) {
  EXPECT_STREQ(table_.save(file_).message(), "table: is for no space");
  WINNOW_ASSERT_OK(latency_table::make(space_, 1.0, table_));
  EXPECT_THAT(table_.save(file_).message(), HasSubstr("pair 0 at ratio 0 is missing"));
  EXPECT_FALSE(std::filesystem::exists(file_));
}

}  // namespace
