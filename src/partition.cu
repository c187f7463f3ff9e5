// SPDX-License-Identifier: Apache-2.0
// The device builders of partitions, compiled once.
#include "winnow/partition.hpp"

#include "winnow/detail/partition/build.cuh"
#include "winnow/detail/partition/grid.cuh"

namespace winnow {

status build_partitions(const point_partition* items, int count, const point_set& points,
                        const partition_bounds& bounds, void* workspace,
                        std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  return detail::build_points(items, count, points, bounds, workspace, workspace_bytes, stream);
}

std::size_t build_partitions_workspace_bytes(const point_partition* items, int count,
                                             const point_set& points,
                                             const partition_bounds& bounds) noexcept {
  return detail::points_workspace_bytes(items, count, points, bounds);
}

status build_partition(const cubic_window& window, const point_set& points,
                       const partition_bounds& bounds, const partition& result, void* workspace,
                       std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  const point_partition item{window, result};
  return detail::build_points(&item, 1, points, bounds, workspace, workspace_bytes, stream);
}

status build_partition(const spherical_window& window, const point_set& points,
                       const partition_bounds& bounds, const partition& result, void* workspace,
                       std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  const point_partition item{window, result};
  return detail::build_points(&item, 1, points, bounds, workspace, workspace_bytes, stream);
}

status build_partition(const labels_window& window, const label_set& labels,
                       const partition_bounds& bounds, const partition& result, void* workspace,
                       std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  return detail::build_labels(window, labels, bounds, result, workspace, workspace_bytes, stream);
}

std::size_t build_partition_workspace_bytes(const cubic_window& window, const point_set& points,
                                            const partition_bounds& bounds) noexcept {
  const point_partition item{window, {}};
  return detail::points_workspace_bytes(&item, 1, points, bounds);
}

std::size_t build_partition_workspace_bytes(const spherical_window& window, const point_set& points,
                                            const partition_bounds& bounds) noexcept {
  const point_partition item{window, {}};
  return detail::points_workspace_bytes(&item, 1, points, bounds);
}

std::size_t build_partition_workspace_bytes(const labels_window& window, const label_set& labels,
                                            const partition_bounds& bounds) noexcept {
  return detail::labels_workspace_bytes(window, labels, bounds);
}

status build_partition(const grid_window& window, const window_selection* kept,
                       const partition& result, void* workspace, std::size_t workspace_bytes,
                       cudaStream_t stream) noexcept {
  return detail::build_grid(window, kept, result, workspace, workspace_bytes, stream);
}

std::size_t build_partition_workspace_bytes(const grid_window& window,
                                            const window_selection* kept) noexcept {
  return detail::grid_workspace_bytes(window, kept);
}

status copy_counts(const partition& source, partition_counts* host, cudaStream_t stream) noexcept {
  WINNOW_REQUIRE(source.counts != nullptr, "source: has no memory");
  WINNOW_REQUIRE(host != nullptr, "host: is null");
  const cudaError_t error =
      cudaMemcpyAsync(host, source.counts, sizeof *host, cudaMemcpyDeviceToHost, stream);
  if (error != cudaSuccess)
    return status::failure(status_code::cuda_error, "copy_counts: %s", cudaGetErrorString(error));
  return {};
}

}  // namespace winnow
