// SPDX-License-Identifier: Apache-2.0
// winnow-eval: window attention on the voxels of a point cloud. Exit status 0; 2 for options or
// files that cannot be used, with one line on stderr; 1 for anything else.
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "eval/backend.hpp"
#include "eval/evaluation.hpp"
#include "eval/inputs.hpp"
#include "eval/json_report.hpp"
#include "eval/options.hpp"
#include "eval/printing.hpp"
#include "support/input_error.hpp"

int main(int argc, char** argv) {
  using namespace winnow::eval;
  try {
    const std::optional<options> asked = parse_options(argc, argv);
    if (!asked) return 0;
    const std::unique_ptr<backend> device = asked->device == device_kind::cuda
                                                ? make_cuda_backend(asked->threads)
                                                : make_cpu_backend(asked->threads);
    if (asked->json) check_json_path(*asked->json);
    const token_set tokens = load_tokens(*asked);
    print_inputs(stdout, *asked, tokens, *device);
    std::fflush(stdout);
    const std::vector<window_evaluation> windows = evaluate(*asked, tokens, *device);
    print_tables(stdout, *asked, tokens, *device, windows);
    if (asked->json) write_json(*asked->json, *asked, tokens, *device, windows);
    return 0;
  } catch (const winnow::support::input_error& error) {
    std::fprintf(stderr, "winnow-eval: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "winnow-eval: %s\n", error.what());
    return 1;
  }
}
