// SPDX-License-Identifier: Apache-2.0
// A scan of any bytes, read in the format that the first byte names, is points or an input_error.
#include <cmath>

#include "memory.hpp"
#include "support/scan_reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace winnow::support;
  if (size == 0) return 0;
  std::optional<scan_format> format;
  if (data[0] % 6 < 5) format = static_cast<scan_format>(data[0] % 6);
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  try {
    const scan result = parse_scan({bytes + 1, bytes + size}, "input", format);
    winnow::fuzz::require(result.points.size() <= size, "no more points than bytes");
    for (const point& each : result.points)
      for (const float x : each) winnow::fuzz::require(std::isfinite(x), "points are finite");
  } catch (const input_error&) {
  }
  return 0;
}
