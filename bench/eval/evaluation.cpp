// SPDX-License-Identifier: Apache-2.0
#include "eval/evaluation.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "eval/format.hpp"
#include "eval/progress.hpp"
#include "support/random.hpp"

namespace winnow::eval {
namespace {

array normal_array(std::int64_t elements, double deviation, support::random_source& random) {
  array result(dtype::float32, elements);
  for (std::int64_t n = 0; n < elements; ++n)
    result.as<float>()[n] = static_cast<float>(deviation * random.normal());
  return result;
}

attention_tensors draw_tensors(const options& asked, std::int64_t tokens) {
  support::random_source random(asked.seed);
  attention_tensors result;
  result.tokens = tokens;
  result.heads = asked.heads;
  result.head_dim = asked.head_dim;
  const std::int64_t elements = tokens * asked.heads * asked.head_dim;
  for (array* each : {&result.q, &result.k, &result.v, &result.grad_out[0]})
    *each = normal_array(elements, 1.0, random);
  result.grad_out[1] = array(dtype::float32, elements);
  for (std::int64_t n = 0; n < elements; ++n)
    result.grad_out[1].as<float>()[n] = 1.0f / static_cast<float>(elements);
  return result;
}

/// No rows: plain attention.
void draw_tables(attention_tensors& tensors, int rows, std::uint64_t seed) {
  support::random_source random(seed + 1);
  tensors.table_rows = rows;
  const std::int64_t elements = std::int64_t{rows} * 3 * tensors.heads * tensors.head_dim;
  for (array* each : {&tensors.table_q, &tensors.table_k, &tensors.table_v})
    *each = normal_array(elements, 0.5, random);
}

struct named_gradient {
  const char* name;
  array attention_gradients::*member;
};
constexpr named_gradient named_gradients[] = {
    {"dq", &attention_gradients::q},        {"dk", &attention_gradients::k},
    {"dv", &attention_gradients::v},        {"dTq", &attention_gradients::table_q},
    {"dTk", &attention_gradients::table_k}, {"dTv", &attention_gradients::table_v}};

std::vector<tensor_errors> gradient_rows(bool contextual) {
  std::vector<tensor_errors> rows;
  for (const named_gradient& each : named_gradients) {
    if (rows.size() < 3 || contextual) rows.push_back({each.name, {}});
  }
  return rows;
}

void compare(const attention_result& result, const attention_result& expected, std::size_t column,
             attention_evaluation& evaluation) {
  evaluation.out.errors[column] = error_of(result.out, expected.out);
  for (std::size_t l = 0; l < losses.size(); ++l) {
    for (std::size_t row = 0; row < evaluation.gradients[l].size(); ++row) {
      const auto member = named_gradients[row].member;
      evaluation.gradients[l][row].errors[column] =
          error_of(result.gradients[l].*member, expected.gradients[l].*member);
    }
  }
}

class evaluator {
 public:
  evaluator(const options& asked, const token_set& tokens, backend& device)
      : asked_(asked), tokens_(tokens), device_(device) {}

  window_evaluation evaluate(const point_window& window, const std::string& kind,
                             const std::string& size) {
    progress_.show(kind + " windows");
    const std::unique_ptr<built_partition> windows = device_.build(window, tokens_);
    window_evaluation result;
    result.kind = kind;
    result.size = size;
    result.statistics = statistics_of(windows->host());
    result.build = windows->build();
    result.partition_bytes = windows->bytes();
    if (asked_.report) result.window_of_token = windows_of_tokens(windows->host());
    const std::optional<sampled_query> sampled = pick_query(windows->host(), tokens_.coordinates);
    if (sampled) result.sample = describe(*sampled, windows->host(), tokens_.coordinates);

    attention_tensors tensors = draw_tensors(asked_, tokens_.size());
    for (const bool contextual : {false, true}) {
      draw_tables(tensors, contextual ? windows->host().relative.table_rows() : 0, asked_.seed);
      result.attention.push_back(
          run(*windows, tensors, result.statistics.pairs,
              kind + " windows, " + (contextual ? "contextual" : "plain") + " attention"));
      if (sampled) {
        (contextual ? result.sample->contextual : result.sample->plain) =
            attention_weights(windows->host(), *sampled, tensors);
      }
    }
    return result;
  }

 private:
  attention_evaluation run(const built_partition& windows, const attention_tensors& tensors,
                           std::int64_t pairs, const std::string& title) {
    attention_evaluation result;
    result.contextual = tensors.table_rows > 0;
    result.out.tensor = "out";
    for (auto& rows : result.gradients) rows = gradient_rows(result.contextual);

    attention_result expected;
    for (const dtype storage : storage_types) {
      progress_.show(title + " in " + to_string(storage));
      attention_result latest = device_.run(windows, tensors, storage);
      const auto storage_bytes = static_cast<std::int64_t>(size_of(storage));
      result.runs.push_back({storage, latest.forward, latest.backward,
                             tensor_bytes_of(tensors.tokens, tensors.heads, tensors.head_dim,
                                             tensors.table_rows, storage_bytes),
                             pair_list_of(pairs, asked_.heads, result.contextual, storage_bytes)});
      for (std::size_t column = 0; column < comparisons.size(); ++column) {
        if (comparisons[column].result == storage) compare(latest, expected, column, result);
      }
      const bool is_expected_later = storage == dtype::float64 || storage == dtype::float32;
      if (is_expected_later) expected = std::move(latest);
    }
    return result;
  }

  const options& asked_;
  const token_set& tokens_;
  backend& device_;
  progress_line progress_;
};

}  // namespace

const storage_run& attention_evaluation::run(dtype storage) const {
  return *std::find_if(runs.begin(), runs.end(),
                       [&](const storage_run& each) { return each.storage == storage; });
}

std::vector<window_evaluation> evaluate(const options& asked, const token_set& tokens,
                                        backend& device) {
  const auto edge = static_cast<float>(asked.cubic_window);
  cubic_window cubic;
  cubic.size = {edge, edge, edge};
  cubic.quant_length = asked.quant_length;
  const std::array<double, 3>& size = asked.spherical_window;
  spherical_window spherical;
  for (std::size_t axis = 0; axis < 3; ++axis)
    spherical.size[axis] = static_cast<float>(size[axis]);
  spherical.quant_length = asked.quant_length;
  spherical.exponential_a = static_cast<float>(asked.exponential_a);

  evaluator work(asked, tokens, device);
  std::vector<window_evaluation> result;
  result.push_back(work.evaluate(cubic, "cubic", number(asked.cubic_window) + " m"));
  result.push_back(work.evaluate(
      spherical, "spherical",
      number(size[0]) + " deg, " + number(size[1]) + " deg, " + number(size[2]) + " m"));
  return result;
}

}  // namespace winnow::eval
