// SPDX-License-Identifier: Apache-2.0
// Formats: the PNG specification, RFC 1950 (zlib) and RFC 1951 (deflate).
#include "eval/report/png.hpp"

#include <algorithm>
#include <cstddef>

namespace winnow::eval::report {
namespace {

/// Deflate's fixed code.
class deflate_writer {
 public:
  deflate_writer() {
    bits(1, 1);  // the last block
    bits(1, 2);  // in the fixed code
  }
  void literal(std::uint8_t value) { symbol(value); }

  /// \param length 3 to 258. \param distance 1 to 32768.
  void repeat(int length, int distance) {
    if (length == 258) {
      symbol(285);
    } else {
      split(length - 3, 4, [&](int code) { symbol(257 + code); });
    }
    split(distance - 1, 2, [&](int code) { reversed(code, 5); });
  }
  std::string finish() {
    symbol(256);
    if (filled_ > 0) bits(0, 8 - filled_);
    return std::move(bytes_);
  }

 private:
  /// Lengths and distances come as a code, `per_octave` of them for each power of two, and the bits
  /// that the code leaves open.
  template <class Write>
  void split(int value, int per_octave, Write&& write) {
    int open = 0;
    while ((value >> open) >= 2 * per_octave) ++open;
    write(open * per_octave + (value >> open));
    bits(value & ((1 << open) - 1), open);
  }
  void symbol(int value) {
    if (value < 144) {
      reversed(0x30 + value, 8);
    } else if (value < 256) {
      reversed(0x190 + value - 144, 9);
    } else if (value < 280) {
      reversed(value - 256, 7);
    } else {
      reversed(0xc0 + value - 280, 8);
    }
  }
  /// Huffman codes go highest bit first, everything else lowest bit first.
  void reversed(int code, int count) {
    for (int bit = count - 1; bit >= 0; --bit) bits(code >> bit & 1, 1);
  }
  void bits(int value, int count) {
    for (int bit = 0; bit < count; ++bit) {
      current_ |= (value >> bit & 1) << filled_;
      if (++filled_ < 8) continue;
      bytes_ += static_cast<char>(current_);
      current_ = filled_ = 0;
    }
  }

  std::string bytes_;
  int current_ = 0;
  int filled_ = 0;
};

std::string deflated(const std::string& data) {
  constexpr std::size_t farthest = 32768;
  constexpr std::size_t longest = 258;
  std::vector<std::size_t> last_place(std::size_t{1} << 15, data.size());
  const auto hash = [&](std::size_t at) {
    const auto byte = [&](std::size_t n) { return static_cast<std::uint8_t>(data[at + n]); };
    return (byte(0) * 2654435761u ^ byte(1) * 40503u * 1024u ^ byte(2) * 31337u * 32u) >> 7 &
           (last_place.size() - 1);
  };
  deflate_writer writer;
  for (std::size_t at = 0; at < data.size();) {
    std::size_t length = 0;
    std::size_t distance = 0;
    if (at + 3 <= data.size()) {
      std::size_t& place = last_place[hash(at)];
      if (place < at && at - place <= farthest) {
        distance = at - place;
        const std::size_t most = std::min(longest, data.size() - at);
        while (length < most && data[place + length] == data[at + length]) ++length;
      }
      place = at;
    }
    if (length < 3) {
      writer.literal(static_cast<std::uint8_t>(data[at++]));
      continue;
    }
    writer.repeat(static_cast<int>(length), static_cast<int>(distance));
    for (const std::size_t end = at + length; ++at < end;)
      if (at + 3 <= data.size()) last_place[hash(at)] = at;
  }
  return writer.finish();
}

void append(std::string& bytes, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xffu);
}

std::uint32_t adler32(const std::string& data) {
  std::uint32_t sum = 1;
  std::uint32_t sum_of_sums = 0;
  for (const char c : data) {
    sum = (sum + static_cast<std::uint8_t>(c)) % 65521u;
    sum_of_sums = (sum_of_sums + sum) % 65521u;
  }
  return sum_of_sums << 16 | sum;
}

std::uint32_t crc32(const std::string& data) {
  std::uint32_t remainder = 0xffffffffu;
  for (const char c : data) {
    remainder ^= static_cast<std::uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit)
      remainder = remainder >> 1 ^ ((remainder & 1u) != 0 ? 0xedb88320u : 0u);
  }
  return ~remainder;
}

void append_chunk(std::string& file, const std::string& type, const std::string& content) {
  append(file, static_cast<std::uint32_t>(content.size()));
  file += type + content;
  append(file, crc32(type + content));
}

}  // namespace

std::string png(const indexed_image& image) {
  std::string header;
  append(header, static_cast<std::uint32_t>(image.width));
  append(header, static_cast<std::uint32_t>(image.height));
  header += {8, 3, 0, 0, 0};  // 8 bits, palette; the only compression, filters and no interlacing
  std::string colours;
  std::string opacities;
  for (const auto& [red, green, blue, opacity] : image.palette) {
    for (const std::uint8_t each : {red, green, blue}) colours += static_cast<char>(each);
    opacities += static_cast<char>(opacity);
  }
  std::string rows;
  for (int y = 0; y < image.height; ++y) {
    rows += '\0';  // no filter
    const auto* row = image.pixels.data() + static_cast<std::size_t>(y) * image.width;
    rows.append(row, row + image.width);
  }
  std::string data = "\x78\x01" + deflated(rows);
  append(data, adler32(rows));

  std::string file = "\x89PNG\r\n\x1a\n";
  append_chunk(file, "IHDR", header);
  append_chunk(file, "PLTE", colours);
  append_chunk(file, "tRNS", opacities);
  append_chunk(file, "IDAT", data);
  append_chunk(file, "IEND", "");
  return file;
}

std::string base64(std::string_view bytes) {
  constexpr const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string result;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    std::uint32_t group = 0;
    for (std::size_t n = 0; n < 3; ++n)
      group = group << 8 | (at + n < bytes.size() ? static_cast<std::uint8_t>(bytes[at + n]) : 0u);
    for (std::size_t n = 0; n < 4; ++n)
      result += at + n <= bytes.size() ? digits[group >> (18 - 6 * n) & 63u] : '=';
  }
  return result;
}

}  // namespace winnow::eval::report
