// SPDX-License-Identifier: Apache-2.0
/// \file
/// Two heads at a time, with 16-bit storage and head dim 16.
///
/// Heads of a group share windows and positions, so that of a pair of tokens its radial row, its masks and
/// its one-hot rows are those of all heads. A warp attends with two of them. Radial products of both lie
/// side by side, and one lookup takes two halves; a product with a constant matrix tells them apart and
/// adds them to the logits, which converts them, too. That is 14 instructions a pair for what took 32.
///
/// The steps are those of contextual_block.cuh, each for both heads. What one head needs of registers is
/// there twice: 255 a thread, and eight warps a multiprocessor, whose two heads are independent of each other.
/// Here are the steps of one warp; contextual_heads_kernel.cuh has what it takes them for.
///
/// NaN and infinity: a radial product that is not finite spoils its row's logits with all eight keys of
/// the product, and both heads. Such rows are found at the end, as in contextual_kernel.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_heads_products.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_weights.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/shared_memory.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, bool Radial, class Layout>
struct contextual_heads : contextual_heads_products<T, Radial, Layout> {
  using base = contextual_heads_products<T, Radial, Layout>;
  using base::group;
  using base::group_head;
  using base::heads;
  using base::place;
  using base::problem;
  using base::radial_sums;
  using base::shared;
  using base::stores_products;
  using base::words;
  using typename base::head_state;
  using typename base::heads_state;
  using typename base::key_group;
  using typename base::layout;
  using typename base::rows_of_head;

  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return base::template at<U>(offset);
  }

  // --- Pairs --------------------------------------------------------------------------------------

  /// Where this lane's pairs find their radial products and sums: addresses of row g's first sum and of
  /// key 2t's first product, by radial row. Key 8b + j of this lane, row g + 8i.
  struct radial_places {
    std::uint32_t row[2][2][2];  ///< [b][j][i]
  };
  /// Adds the first head's products of 16 rows and 8 keys, and the second one's.
  __device__ __forceinline__ void add_pairs(const heads_state& state,
                                            const std::uint32_t (&pairs)[4], float (&first)[4],
                                            float (&second)[4]) const {
    multiply_add_16<half>(first, pairs, state.unit & 0xffffu, state.unit >> 16);
    multiply_add_16<half>(second, pairs, state.unit << 16, state.unit & 0xffff0000u);
  }
  /// What this lane's pairs with eight keys look up: products of rows, and of keys.
  struct radial_pairs {
    std::uint32_t of_rows[4], of_keys[4];
  };
  /// Radii of this lane's keys 2t and 2t + 1 of a block.
  __device__ __forceinline__ float2 load_radii(int slot, int block) const {
    return *reinterpret_cast<const float2*>(at<const float>(layout::radii_at(slot)) + 2 * place.t +
                                            8 * block);
  }
  /// \tparam Block of keys. \param own their radii. \param products slot of their products.
  template <int Block>
  __device__ __forceinline__ void look_up_radials(const heads_state& state, const float2& own,
                                                  int products, radial_pairs& pairs,
                                                  radial_places& places) const {
    const std::uint32_t gk =
        state.key_products +
        static_cast<std::uint32_t>(layout::products_at(products) - layout::products_at(0));
    const auto look_up = [&](auto pair_constant) {
      constexpr int pair = decltype(pair_constant)::value;
      constexpr int i = pair % 2, j = pair / 2;
      const float radius = j == 0 ? own.x : own.y;
      const int offset =
          radial_step(state.radius[i] - radius, state.inverse_a, state.most_steps) >> 20;
      places.row[Block][j][i] = state.radial + static_cast<std::uint32_t>(offset);
      pairs.of_rows[pair] =
          load_shared_word<i * layout::radial_row(8) + layout::row_radial>(places.row[Block][j][i]);
      pairs.of_keys[pair] = load_shared_word<layout::key_row(8 * Block) + j * layout::radial_bytes>(
          gk + static_cast<std::uint32_t>(offset));
    };
    look_up(std::integral_constant<int, 0>());
    look_up(std::integral_constant<int, 1>());
    look_up(std::integral_constant<int, 2>());
    look_up(std::integral_constant<int, 3>());
  }
  __device__ __forceinline__ void score_radials(const heads_state& state, int slot,
                                                float (&scores)[heads][2][4],
                                                float (&sides)[heads][2][4],
                                                radial_places& places) const {
    const auto add = [&](auto block_constant) {
      constexpr int b = decltype(block_constant)::value;
      radial_pairs pairs;
      look_up_radials<b>(state, load_radii(slot, b), slot, pairs, places);
      add_pairs(state, pairs.of_rows, scores[0][b], scores[1][b]);
      add_pairs(state, pairs.of_keys, sides[0][b], sides[1][b]);
    };
    add(std::integral_constant<int, 0>());
    add(std::integral_constant<int, 1>());
  }
  /// q·k, and Gq of linear axes.
  __device__ __forceinline__ void score_heads(const heads_state& state, int tile,
                                              const key_group& keys_,
                                              float (&scores)[heads][2][4]) const {
    rows_of_head loaded[heads];
    this->load_queries(tile, loaded);
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const auto& left = keys_.left[h].a[0];
        multiply_16<T>(scores[h][b], loaded[h].a[0], left[layout::only_right ? 2 * b : b],
                       left[layout::only_right ? 2 * b + 1 : b + 2]);
      }
    std::uint32_t places[2][layout::axes];
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int axis = 0; axis < layout::axes; ++axis)
        if constexpr (layout::pairs_positions)
          places[b][axis] = axis == 0 ? keys_.pairs[b].x : keys_.pairs[b].y;
        else
          places[b][axis] = position_twice(keys_.codes[b], axis);
    const auto key_cell = [&](int b, int word) {
      return one_hot(places[b][word / cell_words], this->cells_of(state, word));
    };
    // Products that add up halves are faster. One with a unit matrix adds their sums to the logits.
    [[maybe_unused]] std::uint32_t halves[heads][2][2];
#pragma unroll
    for (int word = 0; word < words; word += 2) {
      const bool two = word + 1 < words;
      const std::uint32_t cells[2][2] = {{key_cell(0, word), two ? key_cell(0, word + 1) : 0},
                                         {key_cell(1, word), two ? key_cell(1, word + 1) : 0}};
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        std::uint32_t products[4];
        if constexpr (stores_products) {
          const uint4 own = this->stored_products(h, word);
          products[0] = own.x, products[1] = own.y, products[2] = own.z, products[3] = own.w;
        } else {
          const auto& own = state.of_head[h].products;
          const int second = two ? word + 1 : word;
          products[0] = own[0][word], products[1] = own[1][word];
          products[2] = own[0][second], products[3] = own[1][second];
        }
#pragma unroll
        for (int b = 0; b < 2; ++b)
          if constexpr (layout::sums_halves) {
            auto& sums = halves[h][b];
            multiply_half(sums, products, cells[b][0], cells[b][1], word == 0 ? 0 : sums[0],
                          word == 0 ? 0 : sums[1]);
          } else if (two) {
            multiply_add_16<half>(scores[h][b], products, cells[b][0], cells[b][1]);
          } else {
            multiply_add_half_8(scores[h][b], products[0], products[1], cells[b][0]);
          }
      }
    }
    if constexpr (layout::sums_halves) {
      static_assert(words % 2 == 0);
#pragma unroll
      for (int h = 0; h < heads; ++h)
#pragma unroll
        for (int b = 0; b < 2; ++b)
          multiply_add_half_8(scores[h][b], halves[h][b][0], halves[h][b][1], state.unit);
    }
  }
  /// The keys that this lane's rows attend to, from the group's first key on.
  struct row_windows {
    int first[2], last[2];
  };
  /// 16 rows against a group of keys. \param windows_of gives the rows' windows, if not all attend to all keys.
  /// \param meanwhile is done once products and logits are under way.
  template <class Windows, class Meanwhile>
  __device__ __forceinline__ void attend(int tile, int slot, bool interior,
                                         const Windows& windows_of, const Meanwhile& meanwhile,
                                         heads_state& state) const {
    const key_group own_keys = this->load_group(slot);
    float s[heads][2][4], sides[heads][2][4];
    this->multiply_keys(state, own_keys, sides);
    if constexpr (Radial) __syncwarp();
    radial_places places;
    score_heads(state, tile, own_keys, s);
    if constexpr (Radial) score_radials(state, slot, s, sides, places);
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[h][b][e] = fmaf(sides[h][b][e], state.inverse_scale, s[h][b][e]);
    weigh(slot, interior, windows_of, meanwhile, s, places, state);
  }
  /// This lane's keys of [first, last), key j of block b as bit 8b + j.
  __device__ __forceinline__ std::uint32_t own_keys(int first, int last) const {
    if constexpr (layout::spreads_keys) {
      const std::uint32_t four =
          bits_from(max(first - 4 * place.t, 0)) & ~bits_from(max(last - 4 * place.t, 0));
      return (four & 0x3u) | (four & 0xcu) << 6;
    } else {
      return bits_from(max(first - 2 * place.t, 0)) & ~bits_from(max(last - 2 * place.t, 0)) &
             0x303u;
    }
  }
  /// The same from logits on.
  template <class Windows, class Meanwhile>
  __device__ __forceinline__ void weigh(int slot, bool interior, const Windows& windows_of,
                                        const Meanwhile& meanwhile, float (&s)[heads][2][4],
                                        const radial_places& places, heads_state& state) const {
    if (!interior) {
      // Bit 8b + e: does the row attend to the key of element e of block b?
      const row_windows windows = windows_of();
      std::uint32_t attended = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        attended += own_keys(windows.first[i], windows.last[i]) << (2 * i);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const bool attends = (attended >> (8 * b + e) & 1) != 0;
#pragma unroll
          for (int h = 0; h < heads; ++h) s[h][b][e] = attends ? s[h][b][e] : -INFINITY;
        }
    }
    if constexpr (!layout::loads_early) meanwhile();
    const float scale = problem.scale * log2_e;
    float largest[heads][2];
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) largest[h][i] = lane_max(s[h], i);
    const auto raise = [&](int h, float(&by)[2]) {
      head_state& own = state.of_head[h];
      const bool rises = own.softmax.raise_rows(largest[h], scale, state.most, state.lag, by);
      if (rises) rescale_head(by, own);
      return rises;
    };
    const auto find_rows = [&](int h) {
#pragma unroll
      for (int i = 0; i < 2; ++i) largest[h][i] = quad_max(largest[h][i]);
    };
    piece_values values;
    if constexpr (layout::loads_early) {
      load_values(slot, values);
      meanwhile();
      bool exceeds = false;
#pragma unroll
      for (int h = 0; h < heads; ++h)
        exceeds |= state.of_head[h].softmax.exceeds(largest[h], scale, state.most);
      if (__any_sync(0xffffffffu, exceeds)) {
        // Rows' maxima together, as each step of one waits.
#pragma unroll
        for (int h = 0; h < heads; ++h) find_rows(h);
        float by[heads][2];
        bool rises = false;
#pragma unroll
        for (int h = 0; h < heads; ++h) rises |= raise(h, by[h]);
        if constexpr (Radial)
          if (rises) shift_radials(by);
      }
    } else {
#pragma unroll
      for (int h = 0; h < heads; ++h)
        if (__any_sync(0xffffffffu,
                       state.of_head[h].softmax.exceeds(largest[h], scale, state.most))) {
          float by[heads][2] = {{1.0f, 1.0f}, {1.0f, 1.0f}};
          find_rows(h);
          const bool rises = raise(h, by[h]);
          if constexpr (Radial)
            if (rises) shift_radials(by);
        }
    }
#pragma unroll
    for (int h = 0; h < heads; ++h)
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[h][b][e] = exp2_fast(fmaf(s[h][b][e], scale, state.of_head[h].softmax.offset[e / 2]));
    if constexpr (!layout::loads_early) load_codes(slot, values);
    const key_columns columns = columns_of(values, state);
    add_head<0>(slot, s[0], columns, places, values, state);
    add_head<1>(slot, s[1], columns, places, values, state);
  }
  // --- Sums of weights ----------------------------------------------------------------------------

  /// What sums of weights need of 16 keys.
  struct piece_values {
    std::uint32_t rows[heads][4];  ///< V
    /// Of keys 2t and 2t + 1 of eight; or, where the layout has pairs of their positions, of two axes.
    uint2 codes[2];
  };
  /// Factors whose lanes hold column g of keys 2t and 2t + 1: one-hot rows of the first eight keys, and of the others.
  struct key_columns {
    std::uint32_t low[words], high[words];
  };
  __device__ __forceinline__ key_columns columns_of(const piece_values& values,
                                                    const heads_state& state) const {
    std::uint32_t pairs[2][layout::axes];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const uint2& codes = values.codes[b];
#pragma unroll
      for (int axis = 0; axis < layout::axes; ++axis)
        pairs[b][axis] =
            layout::pairs_positions
                ? (axis == 0 ? codes.x : codes.y)
                : (__byte_perm(codes.x, codes.y, 0x0400u + 0x0101u * static_cast<unsigned>(axis)) &
                   0x00ff00ffu) |
                      0x64006400u;
    }
    key_columns columns;
#pragma unroll
    for (int word = 0; word < words; ++word) {
      const std::uint32_t cell =
          state.first_cell + 0x00010001u * static_cast<unsigned>(word % cell_words * 8);
      columns.low[word] = one_hot(pairs[0][word / cell_words], cell);
      columns.high[word] = one_hot(pairs[1][word / cell_words], cell);
    }
    return columns;
  }
  __device__ __forceinline__ void load_value(int slot, int h, piece_values& values) const {
    load_matrices_transposed(
        values.rows[h],
        this->left_rows(reinterpret_cast<const std::byte*>(this->tile_of(1, slot, h))));
  }
  __device__ __forceinline__ void load_codes(int slot, piece_values& values) const {
#pragma unroll
    for (int b = 0; b < 2; ++b)
      values.codes[b] = *reinterpret_cast<const uint2*>(
          at<const std::uint32_t>(layout::columns_at(slot)) + 8 * b + 2 * place.t);
  }
  __device__ __forceinline__ void load_values(int slot, piece_values& values) const {
    load_codes(slot, values);
#pragma unroll
    for (int h = 0; h < heads; ++h) load_value(slot, h, values);
  }
  __device__ __forceinline__ void add_values(const float (&p)[2][4], const std::uint32_t (&b)[4],
                                             head_state& own) const {
    const weight_fragment<T> weights(p);
    multiply_add_16<T>(own.o[0], weights.a, b[0], b[1]);
    multiply_add_16<T>(own.o[1], weights.a, b[2], b[3]);
    if constexpr (!sums_cells) {
      const std::uint32_t ones = pack<T>(1.0f, 1.0f);
      multiply_add_16<T>(own.softmax.sum, weights.a, ones, ones);
    }
  }
  /// Weights by the cells of an axis are all weights, and as halves what V is multiplied with.
  static constexpr bool sums_cells = std::is_same_v<T, half>;
  /// Adds a lane's share of them to the rows' sums.
  static __device__ __forceinline__ void sum_cells(head_state& own) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int word = 0; word < cell_words; ++word) {
        const auto& sums = own.cells[word];
        float2 two;
        if constexpr (layout::sums_halves)
          two = unpack<half>(sums[i]);
        else
          two = {sums[2 * i], sums[2 * i + 1]};
        own.softmax.sum[2 * i] += two.x + two.y;
      }
  }
  static __device__ __forceinline__ void rescale_head(const float (&by)[2], head_state& own) {
    scale_rows(by, own.o);
    if constexpr (layout::sums_halves) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const half2 factor = __float2half2_rn(by[i]);
#pragma unroll
        for (auto& sums : own.cells) {
          half2& pair = reinterpret_cast<half2&>(sums[i]);
          pair = __hmul2(pair, factor);
        }
      }
    } else {
      scale_rows(by, own.cells);
    }
  }
  /// Radial sums by their rows' factors, powers of two: shifts that round. What a sum close to 2³² loses by that
  /// rounding would not be seen behind such a shift. A loop, since the hot path hardly fits the instruction cache.
  __device__ __forceinline__ void shift_radials(const float (&by)[heads][2]) const {
    static_assert(heads == 2);
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < 2 * heads; ++j) {
      const float first = j % 2 == 0 ? by[0][0] : by[0][1];
      const float second = j % 2 == 0 ? by[1][0] : by[1][1];
      const float factor = j < 2 ? first : second;
      if (factor >= 1.0f) continue;
      const int shift = min(127 - static_cast<int>(__float_as_uint(factor) >> 23), 31);
      const std::uint32_t half_unit = (1u << shift) >> 1;
      auto* sums = radial_sums() + j % 2 * (layout::radial_row(8) / 4) + j / 2 * tile_rows;
#pragma unroll
      for (int r = 4 * place.t; r < tile_rows; r += 16) {
        auto& four = *reinterpret_cast<uint4*>(sums + r);
        const uint4 sum = four;
        four = {(sum.x + half_unit) >> shift, (sum.y + half_unit) >> shift,
                (sum.z + half_unit) >> shift, (sum.w + half_unit) >> shift};
      }
    }
    __syncwarp();
  }
  template <int Behind>
  static __device__ __forceinline__ void add_radial(std::uint32_t address, std::uint32_t weight) {
    asm volatile("red.shared.add.u32 [%0 + %2], %1;\n" ::"r"(address), "r"(weight), "n"(Behind)
                 : "memory");
  }
  /// Adds weights up by the cells of their keys.
  __device__ __forceinline__ void add_cells(const float (&p)[2][4], const key_columns& columns,
                                            head_state& own) const {
    const weight_fragment<half> weights(p);
#pragma unroll
    for (int word = 0; word < words; ++word) {
      auto& sums = own.cells[word];
      if constexpr (layout::sums_halves)
        multiply_half(sums, weights.a, columns.low[word], columns.high[word], sums[0], sums[1]);
      else
        multiply_add_16<half>(sums, weights.a, columns.low[word], columns.high[word]);
    }
  }
  /// And by radial rows.
  template <int H>
  __device__ __forceinline__ void add_radials(const float (&p)[2][4],
                                              const radial_places& places) const {
    constexpr int behind = H * layout::radial_sums_bytes;
    constexpr std::uint32_t units = 1u << base::unit_bits;  // of a weight of 1
    std::uint32_t counts[2][4];
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        counts[b][e] = round_to_integer(p[b][e], units);
        // Registers of their own: one that is set again waits until an addition has read it.
        asm volatile("" : "+r"(counts[b][e]));
      }
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        add_radial<behind>(places.row[b][j][0], counts[b][j]);
        add_radial<behind + layout::radial_row(8)>(places.row[b][j][1], counts[b][2 + j]);
      }
  }
  /// A head's sums of weights.
  template <int H>
  __device__ __forceinline__ void add_head(int slot, const float (&s)[2][4],
                                           const key_columns& columns, const radial_places& places,
                                           piece_values& values, heads_state& state) const {
    head_state& own = state.of_head[H];
    if constexpr (!layout::loads_early) load_value(slot, H, values);
    add_values(s, values.rows[H], own);
    add_cells(s, columns, own);
    if constexpr (Radial) add_radials<H>(s, places);
  }
};

}  // namespace winnow::detail
