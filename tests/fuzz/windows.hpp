// SPDX-License-Identifier: Apache-2.0
/// \file
/// Windows and what they are built from, out of a fuzzer's bytes.
#pragma once

#include <algorithm>
#include <array>
#include <optional>

#include "memory.hpp"
#include "winnow/partition.hpp"

namespace winnow::fuzz {

inline std::array<float, 3> window_size(byte_source& source) {
  const auto edge = [&] { return source.real(0.25f * static_cast<float>(1 + source.pick(64))); };
  return {edge(), edge(), edge()};
}

inline std::optional<std::array<double, 3>> origin(byte_source& source) {
  if (source.pick(4) > 0) return {};
  const auto place = [&] { return double{source.rarely(8) ? source.wild_real() : -8.0f}; };
  return std::array<double, 3>{place(), place(), place()};
}

inline cubic_window make_cubic(byte_source& source) {
  cubic_window window;
  window.size = window_size(source);
  window.shifted = source.pick(2) == 1;
  window.quant_length = source.small_integer(1 + source.pick(4));
  window.origin = origin(source);
  return window;
}

inline spherical_window make_spherical(byte_source& source) {
  spherical_window window;
  window.size = window_size(source);
  window.shifted = source.pick(2) == 1;
  window.quant_length = source.small_integer(1 + source.pick(4));
  window.exponential_a = source.real(0.5f);
  window.origin = origin(source);
  window.wrap_theta = source.rarely(4);
  return window;
}

inline grid_window make_grid(byte_source& source) {
  grid_window window;
  window.window = source.small_integer(1 + source.pick(4));
  window.batch = source.small_integer(source.pick(4));
  const int edge = std::clamp(window.window, 1, 8);
  window.height = source.small_integer(edge * source.pick(4));
  window.width = source.small_integer(edge * source.pick(4));
  window.shift = source.small_integer(window.window > 0 ? source.pick(4) % window.window : 0);
  return window;
}

/// A count beside an array, null for most.
inline const std::int32_t* count_pointer(byte_source& source, memory& arguments,
                                         std::int64_t usual) {
  if (source.pick(4) > 0) return nullptr;
  return arguments.array<std::int32_t>(
      1, [&] { return source.small_integer(static_cast<int>(usual)); });
}

inline point_set make_points(byte_source& source, memory& arguments, std::int64_t tokens) {
  point_set points;
  const bool integers = source.rarely(4);
  points.coordinates =
      arguments.view(integers ? dtype::int32 : dtype::float32, {tokens, std::int64_t{3}});
  // Most coordinates near each other, so that windows have several tokens.
  const auto& view = points.coordinates;
  if (arguments.honest() && view.type == dtype::float32 && view.data != nullptr &&
      view.shape[0] >= 2 && view.shape[1] == 3 && view.stride[0] >= 3 && view.stride[1] == 1) {
    points.coordinates.data =
        arguments.array<float>(view.shape[0] * view.stride[0], [&] { return source.coordinate(); });
  }
  if (source.pick(2) == 1)
    points.batch = arguments.array<std::int32_t>(
        points.coordinates.shape[0], [&] { return source.small_integer(source.pick(3)); });
  points.num_tokens = count_pointer(source, arguments, tokens);
  return points;
}

inline label_set make_labels(byte_source& source, memory& arguments, int quant_length,
                             std::int64_t tokens) {
  label_set labels;
  labels.tokens = source.integer(tokens);
  const auto positions_of = [&] {
    return source.small_integer(quant_length > 0 ? source.pick(4) % quant_length : 0);
  };
  if (!source.rarely(64))
    labels.labels = arguments.array<std::int32_t>(
        labels.tokens, [&] { return source.small_integer(source.pick(4) - 1); });
  if (source.pick(2) == 1) {
    const std::int64_t rows = std::clamp<std::int64_t>(labels.tokens, 0, 1 << 20);
    labels.positions = arguments.array<std::int32_t>(3 * rows, positions_of);
  }
  if (source.pick(4) == 3)
    labels.radius = arguments.array<float>(labels.tokens, [&] { return source.coordinate(); });
  labels.num_tokens = count_pointer(source, arguments, tokens);
  return labels;
}

/// A selection from the windows of a grid, or from others.
inline window_selection make_selection(byte_source& source, memory& arguments,
                                       const grid_window& grid, bool ragged) {
  window_selection kept;
  const std::int64_t windows = grid.windows_per_image();
  kept.images = source.small_integer(grid.batch);
  kept.windows = source.integer(windows);
  const auto some_id = [&] {
    return source.small_integer(windows > 0 ? static_cast<int>(source.pick(8) % windows) : 0);
  };
  if (ragged) {
    std::int32_t end = 0;
    std::int32_t largest = 0;
    if (!source.rarely(64))
      kept.offsets = arguments.array<std::int32_t>(std::int64_t{kept.images} + 1, [&] {
        const std::int32_t offset = source.small_integer(end);
        end += source.pick(3);
        largest = std::max(largest, offset);
        return offset;
      });
    // Results need room for every window of every image.
    const double every = static_cast<double>(kept.windows) * kept.images;
    kept.ids = arguments.array<std::int32_t>(
        std::max(std::int64_t{largest}, static_cast<std::int64_t>(std::clamp(every, 0.0, 0x1p20))),
        some_id);
  } else {
    kept.kept = source.integer(windows > 0 ? source.pick(8) % (windows + 1) : 0);
    kept.stride = source.integer(kept.kept);
    const double every =
        static_cast<double>(kept.stride) * (kept.images - 1.0) + static_cast<double>(kept.kept);
    if (!source.rarely(64))
      kept.ids = arguments.array<std::int32_t>(
          static_cast<std::int64_t>(std::clamp(every, 0.0, 0x1p20)), some_id);
  }
  return kept;
}

/// A partition over memory of ours, large enough for `shape` unless that is absurd.
inline partition make_partition(memory& arguments, const partition_shape& shape) {
  partition result;
  const std::size_t bytes = partition_bytes(shape);
  if (bytes == 0 || (bytes > 1 << 16 && !arguments.on_device())) return result;
  // Of max_align_t, so that the block is aligned.
  auto* block = arguments.array<std::max_align_t>(
      static_cast<std::int64_t>((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t)),
      [] { return std::max_align_t{}; });
  const status bound = bind_partition(shape, block, bytes, result);
  require(bound.ok(), "a partition binds to as many bytes as it asked for");
  return result;
}

}  // namespace winnow::fuzz
