// SPDX-License-Identifier: Apache-2.0
/// \file
/// Host side of the device builders: checks, workspace, launches.
///
/// A build is measure, keys, some sort passes, finish. All partitions of a joint build go through the
/// same launches, one per `blockIdx.y`.
#pragma once

#include <algorithm>
#include <variant>

#include "winnow/detail/partition/bounds.hpp"
#include "winnow/detail/partition/check.hpp"
#include "winnow/detail/partition/finish.cuh"
#include "winnow/detail/partition/keys.cuh"
#include "winnow/detail/partition/measure.cuh"
#include "winnow/detail/util/check_workspace.hpp"

namespace winnow::detail {

/// A build before it has memory.
struct build_plan {
  job_list list{};
  int passes = 0;
  bool wide = false;
};

inline unsigned blocks_for(std::int64_t tokens, std::int64_t per_block, std::int64_t most) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(tokens, per_block), 1, most));
}

/// `check_points` without a look at `num_tokens`, which is device memory here.
inline status check_device_points(const point_set& points) noexcept {
  point_set shape = points;
  shape.num_tokens = nullptr;
  std::int64_t tokens = 0;
  return check_points(shape, tokens);
}

inline status check_device_labels(const labels_window& window, const label_set& labels) noexcept {
  label_set shape = labels;
  shape.num_tokens = nullptr;
  std::int64_t tokens = 0;
  return check_labels(window, shape, tokens);
}

/// Beyond `check_result`: what a device result needs for vector stores.
inline status check_device_result(const partition& result, const partition_shape& shape) noexcept {
  partition_shape any_windows = shape;
  if (shape.relative.kind != relative_kind::grid) any_windows.max_windows = 0;
  WINNOW_TRY(check_result(result, any_windows));
  WINNOW_REQUIRE(result.max_windows >= 0, "result.max_windows: %lld, must be >= 0",
                 static_cast<long long>(result.max_windows));
  WINNOW_REQUIRE(reinterpret_cast<std::uintptr_t>(result.bounds) % 8 == 0,
                 "result.bounds: address %p is not aligned to 8 bytes",
                 static_cast<const void*>(result.bounds));
  return {};
}

inline void describe_origin(const std::optional<std::array<double, 3>>& origin,
                            partition_job& job) noexcept {
  job.origin_given = origin.has_value();
  for (int a = 0; origin && a < 3; ++a) {
    if (job.integer)
      job.integer_origin[a] = static_cast<std::int64_t>((*origin)[a]);
    else
      job.origin[a] = static_cast<float>((*origin)[a]);
  }
}

inline status describe(const cubic_window& window, const point_set& points,
                       const partition_bounds& bounds, partition_job& job) noexcept {
  WINNOW_TRY(check_window(window, points.coordinates.type));
  job.kind = job_kind::cubic;
  job.integer = points.coordinates.type == dtype::int32;
  job.quant_length = window.quant_length;
  make_rules(window.size, window.shifted, job.rules);
  describe_origin(window.origin, job);
  bound_extents(window, job.rules, points, bounds, job.extent_bound);
  return {};
}

inline status describe(const spherical_window& window, const point_set& points,
                       const partition_bounds& bounds, partition_job& job) noexcept {
  WINNOW_TRY(check_window(window));
  job.kind = job_kind::spherical;
  job.quant_length = window.quant_length;
  make_rules(window.size, window.shifted, job.rules);
  if (window.wrap_theta) job.rules[0].wrap = cells_around(window.size[0]);
  describe_origin(window.origin, job);
  bound_extents(window, job.rules, points, bounds, job.extent_bound);
  return {};
}

/// Checks and describes everything but results and workspace.
inline status describe(const point_partition* items, int count, const point_set& points,
                       const partition_bounds& bounds, build_plan& plan) noexcept {
  WINNOW_REQUIRE(items != nullptr, "items: is null");
  WINNOW_REQUIRE(count >= 1 && count <= max_joint_partitions, "count: %d, must be in [1, %d]",
                 count, max_joint_partitions);
  WINNOW_TRY(check_device_points(points));
  WINNOW_TRY(check_bounds(bounds));
  job_list& list = plan.list;
  list.points = {points.coordinates.data,
                 points.coordinates.stride[0],
                 points.coordinates.type == dtype::int32,
                 points.batch,
                 points.num_tokens,
                 static_cast<std::int32_t>(points.coordinates.shape[0])};
  list.count = count;
  int bits = 0;
  for (int j = 0; j < count; ++j) {
    partition_job& job = list.jobs[j];
    // get_if and not visit, which may throw.
    const auto* cubic = std::get_if<cubic_window>(&items[j].window);
    const auto* ball = std::get_if<spherical_window>(&items[j].window);
    WINNOW_REQUIRE(cubic != nullptr || ball != nullptr, "items: window %d holds no value", j);
    WINNOW_TRY(cubic != nullptr ? describe(*cubic, points, bounds, job)
                                : describe(*ball, points, bounds, job));
    list.cartesian = list.cartesian || cubic != nullptr;
    list.spherical = list.spherical || ball != nullptr;
    job.result = items[j].result;
    bits = std::max(bits, key_bits(job.extent_bound));
  }
  plan.passes = passes_of(bits);
  plan.wide = bits > 32;
  return {};
}

inline status describe(const labels_window& window, const label_set& labels,
                       const partition_bounds& bounds, build_plan& plan) noexcept {
  WINNOW_TRY(check_device_labels(window, labels));
  WINNOW_TRY(check_bounds(bounds));
  job_list& list = plan.list;
  list.points.num_tokens = labels.num_tokens;
  list.points.capacity = static_cast<std::int32_t>(labels.tokens);
  list.count = 1;
  partition_job& job = list.jobs[0];
  job.kind = job_kind::labels;
  job.quant_length = window.quant_length;
  job.extent_bound[0] = bounds.labels > 0 ? bounds.labels : unknown_extent;
  for (int d = 1; d < 4; ++d) job.extent_bound[d] = 1;
  job.labels = labels.labels;
  job.positions = labels.positions;
  job.radius = labels.radius;
  plan.passes = passes_of(key_bits(job.extent_bound));
  return {};
}

/// Lays the workspace out in `memory`; with null it only counts. \return bytes.
inline std::size_t lay_out(void* memory, build_plan& plan) noexcept {
  memory_carver carver(memory);
  job_list& list = plan.list;
  const std::int64_t capacity = list.points.capacity;
  list.measured = carver.take<std::uint32_t>(extremes * max_measure_blocks);
  for (int j = 0; j < list.count; ++j) {
    partition_job& job = list.jobs[j];
    job.sorter = carve_sorter(carver, capacity, plan.wide);
    job.head_counts = carver.take<std::uint32_t>(head_words(capacity));
    if (job.kind != job_kind::labels || job.positions != nullptr)
      job.position_of_token = carver.take<packed_position>(capacity);
    if (job.kind == job_kind::spherical) job.radius_of_token = carver.take<float>(capacity);
  }
  return carver.used();
}

/// Submits a build whose arguments and results were checked.
inline status launch_build(build_plan& plan, void* workspace, std::size_t workspace_bytes,
                           cudaStream_t stream) noexcept {
  WINNOW_TRY(check_workspace(workspace, workspace_bytes, lay_out(nullptr, plan)));
  lay_out(workspace, plan);
  job_list& list = plan.list;
  const std::int64_t capacity = list.points.capacity;
  const unsigned measure_blocks = blocks_for(capacity, measure_threads, max_measure_blocks);
  list.measure_blocks = static_cast<std::int32_t>(measure_blocks);
  const auto jobs = static_cast<unsigned>(list.count);
  WINNOW_TRY(launch("measure", measure_kernel<measure_threads>, dim3(measure_blocks),
                    measure_threads, stream, list));
  const unsigned key_blocks = blocks_for(capacity, key_threads, max_key_blocks / jobs);
  WINNOW_TRY(
      launch("keys", key_kernel<key_threads>, dim3(key_blocks, jobs), key_threads, stream, list));
  if (capacity == 0) return {};
  sorter_list sorters{};
  for (int j = 0; j < list.count; ++j) sorters.sorters[j] = list.jobs[j].sorter;
  WINNOW_TRY(launch_sort(sorters, list.count, capacity, plan.passes, plan.wide, stream));
  return launch("finish", finish_kernel<finish_threads>,
                dim3(blocks_for(capacity, finish_tile, max_tokens), jobs), finish_threads, stream,
                list);
}

inline partition_shape shape_of(const point_partition& item, std::int64_t tokens) noexcept {
  const auto* cubic = std::get_if<cubic_window>(&item.window);
  return cubic != nullptr ? winnow::shape_of(*cubic, tokens)
                          : winnow::shape_of(*std::get_if<spherical_window>(&item.window), tokens);
}

inline status build_points(const point_partition* items, int count, const point_set& points,
                           const partition_bounds& bounds, void* workspace,
                           std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  build_plan plan;
  WINNOW_TRY(describe(items, count, points, bounds, plan));
  for (int j = 0; j < count; ++j) {
    WINNOW_TRY(
        check_device_result(items[j].result, shape_of(items[j], points.coordinates.shape[0])));
    for (int i = 0; i < j; ++i)
      WINNOW_REQUIRE(items[i].result.counts != items[j].result.counts,
                     "items: %d and %d share one result", i, j);
  }
  return launch_build(plan, workspace, workspace_bytes, stream);
}

inline std::size_t points_workspace_bytes(const point_partition* items, int count,
                                          const point_set& points,
                                          const partition_bounds& bounds) noexcept {
  // Sizes do not depend on whether there is memory yet; any aligned address stands for it.
  point_set shape = points;
  if (shape.coordinates.data == nullptr) shape.coordinates.data = &shape;
  build_plan plan;
  return describe(items, count, shape, bounds, plan).ok() ? lay_out(nullptr, plan) : 0;
}

inline status build_labels(const labels_window& window, const label_set& labels,
                           const partition_bounds& bounds, const partition& result, void* workspace,
                           std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  build_plan plan;
  WINNOW_TRY(describe(window, labels, bounds, plan));
  WINNOW_TRY(check_device_result(result, winnow::shape_of(window, labels)));
  plan.list.jobs[0].result = result;
  return launch_build(plan, workspace, workspace_bytes, stream);
}

inline std::size_t labels_workspace_bytes(const labels_window& window, const label_set& labels,
                                          const partition_bounds& bounds) noexcept {
  label_set shape = labels;
  const std::int32_t stand_in = 0;
  if (shape.labels == nullptr) shape.labels = &stand_in;
  build_plan plan;
  return describe(window, shape, bounds, plan).ok() ? lay_out(nullptr, plan) : 0;
}

}  // namespace winnow::detail
