// SPDX-License-Identifier: Apache-2.0
/// \file
/// The second half of a block of the first stage in one pass: stream += wp · attended + bp, then
/// stream += w2 · gelu(w1 · norm(stream) + b1) + b2.
///
/// What a block of threads computes: it keeps all three matrices, 162 KB, in shared memory, and each of its
/// warps takes 16 rows at a time. What the projection makes of them is the row itself, in registers; its
/// norm is the left factor of the MLP's first product as it lies there (mma.cuh); 16 hidden channels
/// later the sums, through GELU, are the left factor of the second product. Neither the projection, the norm
/// nor the hidden layer is ever stored. The sums of the second product start from the row, so that
/// residuals are added in FP32.
///
/// What bounds it: shared memory and tensor cores at once, 48 and about 39 cycles for 16 rows and 16 hidden
/// channels; traffic is 576 bytes a row instead of 3,080. Later stages have larger matrices and, for the
/// same products, fewer rows to move: cuBLASLt does them.
#include <cuda_pipeline.h>

#include "swin/kernels.hpp"
#include "swin/launch_wave.cuh"
#include "swin/mma.cuh"
#include "swin/row_map.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int tiles = 1;  // of 16 rows, of a warp at a time
constexpr int rows = 16 * tiles;
constexpr int warps = 11;
constexpr int threads = 32 * warps;
constexpr int hidden = mlp_ratio * quad_channels;
constexpr int chunk = 16;  // hidden channels at a time
constexpr int chunks = hidden / chunk;
constexpr int steps = quad_channels / 16;    // of the first product
constexpr int fragments = 2 * column_tiles;  // of both matrices for a chunk, two in a piece
constexpr int chunk_pieces = fragments / 2;  // of 16 bytes a lane
constexpr std::size_t projection_pieces = std::size_t{column_tiles} * (steps / 2) * 32;
constexpr std::size_t matrix_pieces = std::size_t{chunks} * chunk_pieces * 32 + projection_pieces;
static_assert(matrix_pieces * piece == packed_mlp_elements);

/// Vectors as floats, so that a row costs no conversions of them.
struct shared_vectors {
  float hidden_bias[hidden];
  float projection_bias[quad_channels], norm_weight[quad_channels], norm_bias[quad_channels],
      bias[quad_channels];
};
constexpr std::size_t shared_bytes = matrix_pieces * sizeof(uint4) + sizeof(shared_vectors);

template <class T>
struct mlp_arguments {
  explicit mlp_arguments(const fused_mlp& work)
      : stream(static_cast<T*>(work.stream)),
        attended(static_cast<const T*>(work.attended)),
        projection_bias(static_cast<const T*>(work.projection_bias)),
        norm(work.norm),
        matrices(static_cast<const uint4*>(work.matrices)),
        hidden_bias(static_cast<const T*>(work.hidden_bias)),
        bias(static_cast<const T*>(work.bias)),
        block(work.block),
        count(work.block.count()) {}
  T* stream;
  const T* attended;
  const T* projection_bias;
  norm_vectors<T> norm;
  const uint4* matrices;
  const T* hidden_bias;
  const T* bias;
  row_map block;
  int count;
};

/// The tanh form of GELU, as cuBLASLt's.
__device__ __forceinline__ float gelu(float x) {
  const float inner = x * (0.7978845608f + 0.0356774081f * x * x);
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(inner));
  return 0.5f * x * (1.0f + tanh);
}

/// The hidden layer of a chunk, before GELU.
/// \param bias of the lane's first hidden channel
template <class T>
__device__ __forceinline__ void multiply_first(T, const std::uint32_t (&normed)[tiles][steps][4],
                                               const uint4* piece_of_lane, const float* bias,
                                               float (&inner)[tiles][2][4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 start = *reinterpret_cast<const float2*>(bias + n * 8);
#pragma unroll
    for (int m = 0; m < tiles; ++m) {
      inner[m][n][0] = inner[m][n][2] = start.x;
      inner[m][n][1] = inner[m][n][3] = start.y;
    }
#pragma unroll
    for (int pair = 0; pair < steps / 2; ++pair) {
      const uint4 b = piece_of_lane[(n * (steps / 2) + pair) * 32];
#pragma unroll
      for (int m = 0; m < tiles; ++m) {
        multiply(T(), inner[m][n], normed[m][2 * pair], b.x, b.y);
        multiply(T(), inner[m][n], normed[m][2 * pair + 1], b.z, b.w);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    fused_mlp_kernel(const __grid_constant__ mlp_arguments<T> work) {
  extern __shared__ uint4 matrices[];
  const uint4* projection = matrices + (matrix_pieces - projection_pieces);
  auto& vectors = *reinterpret_cast<shared_vectors*>(matrices + matrix_pieces);
  const auto copy = [&](std::size_t from, std::size_t to) {
    for (std::size_t i = from + threadIdx.x; i < to; i += threads)
      __pipeline_memcpy_async(matrices + i, work.matrices + i, sizeof(uint4));
    __pipeline_commit();
  };
  copy(matrix_pieces - projection_pieces, matrix_pieces);  // the first to be needed
  copy(0, matrix_pieces - projection_pieces);
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += threads)
    vectors.hidden_bias[i] = static_cast<float>(work.hidden_bias[i]);
  for (int i = static_cast<int>(threadIdx.x); i < quad_channels; i += threads) {
    vectors.projection_bias[i] = static_cast<float>(work.projection_bias[i]);
    vectors.norm_weight[i] = static_cast<float>(work.norm.weight[i]);
    vectors.norm_bias[i] = static_cast<float>(work.norm.bias[i]);
    vectors.bias[i] = static_cast<float>(work.bias[i]);
  }
  // Weights are nobody's result.
  detail::wait_for_predecessor();
  detail::admit_successor();
  __pipeline_wait_prior(1);
  __syncthreads();

  using row_type = token_row<T, quad_lanes>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % quad_lanes;
  const int step_rows = static_cast<int>(gridDim.x) * warps * rows;
  // Neighbouring tiles go to different multiprocessors, so that the last round is shared by all.
  int first = (static_cast<int>(threadIdx.x) / 32 * static_cast<int>(gridDim.x) +
               static_cast<int>(blockIdx.x)) *
              rows;
  bool complete = false;                    // are all matrices there?
  do {                                      // once at least, for the barrier in it
    std::uint32_t normed[tiles][steps][4];  // at first what attention made of the rows
    uint4 tokens[2 * tiles][pieces];
    T* places[2 * tiles];
    // Row r of the lane: lane / 4 + 8 r. All are on their way before the first is needed.
#pragma unroll
    for (int r = 0; r < 2 * tiles; ++r) {
      const int row = first + r * 8 + lane / quad_lanes;
      const bool present = row < work.count;
      const place where = place_of(work.block, present ? row : 0);
      const bool inside = present && work.block.inside(where);
      places[r] = inside ? work.stream + work.block.token_at(where) * quad_channels : nullptr;
      const T* attended = work.attended + std::int64_t{row} * quad_channels;
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int channel = row_type::first_channel(quad, p);
        uint4 own = {};
        if (present) own = *reinterpret_cast<const uint4*>(attended + channel);
        normed[r / 2][2 * p][r % 2] = own.x;
        normed[r / 2][2 * p][2 + r % 2] = own.y;
        normed[r / 2][2 * p + 1][r % 2] = own.z;
        normed[r / 2][2 * p + 1][2 + r % 2] = own.w;
        tokens[r][p] = {};
        if (inside) tokens[r][p] = *reinterpret_cast<const uint4*>(places[r] + channel);
      }
    }
    __syncwarp();  // which loads do not pass
    float sums[tiles][column_tiles][4];
#pragma unroll
    for (int r = 0; r < 2 * tiles; ++r) {
      row_type value, bias;
      bias.load(vectors.projection_bias, quad);
#pragma unroll
      for (int p = 0; p < pieces; ++p) value.unpack_stored(tokens[r][p], p);
#pragma unroll
      for (int i = 0; i < lane_channels; ++i)
        sums[r / 2][i / 2][r % 2 * 2 + i % 2] = value.x[i] + bias.x[i];
    }
#pragma unroll
    for (int pair = 0; pair < steps / 2; ++pair)
#pragma unroll
      for (int t = 0; t < column_tiles; ++t) {
        const uint4 b = projection[(t * (steps / 2) + pair) * 32 + lane];
#pragma unroll
        for (int m = 0; m < tiles; ++m) {
          multiply(T(), sums[m][t], normed[m][2 * pair], b.x, b.y);
          multiply(T(), sums[m][t], normed[m][2 * pair + 1], b.z, b.w);
        }
      }
#pragma unroll
    for (int r = 0; r < 2 * tiles; ++r) {
      row_type value;
#pragma unroll
      for (int i = 0; i < lane_channels; ++i) value.x[i] = sums[r / 2][i / 2][r % 2 * 2 + i % 2];
      const row_type factor =
          value.normed(vectors.norm_weight, vectors.norm_bias, norm_epsilon, quad);
#pragma unroll
      for (int t = 0; t < column_tiles; ++t)
        normed[r / 2][t / 2][t % 2 * 2 + r % 2] = two(T(), factor.x[2 * t], factor.x[2 * t + 1]);
    }
    if (!complete) {
      __pipeline_wait_prior(0);
      __syncthreads();
      complete = true;
    }
    // A chunk's first product comes a chunk ahead, so that tensor cores have work during the GELU.
    float inner[tiles][2][4];  // by tile of hidden channels
    const uint4* own = matrices + lane;
    multiply_first(T(), normed, own, vectors.hidden_bias + quad * 2, inner);
#pragma unroll 1
    for (int c = 0; c < chunks; ++c, own += chunk_pieces * 32) {
      std::uint32_t activated[tiles][4];
      float next[tiles][2][4];
      // The last one multiplies the first chunk again.
      const int ahead = c + 1 < chunks ? c + 1 : 0;
      multiply_first(T(), normed, matrices + lane + ahead * chunk_pieces * 32,
                     vectors.hidden_bias + ahead * chunk + quad * 2, next);
#pragma unroll
      for (int m = 0; m < tiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          activated[m][i] =
              two(T(), gelu(inner[m][i / 2][i % 2 * 2]), gelu(inner[m][i / 2][i % 2 * 2 + 1]));
#pragma unroll
      for (int pair = 0; pair < column_tiles / 2; ++pair) {
        const uint4 b = own[(steps + pair) * 32];
#pragma unroll
        for (int m = 0; m < tiles; ++m) {
          multiply(T(), sums[m][2 * pair], activated[m], b.x, b.y);
          multiply(T(), sums[m][2 * pair + 1], activated[m], b.z, b.w);
        }
      }
#pragma unroll
      for (int m = 0; m < tiles; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) inner[m][n][e] = next[m][n][e];
    }
#pragma unroll
    for (int r = 0; r < 2 * tiles; ++r) {
      if (places[r] == nullptr) continue;
      row_type value;
      value.load(vectors.bias, quad);
#pragma unroll
      for (int i = 0; i < lane_channels; ++i) value.x[i] += sums[r / 2][i / 2][r % 2 * 2 + i % 2];
      value.store(places[r], quad);
    }
    first += step_rows;
  } while (first < work.count);
}

template <class T>
cudaError_t launch(const fused_mlp& work, cudaStream_t stream) {
  return launch_wave(fused_mlp_kernel<T>, round_up_div(work.block.count(), rows * warps), 1,
                     threads, shared_bytes, stream, mlp_arguments<T>(work));
}

}  // namespace

std::vector<float> pack_mlp(const std::vector<float>& projection, const std::vector<float>& w1,
                            const std::vector<float>& w2) {
  std::vector<float> packed;
  packed.reserve(packed_mlp_elements);
  // Two steps of the sum over channels: piece `pair` of a lane, for eight rows of a matrix.
  const auto pack_steps = [&](const std::vector<float>& w, int pair, int lane, const auto& row_of) {
    for (int i = 0; i < piece; ++i)
      packed.push_back(
          w[static_cast<std::size_t>(row_of(lane / quad_lanes) * quad_channels +
                                     channel_of(pair * 4 + i / 2, lane % quad_lanes * 2 + i % 2))]);
  };
  for (int c = 0; c < chunks; ++c)
    for (int f = 0; f < chunk_pieces; ++f)
      for (int lane = 0; lane < 32; ++lane) {
        if (f < steps) {  // first product
          const int unit = c * chunk + f / (steps / 2) * 8;
          pack_steps(w1, f % (steps / 2), lane, [&](int column) { return unit + column; });
          continue;
        }
        for (int i = 0; i < piece; ++i) {  // second product: two tiles of channels
          const int tile = (f - steps) * 2 + i / 4;
          const int unit = c * chunk + i / 2 % 2 * 8 + lane % quad_lanes * 2 + i % 2;
          packed.push_back(
              w2[static_cast<std::size_t>(channel_of(tile, lane / quad_lanes) * hidden + unit)]);
        }
      }
  for (int t = 0; t < column_tiles; ++t)
    for (int pair = 0; pair < steps / 2; ++pair)
      for (int lane = 0; lane < 32; ++lane)
        pack_steps(projection, pair, lane, [&](int column) { return channel_of(t, column); });
  return packed;
}

cudaError_t launch_fused_mlp(dtype type, const fused_mlp& work, cudaStream_t stream) {
  if (type == dtype::float16) return launch<half>(work, stream);
  if (type == dtype::bfloat16) return launch<bfloat16>(work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace winnow::swin
