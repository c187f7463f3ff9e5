// SPDX-License-Identifier: Apache-2.0
#include "support/ply.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>

namespace winnow::support {
namespace {

enum class number_type { int8, uint8, int16, uint16, int32, uint32, float32, float64 };

struct type_name {
  const char* name;
  number_type type;
};
constexpr type_name type_names[] = {
    {"char", number_type::int8},      {"int8", number_type::int8},
    {"uchar", number_type::uint8},    {"uint8", number_type::uint8},
    {"short", number_type::int16},    {"int16", number_type::int16},
    {"ushort", number_type::uint16},  {"uint16", number_type::uint16},
    {"int", number_type::int32},      {"int32", number_type::int32},
    {"uint", number_type::uint32},    {"uint32", number_type::uint32},
    {"float", number_type::float32},  {"float32", number_type::float32},
    {"double", number_type::float64}, {"float64", number_type::float64},
};

constexpr std::size_t size_of(number_type type) {
  switch (type) {
    case number_type::int8:
    case number_type::uint8:
      return 1;
    case number_type::int16:
    case number_type::uint16:
      return 2;
    case number_type::float64:
      return 8;
    default:
      return 4;
  }
}

constexpr bool is_integer(number_type type) {
  return type != number_type::float32 && type != number_type::float64;
}

struct property {
  number_type type;
  std::optional<number_type> count_type;  ///< present for a list
  int axis = -1;                          ///< 0, 1, 2 for x, y, z of a vertex
};

struct element {
  std::string_view name;
  std::uint64_t count = 0;
  std::vector<property> properties;
};

/// Words of one line or of a whole ascii body.
std::string_view next_word(std::string_view& text) {
  constexpr std::string_view space = " \t\r\n";
  text.remove_prefix(std::min(text.find_first_not_of(space), text.size()));
  const std::string_view word = text.substr(0, text.find_first_of(space));
  text.remove_prefix(word.size());
  return word;
}

class ply_parser {
 public:
  ply_parser(std::string_view bytes, const std::string& name) : rest_(bytes), name_(name) {}

  std::vector<point> parse() {
    read_header();
    for (const element& each : elements_) {
      if (each.name == "vertex") return read_vertices(each);
      skip(each);
    }
    fail("has no element 'vertex'");
  }

 private:
  [[noreturn]] void fail(const std::string& what_is_wrong) const {
    throw input_error(name_, what_is_wrong);
  }

  void read_header() {
    std::string_view line = header_line();
    if (next_word(line) != "ply") fail("not a .ply file");
    bool has_format = false;
    while (true) {
      line = header_line();
      const std::string_view keyword = next_word(line);
      if (keyword == "end_header") break;
      if (keyword == "format") {
        read_format(line);
        has_format = true;
      } else if (keyword == "element") {
        read_element(line);
      } else if (keyword == "property") {
        read_property(line);
      } else if (!keyword.empty() && keyword != "comment" && keyword != "obj_info") {
        fail("broken .ply header: unknown keyword '" + shown(keyword) + "'");
      }
    }
    if (!has_format) fail("broken .ply header: no format");
  }

  std::string_view header_line() {
    const std::size_t end = rest_.find('\n');
    if (end == std::string_view::npos) fail("truncated .ply header");
    const std::string_view line = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return line;
  }

  void read_format(std::string_view line) {
    const std::string_view format = next_word(line);
    ascii_ = format == "ascii";
    if (!ascii_ && format != "binary_little_endian")
      fail("format '" + shown(format) +
           "' is not supported; supported are ascii and "
           "binary_little_endian");
  }

  void read_element(std::string_view line) {
    element& added = elements_.emplace_back();
    added.name = next_word(line);
    const std::string_view count = next_word(line);
    const auto [end, error] =
        std::from_chars(count.data(), count.data() + count.size(), added.count);
    if (count.empty() || error != std::errc() || end != count.data() + count.size())
      fail("broken .ply header: '" + shown(count) + "' is no number of elements");
  }

  void read_property(std::string_view line) {
    if (elements_.empty()) fail("broken .ply header: a property before any element");
    property added{};
    std::string_view type = next_word(line);
    if (type == "list") {
      added.count_type = type_of(next_word(line));
      if (!is_integer(*added.count_type)) fail("broken .ply header: a list's length is no integer");
      type = next_word(line);
    }
    added.type = type_of(type);
    const std::string_view label = next_word(line);
    if (elements_.back().name == "vertex" && label.size() == 1 && label[0] >= 'x' &&
        label[0] <= 'z') {
      if (added.count_type || is_integer(added.type))
        fail("property " + shown(label) + " of the vertices is neither float nor double");
      added.axis = label[0] - 'x';
    }
    elements_.back().properties.push_back(added);
  }

  number_type type_of(std::string_view name) const {
    for (const type_name& each : type_names) {
      if (name == each.name) return each.type;
    }
    fail("broken .ply header: unknown type '" + shown(name) + "'");
  }

  static std::string shown(std::string_view word) {
    std::string text(word.substr(0, 24));
    std::replace_if(
        text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return text;
  }

  /// The least an element takes, so that its count is believed only as far as the file is long.
  std::uint64_t least_bytes(const element& each) const {
    std::uint64_t bytes = 0;
    for (const property& p : each.properties)
      bytes += ascii_ ? 1 : size_of(p.count_type.value_or(p.type));
    return bytes;
  }

  void require(const element& each) const {
    const std::uint64_t least = least_bytes(each);
    if (least > 0 && each.count > rest_.size() / least) fail_truncated(each);
  }
  [[noreturn]] void fail_truncated(const element& each) const {
    fail("truncated: the file ends before its " + std::to_string(each.count) + " elements '" +
         shown(each.name) + "'");
  }

  void skip(const element& each) {
    require(each);
    if (each.properties.empty()) return;
    for (std::uint64_t n = 0; n < each.count; ++n) {
      for (const property& p : each.properties) skip(each, p);
    }
  }

  void skip(const element& each, const property& p) {
    const double count = p.count_type ? read_number(each, *p.count_type) : 1.0;
    // Every value takes a byte at least.
    if (!(count >= 0.0) || count != std::floor(count)) fail("a list has a broken length");
    if (count > static_cast<double>(rest_.size())) fail_truncated(each);
    const auto values = static_cast<std::size_t>(count);
    if (ascii_) {
      for (std::size_t n = 0; n < values; ++n) word(each);
    } else {
      if (values > rest_.size() / size_of(p.type)) fail_truncated(each);
      rest_.remove_prefix(values * size_of(p.type));
    }
  }

  std::vector<point> read_vertices(const element& each) {
    std::array<int, 3> found{};
    for (const property& p : each.properties) {
      if (p.axis >= 0) ++found[p.axis];
    }
    if (found != std::array<int, 3>{1, 1, 1}) fail("vertices do not have x, y and z, once each");
    require(each);
    std::vector<point> points;
    points.reserve(each.count);
    for (std::uint64_t n = 0; n < each.count; ++n) {
      point& added = points.emplace_back();
      for (const property& p : each.properties) {
        if (p.axis < 0) {
          skip(each, p);
          continue;
        }
        const double value = read_number(each, p.type);
        if (!(std::abs(value) <= std::numeric_limits<float>::max()))
          fail("vertex " + std::to_string(n) + ": " + "xyz"[p.axis] + " is not finite");
        added[p.axis] = static_cast<float>(value);
      }
    }
    return points;
  }

  std::string_view word(const element& each) {
    const std::string_view result = next_word(rest_);
    if (result.empty()) fail_truncated(each);
    return result;
  }

  double read_number(const element& each, number_type type) {
    if (ascii_) {
      std::string_view text = word(each);
      if (text.front() == '+') text.remove_prefix(1);
      double value = 0.0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error != std::errc() || end != text.data() + text.size())
        fail("'" + shown(text) + "' is no number");
      return value;
    }
    switch (type) {
      case number_type::int8:
        return read<std::int8_t>(each);
      case number_type::uint8:
        return read<std::uint8_t>(each);
      case number_type::int16:
        return read<std::int16_t>(each);
      case number_type::uint16:
        return read<std::uint16_t>(each);
      case number_type::int32:
        return read<std::int32_t>(each);
      case number_type::uint32:
        return read<std::uint32_t>(each);
      case number_type::float32:
        return read<float>(each);
      case number_type::float64:
        return read<double>(each);
    }
    fail("broken .ply header");
  }

  template <class T>
  T read(const element& each) {
    if (rest_.size() < sizeof(T)) fail_truncated(each);
    T value;
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return value;
  }

  std::string_view rest_;
  const std::string& name_;
  bool ascii_ = false;
  std::vector<element> elements_;
};

}  // namespace

std::vector<point> parse_ply(std::string_view bytes, const std::string& name) {
  return ply_parser(bytes, name).parse();
}

}  // namespace winnow::support
