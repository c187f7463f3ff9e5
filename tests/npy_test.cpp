// SPDX-License-Identifier: Apache-2.0
#include "support/npy.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>

#include "support/temporary_folder.hpp"

namespace winnow::support {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<std::byte> bytes_of(const std::string& text) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

/// A file of version 1.0 with any header, correct or not.
std::string file_with(const std::string& header, const std::string& data) {
  std::string text = "\x93NUMPY";
  text += '\x01';
  text += '\0';
  text += static_cast<char>(header.size() & 0xff);
  text += static_cast<char>(header.size() >> 8);
  return text + header + data;
}

std::string header_of(const std::string& descriptor, const std::string& shape) {
  return "{'descr': '" + descriptor + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
}

npy_array parse(const std::string& text) {
  return parse_npy(bytes_of(text), "x.npy");
}

/// What the reader says about a bad file.
std::string error_of(const std::string& text) {
  try {
    parse(text);
  } catch (const input_error& error) {
    return error.what();
  }
  return "accepted";
}

class npy_file : public ::testing::Test {
 protected:
  const test::temporary_folder temporary_;
  const std::filesystem::path folder_ = temporary_.path();
};

TEST_F(npy_file, comes_back_as_it_was_written) {
  const std::vector<float> values{1.5f, -2.0f, 0.0f, 3e38f, -0.0f, 1e-45f};
  write_npy(folder_ / "a.npy", {2, 3}, values);
  const npy_array array = read_npy(folder_ / "a.npy");
  EXPECT_EQ(array.element, npy_element::float32);
  EXPECT_THAT(array.shape, ElementsAre(2, 3));
  ASSERT_EQ(array.elements(), 6);
  EXPECT_EQ(std::vector<float>(array.as<float>(), array.as<float>() + 6), values);
  EXPECT_TRUE(std::signbit(array.as<float>()[4]));
  EXPECT_THROW(static_cast<void>(array.as<double>()), std::logic_error);
}

TEST_F(npy_file, holds_every_element_type) {
  const auto round_trip = [&](const auto& values) {
    write_npy(folder_ / "a.npy", {2}, values);
    return read_npy(folder_ / "a.npy").to_doubles();
  };
  EXPECT_THAT(round_trip(std::vector<half>{from_float<half>(0.5f), from_float<half>(-3.0f)}),
              ElementsAre(0.5, -3.0));
  EXPECT_THAT(round_trip(std::vector<float>{0.5f, -3.0f}), ElementsAre(0.5, -3.0));
  EXPECT_THAT(round_trip(std::vector<double>{1e300, -3.0}), ElementsAre(1e300, -3.0));
  EXPECT_THAT(round_trip(std::vector<std::int32_t>{7, -3}), ElementsAre(7, -3));
  EXPECT_THAT(round_trip(std::vector<std::int64_t>{1LL << 40, -3}), ElementsAre(0x1p40, -3));
  EXPECT_THAT(round_trip(std::vector<std::uint8_t>{255, 3}), ElementsAre(255, 3));
}

TEST_F(npy_file, may_hold_no_elements) {
  write_npy(folder_ / "a.npy", {0, 3}, std::vector<float>{});
  const npy_array array = read_npy(folder_ / "a.npy");
  EXPECT_EQ(array.elements(), 0);
  EXPECT_THAT(array.shape, ElementsAre(0, 3));
}

TEST_F(npy_file, begins_its_data_at_a_multiple_of_64_bytes) {
  write_npy(folder_ / "a.npy", {1}, std::vector<std::uint8_t>{7});
  EXPECT_EQ(std::filesystem::file_size(folder_ / "a.npy") % 64, 1);
}

TEST_F(npy_file, leaves_nothing_behind_when_it_cannot_be_written) {
  std::filesystem::create_directory(folder_ / "a.npy");
  EXPECT_THROW(write_npy(folder_ / "a.npy", {1}, std::vector<float>{1.0f}), input_error);
  EXPECT_THROW(write_npy(folder_ / "none" / "b.npy", {1}, std::vector<float>{1.0f}), input_error);
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    left.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(left, ElementsAre("a.npy"));
}

TEST_F(npy_file, that_is_none_is_named) {
  const auto error_of_path = [&](const char* name) -> std::string {
    try {
      read_npy(folder_ / name);
    } catch (const input_error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(error_of_path("none.npy"), (folder_ / "none.npy").string() + ": no such file");
  std::filesystem::create_directory(folder_ / "folder.npy");
  EXPECT_THAT(error_of_path("folder.npy"), EndsWith("folder.npy: not a regular file"));
  std::ofstream(folder_ / "empty.npy") << "";
  EXPECT_THAT(error_of_path("empty.npy"), EndsWith("empty.npy: empty file"));
}

TEST(npy_header, takes_what_python_writes) {
  const std::string four(4, '\0');
  EXPECT_THAT(parse(file_with(header_of("<f4", "()"), four)).shape, ElementsAre());
  EXPECT_THAT(parse(file_with(header_of("<f4", "(1,)"), four)).shape, ElementsAre(1));
  EXPECT_THAT(parse(file_with(header_of("|b1", "(2, 2)"), four)).shape, ElementsAre(2, 2));
  EXPECT_THAT(
      parse(file_with("{\"shape\":(1,1),\"fortran_order\":False,\"descr\":\"<f4\"}", four)).shape,
      ElementsAre(1, 1));
}

TEST(npy_header, takes_versions_2_and_3) {
  const std::string header = header_of("<f4", "(1,)");
  for (const char version : {'\x02', '\x03'}) {
    std::string text = "\x93NUMPY";
    text += version;
    text += '\0';
    text += static_cast<char>(header.size());
    text += std::string(3, '\0') + header + std::string(4, '\x01');
    EXPECT_EQ(parse(text).elements(), 1);
  }
}

TEST(npy_header, in_error_says_what_is_wrong) {
  const std::string four(4, '\0');
  EXPECT_EQ(error_of(""), "x.npy: empty file");
  EXPECT_EQ(error_of("PK\x03\x04 something else"), "x.npy: not a .npy file");
  EXPECT_THAT(error_of(file_with("{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}", four)),
              HasSubstr("Fortran order"));
  EXPECT_THAT(error_of(file_with(header_of(">f4", "(1,)"), four)), HasSubstr("'>f4'"));
  EXPECT_THAT(error_of(file_with(header_of("|O", "(1,)"), four)), HasSubstr("'|O'"));
  EXPECT_THAT(error_of(file_with(header_of("<f\n4", "(1,)"), four)), HasSubstr("'<f?4'"));
  EXPECT_THAT(error_of(file_with(header_of("<f4", "(2,)"), four)), HasSubstr("truncated"));
  EXPECT_THAT(error_of(file_with(header_of("<f2", "(1,)"), four)), HasSubstr("trailing"));
  EXPECT_THAT(error_of(file_with(header_of("<f4", "(0,)"), four)), HasSubstr("trailing"));

  std::string oversized = "\x93NUMPY";
  oversized += '\x02';
  oversized += std::string(4, '\0') + '\x7f';
  EXPECT_THAT(error_of(oversized), HasSubstr("oversized .npy header"));
  std::string future = file_with(header_of("<f4", "(1,)"), four);
  future[6] = '\x04';
  EXPECT_THAT(error_of(future), HasSubstr("version 4.0"));
}

TEST(npy_header, that_is_no_dict_of_the_three_keys_is_broken) {
  const std::string four(4, '\0');
  for (const char* header :
       {"", "{", "{}", "[]", "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}",
        "{'descr: '<f4', 'fortran_order': False, 'shape': (1,)}"}) {
    EXPECT_EQ(error_of(file_with(header, four)), "x.npy: broken .npy header") << header;
  }
}

TEST(npy_shape, that_overflows_is_truncated_data) {
  for (const char* shape : {"(9223372036854775807,)", "(4611686018427387904, 4)",
                            "(4294967296, 4294967296)", "(1000000000000,)"}) {
    EXPECT_THAT(error_of(file_with(header_of("<f4", shape), "")), HasSubstr("truncated")) << shape;
  }
  EXPECT_THAT(error_of(file_with(header_of("<f4", "(9223372036854775808,)"), "")),
              HasSubstr("broken"));
  EXPECT_EQ(parse(file_with(header_of("<f4", "(9223372036854775807, 0)"), "")).elements(), 0);
}

TEST(npy_bytes, cut_anywhere_are_an_error) {
  const std::string whole = file_with(header_of("<f4", "(2, 3)"), std::string(24, '\x01'));
  ASSERT_EQ(parse(whole).elements(), 6);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(error_of(whole.substr(0, size)), StartsWith("x.npy: ")) << size;
  }
}

TEST(npy_bytes, changed_anywhere_are_an_array_or_an_error) {
  const std::string whole = file_with(header_of("<f4", "(2, 3)"), std::string(24, '\x01'));
  for (std::size_t at = 0; at < whole.size() - 24; ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[at] = static_cast<char>(value);
      const std::string error = error_of(changed);
      EXPECT_EQ(error.find('\n'), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace winnow::support
