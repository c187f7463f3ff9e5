// SPDX-License-Identifier: Apache-2.0
// Selection on the device with any arguments launches what a GPU takes, or gives a status and has
// launched nothing. Nothing runs: fake_runtime.hpp.
#include "fake_runtime.hpp"
#include "windows.hpp"
#include "winnow/selection.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

template <class Select>
void try_select(byte_source& source, memory& arguments, std::size_t wanted, Select&& select) {
  const device_workspace workspace(source, arguments, wanted);
  workspace.check(device_call(source, [&] { return select(workspace.data(), workspace.bytes()); }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory arguments(source, memory_place::device);
  const int choice = source.pick(5);
  grid_window grid = make_grid(source);
  if (source.rarely(4)) {
    grid.batch = 1 << source.pick(20);
    grid.height = 1 << source.pick(20);
    grid.width = 1 << source.pick(20);
  }
  const std::int64_t images = grid.batch;
  const std::int64_t windows = grid.windows_per_image();
  const std::int64_t pixels = std::int64_t{grid.height} * grid.width;
  if (choice == 0) {
    const dtype types[] = {dtype::float32, dtype::float16, dtype::bfloat16, dtype::float64};
    const auto features =
        arguments.view(types[source.pick(4)], {images, pixels, std::int64_t{1} + source.pick(70)});
    const auto importance = arguments.typed_view<float, 2>({images, windows});
    (void)device_call(source,
                      [&] { return window_importance(grid, features, importance, nullptr); });
    return 0;
  }
  const window_selection result =
      make_selection(source, arguments, grid, (choice == 1) == source.rarely());
  if (choice == 1) {
    const auto importance = arguments.typed_view<float, 2>({images, windows});
    try_select(source, arguments,
               select_most_important_workspace_bytes(importance.shape[0], importance.shape[1]),
               [&](void* workspace, std::size_t bytes) {
                 return select_most_important(importance, result, workspace, bytes, nullptr);
               });
  } else if (choice == 2) {
    const auto importance = arguments.typed_view<float, 2>({images, windows});
    const float threshold = source.real(1.0f);
    try_select(source, arguments,
               select_above_workspace_bytes(importance.shape[0], importance.shape[1]),
               [&](void* workspace, std::size_t bytes) {
                 return select_above(importance, threshold, result, workspace, bytes, nullptr);
               });
  } else if (choice == 3) {
    const auto mask = arguments.typed_view<std::uint8_t, 2>({images, windows});
    try_select(source, arguments, select_window_mask_workspace_bytes(mask.shape[0], mask.shape[1]),
               [&](void* workspace, std::size_t bytes) {
                 return select_window_mask(mask, result, workspace, bytes, nullptr);
               });
  } else {
    const auto mask = arguments.typed_view<std::uint8_t, 2>({images, pixels});
    try_select(source, arguments, select_token_mask_workspace_bytes(grid),
               [&](void* workspace, std::size_t bytes) {
                 return select_token_mask(grid, mask, result, workspace, bytes, nullptr);
               });
  }
  return 0;
}
