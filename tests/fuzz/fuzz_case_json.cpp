// SPDX-License-Identifier: Apache-2.0
// A case.json of any bytes is a specification or an input_error of one line.
#include <cstring>

#include "memory.hpp"
#include "replay/case_spec.hpp"
#include "support/input_error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    (void)winnow::replay::parse_case_json({reinterpret_cast<const char*>(data), size}, "case.json");
  } catch (const winnow::support::input_error& error) {
    winnow::fuzz::require(std::strchr(error.what(), '\n') == nullptr, "a message is one line");
  }
  return 0;
}
