// SPDX-License-Identifier: Apache-2.0
// Writes the simulated scans of the benchmarks as files:
//
//     winnow_write_scans FOLDER
//
// FOLDER gets stage1_coords.npy (float32 [N, 3], metres), stage1_batch.npy (int32 [N]), … stage5, which
// WINNOW_WORKLOADS=FOLDER makes every test and benchmark use, and compare_pytorch.py read.
#include <cstdio>
#include <filesystem>
#include <string>

#include "support/input_error.hpp"
#include "support/npy.hpp"
#include "support/scan_workload.hpp"

int main(int argc, char** argv) try {
  using namespace winnow::support;
  if (argc != 2) {
    std::fprintf(stderr, "usage: winnow_write_scans FOLDER\n");
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder);
  int number = 0;
  for (const scan_stage& stage : simulate_stages()) {
    const std::string name = "stage" + std::to_string(++number);
    write_npy(folder / (name + "_coords.npy"), {stage.tokens(), 3}, stage.coordinates);
    write_npy(folder / (name + "_batch.npy"), {stage.tokens()}, stage.batch);
    std::printf("%s: %lld tokens\n", name.c_str(), static_cast<long long>(stage.tokens()));
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "winnow_write_scans: %s\n", error.what());
  return 1;
}
