// SPDX-License-Identifier: Apache-2.0
// Selection with any arguments gives a selection or a status, and writes nothing on failure.
#include "windows.hpp"
#include "winnow/reference.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

void check_ids(const window_selection& result) {
  if (result.max_windows() == 0) return;  // of any number of images
  for (int image = 0; image < result.images; ++image) {
    const std::int64_t first = result.ragged() ? result.offsets[image] : image * result.stride;
    const std::int64_t last = result.ragged() ? result.offsets[image + 1] : first + result.kept;
    for (std::int64_t i = first; i < last; ++i) {
      require(result.ids[i] >= 0 && result.ids[i] < result.windows, "ids are windows");
      for (std::int64_t j = first; j < i; ++j)
        require(result.ids[i] != result.ids[j], "no window is selected twice");
    }
  }
}

template <class Select>
void try_select(const memory& arguments, const window_selection& result, Select&& select) {
  if (!arguments.honest()) return;
  if (call(arguments, select).ok()) check_ids(result);
}

/// Numbers in, numbers out.
void try_queries(byte_source& source) {
  const std::int64_t windows = source.wild_integer();
  const std::int64_t kept = kept_windows(windows, double{source.wild_real()});
  require(kept >= -1 && (windows < 0 || kept <= windows),
          "no more windows are kept than there are");
  window_selection selection;
  selection.kept = source.wild_integer();
  window_selection result;
  if (prefix(selection, source.wild_integer(), result).ok())
    require(result.kept >= 0 && result.kept <= selection.kept, "a prefix is no longer");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory arguments(source);
  const int threads = source.rarely(32) ? source.pick(4) - 1 : 1;
  const int choice = source.pick(6);
  if (choice == 5) {
    try_queries(source);
    return 0;
  }
  const grid_window grid = make_grid(source);
  const std::int64_t images = grid.batch;
  const std::int64_t windows = grid.windows_per_image();
  const std::int64_t pixels = std::int64_t{grid.height} * grid.width;
  if (choice == 0) {
    const dtype types[] = {dtype::float32, dtype::float16, dtype::bfloat16, dtype::float64};
    const auto features =
        arguments.view(types[source.pick(4)], {images, pixels, std::int64_t{1} + source.pick(70)});
    const auto importance = arguments.typed_view<float, 2>({images, windows});
    if (!arguments.honest()) return 0;
    (void)call(arguments, [&] {
      return source.pick(2) == 0
                 ? reference::window_importance<float>(grid, features, importance, threads)
                 : reference::window_importance<double>(grid, features, importance, threads);
    });
    return 0;
  }
  const window_selection result =
      make_selection(source, arguments, grid, (choice == 1) == source.rarely());
  if (choice == 1) {
    const auto importance = arguments.typed_view<float, 2>({images, windows});
    try_select(arguments, result,
               [&] { return reference::select_most_important(importance, result); });
  } else if (choice == 2) {
    const auto importance = arguments.typed_view<float, 2>({images, windows});
    const float threshold = source.real(1.0f);
    try_select(arguments, result,
               [&] { return reference::select_above(importance, threshold, result); });
  } else if (choice == 3) {
    const auto mask = arguments.typed_view<std::uint8_t, 2>({images, windows});
    try_select(arguments, result, [&] { return reference::select_window_mask(mask, result); });
  } else {
    const auto mask = arguments.typed_view<std::uint8_t, 2>({images, pixels});
    try_select(arguments, result, [&] { return reference::select_token_mask(grid, mask, result); });
  }
  return 0;
}
