// SPDX-License-Identifier: Apache-2.0
/// \file
/// The warps of contextual_ring_kernel.cuh that multiply keys: everything of keys that readers need.
///
/// They take groups of 16 keys in turns. While one multiplies a group with Tk, which it keeps in registers, K and V of its
/// next group are on their way, and the tokens of the one after it. There is room for one group of K and V more than for
/// products.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_heads_products.cuh"
#include "winnow/detail/attention/contextual_ring_copies.cuh"
#include "winnow/detail/attention/contextual_ring_layout.hpp"
#include "winnow/detail/attention/contextual_ring_list.cuh"
#include "winnow/detail/attention/contextual_ring_slots.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/detail/attention/wgmma.cuh"

namespace winnow::detail {

template <class T>
struct contextual_ring_keys : contextual_heads_products<T, true, contextual_ring_layout> {
  using base = contextual_heads_products<T, true, contextual_ring_layout>;
  using base::group;
  using base::keys;
  using base::place;
  using base::problem;
  using base::shared;
  using base::words;
  using typename base::factor;
  using typename base::key_group;
  using typename base::layout;
  using copies = ring_copies<T, layout>;
  static constexpr int heads = layout::heads;
  static constexpr unsigned all = 0xffffffffu;

  int maker;
  const std::int32_t* order = in_registers(base::group().order);
  const T* first_key = in_registers(first_part(problem.k));
  const T* first_value = in_registers(first_part(problem.v));
  std::int32_t key_bytes = token_bytes(problem.k), value_bytes = token_bytes(problem.v);
  /// Half of the lanes load keys' positions, the others their radii.
  const std::uint32_t* own_array = in_registers(
      place.lane < keys ? reinterpret_cast<const std::uint32_t*>(base::group().positions)
                        : reinterpret_cast<const std::uint32_t*>(base::group().radius));
  std::uint32_t own_mark = in_register(place.lane < keys ? position_mark : 0u);
  /// Which of a group's keys is at this lane's place: lanes of a quad have four neighbours each.
  int own_key = in_register(place.lane / 2 % 4 * 4 + place.lane / 8 % 2 * 2 + place.lane % 2);
  /// Selects what a lane stores of its position and its neighbour's, one axis of both; or its radius.
  std::uint32_t own_column = in_register(place.lane >= keys    ? 0x3210u
                                         : place.lane % 2 == 0 ? 0x7430u
                                                               : 0x3175u);

  /// Reads from constant memory each time would wait for it.
  template <class U>
  static __device__ __forceinline__ const U* in_registers(const U* pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
  }
  /// From a token's part of a row to the next one's. A lane's own register, as products with uniform ones need more
  /// instructions.
  static __device__ __forceinline__ std::int32_t token_bytes(const row_view& view) {
    return static_cast<std::int32_t>(
        kept_by_lanes(static_cast<std::uint32_t>(view.token_stride * std::int64_t{sizeof(T)})));
  }
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  // --- Which groups -------------------------------------------------------------------------------

  /// A group and its batch.
  struct group_place {
    int number;     ///< of the group
    int key = 0;    ///< its first one
    int tile = 0;   ///< the first of the list that may be of its batch
    int first = 0;  ///< key of the batch
    int end = 0;    ///< and the slot behind its last one
    int begin = 0;  ///< the batch's first group
  };
  /// Behind the last group, the last one's keys: what follows is not looked at.
  __device__ __forceinline__ void find(group_place& ahead, int tiles) const {
    ahead.key = ahead.first + keys * (ahead.number - ahead.begin);
    if (ahead.key < ahead.end) return;
    // No batch has more tiles than there are readers, and makers pass fewer batches than that.
    const auto* const list = at<const ring_tile>(layout::list);
    const int tile = min(ahead.tile + place.lane, tiles - 1);
    const unsigned found = __ballot_sync(all, list[tile].group <= ahead.number);
    ahead.tile = min(ahead.tile + 31 - __clz(static_cast<int>(found)), tiles - 1);
    const ring_tile own = list[ahead.tile];
    ahead.first = own.first, ahead.end = own.end, ahead.begin = own.group;
    ahead.key = own.first + keys * (ahead.number - own.group);
  }

  // --- What arrives from global memory ------------------------------------------------------------

  /// Not negative, as divisions shall know.
  __device__ __forceinline__ unsigned own_lane() const { return static_cast<unsigned>(place.lane); }
  /// Of key lane % 16 of a group: its token, and its position or radius.
  struct key_tokens {
    std::int32_t token;
    std::uint32_t place;
  };
  /// Behind the last key are copies of it, which nobody looks at.
  __device__ __forceinline__ key_tokens load_tokens(const group_place& ahead) const {
    const auto key = static_cast<std::uint32_t>(min(ahead.key + own_key, ahead.end - 1));
    return {__ldg(order + key), __ldg(own_array + key)};
  }
  __device__ __forceinline__ const T* first_part(const row_view& view) const {
    return copies::first_part(view, group().first_head + this->group_head, own_lane());
  }
  __device__ __forceinline__ std::uint32_t address(int offset) const {
    return shared + static_cast<std::uint32_t>(offset);
  }
  /// Asks for K and V of a group, and stores positions and radii.
  __device__ __forceinline__ void request_keys(const key_tokens& own, int slot) const {
    const std::uint32_t target =
        address(layout::tiles_at(slot) + copies::target(own_lane(), 2 * layout::tile_bytes));
    // Addresses of all copies first: one that overwrites an earlier one's waits until that has been read.
    const T* sources[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t token = __shfl_sync(all, own.token, copies::token(own_lane()) + 8 * i);
      sources[2 * i] = copies::token_part(first_key, token, key_bytes);
      sources[2 * i + 1] = copies::token_part(first_value, token, value_bytes);
    }
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;\n"
        "cp.async.cg.shared.global [%0 + %5], [%2], 16;\n"
        "cp.async.cg.shared.global [%0 + %6], [%3], 16;\n"
        "cp.async.cg.shared.global [%0 + %7], [%4], 16;\n" ::"r"(target),
        "l"(sources[0]), "l"(sources[1]), "l"(sources[2]), "l"(sources[3]), "n"(layout::tile_bytes),
        "n"(8 * layout::row_bytes), "n"(layout::tile_bytes + 8 * layout::row_bytes)
        : "memory");
    const std::uint32_t marked = own.place | own_mark;
    const std::uint32_t neighbour = __shfl_xor_sync(all, marked, 1);
    if (place.lane < keys)
      at<uint2>(slot + layout::key_code)[place.lane] = {marked_pair(marked, marked, 0),
                                                        marked_pair(marked, marked, 1)};
    static_assert(layout::axes == 2 && layout::key_radius == layout::key_columns + 4 * keys);
    at<std::uint32_t>(slot + layout::key_columns)[place.lane] =
        permute(marked, neighbour, own_column);
    commit_copies();
  }

  // --- Products -----------------------------------------------------------------------------------

  /// Says that a group is there.
  __device__ __forceinline__ void announce(int number, int slot) const {
    __syncwarp();
    arrive_warp(address(slot + layout::full), place.lane);
    if (!passes_all_groups && place.lane == 0)
      store_number(address(layout::made + 4 * maker), number + 1);
  }
  /// Waits until nobody needs what is in a group's slot, and in the one of K and V of this warp's next group.
  __device__ __forceinline__ void await_room(int number) const {
    constexpr int of_keys = layout::key_slots - layout::makers;
    if constexpr (passes_all_groups) {
      const auto await_end = [&](int group) {
        const ring_slots<layout> slots(group);
        if (group >= 0) wait_for_phase(address(slots.products + layout::empty), slots.parity);
      };
      await_end(number - layout::slots);
      await_end(number - of_keys);
    } else {
      constexpr int behind = layout::slots < of_keys ? layout::slots : of_keys;
      const std::uint32_t own = address(layout::needed + 4 * min(place.lane, layout::readers - 1));
      while (__reduce_min_sync(all, load_acquire(own)) <= number - behind) __nanosleep(40);
    }
  }
  /// An axis of Tk of both heads, as a lane's factors.
  struct axis_factors {
    typename factor::element blocks[heads][axis_blocks];
  };
  __device__ __forceinline__ axis_factors load_factors(const factor (&tables)[heads],
                                                       int axis) const {
    axis_factors own;
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int block = 0; block < axis_blocks; block += 2) {
        const auto* first = tables[h].staged + factor::element_at(axis * axis_blocks + block, 0);
        if constexpr (factor::paired) {
          const auto* both = reinterpret_cast<const uint4*>(first);
          own.blocks[h][block] = {both->x, both->y};
          own.blocks[h][block + 1] = {both->z, both->w};
        } else {
          own.blocks[h][block] = first[0], own.blocks[h][block + 1] = first[32];
        }
      }
    return own;
  }
  /// Of keys g and g + 8, a pair of table rows for each block.
  using rows_of_axis = std::uint32_t[heads][2][axis_blocks];
  static __device__ __forceinline__ void multiply_group(const key_group& own,
                                                        const axis_factors& factors,
                                                        rows_of_axis& by_row) {
#pragma unroll
    for (int block = 0; block < axis_blocks; ++block)
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        const auto& right = factors.blocks[h][block];
        std::uint32_t sums[2];
        if constexpr (std::is_same_v<T, half>) {
          multiply_half(sums, own.left[h].a[0], right.x, right.y);
        } else {
          float product[4];
          multiply_16<T>(product, own.left[h].a[0], right.x, right.y);
          sums[0] = pack<half>(product[0], product[1]),
          sums[1] = pack<half>(product[2], product[3]);
        }
        by_row[h][0][block] = sums[0], by_row[h][1][block] = sums[1];
      }
  }
  /// Products with Tk of the keys in a slot. \param kept Tk: it is read from shared memory once, whose bandwidth is what
  /// bounds the kernel. \param keys_slot where K is.
  __device__ __forceinline__ void multiply_slot(const axis_factors (&kept)[layout::axes + 1],
                                                int slot, int keys_slot, int length) const {
    const key_group own = this->load_group(keys_slot);
    rows_of_axis by_row;
    multiply_group(own, kept[layout::axes], by_row);
    this->store_radials(by_row, at<std::byte>(layout::products_at(slot)) + layout::key_row(place.g),
                        layout::key_row(8));
    const std::uint32_t most = moves_of(0, length, place.t);
    auto* target = reinterpret_cast<uint4*>(const_cast<std::byte*>(this->cells_of_lane(slot)));
    std::uint32_t cells[heads][2][words];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis) {
      multiply_group(own, kept[axis], by_row);
#pragma unroll
      for (int h = 0; h < heads; ++h) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::uint32_t moved[cell_words];
          row_shift{most - (axis == 0 ? own.pairs[i].x : own.pairs[i].y)}.to_cells(by_row[h][i],
                                                                                   moved, place.t);
#pragma unroll
          for (int word = 0; word < cell_words; ++word)
            cells[h][i][axis * cell_words + word] = moved[word];
        }
#pragma unroll
        for (int word = 0; word < words; word += 2)
          if ((word + 1) / cell_words == axis)  // of two axes: now both are there
            target[(h * layout::product_pairs + word / 2) * 32] = {
                cells[h][0][word], cells[h][0][word + 1], cells[h][1][word], cells[h][1][word + 1]};
      }
    }
    if (__any_sync(all, have_large(own))) {
#pragma unroll
      for (int h = 0; h < heads; ++h)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (base::has_large(own.left[h], i))
            reinterpret_cast<std::uint32_t*>(target + h * layout::product_pairs * 32)[2 * i] =
                nan_halves;
    }
  }
  /// Is an element of this lane's too large for products in half?
  static __device__ __forceinline__ bool have_large(const key_group& own) {
    using pair = std::conditional_t<std::is_same_v<T, half>, half2, __nv_bfloat162>;
    static_assert(heads == 2);
    std::uint32_t largest[2];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      const auto magnitude = [&](int i) {
        return __habs2(*reinterpret_cast<const pair*>(&own.left[h].a[0][i]));
      };
      const pair of_head =
          __hmax2(__hmax2(magnitude(0), magnitude(1)), __hmax2(magnitude(2), magnitude(3)));
      largest[h] = *reinterpret_cast<const std::uint32_t*>(&of_head);
    }
    return is_large<T>(largest[0], largest[1]);
  }
  /// A turn's groups.
  __device__ __forceinline__ void run(const ring_turn& turn) const {
    const int length = group().quant_length;
    ring_slots<layout> slots(maker);
    group_place ahead{maker};
    find(ahead, turn.tiles);
    request_keys(load_tokens(ahead), slots.keys);
    ahead.number += layout::makers;
    find(ahead, turn.tiles);
    key_tokens own = load_tokens(ahead);
    const factor tables[heads] = {this->factor_of_head(group().table_k, 1, 0),
                                  this->factor_of_head(group().table_k, 1, 1)};
    axis_factors kept[layout::axes + 1];
#pragma unroll
    for (int axis = 0; axis <= layout::axes; ++axis) kept[axis] = load_factors(tables, axis);
#pragma unroll 1
    for (int number = maker; number < turn.groups; number += layout::makers) {
      await_room(number);
      wait_for_copies<0>();
      __syncwarp();  // K and V are there
      // Those of the next group arrive meanwhile.
      request_keys(own, slots.keys_ahead(layout::makers));
      ahead.number += layout::makers;
      find(ahead, turn.tiles);
      own = load_tokens(ahead);
      multiply_slot(kept, slots.products, slots.keys, length);
      announce(number, slots.products);
      slots.step(layout::makers);
    }
    wait_for_copies<0>();
  }
};

}  // namespace winnow::detail
