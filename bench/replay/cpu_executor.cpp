// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "replay/executor.hpp"
#include "winnow/reference.hpp"

namespace winnow::replay {
namespace {

class cpu_executor : public executor {
 public:
  status build(const cubic_window& window, const point_set& points, partition& result) override {
    result = keep(shape_of(window, points.coordinates.shape[0]));
    return reference::build_partition(window, points, result);
  }
  status build(const spherical_window& window, const point_set& points,
               partition& result) override {
    result = keep(shape_of(window, points.coordinates.shape[0]));
    return reference::build_partition(window, points, result);
  }
  status build(const labels_window& window, const label_set& labels, partition& result) override {
    result = keep(shape_of(window, labels));
    return reference::build_partition(window, labels, result);
  }
  status build(const grid_window& window, const window_selection* kept,
               partition& result) override {
    result = keep(shape_of(window, kept));
    return reference::build_partition(window, kept, result);
  }

  status forward(const attention_forward_arguments<>& arguments) override {
    return reference::attention_forward<float>(arguments);
  }
  status backward(const attention_backward_arguments<>& arguments) override {
    return reference::attention_backward<float>(arguments);
  }

  status select(const grid_window& grid, const tensor_view<const void, 3>& features,
                const window_selection& result) override {
    const std::int64_t windows = grid.windows_per_image();
    std::vector<float> importance(static_cast<std::size_t>(grid.batch * windows) + 1);
    const tensor_view<float, 2> scores(importance.data(), {grid.batch, windows});
    WINNOW_TRY(reference::window_importance<float>(grid, features, scores));
    return reference::select_most_important(scores, result);
  }

 private:
  partition keep(const partition_shape& shape) { return partitions_.emplace_back(shape).view(); }

  std::vector<reference::host_partition> partitions_;
};

}  // namespace

std::unique_ptr<executor> make_cpu_executor() {
  return std::make_unique<cpu_executor>();
}

}  // namespace winnow::replay
