// SPDX-License-Identifier: Apache-2.0
/// \file
/// The network's numbers and the sizes of its feature maps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "support/input_error.hpp"
#include "winnow/window.hpp"

namespace winnow::swin {

inline constexpr int window_edge = 7;
inline constexpr int window_tokens = window_edge * window_edge;
inline constexpr int shift_of_odd_blocks = window_edge / 2;
inline constexpr int bias_rows = (2 * window_edge - 1) * (2 * window_edge - 1);
inline constexpr int patch_edge = 4;
inline constexpr int image_channels = 3;
inline constexpr int patch_values = image_channels * patch_edge * patch_edge;
inline constexpr int mlp_ratio = 4;
inline constexpr float norm_epsilon = 1e-5f;

/// A Swin Transformer; Swin-T unless said otherwise.
///
/// Source: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, 2021.
struct model {
  int channels = 96;  ///< of the first stage; they double from stage to stage
  std::vector<int> depths = {2, 2, 6, 2};
  std::vector<int> heads = {3, 6, 12, 24};

  [[nodiscard]] int stages() const { return static_cast<int>(depths.size()); }
  [[nodiscard]] int channels_of(int stage) const { return channels << stage; }
  [[nodiscard]] int depth_of(int stage) const { return depths[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] int heads_of(int stage) const { return heads[static_cast<std::size_t>(stage)]; }
};

inline int round_up_div(int value, int step) {
  return (value + step - 1) / step;
}
/// The shift of a block: none for even ones, half a window for odd ones.
inline int shift_of_block(int block) {
  return block % 2 == 0 ? 0 : shift_of_odd_blocks;
}

/// The size of a batch of images.
struct image_size {
  int batch = 1;
  int height = 0;
  int width = 0;
};

/// \throw support::input_error for an empty batch or an image smaller than a window of patches.
inline void check(const image_size& size) {
  if (size.batch < 1)
    throw support::input_error("batch", "is " + std::to_string(size.batch) + ", must be 1 or more");
  constexpr int least = window_edge * patch_edge;
  constexpr int most = 1 << 14;
  for (const int edge : {size.height, size.width})
    if (edge < least || edge > most)
      throw support::input_error("image", "is " + std::to_string(size.height) + " x " +
                                              std::to_string(size.width) +
                                              ", each side must be in [" + std::to_string(least) +
                                              ", " + std::to_string(most) + "]: a window is " +
                                              std::to_string(least) + " pixels wide");
}

/// The feature map of a stage as a grid without padding: image sides that are no multiple of a patch,
/// or of two in later stages, are rounded up.
inline grid_window map_of_stage(const image_size& size, int stage, int shift = 0) {
  grid_window grid{size.batch, round_up_div(size.height, patch_edge),
                   round_up_div(size.width, patch_edge), window_edge, shift};
  for (int s = 0; s < stage; ++s) {
    grid.height = round_up_div(grid.height, 2);
    grid.width = round_up_div(grid.width, 2);
  }
  return grid;
}
/// The same, padded to whole windows.
inline grid_window padded(grid_window grid) {
  grid.height = grid.rows() * grid.window;
  grid.width = grid.columns() * grid.window;
  return grid;
}

}  // namespace winnow::swin
