// SPDX-License-Identifier: Apache-2.0
#include "swin/images.hpp"

#include <algorithm>
#include <cmath>

#include "support/npy.hpp"
#include "support/random.hpp"

namespace winnow::swin {
namespace {

void append_file(const std::filesystem::path& path, image_set& images) {
  const support::npy_array array = support::read_npy(path);
  if (array.element == support::npy_element::uint8 ||
      array.element == support::npy_element::int32 || array.element == support::npy_element::int64)
    throw support::input_error(path.string(), std::string("elements are ") +
                                                  support::descriptor_of(array.element) +
                                                  ", must be floating-point: normalised images");
  std::vector<std::int64_t> shape = array.shape;
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  if (shape.size() != 4 || shape[1] != image_channels)
    throw support::input_error(path.string(),
                               "shape is " + support::shape_text(array.shape) +
                                   ", must be (count, 3, height, width) or (3, height, width)");
  const int height = static_cast<int>(std::min<std::int64_t>(shape[2], 1 << 20));
  const int width = static_cast<int>(std::min<std::int64_t>(shape[3], 1 << 20));
  if (images.count > 0 && (height != images.height || width != images.width))
    throw support::input_error(path.string(), "images are " + std::to_string(height) + " x " +
                                                  std::to_string(width) + ", those before are " +
                                                  std::to_string(images.height) + " x " +
                                                  std::to_string(images.width));
  images.height = height;
  images.width = width;
  images.count += static_cast<int>(shape[0]);
  for (const double value : array.to_doubles()) {
    if (!std::isfinite(value)) throw support::input_error(path.string(), "a value is not finite");
    images.values.push_back(static_cast<float>(value));
  }
}

}  // namespace

image_set load_images(const std::filesystem::path& path) {
  image_set images;
  if (std::filesystem::is_directory(path)) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".npy") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const std::filesystem::path& file : files) append_file(file, images);
  } else {
    append_file(path, images);
  }
  if (images.count == 0) throw support::input_error(path.string(), "holds no image");
  check(image_size{images.count, images.height, images.width});
  return images;
}

image_set synthetic_images(int count, int height, int width, std::uint64_t seed) {
  constexpr int objects = 12;
  support::random_source random(seed);
  image_set images{count, height, width, {}};
  const auto pixels = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  images.values.resize(static_cast<std::size_t>(count) * image_channels * pixels);
  for (int image = 0; image < count; ++image) {
    float* first = images.values.data() + static_cast<std::size_t>(image) * image_channels * pixels;
    for (std::size_t i = 0; i < image_channels * pixels; ++i)
      first[i] = static_cast<float>(random.uniform(-0.3, 0.3));
    for (int object = 0; object < objects; ++object) {
      const double contrast = random.uniform(0.2, 2.0);
      const double y0 = random.uniform(0.0, height), x0 = random.uniform(0.0, width);
      const double ry = height * random.uniform(0.03, 0.15);
      const double rx = width * random.uniform(0.03, 0.15);
      double colour[image_channels];
      for (double& value : colour) value = random.uniform(-1.0, 1.0);
      const int from_y = std::max(0, static_cast<int>(y0 - ry));
      const int to_y = std::min(height, static_cast<int>(y0 + ry) + 1);
      const int from_x = std::max(0, static_cast<int>(x0 - rx));
      const int to_x = std::min(width, static_cast<int>(x0 + rx) + 1);
      for (int c = 0; c < image_channels; ++c)
        for (int y = from_y; y < to_y; ++y)
          for (int x = from_x; x < to_x; ++x)
            first[(static_cast<std::size_t>(c) * static_cast<std::size_t>(height) +
                   static_cast<std::size_t>(y)) *
                      static_cast<std::size_t>(width) +
                  static_cast<std::size_t>(x)] +=
                static_cast<float>(contrast * (colour[c] + random.uniform(-1.0, 1.0)));
    }
  }
  return images;
}

}  // namespace winnow::swin
