// SPDX-License-Identifier: Apache-2.0
#include "swin/device_images.hpp"

#include <vector>

namespace winnow::swin {

support::device_memory upload_batch(const image_set& images, int first, const image_size& size,
                                    dtype type) {
  const std::size_t length = static_cast<std::size_t>(image_channels) *
                             static_cast<std::size_t>(size.height) *
                             static_cast<std::size_t>(size.width);
  std::vector<half> halves;
  std::vector<bfloat16> brains;
  for (int b = 0; b < size.batch; ++b) {
    const float* from =
        images.values.data() + static_cast<std::size_t>((first + b) % images.count) * length;
    for (std::size_t i = 0; i < length; ++i)
      if (type == dtype::float16)
        halves.push_back(from_float<half>(from[i]));
      else
        brains.push_back(from_float<bfloat16>(from[i]));
  }
  return type == dtype::float16 ? support::device_memory(halves.data(), halves.size() * 2)
                                : support::device_memory(brains.data(), brains.size() * 2);
}

}  // namespace winnow::swin
