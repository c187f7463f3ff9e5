// SPDX-License-Identifier: Apache-2.0
/// \file
/// Numbers as people read them, the same on the terminal and in the report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace winnow::eval {

/// 1234567 as "1,234,567".
std::string grouped(std::int64_t value);
/// Three significant digits and a decimal unit: "1.78 MB".
std::string bytes(std::int64_t count);
std::string bytes(std::size_t count);
/// "15.6 ms"
std::string duration(double seconds);
/// "0.055", "1.59", "4,734": milliseconds without their unit.
std::string milliseconds(double value);
/// "1.2e-7": an exponent without padding.
std::string scientific(double value);
/// As short as `%g` makes it.
std::string number(double value);

}  // namespace winnow::eval
