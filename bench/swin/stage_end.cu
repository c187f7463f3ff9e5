// SPDX-License-Identifier: Apache-2.0
/// \file
/// The end of a stage: the last residual addition, the norm of the output, and what patch merging's product
/// reads.
///
/// What a block of threads computes: 4 to 32 lanes hold one token (row_norm.cuh), with what the last block
/// changes. Four neighbouring rows of lanes are a place of the next map: they exchange means and squares
/// for the norm of all four, so that no lane holds more than one token.
///
/// What bounds it: traffic, 6 bytes a channel and token and 2 more where something is added. Ranks and the
/// vectors of the first norm are read before the predecessor ends, tokens and changes together after it.
#include "swin/kernels.hpp"
#include "swin/row_map.cuh"
#include "swin/row_norm.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int threads = 128;
constexpr int resident = 5;  // blocks of a multiprocessor: as many as need no spills

template <class T>
struct end_arguments {
  explicit end_arguments(const stage_end& end)
      : stream(static_cast<const T*>(end.stream)),
        change(static_cast<const T*>(end.change)),
        output(static_cast<T*>(end.output)),
        norm(end.norm),
        merged(static_cast<T*>(end.merged)),
        merge_norm(end.merge_norm),
        changed(end.changed),
        height(end.map.height),
        width(end.map.width) {
    const int edge = merged != nullptr ? 2 : 1;
    down = round_up_div(height, edge);
    across = round_up_div(width, edge);
    per_line = 1.0f / static_cast<float>(across);
  }
  const T* stream;
  const T* change;
  T* output;
  norm_vectors<T> norm;
  T* merged;
  norm_vectors<T> merge_norm;
  row_map changed;
  int height, width;
  int down, across;  // of what a row, or four, stand for
  float per_line;    // 1 / across
};

/// Sum over four neighbouring rows of what all lanes of a row know; every lane gets it. All threads of a
/// block take part.
template <int Lanes>
__device__ __forceinline__ float sum_of_four(float value, float* shared) {
#pragma unroll
  for (int step = Lanes; step < 4 * Lanes && step < 32; step *= 2)
    value += __shfl_xor_sync(detail::all_lanes, value, step);
  if constexpr (4 * Lanes > 32) {
    constexpr int warps = 4 * Lanes / 32;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    const float* first = shared + threadIdx.x / (4 * Lanes) * warps;
    value = first[0];
#pragma unroll
    for (int w = 1; w < warps; ++w) value += first[w];
  }
  return value;
}

/// The lanes of a row hold one token; where the map is merged, four neighbouring rows those of one place of
/// the next map.
template <class T, int Lanes, bool Adds, bool Merges>
__global__ void __launch_bounds__(threads, resident)
    stage_end_kernel(const __grid_constant__ end_arguments<T> work) {
  using row_type = token_row<T, Lanes>;
  using stored_type = typename row_type::stored_type;
  constexpr int channels = row_type::channels;
  constexpr int edge = Merges ? 2 : 1;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const int image = static_cast<int>(blockIdx.y);
  const int index = static_cast<int>(blockIdx.x * threads + threadIdx.x) / Lanes;
  const int corner = index % (edge * edge);
  const int spot = index / (edge * edge);
  const int line = quotient(spot, work.per_line);
  const int y = line * edge + corner / edge;
  const int x = (spot - line * work.across) * edge + corner % edge;
  const bool present = spot < work.down * work.across;
  const bool inside = present && y < work.height && x < work.width;
  const std::int64_t first_token = static_cast<std::int64_t>(image) * (work.height * work.width);
  const int at = (y * work.width + x) * channels;
  stored_type weight, bias, token;
  weight.load(work.norm.weight, true, lane);
  bias.load(work.norm.bias, true, lane);
  const auto rolled = work.changed.rolled(y, x);
  const int rank = work.changed.rank_of(image, rolled.window, Adds && inside);
  detail::wait_for_predecessor();
  token.load(work.stream + first_token * channels + at, inside, lane);
  if constexpr (Adds) {
    const int from = work.changed.row_of(rank, rolled.token);
    stored_type change;
    change.load(work.change + work.changed.first_row(image) * channels + from * channels, from >= 0,
                lane);
    token.add(change);
  }
  const float mean = row_type::from(token).mean();
  const float squares = row_sum<Lanes>(row_type::from(token).squares_around(mean));
  if constexpr (Merges) token.renew();
  const stored_type normed = row_type::from(token)
                                 .scaled(mean, rsqrtf(squares * (1.0f / channels) + norm_epsilon),
                                         row_type::from(weight), row_type::from(bias))
                                 .stored();
  if (inside) normed.store(work.output + first_token * channels + at, lane);
  if constexpr (Merges) {
    __shared__ float sums[2][threads / 32];
    weight.load(work.merge_norm.weight + corner * channels, true, lane);
    bias.load(work.merge_norm.bias + corner * channels, true, lane);
    const float mean_of_four = 0.25f * sum_of_four<Lanes>(mean, sums[0]);
    // Squares around another mean are more by the square of the distance for each of them.
    const float distance = mean - mean_of_four;
    const float variance =
        0.25f / channels * sum_of_four<Lanes>(squares + channels * distance * distance, sums[1]);
    token.renew();
    const stored_type result = row_type::from(token)
                                   .scaled(mean_of_four, rsqrtf(variance + norm_epsilon),
                                           row_type::from(weight), row_type::from(bias))
                                   .stored();
    const std::int64_t first_place = static_cast<std::int64_t>(image) * (work.down * work.across);
    if (present) result.store(work.merged + first_place * 4 * channels + index * channels, lane);
  }
}

}  // namespace

cudaError_t launch_stage_end(dtype type, const stage_end& end, cudaStream_t stream) {
  return with_shape(type, end.channels, [&](auto element, auto lanes) {
    using T = decltype(element);
    const end_arguments<T> work(end);
    const int rows = work.down * work.across * (end.merged != nullptr ? 4 : 1);  // of an image
    return with_flags(work.change != nullptr, work.merged != nullptr, [&](auto adds, auto merges) {
      return detail::launch_kernel(stage_end_kernel<T, lanes, adds, merges>,
                                   dim3(static_cast<unsigned>(round_up_div(rows * lanes, threads)),
                                        static_cast<unsigned>(end.map.batch)),
                                   threads, 0, stream, work);
    });
  });
}

}  // namespace winnow::swin
