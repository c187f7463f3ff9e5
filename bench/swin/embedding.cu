// SPDX-License-Identifier: Apache-2.0
/// \file
/// The patch embedding: patches times a matrix, and the norm of what that makes.
///
/// What a warp computes: 16 neighbouring places of the map at a time, as a product of 16 x 48 by 48 x 96 on
/// the tensor cores. A patch's two pixels are one register of the left factor, so it comes straight from
/// the image; the weights lie in shared memory in the order of the fragments. Columns of the product are
/// permuted so that a lane ends up with the channels that `token_row` gives it.
///
/// What bounds it: traffic, 96 bytes of image and 192 of features a token, and nearly as much the
/// instructions, of which the norm is two thirds. The pixels of a warp's next tile are on their way during
/// the norms of the present one.
#include "swin/kernels.hpp"
#include "swin/launch_wave.cuh"
#include "swin/mma.cuh"
#include "swin/row_map.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int threads = 128;
constexpr int warps = threads / 32;
constexpr int tile = 16;  // places of a warp
constexpr int steps = patch_values / 16;
static_assert(steps == image_channels, "a step of the product is a colour");
constexpr int blocks_per_processor = 4;

template <class T>
struct embedding_arguments {
  explicit embedding_arguments(const patch_embedding& work)
      : images(static_cast<const T*>(work.images)),
        weight(static_cast<const uint2*>(work.weight)),
        bias(static_cast<const T*>(work.bias)),
        norm(work.norm),
        stream(static_cast<T*>(work.stream)),
        magnitude(work.magnitude),
        height(work.size.height),
        width(work.size.width),
        columns(round_up_div(width, patch_edge)),
        places(round_up_div(height, patch_edge) * columns),
        per_column(1.0f / static_cast<float>(columns)) {}
  const T* images;
  const uint2* weight;
  const T* bias;
  norm_vectors<T> norm;
  T* stream;
  float* magnitude;
  int height, width;    // of an image
  int columns, places;  // of its map
  float per_column;     // 1 / columns
};

/// Where a lane's first two pixels of a patch are: of each colour it reads lines `quad / 2` and two below.
/// \tparam Whole the image is made of whole patches
template <class T, bool Whole>
struct patch_corner {
  const std::uint16_t* pixels;
  int y, x;
  bool inside;

  __device__ __forceinline__ patch_corner(const embedding_arguments<T>& work, int image, int place,
                                          int quad) {
    inside = place < work.places;
    const int line = quotient(place, work.per_column);
    y = line * patch_edge + quad / 2;
    x = (place - line * work.columns) * patch_edge + quad % 2 * 2;
    pixels = reinterpret_cast<const std::uint16_t*>(work.images) +
             static_cast<std::int64_t>(image) * image_channels * (work.height * work.width) +
             (y * work.width + x);
  }
  /// Two neighbouring pixels; 0 outside the image.
  __device__ __forceinline__ std::uint32_t two_pixels(const embedding_arguments<T>& work,
                                                      int colour, int below) const {
    const std::uint16_t* pixel = pixels + (colour * work.height + below) * work.width;
    if constexpr (Whole) return inside ? *reinterpret_cast<const std::uint32_t*>(pixel) : 0u;
    if (!inside || y + below >= work.height || x >= work.width) return 0;
    return pixel[0] | (x + 1 < work.width ? static_cast<std::uint32_t>(pixel[1]) << 16 : 0u);
  }
};

/// Vectors of the channels as floats, so that a row costs no conversions of them.
struct shared_vectors {
  __align__(16) float bias[quad_channels], norm_weight[quad_channels], norm_bias[quad_channels];
  template <class T>
  __device__ __forceinline__ void fill(const embedding_arguments<T>& work) {
    static_assert(quad_channels <= threads);
    const auto i = threadIdx.x;
    if (i >= quad_channels) return;
    bias[i] = static_cast<float>(work.bias[i]);
    norm_weight[i] = static_cast<float>(work.norm.weight[i]);
    norm_bias[i] = static_cast<float>(work.norm.bias[i]);
  }
};

template <class T, bool Whole>
__global__ void __launch_bounds__(threads, blocks_per_processor)
    embedding_kernel(const __grid_constant__ embedding_arguments<T> work, int tiles,
                     int tiles_of_image) {
  __shared__ uint2 weights[column_tiles * steps * 32];
  __shared__ shared_vectors vectors;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int turns = column_tiles * steps * 32 / threads;
  static_assert(turns * threads == column_tiles * steps * 32);
  uint2 loaded[turns];  // all on their way at once
#pragma unroll
  for (int turn = 0; turn < turns; ++turn)
    loaded[turn] = work.weight[turn * threads + static_cast<int>(threadIdx.x)];
  // Weights are nobody's result.
  detail::wait_for_predecessor();
  detail::admit_successor();
  const int quad = lane % quad_lanes;
  std::uint32_t pixels[steps][4];
  const auto read = [&](int t) __attribute__((always_inline)) {
    if (t >= tiles) return;
    const int image = t / tiles_of_image;
    const int place = (t - image * tiles_of_image) * tile + lane / 4;
    const patch_corner<T, Whole> corners[2] = {{work, image, place, quad},
                                               {work, image, place + 8, quad}};
#pragma unroll
    for (int step = 0; step < steps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pixels[step][i] = corners[i % 2].two_pixels(work, step, i / 2 * 2);
  };
  int t = static_cast<int>(blockIdx.x * warps + threadIdx.x / 32);
  read(t);
#pragma unroll
  for (int turn = 0; turn < turns; ++turn)
    weights[turn * threads + static_cast<int>(threadIdx.x)] = loaded[turn];
  vectors.fill(work);
  __syncthreads();

  using row_type = token_row<T, quad_lanes>;
  const int step_tiles = static_cast<int>(gridDim.x) * warps;
  for (; t < tiles; t += step_tiles) {
    const int image = t / tiles_of_image;
    const int first = (t - image * tiles_of_image) * tile + lane / 4;
    const std::int64_t first_token = static_cast<std::int64_t>(image) * work.places;
    float sums[column_tiles][4];
#pragma unroll
    for (int column_tile = 0; column_tile < column_tiles; ++column_tile) {
      const float2 start = *reinterpret_cast<const float2*>(
          vectors.bias + row_type::first_channel(quad, column_tile / 4) + column_tile % 4 * 2);
      sums[column_tile][0] = sums[column_tile][2] = start.x;
      sums[column_tile][1] = sums[column_tile][3] = start.y;
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const uint2 b = weights[(column_tile * steps + step) * 32 + lane];
        multiply(T(), sums[column_tile], pixels[step], b.x, b.y);
      }
    }
    read(t + step_tiles);  // during the norms
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int place = first + 8 * r;
      const bool inside = place < work.places;
      row_type value;
#pragma unroll
      for (int c = 0; c < lane_channels; ++c) value.x[c] = sums[c / 2][2 * r + c % 2];
      value = value.normed(vectors.norm_weight, vectors.norm_bias, norm_epsilon, quad);
      const auto token = value.stored();
      if (inside) token.store(work.stream + (first_token + place) * quad_channels, quad);
      if (work.magnitude == nullptr) continue;
      const float magnitude = row_type::from(token).magnitude();
      if (inside && quad == 0) work.magnitude[first_token + place] = magnitude;
    }
  }
}

template <class T>
cudaError_t launch(const patch_embedding& embedding, cudaStream_t stream) {
  const embedding_arguments<T> work(embedding);
  const int tiles_of_image = round_up_div(work.places, tile);
  const int tiles = embedding.size.batch * tiles_of_image;
  const bool whole = work.height % patch_edge == 0 && work.width % patch_edge == 0;
  return launch_wave(whole ? embedding_kernel<T, true> : embedding_kernel<T, false>,
                     round_up_div(tiles, warps), blocks_per_processor, threads, 0, stream, work,
                     tiles, tiles_of_image);
}

}  // namespace

std::vector<float> pack_embedding(const std::vector<float>& w) {
  std::vector<float> packed;
  packed.reserve(w.size());
  for (int column_tile = 0; column_tile < column_tiles; ++column_tile)
    for (int step = 0; step < steps; ++step)
      for (int lane = 0; lane < 32; ++lane)
        for (const int i : {0, 1, 8, 9})
          packed.push_back(w[static_cast<std::size_t>(
              channel_of(column_tile, lane / 4) * patch_values + step * 16 + lane % 4 * 2 + i)]);
  return packed;
}

cudaError_t launch_embedding(dtype type, const patch_embedding& work, cudaStream_t stream) {
  if (type == dtype::float16) return launch<half>(work, stream);
  if (type == dtype::bfloat16) return launch<bfloat16>(work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
