// SPDX-License-Identifier: Apache-2.0
/// \file
/// Gradients of long windows on compute capability 9.0, for 16-bit storage without a position encoding:
/// backward_long.cuh with products by warpgroups (wgmma.cuh).
///
/// What a block computes: one head of 192 (key side: 128) consecutive slots, of which it takes the tiles of 64
/// that lie in long windows (backward_wgmma_tiles.cuh) and leaves the others to backward_long.cuh: dq of these,
/// or dk and dv. Three (two) warpgroups own 64 rows each and walk the other side in tiles of 64; four more
/// warps copy (backward_wgmma_block.cuh). There are as many blocks as multiprocessors, and each takes every
/// n-th item.
///
/// Where things live: S (on the key side its transpose), dP, and the sums in registers, own rows and tiles
/// of the other side in shared memory. P and dS go from registers as left factors into the products with
/// dO and q, or k, whose rows are then the inner index.
///
/// Why this shape: no gradient is summed up by several blocks, which would need an order; S and dP are
/// computed twice instead. A warpgroup queues the products S and dP of a tile behind those with dS of the
/// tile before, and computes dS among its exponentials, which leave room for other instructions. The other
/// warpgroups fill what is left, as nothing but the ring of stages keeps them together. Three of them on the
/// key side have no registers to keep products under way: the compiler counts those that the block starts
/// with. Tiles that some of the rows do not wholly attend to go through a loop of their own, so that no
/// branch is among the others'.
///
/// Order of sums: tiles from the first to the last. Rounding of P and dS, and rows that are not finite: as in
/// backward_tile.cuh.
///
/// Bound: tensor cores, 512 cycles of a multiprocessor for 64 x 64 pairs on the key side at D = 64 and 384 on
/// the query side; exponentials take 256 on either.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/backward_wgmma_block.cuh"

namespace winnow::detail {

/// What the warps that multiply carry from item to item.
template <class Layout>
struct gradient_state {
  ring_place<Layout> ring;
  unsigned items = 0;
};

template <class T, class Layout>
struct wgmma_differentiator : gradient_block<Layout> {
  using block = gradient_block<Layout>;
  using layout = Layout;
  using shared_tile = typename block::tile;
  using block::group, block::problem, block::shared, block::query_side;
  static constexpr int D = layout::head_dim;
  static constexpr int others = layout::others;
  static constexpr int fragments = D / 16;
  static constexpr int steps = others / 16;

  const backward_problem& whole;  ///< for rows that are computed again
  int warp = warp_id();
  int own = __shfl_sync(all_lanes, warp / 4, 0);  ///< the warpgroup
  lane_place place;

  // Of the current item:
  int buffer;
  float factor;        ///< of scores, to logits in base 2
  float raise, lower;  ///< as in backward_tile.cuh
  float row_lse[2],
      row_delta[2];           ///< on the query side: `shift` - LSE in base 2, -delta times `raise`
  float first_sum[D / 8][4];  ///< dq or dk
  float second_sum[query_side ? 1 : D / 8][4];  ///< dv
  /// S, later P, or dP of a tile of the other side.
  using tile_sums = float[others / 8][4];

  __device__ __forceinline__ wgmma_differentiator(const backward_rows& problem_,
                                                  const backward_problem& whole_,
                                                  const group_problem& group_, std::byte* memory_)
      : block(problem_, group_, memory_), whole(whole_), factor(problem_.scale * log2_e) {}

  /// The number of this lane's upper row among the block's.
  [[nodiscard]] __device__ __forceinline__ int row_of_lane() const { return warp * 16 + place.g; }

  /// \param a, b descriptors of this warpgroup's rows and of a tile.
  static __device__ __forceinline__ void multiply_rows(float (&d)[others / 8][4], std::uint32_t a,
                                                       std::uint32_t b) {
    multiply_tiles<T, shared_tile::mode, false>(d, a, b);
#pragma unroll
    for (int j = 1; j < fragments; ++j)
      multiply_tiles<T, shared_tile::mode, true>(d, a + 2 * j, b + 2 * j);
  }
  /// sum += factors · the rows of a tile.
  static __device__ __forceinline__ void add_products(float (&sum)[D / 8][4],
                                                      const std::uint32_t (&factors)[steps][4],
                                                      std::uint32_t b) {
#pragma unroll
    for (int j = 0; j < steps; ++j)
      multiply_tile<T, shared_tile::mode>(sum, factors[j], b + j * layout::row_bytes);
  }

  /// Does the lane's row attend to the slot? Of the tile that begins at slot `base`.
  struct attendance {
    int column[2];
    unsigned length[2];
    [[nodiscard]] __device__ __forceinline__ bool operator()(int n, int i, int c) const {
      return static_cast<unsigned>(column[i] + 8 * n + c) < length[i];
    }
  };
  [[nodiscard]] __device__ __forceinline__ attendance attendance_at(int base) const {
    attendance result{};
    const int2* windows = this->template at<const int2>(layout::windows) + buffer * layout::rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int2 window = windows[row_of_lane() + 8 * i];
      result.column[i] = base + 2 * place.t - window.x;
      result.length[i] = static_cast<unsigned>(window.y - window.x);
    }
    return result;
  }
  [[nodiscard]] __device__ __forceinline__ float2 column_pair(int array, int stage, int n) const {
    return *this->template at<const float2>(array + 4 * (stage * others + 8 * n + 2 * place.t));
  }
  /// \name Blocks of 8 columns, {LSE, ...} or {delta, ...} of whose two columns of this lane is `column`
  /// @{
  /// From scores to P.
  template <bool Masked>
  __device__ __forceinline__ void weigh(float (&s)[4], int n, float2 column,
                                        const attendance& attends) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float logit = fmaf(s[2 * i + c], factor,
                           query_side ? row_lse[i]
                           : c == 0   ? column.x
                                      : column.y);
        if (Masked && !attends(n, i, c)) logit = -INFINITY;
        s[2 * i + c] = exp2_fast(logit);
      }
  }
  /// From P and dP to dS, in two registers of a left factor.
  template <bool Masked>
  __device__ __forceinline__ void differentiate(const float (&p)[4], const float (&dp)[4], int n,
                                                float2 column, const attendance& attends,
                                                std::uint32_t* ds) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float difference[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        difference[c] = fmaf(dp[2 * i + c], raise,
                             query_side ? row_delta[i]
                             : c == 0   ? column.x
                                        : column.y);
        if (Masked && !attends(n, i, c)) difference[c] = 0.0f;
      }
      ds[i] = pack<T>(p[2 * i] * difference[0], p[2 * i + 1] * difference[1]);
    }
  }
  /// @}

  __device__ __forceinline__ void release(int stage) const {
    arrive_warp(block::empty(stage), place.lane);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t tile_at(int array, int stage) const {
    return describe(shared + array) + stage * (layout::tile_bytes / 16);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t own_at(int array) const {
    return describe(shared + array) + (__shfl_sync(all_lanes, buffer, 0) * layout::own_bytes +
                                       own * wgmma_rows * layout::row_bytes) /
                                          16;
  }

  /// Along `count` tiles, the first of which begins at slot `base`.
  template <bool Masked>
  __device__ __forceinline__ void walk(int count, int base, ring_place<layout>& ring) {
    count = __shfl_sync(all_lanes, count, 0);
    if (count <= 0) return;
    constexpr int blocks = others / 8;
    tile_sums s, dp;
    std::uint32_t p[query_side ? 1 : steps][4], ds[steps][4];
    // Descriptors: known to be the same in all lanes, they take few instructions.
    const std::uint32_t own_first = __shfl_sync(all_lanes, own_at(layout::own_first), 0);
    const std::uint32_t own_second = __shfl_sync(all_lanes, own_at(layout::own_second), 0);
    // By way of a shuffle, or the lane would be read anew for each tile, which takes long.
    const int lane = __shfl_sync(all_lanes, place.lane, place.lane);
    int last_stage = 0;
    bool is_there = false;  // the tile
    hold(first_sum);
    if constexpr (!query_side) hold(second_sum);
#pragma unroll 1
    for (int tile = 0; tile < count; ++tile) {
      const int stage = ring.stage;
      const std::uint32_t first = __shfl_sync(all_lanes, tile_at(layout::first_tiles, stage), 0);
      const std::uint32_t second = __shfl_sync(all_lanes, tile_at(layout::second_tiles, stage), 0);
      if (!is_there) wait_for_phase(block::full(stage), ring.parity);
      // Each half of the columns' LSE and delta is read one step before it is needed, the first before the
      // products, whose factors it would wait behind.
      float2 lse[blocks] = {}, delta[blocks] = {};
      const auto read_columns = [&](int array, float2* columns, int half) {
        if constexpr (!query_side)
#pragma unroll
          for (int n = half * blocks / 2; n < (half + 1) * blocks / 2; ++n)
            columns[n] = column_pair(array, stage, n);
      };
      read_columns(layout::column_lse, lse, 0);
      hold(s);
      hold(dp);
      begin_products();
      multiply_rows(s, own_first, first);
      commit_products();
      multiply_rows(dp, own_second, second);
      commit_products();
      // What the next tile begins with.
      ring.step();
      is_there = has_phase_ended(block::full(ring.stage), ring.parity);
      attendance attends{};
      if constexpr (Masked) attends = attendance_at(base);
      wait_for_products<1>();
      hold(s);
      // All products of the tile before are done, too.
      if (tile > 0) arrive_warp(block::empty(last_stage), lane);
      read_columns(layout::column_lse, lse, 1);
      read_columns(layout::column_delta, delta, 0);
#pragma unroll
      for (int n = 0; n < blocks / 2; ++n) weigh<Masked>(s[n], n, lse[n], attends);
      wait_for_products<0>();
      hold(dp);
      read_columns(layout::column_delta, delta, 1);
      const auto differentiate_block = [&](int n) {
        differentiate<Masked>(s[n], dp[n], n, delta[n], attends, &ds[n / 2][n % 2 * 2]);
      };
      // Exponentials leave room for other instructions.
#pragma unroll
      for (int n = 0; n < blocks / 2; ++n) {
        weigh<Masked>(s[n + blocks / 2], n + blocks / 2, lse[n + blocks / 2], attends);
        differentiate_block(n);
      }
      if constexpr (!query_side) {
#pragma unroll
        for (int n = 0; n < blocks; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            p[n / 2][n % 2 * 2 + i] = pack<T>(s[n][2 * i], s[n][2 * i + 1]);
        begin_products();
        add_products(second_sum, p, second);
        commit_products();
      }
#pragma unroll
      for (int n = blocks / 2; n < blocks; ++n) differentiate_block(n);
      begin_products();
      add_products(first_sum, ds, first);
      commit_products();
      base += others;
      last_stage = stage;
    }
    wait_for_products<0>();
    hold(first_sum);
    if constexpr (!query_side) hold(second_sum);
    release(last_stage);
  }
  /// Past tiles that the warpgroup does not need.
  __device__ __forceinline__ void skip(int count, ring_place<layout>& ring) const {
#pragma unroll 1
    for (; count > 0; --count) {
      wait_for_phase(block::full(ring.stage), ring.parity);
      release(ring.stage);
      ring.step();
    }
  }

  /// LSE, delta and the scale of dS of this warp's rows, on the query side; for the key side delta and
  /// magnitudes to memory.
  __device__ __forceinline__ void measure_queries(const gradient_item& item) {
    constexpr int vectors = D / 8;  ///< of a row
    constexpr int passes = 16 * vectors / 32;
    const auto* tokens =
        this->template at<const std::int32_t>(layout::tokens) + buffer * layout::rows + 16 * warp;
    const int vector = place.lane % vectors;
    const bool inside = vector * 8 < problem.head_dim;
    uint4 outs[passes];
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = (32 * pass + place.lane) / vectors;
      outs[pass] = {0, 0, 0, 0};
      if (!layout::holds_out && inside)
        outs[pass] = *reinterpret_cast<const uint4*>(
            row_of<T>(problem.out, tokens[row], item.head) + 8 * vector);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      row_lse[i] = fmaf(this->template at<const float>(
                            layout::own_lse)[buffer * layout::rows + row_of_lane() + 8 * i],
                        -log2_e, wgmma_weight_shift);
    const std::uint32_t rows =
        shared + buffer * layout::own_bytes + own * wgmma_rows * layout::row_bytes;
    float* deltas = this->template at<float>(layout::deltas) + 16 * warp;
    const int first_slot = item.start + 16 * warp;
    unsigned largest = 0;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int row = (32 * pass + place.lane) / vectors;
      const int offset = (warp % 4 * 16 + row) * layout::row_bytes + 16 * vector;
      const std::uint32_t at = rows + shared_tile::place(offset);
      if constexpr (layout::holds_out) outs[pass] = load_shared_vector(at + layout::own_out);
      float dot =
          measure_vectors<T>(load_shared_vector(at + layout::own_second), outs[pass], largest);
#pragma unroll
      for (int step = vectors / 2; step > 0; step /= 2)
        dot += __shfl_xor_sync(all_lanes, dot, step);
      if (vector == 0) {
        deltas[row] = dot;
        problem.delta[item.head * problem.max_tokens + first_slot + row] = dot;
      }
    }
    largest = __reduce_max_sync(all_lanes, largest) >> 23;
    if (place.lane == 0)
      problem.magnitude[item.head * problem.magnitude_stride + first_slot / 16] =
          static_cast<std::uint8_t>(largest);
    raise = wgmma_weight_unit;
    lower = 1.0f;
    if constexpr (std::is_same_v<T, half>) {
      const rounding_scale scale(largest);
      raise = scale.up * wgmma_weight_unit;
      lower = scale.down;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) row_delta[i] = -deltas[place.g + 8 * i] * raise;
    __syncwarp();
  }

  /// Rows of sums that are not finite, as bits.
  [[nodiscard]] __device__ __forceinline__ unsigned broken_rows() const {
    unsigned broken = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float probe = 0.0f;
#pragma unroll
      for (int b = 0; b < D / 8; ++b) {
        probe += (first_sum[b][2 * i] + first_sum[b][2 * i + 1]) * 0.0f;
        if constexpr (!query_side)
          probe += (second_sum[b][2 * i] + second_sum[b][2 * i + 1]) * 0.0f;
      }
      const unsigned lanes = __ballot_sync(all_lanes, !(probe == 0.0f));
      if (lanes == 0) continue;
      for (int g = 0; g < 8; ++g)
        if ((lanes >> (4 * g) & 0xfu) != 0) broken |= 1u << (8 * i + g);
    }
    return broken;
  }
  /// Writes a gradient of this warp's rows, sums times `by`, but for those in `broken`; or adds to it.
  template <bool Adds>
  __device__ __forceinline__ void store(const row_view& view, int head, float by, unsigned broken,
                                        const float (&sum)[D / 8][4]) const {
    const auto* tokens = this->template at<const std::int32_t>(layout::tokens) +
                         buffer * layout::rows + row_of_lane();
    // Neighbouring lanes trade halves, so that a row's stores fill sectors: even lanes take the left
    // one of two blocks, odd lanes the right one.
    const bool odd = (place.t & 1) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      char* row = reinterpret_cast<char*>(gradient_row<T>(view, tokens[8 * i], head)) + 4 * place.t;
      const bool stores = (broken >> (place.g + 8 * i) & 1u) == 0;
#pragma unroll
      for (int pair = 0; pair < fragments; ++pair) {
        std::uint32_t words[2];
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const int n = 2 * pair + b;
          float2 before{0.0f, 0.0f};
          if (Adds && 8 * n < problem.head_dim)
            before = unpack<T>(*reinterpret_cast<const std::uint32_t*>(row + 16 * n));
          words[b] =
              pack<T>(fmaf(sum[n][2 * i], by, before.x), fmaf(sum[n][2 * i + 1], by, before.y));
        }
        const std::uint32_t other = __shfl_xor_sync(all_lanes, odd ? words[0] : words[1], 1);
        const uint2 both = odd ? uint2{other, words[1]} : uint2{words[0], other};
        if (stores && 16 * pair + (odd ? 8 : 0) < problem.head_dim)
          *reinterpret_cast<uint2*>(row + 32 * pair + (odd ? 12 : 0)) = both;
      }
    }
  }
  __device__ __forceinline__ void store(const row_view& view, int head, float by, unsigned broken,
                                        const float (&sum)[D / 8][4]) const {
    if (view.data == nullptr) return;
    if (problem.accumulate)
      store<true>(view, head, by, broken, sum);
    else
      store<false>(view, head, by, broken, sum);
  }
  __device__ __forceinline__ void finish(const gradient_item& item) {
    const unsigned broken = broken_rows();
    store(query_side ? problem.grad_q : problem.grad_k, item.head, problem.scale * lower, broken,
          first_sum);
    if constexpr (!query_side)
      store(problem.grad_v, item.head, wgmma_weight_unit, broken, second_sum);
    for (unsigned left = broken; left != 0; left &= left - 1)
      differentiate_row<T, layout::side>(
          whole, group, item.head, item.start + 16 * warp + __ffs(static_cast<int>(left)) - 1, {});
  }

  __device__ __forceinline__ void run(const gradient_item& item, gradient_state<layout>& state) {
    ring_place<layout>& ring = state.ring;
    buffer = static_cast<int>(state.items++ % 2);
    const int tiles = block::tiles_of(item);
    // With the first tile come the own rows.
    wait_for_phase(block::full(ring.stage), ring.parity);
    if (!item.wants(own)) {
      skip(tiles, ring);
      arrive_warp(block::own_empty(buffer), place.lane);
      return;
    }
    const int2* windows =
        this->template at<const int2>(layout::windows) + buffer * layout::rows + own * wgmma_rows;
    const int2 top = windows[0];
    const int2 bottom = windows[wgmma_rows - 1];
    // All of the warpgroup's rows attend to the tiles [whole_first, whole_last).
    const int first = __shfl_sync(all_lanes, (top.x - item.range_first) / others, 0);
    const int last = __shfl_sync(all_lanes, divide_up(bottom.y - item.range_first, others), 0);
    const int whole_first =
        __shfl_sync(all_lanes, min(divide_up(bottom.x - item.range_first, others), last), 0);
    const int whole_last =
        __shfl_sync(all_lanes, max((top.y - item.range_first) / others, whole_first), 0);
    if constexpr (query_side) {
      measure_queries(item);
    } else {
      const float2 scale = this->template at<const float2>(layout::scales)[buffer];
      raise = scale.x;
      lower = scale.y;
#pragma unroll
      for (auto& part : second_sum)
#pragma unroll
        for (float& x : part) x = 0.0f;
    }
#pragma unroll
    for (auto& part : first_sum)
#pragma unroll
      for (float& x : part) x = 0.0f;
    skip(first, ring);
    const auto base = [&](int tile) { return item.range_first + tile * others; };
#pragma unroll 1
    for (int part = 0; part < 3; ++part) {
      if (part == 1)
        walk<false>(whole_last - whole_first, base(whole_first), ring);
      else
        walk<true>(part == 0 ? whole_first - first : last - whole_last,
                   base(part == 0 ? first : whole_last), ring);
    }
    skip(tiles - last, ring);
    finish(item);
    __syncwarp();
    arrive_warp(block::own_empty(buffer), place.lane);
  }
};

/// One wave of blocks.
template <class T, class Layout>
__global__ void __launch_bounds__(32 * Layout::warps, 1)
    differentiate_long_wgmma_kernel(const __grid_constant__ backward_problem problem,
                                    const __grid_constant__ backward_rows rows) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) std::byte memory[];
  begin_beside(rows.place);
  bool any = false;
  for (int g = 0; g < problem.group_count; ++g)
    any |= problem.groups[g].problem.counts->largest >= wgmma_window;
  if (!any) return end_beside(rows.place, blockIdx.x == 0);
  // The key side reads deltas. The query side would gain little, and a wait at its end costs registers.
  wait_for_predecessor();
  const std::uint32_t shared = shared_address(memory);
  if (threadIdx.x == 0) create_barriers<Layout>(shared, Layout::own_empty);
  __syncthreads();
  const int warpgroup = __shfl_sync(all_lanes, warp_id() / 4, 0);
  if (warpgroup == Layout::groups) {
    give_registers<Layout::copy_registers>();
    gradient_copy_state<Layout> state;
    for_gradient_items<Layout>(problem, memory,
                               [&](const group_problem& group, const gradient_item& item) {
                                 gradient_copies<T, Layout>(rows, group, memory).run(item, state);
                               });
    state.announce_all(shared);
  } else {
    take_registers<Layout::registers>();
    gradient_state<Layout> state;
    for_gradient_items<Layout>(
        problem, memory, [&](const group_problem& group, const gradient_item& item) {
          wgmma_differentiator<T, Layout>(rows, problem, group, memory).run(item, state);
        });
  }
#endif
}

}  // namespace winnow::detail
