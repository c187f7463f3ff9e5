// SPDX-License-Identifier: Apache-2.0
/// \file
/// One-hot rows of keys by `ldmatrix`, as the right factor of weights: a load of four registers of a lane instead of as
/// many comparisons.
///
/// A row of 24 cells is three blocks of eight, one of which has the 1. So the table has a block for each of eight
/// places of the 1, and two blocks of zeros between them; where a row begins says its position. A block is there once
/// for each of the eight rows of a matrix, in banks of their own, so that no load has conflicts.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_units_copies.cuh"
#include "winnow/detail/attention/mma.cuh"

namespace winnow::detail {

/// As `load_matrices_transposed`, of memory that does not change: the compiler may move it.
__device__ __forceinline__ void load_constant_transposed(std::uint32_t (&r)[4], std::uint32_t row) {
  asm("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(row));
}
__device__ __forceinline__ void load_constant_transposed(std::uint32_t (&r)[2], std::uint32_t row) {
  asm("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
      : "=r"(r[0]), "=r"(r[1])
      : "r"(row));
}

template <class T, int Heads>
struct contextual_units_cells : contextual_units_copies<T, Heads> {
  using base = contextual_units_copies<T, Heads>;
  using base::place;
  using base::tables;
  using typename base::layout;

  /// By all threads of the block.
  __device__ __forceinline__ void store_one_hots() const {
    static_assert(8 * layout::one_hot_blocks <= layout::threads);
    const int i = static_cast<int>(threadIdx.x), block = i / 8;
    if (i >= 8 * layout::one_hot_blocks) return;
    // Columns have the order of `spread`.
    const int cell = block > 0 && block % 3 == 0 ? block / 3 - 1 : 8;
    const std::uint32_t one = cell < 4 ? 0x3c00u : 0x3c000000u;
    const auto word = [&](int number) { return cell < 8 && cell % 4 == number ? one : 0u; };
    this->template table_at<uint4>(layout::one_hots)[i] = {word(0), word(1), word(2), word(3)};
  }
  /// Where this lane's rows of matrices begin, an axis each. \param code of key lane % 16.
  using key_places = std::uint32_t[3];
  __device__ __forceinline__ void find_keys(std::uint32_t code, key_places& places) const {
    // The 1 of cell 8 b + c is in block 3 c + 3, and its row begins b blocks before: a byte for each axis. What lies
    // behind a unit's last key may be any bits, and finds a row in the table as well, as b is at most 3.
    const std::uint32_t blocks = 3u * (code & 0x070707u) + 0x030303u - (code >> 3 & 0x030303u);
    const auto lane = static_cast<std::uint32_t>(place.lane);
    const std::uint32_t first = shared_address(tables) + layout::one_hots + lane % 8 * 16 +
                                lane / 16 * layout::one_hot_bytes;
#pragma unroll
    for (unsigned axis = 0; axis < 3; ++axis)
      places[axis] = first + layout::one_hot_bytes * __byte_perm(blocks, 0, 0x4440u + axis);
  }
  /// An axis of 16 keys: of eight and the others, a register for each eight cells.
  static __device__ __forceinline__ void load_columns(std::uint32_t row,
                                                      std::uint32_t (&columns)[2][cell_words]) {
    std::uint32_t sixteen[4], eight[2];
    load_constant_transposed(sixteen, row);
    load_constant_transposed(eight, row + 2 * layout::one_hot_bytes);
#pragma unroll
    for (int b = 0; b < 2; ++b)
      columns[b][0] = sixteen[b], columns[b][1] = sixteen[2 + b], columns[b][2] = eight[b];
  }
};

}  // namespace winnow::detail
