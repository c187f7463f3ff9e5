// SPDX-License-Identifier: Apache-2.0
// The device builders of partitions with any arguments launch what a GPU takes, or give a status and
// have launched nothing. Nothing runs: fake_runtime.hpp.
#include "fake_runtime.hpp"
#include "windows.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

/// The shape that a result is bound to: mostly what is needed.
partition nearly(byte_source& source, memory& arguments, partition_shape shape) {
  shape.max_tokens = source.integer(shape.max_tokens);
  shape.max_windows = source.integer(shape.max_windows);
  if (source.rarely(32)) shape.relative.kind = static_cast<relative_kind>(source.pick(4));
  partition result = make_partition(arguments, shape);
  if (source.rarely(32)) result.max_windows = source.wild_integer();
  if (source.rarely(32)) result.position = nullptr;
  return result;
}

partition_bounds make_bounds(byte_source& source) {
  partition_bounds bounds;
  bounds.batch_items = source.small_integer(source.pick(4));
  bounds.labels = source.small_integer(source.pick(4));
  if (source.pick(2) == 1) {
    bounds.box.emplace();
    for (int a = 0; a < 3; ++a) {
      bounds.box->lower[static_cast<std::size_t>(a)] = double{source.real(-50.0f)};
      bounds.box->upper[static_cast<std::size_t>(a)] = double{source.real(50.0f)};
    }
  }
  return bounds;
}

template <class Build>
void try_build(byte_source& source, memory& arguments, std::size_t wanted, Build&& build) {
  const device_workspace workspace(source, arguments, wanted);
  workspace.check(device_call(source, [&] { return build(workspace.data(), workspace.bytes()); }));
}

template <class Window>
void try_points(byte_source& source, memory& arguments, const Window& window, std::int64_t tokens) {
  const point_set points = make_points(source, arguments, tokens);
  const partition_bounds bounds = make_bounds(source);
  const partition result = nearly(source, arguments, shape_of(window, points.coordinates.shape[0]));
  try_build(source, arguments, build_partition_workspace_bytes(window, points, bounds),
            [&](void* workspace, std::size_t bytes) {
              return build_partition(window, points, bounds, result, workspace, bytes, nullptr);
            });
}

void try_joint(byte_source& source, memory& arguments, std::int64_t tokens) {
  const point_set points = make_points(source, arguments, tokens);
  const partition_bounds bounds = make_bounds(source);
  std::vector<point_partition> items;
  for (int i = source.pick(max_joint_partitions + 1); i > 0; --i) {
    const std::int64_t rows = points.coordinates.shape[0];
    if (source.pick(2) == 0) {
      const cubic_window window = make_cubic(source);
      items.push_back({window, nearly(source, arguments, shape_of(window, rows))});
    } else {
      const spherical_window window = make_spherical(source);
      items.push_back({window, nearly(source, arguments, shape_of(window, rows))});
    }
  }
  if (items.size() > 1 && source.rarely()) items[1].result = items[0].result;
  // Fewer than there are or a number that is refused, for no callee can tell that an array ends.
  auto count = static_cast<int>(items.size());
  if (source.rarely()) count = source.pick(2) == 0 ? -1 : max_joint_partitions + 1;
  try_build(
      source, arguments, build_partitions_workspace_bytes(items.data(), count, points, bounds),
      [&](void* workspace, std::size_t bytes) {
        return build_partitions(items.data(), count, points, bounds, workspace, bytes, nullptr);
      });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory arguments(source, memory_place::device);
  const std::int64_t tokens =
      source.rarely(4) ? (std::int64_t{1} << source.pick(32)) - source.pick(2) : source.pick(100);
  switch (source.pick(6)) {
    case 0:
      try_points(source, arguments, make_cubic(source), tokens);
      break;
    case 1:
      try_points(source, arguments, make_spherical(source), tokens);
      break;
    case 2: {
      labels_window window;
      window.quant_length = source.small_integer(1 + source.pick(4));
      window.exponential_a = source.real(0.5f);
      const label_set labels = make_labels(source, arguments, window.quant_length, tokens);
      const partition_bounds bounds = make_bounds(source);
      const partition result = nearly(source, arguments, shape_of(window, labels));
      try_build(source, arguments, build_partition_workspace_bytes(window, labels, bounds),
                [&](void* workspace, std::size_t bytes) {
                  return build_partition(window, labels, bounds, result, workspace, bytes, nullptr);
                });
      break;
    }
    case 3: {
      const grid_window window = make_grid(source);
      window_selection kept;
      const bool selects = source.pick(2) == 1;
      if (selects) kept = make_selection(source, arguments, window, source.pick(2) == 1);
      const window_selection* pointer = selects ? &kept : nullptr;
      const partition result = nearly(source, arguments, shape_of(window, pointer));
      try_build(source, arguments, build_partition_workspace_bytes(window, pointer),
                [&](void* workspace, std::size_t bytes) {
                  return build_partition(window, pointer, result, workspace, bytes, nullptr);
                });
      break;
    }
    case 4:
      try_joint(source, arguments, tokens);
      break;
    default: {
      partition built;
      if (source.pick(2) == 1) built = nearly(source, arguments, {tokens, tokens, {}});
      partition_counts counts;
      (void)device_call(source, [&] {
        return copy_counts(built, source.pick(4) > 0 ? &counts : nullptr, nullptr);
      });
    }
  }
  return 0;
}
