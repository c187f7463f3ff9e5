// SPDX-License-Identifier: Apache-2.0
// A file of any bytes is an array or an input_error.
#include "memory.hpp"
#include "support/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  try {
    const winnow::support::npy_array array =
        winnow::support::parse_npy({bytes, bytes + size}, "input.npy");
    std::uint64_t elements = 1;  // wraps only where some extent is 0, and then ends at 0
    for (const std::int64_t extent : array.shape) elements *= static_cast<std::uint64_t>(extent);
    winnow::fuzz::require(elements == static_cast<std::uint64_t>(array.elements()),
                          "the shape and the data agree");
    winnow::fuzz::require(array.data.size() <= size, "an array is no larger than its file");
    (void)array.to_doubles();
  } catch (const winnow::support::input_error&) {
  }
  return 0;
}
