// SPDX-License-Identifier: Apache-2.0
#include "eval/format.hpp"

#include <cmath>
#include <cstdio>

namespace winnow::eval {

std::string grouped(std::int64_t value) {
  std::string text = std::to_string(value);
  for (std::size_t at = text.size(); at > 3;) text.insert(at -= 3, ",");
  return text;
}

std::string bytes(std::int64_t count) {
  constexpr const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(count);
  int unit = 0;
  for (; value >= 999.5 && unit < 4; ++unit) value /= 1000.0;
  char text[32];
  std::snprintf(text, sizeof text, "%.*f %s",
                unit == 0 || value >= 99.95 ? 0
                : value >= 9.995            ? 1
                                            : 2,
                value, units[unit]);
  return text;
}

std::string bytes(std::size_t count) {
  return bytes(static_cast<std::int64_t>(count));
}

std::string duration(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text,
                seconds < 1e-3  ? "%.1f us"
                : seconds < 1.0 ? "%.1f ms"
                                : "%.2f s",
                seconds < 1e-3  ? 1e6 * seconds
                : seconds < 1.0 ? 1e3 * seconds
                                : seconds);
  return text;
}

std::string milliseconds(double value) {
  if (value >= 1000.0) return grouped(std::llround(value));
  char text[32];
  std::snprintf(text, sizeof text, "%.*f",
                value < 0.1     ? 3
                : value < 10.0  ? 2
                : value < 100.0 ? 1
                                : 0,
                value);
  return text;
}

std::string scientific(double value) {
  if (value == 0.0) return "0";
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : "inf";
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  std::string result = text;
  const std::size_t digits = result.find('e') + 2;
  if (result[digits] == '0') result.erase(digits, 1);
  if (result[digits - 1] == '+') result.erase(digits - 1, 1);
  return result;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace winnow::eval
