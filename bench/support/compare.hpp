// SPDX-License-Identifier: Apache-2.0
/// \file
/// How far an array may lie from its reference: the precision limits that winnow keeps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "winnow/storage.hpp"

namespace winnow::support {

enum class quantity { output, gradient, table_gradient };

/// The largest relative error of a result against float64 on the same rounded inputs, for
/// q, k, v, dO ~ N(0, 1), tables ~ N(0, 0.5²) and a scale of 1/sqrt(D).
/// \param storage float32, float16, bfloat16, or float64 for the reference in double.
double precision_limit(dtype storage, quantity what);

struct comparison {
  double relative_error = 0.0;  ///< ‖x - ref‖ / ‖ref‖
  double worst_row = 0.0;  ///< largest ‖x_r - ref_r‖ / max(‖ref_r‖, mean row norm of ref)
  std::int64_t worst_index = 0;
  double limit = 0.0;
  /// relative_error <= limit and worst_row <= 8 limit, so that a few wrong rows cannot hide.
  bool ok = true;
};

/// Compares an array with its reference; a row is `row_length` consecutive elements.
///
/// - NaN matches NaN and an infinity the same infinity; any other pair with one of them has an
///   infinite error, and matching pairs count in no norm.
/// - No relative error exists for a reference that is zero everywhere: then every reference row
///   counts as one of ones. Such arrays arise from cancellation (the gradients of q and k in
///   windows of one token) between terms of order one.
/// - An array without elements passes.
///
/// \throw std::invalid_argument if the sizes differ or are no multiple of `row_length`.
comparison compare(const std::vector<double>& values, const std::vector<double>& reference,
                   std::int64_t row_length, double limit);

/// The same for any element types.
template <class T, class Reference>
comparison compare(const std::vector<T>& values, const std::vector<Reference>& reference,
                   std::int64_t row_length, double limit) {
  const auto widen = [](const auto& from) {
    std::vector<double> to;
    to.reserve(from.size());
    for (const auto& element : from) to.push_back(static_cast<double>(to_float(element)));
    return to;
  };
  return compare(widen(values), widen(reference), row_length, limit);
}

/// "relative error 1.2e-07, worst row 3.1e-07 (17), tolerance 1.0e-05, ok"
std::string describe(const comparison& result);

}  // namespace winnow::support
