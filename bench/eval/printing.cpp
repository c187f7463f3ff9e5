// SPDX-License-Identifier: Apache-2.0
#include "eval/printing.hpp"

#include <cinttypes>
#include <string>

#include "eval/build_info.hpp"
#include "eval/format.hpp"
#include "eval/machine.hpp"

namespace winnow::eval {
namespace {

void print_windows(std::FILE* file, const std::vector<window_evaluation>& windows) {
  std::fprintf(file, "\nWINDOWS%39s%29s\n", "", "tokens of a window");
  std::fprintf(file, "%-10s%-22s%11s%9s%6s%6s%6s%14s\n", "", "size", "windows", "p50", "p90", "p99",
               "max", "pairs");
  for (const window_evaluation& each : windows) {
    const window_statistics& s = each.statistics;
    std::fprintf(file, "%-10s%-22s%11s%9" PRId64 "%6" PRId64 "%6" PRId64 "%6" PRId64 "%14s\n",
                 each.kind.c_str(), each.size.c_str(), grouped(s.windows).c_str(), s.p50, s.p90,
                 s.p99, s.largest, grouped(s.pairs).c_str());
  }
}

const char* encoding(const attention_evaluation& attention) {
  return attention.contextual ? "contextual" : "plain";
}

void print_memory(std::FILE* file, const std::vector<window_evaluation>& windows) {
  std::fprintf(file,
               "\nMEMORY beyond inputs and outputs, and what a list of the same pairs takes\n");
  std::fprintf(file, "%34s%26s%31s\n", "partition", "winnow, half storage",
               "pair list, half storage");
  std::fprintf(file, "%-21s%9s%10s%11s%10s%16s%10s\n", "", "held", "to build", "forward",
               "backward", "forward", "backward");
  for (const window_evaluation& each : windows) {
    for (const attention_evaluation& attention : each.attention) {
      const storage_run& run = attention.run(dtype::float16);
      std::fprintf(file, "%-10s%-11s%9s%10s%11s%10s%16s%10s\n", each.kind.c_str(),
                   encoding(attention), bytes(each.partition_bytes).c_str(),
                   bytes(each.build.extra_bytes).c_str(), bytes(run.forward.extra_bytes).c_str(),
                   bytes(run.backward.extra_bytes).c_str(), bytes(run.pair_list.forward).c_str(),
                   bytes(run.pair_list.backward).c_str());
    }
  }
  std::fprintf(
      file,
      "A pair list: two int32 indices a pair, and three relative ones if contextual; logits "
      "and\nsoftmax [pairs, heads]; in backward the gradients of both.\n");
}

void print_errors(std::FILE* file, const tensor_errors* normal, const tensor_errors* mean) {
  std::fprintf(file, "%-4s", normal->tensor.c_str());
  for (const error_norms& error : normal->errors)
    std::fprintf(file, "%7s%7s", scientific(error.largest).c_str(),
                 scientific(error.relative).c_str());
  if (mean != nullptr) {
    std::fprintf(file, " ");
    for (const error_norms& error : mean->errors)
      std::fprintf(file, "%8s%7s", scientific(error.largest).c_str(),
                   scientific(error.relative).c_str());
  }
  std::fprintf(file, "\n");
}

void print_precision(std::FILE* file, const options& asked, const token_set& tokens,
                     const std::vector<window_evaluation>& windows) {
  const std::int64_t elements = tokens.size() * asked.heads * asked.head_dim;
  const double mean = elements > 0 ? 1.0 / static_cast<double>(elements) : 0.0;
  std::fprintf(file,
               "\nPRECISION: largest error, and norm of the error over norm of the reference\n"
               "Half and bfloat16 against float on the inputs before rounding, float against "
               "double.\n");
  std::fprintf(file, "%-4sdO ~ N(0, 1)%*sdO = 1/(N H D) = %s, a mean loss\n", "", 32, "",
               scientific(mean).c_str());
  std::fprintf(file, "%-4s%-14s%-14s%-14s  %-15s%-15s%s\n", "", "half", "bfloat16", "float", "half",
               "bfloat16", "float");
  for (const window_evaluation& each : windows) {
    for (const attention_evaluation& attention : each.attention) {
      std::fprintf(file, "%s, %s\n", each.kind.c_str(), encoding(attention));
      print_errors(file, &attention.out, nullptr);
      for (std::size_t row = 0; row < attention.gradients[0].size(); ++row)
        print_errors(file, &attention.gradients[0][row], &attention.gradients[1][row]);
    }
  }
  constexpr double smallest_normal_half = 0x1p-14;
  if (mean > 0.0 && mean < smallest_normal_half)
    std::fprintf(file, "In half this mean loss underflows; training in half scales its loss.\n");
}

void print_time(std::FILE* file, const options& asked, const backend& device,
                const std::vector<window_evaluation>& windows) {
  std::fprintf(file, "\nTIME on %s, %s storage\n", device.description().c_str(),
               to_string(device.usual_storage()));
  std::fprintf(file, "%-21s%11s%11s%11s%11s%26s\n", "", "partition", "forward", "backward", "both",
               "pairs x heads a second");
  for (const window_evaluation& each : windows) {
    for (const attention_evaluation& attention : each.attention) {
      const storage_run& run = attention.run(device.usual_storage());
      const double both = run.forward.seconds + run.backward.seconds;
      const double work = static_cast<double>(each.statistics.pairs) * asked.heads;
      std::fprintf(file, "%-10s%-11s%11s%11s%11s%11s%24.1f M\n", each.kind.c_str(),
                   encoding(attention), duration(each.build.seconds).c_str(),
                   duration(run.forward.seconds).c_str(), duration(run.backward.seconds).c_str(),
                   duration(both).c_str(), both > 0.0 ? 1e-6 * work / both : 0.0);
    }
  }
}

}  // namespace

void print_inputs(std::FILE* file, const options& asked, const token_set& tokens,
                  const backend& device) {
  std::fprintf(file, "winnow-eval %s, commit %s, %s %s\n", build_info::version, build_info::commit,
               build_info::compiler, build_info::build_type);
  std::fprintf(file, "machine    %s, %s\n", cpu_model().c_str(), device.description().c_str());
  std::fprintf(file, "source     %s: %s points\n", tokens.source.c_str(),
               grouped(tokens.points).c_str());
  std::fprintf(file, "tokens     %s", grouped(tokens.size()).c_str());
  if (!asked.coordinates) std::fprintf(file, ", voxels of %g m", asked.voxel);
  if (asked.copies > 1) std::fprintf(file, ", %d batch items", asked.copies);
  if (tokens.available > tokens.size())
    std::fprintf(file, ", the first of %s", grouped(tokens.available).c_str());
  std::fprintf(file, "\nattention  %d heads of %d, quant length %d\n", asked.heads, asked.head_dim,
               asked.quant_length);
}

void print_tables(std::FILE* file, const options& asked, const token_set& tokens,
                  const backend& device, const std::vector<window_evaluation>& windows) {
  print_windows(file, windows);
  print_memory(file, windows);
  print_precision(file, asked, tokens, windows);
  print_time(file, asked, device, windows);
}

}  // namespace winnow::eval
