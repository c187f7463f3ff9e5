// SPDX-License-Identifier: Apache-2.0
/// \file
/// The warps of contextual_ring_kernel.cuh that multiply keys: everything of keys that a team's readers need.
///
/// A warp goes from pass to pass of its team, in a pass from one group of 16 keys to the next one. While it multiplies
/// a group with Tk, K and V of the next one are on their way, and the tokens of the one after it. There is room for one
/// group of K and V more than for products.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_heads_products.cuh"
#include "winnow/detail/attention/contextual_ring_cursor.cuh"
#include "winnow/detail/attention/contextual_ring_layout.hpp"
#include "winnow/detail/attention/contextual_ring_order.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/wgmma.cuh"

namespace winnow::detail {

template <class T, bool Radial>
struct contextual_ring_keys : contextual_heads_products<T, Radial, contextual_ring_layout<Radial>> {
  using base = contextual_heads_products<T, Radial, contextual_ring_layout<Radial>>;
  using base::assigned;
  using base::group;
  using base::keys;
  using base::place;
  using base::problem;
  using base::share;
  using base::shared;
  using base::shares;
  using base::shortest;
  using base::words;
  using typename base::factor;
  using typename base::key_group;
  using typename base::layout;
  static constexpr int heads = layout::heads;
  static constexpr unsigned all = 0xffffffffu;
  static constexpr int own_rows = layout::pass_rows / 32;

  int team;
  const std::int32_t* order = in_registers(base::group().order);
  const T* first_key = in_registers(first_part(problem.k, own_lane()));
  const T* first_value = in_registers(first_part(problem.v, own_lane()));
  std::int32_t key_bytes = token_bytes(problem.k), value_bytes = token_bytes(problem.v);
  /// Half of the lanes load keys' positions, the others their radii.
  const std::uint32_t* own_array = in_registers(
      place.lane < keys ? reinterpret_cast<const std::uint32_t*>(base::group().positions)
                        : reinterpret_cast<const std::uint32_t*>(base::group().radius));
  std::uint32_t own_mark = in_register(place.lane < keys ? position_mark : 0u);
  /// Selects what a lane stores of its position and its neighbour's, one axis of both; or its radius.
  std::uint32_t own_column = in_register(place.lane >= keys    ? 0x3210u
                                         : place.lane % 2 == 0 ? 0x7430u
                                                               : 0x3175u);

  __device__ __forceinline__ const int2* bounds() const {
    return reinterpret_cast<const int2*>(group().bounds);
  }
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
  __device__ __forceinline__ std::uint32_t barrier(int array, int index = 0) const {
    return shared + static_cast<std::uint32_t>(array + 8 * index);
  }

  // --- Which groups -------------------------------------------------------------------------------

  static constexpr int untaken = -1;
  /// Does a pass have rows that contextual_short.cuh has left?
  __device__ __forceinline__ bool has_long(int row) const {
    bool found = false;
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
      const int2 window = bounds()[min(row + place.lane + 32 * i, assigned - 1)];
      found |= window.y - window.x >= shortest;
    }
    return __any_sync(all, found);
  }
  /// The block's teams take its passes as they come: what a pass needs differs much.
  /// \param bound of its keys, as lanes have them.
  __device__ __forceinline__ void take_pass(ring_pass& next, int& bound) const {
    wait_for_phase(barrier(layout::is_listed), 0);
    const int listed = *at<const int>(layout::listed);
    ++next.number;
    do {
      const int number = next_number();
      std::int64_t pass = std::int64_t{number} * shares + share;
      if (listed != ring_order<layout>::none)
        pass = number < listed ? at<const std::uint16_t>(layout::pass_order)[number]
                               : int{ring_order<layout>::no_pass};
      next.row = row_of_pass(pass);
      if (next.row >= assigned) return;
    } while (shortest > 0 && !has_long(next.row));
    bound = load_bound(next.row);
  }
  /// What the counter of the block's passes was.
  __device__ __forceinline__ int next_number() const {
    int number = 0;
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.s32 p, %2, 0;\n@p atom.shared.inc.u32 %0, [%1], -1;\n}\n"
        : "+r"(number)
        : "r"(address(layout::next_pass)), "r"(place.lane)
        : "memory");
    return __shfl_sync(all, number, 0);
  }
  /// A pass's first key, of lane 0, and the slot behind its last one. Lanes have them, as what is uniform would be
  /// waited for at once.
  __device__ __forceinline__ int load_bound(int row) const {
    const int last = min(row + layout::pass_rows, assigned) - 1;
    const auto index = static_cast<std::uint32_t>(place.lane == 0 ? 2 * row : 2 * last + 1);
    return __ldg(reinterpret_cast<const int*>(group().bounds) + index);
  }
  /// The team's first pass, before tables are there.
  __device__ __forceinline__ void take_first(const ring_order<layout>& passes, ring_pass& next,
                                             int& bound) const {
    const int3 pass = passes.first_of(team);
    if (place.lane == 0)
      at<std::uint16_t>(layout::pass_order)[team] = static_cast<std::uint16_t>(pass.x);
    next = {row_of_pass(pass.x), 0, 1, 0};
    bound = place.lane == 0 ? pass.y : pass.z;
  }
  __device__ __forceinline__ int row_of_pass(std::int64_t pass) const {
    return static_cast<int>(min(pass * layout::pass_rows, std::int64_t{assigned}));
  }
  /// Where a warp is, two groups ahead of the one that it multiplies.
  struct ahead_of_group {
    int key, end;                 ///< of the group, and the slot behind its pass's last key
    int starts;                   ///< is it its pass's first group?
    ring_pass next;               ///< the next pass, or `untaken`
    int bound = 1;                ///< of its keys, on their way
    ring_pass pass, earlier;      ///< of that group, and the one before it
    std::int32_t rows[own_rows];  ///< tokens of the pass's rows
  };
  __device__ __forceinline__ void load_rows(const ring_pass& pass,
                                            std::int32_t (&tokens)[own_rows]) const {
#pragma unroll
    for (int i = 0; i < own_rows; ++i)
      tokens[i] = __ldg(
          order + static_cast<std::uint32_t>(min(pass.row + place.lane + 32 * i, assigned - 1)));
  }
  __device__ __forceinline__ void follow(ahead_of_group& ahead) const {
    if (ahead.next.row == untaken) take_pass(ahead.next, ahead.bound);
    ahead.earlier = ahead.pass;
    ahead.pass = ahead.next;
    ahead.key = ahead.pass.key = __shfl_sync(all, ahead.bound, 0);
    ahead.end = ahead.pass.end = __shfl_sync(all, ahead.bound, 1);
    ahead.starts = 1;
    load_rows(ahead.pass, ahead.rows);
    if (ahead.next.row < assigned) ahead.next.row = untaken;
  }
  /// Behind the last group, as here: what follows is not looked at, and costs less than a branch.
  __device__ __forceinline__ void advance(ahead_of_group& ahead) const {
    ahead.key += keys;
    ahead.starts = 0;
    if (ahead.key >= ahead.end) follow(ahead);
  }

  // --- What arrives from global memory ------------------------------------------------------------

  /// Not negative, as divisions shall know.
  __device__ __forceinline__ unsigned own_lane() const {
    return static_cast<unsigned>(place.lane);
  }
  /// Lanes load 16 bytes each of eight tokens, of one head and then of the other, so that eight lanes store to all
  /// banks. These are a lane's token and its quarter of two heads' rows.
  static __device__ __forceinline__ int own_key(unsigned lane) {
    return static_cast<int>(lane / 2 % 8);
  }
  static __device__ __forceinline__ int own_quarter(unsigned lane) {
    return static_cast<int>(lane / 16 * 2 + lane % 2);
  }
  /// Of key lane % 16 of a group: its token, and its position or radius.
  struct key_tokens {
    std::int32_t token;
    std::uint32_t place;
  };
  /// Behind the last key are copies of it, which nobody looks at.
  __device__ __forceinline__ key_tokens load_tokens(const ahead_of_group& ahead) const {
    const auto key = static_cast<std::uint32_t>(min(ahead.key + place.lane % keys, ahead.end - 1));
    return {__ldg(order + key), __ldg(own_array + key)};
  }
  /// A lane's quarter of two rows of token 0.
  __device__ __forceinline__ const T* first_part(const row_view& view, unsigned lane) const {
    const int head = group().first_head + this->group_head + own_quarter(lane) / 2;
    return static_cast<const T*>(view.data) + head * view.head_stride + own_quarter(lane) % 2 * 8;
  }
  static __device__ __forceinline__ const T* token_part(const T* first, std::int32_t token,
                                                        std::int32_t bytes) {
    asm("mad.wide.s32 %0, %1, %2, %0;" : "+l"(first) : "r"(token), "r"(bytes));
    return first;
  }
  static __device__ __forceinline__ int own_part(unsigned lane) {
    return static_cast<int>(lane / 16 * 2 * layout::tile_bytes + lane / 2 % 8 * layout::row_bytes +
                            (lane ^ lane >> 3) % 2 * 16);
  }
  /// The same of rows of q, whose heads' tiles are neighbours.
  static __device__ __forceinline__ int own_row_part(unsigned lane) {
    return own_part(lane) - static_cast<int>(lane / 16 * layout::tile_bytes);
  }
  __device__ __forceinline__ std::uint32_t address(int offset) const {
    return shared + static_cast<std::uint32_t>(offset);
  }
  /// Asks for K and V of a group, and stores positions and radii.
  __device__ __forceinline__ void request_keys(const key_tokens& own, int slot) const {
    const std::uint32_t target = address(layout::tiles_at(slot) + own_part(own_lane()));
    // Addresses of all copies first: one that overwrites an earlier one's waits until that has been read.
    const T* sources[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t token = __shfl_sync(all, own.token, own_key(own_lane()) + 8 * i);
      sources[2 * i] = token_part(first_key, token, key_bytes);
      sources[2 * i + 1] = token_part(first_value, token, value_bytes);
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
  /// Waits for room for a pass, and says what it is.
  __device__ __forceinline__ void place_pass(const ring_pass& pass) const {
    const int buffer = team * layout::passes + pass.number % layout::passes;
    if (pass.number >= layout::passes)
      wait_for_phase(barrier(layout::rows_empty, buffer),
                     static_cast<std::uint32_t>(pass.number / layout::passes - 1 & 1));
    if (place.lane == 0) at<int4>(layout::places)[buffer] = {pass.row, pass.key, pass.end, 0};
  }
  /// Asks for the rows of a pass that has its place.
  __device__ __forceinline__ void request_rows(const ring_pass& pass,
                                               const std::int32_t (&tokens)[own_rows]) const {
    const int buffer = team * layout::passes + pass.number % layout::passes;
    if (pass.number > 0)
      wait_for_phase(barrier(layout::query_empty, team),
                     static_cast<std::uint32_t>(pass.number - 1 & 1));
    // What a pass needs of it is not worth registers over its groups.
    const auto lane = in_register(own_lane());
    const auto own_lane = static_cast<int>(lane);
    const T* const first = first_part(problem.q, lane);
    const auto bytes = static_cast<std::int32_t>(problem.q.token_stride * std::int64_t{sizeof(T)});
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
#pragma unroll
      for (int eight = 0; eight < 4; ++eight) {
        const std::int32_t token = __shfl_sync(all, tokens[i], 8 * eight + own_key(lane));
        const int row = 32 * i + 8 * eight;
        const int tile = team * layout::team_readers + row / layout::rows;
        copy_async_if<16>(true,
                          address(layout::query + tile * layout::query_bytes +
                                  row % layout::rows * layout::row_bytes + own_row_part(lane)),
                          token_part(first, token, bytes), true);
      }
      const auto slot = static_cast<std::uint32_t>(min(pass.row + own_lane + 32 * i, assigned - 1));
      const int number = buffer * layout::pass_rows + own_lane + 32 * i;
      at<std::int32_t>(layout::row_order)[number] = tokens[i];
      copy_async_if<8>(true, address(layout::row_bounds + 8 * number), bounds() + slot, true);
      copy_async_if<4>(true, address(layout::row_code + 4 * number), group().positions + slot,
                       true);
      if constexpr (Radial)
        copy_async_if<4>(true, address(layout::row_radius + 4 * number), group().radius + slot,
                         true);
    }
  }

  // --- Products -----------------------------------------------------------------------------------

  __device__ __forceinline__ void announce(int slot) const {
    __syncwarp();
    arrive_warp(barrier(slot + layout::full), place.lane);
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
  /// Products with Tk of the keys in a slot. \param keys_slot where K is. An axis' factors are asked for before what
  /// the one before it gives is stored, as the compiler does not move loads over stores.
  __device__ __forceinline__ void multiply_slot(int slot, int keys_slot, int length) const {
    const factor tables[heads] = {this->factor_of_head(group().table_k, 1, 0),
                                  this->factor_of_head(group().table_k, 1, 1)};
    axis_factors factors = load_factors(tables, 2);
    const key_group own = this->load_group(keys_slot);
    rows_of_axis by_row;
    multiply_group(own, factors, by_row);
    factors = load_factors(tables, 0);
    this->store_radials(by_row, at<std::byte>(layout::products_at(slot)) + layout::key_row(place.g),
                        layout::key_row(8));
    const std::uint32_t most = moves_of(0, length, place.t);
    auto* target = reinterpret_cast<uint4*>(const_cast<std::byte*>(this->cells_of_lane(slot)));
    std::uint32_t cells[heads][2][words];
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis) {
      multiply_group(own, factors, by_row);
      if (axis + 1 < layout::axes) factors = load_factors(tables, axis + 1);
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
  __device__ __forceinline__ void await_tables() const {
    meet<layout::keys_begin, 32 * layout::teams>();  // barriers in shared memory are there
    wait_for_phase(barrier(layout::has_tables), 0);
  }
  /// \param knows_first are there first passes of teams?
  __device__ __forceinline__ void run(const ring_order<layout>& passes, bool knows_first) const {
    const int length = group().quant_length;
    ring_cursor<layout> cursor(team);
    ahead_of_group ahead{};
    ahead.next.row = untaken;
    if (knows_first)
      take_first(passes, ahead.next, ahead.bound);
    else
      await_tables();
    follow(ahead);
    key_tokens own = load_tokens(ahead);
    request_keys(own, cursor.keys);
    place_pass(ahead.pass);
    const bool has_pass = ahead.pass.row < assigned;
    // The next pass may not be known yet.
    const bool has_next = ahead.key + keys < ahead.end;
    ahead.key += keys;
    ahead.starts = 0;
    if (has_next) own = load_tokens(ahead);
    if (has_pass) request_rows(ahead.pass, ahead.rows);
    commit_copies();
    if (knows_first) await_tables();
    if (!has_next && has_pass) {
      follow(ahead);
      own = load_tokens(ahead);
    }
    if (has_pass) {
#pragma unroll 1
      while (true) {
        // Before the first release there is nothing to wait for.
        wait_for_phase(barrier(cursor.slot + layout::empty), cursor.parity ^ 1);
        wait_for_copies<1>();
        __syncwarp();  // K and V are there
        // Those of the next group arrive meanwhile.
        request_keys(own, cursor.next_keys());
        const int next_starts = ahead.starts;
        advance(ahead);
        own = load_tokens(ahead);
        multiply_slot(cursor.slot, cursor.keys, length);
        wait_for_copies<1>();  // the rows, if this is a pass's first group
        announce(cursor.slot);
        cursor.step();
        // Where passes meet; else there is but one branch.
        if ((next_starts | ahead.starts) != 0) {
          if (next_starts != 0) {
            // The pass ahead is the next group's, or already the one behind it.
            const bool is_behind = ahead.starts != 0;
            const ring_pass next = is_behind ? ahead.earlier : ahead.pass;
            place_pass(next);
            if (next.row >= assigned) break;
            std::int32_t rows[own_rows];
#pragma unroll
            for (int i = 0; i < own_rows; ++i) rows[i] = ahead.rows[i];
            // Seldom enough to wait for.
            if (is_behind) load_rows(next, rows);
            request_rows(next, rows);
          }
          if (ahead.next.row == untaken) take_pass(ahead.next, ahead.bound);
        }
        commit_copies();
      }
    }
    wait_for_phase(barrier(cursor.slot + layout::empty), cursor.parity ^ 1);
    announce(cursor.slot);
    wait_for_copies<0>();
  }
};

}  // namespace winnow::detail
