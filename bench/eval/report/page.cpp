// SPDX-License-Identifier: Apache-2.0
#include "eval/report/page.hpp"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>

#include "eval/format.hpp"
#include "eval/json_report.hpp"
#include "eval/report/chart.hpp"
#include "eval/report/html.hpp"
#include "eval/report/scan_picture.hpp"
#include "eval/report/style.hpp"
#include "eval/report/tables.hpp"
#include "eval/report/window_picture.hpp"

namespace winnow::eval::report {
namespace {

using json = nlohmann::ordered_json;

std::string figure(const std::string& picture, const std::string& name, const std::string& about) {
  return "<figure>" + picture + "<figcaption><b>" + escaped(name) + "</b> " + escaped(about) +
         "</figcaption></figure>\n";
}

std::string section(const char* id, const char* title, const std::string& content) {
  return std::string("<section id=\"") + id + "\">\n<h2>" + title + "</h2>\n" + content +
         "</section>\n";
}

std::string how(const std::string& text) {
  return "<p class=\"how\">" + text + "</p>\n";
}

std::string tile(const std::string& value, const std::string& about) {
  return "<div class=\"tile\"><b>" + escaped(value) + "</b><span>" + escaped(about) +
         "</span></div>\n";
}

/// Contextual attention in the last kind of windows: the most work.
const json& heaviest(const json& results) {
  return results.at("windows").back().at("attention").back();
}

std::string opening(const json& results) {
  const json& machine = results.at("machine");
  const std::int64_t tokens = results.at("tokens").at("evaluated");
  std::string html = "<h1>Window attention on " + grouped(tokens) +
                     " tokens</h1>\n<p class=\"lead\">" +
                     escaped(results.at("source").get<std::string>()) + ", run on " +
                     escaped(machine.at("calls_run_on").get<std::string>()) + " (" +
                     escaped(machine.at("cpu").get<std::string>()) + ")</p>\n";

  const json& attention = heaviest(results);
  const std::string kind = results.at("windows").back().at("kind");
  const std::string storage = machine.at("usual_storage");
  const json& half = attention.at("runs").at("float16");
  const json& usual = attention.at("runs").at(storage);
  std::int64_t windows = 0;
  for (const json& each : results.at("windows")) windows += each.at("windows").get<std::int64_t>();
  double worst = 0.0;
  for (const json& each : results.at("windows"))
    for (const json& run : each.at("attention"))
      worst = std::max(worst, run.at("errors").at("out").at("half").at("relative").get<double>());
  const double seconds = usual.at("forward").at("seconds").get<double>() +
                         usual.at("backward").at("seconds").get<double>();
  html +=
      "<div class=\"tiles\">\n" +
      tile(grouped(windows), "windows, cubic and spherical, built from the coordinates") +
      tile(bytes(half.at("backward").at("extra_bytes").get<std::int64_t>()),
           "extra memory of a contextual backward in " + kind + " windows; a list of pairs takes " +
               bytes(half.at("pair_list_bytes").at("backward").get<std::int64_t>())) +
      tile(scientific(worst), "largest relative error of an output in half") +
      tile(duration(seconds),
           "contextual forward and backward in " + kind + " windows, " + storage + " storage") +
      "</div>\n";
  return html +
         "<nav aria-label=\"Sections\"><a href=\"#windows\">Windows</a><a "
         "href=\"#attention\">Attention</a><a href=\"#memory\">Memory</a><a "
         "href=\"#precision\">Precision</a><a href=\"#time\">Time</a><a "
         "href=\"#published\">Published figures</a><a href=\"#facts\">Facts</a><a "
         "href=\"#reproduce\">Reproduce</a></nav>\n";
}

std::string scan_pictures(const json& results, const token_set& tokens,
                          const std::vector<window_evaluation>& windows) {
  if (tokens.size() == 0) return "<p>There are no tokens to draw.</p>\n";
  const square whole = whole_scan(tokens);
  // Some 26 cubic windows side by side, unless the scan itself is hardly wider.
  const double edge = results.at("options").at("cubic_window");
  const double side = std::min(26 * edge, whole.side / 3);
  const square part = busiest_part(tokens, windows.front().window_of_token, side);
  const double token_edge = results.at("options").at("voxel");
  const std::string shown = tokens.batch.front() == tokens.batch.back()
                                ? "The scan from above"
                                : "The first batch item from above";
  std::string html;
  for (const bool is_whole : {true, false}) {
    html += "<div class=\"pair\">\n";
    for (const window_evaluation& each : windows) {
      scan_picture picture{is_whole ? whole : part, {}, token_edge, {}};
      if (is_whole) picture.marked = part;
      picture.title = (is_whole ? shown + " in " : "A part of the scan from above in ") +
                      each.kind + " windows, one colour a window";
      const std::string name = each.kind == "cubic" ? "Cubic windows of " : "Spherical windows of ";
      html += figure(draw_scan(picture, tokens, each.window_of_token),
                     name + size_text(each.size) + ".",
                     is_whole ? shown + ", one colour a window. The frame is enlarged below."
                              : "The framed part. Windows above one another hide the lower ones.");
    }
    html += "</div>\n";
  }
  return html;
}

std::string window_sizes(const json& results) {
  std::string html =
      "<h3>How many tokens a window has</h3>\n"
      "<ul class=\"legend\"><li><i></i>share of the windows</li>"
      "<li class=\"two\"><i></i>share of the tokens, by the size of their window</li></ul>\n"
      "<div class=\"pair\">\n";
  for (const json& windows : results.at("windows")) {
    const std::string kind = windows.at("kind");
    html += figure(size_histogram(windows.at("window_tokens"),
                                  "Histogram of tokens per window, " + kind + " windows"),
                   (kind == "cubic" ? "Cubic windows." : "Spherical windows."),
                   "Ranges double from bar to bar; dashed lines are percentiles over windows.");
  }
  return html + "</div>\n" + windows_table(results);
}

std::string attention_pictures(const std::vector<window_evaluation>& windows) {
  std::string html =
      "<p>One query, ringed, and the tokens of its window. The area of a dot is the weight of its "
      "token in the query&#39;s softmax; resting the pointer on a dot shows the number. Weights "
      "are "
      "never stored: each row is made and used up inside the kernel.</p>\n";
  for (const window_evaluation& each : windows) {
    if (!each.sample) {
      html += "<p>No " + each.kind + " window has 2 to " + std::to_string(largest_sample) +
              " tokens.</p>\n";
      continue;
    }
    const attention_sample& sample = *each.sample;
    const double largest =
        std::max(*std::max_element(sample.plain.begin(), sample.plain.end()),
                 *std::max_element(sample.contextual.begin(), sample.contextual.end()));
    html += "<h3>" + std::string(each.kind == "cubic" ? "A cubic" : "A spherical") + " window of " +
            std::to_string(sample.tokens.size()) + " tokens</h3>\n<div class=\"pair\">\n";
    for (const bool contextual : {false, true}) {
      const std::vector<double>& weights = contextual ? sample.contextual : sample.plain;
      const std::string name = contextual ? "Contextual" : "Plain";
      html += figure(
          draw_window(each.kind, sample, weights, largest,
                      name + " attention weights of token " +
                          std::to_string(sample.tokens[static_cast<std::size_t>(sample.query)]) +
                          " in a " + each.kind + " window"),
          name + " attention, head " + std::to_string(sample.head) + ".",
          summary_of(weights) + ".");
    }
    html += "</div>\n";
  }
  return html +
         how("Of the larger windows of at most " + std::to_string(largest_sample) +
             " tokens this is the one that reaches farthest; the query is the token nearest its "
             "middle. Weights come from the host "
             "reference in double, on the q, k and tables of this run, which are random: what "
             "changes from left to right is the tables&#39; doing. Cubic windows are seen "
             "obliquely, inside the box around their tokens.");
}

std::string memory(const json& results) {
  std::string html =
      "<p>What a call takes beyond its inputs and outputs. winnow walks the windows and stores "
      "nothing per pair; an operator that lists the pairs of the same windows keeps indices, "
      "logits and softmax of each.</p>\n"
      "<ul class=\"legend\"><li><i></i>winnow, measured</li>"
      "<li class=\"two\"><i></i>list of pairs, computed</li></ul>\n<div class=\"pair\">\n";
  for (const json& windows : results.at("windows")) html += memory_table(windows);
  return html + "</div>\n" +
         how("winnow: the peak of the allocations during the call, on a GPU its workspace and "
             "whatever else of the memory was gone. List of pairs: two int32 indices a pair, three "
             "relative ones if contextual, logits and softmax [pairs, heads] in half; in backward "
             "the gradients of both. All bars of a table share one scale.");
}

std::string limits_of(const json& tensor) {
  std::string result;
  for (const auto& [type, error] : tensor.items())
    result += (result.empty() ? "" : ", ") + scientific(error.at("limit").get<double>());
  return result;
}

std::string precision(const json& results) {
  const json& errors = results.at("windows").at(0).at("attention").at(0).at("errors");
  std::string html =
      "<p>Relative error, the norm of the error over the norm of the reference, and below it the "
      "largest error of any element. Bars are shares of the limit that winnow&#39;s tests "
      "keep.</p>\n<div class=\"pair\">\n";
  // Plain attention of all windows, then contextual: neighbours have as many rows.
  const auto for_each_attention = [&](const auto& show) {
    for (const std::size_t position : {0, 1})
      for (const json& windows : results.at("windows"))
        html += show(windows, windows.at("attention").at(position));
  };
  for_each_attention(precision_table);
  html += "</div>\n" +
          how("q, k, v, dO ~ N(0, 1), tables ~ N(0, 0.5²). Half and bfloat16 against float on the "
              "inputs before rounding, float against the host reference in double. The limits are "
              "meant for equally rounded inputs, so half and bfloat16 are judged more strictly "
              "here: rounding the inputs counts, too. Limits of half, "
              "bfloat16 and float: out " +
              limits_of(errors.at("out")) + "; gradients " +
              limits_of(errors.at("gradients_of_normal_loss").at("dq")) + ".") +
          "<h3>Gradients of a mean loss</h3>\n<p>With dO = 1/(N H D) gradients of many tokens are "
          "too small for half&#39;s exponents: training in half scales its loss. bfloat16 and "
          "float need no scaling.</p>\n<div class=\"pair\">\n";
  for_each_attention(mean_loss_table);
  return html + "</div>\n";
}

std::string time(const json& results) {
  const bool is_gpu = results.at("options").at("device") == "cuda";
  std::string html = "<p>Time of one call on " +
                     escaped(results.at("machine").at("calls_run_on").get<std::string>()) +
                     (is_gpu ? "."
                             : " of the processor, by the host reference: it is written to be "
                               "checked against, not to be fast.") +
                     "</p>\n<div class=\"pair\">\n";
  for (const json& windows : results.at("windows")) html += time_table(windows);
  return html + "</div>\n" +
         how(is_gpu ? "The median GPU time of 20 calls between device events, without copies. All "
                      "bars of a table share one scale."
                    : "Wall time of one call. With --device cuda the same table has GPU times. All "
                      "bars of a table share one scale.");
}

std::string published_figures(const json& results) {
  const json& published = results.at("published");
  const bool comparable = published.at("comparable");
  const std::string count = grouped(published.at("tokens").get<std::int64_t>());
  std::string html =
      comparable
          ? "<p>This run is the reference benchmark of " + count +
                " tokens, so others&#39; figures can stand beside it. <b>The GPUs differ</b> and "
                "so "
                "do times where this run was not on an H200; memory and precision compare "
                "better.</p>\n"
          : "<p>These figures apply to the reference benchmark of " + count +
                " tokens only, which this run is not; they are given for orientation. Run that "
                "benchmark to see winnow beside them.</p>\n";
  html +=
      "<div class=\"pair\">\n" + published_memory_table(results) + published_error_table(results) +
      "</div>\n" +
      how("SpTr: " + escaped(published.at("source").get<std::string>()) +
          (comparable ? ". winnow: all inputs and outputs of forward and backward, the partition "
                        "and the larger workspace; what else the published peak holds is not known "
                        "here."
                      : ".")) +
      published_time_table(results) +
      how(escaped(published.at("times_source").get<std::string>()) + ". " +
          escaped(published.at("times_note").get<std::string>()) +
          (comparable
               ? " winnow&#39;s times are of this run, on " +
                     escaped(results.at("machine").at("calls_run_on").get<std::string>()) + "."
               : ""));
  return html;
}

std::string reproduction(const json& results) {
  const std::string command = results.at("command");
  const std::string commit = results.at("commit");
  const json& asked = results.at("options");
  std::string html =
      "<p>Everything on this page comes from one run of this command, at commit " +
      escaped(commit) + ":</p>\n<pre class=\"command\">" + escaped(command) +
      "</pre>\n<p>Windows, pictures and errors repeat bit for bit on the same machine and build. "
      "Times "
      "do not, nor do the last kilobytes of memory on a processor, where threads meet by chance. ";
  html += asked.contains("scan") || asked.contains("coords")
              ? "The scan must be the same file.</p>\n"
              : "The scan is simulated from the seed, nothing needs to be downloaded.</p>\n";
  table shown("Where each number is made", {"Number", "Made by"});
  shown.row("windows, histograms",
            {cell("build_partition on the device above; counted on the host")});
  shown.row("attention weights", {cell("reference::attention_forward<double> on the window alone, "
                                       "with one-hot values")});
  shown.row("memory", {cell("attention_forward, attention_backward: peak of the call")});
  shown.row("precision",
            {cell("the same calls in half, bfloat16 and float; double by the reference")});
  shown.row("time", {cell("the same calls, timed without copies")});
  shown.row("published figures", {cell("not measured here; sources are named with them")});
  html += "<div class=\"facts\">" + shown.html() + "</div>\n";
  return html +
         "<details><summary>All results as JSON, as <code>--json FILE</code> writes them"
         "</summary>\n<pre tabindex=\"0\">" +
         escaped(json_text(results)) + "</pre></details>\n";
}

}  // namespace

std::string make_page(const json& results, const token_set& tokens,
                      const std::vector<window_evaluation>& windows) {
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n"
      "<link rel=\"icon\" href=\"data:,\">\n"
      "<title>winnow-eval: window attention on " +
      grouped(results.at("tokens").at("evaluated").get<std::int64_t>()) +
      " tokens</title>\n<style>" + style + "</style>\n</head>\n<body>\n<main>\n<header>\n" +
      opening(results) + "</header>\n";
  html += section("windows", "Windows",
                  scan_pictures(results, tokens, windows) + window_sizes(results));
  html += section("attention", "One query&#39;s attention", attention_pictures(windows));
  html += section("memory", "Memory", memory(results));
  html += section("precision", "Precision", precision(results));
  html += section("time", "Time", time(results));
  html += section("published", "Beside published figures", published_figures(results));
  html += section("facts", "Facts", "<div class=\"facts\">" + facts_table(results) + "</div>\n");
  html += section("reproduce", "Reproduce", reproduction(results));
  return html + "<footer>Written by winnow-eval " +
         escaped(results.at("version").get<std::string>()) +
         ". This page loads nothing from anywhere.</footer>\n</main>\n</body>\n</html>\n";
}

}  // namespace winnow::eval::report
