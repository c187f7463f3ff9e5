// SPDX-License-Identifier: Apache-2.0
// A case of any files is read and computed, or an input_error.
//
// The input is a list of files: a byte for the name, two for the length, the content.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "byte_source.hpp"
#include "replay/run_case.hpp"
#include "scratch.hpp"
#include "support/input_error.hpp"

namespace {

const char* const names[] = {"case.json",     "q.npy",         "k.npy",        "v.npy",
                             "grad_out.npy",  "coords.npy",    "batch.npy",    "labels.npy",
                             "positions.npy", "radius.npy",    "kept.npy",     "table_q.npy",
                             "table_k.npy",   "table_v.npy",   "features.npy", "bias_table.npy",
                             "labels.0.npy",  "table_q.0.npy", "labels.1.npy", "table_q.1.npy"};

const std::filesystem::path& folder() {
  static const std::filesystem::path path = winnow::fuzz::scratch_folder("replay");
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::filesystem::create_directories(folder());
  winnow::fuzz::byte_source source(data, size);
  while (source.left() > 0) {
    const char* name = names[source.pick(static_cast<int>(std::size(names)))];
    const auto claimed = std::size_t{source.take<std::uint16_t>()};
    const std::size_t length = std::min(claimed, source.left());
    std::ofstream file(folder() / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(source.data()), static_cast<std::streamsize>(length));
    source.skip(length);
  }
  try {
    const winnow::replay::replay_case input = winnow::replay::read_case(folder());
    const auto device = winnow::replay::make_cpu_executor();
    (void)winnow::replay::run_case(input, winnow::dtype::float32, "case", *device);
  } catch (const winnow::support::input_error&) {
  }
  std::filesystem::remove_all(folder());
  return 0;
}
