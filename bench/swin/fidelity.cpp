// SPDX-License-Identifier: Apache-2.0
#include "swin/fidelity.hpp"

#include <cmath>

namespace winnow::swin {

using support::check_cuda;

fidelity::fidelity(backbone& network, const model& shape, const image_set& images)
    : network_(network), shape_(shape), partial_(2 * difference_partials * sizeof(float)) {
  network_.set_prune(parse_prune("0", shape_));
  for (int first = 0; first < images.count; first += network_.size().batch) {
    batches_.push_back(upload_batch(images, first, network_.size(), network_.type()));
    network_.forward(batches_.back().data(), nullptr);
    std::vector<support::device_memory> outputs;
    for (int s = 0; s < shape_.stages(); ++s) {
      outputs.emplace_back(static_cast<std::size_t>(network_.output_elements(s)) * 2);
      check_cuda(cudaMemcpy(outputs.back().data(), network_.output(s), outputs.back().bytes(),
                            cudaMemcpyDeviceToDevice),
                 "copy of feature maps");
    }
    dense_.push_back(std::move(outputs));
  }
}

double fidelity::of(const prune_ratios& ratios) {
  network_.set_prune(ratios);
  double total = 0.0;
  for (std::size_t b = 0; b < batches_.size(); ++b) {
    network_.forward(batches_[b].data(), nullptr);
    for (int s = 0; s < shape_.stages(); ++s) {
      check_cuda(launch_difference(network_.type(), network_.output(s),
                                   dense_[b][static_cast<std::size_t>(s)].data(),
                                   network_.output_elements(s), partial_.as<float>(), nullptr),
                 "difference of feature maps");
      std::vector<float> partial(2 * difference_partials);
      partial_.download(partial.data(), partial_.bytes());
      double difference = 0.0, norm = 0.0;
      for (std::size_t i = 0; i < partial.size(); i += 2) {
        difference += static_cast<double>(partial[i]);
        norm += static_cast<double>(partial[i + 1]);
      }
      total += 1.0 - std::sqrt(difference / norm);
    }
  }
  return total / (static_cast<double>(batches_.size()) * shape_.stages());
}

}  // namespace winnow::swin
