// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention with additive bias in an image's windows of 33 to 64 tokens, for 16-bit storage.
///
/// What one block computes: whole windows of one head, one after the other. Warp w owns the window's
/// queries 16·w to 16·w + 15 and multiplies them with all keys, so that all logits of a row are there
/// at once: no running maximum, no masks by slot.
///
/// All windows have one shape, so that a pair of rows has one row of the bias table in every window: a
/// lane keeps the bias of its pairs in registers, over all windows of the block. The accumulators of
/// the logits start from it, divided by the scale, and from -infinity for columns behind the window's
/// last key: bias and mask cost no instruction. Where a seam crosses a window, which the regions of
/// its tokens tell, a second copy of the code compares regions.
///
/// Where things live: q, k, v of two windows in shared memory: one is computed on while the other's
/// rows arrive; everything else in registers. Results go back through the place of q, so that they
/// leave as vectors. One barrier a window.
///
/// Bound: memory traffic and its latency; about 390 instructions for 16 rows of a window of 49 at
/// D = 32, where the blocks of forward_block.cuh take 2,500.
///
/// NaN and infinity: rows that come out so are found again at the very end and computed by
/// exact_row.cuh.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_rows.cuh"
#include "winnow/detail/attention/layout.hpp"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/attention/zero_rows.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, int D>
struct grid_attender {
  using layout = forward_grid_layout<D>;
  using rows = shared_rows<T, D>;
  static constexpr int blocks = rows::blocks;
  static constexpr int vectors = rows::vectors;
  static constexpr int threads = 32 * layout::tiles;
  /// Rows of a window move in passes of the block.
  static constexpr int pass_rows = threads / vectors;
  static constexpr int passes = (layout::rows + pass_rows - 1) / pass_rows;
  static constexpr int columns = layout::rows / 8;  ///< blocks of eight keys
  static constexpr unsigned all = 0xffffffffu;

  const forward_problem& problem;
  const group_problem& group;
  std::uint32_t memory;
  int head;
  int group_head;
  int size;  ///< tokens of a window
  int thread = static_cast<int>(threadIdx.x);
  int warp = static_cast<int>(threadIdx.x) / 32;
  lane_place place;
  /// Of this lane's pairs, divided by the scale.
  float bias[columns][4];

  /// What the copies of a window need to know of this thread's rows; loaded a window ahead.
  struct window_index {
    std::int32_t tokens[passes];
    std::uint32_t regions[passes];
    std::uint32_t first_region;
  };

  [[nodiscard]] __device__ __forceinline__ std::uint32_t stage_at(int stage) const {
    return memory + static_cast<std::uint32_t>(stage * layout::stage_bytes);
  }
  [[nodiscard]] __device__ __forceinline__ int row_of_pass(int pass) const {
    return pass * pass_rows + thread / vectors;
  }
  [[nodiscard]] __device__ __forceinline__ bool inside() const {
    return thread % vectors * 8 < problem.head_dim;
  }
  [[nodiscard]] __device__ __forceinline__ char* vector_of(const packed_view& view) const {
    return advance(view.data + thread % vectors * 16, head, view.head_bytes);
  }

  __device__ __forceinline__ void load_index(int window, window_index& index) const {
    const int first = window * size;
    index.first_region = group.positions[first] >> 16;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = row_of_pass(pass);
      index.tokens[pass] = row < size ? group.order[first + row] : 0;
      index.regions[pass] = row < size ? group.positions[first + row] >> 16 : index.first_region;
    }
  }

  /// Asks for the rows of a window.
  /// \return whether this thread sees a seam.
  __device__ __forceinline__ bool request(std::uint32_t stage, const window_index& index) const {
    const bool there = inside();
    bool seam = false;
    char* base[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) base[a] = vector_of(problem.packed[a]);
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = row_of_pass(pass);
      if (row >= size) continue;
      const std::uint32_t target = stage + rows::at(row, thread % vectors);
#pragma unroll
      for (int a = 0; a < 3; ++a)
        copy_async(target + static_cast<std::uint32_t>(a * layout::array_bytes),
                   advance(base[a], index.tokens[pass], problem.packed[a].token_bytes), there);
      if (thread % vectors == 0) {
        store_shared(stage + static_cast<std::uint32_t>(layout::tokens + 4 * row),
                     static_cast<std::uint32_t>(index.tokens[pass]));
        store_shared(stage + static_cast<std::uint32_t>(layout::regions + 4 * row),
                     index.regions[pass]);
      }
      seam = seam || index.regions[pass] != index.first_region;
    }
    commit_copies();
    return seam;
  }

  /// Zeros in the rows behind a window's last: nothing else is ever written there.
  __device__ __forceinline__ void clear_padding() const {
    const int words = (layout::rows - size) * layout::row_bytes / 4;
#pragma unroll 1
    for (int array = 0; array < 6; ++array) {
      const std::uint32_t target =
          stage_at(array / 3) +
          static_cast<std::uint32_t>(array % 3 * layout::array_bytes + size * layout::row_bytes);
      for (int word = thread; word < words; word += threads)
        store_shared(target + static_cast<std::uint32_t>(4 * word), 0);
    }
  }

  /// The head's bias divided by the scale, and codes of rows, whose differences are rows of the table,
  /// as in encoding.cuh; a barrier has to follow.
  __device__ __forceinline__ void stage_bias() const {
    const int edge = group.quant_length;
    const int span = 2 * edge - 1;
    const float unit = 1.0f / problem.scale;
    for (int r = thread; r < span * span; r += threads)
      store_shared(
          memory + static_cast<std::uint32_t>(layout::table + 4 * r),
          __float_as_uint(unit * load_element<T>(group.bias, group.bias_is_float,
                                                 r * group.bias_row_stride +
                                                     group_head * group.bias_head_stride)));
    if (thread < layout::rows)
      store_shared(memory + static_cast<std::uint32_t>(layout::codes + 4 * thread),
                   static_cast<std::uint32_t>(thread / edge * span + thread % edge));
  }
  __device__ __forceinline__ void load_bias() {
    const int edge = group.quant_length;
    const auto code = [&](int row) {
      return load_shared_int(memory +
                             static_cast<std::uint32_t>(layout::codes + 4 * min(row, size - 1)));
    };
    int row_code[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      row_code[i] = code(16 * warp + 8 * i + place.g) + (edge - 1) * 2 * edge;
#pragma unroll
    for (int n = 0; n < columns; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * place.t + e;
        const int column_code = code(column);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int value = load_shared_int(
              memory + static_cast<std::uint32_t>(layout::table + 4 * (row_code[i] - column_code)));
          bias[n][2 * i + e] = column < size ? __int_as_float(value) : -INFINITY;
        }
      }
  }

  /// This warp's rows of a window against its keys, the first 8·N of which hold all that count.
  /// \return this lane's bits of results that are not finite.
  template <int N, bool Seam>
  __device__ __forceinline__ std::uint32_t attend(std::uint32_t stage) const {
    constexpr int units = (N + 1) / 2;
    constexpr auto unit_bytes = static_cast<std::uint32_t>(16 * layout::row_bytes);
    const float factor = problem.scale * log2_e;
    const std::uint32_t own = stage + warp * unit_bytes;
    const std::uint32_t left = rows::left_at(place.lane % 16);
    typename rows::query q;
    q.load(own + left);
    float s[2 * units][4];
    const std::uint32_t keys = stage + layout::array_bytes + rows::right_at(rows::right_row());
#pragma unroll
    for (int u = 0; u < units; ++u) {
#pragma unroll
      for (int n = 2 * u; n < 2 * u + 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = n < N ? bias[n][e] : -INFINITY;
#pragma unroll
      for (int step = 0; step < rows::steps; ++step) {
        std::uint32_t b[4];
        load_matrices(b, rows::moved(keys, step) + u * unit_bytes);
        multiply_add_16<T>(s[2 * u], q.a[step], b[0], b[1]);
        if (2 * u + 1 < N) multiply_add_16<T>(s[2 * u + 1], q.a[step], b[2], b[3]);
      }
    }
    if constexpr (Seam) {
      const std::uint32_t regions = stage + static_cast<std::uint32_t>(layout::regions);
      int region[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        region[i] = load_shared_int(
            regions + static_cast<std::uint32_t>(4 * min(16 * warp + 8 * i + place.g, size - 1)));
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          // Behind the last key any region will do.
          const int other =
              load_shared_int(regions + static_cast<std::uint32_t>(4 * (8 * n + 2 * place.t + e)));
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (region[i] != other) s[n][2 * i + e] = -INFINITY;
        }
    }
    float largest[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float x = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
      for (int n = 1; n < N; ++n) x = fmaxf(x, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
      largest[i] = quad_max(x) * factor;
    }
    float o[blocks][4] = {};
    float sum[4] = {};
    const std::uint32_t values = stage + 2 * layout::array_bytes + left;
#pragma unroll
    for (int u = 0; u < units; ++u) {
      float p[2][4];
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          p[b][e] =
              2 * u + b < N ? exp2_fast(fmaf(s[2 * u + b][e], factor, -largest[e / 2])) : 0.0f;
      rows::values(weight_fragment<T>(p), values, u * unit_bytes, o, sum);
    }
    return finish(stage, own, o, sum, largest);
  }

  __device__ __forceinline__ std::uint32_t finish(std::uint32_t stage, std::uint32_t own,
                                                  const float (&o)[blocks][4],
                                                  const float (&sum)[4],
                                                  const float (&largest)[2]) const {
    const int count = min(16, size - 16 * warp);
    const std::uint32_t tokens = stage + static_cast<std::uint32_t>(layout::tokens + 64 * warp);
    __syncwarp();  // all lanes have read q
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 8 * i + place.g;
      if (row >= count) continue;
      const float inverse = reciprocal(sum[2 * i]);
      const std::uint32_t target = own + rows::at(row, 0);
#pragma unroll
      for (int b = 0; b < blocks; ++b)
        store_shared(
            (target ^ static_cast<std::uint32_t>(16 * b)) + static_cast<std::uint32_t>(4 * place.t),
            pack<T>(o[b][2 * i] * inverse, o[b][2 * i + 1] * inverse));
      if (problem.lse != nullptr && place.t == 0) {
        const std::int64_t token = load_shared_int(tokens + static_cast<std::uint32_t>(4 * row));
        problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] =
            (largest[i] + __log2f(sum[2 * i])) * ln_2;
      }
    }
    __syncwarp();
    char* base = vector_of(problem.packed[3]);
    std::uint32_t broken = 0;
#pragma unroll
    for (int first = 0; first < 16; first += 32 / vectors) {
      const int row = first + place.lane / vectors;
      if (row >= count || !inside()) continue;
      const uint4 x = load_shared_vector(own + rows::at(row, place.lane % vectors));
      broken |= probe_vector<T>(x);
      const std::int32_t token = load_shared_int(tokens + static_cast<std::uint32_t>(4 * row));
      *reinterpret_cast<uint4*>(advance(base, token, problem.packed[3].token_bytes)) = x;
    }
    return broken;
  }

  __device__ __forceinline__ std::uint32_t attend_window(std::uint32_t stage, bool seam) const {
    if (size <= 56) return seam ? attend<7, true>(stage) : attend<7, false>(stage);
    return seam ? attend<8, true>(stage) : attend<8, false>(stage);
  }

  /// Computes this warp's rows again that were stored as NaN or infinity.
  __device__ __forceinline__ void repair(int windows, int first_window, int step) const {
    __syncwarp();
    const char* base = vector_of(problem.packed[3]);
    for (int window = first_window; window < windows; window += step)
      for (int row = 16 * warp; row < min(16 * warp + 16, size); ++row) {
        const int slot = window * size + row;
        std::uint32_t broken = 0;
        if (inside())
          broken = probe_vector<T>(*reinterpret_cast<const uint4*>(
              advance(const_cast<char*>(base), group.order[slot], problem.packed[3].token_bytes)));
        if (__any_sync(all, broken != 0)) attend_row<T>(problem, group, head, slot);
      }
  }

  __device__ __forceinline__ void run(int first_window, int step) {
    const int assigned = group.counts->assigned;
    const int windows = assigned / size;
    std::uint32_t broken = 0;
    if (first_window < windows) {
      window_index index;
      load_index(first_window, index);
      bool seam = request(stage_at(0), index);
      if (first_window + step < windows) load_index(first_window + step, index);
      stage_bias();
      clear_padding();
      __syncthreads();
      load_bias();
      int stage = 0;
#pragma unroll 1
      for (int window = first_window; window < windows; window += step) {
        wait_for_copies<0>();
        const bool crossed = __syncthreads_or(seam ? 1 : 0) != 0;
        if (window + step < windows) {
          seam = request(stage_at(1 - stage), index);
          if (window + 2 * step < windows) load_index(window + 2 * step, index);
        }
        if (16 * warp < size) broken |= attend_window(stage_at(stage), crossed);
        stage = 1 - stage;
      }
    }
    if (problem.zero_unassigned)
      for (int first = assigned + layout::rows * first_window; first < group.counts->tokens;
           first += layout::rows * step)
        zero_rows<T>(problem, head, group.order, first,
                     min(first + layout::rows, group.counts->tokens));
    if (__any_sync(all, broken != 0)) repair(windows, first_window, step);
  }
};

/// Grid: x the heads of the launch, y the blocks of a head.
template <class T, int D>
__global__ void __launch_bounds__(32 * forward_grid_layout<D>::tiles,
                                  forward_grid_layout<D>::min_blocks)
    attend_grid_kernel(const __grid_constant__ forward_problem problem) {
  wait_for_predecessor();
  extern __shared__ __align__(128) std::byte aligned_memory[];
  int g = 0;
  while (g + 1 < problem.group_count &&
         static_cast<int>(blockIdx.x) >= problem.groups[g + 1].first_index)
    ++g;
  const group_problem& group = problem.groups[g];
  const int group_head = static_cast<int>(blockIdx.x) - group.first_index;
  grid_attender<T, D> attender{problem,
                               group,
                               shared_address(aligned_memory),
                               group.first_head + group_head,
                               group_head,
                               group.quant_length * group.quant_length};
  attender.run(static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y));
}

}  // namespace winnow::detail
