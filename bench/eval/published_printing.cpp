// SPDX-License-Identifier: Apache-2.0
// The figures of others below the tables of a run of the same benchmark.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include "eval/format.hpp"
#include "eval/printing.hpp"
#include "eval/published.hpp"

namespace winnow::eval {
namespace {

using windows_list = std::vector<window_evaluation>;

const attention_evaluation& attention_of(const window_evaluation& windows, bool contextual) {
  return *std::find_if(windows.attention.begin(), windows.attention.end(),
                       [&](const auto& each) { return each.contextual == contextual; });
}

const char* encoding(bool contextual) {
  return contextual ? "contextual" : "plain";
}

std::string megabytes(double count) {
  return number(count) + " MB";
}

/// One line: a title, the published figure, then one of winnow's for each kind of windows.
void print_row(std::FILE* file, const std::string& title, const std::string& figure,
               const windows_list& windows,
               const std::function<std::string(const window_evaluation& windows)>& own_figure) {
  std::fprintf(file, "%-38s%20s", title.c_str(), figure.c_str());
  for (const window_evaluation& each : windows)
    std::fprintf(file, "%18s", own_figure(each).c_str());
  std::fprintf(file, "\n");
}

void print_memory(std::FILE* file, const windows_list& windows) {
  for (const published::memory_figure& figure : published::memory) {
    for (const dtype storage : {dtype::float16, dtype::float32}) {
      const bool is_half = storage == dtype::float16;
      print_row(file,
                std::string("peak memory, ") + encoding(figure.contextual) +
                    (is_half ? ", half" : ", float"),
                megabytes(is_half ? figure.float16 : figure.float32), windows,
                [&](const window_evaluation& each) {
                  const storage_run& run = attention_of(each, figure.contextual).run(storage);
                  return bytes(run.tensor_bytes +
                               static_cast<std::int64_t>(
                                   each.partition_bytes +
                                   std::max(run.forward.extra_bytes, run.backward.extra_bytes)));
                });
    }
  }
}

void print_errors(std::FILE* file, const windows_list& windows) {
  constexpr std::size_t half = 0;
  constexpr std::size_t bfloat = 1;
  for (const published::error_figure& figure : published::output_errors) {
    for (const std::size_t column : {half, bfloat}) {
      print_row(
          file,
          std::string("error of out, ") + encoding(figure.contextual) + ", " +
              comparisons[column].name,
          scientific(column == half ? figure.float16 : figure.bfloat16), windows,
          [&](const window_evaluation& each) {
            return scientific(attention_of(each, figure.contextual).out.errors[column].largest);
          });
    }
  }
  const auto& [smallest, largest] = published::table_gradient_errors;
  const std::string range = scientific(smallest) + " to " + scientific(largest);
  for (std::size_t l = 0; l < losses.size(); ++l) {
    print_row(file,
              std::string("of table gradients, half, ") +
                  (losses[l] == loss::normal ? "dO ~ N(0, 1)" : "mean loss"),
              range, windows, [&](const window_evaluation& each) {
                double worst = 0.0;
                for (const tensor_errors& tensor : attention_of(each, true).gradients[l]) {
                  const double error = tensor.errors[half].largest;
                  // Not std::max, which would lose a NaN.
                  if (tensor.tensor[1] == 'T' && !(error <= worst)) worst = error;
                }
                return scientific(worst);
              });
  }
}

void print_times(std::FILE* file, const windows_list& windows) {
  std::fprintf(file, "%-44s%9s%9s%9s%9s%9s%9s\n", "", "SpTr", "SpTr", "FlashA-2", "FlexA", "winnow",
               "winnow");
  std::fprintf(file, "%-44s%9s%9s%9s%9s%9s%9s\n", "", "half", "float", "", "", "half", "float");
  const auto or_dash = [](const std::optional<double>& time) {
    return time ? milliseconds(*time) : std::string("-");
  };
  for (const published::time_figure& figure : published::times) {
    const char* kind = figure.spherical ? "spherical" : "cubic";
    const auto each = std::find_if(windows.begin(), windows.end(),
                                   [&](const auto& one) { return one.kind == kind; });
    if (each == windows.end()) continue;
    const auto own = [&](dtype storage) {
      const storage_run& run = attention_of(*each, figure.contextual).run(storage);
      return milliseconds(
          1e3 * (run.forward.seconds + (figure.with_backward ? run.backward.seconds : 0.0)));
    };
    std::fprintf(file, "%-10s%-11s%-23s%9s%9s%9s%9s%9s%9s\n", kind, encoding(figure.contextual),
                 figure.with_backward ? "forward and backward" : "forward",
                 milliseconds(figure.sptr_half).c_str(), milliseconds(figure.sptr_float).c_str(),
                 or_dash(figure.flash_attention).c_str(), or_dash(figure.flex_attention).c_str(),
                 own(dtype::float16).c_str(), own(dtype::float32).c_str());
  }
}

}  // namespace

void print_published(std::FILE* file, const options& asked, const token_set& tokens,
                     const backend& device, const std::vector<window_evaluation>& windows) {
  if (!published::is_reference_benchmark(asked, tokens, windows)) {
    if (tokens.size() == published::tokens)
      std::fprintf(file, "\nPUBLISHED figures belong to other windows of as many tokens.\n");
    return;
  }
  std::fprintf(file,
               "\nPUBLISHED: %s.\nThe GPUs differ. winnow: all inputs and outputs of forward and "
               "backward, partition, workspace.\n",
               published::fork);
  std::fprintf(file, "%-38s%20s", "", "SpTr");
  for (const window_evaluation& each : windows)
    std::fprintf(file, "%18s", ("winnow, " + each.kind).c_str());
  std::fprintf(file, "\n");
  print_memory(file, windows);
  print_errors(file, windows);
  std::fprintf(file, "\nTIME OF OTHERS in ms: %s.\nwinnow's times are of this run, on %s.\n",
               published::side_by_side, device.description().c_str());
  print_times(file, windows);
  std::fprintf(file, "%s\n", published::times_note);
}

}  // namespace winnow::eval
