// SPDX-License-Identifier: Apache-2.0
/// \file
/// Strict reading and whole writing of the text files of the search. Numbers neither depend on the
/// locale nor lose a bit.
#pragma once

#include <cerrno>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "winnow/status.hpp"

namespace winnow::detail {

/// A file's name as messages show it: its end, where all of it would leave no room for the rest.
inline std::string shown_name(const std::string& file) {
  constexpr std::size_t most = 100;
  return file.size() <= most ? file : "..." + file.substr(file.size() - (most - 3));
}

/// Text from a file, quoted for a message.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t most = 40;
  std::string result = "\"";
  for (const char c : text.substr(0, most)) result += c >= ' ' && c <= '~' ? c : '?';
  return result += text.size() > most ? "...\"" : "\"";
}

inline status file_failure(const std::string& file, const char* what, int error) {
  return status::failure(status_code::invalid_argument, "%s: %s: %s", shown_name(file).c_str(),
                         what, std::generic_category().message(error).c_str());
}

struct close_stream {
  void operator()(std::FILE* stream) const noexcept { (void)std::fclose(stream); }
};

inline status read_file(const std::string& file, std::string& content) {
  const std::unique_ptr<std::FILE, close_stream> stream(std::fopen(file.c_str(), "rb"));
  if (!stream) return file_failure(file, "cannot be opened", errno);
  char piece[4096];
  while (const std::size_t read = std::fread(piece, 1, sizeof piece, stream.get()))
    content.append(piece, read);
  if (std::ferror(stream.get()) != 0) return file_failure(file, "cannot be read", errno);
  return {};
}

/// Replaces a file as a whole: whoever opens it, and whenever this ends, finds the old content or
/// the new.
inline status replace_file(const std::string& file, std::string_view content) {
  const std::string temporary = file + ".tmp";
  std::FILE* const stream = std::fopen(temporary.c_str(), "wb");
  if (stream == nullptr) return file_failure(temporary, "cannot be written", errno);
  bool written = std::fwrite(content.data(), 1, content.size(), stream) == content.size();
  // Closing flushes, which is where a full disk shows.
  written = std::fclose(stream) == 0 && written;
  std::error_code error;
  if (written) {
    std::filesystem::rename(temporary, file, error);
    if (!error) return {};
  } else {
    error.assign(errno, std::generic_category());
  }
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  return file_failure(file, "cannot be written", error.value());
}

/// Appends `separator` and a number. Reading it gives the same bits.
template <class T>
void append_number(std::string& text, char separator, T number) {
  char digits[32];
  text += separator;
  text.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

/// A number and nothing else; left as it is where there is none.
template <class T>
[[nodiscard]] bool parse_number(std::string_view text, T& number) noexcept {
  const char* const end = text.data() + text.size();
  T value{};
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return false;
  number = value;
  return true;
}

inline std::vector<std::string_view> split_line(std::string_view line, char separator) {
  std::vector<std::string_view> fields;
  for (std::size_t begin = 0;;) {
    const std::size_t end = line.find(separator, begin);
    fields.push_back(line.substr(begin, end - begin));
    if (end == std::string_view::npos) return fields;
    begin = end + 1;
  }
}

/// A text file, line by line.
class text_reader {
 public:
  status open(const std::string& file) {
    name_ = shown_name(file);
    return read_file(file, content_);
  }

  /// Goes to the next line. \return false at the end of the file.
  [[nodiscard]] bool next() noexcept {
    ++number_;
    if (place_ == content_.size()) {
      line_ = {};
      return false;
    }
    const std::size_t end = content_.find('\n', place_);
    ended_ = end != std::string::npos;
    line_ = std::string_view(content_).substr(place_, ended_ ? end - place_ : end);
    place_ = ended_ ? end + 1 : content_.size();
    return true;
  }

  [[nodiscard]] std::string_view line() const noexcept { return line_; }
  /// Whether the line ends with a line feed: the last one does not if the file was cut.
  [[nodiscard]] bool ended() const noexcept { return ended_; }

  /// "FILE:LINE: what is wrong", by a printf format.
#if defined(__GNUC__)
  __attribute__((format(printf, 2, 3)))
#endif
  status
  failure(const char* format, ...) const noexcept {
    char what[192];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return status::failure(status_code::invalid_argument, "%s:%d: %s", name_.c_str(), number_,
                           what);
  }

 private:
  std::string name_;
  std::string content_;
  std::size_t place_ = 0;
  std::string_view line_;
  bool ended_ = false;
  int number_ = 0;
};

}  // namespace winnow::detail

/// Fails with "FILE:LINE: …" of a `text_reader` unless `condition` holds.
#define WINNOW_REQUIRE_LINE(reader, condition, ...)         \
  do {                                                      \
    if (!(condition)) return (reader).failure(__VA_ARGS__); \
  } while (false)
