// SPDX-License-Identifier: Apache-2.0
#include "support/compare.hpp"

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace winnow::support {
namespace {

constexpr double row_factor = 8.0;

bool same(double a, double b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

struct row_norms {
  double squared_error = 0.0;
  double squared_reference = 0.0;
};

row_norms measure(const double* values, const double* reference, std::int64_t length) {
  row_norms norms;
  for (std::int64_t n = 0; n < length; ++n) {
    if (std::isfinite(values[n]) && std::isfinite(reference[n])) {
      norms.squared_error += (values[n] - reference[n]) * (values[n] - reference[n]);
      norms.squared_reference += reference[n] * reference[n];
    } else if (!same(values[n], reference[n])) {
      norms.squared_error = std::numeric_limits<double>::infinity();
    }
  }
  return norms;
}

}  // namespace

double precision_limit(dtype storage, quantity what) {
  const bool output = what == quantity::output;
  switch (storage) {
    case dtype::float64:
      return output ? 1e-13 : 2e-13;
    case dtype::float32:
      return output ? 1e-5 : 2e-5;
    case dtype::float16:
      return output ? 1e-3 : 2e-3;
    case dtype::bfloat16:
      return output ? 8e-3 : 1.5e-2;
    case dtype::int32:
    case dtype::uint8:
      break;
  }
  throw std::invalid_argument("precision_limit: not a storage type");
}

comparison compare(const std::vector<double>& values, const std::vector<double>& reference,
                   std::int64_t row_length, double limit) {
  const auto size = static_cast<std::int64_t>(reference.size());
  if (values.size() != reference.size() || (size > 0 && (row_length < 1 || size % row_length))) {
    throw std::invalid_argument("compare: sizes do not match");
  }
  comparison result;
  result.limit = limit;
  if (size == 0) return result;

  const std::int64_t rows = size / row_length;
  std::vector<row_norms> norms;
  row_norms total;
  double mean_norm = 0.0;
  for (std::int64_t row = 0; row < rows; ++row) {
    norms.push_back(measure(&values[row * row_length], &reference[row * row_length], row_length));
    total.squared_error += norms.back().squared_error;
    total.squared_reference += norms.back().squared_reference;
    mean_norm += std::sqrt(norms.back().squared_reference) / static_cast<double>(rows);
  }
  if (total.squared_reference == 0.0) {
    total.squared_reference = static_cast<double>(size);
    mean_norm = std::sqrt(static_cast<double>(row_length));
  }

  result.relative_error = std::sqrt(total.squared_error / total.squared_reference);
  for (std::int64_t row = 0; row < rows; ++row) {
    const double scale = std::fmax(std::sqrt(norms[row].squared_reference), mean_norm);
    const double error = std::sqrt(norms[row].squared_error) / scale;
    if (error > result.worst_row) {
      result.worst_row = error;
      result.worst_index = row;
    }
  }
  result.ok = result.relative_error <= limit && result.worst_row <= row_factor * limit;
  return result;
}

std::string describe(const comparison& result) {
  char text[160];
  std::snprintf(text, sizeof text, "relative error %.2e, worst row %.2e (%lld), tolerance %.2e, %s",
                result.relative_error, result.worst_row, static_cast<long long>(result.worst_index),
                result.limit, result.ok ? "ok" : "FAIL");
  return text;
}

}  // namespace winnow::support
