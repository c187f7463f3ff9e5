// SPDX-License-Identifier: Apache-2.0
/// \file
/// What the kernels of a partition build are told: the points, and per partition its window, its
/// memory and what the caller knows beforehand.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "winnow/detail/partition/cell.hpp"
#include "winnow/detail/partition/radix_sort.cuh"
#include "winnow/partition.hpp"

namespace winnow::detail {

/// Points, or only their number where a job brings labels.
struct point_source {
  const void* coordinates;
  std::int64_t stride;  ///< elements from one token to the next
  bool integer;
  const std::int32_t* batch;
  const std::int32_t* num_tokens;
  std::int32_t capacity;
};

enum class job_kind : std::int32_t { cubic, spherical, labels };

/// One partition to build.
struct partition_job {
  job_kind kind;
  axis_rule rules[3];
  bool origin_given;
  bool integer;  ///< cubic windows of integer coordinates
  float origin[3];
  std::int64_t integer_origin[3];
  std::int32_t quant_length;
  /// No more than this many cells on x, y, z and batch items, by what the caller knows. Their
  /// product stays below 2^63 or, where it would not, the keys' width is bounded on the device.
  std::int64_t extent_bound[4];
  const std::int32_t* labels;
  const std::int32_t* positions;
  const float* radius;

  partition result;
  key_sorter sorter;
  std::uint32_t* head_counts;  ///< [tiles] published counts of heads, see `chain`
  packed_position* position_of_token;
  float* radius_of_token;
};

/// Tiles of the last kernel, and the words for their counts of heads, whole vectors of them.
inline constexpr int finish_threads = 512;
inline constexpr int finish_items = 4;
inline constexpr int finish_tile = finish_threads * finish_items;
WINNOW_HOST_DEVICE constexpr std::int64_t head_words(std::int64_t tokens) noexcept {
  return (tokens + 4 * finish_tile - 1) / (4 * finish_tile) * 4;
}

/// Minima of a measure kernel's blocks, one row per value. Maxima are kept as minima of the
/// complement.
enum extreme : int {
  x_low = 0,
  x_high = 3,
  theta_low = 6,
  theta_high = 9,
  batch_low = 12,
  batch_high = 13,
  label_low = 14,
  label_high = 15,
  extremes = 16
};

inline constexpr int max_measure_blocks = 128;

struct job_list {
  point_source points;
  bool cartesian;  ///< some job needs the extremes of x, y, z
  bool spherical;  ///< … of theta, beta, r
  std::int32_t count;
  std::int32_t measure_blocks;
  std::uint32_t* measured;  ///< [extremes, max_measure_blocks]
  partition_job jobs[max_joint_partitions];
};
static_assert(sizeof(job_list) <= 4096, "kernel parameters");

__device__ inline std::uint32_t bit_of(partition_flag flag) {
  return static_cast<std::uint32_t>(flag);
}

/// A token's coordinates, as floats and, if they are integers, as such.
struct loaded_point {
  float at[3];
  std::int32_t integer[3];
};

__device__ inline loaded_point load_point(const point_source& points, std::int32_t token) {
  loaded_point point{};
  const std::int64_t first = token * points.stride;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (points.integer) {
      point.integer[a] = static_cast<const std::int32_t*>(points.coordinates)[first + a];
      point.at[a] = static_cast<float>(point.integer[a]);
    } else {
      point.at[a] = static_cast<const float*>(points.coordinates)[first + a];
    }
  }
  return point;
}

__device__ inline bool all_finite(const float (&values)[3]) {
  return isfinite(values[0]) && isfinite(values[1]) && isfinite(values[2]);
}

}  // namespace winnow::detail
