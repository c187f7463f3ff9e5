// SPDX-License-Identifier: Apache-2.0
#include "replay/executor.hpp"
#include "support/input_error.hpp"

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include <vector>

#include "support/device_call.hpp"
#endif

namespace winnow::replay {

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
namespace {

class cuda_executor : public executor {
 public:
  status build(const cubic_window& window, const point_set& points, partition& result) override {
    return keep(window, points, result);
  }
  status build(const spherical_window& window, const point_set& points,
               partition& result) override {
    return keep(window, points, result);
  }
  status build(const labels_window& window, const label_set& labels, partition& result) override {
    return keep(window, labels, result);
  }
  status build(const grid_window& window, const window_selection* kept,
               partition& result) override {
    return keep(window, kept, result);
  }

  status forward(const attention_forward_arguments<>& arguments) override {
    support::device_cost unused;
    return support::forward_on_device(arguments, unused);
  }
  status backward(const attention_backward_arguments<>& arguments) override {
    support::device_cost unused;
    return support::backward_on_device(arguments, unused);
  }
  status select(const grid_window& grid, const tensor_view<const void, 3>& features,
                const window_selection& result) override {
    return support::select_on_device(grid, features, result);
  }

 private:
  template <class Window, class Tokens>
  status keep(const Window& window, const Tokens& tokens, partition& result) {
    support::device_partition& built = partitions_.emplace_back();
    WINNOW_TRY(support::build_on_device(window, tokens, built));
    result = built.view();
    return {};
  }

  std::vector<support::device_partition> partitions_;
};

}  // namespace

std::unique_ptr<executor> make_cuda_executor() {
  const std::string missing = support::missing_device();
  if (!missing.empty())
    throw support::input_error("--device cuda", "no GPU can be used: " + missing);
  return std::make_unique<cuda_executor>();
}
#else
std::unique_ptr<executor> make_cuda_executor() {
  throw support::input_error("--device cuda", "this build has no CUDA device support");
}
#endif

}  // namespace winnow::replay
