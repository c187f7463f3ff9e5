// SPDX-License-Identifier: Apache-2.0
// winnow-eval: window attention on the voxels of a point cloud. Exit status 0; 2 for options or
// files that cannot be used, with one line on stderr; 1 for anything else.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "eval/backend.hpp"
#include "eval/evaluation.hpp"
#include "eval/inputs.hpp"
#include "eval/json_report.hpp"
#include "eval/options.hpp"
#include "eval/output_file.hpp"
#include "eval/printing.hpp"
#include "eval/report/page.hpp"
#include "support/input_error.hpp"

int main(int argc, char** argv) {
  using namespace winnow::eval;
  try {
    const std::optional<options> asked = parse_options(argc, argv);
    if (!asked) return 0;
    const std::unique_ptr<backend> device = asked->device == device_kind::cuda
                                                ? make_cuda_backend(asked->threads)
                                                : make_cpu_backend(asked->threads);
    if (asked->json) check_output_path(*asked->json);
    if (asked->report) make_output_folder(*asked->report);
    const token_set tokens = load_tokens(*asked);
    print_inputs(stdout, *asked, tokens, *device);
    std::fflush(stdout);
    const std::vector<window_evaluation> windows = evaluate(*asked, tokens, *device);
    print_tables(stdout, *asked, tokens, *device, windows);
    print_published(stdout, *asked, tokens, *device, windows);
    if (!asked->json && !asked->report) return 0;
    const nlohmann::ordered_json results = make_json(*asked, tokens, *device, windows);
    if (asked->json) write_json(*asked->json, results);
    if (asked->report) {
      const std::filesystem::path page = std::filesystem::path(*asked->report) / "report.html";
      write_file(page, report::make_page(results, tokens, windows));
      std::printf("\nreport     %s\n", page.c_str());
    }
    return 0;
  } catch (const winnow::support::input_error& error) {
    std::fprintf(stderr, "winnow-eval: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "winnow-eval: %s\n", error.what());
    return 1;
  }
}
