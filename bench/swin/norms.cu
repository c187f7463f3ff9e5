// SPDX-License-Identifier: Apache-2.0
/// \file
/// Norms, and the residual additions around them.
///
/// What a block of threads computes: 4 to 32 lanes hold one token (row_norm.cuh), add what the last matrix product
/// left for it, write the sum to the stream and its norm to the row where the next block wants it. One
/// pass serves the end of one block and the start of the next, although their windows differ: a norm
/// belongs to a token, and where a token's row is follows from its place and the ranks of windows. So
/// features are never gathered, scattered or rolled on their own.
///
/// What is added comes from a matrix product, which begins when all kernels before it have ended. So where
/// something is added, the stream and the ranks are older than the predecessor and are read before it
/// ends, as long as another kernel does not come between.
///
/// What bounds it: traffic, 8 bytes a channel and token; rows are at least 192 bytes, so that scattered
/// ones cost as much as neighbouring ones. All of a lane's loads are in flight before the first sum.
#include <algorithm>

#include "swin/kernels.hpp"
#include "swin/token_update.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int threads = 256;
constexpr int end_threads = 64;

template <class T, int Lanes>
__global__ void __launch_bounds__(threads)
    token_update_kernel(const __grid_constant__ token_arguments<T> work) {
  const bool adds = work.change != nullptr;
  if (!adds) detail::wait_for_predecessor();
  using row_type = token_row<T, Lanes>;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const token_spot spot = locate(work, (blockIdx.x * threads + threadIdx.x) / Lanes);
  const bool renewed = spot.from >= 0;
  row_type value;
  value.clear();
  if (spot.inside && (renewed || spot.to >= 0 || work.magnitude != nullptr))
    value.load(work.stream + spot.token * row_type::channels, lane);
  if (adds) detail::wait_for_predecessor();
  detail::admit_successor();
  if (renewed) value.add(work.change + std::int64_t{spot.from} * row_type::channels, lane);
  finish(work, spot, value, renewed, lane);
}

template <class T>
struct row_arguments {
  explicit row_arguments(const row_update& update)
      : stream(static_cast<T*>(update.stream)),
        change(static_cast<const T*>(update.change)),
        rows(static_cast<T*>(update.rows)),
        norm_weight(static_cast<const T*>(update.norm.weight)),
        norm_bias(static_cast<const T*>(update.norm.bias)),
        positions(update.positions),
        block(update.block),
        count(update.block.count()) {}
  T* stream;
  const T* change;
  T* rows;
  const T* norm_weight;
  const T* norm_bias;
  std::uint32_t* positions;
  row_map block;
  int count;
};

template <class T, int Lanes>
__global__ void __launch_bounds__(threads)
    row_update_kernel(const __grid_constant__ row_arguments<T> work) {
  const bool adds = work.change != nullptr;
  if (!adds) detail::wait_for_predecessor();
  using row_type = token_row<T, Lanes>;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const int row = static_cast<int>((blockIdx.x * threads + threadIdx.x) / Lanes);
  const bool present = row < work.count;
  const place where = place_of(work.block, present ? row : 0);
  const bool inside = present && work.block.inside(where);
  T* const token = work.stream + work.block.token_at(where) * row_type::channels;

  row_type value;
  value.clear();
  if (inside) value.load(token, lane);
  if (adds) detail::wait_for_predecessor();
  if (inside && adds) {
    value.add(work.change + std::int64_t{row} * row_type::channels, lane);
    value.round();
    value.store(token, lane);
  }
  row_type normed = value.normed(work.norm_weight, work.norm_bias, norm_epsilon, lane);
  if (!present) return;
  if (!inside) normed.clear();
  normed.store(work.rows + std::int64_t{row} * row_type::channels, lane);
  if (work.positions != nullptr && lane == 0)
    work.positions[row] = work.block.position_of(where.y, where.x);
}

template <class T>
struct end_arguments {
  explicit end_arguments(const stage_end& end)
      : stream(static_cast<const T*>(end.stream)),
        change(static_cast<const T*>(end.change)),
        output(static_cast<T*>(end.output)),
        norm_weight(static_cast<const T*>(end.norm.weight)),
        norm_bias(static_cast<const T*>(end.norm.bias)),
        merged(static_cast<T*>(end.merged)),
        merge_weight(static_cast<const T*>(end.merge_norm.weight)),
        merge_bias(static_cast<const T*>(end.merge_norm.bias)),
        changed(end.changed),
        batch(end.map.batch),
        height(end.map.height),
        width(end.map.width) {}
  const T* stream;
  const T* change;
  T* output;
  const T* norm_weight;
  const T* norm_bias;
  T* merged;
  const T* merge_weight;
  const T* merge_bias;
  row_map changed;
  int batch, height, width;
};

/// A token as it is stored: half the registers.
template <class T>
struct stored_token {
  packed_piece<T> values[pieces];
  template <int Lanes>
  __device__ __forceinline__ token_row<T, Lanes> row() const {
    token_row<T, Lanes> result;
#pragma unroll
    for (int p = 0; p < pieces; ++p) result.unpack(values[p], p);
    return result;
  }
};

/// A token of the map with what its last block changes; zeros outside the map.
template <class T, int Lanes>
__device__ __forceinline__ stored_token<T> read_token(const end_arguments<T>& work, bool inside,
                                                      int image, int y, int x, int lane) {
  constexpr int channels = token_row<T, Lanes>::channels;
  const std::int64_t token = (static_cast<std::int64_t>(image) * work.height + y) * work.width + x;
  const int from = inside && work.change != nullptr ? work.changed.row_of(image, y, x) : -1;
  token_row<T, Lanes> value;
  value.clear();
  if (inside) value.load(work.stream + token * channels, lane);
  if (from >= 0) value.add(work.change + std::int64_t{from} * channels, lane);
  stored_token<T> result;
#pragma unroll
  for (int p = 0; p < pieces; ++p) result.values[p] = value.packed(p);
  return result;
}

template <class T, int Lanes>
__device__ __forceinline__ void write_output(const end_arguments<T>& work,
                                             const stored_token<T>& token, bool inside, int image,
                                             int y, int x, int lane) {
  const token_row<T, Lanes> normed =
      token.template row<Lanes>().normed(work.norm_weight, work.norm_bias, norm_epsilon, lane);
  const std::int64_t at = (static_cast<std::int64_t>(image) * work.height + y) * work.width + x;
  if (inside) normed.store(work.output + at * token_row<T, Lanes>::channels, lane);
}

/// The lanes of a row hold the four tokens of a place of the next map.
template <class T, int Lanes>
__global__ void __launch_bounds__(end_threads, 8)
    stage_end_kernel(const __grid_constant__ end_arguments<T> work) {
  detail::wait_for_predecessor();
  constexpr int channels = token_row<T, Lanes>::channels;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const unsigned index = (blockIdx.x * end_threads + threadIdx.x) / Lanes;
  const unsigned across = static_cast<unsigned>(work.width + 1) / 2;
  const unsigned per_image = static_cast<unsigned>(work.height + 1) / 2 * across;
  const bool present = index < per_image * static_cast<unsigned>(work.batch);
  const int image = present ? static_cast<int>(index / per_image) : 0;
  const unsigned rest = present ? index - static_cast<unsigned>(image) * per_image : 0;
  const int y = static_cast<int>(rest / across) * 2;
  const int x = static_cast<int>(rest % across) * 2;

  // Four variables: of an array, the compiler would keep a copy in memory. All are read before the
  // first is written, which no later load could pass.
  const bool east = present && x + 1 < work.width;
  const bool south = present && y + 1 < work.height;
  const auto north_west = read_token<T, Lanes>(work, present, image, y, x, lane);
  const auto north_east = read_token<T, Lanes>(work, east, image, y, x + 1, lane);
  const auto south_west = read_token<T, Lanes>(work, south, image, y + 1, x, lane);
  const auto south_east = read_token<T, Lanes>(work, east && south, image, y + 1, x + 1, lane);
  write_output<T, Lanes>(work, north_west, present, image, y, x, lane);
  write_output<T, Lanes>(work, north_east, east, image, y, x + 1, lane);
  write_output<T, Lanes>(work, south_west, south, image, y + 1, x, lane);
  write_output<T, Lanes>(work, south_east, east && south, image, y + 1, x + 1, lane);
  const float total =
      north_west.template row<Lanes>().sum() + north_east.template row<Lanes>().sum() +
      south_west.template row<Lanes>().sum() + south_east.template row<Lanes>().sum();
  const float mean = row_sum<Lanes>(total) * (0.25f / channels);
  const float squares = north_west.template row<Lanes>().squares_around(mean) +
                        north_east.template row<Lanes>().squares_around(mean) +
                        south_west.template row<Lanes>().squares_around(mean) +
                        south_east.template row<Lanes>().squares_around(mean);
  const float scale = rsqrtf(row_sum<Lanes>(squares) * (0.25f / channels) + norm_epsilon);
  if (!present) return;
  T* merged = work.merged + std::int64_t{index} * 4 * channels;
  const auto write = [&](const stored_token<T>& token, int offset) __attribute__((always_inline)) {
    token.template row<Lanes>()
        .scaled(mean, scale, work.merge_weight + offset, work.merge_bias + offset, lane)
        .store(merged + offset, lane);
  };
  write(north_west, 0);
  write(north_east, channels);
  write(south_west, 2 * channels);
  write(south_east, 3 * channels);
}

/// The last stage's end, which merges nothing: the lanes of a row hold one token.
template <class T, int Lanes>
__global__ void __launch_bounds__(threads)
    output_kernel(const __grid_constant__ end_arguments<T> work) {
  detail::wait_for_predecessor();
  using row_type = token_row<T, Lanes>;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const auto index = static_cast<int>((blockIdx.x * threads + threadIdx.x) / Lanes);
  const int line = index / work.width;  // of all images
  const int image = line / work.height;
  const bool present = image < work.batch;
  const stored_token<T> token = read_token<T, Lanes>(
      work, present, image, line - image * work.height, index - line * work.width, lane);
  write_output<T, Lanes>(work, token, present, image, line - image * work.height,
                         index - line * work.width, lane);
}

unsigned blocks_for(std::int64_t rows, int lanes, int block = threads) {
  return static_cast<unsigned>((rows * lanes + block - 1) / block);
}

}  // namespace

cudaError_t launch_token_update(dtype type, const token_update& update, cudaStream_t stream) {
  return with_shape(type, update.channels, [&](auto element, auto lanes) {
    using T = decltype(element);
    const token_arguments<T> work(update);
    const std::int64_t places = std::int64_t{work.batch} * work.scan_height * work.scan_width;
    return detail::launch_kernel(token_update_kernel<T, lanes>, blocks_for(places, lanes), threads,
                                 0, stream, work);
  });
}

cudaError_t launch_row_update(dtype type, const row_update& update, cudaStream_t stream) {
  return with_shape(type, update.channels, [&](auto element, auto lanes) {
    using T = decltype(element);
    const row_arguments<T> work(update);
    return detail::launch_kernel(row_update_kernel<T, lanes>, blocks_for(work.count, lanes),
                                 threads, 0, stream, work);
  });
}

cudaError_t launch_stage_end(dtype type, const stage_end& end, cudaStream_t stream) {
  return with_shape(type, end.channels, [&](auto element, auto lanes) {
    using T = decltype(element);
    const end_arguments<T> work(end);
    if (end.merged == nullptr) {
      const std::int64_t tokens = std::int64_t{work.batch} * work.height * work.width;
      return detail::launch_kernel(output_kernel<T, lanes>, blocks_for(tokens, lanes), threads, 0,
                                   stream, work);
    }
    const std::int64_t places =
        std::int64_t{work.batch} * round_up_div(work.height, 2) * round_up_div(work.width, 2);
    return detail::launch_kernel(stage_end_kernel<T, lanes>, blocks_for(places, lanes, end_threads),
                                 end_threads, 0, stream, work);
  });
}

}  // namespace winnow::swin
