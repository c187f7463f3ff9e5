// SPDX-License-Identifier: Apache-2.0
#include "support/npy.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string_view>
#include <system_error>

#include "support/read_file.hpp"

namespace winnow::support {
namespace {

constexpr std::string_view magic = "\x93NUMPY";
/// numpy itself refuses longer headers; ours fit in 128 bytes.
constexpr std::size_t max_header = 64 * 1024;
/// numpy's own limit on dimensions.
constexpr std::size_t max_rank = 64;

struct element_entry {
  npy_element element;
  const char* descriptor;
  std::size_t size;
};

constexpr element_entry element_entries[] = {
    {npy_element::float16, "<f2", 2}, {npy_element::float32, "<f4", 4},
    {npy_element::float64, "<f8", 8}, {npy_element::int32, "<i4", 4},
    {npy_element::int64, "<i8", 8},   {npy_element::uint8, "|u1", 1},
};

const element_entry& entry_of(npy_element element) noexcept {
  return element_entries[static_cast<int>(element)];
}

/// The header is a Python dict literal with exactly the keys descr, fortran_order and shape, which
/// is all of Python that this reads.
class header_parser {
 public:
  header_parser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  void parse(npy_array& array) {
    bool has_descriptor = false;
    bool has_order = false;
    bool has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr" && !has_descriptor) {
        array.element = element(quoted());
        has_descriptor = true;
      } else if (key == "fortran_order" && !has_order) {
        if (boolean()) throw input_error(name_, "Fortran order is not supported");
        has_order = true;
      } else if (key == "shape" && !has_shape) {
        array.shape = tuple();
        has_shape = true;
      } else {
        fail();
      }
      if (!accept(',') && peek() != '}') fail();
    }
    peek();
    if (at_ != text_.size() || !has_descriptor || !has_order || !has_shape) fail();
  }

 private:
  [[noreturn]] void fail() const { throw input_error(name_, "broken .npy header"); }

  /// The next character that is no white space; '\0' at the end.
  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail();
  }

  std::string_view quoted() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail();
    const std::size_t first = ++at_;
    const std::size_t last = text_.find(quote, first);
    if (last == std::string_view::npos) fail();
    at_ = last + 1;
    return text_.substr(first, last - first);
  }

  npy_element element(std::string_view descriptor) const {
    for (const element_entry& entry : element_entries) {
      if (descriptor == entry.descriptor) return entry.element;
    }
    if (descriptor == "|b1") return npy_element::uint8;
    std::string shown(descriptor.substr(0, 16));
    std::replace_if(
        shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    throw input_error(name_, "element type '" + shown +
                                 "' is not supported; supported are <f2 <f4 "
                                 "<f8 <i4 <i8 |u1 |b1");
  }

  bool boolean() {
    peek();
    for (const std::string_view word : {std::string_view("False"), std::string_view("True")}) {
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return word == "True";
      }
    }
    fail();
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> shape;
    expect('(');
    while (!accept(')')) {
      shape.push_back(integer());
      if (shape.size() > max_rank) fail();
      // A comma is what makes (3,) a tuple.
      if (!accept(',') && (peek() != ')' || shape.size() == 1)) fail();
    }
    return shape;
  }

  std::int64_t integer() {
    std::int64_t value = 0;
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (!is_digit(peek())) fail();
    for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
      const int digit = text_[at_] - '0';
      if (value > (INT64_MAX - digit) / 10) fail();
      value = value * 10 + digit;
    }
    return value;
  }

  std::string_view text_;
  const std::string& name_;
  std::size_t at_ = 0;
};

/// Bytes that an array holds, or `limit + 1` when they are more than `limit`.
std::size_t bytes_of(const npy_array& array, std::size_t limit) {
  // A zero anywhere makes the array empty, however large the other dimensions are.
  if (std::find(array.shape.begin(), array.shape.end(), 0) != array.shape.end()) return 0;
  std::size_t bytes = size_of(array.element);
  for (const std::int64_t extent : array.shape) {
    if (static_cast<std::uint64_t>(extent) > limit / bytes) return limit + 1;
    bytes *= static_cast<std::size_t>(extent);
  }
  return bytes;
}

template <class T>
void append_doubles(const npy_array& array, std::vector<double>& result) {
  const T* elements = array.as<T>();
  for (std::int64_t n = 0; n < array.elements(); ++n) {
    if constexpr (std::is_same_v<T, half>) {
      result.push_back(to_float(elements[n]));
    } else {
      result.push_back(static_cast<double>(elements[n]));
    }
  }
}

}  // namespace

const char* descriptor_of(npy_element element) noexcept {
  return entry_of(element).descriptor;
}

std::size_t size_of(npy_element element) noexcept {
  return entry_of(element).size;
}

std::vector<double> npy_array::to_doubles() const {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(elements()));
  switch (element) {
    case npy_element::float16:
      append_doubles<half>(*this, result);
      break;
    case npy_element::float32:
      append_doubles<float>(*this, result);
      break;
    case npy_element::float64:
      append_doubles<double>(*this, result);
      break;
    case npy_element::int32:
      append_doubles<std::int32_t>(*this, result);
      break;
    case npy_element::int64:
      append_doubles<std::int64_t>(*this, result);
      break;
    case npy_element::uint8:
      append_doubles<std::uint8_t>(*this, result);
      break;
  }
  return result;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(shape[d]);
  }
  if (shape.size() == 1) text += ",";
  return text + ")";
}

npy_array parse_npy(std::vector<std::byte> bytes, const std::string& name) {
  if (bytes.empty()) throw input_error(name, "empty file");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.substr(0, magic.size()) != magic) throw input_error(name, "not a .npy file");
  const auto unsigned_at = [&](std::size_t at, std::size_t count) {
    if (text.size() < at + count) throw input_error(name, "truncated .npy header");
    std::size_t value = 0;
    for (std::size_t n = 0; n < count; ++n) {
      value |= static_cast<std::size_t>(static_cast<unsigned char>(text[at + n])) << (8 * n);
    }
    return value;
  };

  const std::size_t major = unsigned_at(magic.size(), 1);
  const std::size_t minor = unsigned_at(magic.size() + 1, 1);
  if (major < 1 || major > 3 || minor != 0) {
    throw input_error(name, ".npy format version " + std::to_string(major) + "." +
                                std::to_string(minor) + " is not supported");
  }
  const std::size_t length_size = major == 1 ? 2 : 4;
  const std::size_t header_size = unsigned_at(magic.size() + 2, length_size);
  const std::size_t header_at = magic.size() + 2 + length_size;
  if (header_size > max_header) {
    throw input_error(name, "oversized .npy header of " + std::to_string(header_size) + " bytes");
  }
  if (text.size() - header_at < header_size) throw input_error(name, "truncated .npy header");

  npy_array array;
  header_parser(text.substr(header_at, header_size), name).parse(array);

  const std::size_t present = text.size() - header_at - header_size;
  const std::size_t wanted = bytes_of(array, present);
  if (wanted != present) {
    throw input_error(name, (wanted > present ? "truncated: " : "trailing bytes: ") +
                                std::to_string(present) + " bytes of data do not make " +
                                descriptor_of(array.element) + " elements of shape " +
                                shape_text(array.shape));
  }
  bytes.erase(bytes.begin(), bytes.end() - static_cast<std::ptrdiff_t>(present));
  array.data = std::move(bytes);
  return array;
}

npy_array read_npy(const std::filesystem::path& path) {
  return parse_npy(read_file(path), path.string());
}

void write_npy(const std::filesystem::path& path, npy_element element,
               const std::vector<std::int64_t>& shape, const void* data) {
  std::size_t elements = 1;
  for (const std::int64_t extent : shape) elements *= static_cast<std::size_t>(extent);

  std::string header = std::string("{'descr': '") + descriptor_of(element) +
                       "', 'fortran_order': False, 'shape': " + shape_text(shape) + ", }";
  // The data begins at a multiple of 64 bytes; the header ends with a newline.
  constexpr std::size_t prefix = 10;
  header.resize((prefix + header.size() + 1 + 63) / 64 * 64 - prefix, ' ');
  header.back() = '\n';

  std::filesystem::path temporary = path;
  temporary += ".partial";
  std::ofstream file(temporary, std::ios::binary);
  file << magic << '\x01' << '\0' << static_cast<char>(header.size() & 0xff)
       << static_cast<char>(header.size() >> 8) << header;
  file.write(static_cast<const char*>(data),
             static_cast<std::streamsize>(elements * size_of(element)));
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    std::filesystem::remove(temporary, error);
    throw input_error(path.string(), "cannot be written");
  }
}

}  // namespace winnow::support
