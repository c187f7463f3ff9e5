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
/// instructions, of which the norm is two thirds.
#include "swin/kernels.hpp"
#include "swin/launch_wave.cuh"
#include "swin/mma.cuh"
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
        weight(static_cast<const T*>(work.weight)),
        bias(static_cast<const T*>(work.bias)),
        norm_weight(static_cast<const T*>(work.norm.weight)),
        norm_bias(static_cast<const T*>(work.norm.bias)),
        stream(static_cast<T*>(work.stream)),
        magnitude(work.magnitude),
        height(work.size.height),
        width(work.size.width),
        rows(static_cast<unsigned>(round_up_div(height, patch_edge))),
        columns(static_cast<unsigned>(round_up_div(width, patch_edge))),
        places(static_cast<unsigned>(work.size.batch) * rows * columns),
        whole_patches(height % patch_edge == 0 && width % patch_edge == 0) {}
  const T* images;
  const T* weight;
  const T* bias;
  const T* norm_weight;
  const T* norm_bias;
  T* stream;
  float* magnitude;
  int height, width;       // of an image
  unsigned rows, columns;  // of its map
  unsigned places;         // of all maps
  bool whole_patches;
};

/// Where a lane's first two pixels of a patch are: of each colour it reads lines `quad / 2` and two below.
template <class T>
struct patch_corner {
  const std::uint16_t* pixels;
  int y, x;
  bool inside;

  __device__ __forceinline__ patch_corner(const embedding_arguments<T>& work, unsigned place,
                                          int quad) {
    inside = place < work.places;
    const unsigned line = (inside ? place : 0) / work.columns;  // of all maps
    const unsigned image = line / work.rows;
    y = static_cast<int>(line - image * work.rows) * patch_edge + quad / 2;
    x = static_cast<int>((inside ? place : 0) - line * work.columns) * patch_edge + quad % 2 * 2;
    pixels = reinterpret_cast<const std::uint16_t*>(work.images) +
             (static_cast<std::int64_t>(image) * image_channels * work.height + y) * work.width + x;
  }
  /// Two neighbouring pixels; 0 outside the image.
  __device__ __forceinline__ std::uint32_t two_pixels(const embedding_arguments<T>& work,
                                                      int colour, int below) const {
    const std::uint16_t* pixel =
        pixels + static_cast<std::int64_t>(colour * work.height + below) * work.width;
    if (work.whole_patches) return inside ? *reinterpret_cast<const std::uint32_t*>(pixel) : 0u;
    if (!inside || y + below >= work.height || x >= work.width) return 0;
    return pixel[0] | (x + 1 < work.width ? static_cast<std::uint32_t>(pixel[1]) << 16 : 0u);
  }
};

/// Vectors of the channels as floats, so that a row costs no conversions of them.
struct shared_vectors {
  __align__(16) float bias[quad_channels], norm_weight[quad_channels], norm_bias[quad_channels];
  template <class T>
  __device__ __forceinline__ void fill(const embedding_arguments<T>& work) {
    for (int i = static_cast<int>(threadIdx.x); i < quad_channels; i += threads) {
      bias[i] = static_cast<float>(work.bias[i]);
      norm_weight[i] = static_cast<float>(work.norm_weight[i]);
      norm_bias[i] = static_cast<float>(work.norm_bias[i]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(threads, blocks_per_processor)
    embedding_kernel(const __grid_constant__ embedding_arguments<T> work, unsigned tiles) {
  __shared__ uint2 weights[column_tiles * steps * 32];
  __shared__ shared_vectors vectors;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // All of a thread's loads are on their way at once.
  constexpr int turns = column_tiles * steps * 32 / threads;
  static_assert(turns * threads == column_tiles * steps * 32);
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const int i = turn * threads + static_cast<int>(threadIdx.x);
    const int column = i % 32 / 4;
    const int pair = i % 4 * 2;
    const int step = i / 32 % steps;
    const int column_tile = i / (32 * steps);
    const int channel = channel_of(column_tile, column);
    const T* row = work.weight + channel * patch_values + step * 16 + pair;
    weights[i] = {*reinterpret_cast<const std::uint32_t*>(row),
                  *reinterpret_cast<const std::uint32_t*>(row + 8)};
  }
  vectors.fill(work);
  // Weights are nobody's result.
  detail::wait_for_predecessor();
  detail::admit_successor();
  __syncthreads();

  using row_type = token_row<T, quad_lanes>;
  const int quad = lane % quad_lanes;
  for (unsigned t = blockIdx.x * warps + threadIdx.x / 32; t < tiles; t += gridDim.x * warps) {
    const unsigned places[2] = {t * tile + lane / 4, t * tile + lane / 4 + 8};
    const patch_corner<T> corners[2] = {{work, places[0], quad}, {work, places[1], quad}};
    std::uint32_t pixels[steps][4];
#pragma unroll
    for (int step = 0; step < steps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pixels[step][i] = corners[i % 2].two_pixels(work, step, i / 2 * 2);
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
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_type value;
#pragma unroll
      for (int c = 0; c < lane_channels; ++c) value.x[c] = sums[c / 2][2 * r + c % 2];
      value = value.normed(vectors.norm_weight, vectors.norm_bias, norm_epsilon, quad);
      if (corners[r].inside)
        value.store(work.stream + std::int64_t{places[r]} * quad_channels, quad);
      if (work.magnitude == nullptr) continue;
      value.round();
      const float magnitude = value.magnitude();
      if (corners[r].inside && quad == 0) work.magnitude[places[r]] = magnitude;
    }
  }
}

template <class T>
cudaError_t launch(const patch_embedding& embedding, cudaStream_t stream) {
  const embedding_arguments<T> work(embedding);
  const unsigned tiles = (work.places + tile - 1) / tile;
  return launch_wave(embedding_kernel<T>, static_cast<int>((tiles + warps - 1) / warps),
                     blocks_per_processor, threads, 0, stream, work, tiles);
}

}  // namespace

cudaError_t launch_embedding(dtype type, const patch_embedding& work, cudaStream_t stream) {
  if (type == dtype::float16) return launch<half>(work, stream);
  if (type == dtype::bfloat16) return launch<bfloat16>(work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
