// SPDX-License-Identifier: Apache-2.0
/// \file
/// The work of one block of the contextual forward kernel: see contextual_kernel.cuh. Here is what its
/// steps share and the order in which they run; each group of steps has a file of its own.
#pragma once

#include <cstdint>
#include <type_traits>

#include "winnow/detail/attention/contextual_layout.hpp"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_short_left.cuh"
#include "winnow/detail/attention/contextual_table.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/problem.hpp"
#include "winnow/detail/attention/softmax.cuh"
#include "winnow/detail/attention/tile.cuh"
#include "winnow/relative_position.hpp"

namespace winnow::detail {

/// A share of the rows of one head; its members are what all steps share.
/// \tparam Vectors q, k, v and out have rows that start on 16 bytes.
/// \tparam Layout of a block; or, as contextual_short.cuh has it, of a warp that is a block of its own.
template <class T, int D, bool Radial, bool Vectors,
          class Layout = contextual_layout<sizeof(T), D, Radial>>
struct contextual_block {
  using layout = Layout;
  using math = tile_math<T, D>;
  static constexpr int rows = layout::rows;
  static constexpr int keys = layout::keys;
  static constexpr int warps = layout::tuning.warps;
  static constexpr int threads = layout::tuning.threads();
  static constexpr int parts = layout::parts;
  static constexpr int words = layout::cells / 8;  ///< registers of a lane for a row of cells
  static constexpr bool staged = layout::tuning.staged;
  /// Are there registers for all axes of 16 keys' products at once?
  static constexpr bool multiplies_axes_at_once = sizeof(T) == 2 && D == 16;
  static constexpr bool attends_at_once = layout::attends_at_once;
  /// Do pairs need the one-hot rows of a warp's rows, and are there registers for them?
  static constexpr bool keeps_row_cells = Radial && sizeof(T) == 2 && D == 16 && !attends_at_once;
  /// Do rows of q, K, V and Tv multiply as two halves each? See contextual_halves.cuh.
  static constexpr bool in_halves = layout::in_halves;
  /// Do pairs keep the address of their row's radial product instead of its number?
  static constexpr bool keeps_places = Radial && sizeof(T) == 4;
  /// Are windows so short that tensor cores may sum up all of them, though they cut sums off?
  static constexpr bool sums_directly = in_halves && attends_at_once;
  /// Instructions of straight code come slowly, so linear axes are a loop where registers can be exchanged: what
  /// belongs to the first axis then takes the place of the other's.
  static constexpr bool loops_axes = sums_directly && layout::axes == 2;
  static constexpr int axes_at_once = loops_axes ? 1 : layout::axes;
  /// Elements between rows of Tv. Without padding, halves of every other four rows change places.
  static constexpr int value_stride =
      layout::axis_bytes / (tile_rows * static_cast<int>(sizeof(T)));
  static constexpr bool turns_values = !in_halves && value_stride == D;
  /// Weights by cell are rounded to T, float to two halves.
  static constexpr int weight_parts = sizeof(T) == 4 ? 2 : 1;
  /// Does contextual_short.cuh take short windows?
  static constexpr bool leaves_short =
      has_contextual_short<sizeof(T), D, Radial> && !layout::shares_scratch && Vectors;
  using factor = table_factor<T, D, staged, layout::takes_neighbours>;
  /// A key's positions on the linear axes, each twice, to compare.
  using key_cells = std::conditional_t<Radial, uint2, uint4>;
  /// Weights lag behind the largest logit by so many powers of two. 16-bit weights then are at most 1,
  /// so that their sums stay below 65,504 and are normalised at the very end.
  /// That lag also is how far logits may exceed the largest one before it is raised, which costs as much as
  /// two thirds of the pairs that made it so. In long windows weights must not become so small.
  static constexpr bool lags = sizeof(T) == 2;
  static constexpr float slack = 6.0f, slack_short = lags ? 9.0f : slack;
  static constexpr int slack_window = 400;
  /// What is left of V and Tv is kept so many times larger.
  static constexpr int low_scale = 2048;

  const forward_problem& problem;
  int group_index;
  std::byte* memory;
  int group_head;
  int share;  ///< of the head's blocks of rows: share, share + shares, …
  int shares;
  int assigned;                ///< tokens in windows
  std::uint32_t shared;        ///< the address of `memory`
  std::byte* tables = memory;  ///< what the offsets of tables count from
  int shortest = 0;            ///< rows of shorter windows are left to contextual_short.cuh
  int thread = in_register(static_cast<int>(threadIdx.x));
  /// Known to be the same for all lanes.
  int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  lane_place place{thread};
  /// Where this lane's row of `ldmatrix` lies in 16 rows of 32 bytes, whose matrices count row by row.
  int matrix_row = in_register(place.lane / 16 * 8 + place.lane % 8);
  int matrix_column = in_register(place.lane / 8 % 2 * 16);
  /// The same of rows of K and V.
  int token_column =
      layout::turns_rows ? in_register(matrix_column ^ (place.lane >> 2 & 1) * 16) : matrix_column;

  /// A turn: a chunk of the keys of a block of rows.
  struct turn {
    int row;     ///< the first slot of the rows; from `assigned` on there is no turn
    int key;     ///< the first slot of the keys
    int end;     ///< the slot behind the rows' last key
    int buffer;  ///< of the rows
    bool first;  ///< of the rows' turns
  };
  /// Tokens of the rows that this thread will copy.
  static constexpr int width = 16 / sizeof(T);
  static constexpr int chunks = D / width;
  static constexpr int pass_rows = threads / chunks;
  static constexpr int key_passes = (keys + pass_rows - 1) / pass_rows;
  static constexpr int query_passes = (rows + pass_rows - 1) / pass_rows;
  static_assert(threads % chunks == 0);
  struct turn_tokens {
    std::int32_t keys[key_passes];
    std::int32_t queries[query_passes];
  };
  /// What a warp knows of its rows, all of it in registers.
  struct row_state {
    std::conditional_t<in_halves, split_rows<D>, typename math::query> q;
    std::uint32_t products[parts][2][words];   ///< Gq of rows g and g + 8 by cell
    std::uint32_t positions[2][layout::axes];  ///< or, as one-hot rows,
    std::uint32_t row_cells[2][words];
    float radius[2];
    int radial;  ///< offset of row g's sums by radial row, from the middle of the table on
    float inverse_a;
    float inverse_scale;
    int length;
    int most_steps;  ///< of `radial_step`
    bool has_values;
    float slack;
    float fixed_point[2];  ///< the scales of radial sums
    scaled_softmax_state softmax;
    float o[math::blocks][4];
    float low[math::blocks][4];  ///< the same of what is left of V and Tv, where sums are direct
    float cells[words][4];       ///< weights by cell
  };

  /// Reads of it are not worth registers: they come from constant memory each time.
  __device__ __forceinline__ const group_problem& group() const {
    int index = group_index;
    asm volatile("" : "+r"(index));
    return problem.groups[index];
  }
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory + offset);
  }
  template <class U>
  __device__ __forceinline__ U* table_at(int offset) const {
    return reinterpret_cast<U*>(tables + offset);
  }
  /// Where the arrays of the warp's rows begin.
  __device__ __forceinline__ int first_row(const turn& now) const {
    return now.buffer * layout::buffer_rows + warp * 16;
  }
  __device__ __forceinline__ T* key_tile(int stage) const {
    return at<T>(layout::key_tiles + 2 * stage * layout::tile_bytes);
  }
  __device__ __forceinline__ T* value_tile(int stage) const {
    return at<T>(layout::key_tiles + (2 * stage + 1) * layout::tile_bytes);
  }
  __device__ __forceinline__ int query_offset(const turn& now) const {
    return layout::query + (layout::query_buffers > 1 ? now.buffer : 0) * rows * layout::row_bytes;
  }
  __device__ __forceinline__ int scratch_of_warp() const {
    return layout::shares_scratch ? 0 : warp * layout::scratch_bytes;
  }
  __device__ __forceinline__ std::byte* scratch() const {
    return memory + layout::scratch + scratch_of_warp();
  }
  /// Of row g: sums of weights by radial row, and products by radial row.
  __device__ __forceinline__ std::uint32_t* radial_sums() const {
    return reinterpret_cast<std::uint32_t*>(scratch() + layout::radial_row(place.g));
  }
  __device__ __forceinline__ std::byte* radial_products() const {
    return scratch() + layout::radial_row(place.g) + layout::radial_sums_bytes;
  }
  __device__ __forceinline__ int count_of(const turn& now) const {
    return min(keys, now.end - now.key);
  }

  // --- What arrives from global memory: contextual_turns.cuh -------------------------------------

  /// Where the next block of rows finds its keys; loaded early.
  struct next_rows {
    int row, first_key, end;
  };
  __device__ void load_bounds(next_rows& next) const;
  /// Goes on to rows with longer windows than contextual_short.cuh takes.
  __device__ void skip_short(next_rows& next) const;
  __device__ turn follow(const turn& now, next_rows& next) const;
  __device__ void load_tokens(const turn& now, turn_tokens& tokens) const;
  /// Copies this thread's chunk of the rows of `tokens`, pass by pass, to `Rows` rows of shared memory,
  /// and zeros from row `count` on. There are no branches, as each costs the copies behind it a few
  /// instructions.
  template <int Rows, int Passes>
  __device__ void copy_rows(int target, const std::byte* base, const std::int32_t (&tokens)[Passes],
                            std::int64_t stride, int count) const;
  /// `count` elements of an array from `first` on, and zeros up to `Fill`.
  template <int Fill, class U>
  __device__ void copy_array(int target, const U* source, int first, int count) const;
  /// Where this thread's chunks of rows begin.
  struct row_bases {
    const std::byte *q, *k, *v;
  };
  __device__ const std::byte* base_of(const row_view& view) const;
  /// Everything that a turn needs. Behind the last key are zeros, since pieces may reach past it.
  __device__ void request(const turn& now, int stage, const turn_tokens& tokens,
                          const row_bases& bases) const;

  // --- Rows as halves: contextual_halves.cuh ------------------------------------------------------

  /// Splits the chunks of K and V that this thread has copied.
  __device__ void split_keys(int stage) const;
  /// `s` = q·k of 16 keys.
  __device__ void score_halves(const row_state& state, const T* tile, int key,
                               float (&s)[2][4]) const;
  /// Adds weights · 16 rows of halves, in shared memory from `rows_` on.
  __device__ void add_rows_of_halves(const split_fragment& weights, const std::byte* rows_,
                                     float (&high)[2][4], float (&low)[2][4]) const;
  /// o + high + what is left.
  static __device__ void add_halves(const float (&high)[2][4], const float (&low)[2][4],
                                    float (&o)[2][4]);
  /// Where a chunk of 16 bytes of a row lies.
  static __device__ int chunk_at(int row, int chunk);
  /// Splits chunks of a key and its value where they lie, by the four lanes of a row.
  static __device__ void split_chunks(std::byte* rows_, int row, int chunk);
  /// A chunk of four elements, as a part of its row of halves. \tparam Scale of what is left.
  template <int Scale>
  static __device__ void store_halves(std::byte* rows_, int row, int chunk, const uint4& bits);

  // --- Products of tokens with tables: contextual_tokens.cuh -------------------------------------

  __device__ factor factor_of(const table_view& table, int which) const;
  /// Of a block with several heads, the h-th one's.
  __device__ factor factor_of_head(const table_view& table, int which, int h) const;
  /// Tv of all heads of such a block, by its first `threads`.
  __device__ void load_value_tables(int threads = static_cast<int>(blockDim.x)) const;
  /// Of row g or g + 8: is one of this lane's elements too large for products in half?
  static __device__ bool has_large(const typename factor::rows& left, int i);
  /// A linear axis of products of rows g and g + 8 by cell; `moves` are the rows' `moves_of`.
  template <bool Backwards>
  __device__ void multiply_cells(const factor& table, const typename factor::rows& left, int axis,
                                 const std::uint32_t (&moves)[2],
                                 std::uint32_t (&cells)[parts][2][cell_words]) const;
  /// The radial axis of rows g and g + 8 by table row, to `target`, which is row g's.
  template <bool Backwards>
  __device__ void multiply_radial(const factor& table, const typename factor::rows& left,
                                  std::byte* target, int eight_rows) const;
  /// \tparam Behind a part of the offset that is one of the instruction.
  template <int Behind>
  __device__ float radial_product(int offset) const;
  /// 16 rows of q or K.
  __device__ void load_left(const std::byte* rows_, typename factor::rows& left) const;
  /// Where this lane's row of `ldmatrix` lies in 16 rows of 32 bytes, whose matrices count column by column.
  __device__ __forceinline__ const std::byte* left_rows(const std::byte* rows_) const {
    return rows_ + place.lane % 16 * layout::row_bytes +
           (place.lane / 16 ^ place.lane >> 2) % 2 * 16;
  }
  /// The warp's rows at their first turn: Gq, and sums of nothing.
  __device__ void begin_rows(const turn& now, row_state& state) const;
  /// The same once q is there.
  __device__ void begin_products(const turn& now, const typename factor::rows& left,
                                 row_state& state) const;
  /// Leaves a key's positions where pairs look for them.
  __device__ void place_key(int key, std::uint32_t code) const;
  /// Gk and positions of the turn's keys; all warps take part.
  __device__ void prepare_keys(const turn& now, int stage) const;
  /// 16 keys of a turn.
  struct key_group {
    typename factor::rows left;
    std::uint32_t moves[2];  ///< of keys g and g + 8
    std::byte* target;       ///< the products of key g
  };
  __device__ key_group load_group(int group_of_turn, int stage) const;
  /// One axis of their products.
  __device__ void multiply_keys(const key_group& own, int axis) const;

  // --- Pairs: contextual_pairs.cuh ---------------------------------------------------------------

  /// Two elements of the one-hot row of a position, for factors whose lanes hold columns 2t and
  /// 2t + 1; `word` counts such registers over all axes.
  __device__ std::uint32_t own_cells(int word) const;
  /// This lane's row for `ldmatrix` of 16 rows of T, from `key` on.
  __device__ const std::byte* matrix_rows(const T* tile, int key) const;
  /// `s` = q·k of 16 keys.
  __device__ void score_rows(const row_state& state, const T* tile, int key,
                             float (&s)[2][4]) const;
  /// Adds Σ Gq to `scores`, over linear axes; `sides` = Σ Gk.
  __device__ void score_cells(const row_state& state, int key, float (&scores)[2][4],
                              float (&sides)[2][4]) const;
  /// The rows' windows, as this lane sees them from a turn.
  struct row_windows {
    int lowest, highest;            ///< keys of the turn that some row of the warp attends to
    int common_first, common_last;  ///< keys that all rows attend to
    int first[2], last[2];          ///< of rows g and g + 8
  };
  __device__ row_windows windows_of(const turn& now) const;
  /// The warp's rows against 16 keys from the turn's `key` on, of which those before `begin` have
  /// had their turn.
  template <bool Interior>
  __device__ void attend(const row_windows& windows, int key, int begin, int stage,
                         row_state& state) const;
  /// Adds the radial axis' products to `scores` and `sides`; `radial_steps` say where they are.
  __device__ void score_radial(const row_state& state, int key, int stage, float (&scores)[2][4],
                               float (&sides)[2][4], int (&radial_steps)[2][4]) const;

  // --- Pairs of short windows: contextual_short_pairs.cuh ----------------------------------------

  using own_products = std::uint32_t[parts][2][words];
  /// Stores an axis of products; of a loop, the last one, and those behind it move on.
  static __device__ void keep_axis(const std::uint32_t (&cells)[parts][2][cell_words], int axis,
                                   own_products& products);
  /// Adds the products of 16 tokens, by the cells and radii of 16 others from `other` on, whose radii are
  /// subtracted, or of which these are if `Keys`. `places` say where the radial ones are.
  template <bool Keys>
  __device__ void score_own(const own_products& products, const float (&radius)[2],
                            const row_state& state, int other, float (&scores)[2][4],
                            int (&places)[2][4]) const;
  /// Gk of 16 keys in registers, then their part of the logits of all rows of the unit, which are its keys.
  __device__ void score_keys(const typename factor::rows& left, int key, int tiles,
                             row_state& state) const;
  /// The warp's rows against all keys of the unit, `count` of them: all logits, the largest ones, then the
  /// weights, which are at most 1. The last 16 keys have a mask.
  __device__ void attend_at_once(const row_windows& windows, int count, row_state& state) const;

  // --- Sums of weights: contextual_weights.cuh ---------------------------------------------------

  /// Adds P·V, and the weights up as `tile_math` does.
  __device__ void add_values(const float (&p)[2][4], const T* tile, int key,
                             row_state& state) const;
  /// What has been summed up, by the rows' factors.
  __device__ void rescale(const float (&by)[2], row_state& state) const;
  /// One over a power of two.
  static __device__ float inverse_power(float power);
  /// A row's radial sums by a power of two, at most 1: a shift that rounds.
  __device__ void shift_sums(std::uint32_t* sums, float by) const;
  __device__ void rescale_radial(float first, float second) const;
  /// Of row g or g + 8.
  __device__ void clear_radial_sums(int i) const;
  /// A row's radial sums have a scale that follows its sum of weights, which stays below 2²² units
  /// (float: 2³¹): no sum of some weights reaches twice that, though each of them is rounded, and
  /// rounding costs little of it, however long the window is. Short windows begin with room for larger weights, as a rescaling costs them more than
  /// they lose.
  static constexpr float fixed_limit = lags ? 0x1p22f : 0x1p29f;
  static constexpr int short_window = 256;
  static constexpr float fixed_start = 0x1p23f;
  /// Windows that are attended to at once have 48 weights of at most 1.
  static constexpr float fixed_start_short =
      attends_at_once ? (lags ? 0x1p17f : 0x1p25f) : (lags ? 0x1p20f : 0x1p23f);
  __device__ void keep_fixed_point(row_state& state) const;
  /// Lanes of a warp add in some order, which does not matter to integers.
  __device__ void add_shared(int offset, std::uint32_t weight) const;
  /// A weight in fixed point. Below 2²² units, adding 2²³ rounds it, and leaves the float's exponent
  /// above the 23 bits that count.
  static __device__ std::uint32_t fixed(float weight, float scale);
  /// \return `unit` times a sum of such weights.
  static __device__ float from_fixed(std::uint32_t sum, float unit);
  /// Adds weights up by the cells of their keys, and by radial rows.
  __device__ void add_weights(const float (&p)[2][4], int key, const int (&radial_steps)[2][4],
                              row_state& state) const;

  // --- The end of a block of rows: contextual_result.cuh -----------------------------------------

  /// Tv of axes [first, first + count), rows of T by table row as `to_rows` has them, zeros where
  /// the table ends.
  /// By the block's first `threads`.
  __device__ void load_value_table(int first, int count,
                                   int threads = static_cast<int>(blockDim.x)) const;
  /// 16 rows of weights by table row, times one axis of Tv.
  __device__ void add_table(const std::uint32_t (&w)[weight_parts][2][row_words], int axis,
                            row_state& state) const;
  /// The same as T, times the h-th head's Tv, of a block with several heads.
  __device__ void add_head_table(const std::uint32_t (&w)[2][row_words], int axis, int h,
                                 float (&o)[2][4]) const;
  static __device__ void round_weights(float low, float high,
                                       std::uint32_t (&parts_)[weight_parts]);
  /// Normalises and adds Σ B·Tv.
  __device__ void complete_sums(const turn& now, row_state& state) const;
  /// Does so and stores. \return whether some row is not finite.
  __device__ bool finish_rows(const turn& now, row_state& state) const;
  /// Stores four neighbouring columns of 16 bits or two of 32, as the view allows.
  static __device__ void store_columns(T* target, std::uint32_t low, std::uint32_t high);
  /// \return whether some row of the warp is not finite.
  __device__ bool store(const turn& now, const row_state& state) const;

  /// The head's tables, in shared memory; all threads of the block take part.
  __device__ __forceinline__ void load_tables() const {
    if constexpr (staged) {
      using element = typename factor::element;
      const int first = static_cast<int>(threadIdx.x) / 32;
      const int count = static_cast<int>(blockDim.x) / 32;
      factor_of(group().table_q, 0)
          .template stage<true>(table_at<element>(layout::tables), Radial, first, count);
      factor_of(group().table_k, 1)
          .template stage<false>(table_at<element>(layout::tables + layout::table_bytes), Radial,
                                 first, count);
    }
    if constexpr (layout::tuning.value_axes == 3) load_value_table(0, 3);
  }
  /// What all rows of the warp have in common.
  __device__ __forceinline__ void begin_block(row_state& state) const {
    state.has_values = group().table_v.data != nullptr;
    state.length = group().quant_length;
    state.inverse_a = group().inverse_a;
    if constexpr (Radial)
      state.radial = in_register(layout::scratch + scratch_of_warp() + layout::radial_row(place.g) +
                                 4 * state.length);
    state.slack = group().counts->largest <= slack_window ? slack_short : slack;
    state.inverse_scale = __fdividef(1.0f, problem.scale);
    state.most_steps = (state.length << 22) - 1;
  }
  /// All the block's rows of one head. \return whether some row of the warp is not finite.
  __device__ __forceinline__ bool run() const {
    const row_bases bases{base_of(problem.q), base_of(problem.k), base_of(problem.v)};
    next_rows next{min(share * rows, assigned), 0, 0};
    load_bounds(next);
    if (next.row >= assigned) return false;
    if constexpr (leaves_short)
      if (shortest > 0 && has_taken_longer(problem, group(), shortest, table_at<int>(0)))
        return false;
    load_tables();
    turn_tokens tokens{};
    turn now = follow({0, 0, 0, 1, false}, next);
    load_tokens(now, tokens);
    request(now, 0, tokens, bases);
    turn coming = follow(now, next);
    load_tokens(coming, tokens);
    row_state state;
    begin_block(state);
    bool bad = false;
    int stage = 0;
#pragma unroll 1
    while (now.row < assigned) {
      wait_for_copies<0>();
      if constexpr (in_halves) split_keys(stage);
      __syncthreads();
      if (now.first) begin_rows(now, state);
      prepare_keys(now, stage);
      __syncthreads();
      if constexpr (layout::stages == 2) request(coming, stage ^ 1, tokens, bases);
      const row_windows windows = windows_of(now);
#pragma unroll 1
      for (int begin = windows.lowest & ~1; begin < windows.highest; begin += 16) {
        const int key = min(begin, keys - 16);
        if (begin >= windows.common_first && begin + 16 <= windows.common_last)
          attend<true>(windows, begin, begin, stage, state);
        else
          attend<false>(windows, key, begin, stage, state);
      }
      if (now.key + keys >= now.end) bad |= finish_rows(now, state);
      if constexpr (layout::stages == 1) {
        __syncthreads();
        request(coming, 0, tokens, bases);
      } else {
        stage ^= 1;
      }
      now = coming;
      coming = follow(now, next);
      load_tokens(coming, tokens);
    }
    wait_for_copies<0>();
    return bad;
  }
};

}  // namespace winnow::detail
