// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where a case runs. Arrays are the caller's, in host memory; partitions are the executor's.
#pragma once

#include <memory>
#include <string>

#include "winnow/attention.hpp"
#include "winnow/partition.hpp"
#include "winnow/selection.hpp"

namespace winnow::replay {

class executor {
 public:
  virtual ~executor() = default;

  /// Builds a partition, which lives as long as the executor.
  virtual status build(const cubic_window& window, const point_set& points, partition& result) = 0;
  virtual status build(const spherical_window& window, const point_set& points,
                       partition& result) = 0;
  virtual status build(const labels_window& window, const label_set& labels, partition& result) = 0;
  virtual status build(const grid_window& window, const window_selection* kept,
                       partition& result) = 0;

  virtual status forward(const attention_forward_arguments<>& arguments) = 0;
  virtual status backward(const attention_backward_arguments<>& arguments) = 0;
  /// `result` is uniform and says how many windows are kept.
  virtual status select(const grid_window& grid, const tensor_view<const void, 3>& features,
                        const window_selection& result) = 0;
};

/// The host twins, with float arithmetic.
std::unique_ptr<executor> make_cpu_executor();
/// The GPU.
/// \throw support::input_error where there is none, or where winnow was built without CUDA. No
///        device stands in for another.
std::unique_ptr<executor> make_cuda_executor();

}  // namespace winnow::replay
