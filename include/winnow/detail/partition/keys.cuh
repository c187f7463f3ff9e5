// SPDX-License-Identifier: Apache-2.0
/// \file
/// Second kernel of a partition build: from coordinates or labels to sort keys.
///
/// A block serves one partition (`blockIdx.y`). It first reduces the measured extremes, a warp a
/// value, and works out the same frame as every other block: origin, lowest cell and number of cells
/// an axis, and from those the keys' width. Then it walks over tokens, a thread each: cell, position,
/// and the key, which is the cell in mixed radix over the extents, so as short as the data allows.
/// Tokens in no window get the key `span`, one above the last cell, and sort to the end in order.
///
/// Digit counts for every pass are taken in shared memory (2 KiB a pass) and added to the global
/// histogram once a block, which is why blocks are few and large. Traffic: 16 bytes read a token, 8
/// to 16 written; arithmetic is a division an axis, and two atan2 for spherical windows.
#pragma once

#include "winnow/detail/partition/bounds.hpp"
#include "winnow/detail/partition/job.cuh"

namespace winnow::detail {

inline constexpr int key_threads = 1024;
/// Of all partitions together: a block fills a multiprocessor, and partitions share them rather than
/// take turns on them.
inline constexpr int max_key_blocks = 132;

/// How the tokens of one job become keys.
struct key_frame {
  float origin[3];
  std::int64_t integer_origin[3];
  std::int32_t low[4];      ///< x, y, z, batch item; labels: low[0]
  std::uint32_t extent[4];  ///< at most 2^31
  bool usable;              ///< the keys fit
  sort_plan plan;
};

/// The coordinate minus the origin, in FP32.
__device__ inline float relative_to_origin(const key_frame& frame, bool integer, int axis,
                                           float coordinate, std::int32_t whole) {
  return integer ? static_cast<float>(whole - frame.integer_origin[axis])
                 : add(coordinate, -frame.origin[axis]);
}

/// Origin, lowest cell and extent of one axis; axis 3 is the batch item.
/// \param least,most ordered extremes.
__device__ inline void frame_axis(const partition_job& job, bool has_batch, int axis,
                                  const std::uint32_t* least, key_frame& frame) {
  const int first = job.kind == job_kind::labels  ? static_cast<int>(label_low)
                    : axis == 3                   ? static_cast<int>(batch_low)
                    : job.kind == job_kind::cubic ? x_low + axis
                                                  : theta_low + axis;
  const int second = job.kind == job_kind::labels  ? static_cast<int>(label_high)
                     : axis == 3                   ? static_cast<int>(batch_high)
                     : job.kind == job_kind::cubic ? x_high + axis
                                                   : theta_high + axis;
  const std::uint32_t low = least[first];
  const std::uint32_t high = ~least[second];
  frame.low[axis] = 0;
  frame.extent[axis] = 1;
  if (low > high) {  // no token at all: nothing depends on the frame
    if (axis < 3) frame.origin[axis] = 0.0f, frame.integer_origin[axis] = 0;
    return;
  }
  std::int64_t last = 0;
  if (job.kind == job_kind::labels) {
    if (axis == 0) frame.low[0] = ordered_to_int(low), last = ordered_to_int(high);
  } else if (axis == 3) {
    if (has_batch) frame.low[3] = ordered_to_int(low), last = ordered_to_int(high);
  } else {
    const float low_float = ordered_to_float(low);
    const std::int32_t low_int = ordered_to_int(low);
    frame.origin[axis] = job.origin_given ? job.origin[axis] : low_float;
    frame.integer_origin[axis] = job.origin_given ? job.integer_origin[axis] : low_int;
    const axis_rule& rule = job.rules[axis];
    if (rule.wrap > 0) {
      last = rule.wrap - 1;
    } else {
      frame.low[axis] =
          extreme_cell(relative_to_origin(frame, job.integer, axis, low_float, low_int), rule);
      last = extreme_cell(relative_to_origin(frame, job.integer, axis, ordered_to_float(high),
                                             ordered_to_int(high)),
                          rule);
    }
  }
  frame.extent[axis] =
      static_cast<std::uint32_t>(min(last - frame.low[axis] + 1, job.extent_bound[axis]));
}

/// Multiplies the extents, as far as they stay below 2^63.
__device__ inline void frame_span(std::int32_t tokens, key_frame& frame) {
  std::uint64_t span = 1;
  frame.usable = true;
  for (int d = 0; d < 4; ++d) {
    const std::uint64_t extent = frame.extent[d];
    frame.usable = frame.usable && __umul64hi(span, extent) == 0 && span * extent >> 63 == 0;
    if (frame.usable) span *= extent;
  }
  frame.plan = make_plan(frame.usable ? span : 1, tokens);
}

/// `value - low`; a value below `low` comes out as more than any extent.
__device__ inline std::uint32_t distance(std::int32_t low, std::int32_t value) {
  return static_cast<std::uint32_t>(value) - static_cast<std::uint32_t>(low);
}

/// The key of a point; `span` and a flag for one that lies nowhere.
/// \param item its batch item.
__device__ inline std::uint64_t point_key(const partition_job& job, const key_frame& frame,
                                          std::int32_t token, loaded_point point, std::int32_t item,
                                          std::uint32_t& flags) {
  bool finite = all_finite(point.at);
  if (job.kind == job_kind::spherical) {
    float at[3];
    spherical(point.at[0], point.at[1], point.at[2], at);
    finite = finite && isfinite(at[2]);
#pragma unroll
    for (int a = 0; a < 3; ++a) point.at[a] = at[a];
    job.radius_of_token[token] = at[2];
  }
  // From the most significant: batch item, then z, y, x.
  const std::uint32_t from_first_item = distance(frame.low[3], item);
  bool inside = from_first_item < frame.extent[3];
  bool near = true;
  std::uint64_t key = from_first_item;
  int position[3];
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const located place =
        locate(relative_to_origin(frame, job.integer, a, point.at[a], point.integer[a]),
               job.rules[a], job.quant_length);
    near = near && place.in_range;
    position[a] = place.position;
    const std::uint32_t cell = distance(frame.low[a], place.cell);
    inside = inside && cell < frame.extent[a];
    key = key * frame.extent[a] + cell;
  }
  const std::uint32_t wrong = !finite         ? bit_of(partition_flag::not_finite)
                              : item < 0      ? bit_of(partition_flag::negative_batch)
                              : !near         ? bit_of(partition_flag::far_cell)
                              : !frame.usable ? bit_of(partition_flag::wide_span)
                              : inside        ? 0u
                                              : bit_of(partition_flag::outside_bounds);
  flags |= wrong;
  job.position_of_token[token] =
      wrong == 0 ? pack_position(position[0], position[1], position[2]) : 0;
  return wrong == 0 ? key : frame.plan.span;
}

__device__ inline std::uint64_t label_key(const partition_job& job, const key_frame& frame,
                                          std::int32_t token, std::uint32_t& flags) {
  std::uint32_t wrong = 0;
  if (job.positions != nullptr) {
    int position[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      position[a] = job.positions[std::int64_t{3} * token + a];
      if (position[a] < 0 || position[a] >= job.quant_length)
        wrong |= bit_of(partition_flag::bad_position);
    }
    job.position_of_token[token] =
        wrong == 0 ? pack_position(position[0], position[1], position[2]) : 0;
  }
  if (job.radius != nullptr && !isfinite(job.radius[token]))
    wrong |= bit_of(partition_flag::not_finite);
  const std::int32_t label = job.labels[token];
  const std::uint32_t from_first = distance(frame.low[0], label);
  if (label >= 0 && from_first >= frame.extent[0]) wrong |= bit_of(partition_flag::outside_bounds);
  flags |= wrong;
  return wrong == 0 && label >= 0 ? std::uint64_t{from_first} : frame.plan.span;
}

/// A point and its batch item, if there is such a token.
__device__ inline loaded_point fetch_point(const point_source& points, std::uint32_t token,
                                           std::uint32_t tokens, std::int32_t& item) {
  item = 0;
  if (token >= tokens) return {};
  if (points.batch != nullptr) item = points.batch[token];
  return load_point(points, static_cast<std::int32_t>(token));
}

template <int Threads>
__global__ void __launch_bounds__(Threads) key_kernel(const __grid_constant__ job_list list) {
  wait_for_predecessor();
  static_assert(Threads / 32 >= extremes, "a warp an extreme");
  __shared__ std::uint32_t least[extremes];
  __shared__ key_frame shared_frame;
  __shared__ std::uint32_t digit_counts[max_passes * digits];
  const partition_job& job = list.jobs[blockIdx.y];
  const point_source& points = list.points;
  const std::int32_t tokens = device_count(points.num_tokens, points.capacity);
  const bool labelled = job.kind == job_kind::labels;

  // The first point arrives while the frame is worked out.
  const auto count = static_cast<std::uint32_t>(tokens);
  const std::uint32_t first = blockIdx.x * Threads + threadIdx.x;
  const std::uint32_t step = gridDim.x * Threads;
  std::int32_t next_item = 0;
  loaded_point next{};
  if (!labelled) next = fetch_point(points, first, count, next_item);

  if (warp_id() < extremes) {
    std::uint32_t value = ~0u;
#pragma unroll
    for (int i = 0; i < max_measure_blocks; i += 32)  // all loads at once
      if (i + lane_id() < list.measure_blocks)
        value = min(value, list.measured[warp_id() * max_measure_blocks + i + lane_id()]);
    value = __reduce_min_sync(all_lanes, value);
    if (lane_id() == 0) least[warp_id()] = value;
  }
  clear_rows(job.sorter, tokens);
  clear_words(job.head_counts, head_words(tokens));
  __syncthreads();
  if (threadIdx.x < 4)
    frame_axis(job, points.batch != nullptr, static_cast<int>(threadIdx.x), least, shared_frame);
  __syncwarp();
  if (threadIdx.x == 0) {
    frame_span(tokens, shared_frame);
    if (blockIdx.x == 0) *job.sorter.plan = shared_frame.plan;
  }
  __syncthreads();

  const key_frame frame = shared_frame;  // into registers
  key_writer writer(job.sorter, frame.plan, digit_counts);
  std::uint32_t flags = 0;
  for (std::uint32_t i = first; i < count; i += step) {
    const auto token = static_cast<std::int32_t>(i);
    if (labelled) {
      writer.write(token, label_key(job, frame, token, flags));
    } else {
      const loaded_point point = next;
      const std::int32_t item = next_item;
      next = fetch_point(points, i + step, count, next_item);
      writer.write(token, point_key(job, frame, token, point, item, flags));
    }
  }
  flags = __reduce_or_sync(all_lanes, flags);
  if (lane_id() == 0 && flags != 0) atomicOr(&job.result.counts->flags, flags);
  writer.finish();
}

}  // namespace winnow::detail
