// SPDX-License-Identifier: Apache-2.0
/// \file
/// The patch embedding with everything up to the first block's rows.
///
/// What a warp computes: 16 neighbouring places of the map at a time, as a product of 16 x 48 by 48 x 96 on
/// the tensor cores. A patch's two pixels are one register of the left factor, so it comes straight from
/// the image; the weights lie in shared memory in the order of the fragments. Columns of the product are
/// permuted so that a lane ends up with the channels that `token_row` gives it, and the rest is what every
/// token update does.
///
/// What bounds it: traffic, 96 bytes of image and 192 or 384 bytes of features a token.
#include <algorithm>

#include "swin/kernels.hpp"
#include "swin/mma.cuh"
#include "swin/token_update.cuh"
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
  embedding_arguments(const patch_embedding& embedding, const token_update& update)
      : tokens(update),
        images(static_cast<const T*>(embedding.images)),
        weight(static_cast<const T*>(embedding.weight)),
        bias(static_cast<const T*>(embedding.bias)),
        norm_weight(static_cast<const T*>(embedding.norm.weight)),
        norm_bias(static_cast<const T*>(embedding.norm.bias)),
        height(embedding.size.height),
        width(embedding.size.width),
        whole_patches(height % patch_edge == 0 && width % patch_edge == 0) {}
  token_arguments<T> tokens;
  const T* images;
  const T* weight;
  const T* bias;
  const T* norm_weight;
  const T* norm_bias;
  int height, width;  // of an image
  bool whole_patches;
};

/// Two neighbouring pixels of a patch; 0 outside the image.
template <class T>
__device__ __forceinline__ std::uint32_t two_pixels(const embedding_arguments<T>& work,
                                                    const token_spot& spot, int colour, int line,
                                                    int column) {
  const int y = spot.y * patch_edge + line;
  const int x = spot.x * patch_edge + column;
  const auto* pixel =
      reinterpret_cast<const std::uint16_t*>(work.images) +
      (static_cast<std::int64_t>(spot.image * image_channels + colour) * work.height + y) *
          work.width +
      x;
  if (work.whole_patches) return spot.inside ? *reinterpret_cast<const std::uint32_t*>(pixel) : 0u;
  if (!spot.inside || y >= work.height || x >= work.width) return 0;
  return pixel[0] | (x + 1 < work.width ? static_cast<std::uint32_t>(pixel[1]) << 16 : 0u);
}

/// The norms' weights as floats, so that a row costs no conversions of them.
struct shared_norms {
  __align__(16) float values[4][quad_channels];
  template <class T>
  __device__ __forceinline__ void fill(int which, const T* from) {
    for (int i = static_cast<int>(threadIdx.x); i < quad_channels; i += threads)
      values[which][i] = from != nullptr ? static_cast<float>(from[i]) : 0.0f;
  }
};

template <class T>
__global__ void __launch_bounds__(threads, blocks_per_processor)
    embedding_kernel(const __grid_constant__ embedding_arguments<T> work, unsigned tiles) {
  __shared__ uint2 weights[column_tiles * steps * 32];
  __shared__ shared_norms norms;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = static_cast<int>(threadIdx.x); i < column_tiles * steps * 32; i += threads) {
    const int column = i % 32 / 4;
    const int pair = i % 4 * 2;
    const int step = i / 32 % steps;
    const int column_tile = i / (32 * steps);
    const int channel = channel_of(column_tile, column);
    const T* row = work.weight + channel * patch_values + step * 16 + pair;
    weights[i] = {*reinterpret_cast<const std::uint32_t*>(row),
                  *reinterpret_cast<const std::uint32_t*>(row + 8)};
  }
  norms.fill(0, work.norm_weight);
  norms.fill(1, work.norm_bias);
  norms.fill(2, work.tokens.norm_weight);
  norms.fill(3, work.tokens.norm_bias);
  // Weights are nobody's result.
  detail::wait_for_predecessor();
  detail::admit_successor();
  __syncthreads();

  using row_type = token_row<T, quad_lanes>;
  const int quad = lane % quad_lanes;
  for (unsigned t = blockIdx.x * warps + threadIdx.x / 32; t < tiles; t += gridDim.x * warps) {
    const token_spot spots[2] = {locate(work.tokens, t * tile + lane / 4),
                                 locate(work.tokens, t * tile + lane / 4 + 8)};
    std::uint32_t pixels[steps][4];
#pragma unroll
    for (int step = 0; step < steps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pixels[step][i] = two_pixels(work, spots[i % 2], step, quad / 2 + i / 2 * 2, quad % 2 * 2);
    float sums[column_tiles][4] = {};
#pragma unroll
    for (int column_tile = 0; column_tile < column_tiles; ++column_tile)
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const uint2 b = weights[(column_tile * steps + step) * 32 + lane];
        multiply(T(), sums[column_tile], pixels[step], b.x, b.y);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_type value;
      value.load(work.bias, quad);
#pragma unroll
      for (int c = 0; c < lane_channels; ++c) value.x[c] += sums[c / 2][2 * r + c % 2];
      value = value.normed(norms.values[0], norms.values[1], norm_epsilon, quad);
      finish(work.tokens, spots[r], value, spots[r].inside, norms.values[2], norms.values[3], quad);
    }
  }
}

template <class T>
cudaError_t launch(const patch_embedding& embedding, const token_update& update,
                   cudaStream_t stream) {
  const embedding_arguments<T> work(embedding, update);
  const auto places = static_cast<unsigned>(work.tokens.batch) *
                      static_cast<unsigned>(work.tokens.scan_height * work.tokens.scan_width);
  const unsigned tiles = (places + tile - 1) / tile;
  int device = 0;
  int processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const unsigned blocks = std::min((tiles + warps - 1) / warps,
                                   static_cast<unsigned>(processors * blocks_per_processor));
  return detail::launch_kernel(embedding_kernel<T>, blocks, threads, 0, stream, work, tiles);
}

}  // namespace

cudaError_t launch_embedding(dtype type, const patch_embedding& embedding,
                             const token_update& update, cudaStream_t stream) {
  if (update.channels != quad_channels || update.change != nullptr) return cudaErrorInvalidValue;
  if (type == dtype::float16) return launch<half>(embedding, update, stream);
  if (type == dtype::bfloat16) return launch<bfloat16>(embedding, update, stream);
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
