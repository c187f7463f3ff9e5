// SPDX-License-Identifier: Apache-2.0
/// \file
/// The forward kernel of long windows on compute capability 9.0, for 16-bit storage without a position
/// encoding: forward_long.cuh with products by warpgroups (wgmma.cuh).
///
/// What a block computes: up to four heads, one after the other, of 256 consecutive slots, of which it
/// takes those tiles of 128 that forward_long.cuh would. Four warpgroups own 64 rows each and walk the
/// keys of their windows in tiles of 64; four more warps copy (forward_wgmma_block.cuh). There are as many
/// blocks as multiprocessors, and each takes every n-th item.
///
/// Where things live: scores, weights and the sums in registers; q, K and V in shared memory, since a
/// warpgroup's products read their right factor, and the scores' left one, from there.
///
/// Why this shape: products of the next tile's scores follow those with this tile's values, and the
/// warpgroup waits for both before it weighs, so that nothing is under way during a branch, which would make
/// the compiler wait for every product. The other warpgroups weigh meanwhile, as nothing but the ring of
/// stages keeps them together. Those of 64 rows have registers for four of them, and 256 rows a block
/// halve the traffic from L2, which would bound 128.
///
/// The softmax: weights count relative to a maximum that trails the true one, as in softmax.cuh. Whether
/// it does is seen from sums of a row's 16 weights in a lane: beyond 2^9 one of them is beyond 2^5, and the
/// tile's weights are computed again. The first maximum is that of the first tile; a row that has met no
/// key by then has such an offset that its first key gives an infinite weight.
///
/// Bound: exponentials (256 cycles of a multiprocessor for 64 x 64 pairs), at D = 64 tensor cores as well.
///
/// Rows that come out non-finite are computed again by exact_row.cuh: see forward_kernel.cuh.
#pragma once

#include <cfloat>
#include <cstdint>

#include "winnow/detail/attention/exact_row.cuh"
#include "winnow/detail/attention/forward_wgmma_block.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

/// What the warps that multiply carry from item to item.
template <class Layout>
struct multiply_state {
  stage_cursor<Layout> cursor;
  int query_buffer = 0;
};

/// Of a warp's current item.
struct seldom_asked {
  int range_first;             ///< of the windows' slots
  int tiles;                   ///< of keys
  int first_needed;            ///< of these tiles, that the warpgroup's rows need
  int first_whole, end_whole;  ///< those that all of the warp's rows attend to
  int first_row;               ///< the slot of the warp's
  int first_head, heads;
};

template <class T, class Layout>
struct wgmma_attention : wgmma_block<Layout> {
  using block = wgmma_block<Layout>;
  using layout = Layout;
  using shared_tile = typename block::tile;
  using block::group, block::problem, block::shared;
  static constexpr int D = layout::head_dim;
  static constexpr int keys = layout::keys;
  static constexpr int fragments = D / 16;
  static constexpr int steps = keys / 16;
  static constexpr float most_sum = 512.0f;

  int warp = warp_id();
  lane_place place;

  // Of the current head:
  float factor;     ///< of scores, to logits in base 2
  float offset[2];  ///< what is added to logits: minus the maximum
  float o[D / 8][4];
  float sum[2];
  // Of the current tile of keys:
  float s[keys / 8][4];
  std::uint32_t p[steps][4];

  __device__ __forceinline__ wgmma_attention(const forward_problem& problem_,
                                             const group_problem& group_, std::byte* memory_)
      : block(problem_, group_, memory_), factor(problem_.scale * log2_e) {}

  /// \param a, b descriptors of this warpgroup's rows of q and of a tile of K.
  __device__ __forceinline__ void multiply_keys(std::uint32_t a, std::uint32_t b) {
    multiply_tiles<T, shared_tile::mode, false>(s, a, b);
#pragma unroll
    for (int j = 1; j < fragments; ++j)
      multiply_tiles<T, shared_tile::mode, true>(s, a + 2 * j, b + 2 * j);
  }
  /// \param b descriptor of a tile of V.
  __device__ __forceinline__ void multiply_values(std::uint32_t b) {
#pragma unroll
    for (int j = 0; j < steps; ++j)
      multiply_tile<T, shared_tile::mode>(o, p[j], b + j * layout::row_bytes);
  }

  __device__ __forceinline__ float largest_logit(int i) const {
    float most = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
    for (int n = 1; n < keys / 8; ++n) most = fmaxf(most, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
    return factor * quad_max(most);
  }
  /// Scores from slot `base` on of keys outside of a row's window become -infinity.
  __device__ __forceinline__ void mask(int base) {
    const int2* windows = this->template at<const int2>(layout::windows) + warp * 16 + place.g;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int2 window = windows[8 * i];
      const int column = base + 2 * place.t - window.x;
      const unsigned length = static_cast<unsigned>(window.y - window.x);
#pragma unroll
      for (int n = 0; n < keys / 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (static_cast<unsigned>(column + 8 * n + c) >= length) s[n][2 * i + c] = -INFINITY;
    }
  }
  /// From scores to weights. \param added their sums, of this lane's rows.
  __device__ __forceinline__ void weigh(float (&added)[2]) {
    float part[2][2] = {};
#pragma unroll
    for (int n = 0; n < keys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = exp2_fast(fmaf(s[n][2 * i], factor, offset[i]));
        const float y = exp2_fast(fmaf(s[n][2 * i + 1], factor, offset[i]));
        part[i][0] += x;
        part[i][1] += y;
        p[n / 2][n % 2 * 2 + i] = pack<T>(x, y);
      }
#pragma unroll
    for (int i = 0; i < 2; ++i) added[i] = part[i][0] + part[i][1];
  }
  /// The head's first scores give its maximum.
  __device__ __forceinline__ void begin_head() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float logit = largest_logit(i);
      offset[i] = logit > -INFINITY ? -logit : FLT_MAX;
      sum[i] = 0.0f;
    }
#pragma unroll
    for (auto& part : o)
#pragma unroll
      for (float& x : part) x = 0.0f;
  }
  /// Raises the maximum of the rows that need it.
  __device__ __forceinline__ void raise() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float logit = largest_logit(i);
      float by = 1.0f;
      if (logit + offset[i] > 1.0f) {
        by = exp2_fast(-logit - offset[i]);
        offset[i] = -logit;
      }
      sum[i] *= by;
#pragma unroll
      for (auto& part : o) {
        part[2 * i] *= by;
        part[2 * i + 1] *= by;
      }
    }
  }
  __device__ __forceinline__ void weigh_tile() {
    float added[2];
    weigh(added);
    if (__any_sync(all_lanes, added[0] > most_sum || added[1] > most_sum)) {
      raise();
      weigh(added);
    }
    sum[0] += added[0];
    sum[1] += added[1];
  }

  /// Stores the warp's rows, and notes which are not finite. \return are there any?
  __device__ __forceinline__ bool finish_head(int h, int head) {
    const auto* tokens =
        this->template at<const std::int32_t>(layout::tokens) + warp * 16 + place.g;
    // Neighbouring lanes trade halves, so that a row's stores fill sectors: even lanes take the left
    // one of two blocks, odd lanes the right one.
    const bool odd = (place.t & 1) != 0;
    const packed_view& out = problem.packed[3];
    char* base = out.data + std::int64_t{head} * out.head_bytes + 4 * place.t + (odd ? 12 : 0);
    float zero[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(all_lanes, sum[i], 1);
      sum[i] += __shfl_xor_sync(all_lanes, sum[i], 2);
      const float inverse = reciprocal(sum[i]);
      const std::int32_t token = tokens[8 * i];
      char* row = advance(base, token, out.token_bytes);
#pragma unroll
      for (int pair = 0; pair < fragments; ++pair) {
        std::uint32_t words[2];
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const float x = o[2 * pair + b][2 * i] * inverse;
          const float y = o[2 * pair + b][2 * i + 1] * inverse;
          zero[i] = fmaf(x, 0.0f, fmaf(y, 0.0f, zero[i]));
          words[b] = pack<T>(x, y);
        }
        const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? words[0] : words[1], 1);
        const uint2 both = odd ? uint2{other, words[1]} : uint2{words[0], other};
        if (16 * pair + (odd ? 8 : 0) < problem.head_dim)
          *reinterpret_cast<uint2*>(row + 32 * pair) = both;
      }
      if (problem.lse != nullptr && place.t == 0)
        problem.lse[token * problem.lse_token_stride + head * problem.lse_head_stride] =
            (log2f(sum[i]) - offset[i]) * ln_2;
    }
    unsigned broken = 0;
    if (__any_sync(all_lanes, !(zero[0] + zero[1] == 0.0f)))
      for (int i = 0; i < 2; ++i) {
        const unsigned lanes = __ballot_sync(all_lanes, !(zero[i] == 0.0f));
        for (int g = 0; g < 8; ++g)
          if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (8 * i + g);
      }
    if (place.lane == 0)
      this->template at<unsigned>(layout::broken)[h * layout::warps + warp] = broken;
    __syncwarp();
    return broken != 0;
  }

  __device__ __forceinline__ void release(int stage) const {
    arrive_warp(block::empty(stage), place.lane);
  }

  __device__ __forceinline__ void run(const wgmma_item& item, multiply_state<layout>& state) {
    const int tiles = block::tiles_of(item);
    const int own = warp / 4;
    const int first_row = item.start + warp * 16;
    // The tiles that this warpgroup's rows need, and those that need neither a mask nor a beginning.
    int first_needed = 0;
    int end_needed = 0;
    int first_whole = 0;
    int end_whole = 0;
    if ((item.wanted >> (own * layout::group_rows / long_tile) & 1) != 0) {
      const auto* bounds = reinterpret_cast<const int2*>(group.bounds);
      const int top = item.start + own * layout::group_rows;
      const int upper = bounds[top].x - item.range_first;
      const int lower = bounds[top + layout::group_rows - 1].y - item.range_first;
      const int2 window = bounds[first_row + place.lane % 16];
      const std::int32_t token = group.order[first_row + place.lane % 16];
      first_needed = __shfl_sync(all_lanes, upper / keys, 0);
      end_needed = __shfl_sync(all_lanes, divide_up(lower, keys), 0);
      const int common_first = __shfl_sync(all_lanes, window.x, 15) - item.range_first;
      const int common_last = __shfl_sync(all_lanes, window.y, 0) - item.range_first;
      first_whole = divide_up(common_first, keys);
      end_whole = common_last / keys;
      if (place.lane < 16) {
        this->template at<int2>(layout::windows)[warp * 16 + place.lane] = window;
        this->template at<std::int32_t>(layout::tokens)[warp * 16 + place.lane] = token;
      }
      __syncwarp();
    }
    const int first_plain = max(first_whole, first_needed + 1);
    const unsigned plain = static_cast<unsigned>(max(end_whole - first_plain, 0));
    // Registers are for the tiles' loop; what it seldom asks for is in shared memory.
    __syncwarp();
    auto& seldom =
        *this->template at<volatile seldom_asked>(layout::records + warp * layout::record_bytes);
    seldom.range_first = item.range_first;
    seldom.tiles = tiles;
    seldom.first_needed = first_needed;
    seldom.first_whole = first_whole;
    seldom.end_whole = end_whole;
    seldom.first_row = first_row;
    seldom.first_head = item.first_head;
    seldom.heads = item.heads;
    __syncwarp();
    stage_cursor<layout>& cursor = state.cursor;
    // Descriptors.
    const auto query_rows = [&] {
      return describe(shared + layout::query + own * layout::group_rows * layout::row_bytes +
                      state.query_buffer * layout::query_bytes);
    };
    const auto key_tile = [&](int stage) {
      return describe(shared + layout::key_tiles) + stage * (layout::tile_bytes / 16);
    };
    const auto value_tile = [&](int stage) {
      return describe(shared + layout::value_tiles) + stage * (layout::tile_bytes / 16);
    };
    std::uint32_t queries = query_rows();
    const auto await_tile = [&] { wait_for_phase(block::full(cursor.stage()), cursor.parity()); };
    int tile = 0;
    int h = 0;
    const auto next_head = [&] {
      arrive_warp(block::query_empty(state.query_buffer), place.lane);
      tile = 0;
      ++h;
      state.query_buffer ^= 1;
      queries = query_rows();
    };
    bool any_broken = false;
    while (h < seldom.heads) {
      await_tile();
      if (tile < seldom.first_needed || tile >= end_needed) {
        release(cursor.stage());
        cursor.step();
        if (++tile == seldom.tiles) next_head();
        continue;
      }
      hold(s);
      begin_products();
      multiply_keys(queries, key_tile(cursor.stage()));
      commit_products();
      wait_for_products<0>();
      hold(s);
      for (bool goes_on = true; goes_on;) {
        if (static_cast<unsigned>(tile - first_plain) >= plain) {
          if (tile < seldom.first_whole || tile >= seldom.end_whole)
            mask(seldom.range_first + tile * keys);
          if (tile == seldom.first_needed) begin_head();
        }
        weigh_tile();
        const int stage = cursor.stage();
        cursor.step();
        const bool is_last = ++tile == end_needed;
        if (is_last) {
          goes_on = seldom.first_needed == 0 && end_needed == seldom.tiles && h + 1 < seldom.heads;
          if (tile == seldom.tiles) next_head();
        }
        if (goes_on) await_tile();
        hold(s);
        hold(o);
        begin_products();
        multiply_values(value_tile(stage));
        // Without another tile, scores that nobody looks at.
        multiply_keys(queries, key_tile(goes_on ? cursor.stage() : stage));
        commit_products();
        wait_for_products<0>();
        hold(s);
        hold(o);
        release(stage);
        if (is_last) {
          const int done = h - (tile == 0 ? 1 : 0);
          any_broken |= finish_head(done, seldom.first_head + done);
        }
      }
    }
    if (!any_broken) return;
    for (h = 0; h < seldom.heads; ++h)
      for (unsigned left =
               this->template at<const unsigned>(layout::broken)[h * layout::warps + warp];
           left != 0; left &= left - 1)
        attend_row<T>(problem, group, seldom.first_head + h,
                      seldom.first_row + __ffs(static_cast<int>(left)) - 1);
  }
};

/// One wave of blocks; forward_long_items.cuh says what they take.
template <class T, class Layout>
__global__ void __launch_bounds__(32 * Layout::warps, Layout::min_blocks)
    attend_long_wgmma_kernel(const __grid_constant__ forward_problem problem, std::int64_t tiles,
                             int columns) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) std::byte memory[];
  begin_beside(problem.place);
  if (!has_long_windows<Layout>(problem)) return end_beside(problem.place, blockIdx.x == 0);
  const std::uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) create_barriers<Layout>(shared, Layout::query_empty);
  __syncthreads();
  using attention = wgmma_attention<T, Layout>;
  const int warpgroup = __shfl_sync(all_lanes, warp_id() / 4, 0);
  if (warpgroup == Layout::groups) {
    give_registers<Layout::copy_registers>();
    copy_state<Layout> state;
    for_items<Layout>(problem, tiles, columns, memory,
                      [&](const group_problem& group, const wgmma_item& item) {
                        wgmma_copies<Layout>(problem, group, memory).run(item, state);
                      });
    state.announce_all(shared);
  } else {
    take_registers<Layout::registers>();
    multiply_state<Layout> state;
    for_items<Layout>(problem, tiles, columns, memory,
                      [&](const group_problem& group, const wgmma_item& item) {
                        attention(problem, group, memory).run(item, state);
                      });
  }
  end_beside(problem.place, blockIdx.x == 0);
#endif
}

}  // namespace winnow::detail
