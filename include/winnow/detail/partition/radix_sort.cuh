// SPDX-License-Identifier: Apache-2.0
/// \file
/// A stable radix sort of (key, token) pairs whose number of pairs and of passes is known only to
/// the device.
///
/// Why not a library sort: its passes are fixed on the host, so keys of unknown width cost eight of
/// them, and its tiles are cut for arrays of many millions. A frame has some 10⁵ tokens: tiles of
/// 2048 put one on every multiprocessor, and the pass takes the time of its longest chain of
/// dependent steps, not that of its traffic (8 bytes read and written a token, out of L2).
/// Hence many threads with few pairs each. Larger arrays take larger tiles.
///
/// One launch is one pass over 9 bits at most ("onesweep": Adinets, Merrill, 2022). A block takes a
/// tile of consecutive pairs, and each thread keeps `items` of them in registers:
///   1. every warp counts the digits of its own consecutive pairs in shared memory, one row of 32 at
///      a time, so that a pair's rank within the warp comes out with the count and in order;
///   2. the sums over warps are the tile's counts, which it publishes at once;
///   3. the pairs change places in shared memory, so that equal digits lie side by side and leave in
///      whole sectors;
///   4. the block looks back over the tiles before it, several rows at a time, until one has
///      published the counts of everything up to it. Tile 0 adds to its counts where each digit
///      begins in the whole array, from a histogram that the kernel which made the keys has taken;
///      the others inherit that;
///   5. the pairs go to their places.
/// Shared memory: the warps' counts (1 KiB a warp), then the pairs in the same place.
///
/// Keys of up to 32 bits travel as one 64-bit word with their token; wider ones as 12 bytes. The
/// device chooses by the plan. Launches beyond the plan's passes return at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "winnow/detail/partition/partition.hpp"
#include "winnow/detail/util/device.cuh"

namespace winnow::detail {

/// The shape of a pass.
template <int Threads, int Items, int Rows>
struct sort_policy {
  static constexpr int threads = Threads;
  static constexpr int items = Items;
  /// Rows of predecessors that a look back loads at a time. More would end it in fewer rounds, but
  /// all tiles look back at once, and their loads get into each other's way.
  static constexpr int rows = Rows;
  static constexpr int tile = threads * items;
  static_assert((tile & (tile - 1)) == 0 && tile <= 1 << 15, "tile counts are kept in 16 bits");
};
/// For frames: a tile on every multiprocessor, and a short chain of items in each thread.
using small_sort = sort_policy<512, 4, 4>;
/// For more tokens than that: fewer rows to publish and to look at.
using large_sort = sort_policy<256, 16, 4>;
inline constexpr std::int64_t small_sort_capacity = std::int64_t{1} << 20;

/// Calls `body(policy)` with the policy for so many tokens.
template <class Body>
auto visit_sort_policy(std::int64_t capacity, Body&& body) {
  return capacity <= small_sort_capacity ? body(small_sort{}) : body(large_sort{});
}

inline constexpr int max_digit_bits = 9;
inline constexpr int digits = 1 << max_digit_bits;
inline constexpr int max_key_bits = 63;
inline constexpr int max_passes = (max_key_bits + max_digit_bits - 1) / max_digit_bits;

constexpr int passes_of(int bits) noexcept {
  return divide_up(bits, max_digit_bits);
}

/// Written by the kernel that makes the keys.
struct sort_plan {
  std::uint64_t span;  ///< keys lie in [0, span]; `span` itself means "in no window"
  std::int32_t tokens;
  std::int32_t bits;
  std::int32_t passes;
  std::int32_t digit_bits;
  [[nodiscard]] __device__ bool narrow() const { return bits <= 32; }
};

/// The bits are shared out evenly, as fewer digits make a shorter look back.
__device__ inline sort_plan make_plan(std::uint64_t span, std::int32_t tokens) {
  sort_plan plan;
  plan.span = span;
  plan.tokens = tokens;
  plan.bits = max(1, 64 - __clzll(static_cast<long long>(span)));
  plan.passes = divide_up<std::int32_t>(plan.bits, max_digit_bits);
  plan.digit_bits = divide_up(plan.bits, plan.passes);
  return plan;
}

/// The memory of one sort. Pass p reads `items[p % 2]` and writes the other one. Pass 0 finds bare
/// keys, 32 or 64 bits each, whose tokens are their indices.
struct key_sorter {
  sort_plan* plan;
  std::uint32_t* histogram;  ///< [max_passes, digits]
  std::uint32_t* rows[2];    ///< [tiles, digits] published counts, see `chain`
  std::uint64_t* items[2];   ///< [N]
  std::int32_t* tokens[2];   ///< [N], null where keys are known to be narrow
  std::int32_t tile_bits;    ///< a tile holds 2^tile_bits pairs
};

WINNOW_HOST_DEVICE inline std::int64_t tiles_of(const key_sorter& sorter,
                                                std::int64_t tokens) noexcept {
  return (tokens + (std::int64_t{1} << sorter.tile_bits) - 1) >> sorter.tile_bits;
}

inline key_sorter carve_sorter(memory_carver& carver, std::int64_t capacity, bool wide) noexcept {
  key_sorter sorter{};
  const int tile = visit_sort_policy(capacity, [](auto policy) { return policy.tile; });
  while (1 << sorter.tile_bits < tile) ++sorter.tile_bits;
  sorter.plan = carver.take<sort_plan>(1);
  sorter.histogram = carver.take<std::uint32_t>(max_passes * digits);
  for (int i = 0; i < 2; ++i) {
    sorter.rows[i] = carver.take<std::uint32_t>(tiles_of(sorter, capacity) * digits);
    sorter.items[i] = carver.take<std::uint64_t>(capacity);
    if (wide) sorter.tokens[i] = carver.take<std::int32_t>(capacity);
  }
  return sorter;
}

/// Zeroes `count` words, a multiple of 4, with all threads of a one-dimensional grid.
__device__ inline void clear_words(std::uint32_t* words, std::int64_t count) {
  auto* vectors = reinterpret_cast<uint4*>(words);
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  // Not unrolled: to know how often, a thread would have to divide 64-bit numbers.
#pragma unroll 1
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count / 4;
       i += step)
    vectors[i] = uint4{0, 0, 0, 0};
}

/// The published counts that pass 0 waits on; later passes' are cleared by the pass before.
__device__ inline void clear_rows(const key_sorter& sorter, std::int32_t tokens) {
  clear_words(sorter.rows[0], tiles_of(sorter, tokens) * digits);
}

/// Writes keys for pass 0 and takes the histogram of every pass on the way.
class key_writer {
 public:
  /// \param counts shared memory of `max_passes * digits` words.
  __device__ key_writer(const key_sorter& sorter, const sort_plan& plan, std::uint32_t* counts)
      : sorter_(sorter), plan_(plan), counts_(counts) {
    for (int i = static_cast<int>(threadIdx.x); i < plan.passes * digits;
         i += static_cast<int>(blockDim.x))
      counts_[i] = 0;
    __syncthreads();
  }
  __device__ void write(std::int32_t token, std::uint64_t key) {
    if (plan_.narrow())
      reinterpret_cast<std::uint32_t*>(sorter_.items[0])[token] = static_cast<std::uint32_t>(key);
    else
      sorter_.items[0][token] = key;
    const std::uint32_t mask = (1u << plan_.digit_bits) - 1u;
    for (int p = 0; p < plan_.passes; ++p)
      atomicAdd(
          counts_ + p * digits + (static_cast<std::uint32_t>(key >> (p * plan_.digit_bits)) & mask),
          1u);
  }
  /// Called by all threads when the block has written its last key.
  __device__ void finish() {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < plan_.passes * digits;
         i += static_cast<int>(blockDim.x))
      if (counts_[i] != 0) atomicAdd(sorter_.histogram + i, counts_[i]);
  }

 private:
  const key_sorter& sorter_;
  const sort_plan plan_;
  std::uint32_t* counts_;
};

/// The lanes whose digit is this lane's.
__device__ inline unsigned lanes_of_digit(std::uint32_t digit) {
  unsigned same = all_lanes;
#pragma unroll
  for (int b = 0; b < max_digit_bits; ++b) {
    const bool bit = (digit >> b & 1u) != 0;
    const unsigned ones = __ballot_sync(all_lanes, bit);
    same &= bit ? ones : ~ones;
  }
  return same;
}

template <class Policy>
struct sort_shared {
  static constexpr int warps = Policy::threads / 32;
  static constexpr int bin_threads = digits / 2;  ///< a thread looks after two digits
  static_assert(Policy::threads >= bin_threads);

  std::uint32_t place[digits];
  std::uint32_t sums[warps];

  /// Σ over the threads before this one. All threads call.
  __device__ std::uint32_t exclusive_sum(std::uint32_t value) {
    const std::uint32_t inclusive = warp_inclusive_sum(value);
    if (lane_id() == 31) sums[warp_id()] = inclusive;
    __syncthreads();
    std::uint32_t before = inclusive - value;
    for (int w = 0; w < warp_id(); ++w) before += sums[w];
    __syncthreads();
    return before;
  }
};

/// Counts of two neighbouring digits over all tiles before `tile`, which is not 0. Both words of a row
/// are stored at once; should they be seen apart, the row counts as not there yet.
template <class Policy>
__device__ uint2 look_back(const std::uint32_t* rows, int tile) {
  uint2 before{0, 0};
  bool open = true;
  const auto* row =
      reinterpret_cast<const uint2*>(rows + std::int64_t{tile} * digits) + threadIdx.x;
  int ahead = tile;  // rows not yet taken in
  while (open) {
    uint2 seen[Policy::rows];
#pragma unroll
    for (int r = 0; r < Policy::rows; ++r)
      seen[r] = r < ahead ? load_relaxed(row - (r + 1) * (digits / 2)) : uint2{0, 0};
    int taken = 0;
#pragma unroll
    for (int r = 0; r < Policy::rows; ++r) {
      const bool there =
          min(seen[r].x, seen[r].y) != 0 && ((seen[r].x ^ seen[r].y) & chain::complete) == 0;
      if (!open || taken < r || !there) continue;
      taken = r + 1;
      open = (seen[r].x & chain::complete) == 0;
      before.x += seen[r].x - (open ? 1 : chain::complete);
      before.y += seen[r].y - (open ? 1 : chain::complete);
    }
    row -= taken * (digits / 2);
    ahead -= taken;
  }
  return before;
}

/// One tile of one pass. `memory` is shared: the warps' counts first, then the sorted tile, twice
/// for wide keys.
template <class Policy, class Key>
__device__ void sort_tile(const key_sorter& sorter, const sort_plan& plan, int pass,
                          sort_shared<Policy>& shared, std::uint64_t* memory) {
  constexpr bool wide = sizeof(Key) == 8;
  constexpr int items = Policy::items;
  constexpr int bin_threads = sort_shared<Policy>::bin_threads;
  const int tile = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const bool has_bins = thread < bin_threads;
  const auto tokens = static_cast<std::uint32_t>(plan.tokens);
  const std::uint32_t first = blockIdx.x * std::uint32_t{Policy::tile};
  const int valid = static_cast<int>(min(tokens - first, std::uint32_t{Policy::tile}));
  const std::uint64_t* in = sorter.items[pass % 2];
  std::uint32_t* rows = sorter.rows[pass % 2];
  const int shift = pass * plan.digit_bits;
  const std::uint32_t mask = (1u << plan.digit_bits) - 1u;
  const auto digit_of = [&](Key key) { return static_cast<std::uint32_t>(key >> shift) & mask; };

  // Places behind the end get the largest key: they stay behind everything in the last tile.
  Key keys[items];
  std::int32_t token[items];
  const int mine = warp_id() * 32 * items + lane_id();
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int local = mine + 32 * i;
    const std::uint32_t at = first + static_cast<std::uint32_t>(local);
    const bool there = local < valid;
    keys[i] = ~Key{0};
    token[i] = static_cast<std::int32_t>(at);
    if (!there) continue;
    if constexpr (wide) {
      keys[i] = in[at];
      if (pass > 0) token[i] = sorter.tokens[pass % 2][at];
    } else if (pass == 0) {
      keys[i] = reinterpret_cast<const std::uint32_t*>(in)[at];
    } else {
      const std::uint64_t pair = in[at];
      keys[i] = static_cast<std::uint32_t>(pair >> 32);
      token[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(pair));
    }
  }
  if (has_bins && pass + 1 < plan.passes)
    reinterpret_cast<uint2*>(sorter.rows[(pass + 1) % 2] + std::int64_t{tile} * digits)[thread] =
        uint2{0, 0};

  auto* counts = reinterpret_cast<std::uint32_t*>(memory);  // [warps, bin_threads], two 16-bit each
  auto* warp_counts = reinterpret_cast<std::uint16_t*>(counts + warp_id() * bin_threads);
  for (int i = lane_id(); i < bin_threads; i += 32) counts[warp_id() * bin_threads + i] = 0;
  __syncwarp();
  int rank[items];
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const std::uint32_t digit = digit_of(keys[i]);
    const unsigned same = lanes_of_digit(digit);
    const int leader = __ffs(static_cast<int>(same)) - 1;
    int before = 0;
    if (lane_id() == leader) {
      before = warp_counts[digit];
      warp_counts[digit] = static_cast<std::uint16_t>(before + __popc(same));
    }
    rank[i] = __shfl_sync(all_lanes, before, leader) + __popc(same & lanes_below());
    __syncwarp();
  }
  __syncthreads();

  std::uint32_t both = 0;  // the tile's counts of digits 2·thread and 2·thread + 1
  if (has_bins)
    for (int w = 0; w < sort_shared<Policy>::warps; ++w) both += counts[w * bin_threads + thread];
  const uint2 count{both & 0xffffu, both >> 16};
  auto* published = reinterpret_cast<uint2*>(rows + std::int64_t{tile} * digits) + thread;
  uint2 before{0, 0};
  if (tile == 0) {
    uint2 total{0, 0};
    if (has_bins) total = reinterpret_cast<const uint2*>(sorter.histogram + pass * digits)[thread];
    before.x = shared.exclusive_sum(total.x + total.y);
    before.y = before.x + total.x;
    if (has_bins)
      store_relaxed(published,
                    {chain::through(before.x + count.x), chain::through(before.y + count.y)});
  } else if (has_bins) {
    store_relaxed(published, {chain::own(count.x), chain::own(count.y)});
  }

  // Where each digit, and within it each warp, begins in the sorted tile.
  uint2 begin;
  begin.x = shared.exclusive_sum(count.x + count.y);
  begin.y = begin.x + count.x;
  if (has_bins) {
    std::uint32_t running = begin.x | begin.y << 16;
    for (int w = 0; w < sort_shared<Policy>::warps; ++w) {
      const std::uint32_t own = counts[w * bin_threads + thread];
      counts[w * bin_threads + thread] = running;
      running += own;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < items; ++i) rank[i] += warp_counts[digit_of(keys[i])];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < items; ++i)
    memory[rank[i]] =
        wide ? keys[i] : std::uint64_t{keys[i]} << 32 | static_cast<std::uint32_t>(token[i]);

  if (has_bins) {
    if (tile > 0) {
      before = look_back<Policy>(rows, tile);
      store_relaxed(published,
                    {chain::through(before.x + count.x), chain::through(before.y + count.y)});
    }
    shared.place[2 * thread] = before.x - begin.x;
    shared.place[2 * thread + 1] = before.y - begin.y;
  }
  __syncthreads();
  std::uint64_t* out = sorter.items[(pass + 1) % 2];
  std::uint32_t to[items];
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int local = thread + i * Policy::threads;
    if (local >= valid) continue;
    const std::uint64_t item = memory[local];
    const Key key = static_cast<Key>(wide ? item : item >> 32);
    to[i] = shared.place[digit_of(key)] + static_cast<std::uint32_t>(local);
    out[to[i]] = item;
  }
  if constexpr (wide) {  // the tokens take the same way
    __syncthreads();
    auto* tokens_in_order = reinterpret_cast<std::int32_t*>(memory);
#pragma unroll
    for (int i = 0; i < items; ++i) tokens_in_order[rank[i]] = token[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < items; ++i) {
      const int local = thread + i * Policy::threads;
      if (local < valid) sorter.tokens[(pass + 1) % 2][to[i]] = tokens_in_order[local];
    }
  }
}

/// The sorts that one launch serves, one per `blockIdx.y`.
struct sorter_list {
  key_sorter sorters[max_joint_partitions];
};

template <class Policy, bool MayBeWide>
__global__ void __launch_bounds__(Policy::threads)
    sort_pass_kernel(const __grid_constant__ sorter_list list, int pass) {
  wait_for_predecessor();
  constexpr int counts_bytes = Policy::threads / 32 * digits * 2;
  constexpr int items_bytes = Policy::tile * 8;
  __shared__ sort_shared<Policy> shared;
  __shared__ std::uint64_t memory[(counts_bytes > items_bytes ? counts_bytes : items_bytes) / 8];
  const key_sorter& sorter = list.sorters[blockIdx.y];
  const sort_plan plan = *sorter.plan;
  if (pass >= plan.passes) return;
  if (blockIdx.x * std::uint32_t{Policy::tile} >= static_cast<std::uint32_t>(plan.tokens)) return;
  if constexpr (MayBeWide) {
    if (!plan.narrow()) return sort_tile<Policy, std::uint64_t>(sorter, plan, pass, shared, memory);
  }
  sort_tile<Policy, std::uint32_t>(sorter, plan, pass, shared, memory);
}

/// A function of its own and no lambda: clang, as nvcc's host compiler, instantiates the body of a
/// generic lambda at once, which is too early for a kernel.
template <class Policy>
status launch_sort_passes(const sorter_list& list, int count, std::int64_t capacity, int passes,
                          bool wide, cudaStream_t stream) noexcept {
  const dim3 blocks(static_cast<unsigned>(divide_up<std::int64_t>(capacity, Policy::tile)),
                    static_cast<unsigned>(count));
  const auto kernel = wide ? sort_pass_kernel<Policy, true> : sort_pass_kernel<Policy, false>;
  for (int pass = 0; pass < passes; ++pass)
    WINNOW_TRY(launch("sort pass", kernel, blocks, Policy::threads, stream, list, pass));
  return {};
}

/// Submits `passes` passes for `count` sorts of up to `capacity` keys.
inline status launch_sort(const sorter_list& list, int count, std::int64_t capacity, int passes,
                          bool wide, cudaStream_t stream) noexcept {
  return visit_sort_policy(capacity, [&](auto policy) {
    return launch_sort_passes<decltype(policy)>(list, count, capacity, passes, wide, stream);
  });
}

/// The sorted pairs.
struct sorted_keys {
  const std::uint64_t* items;
  const std::int32_t* tokens;
  bool narrow;

  __device__ sorted_keys(const key_sorter& sorter, const sort_plan& plan)
      : items(sorter.items[plan.passes % 2]),
        tokens(sorter.tokens[plan.passes % 2]),
        narrow(plan.narrow()) {}
  [[nodiscard]] __device__ std::uint64_t key(std::uint32_t slot) const {
    return key_of(items[slot]);
  }
  [[nodiscard]] __device__ std::int32_t token(std::uint32_t slot) const {
    return narrow ? static_cast<std::int32_t>(static_cast<std::uint32_t>(items[slot]))
                  : tokens[slot];
  }
  [[nodiscard]] __device__ std::uint64_t key_of(std::uint64_t item) const {
    return narrow ? item >> 32 : item;
  }
};

}  // namespace winnow::detail
