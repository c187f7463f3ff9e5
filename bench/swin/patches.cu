// SPDX-License-Identifier: Apache-2.0
/// \file
/// The inputs of the patch embedding as rows of a matrix. A thread moves the four pixels of one line of a
/// patch; it is bound by traffic.
#include "swin/kernels.hpp"

namespace winnow::swin {
namespace {

constexpr int threads = 256;
constexpr int lines = image_channels * patch_edge;  // of a patch

template <class T>
struct alignas(8) pixels {
  T values[patch_edge];
};

template <class T>
__global__ void __launch_bounds__(threads)
    patches_kernel(const T* __restrict__ images, T* __restrict__ patches, int height, int width,
                   int down, int across, unsigned count) {
  const unsigned index = blockIdx.x * threads + threadIdx.x;
  if (index >= count) return;
  // Neighbouring threads read neighbouring patches of a line.
  const int column = static_cast<int>(index % static_cast<unsigned>(across));
  const unsigned rest = index / static_cast<unsigned>(across);
  const int line = static_cast<int>(rest % lines);
  const unsigned strip = rest / lines;  // over all images
  const int image = static_cast<int>(strip / static_cast<unsigned>(down));
  const int row = static_cast<int>(strip % static_cast<unsigned>(down));
  const int y = row * patch_edge + line % patch_edge;
  const int x = column * patch_edge;
  const T* from =
      images +
      (static_cast<std::int64_t>(image * image_channels + line / patch_edge) * height + y) * width +
      x;
  pixels<T> moved;
  if (y < height && x + patch_edge <= width && width % patch_edge == 0) {
    moved = *reinterpret_cast<const pixels<T>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < patch_edge; ++i)
      moved.values[i] = y < height && x + i < width ? from[i] : static_cast<T>(0.0f);
  }
  const std::int64_t token = static_cast<std::int64_t>(strip) * across + column;
  *reinterpret_cast<pixels<T>*>(patches + token * patch_values + line * patch_edge) = moved;
}

template <class T>
cudaError_t launch(const image_size& size, const void* images, void* patches, cudaStream_t stream) {
  const grid_window map = map_of_stage(size, 0);
  const auto count = static_cast<unsigned>(map.tokens() * lines);
  patches_kernel<<<(count + threads - 1) / threads, threads, 0, stream>>>(
      static_cast<const T*>(images), static_cast<T*>(patches), size.height, size.width, map.height,
      map.width, count);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_patches(dtype type, const image_size& size, const void* images, void* patches,
                           cudaStream_t stream) {
  if (type == dtype::float16) return launch<half>(size, images, patches, stream);
  if (type == dtype::bfloat16) return launch<bfloat16>(size, images, patches, stream);
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
