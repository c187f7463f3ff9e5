// SPDX-License-Identifier: Apache-2.0
// winnow-swin: a Swin-T backbone with pruned windows, its latency, and the search for ratios. Exit status
// 0; 2 for options or files that cannot be used, with one line on stderr; 1 for anything else.
#include <cstdio>
#include <exception>

#include "support/input_error.hpp"
#include "swin/latency_command.hpp"
#include "swin/options.hpp"
#include "swin/search_command.hpp"

int main(int argc, char** argv) {
  using namespace winnow::swin;
  try {
    const options asked = parse_options(argc, argv);
    if (asked.latency) run_latency_command(*asked.latency);
    if (asked.search) run_search_command(*asked.search);
    return 0;
  } catch (const winnow::support::input_error& error) {
    std::fprintf(stderr, "winnow-swin: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "winnow-swin: %s\n", error.what());
    return 1;
  }
}
