// SPDX-License-Identifier: Apache-2.0
/// \file
/// What a block of backward_contextual_window.cuh has: places in shared memory, the tables there, and its
/// parts of their gradients.
#pragma once

#include <cstdint>
#include <cstring>

#include "winnow/detail/attention/backward_contextual_layout.hpp"
#include "winnow/detail/attention/backward_rounding.cuh"
#include "winnow/detail/attention/backward_row.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

template <class T, bool Radial, bool Long>
struct contextual_window_block {
  using layout = contextual_window_layout<Radial, Long>;
  static constexpr int tiles = layout::tiles;
  static constexpr int threads = 32 * tiles;
  static constexpr int words = layout::cell_axes * cell_words;  ///< of a lane for a row of cells
  static constexpr int width = 8;                               ///< elements of a vector
  static constexpr unsigned all_lanes = 0xffffffffu;
  /// P times 2^this is rounded: P of rare keys is below half's normal numbers.
  static constexpr float weight_shift = 10.0f;
  static constexpr float weight_unit = 0x1p-10f;
  /// Fixed point of radial sums. P times 2^10 is at most 2^10, and so are a row's sums, about: 23 bits have
  /// room for them.
  static constexpr float weight_points = 0x1p12f;
  static constexpr float weight_base = 0x1p23f;
  static constexpr int weight_mask = 0x7fffff;
  /// Of long windows in 16 bits: sums are at most 2^15, about.
  static constexpr unsigned short_weight_points = 1u << 5;
  /// That of dS is as in backward_contextual_tables.cuh.
  static constexpr float gradient_points = 0x1p17f;
  static constexpr float largest_sum = 0x1p13f;
  enum { queries, keys, grads };

  const backward_rows& problem;
  const backward_problem& whole;  ///< for rows that are computed again
  const backward_group& entry;
  const group_problem& group;
  std::byte* memory;
  int group_index;
  int group_head;
  int part;  ///< the block's number among those of its head
  int head = group.first_head + group_head;
  int length = group.quant_length;
  int table_rows = 2 * length - (Radial ? 0 : 1);
  int assigned = group.counts->assigned;
  const std::int32_t* order = group.order;
  const int2* bounds = reinterpret_cast<const int2*>(group.bounds);
  int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0);
  lane_place place;
  /// Where this lane's rows of 32 bytes begin for `ldmatrix`: of left factors and transposed right ones,
  /// and of right ones.
  int left_offset =
      place.lane % 16 * layout::row_bytes + (place.lane / 16 ^ (place.lane >> 2 & 1)) * 16;
  int right_offset = (place.lane / 16 * 8 + place.lane % 8) * layout::row_bytes +
                     ((place.lane >> 3 & 1) ^ (place.lane >> 2 & 1)) * 16;
  /// The same of rows of cells, two words at a time, and of what lies with them.
  int turned_cells = place.lane % 16 * layout::cell_bytes + place.lane / 16 * 16;
  int right_cells =
      (place.lane / 16 * 8 + place.lane % 8) * layout::cell_bytes + (place.lane >> 3 & 1) * 16;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  /// The block's scale of rounding, once all warps know their magnitudes.
  [[nodiscard]] __device__ __forceinline__ rounding_scale scale_of_block() const {
    unsigned largest = 0;
#pragma unroll
    for (int tile = 0; tile < tiles; tile += 4) {
      const uint4 four = at<uint4>(layout::magnitudes)[tile / 4];
      largest = max(largest, max(max(four.x, four.y), max(four.z, four.w)));
    }
    return rounding_scale(largest);
  }
  /// All warps meet, those with and without rows, or the one that plans, in different places of the code: not
  /// `bar.sync`, which promises that it is one.
  static __device__ __forceinline__ void meet() {
    asm volatile("barrier.sync 0;" ::: "memory");
  }
  static __device__ __forceinline__ void scale_sum(float (&sum)[2][4], float by) {
#pragma unroll
    for (auto& block : sum)
#pragma unroll
      for (float& x : block) x *= by;
  }
  /// Of q, k or dO.
  __device__ __forceinline__ std::byte* rows_of_tile(int which, int tile) const {
    if (layout::keys_together && which == keys) return region(tile) + layout::k;
    const int number = layout::keys_together ? which / 2 : which;
    return memory + layout::rows + (number * tiles + tile) * layout::tile_bytes;
  }
  /// From a tile's rows to the next one's.
  static __device__ __forceinline__ constexpr int tile_pitch(int which) {
    return layout::keys_together && which == keys ? layout::region_bytes : layout::tile_bytes;
  }
  /// For `ldmatrix` of k.
  [[nodiscard]] __device__ __forceinline__ int left_of_keys() const {
    return layout::keys_together ? turned_cells : left_offset;
  }
  /// Everything else of a tile.
  __device__ __forceinline__ std::byte* region(int tile) const {
    return memory + layout::regions + tile * layout::region_bytes;
  }
  /// A row of this head. One pass asks for views whose rows start on 16 bytes and whose steps fit 32 bits in bytes.
  [[nodiscard]] __device__ __forceinline__ T* row_of_head(const row_view& view, int token) const {
    const auto step = static_cast<std::int32_t>(view.token_stride) * static_cast<int>(sizeof(T));
    const T* first = static_cast<const T*>(view.data) + head * view.head_stride;
    return reinterpret_cast<T*>(
        const_cast<char*>(reinterpret_cast<const char*>(first) + std::int64_t{step} * token));
  }
  static constexpr int of_queries = 0, of_keys = 1, of_values = 2;
  __device__ __forceinline__ std::byte* table(int which) const {
    return memory + layout::tables + which * layout::table_bytes;
  }
  /// The sums by table row of dTq, dTv and dTk, of a tile.
  __device__ __forceinline__ std::byte* sums(int tile, int which) const {
    return region(tile) + (which == 2 ? layout::sums_of_keys : which * layout::sums_bytes);
  }
  static __device__ __forceinline__ bool linear(int axis) {
    return axis < layout::cell_axes;
  }

  // --- Tables ----------------------------------------------------------------------------------

  /// Table row of `place_of` an axis in shared memory: linear axes in the order of row_shift, and
  /// backwards in Tq and Tv, so that cells ascend with rows. The radial axis has that order in long windows.
  [[nodiscard]] __device__ __forceinline__ int row_at(int which, int axis, int place_of) const {
    const int row = (place_of & ~7) + spread(place_of & 7);
    if (!linear(axis)) return layout::by_radial_row ? row : place_of;
    return which == of_keys ? row : 2 * (length - 1) - row;
  }
  /// Tables that need no conversion arrive later: `await_tables`. By threads from `Idle` on.
  template <int Idle>
  __device__ __forceinline__ void stage_table(int which, const table_view& view) const {
    const bool copies = view.data != nullptr && view.vectors && !view.is_float;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) - Idle; i < 3 * tile_rows * 2; i += threads - Idle) {
      const int position = i / 2;
      const int d = i % 2 * width;
      const int axis = position / tile_rows;
      const int row = row_at(which, axis, position % tile_rows);
      const bool there = row >= 0 && row < table_rows && d < problem.head_dim;
      const std::int64_t offset = there ? row * view.row_stride + axis * view.axis_stride +
                                              group_head * view.head_stride + d
                                        : 0;
      std::byte* target =
          table(which) + position * layout::row_bytes + ((i % 2) ^ (position >> 2 & 1)) * 16;
      if (copies) {
        copy_async(target, static_cast<const T*>(view.data) + offset, there);
        continue;
      }
      uint4 bits = {0, 0, 0, 0};
      if (view.data != nullptr && there) bits = load_table_vector<T>(view, offset);
      *reinterpret_cast<uint4*>(target) = bits;
    }
  }

  /// Sums of dTq, dTv and dTk come in blocks of 16 table rows, three an axis. A warp adds up
  /// the same ones in all turns. Of short windows the last warp plans turns meanwhile.
  static constexpr bool plans_meanwhile = !Long;
  static constexpr int part_warps = plans_meanwhile ? tiles - 1 : tiles;
  static constexpr int axis_blocks = tile_rows / 16;
  static constexpr int blocks = 3 * axis_blocks;
  [[nodiscard]] __device__ __forceinline__ int first_block(int which) const {
    return (warp + which) % part_warps;
  }
  /// Of which row of its block's 16 row g of a product is the sum; that of row g + 8 is `rows_between` on.
  [[nodiscard]] __device__ __forceinline__ int row_of_product(bool by_cell) const {
    const int g = place.g;
    return 8 * (g >> 1 & 1) + (by_cell ? 4 * (g & 1) + (g >> 2) : 2 * (g >> 2) + (g & 1));
  }
  static __device__ __forceinline__ int rows_between(bool by_cell) {
    return by_cell ? 2 : 4;
  }
  /// A part has padded rows, ascending by cell as the sums do.
  static constexpr int part_width = 16;
  static constexpr int part_size = 3 * tile_rows * part_width;
  __device__ __forceinline__ float* part_of(int which) const {
    float* base = which == 0   ? entry.parts.table_q
                  : which == 1 ? entry.parts.table_v
                               : entry.parts.table_k;
    if (base == nullptr) return nullptr;
    // All parts of a launch together take at most `table_parts_limit`.
    const int first = Long ? problem.short_parts : 0;
    return base + (group_head * problem.parts_per_head + first + part) * part_size;
  }
  /// \tparam Idle threads that do something else.
  template <int Idle = 0>
  __device__ __forceinline__ void begin_block() const {
    const int thread = static_cast<int>(threadIdx.x) - Idle;
    if (thread < 0) return;
    // Of tiles that there are not, too.
    if (thread < 16) at<unsigned>(layout::magnitudes)[thread] = 0;
    stage_table<Idle>(of_queries, group.table_q);
    stage_table<Idle>(of_keys, group.table_k);
    stage_table<Idle>(of_values, group.table_v);
    commit_copies();
    clear_parts<Idle>();
  }
  /// Before the barrier behind which tables are there.
  static __device__ __forceinline__ void await_tables() {
    wait_for_copies<0>();
  }
  template <int Idle = 0>
  __device__ __forceinline__ void clear_parts() const {
    for (int which = 0; which < 3; ++which) {
      float* target = part_of(which);
      if (target == nullptr) continue;
      for (int i = static_cast<int>(threadIdx.x) - Idle; i < part_size / 4; i += threads - Idle)
        reinterpret_cast<float4*>(target)[i] = {0.0f, 0.0f, 0.0f, 0.0f};
    }
  }
};

}  // namespace winnow::detail
