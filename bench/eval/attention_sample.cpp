// SPDX-License-Identifier: Apache-2.0
#include "eval/attention_sample.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "eval/require.hpp"
#include "winnow/reference.hpp"

namespace winnow::eval {
namespace {

using support::point;

/// Of the box around a window's tokens.
double diagonal(const partition& windows, std::int32_t window,
                const std::vector<point>& coordinates) {
  double squared = 0.0;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    float low = std::numeric_limits<float>::infinity();
    float high = -low;
    for (std::int32_t slot = windows.offsets[window]; slot < windows.offsets[window + 1]; ++slot) {
      const float at = coordinates[static_cast<std::size_t>(windows.order[slot])][axis];
      low = std::min(low, at);
      high = std::max(high, at);
    }
    squared += (double{high} - low) * (double{high} - low);
  }
  return std::sqrt(squared);
}

/// The slot whose token lies nearest the mean of all.
std::int32_t middle_slot(const partition& windows, std::int32_t window,
                         const std::vector<point>& coordinates) {
  const std::int32_t first = windows.offsets[window];
  const std::int32_t last = windows.offsets[window + 1];
  const auto at = [&](std::int32_t slot) -> const point& {
    return coordinates[static_cast<std::size_t>(windows.order[slot])];
  };
  std::array<double, 3> mean{};
  for (std::int32_t slot = first; slot < last; ++slot)
    for (std::size_t axis = 0; axis < 3; ++axis) mean[axis] += at(slot)[axis];
  for (double& each : mean) each /= last - first;
  const auto distance = [&](std::int32_t slot) {
    double squared = 0.0;
    for (std::size_t axis = 0; axis < 3; ++axis)
      squared += (at(slot)[axis] - mean[axis]) * (at(slot)[axis] - mean[axis]);
    return squared;
  };
  std::int32_t nearest = first;
  for (std::int32_t slot = first + 1; slot < last; ++slot)
    if (distance(slot) < distance(nearest)) nearest = slot;
  return nearest;
}

/// A window alone, as a partition of its tokens.
class lone_window {
 public:
  lone_window(const partition& windows, std::int32_t window)
      : first_(windows.offsets[window]),
        size_(windows.offsets[window + 1] - first_),
        memory_(shape_of(windows, size_)) {
    const partition& alone = memory_.view();
    *alone.counts = {1, size_, size_, size_};
    alone.offsets[0] = 0;
    alone.offsets[1] = size_;
    for (std::int32_t slot = 0; slot < size_; ++slot) {
      alone.order[slot] = slot;
      alone.bounds[2 * slot] = 0;
      alone.bounds[2 * slot + 1] = size_;
    }
    if (alone.position != nullptr) std::copy_n(windows.position + first_, size_, alone.position);
    if (alone.radius != nullptr) std::copy_n(windows.radius + first_, size_, alone.radius);
  }
  [[nodiscard]] std::int32_t first() const { return first_; }
  [[nodiscard]] std::int32_t size() const { return size_; }
  [[nodiscard]] const partition& view() const { return memory_.view(); }

 private:
  static partition_shape shape_of(const partition& windows, std::int32_t tokens) {
    return {tokens, 1, windows.relative};
  }

  std::int32_t first_, size_;
  reference::host_partition memory_;
};

/// One head of the window's rows, or of a table, in double.
array rows_of(const array& rows, const partition& windows, const lone_window& window, int head,
              const attention_tensors& tensors) {
  array result(dtype::float64, std::int64_t{window.size()} * tensors.head_dim);
  for (std::int32_t slot = 0; slot < window.size(); ++slot) {
    const std::int64_t token = windows.order[window.first() + slot];
    const float* row = rows.as<float>() + (token * tensors.heads + head) * tensors.head_dim;
    std::copy_n(row, tensors.head_dim, result.as<double>() + std::int64_t{slot} * tensors.head_dim);
  }
  return result;
}

}  // namespace

std::optional<sampled_query> pick_query(const partition& windows,
                                        const std::vector<point>& coordinates) {
  const auto size = [&](std::int32_t window) {
    return windows.offsets[window + 1] - windows.offsets[window];
  };
  const auto fits = [&](std::int32_t window) {
    return size(window) >= 2 && size(window) <= largest_sample;
  };
  std::int32_t most = 0;
  for (std::int32_t window = 0; window < windows.counts->windows; ++window)
    if (fits(window)) most = std::max(most, size(window));
  if (most == 0) return {};
  std::int32_t picked = -1;
  double farthest = -1.0;
  for (std::int32_t window = 0; window < windows.counts->windows; ++window) {
    if (!fits(window) || 2 * size(window) < most) continue;
    const double reach = diagonal(windows, window, coordinates);
    if (reach <= farthest) continue;
    picked = window;
    farthest = reach;
  }
  if (picked < 0) return {};
  return sampled_query{picked, middle_slot(windows, picked, coordinates), 0};
}

attention_sample describe(const sampled_query& sampled, const partition& windows,
                          const std::vector<point>& coordinates) {
  attention_sample result;
  result.window = sampled.window;
  result.head = sampled.head;
  const std::int32_t first = windows.offsets[sampled.window];
  result.query = sampled.slot - first;
  result.tokens.assign(windows.order + first, windows.order + windows.offsets[sampled.window + 1]);
  for (const std::int32_t token : result.tokens)
    result.coordinates.push_back(coordinates[static_cast<std::size_t>(token)]);
  return result;
}

std::vector<double> attention_weights(const partition& windows, const sampled_query& sampled,
                                      const attention_tensors& tensors) {
  const lone_window window(windows, sampled.window);
  const std::int64_t size = window.size();
  const std::int64_t dim = tensors.head_dim;
  const array q = rows_of(tensors.q, windows, window, sampled.head, tensors);
  const array k = rows_of(tensors.k, windows, window, sampled.head, tensors);
  const array table_q = converted(tensors.table_q, dtype::float64);
  const array table_k = converted(tensors.table_k, dtype::float64);
  array v(dtype::float64, size * dim);
  array out(dtype::float64, size * dim);
  array lse(dtype::float64, size);

  head_group<> group;
  group.heads = 1;
  group.windows = window.view();
  if (tensors.table_rows > 0) {
    // One head of [rows, 3, heads, dim].
    const std::int64_t row = tensors.heads * dim;
    const tensor_layout<4> layout = {{tensors.table_rows, 3, 1, dim}, {3 * row, row, dim, 1}};
    group.position = position_encoding::contextual;
    group.table_q = {table_q.as<double>() + sampled.head * dim, dtype::float64, layout};
    group.table_k = {table_k.as<double>() + sampled.head * dim, dtype::float64, layout};
  }
  attention_forward_arguments<> arguments;
  arguments.q = q.view<3>({size, 1, dim});
  arguments.k = k.view<3>({size, 1, dim});
  arguments.v = v.view<3>({size, 1, dim});
  arguments.out = out.view<3>({size, 1, dim});
  arguments.lse = lse.view<2>({size, 1});
  arguments.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  arguments.groups = &group;
  arguments.group_count = 1;

  std::vector<double> weights;
  const double* row = out.as<double>() + (sampled.slot - window.first()) * dim;
  for (std::int64_t begin = 0; begin < size; begin += dim) {
    // So many keys at a time as a row has elements.
    const std::int64_t count = std::min(dim, size - begin);
    std::fill_n(v.as<double>(), v.elements(), 0.0);
    for (std::int64_t key = 0; key < count; ++key) v.as<double>()[(begin + key) * dim + key] = 1.0;
    require("attention weights", reference::attention_forward<double>(arguments, 1));
    weights.insert(weights.end(), row, row + count);
  }
  return weights;
}

std::vector<std::int32_t> windows_of_tokens(const partition& windows) {
  std::vector<std::int32_t> result(static_cast<std::size_t>(windows.counts->tokens), -1);
  for (std::int32_t window = 0; window < windows.counts->windows; ++window)
    for (std::int32_t slot = windows.offsets[window]; slot < windows.offsets[window + 1]; ++slot)
      result[static_cast<std::size_t>(windows.order[slot])] = window;
  return result;
}

}  // namespace winnow::eval
