// SPDX-License-Identifier: Apache-2.0
#include "eval/array.hpp"

#include <algorithm>
#include <cmath>

namespace winnow::eval {

array converted(const array& source, dtype type) {
  array result(type, source.elements());
  visit_floating(source.type, [&](auto from) {
    visit_floating(type, [&](auto to) {
      using to_type = decltype(to);
      const auto* in = source.as<decltype(from)>();
      auto* out = result.as<to_type>();
      for (std::int64_t n = 0; n < source.elements(); ++n) {
        if constexpr (std::is_same_v<to_type, double>) {
          out[n] = to_float(in[n]);
        } else {
          out[n] = from_float<to_type>(static_cast<float>(to_float(in[n])));
        }
      }
    });
  });
  return result;
}

error_norms error_of(const array& result, const array& expected) {
  double largest = 0.0;
  double squared_error = 0.0;
  double squared_norm = 0.0;
  visit_floating(result.type, [&](auto a) {
    visit_floating(expected.type, [&](auto b) {
      const auto* is = result.as<decltype(a)>();
      const auto* should_be = expected.as<decltype(b)>();
      for (std::int64_t n = 0; n < expected.elements(); ++n) {
        const double reference = to_float(should_be[n]);
        const double error = std::abs(to_float(is[n]) - reference);
        // Not std::max, which would lose a NaN.
        if (!(error <= largest)) largest = error;
        squared_error += error * error;
        squared_norm += reference * reference;
      }
    });
  });
  if (squared_error == 0.0) return {};
  return {largest, std::sqrt(squared_error / squared_norm)};
}

}  // namespace winnow::eval
