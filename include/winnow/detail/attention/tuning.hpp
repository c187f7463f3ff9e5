// SPDX-License-Identifier: Apache-2.0
/// \file
/// The shape of the forward kernel's tiles, one value for each (storage, head dim, encoding).
#pragma once

#include <cstddef>
#include <ostream>

#include "winnow/attention.hpp"

namespace winnow::detail {

/// Tile shapes fit the 99 KB of shared memory that a block of every supported architecture may
/// have, so one value serves all of them.
struct forward_tuning {
  int warps;       ///< a warp owns 16 query rows
  int key_tile;    ///< keys that a block computes on at a time
  int stages;      ///< key tiles that it holds: one computes, the others load
  int units;       ///< groups of 16 keys between two updates of the softmax state
  int wide_units;  ///< the same where all rows attend to all keys
  int min_blocks;  ///< blocks the compiler leaves room for on a multiprocessor

  [[nodiscard]] constexpr int rows() const { return 16 * warps; }
  [[nodiscard]] constexpr int threads() const { return 32 * warps; }
};

inline std::ostream& operator<<(std::ostream& out, const forward_tuning& tuning) {
  return out << tuning.rows() << " rows, " << tuning.key_tile << " keys, " << 16 * tuning.units
             << " keys a step, " << tuning.min_blocks << " blocks";
}

/// For plain attention and bias; contextual encoding has its own (contextual_layout.hpp).
constexpr forward_tuning tune_forward(std::size_t element_bytes, int head_dim, position_encoding) {
  const bool wide = element_bytes == 4;
  if (wide)
    return head_dim <= 32 ? forward_tuning{4, 64, 2, 2, 2, 4} : forward_tuning{4, 16, 2, 1, 1, 2};
  if (head_dim == 16) return {4, 128, 2, 2, 2, 6};
  if (head_dim == 32) return {4, 64, 2, 2, 2, 4};
  return head_dim == 64 ? forward_tuning{8, 64, 2, 2, 2, 2} : forward_tuning{4, 32, 2, 2, 2, 2};
}

}  // namespace winnow::detail
