// SPDX-License-Identifier: Apache-2.0
// Partition builders with any arguments give a partition or a status, and write nothing on failure.
#include <algorithm>

#include "windows.hpp"
#include "winnow/reference.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

/// The shape that a result is bound to: mostly what is needed.
partition_shape nearly(byte_source& source, partition_shape shape) {
  shape.max_tokens = source.integer(shape.max_tokens);
  shape.max_windows = source.integer(shape.max_windows);
  if (source.rarely(32)) shape.relative.kind = static_cast<relative_kind>(source.pick(4));
  return shape;
}

void check_partition(const partition& built) {
  const partition_counts& counts = *built.counts;
  require(counts.windows >= 0 && counts.windows <= built.max_windows, "windows fit");
  require(counts.assigned >= 0 && counts.assigned <= counts.tokens, "assigned tokens are tokens");
  require(counts.tokens <= built.max_tokens, "tokens fit");
  std::vector<std::int32_t> order(built.order, built.order + counts.tokens);
  std::sort(order.begin(), order.end());
  for (std::int32_t i = 0; i < counts.tokens; ++i)
    require(order[static_cast<std::size_t>(i)] == i, "order is a permutation");
  require(built.offsets[0] == 0 && built.offsets[counts.windows] == counts.assigned,
          "offsets cover the assigned tokens");
  for (std::int32_t w = 0; w < counts.windows; ++w) {
    const std::int32_t first = built.offsets[w];
    const std::int32_t last = built.offsets[w + 1];
    require(first < last && last - first <= counts.largest, "windows are not empty");
    for (std::int32_t slot = first; slot < last; ++slot)
      require(built.bounds[2 * slot] == first && built.bounds[2 * slot + 1] == last,
              "bounds repeat the offsets");
  }
}

template <class Build>
void try_build(const memory& arguments, const partition& result, Build&& build) {
  if (!arguments.honest()) return;
  if (call(arguments, build).ok()) check_partition(result);
}

/// Queries and binding take any numbers.
void try_queries(byte_source& source) {
  partition_shape shape;
  shape.max_tokens = source.wild_integer();
  shape.max_windows = source.wild_integer();
  shape.relative.kind = static_cast<relative_kind>(source.pick(6) - 1);
  alignas(16) std::byte block[64];
  void* places[] = {nullptr, block, block + 1};
  partition result;
  const status bound = bind_partition(shape, places[source.pick(3)],
                                      static_cast<std::size_t>(source.wild_integer()), result);
  require(!bound.ok() || partition_bytes(shape) > 0, "only legal shapes bind");
  require(bound.ok() || result.counts == nullptr, "a failed binding leaves the result alone");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory arguments(source);
  const int threads = source.rarely(32) ? source.pick(4) - 1 : 1;
  const std::int64_t tokens = source.pick(24);
  switch (source.pick(6)) {
    case 0: {
      const cubic_window window = make_cubic(source);
      const point_set points = make_points(source, arguments, tokens);
      const partition result =
          make_partition(arguments, nearly(source, shape_of(window, points.coordinates.shape[0])));
      try_build(arguments, result,
                [&] { return reference::build_partition(window, points, result, threads); });
      break;
    }
    case 1: {
      const spherical_window window = make_spherical(source);
      const point_set points = make_points(source, arguments, tokens);
      const partition result =
          make_partition(arguments, nearly(source, shape_of(window, points.coordinates.shape[0])));
      try_build(arguments, result,
                [&] { return reference::build_partition(window, points, result, threads); });
      break;
    }
    case 2: {
      labels_window window;
      window.quant_length = source.small_integer(1 + source.pick(4));
      window.exponential_a = source.real(0.5f);
      const label_set labels = make_labels(source, arguments, window.quant_length, tokens);
      const partition result = make_partition(arguments, nearly(source, shape_of(window, labels)));
      try_build(arguments, result,
                [&] { return reference::build_partition(window, labels, result, threads); });
      break;
    }
    case 3: {
      const grid_window window = make_grid(source);
      window_selection kept;
      const bool selects = source.pick(2) == 1;
      if (selects) kept = make_selection(source, arguments, window, source.pick(2) == 1);
      const window_selection* pointer = selects ? &kept : nullptr;
      const partition result = make_partition(arguments, nearly(source, shape_of(window, pointer)));
      try_build(arguments, result,
                [&] { return reference::build_partition(window, pointer, result, threads); });
      break;
    }
    case 4: {
      const point_set points = make_points(source, arguments, tokens);
      const auto result = arguments.typed_view<float, 2>({tokens, 3});
      if (arguments.honest())
        (void)call(arguments,
                   [&] { return reference::spherical_coordinates(points, result, threads); });
      break;
    }
    default:
      try_queries(source);
  }
  return 0;
}
