// SPDX-License-Identifier: Apache-2.0
#include "support/scan_reader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "support/npy.hpp"
#include "support/random.hpp"
#include "support/temporary_folder.hpp"

namespace winnow::support {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<std::byte> bytes_of(const std::string& text) {
  return bytes_of(std::vector<char>(text.begin(), text.end()));
}

template <class T>
void append(std::string& text, T value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// What the reader says about bad bytes.
std::string error_of(const std::vector<std::byte>& bytes, const std::string& name = "scan.bin",
                     std::optional<scan_format> format = {}) {
  try {
    parse_scan(bytes, name, format);
  } catch (const input_error& error) {
    return error.what();
  }
  return "accepted";
}

/// Coordinates in [-20, 20), then what `rest` appends.
template <class Rest>
std::vector<float> records(int count, double low, Rest&& rest) {
  random_source random(7);
  std::vector<float> values;
  for (int n = 0; n < count; ++n) {
    for (int axis = 0; axis < 3; ++axis)
      values.push_back(static_cast<float>(random.uniform(low, 20.0)));
    rest(values, n, random);
  }
  return values;
}

std::vector<float> kitti_records(int count) {
  return records(count, -20.0, [](auto& values, int, random_source& random) {
    values.push_back(static_cast<float>(random.uniform()));
  });
}
std::vector<float> nuscenes_records(int count) {
  return records(count, -20.0, [](auto& values, int n, random_source& random) {
    values.push_back(std::floor(static_cast<float>(random.uniform(0.0, 256.0))));
    values.push_back(static_cast<float>(n % 32));
  });
}
/// A room whose corner is the origin: nothing is negative, so that other layouts fit better.
std::vector<float> room_records(int count) {
  return records(count, 0.0, [](auto& values, int, random_source& random) {
    for (int c = 0; c < 3; ++c)
      values.push_back(std::floor(static_cast<float>(random.uniform(0.0, 256.0))));
  });
}

// 120 records of any layout are a multiple of 16, 20 and 24 bytes.
constexpr int common_count = 120;

void expect_detected(const std::vector<float>& values, scan_format format, std::size_t columns) {
  const scan read = parse_scan(bytes_of(values), "scan.bin");
  EXPECT_EQ(read.format, format);
  ASSERT_EQ(read.points.size(), values.size() / columns);
  const float* last = values.data() + values.size() - columns;
  EXPECT_THAT(read.points.back(), ElementsAre(last[0], last[1], last[2]));
}

TEST(scan_reader, detects_layouts_by_their_columns) {
  expect_detected(kitti_records(common_count), scan_format::kitti, 4);
  expect_detected(nuscenes_records(common_count), scan_format::nuscenes, 5);
  expect_detected(room_records(common_count), scan_format::xyzrgb, 6);
}

TEST(scan_reader, detects_a_layout_by_its_size_alone) {
  expect_detected(kitti_records(1), scan_format::kitti, 4);
  expect_detected(nuscenes_records(1), scan_format::nuscenes, 5);
  expect_detected(room_records(1), scan_format::xyzrgb, 6);
}

TEST(scan_reader, does_not_guess) {
  const std::vector<std::byte> zeros(240);
  EXPECT_EQ(error_of(zeros), "scan.bin: reads as kitti and as nuscenes; choose with --format");
  EXPECT_EQ(parse_scan(zeros, "scan.bin", scan_format::xyzrgb).points.size(), 10u);
}

TEST(scan_reader, names_what_is_wrong_with_records) {
  EXPECT_EQ(error_of(std::vector<std::byte>{}), "scan.bin: empty file");
  EXPECT_EQ(error_of(std::vector<std::byte>(17)),
            "scan.bin: truncated or of unknown format: 17 bytes are no multiple of 16 (kitti), 20 "
            "(nuscenes) or 24 (xyzrgb)");
  EXPECT_EQ(error_of(std::vector<std::byte>(17), "scan.bin", scan_format::nuscenes),
            "scan.bin: truncated: 17 bytes are no multiple of the 20 of a nuscenes record");

  std::vector<float> values = kitti_records(2);
  values[5] = nan;
  const std::string what = "point 1: y is not finite";
  EXPECT_EQ(error_of(bytes_of(values)), "scan.bin: no known format fits: as kitti, " + what);
  EXPECT_EQ(error_of(bytes_of(values), "scan.bin", scan_format::kitti), "scan.bin: " + what);
  values[5] = 2e5f;
  EXPECT_THAT(error_of(bytes_of(values)), HasSubstr("point 1: y is beyond 100 km"));
  values[5] = 0.0f;
  values[7] = -1.0f;
  EXPECT_THAT(error_of(bytes_of(values)), HasSubstr("point 1: intensity is not in 0 to 65535"));
}

TEST(scan_reader, asked_for_layout_is_not_second_guessed) {
  std::vector<float> values = kitti_records(2);
  values[7] = -1.0f;  // not an intensity that detection accepts
  EXPECT_EQ(parse_scan(bytes_of(values), "scan.bin", scan_format::kitti).points.size(), 2u);
}

class npy_scan : public ::testing::Test {
 protected:
  template <class T>
  std::filesystem::path write(const std::vector<std::int64_t>& shape, const std::vector<T>& data) {
    const std::filesystem::path path = folder_.path() / "points.npy";
    write_npy(path, shape, data);
    return path;
  }
  template <class T>
  std::string error_of_file(const std::vector<std::int64_t>& shape, const std::vector<T>& data) {
    const std::filesystem::path path = write(shape, data);
    try {
      read_scan(path);
    } catch (const input_error& error) {
      EXPECT_THAT(error.what(), StartsWith(path.string() + ": "));
      return std::string(error.what()).substr(path.string().size() + 2);
    }
    return "accepted";
  }
  const test::temporary_folder folder_;
};

TEST_F(npy_scan, takes_the_first_three_columns) {
  const scan floats = read_scan(write<float>({2, 4}, {1, 2, 3, 9, 4, 5, 6, 9}));
  EXPECT_EQ(floats.format, scan_format::npy);
  EXPECT_THAT(floats.points, ElementsAre(point{1, 2, 3}, point{4, 5, 6}));
  const scan doubles = read_scan(write<double>({1, 3}, {0.1, 0.2, 0.3}));
  EXPECT_THAT(doubles.points, ElementsAre(point{0.1f, 0.2f, 0.3f}));
  EXPECT_TRUE(read_scan(write<float>({0, 3}, {})).points.empty());
}

TEST_F(npy_scan, names_what_is_wrong) {
  EXPECT_EQ(error_of_file<float>({3}, {1, 2, 3}), "has shape (3,), points need (N, 3 or more)");
  EXPECT_EQ(error_of_file<float>({1, 2}, {1, 2}), "has shape (1, 2), points need (N, 3 or more)");
  EXPECT_EQ(error_of_file<std::int32_t>({1, 3}, {1, 2, 3}),
            "has elements <i4, points need <f4 or <f8");
  EXPECT_EQ(error_of_file<float>({1, 3}, {1, 2, nan}), "point 0: z is not finite");
  EXPECT_EQ(error_of_file<double>({1, 3}, {1e300, 2, 3}), "point 0: x is not finite");
  EXPECT_EQ(error_of(bytes_of("not it"), "points.npy"), "points.npy: not a .npy file");
}

const std::string xyz = "property float x\nproperty float y\nproperty float z\n";

std::string ply(const std::string& rest, const std::string& format = "ascii") {
  return "ply\nformat " + format + " 1.0\n" + rest;
}

TEST(ply_scan, reads_ascii) {
  const std::string text = ply("comment by hand\nelement vertex 2\n" + xyz +
                               "property uchar red\nelement face 1\n"
                               "property list uchar int vertex_indices\nend_header\n"
                               "1 2.5 -3e1 255\n+4 5 6 0\n3 0 1 1\n");
  const scan read = parse_scan(bytes_of(text), "scan.ply");
  EXPECT_EQ(read.format, scan_format::ply);
  EXPECT_THAT(read.points, ElementsAre(point{1, 2.5f, -30}, point{4, 5, 6}));
}

TEST(ply_scan, reads_binary_among_other_properties_and_elements) {
  std::string text =
      ply("element face 2\nproperty list uchar int vertex_indices\nelement vertex 2\n"
          "property uint8 label\nproperty double z\nproperty list int32 float32 features\n"
          "property float y\nproperty double x\nend_header\n",
          "binary_little_endian");
  for (const unsigned char corners : {'\3', '\0'}) {
    append(text, corners);
    for (std::int32_t c = 0; c < corners; ++c) append(text, c);
  }
  for (const float offset : {0.0f, 10.0f}) {
    append(text, std::uint8_t{7});
    append(text, 3.0 + offset);
    append(text, std::int32_t{2});
    append(text, 0.5f);
    append(text, 0.5f);
    append(text, 2.0f + offset);
    append(text, 1.0 + offset);
  }
  EXPECT_THAT(parse_scan(bytes_of(text), "scan").points,
              ElementsAre(point{1, 2, 3}, point{11, 12, 13}));
}

TEST(ply_scan, reads_no_vertices_and_windows_line_ends) {
  const std::string text =
      "ply\r\nformat ascii 1.0\r\nelement vertex 0\r\nproperty float x\r\n"
      "property float y\r\nproperty float z\r\nend_header\r\n";
  EXPECT_TRUE(parse_scan(bytes_of(text), "scan.ply").points.empty());
}

struct bad_ply {
  const char* name;
  std::string text;
  const char* message;
};
void PrintTo(const bad_ply& bad, std::ostream* stream) {
  *stream << bad.name;
}

class bad_ply_scan : public ::testing::TestWithParam<bad_ply> {};

TEST_P(bad_ply_scan, is_named) {
  EXPECT_EQ(error_of(bytes_of(GetParam().text), "a.ply"),
            std::string("a.ply: ") + GetParam().message);
}

const bad_ply bad_plys[] = {
    {"no_magic", "hello\n", "not a .ply file"},
    {"header_ends", "ply\nformat ascii 1.0\nelement", "truncated .ply header"},
    {"big_endian", ply("end_header\n", "binary_big_endian"),
     "format 'binary_big_endian' is not supported; supported are ascii and binary_little_endian"},
    {"no_format", "ply\nelement vertex 0\n" + xyz + "end_header\n",
     "broken .ply header: no format"},
    {"no_vertices", ply("element face 0\nend_header\n"), "has no element 'vertex'"},
    {"negative_count", ply("element vertex -1\n"),
     "broken .ply header: '-1' is no number of elements"},
    {"unknown_type", ply("element vertex 1\nproperty quad x\n"),
     "broken .ply header: unknown type 'quad'"},
    {"early_property", ply("property float x\n"),
     "broken .ply header: a property before any element"},
    {"no_z", ply("element vertex 0\nproperty float x\nproperty float y\nend_header\n"),
     "vertices do not have x, y and z, once each"},
    {"x_twice", ply("element vertex 0\nproperty float x\n" + xyz + "end_header\n"),
     "vertices do not have x, y and z, once each"},
    {"integer_x", ply("element vertex 0\nproperty int x\n"),
     "property x of the vertices is neither float nor double"},
    {"list_x", ply("element vertex 0\nproperty list uchar float x\n"),
     "property x of the vertices is neither float nor double"},
    {"truncated_ascii", ply("element vertex 2\n" + xyz + "end_header\n1 2 3 4 5\n"),
     "truncated: the file ends before its 2 elements 'vertex'"},
    {"truncated_binary",
     ply("element vertex 1\n" + xyz + "end_header\n12345678901", "binary_little_endian"),
     "truncated: the file ends before its 1 elements 'vertex'"},
    {"huge_count", ply("element vertex 18446744073709551615\n" + xyz + "end_header\n"),
     "truncated: the file ends before its 18446744073709551615 elements 'vertex'"},
    {"huge_list",
     ply("element face 1\nproperty list uint double f\nelement vertex 0\n" + xyz +
             "end_header\n\xff\xff\xff\xff",
         "binary_little_endian"),
     "truncated: the file ends before its 1 elements 'face'"},
    {"negative_list",
     ply("element face 1\nproperty list char char f\nelement vertex 0\n" + xyz + "end_header\n\xff",
         "binary_little_endian"),
     "a list has a broken length"},
    {"no_number", ply("element vertex 1\n" + xyz + "end_header\n1 2 three\n"),
     "'three' is no number"},
    {"not_finite", ply("element vertex 1\n" + xyz + "end_header\n1 nan 3\n"),
     "vertex 0: y is not finite"},
    {"beyond_float",
     ply("element vertex 1\nproperty double x\nproperty double y\nproperty double z\nend_header\n"
         "1e300 2 3\n"),
     "vertex 0: x is not finite"},
};
INSTANTIATE_TEST_SUITE_P(each, bad_ply_scan, ::testing::ValuesIn(bad_plys),
                         [](const auto& each) { return each.param.name; });

TEST(scan_reader, missing_file_is_named) {
  EXPECT_THROW(read_scan("/no/such/scan.bin"), input_error);
}

// Whatever the bytes, the reader answers: with points or with an input_error.
TEST(scan_reader, survives_mangled_files) {
  const std::string good =
      ply("element face 1\nproperty list uchar int f\nelement vertex 2\n" + xyz + "end_header\n",
          "binary_little_endian") +
      std::string("\1\0\0\0\0", 5) + std::string(24, '\0');
  ASSERT_EQ(parse_scan(bytes_of(good), "a.ply").points.size(), 2u);
  random_source random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    std::string mangled = good.substr(
        0, static_cast<std::size_t>(random.uniform(1.0, static_cast<double>(good.size()))));
    for (int change = 0; change < 3; ++change)
      mangled[random.next() % mangled.size()] = static_cast<char>(random.next());
    error_of(bytes_of(mangled), trial % 2 == 0 ? "a.ply" : "a.bin");
  }
}

}  // namespace
}  // namespace winnow::support
