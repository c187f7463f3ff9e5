// SPDX-License-Identifier: Apache-2.0
/// \file
/// Runs device calls for tools whose arrays lie in host memory: copies in, calls, waits, copies out,
/// and says what the call took without the copies. Compiles with a host compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "support/device_memory.hpp"
#include "winnow/attention.hpp"
#include "winnow/partition.hpp"
#include "winnow/reference.hpp"
#include "winnow/selection.hpp"

namespace winnow::support {

/// Why no GPU can be used; empty where one can.
std::string missing_device();
/// "NVIDIA H200, driver CUDA 13.0, runtime CUDA 13.0"
std::string device_description();

struct device_cost {
  /// GPU time of one call, the median where it was repeated.
  double seconds = 0.0;
  /// Workspace, and whatever else of the device's memory was gone after the call.
  std::size_t extra_bytes = 0;
};

/// A partition in device memory.
class device_partition {
 public:
  [[nodiscard]] const partition& view() const noexcept { return view_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.bytes(); }
  [[nodiscard]] const device_cost& build() const noexcept { return build_; }
  /// A copy that the host twins can read.
  [[nodiscard]] reference::host_partition to_host() const;

 private:
  friend struct partition_builder;
  partition_shape shape_;
  device_memory memory_;
  partition view_;
  device_cost build_;
};

/// Builds a partition on the device from tokens, or a selection, in host memory. What the device
/// finds wrong in the data fails the call, too.
/// \param repeats how often the build runs, for its time.
/// \throw std::runtime_error if the CUDA runtime fails.
status build_on_device(const cubic_window& window, const point_set& points,
                       device_partition& result, int repeats = 1);
status build_on_device(const spherical_window& window, const point_set& points,
                       device_partition& result, int repeats = 1);
status build_on_device(const labels_window& window, const label_set& labels,
                       device_partition& result, int repeats = 1);
status build_on_device(const grid_window& window, const window_selection* kept,
                       device_partition& result, int repeats = 1);

/// Attention of arrays in host memory inside partitions in device memory.
status forward_on_device(const attention_forward_arguments<>& arguments, device_cost& cost,
                         int repeats = 1);
status backward_on_device(const attention_backward_arguments<>& arguments, device_cost& cost,
                          int repeats = 1);

/// The most important windows of features in host memory; `result` is uniform.
status select_on_device(const grid_window& grid, const tensor_view<const void, 3>& features,
                        const window_selection& result);

}  // namespace winnow::support
