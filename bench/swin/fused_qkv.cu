// SPDX-License-Identifier: Apache-2.0
/// \file
/// The first half of a block of the first stage up to attention: rows = w · norm(stream) + bias, q, k and v
/// side by side, for the rows of the block.
///
/// What a block of threads computes: it keeps the matrix, 54 KB, in shared memory, and each of its warps
/// takes 32 rows at a time. The norm of a row is the left factor as it lies in registers (mma.cuh), and
/// columns are numbered so that a lane gets eight neighbouring ones of a row from four tiles, which it
/// stores at once. The norm is never stored.
///
/// What bounds it: traffic, 768 bytes a row, where a norm and a product of their own move 1,152. Reading the
/// matrix from shared memory takes half of that time, the tensor cores 40 %.
#include "swin/kernels.hpp"
#include "swin/launch_wave.cuh"
#include "swin/mma.cuh"
#include "swin/row_map.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int tiles = 2;  // of 16 rows, of a warp at a time
constexpr int rows = 16 * tiles;
constexpr int warps = 12;  // more of them spill
constexpr int threads = 32 * warps;
constexpr int outputs = 3 * quad_channels;
constexpr int steps = quad_channels / 16;
constexpr int tile_pieces = steps / 2;         // of 16 bytes a lane, for a tile of eight columns
constexpr int group = 4;                       // tiles whose columns a lane stores at once
constexpr int groups = outputs / (group * 8);  // of the matrix
constexpr std::size_t matrix_bytes = std::size_t{groups} * group * tile_pieces * 32 * 16;
static_assert(matrix_bytes == packed_qkv_elements * 2);

/// Vectors as floats, so that a row costs no conversions of them.
struct shared_vectors {
  float bias[outputs], norm_weight[quad_channels], norm_bias[quad_channels];
};
constexpr std::size_t shared_bytes = matrix_bytes + sizeof(shared_vectors);

template <class T>
struct qkv_arguments {
  explicit qkv_arguments(const fused_qkv& work)
      : stream(static_cast<const T*>(work.stream)),
        norm(work.norm),
        matrix(static_cast<const uint4*>(work.matrix)),
        bias(static_cast<const T*>(work.bias)),
        rows(static_cast<T*>(work.rows)),
        positions(work.positions),
        block(work.block),
        count(work.block.count()) {}
  const T* stream;
  norm_vectors<T> norm;
  const uint4* matrix;
  const T* bias;
  T* rows;
  std::uint32_t* positions;
  row_map block;
  int count;
};

template <class T>
__global__ void __launch_bounds__(threads, 1)
    fused_qkv_kernel(const __grid_constant__ qkv_arguments<T> work) {
  extern __shared__ uint4 matrix[];
  auto& vectors = *reinterpret_cast<shared_vectors*>(matrix + matrix_bytes / sizeof(uint4));
  for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(matrix_bytes / 16); i += threads)
    matrix[i] = work.matrix[i];
  for (int i = static_cast<int>(threadIdx.x); i < outputs; i += threads)
    vectors.bias[i] = static_cast<float>(work.bias[i]);
  for (int i = static_cast<int>(threadIdx.x); i < quad_channels; i += threads) {
    vectors.norm_weight[i] = static_cast<float>(work.norm.weight[i]);
    vectors.norm_bias[i] = static_cast<float>(work.norm.bias[i]);
  }
  // Weights are nobody's result.
  detail::wait_for_predecessor();
  detail::admit_successor();
  __syncthreads();

  using row_type = token_row<T, quad_lanes>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % quad_lanes;
  // Neighbouring tiles go to different multiprocessors, so that the last round is shared by all.
  const int step_rows = static_cast<int>(gridDim.x) * warps * rows;
  for (int first = (static_cast<int>(threadIdx.x) / 32 * static_cast<int>(gridDim.x) +
                    static_cast<int>(blockIdx.x)) *
                   rows;
       first < work.count; first += step_rows) {
    uint4 tokens[2 * tiles][pieces];
    bool inside[2 * tiles];
    // Row r of the lane: lane / 4 + 8 r. All are on their way before the first norm.
#pragma unroll
    for (int r = 0; r < 2 * tiles; ++r) {
      const int row = first + r * 8 + lane / quad_lanes;
      const bool present = row < work.count;
      const place where = place_of(work.block, present ? row : 0);
      inside[r] = present && work.block.inside(where);
      const T* token = work.stream + work.block.token_at(where) * quad_channels;
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        tokens[r][p] = {};
        if (inside[r])
          tokens[r][p] = *reinterpret_cast<const uint4*>(token + row_type::first_channel(quad, p));
      }
      if (work.positions != nullptr && present && quad == 0)
        work.positions[row] = work.block.position_of(where.y, where.x);
    }
    __syncwarp();  // which loads do not pass
    std::uint32_t normed[tiles][steps][4];
#pragma unroll
    for (int r = 0; r < 2 * tiles; ++r) {
      row_type value;
#pragma unroll
      for (int p = 0; p < pieces; ++p) value.unpack_stored(tokens[r][p], p);
      row_type factor = value.normed(vectors.norm_weight, vectors.norm_bias, norm_epsilon, quad);
      if (!inside[r]) factor.clear();
#pragma unroll
      for (int t = 0; t < column_tiles; ++t)
        normed[r / 2][t / 2][t % 2 * 2 + r % 2] = two(T(), factor.x[2 * t], factor.x[2 * t + 1]);
    }
    const uint4* own = matrix + lane;
#pragma unroll 1
    for (int g = 0; g < groups; ++g) {
      const int column = g * group * 8 + quad * piece;
      float sums[tiles][group][4];
#pragma unroll
      for (int t = 0; t < group; ++t) {
        const float2 start = *reinterpret_cast<const float2*>(vectors.bias + column + t * 2);
#pragma unroll
        for (int m = 0; m < tiles; ++m) {
          sums[m][t][0] = sums[m][t][2] = start.x;
          sums[m][t][1] = sums[m][t][3] = start.y;
        }
      }
#pragma unroll
      for (int pair = 0; pair < tile_pieces; ++pair)
#pragma unroll
        for (int t = 0; t < group; ++t, own += 32) {
          const uint4 b = *own;
#pragma unroll
          for (int m = 0; m < tiles; ++m) {
            multiply(T(), sums[m][t], normed[m][2 * pair], b.x, b.y);
            multiply(T(), sums[m][t], normed[m][2 * pair + 1], b.z, b.w);
          }
        }
#pragma unroll
      for (int r = 0; r < 2 * tiles; ++r) {
        const int row = first + r * 8 + lane / quad_lanes;
        if (row >= work.count) continue;
        packed_piece<T> result;
#pragma unroll
        for (int i = 0; i < piece; ++i)
          result.values[i] = static_cast<T>(sums[r / 2][i / 2][r % 2 * 2 + i % 2]);
        *reinterpret_cast<packed_piece<T>*>(work.rows + std::int64_t{row} * outputs + column) =
            result;
      }
    }
  }
}

template <class T>
cudaError_t launch(const fused_qkv& work, cudaStream_t stream) {
  return launch_wave(fused_qkv_kernel<T>, round_up_div(work.block.count(), rows), 1, threads,
                     shared_bytes, stream, qkv_arguments<T>(work));
}

}  // namespace

std::vector<float> pack_qkv(const std::vector<float>& w) {
  std::vector<float> packed;
  packed.reserve(packed_qkv_elements);
  for (int g = 0; g < groups; ++g)
    for (int pair = 0; pair < tile_pieces; ++pair)
      for (int t = 0; t < group; ++t)
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < piece; ++i) {
            const int column = lane / quad_lanes;  // its pair belongs to lane column / 2 of a row
            const int output = (g * quad_lanes + column / 2) * piece + t * 2 + column % 2;
            const int input = channel_of(pair * 4 + i / 2, lane % quad_lanes * 2 + i % 2);
            packed.push_back(w[static_cast<std::size_t>(output * quad_channels + input)]);
          }
  return packed;
}

cudaError_t launch_fused_qkv(dtype type, const fused_qkv& work, cudaStream_t stream) {
  if (type == dtype::float16) return launch<half>(work, stream);
  if (type == dtype::bfloat16) return launch<bfloat16>(work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
