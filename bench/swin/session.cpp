// SPDX-License-Identifier: Apache-2.0
#include "swin/session.hpp"

#include "support/device_call.hpp"

namespace winnow::swin {

session::session(const common_options& asked) : size_(asked.size()) {
  const std::string missing = support::missing_device();
  if (!missing.empty()) throw support::input_error("device", "no GPU can be used: " + missing);
  images_ = asked.images ? load_images(*asked.images)
                         : synthetic_images(size_.batch, size_.height, size_.width, asked.seed);
  if (images_.height != size_.height || images_.width != size_.width)
    throw support::input_error(*asked.images, "images are " + std::to_string(images_.height) +
                                                  " x " + std::to_string(images_.width) +
                                                  ", --image asks for " + asked.image);
  weights_ = std::make_unique<device_weights>(
      model_,
      asked.weights ? load_weights(*asked.weights, model_) : random_weights(model_, asked.seed),
      asked.type);
  products_ = std::make_unique<matrix_products>(asked.type);
  network_ = std::make_unique<backbone>(model_, *weights_, *products_, size_);
  first_batch_ = upload_batch(images_, 0, size_, asked.type);
  description_ = support::device_description() + ", " + to_string(asked.type) + ", " +
                 std::to_string(size_.batch) + " x 3 x " + std::to_string(size_.height) + " x " +
                 std::to_string(size_.width) + ", " +
                 (asked.weights ? "weights of " + *asked.weights : "random weights") + ", " +
                 (asked.images ? "images of " + *asked.images : "synthetic images");
}

}  // namespace winnow::swin
