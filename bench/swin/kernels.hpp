// SPDX-License-Identifier: Apache-2.0
/// \file
/// The network's own kernels, behind functions that a host compiler can call: the patch embedding, norms
/// with the residual additions around them, and the ranking of windows. Matrix products and attention are
/// cuBLASLt's and winnow's.
///
/// `type` is float16 or bfloat16 and is the type of every `void*`. All pointers are device memory. Calls
/// submit one kernel and can be captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "swin/model.hpp"
#include "winnow/storage.hpp"

namespace winnow::swin {

/// The rows that a block computes: row `(image * kept + k) * 49 + i` is token i, in raster order, of the
/// k-th kept window of that image. The map need not be a multiple of the window.
struct block_rows {
  grid_window map;  ///< not padded; its shift is the block's
  int kept = 0;     ///< windows of an image
  /// Both null: all windows, in raster order.
  const std::int32_t* ids = nullptr;    ///< [batch, id_stride], most important first
  const std::int32_t* ranks = nullptr;  ///< [batch, windows], the inverse
  int id_stride = 0;

  [[nodiscard]] int count() const { return map.batch * kept * window_tokens; }
};

/// Weight and bias of a norm.
struct norm_weights {
  const void* weight = nullptr;
  const void* bias = nullptr;
};
/// The same with the type of their elements.
template <class T>
struct norm_vectors {
  explicit norm_vectors(const norm_weights& norm)
      : weight(static_cast<const T*>(norm.weight)), bias(static_cast<const T*>(norm.bias)) {}
  const T* weight;
  const T* bias;
};

/// What happens to every token of a map between two blocks:
///
///     x = stream; change: x += change[row of the token], stream = x
///     magnitude = mean |x|; rows[row of the token] = norm(x)
///
/// Rows of padding become 0. Tokens for which nothing is to be done are not read.
struct token_update {
  int channels = 0;
  grid_window map;
  void* stream = nullptr;        ///< [tokens, channels]
  const void* change = nullptr;  ///< [changed.count(), channels]; null: none
  block_rows changed;
  float* magnitude = nullptr;  ///< [tokens]; null: not wanted
  void* rows = nullptr;        ///< [next.count(), channels]; null: not wanted
  block_rows next;
  norm_weights norm;
  std::uint32_t* positions = nullptr;  ///< [next.count()] for attention; null: not wanted
};
cudaError_t launch_token_update(dtype type, const token_update& update, cudaStream_t stream);

/// The patch embedding, for 96 channels: stream = norm(weight · patch + bias), magnitude = mean |stream|.
struct patch_embedding {
  image_size size;
  const void* images = nullptr;  ///< [batch, 3, height, width]
  const void* weight = nullptr;  ///< `pack_embedding` of it
  const void* bias = nullptr;
  norm_weights norm;
  void* stream = nullptr;      ///< [tokens, 96]
  float* magnitude = nullptr;  ///< [tokens]; null: not wanted
};
cudaError_t launch_embedding(dtype type, const patch_embedding& work, cudaStream_t stream);
/// The weight [96, 3, 4, 4] in the order in which the kernel reads it; host memory.
std::vector<float> pack_embedding(const std::vector<float>& w);

/// A token update for the rows of one block: x = stream + change[row], stream = x, rows[row] = norm(x).
struct row_update {
  int channels = 0;
  block_rows block;
  void* stream = nullptr;
  const void* change = nullptr;  ///< null: none, and the stream is not written
  void* rows = nullptr;
  norm_weights norm;
  std::uint32_t* positions = nullptr;
};
cudaError_t launch_row_update(dtype type, const row_update& update, cudaStream_t stream);

/// \name A block of 96 channels: two kernels around attention
/// @{
inline constexpr int fused_channels = 96;

/// rows = matrix · norm(stream) + bias: q, k and v of the rows of the block, side by side.
struct fused_qkv {
  block_rows block;
  const void* stream = nullptr;
  norm_weights norm;
  const void* matrix = nullptr;  ///< `pack_qkv` of it
  const void* bias = nullptr;
  void* rows = nullptr;                ///< [block.count(), 3 * 96]
  std::uint32_t* positions = nullptr;  ///< [block.count()] for attention; null: not wanted
};
inline constexpr std::size_t packed_qkv_elements = std::size_t{3} * fused_channels * fused_channels;
cudaError_t launch_fused_qkv(dtype type, const fused_qkv& work, cudaStream_t stream);
/// The matrix [288, 96] in the order in which the kernel reads it; host memory.
std::vector<float> pack_qkv(const std::vector<float>& w);

/// stream += projection · attended + projection_bias, then
/// stream += w2 · gelu(w1 · norm(stream) + hidden_bias) + bias, for the rows of the block.
struct fused_mlp {
  block_rows block;
  void* stream = nullptr;
  const void* attended = nullptr;  ///< [block.count(), 96]
  const void* projection_bias = nullptr;
  norm_weights norm;
  const void* matrices = nullptr;  ///< `pack_mlp` of all three
  const void* hidden_bias = nullptr;
  const void* bias = nullptr;
};
inline constexpr std::size_t packed_mlp_elements =
    (2 * std::size_t{mlp_ratio} + 1) * fused_channels * fused_channels;
cudaError_t launch_fused_mlp(dtype type, const fused_mlp& work, cudaStream_t stream);
/// The projection [96, 96], w1 [384, 96] and w2 [96, 384] in the order in which the kernel reads them.
std::vector<float> pack_mlp(const std::vector<float>& projection, const std::vector<float>& w1,
                            const std::vector<float>& w2);
/// @}

/// The end of a stage: x = stream + change, output = norm(x) for every token, and for every place of the
/// next map merged = norm(the four x side by side).
struct stage_end {
  int channels = 0;
  grid_window map;
  const void* stream = nullptr;
  const void* change = nullptr;  ///< null: none
  block_rows changed;
  void* output = nullptr;  ///< [tokens, channels]
  norm_weights norm;
  void* merged = nullptr;  ///< [places, 4 * channels], token by token; null: the last stage
  norm_weights merge_norm;
};
cudaError_t launch_stage_end(dtype type, const stage_end& end, cudaStream_t stream);

/// Ranks the windows of both shifts by the L2 norm of their tokens' magnitudes; semantics of
/// `window_importance` and `select_most_important`.
struct ranking {
  grid_window map;  ///< not padded
  int windows = 0;  ///< of an image
  const float* magnitude = nullptr;
  /// By shift; null: that shift is not ranked.
  std::int32_t* ids[2] = {};    ///< [batch, longest]
  std::int32_t* ranks[2] = {};  ///< [batch, windows]
  float* importance[2] = {};    ///< [batch, windows]
  int longest[2] = {0, 0};
};
/// The most windows an image may have.
inline constexpr int max_ranked_windows = 12000;
cudaError_t launch_ranking(const ranking& work, cudaStream_t stream);

}  // namespace winnow::swin
