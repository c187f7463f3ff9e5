// SPDX-License-Identifier: Apache-2.0
/// \file
/// Batches of normalised images in host memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "swin/model.hpp"

namespace winnow::swin {

/// [count, 3, height, width], normalised as the network was trained.
struct image_set {
  int count = 0;
  int height = 0;
  int width = 0;
  std::vector<float> values;
};

/// Reads a .npy file [count, 3, height, width] or [3, height, width] of floating-point numbers, or every
/// .npy file of a folder in the order of their names; all of one size.
/// \throw support::input_error naming the file.
image_set load_images(const std::filesystem::path& path);

/// Smooth noise with objects of different contrast, mean 0 and deviation about 1, so that windows differ in
/// importance. The same for the same seed on every machine.
image_set synthetic_images(int count, int height, int width, std::uint64_t seed);

}  // namespace winnow::swin
