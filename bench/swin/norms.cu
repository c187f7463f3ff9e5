// SPDX-License-Identifier: Apache-2.0
/// \file
/// Norms inside a stage, and the residual additions around them.
///
/// What a block of threads computes: 4 to 32 lanes hold one token (row_norm.cuh), add what the last
/// matrix product left for it, write the sum to the stream and its norm to the row where the next block
/// wants it. One pass serves the end of one block and the start of the next, although their windows differ:
/// a norm belongs to a token, and where a token's row is follows from its place and the ranks of windows.
/// So features are never gathered, scattered or rolled on their own.
///
/// What is added comes from a matrix product, which begins when all kernels before it have ended. So where
/// something is added, ids and ranks are older than the predecessor and are read before it ends.
///
/// What bounds it: traffic, 8 bytes a channel and token, where there are many rows, and with few of them
/// the trips to memory and the instructions of a warp, 440 to 530, which a multiprocessor with up to 28
/// warps issues in as much time as a trip takes. So there are two trips, one for ids or ranks and one for
/// everything else, with registers for both rows and both vectors as they are stored; additions take two
/// elements at a time; places come from reciprocals; what depends on the call is a constant of the kernel;
/// and warps without a token end early.
#include "swin/kernels.hpp"
#include "swin/row_map.cuh"
#include "swin/row_norm.cuh"
#include "winnow/detail/util/device.cuh"

namespace winnow::swin {
namespace {

constexpr int threads = 128;
constexpr int resident = 7;  // blocks of a multiprocessor: as many as need no spills

template <class T>
struct token_arguments {
  explicit token_arguments(const token_update& update)
      : stream(static_cast<T*>(update.stream)),
        change(static_cast<const T*>(update.change)),
        magnitude(update.magnitude),
        rows(static_cast<T*>(update.rows)),
        norm(update.norm),
        positions(update.positions),
        changed(update.changed),
        next(update.next),
        batch(update.map.batch),
        height(update.map.height),
        width(update.map.width) {
    // Rows of padding are to be zeroed, too.
    scan_height = rows != nullptr ? next.padded_height : height;
    scan_width = rows != nullptr ? next.padded_width : width;
    per_line = 1.0f / static_cast<float>(scan_width);
  }
  T* stream;
  const T* change;
  float* magnitude;
  T* rows;
  norm_vectors<T> norm;
  std::uint32_t* positions;
  row_map changed, next;
  int batch, height, width, scan_height, scan_width;
  float per_line;  ///< 1 / scan_width
};

template <class T, int Lanes, bool Adds, bool Norms>
__global__ void __launch_bounds__(threads, resident)
    token_update_kernel(const __grid_constant__ token_arguments<T> work) {
  using row_type = token_row<T, Lanes>;
  using stored_type = typename row_type::stored_type;
  constexpr int channels = row_type::channels;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  stored_type norm_weight, norm_bias;
  if constexpr (Norms) {
    norm_weight.load(work.norm.weight, true, lane);
    norm_bias.load(work.norm.bias, true, lane);
  }
  if constexpr (!Adds) detail::wait_for_predecessor();
  const int image = static_cast<int>(blockIdx.y);
  const int index = static_cast<int>(blockIdx.x * threads + threadIdx.x) / Lanes;
  const bool present = index < work.scan_height * work.scan_width;
  const int y = quotient(index, work.per_line);
  const int x = index - y * work.scan_width;
  const bool inside = present && y < work.height && x < work.width;
  const auto changed = work.changed.rolled(y, x);
  const auto next = work.next.rolled(y, x);
  const int changed_rank = work.changed.rank_of(image, changed.window, Adds && inside);
  const int next_rank = work.next.rank_of(image, next.window, Norms && present);
  if constexpr (Adds) detail::wait_for_predecessor();
  detail::admit_successor();
  const int from = Adds ? work.changed.row_of(changed_rank, changed.token) : -1;
  const int to = Norms ? work.next.row_of(next_rank, next.token) : -1;
  const bool measures = work.magnitude != nullptr;
  // Of the tokens of a pruned stage many are nobody's, and their neighbours as well.
  if (!__any_sync(detail::all_lanes, from >= 0 || to >= 0 || (measures && inside))) return;

  const int token_at = y * work.width + x;
  const std::int64_t first_token = static_cast<std::int64_t>(image) * (work.height * work.width);
  T* const memory = work.stream + first_token * channels + token_at * channels;
  stored_type token, change;
  token.load(memory, inside && (from >= 0 || to >= 0 || measures), lane);
  if constexpr (Adds)
    change.load(work.change + work.changed.first_row(image) * channels + from * channels, from >= 0,
                lane);
  if constexpr (Adds) {
    token.add(change);
    if (from >= 0) token.store(memory, lane);
  }
  const row_type value = row_type::from(token);
  if (measures) {
    const float magnitude = value.magnitude();
    if (inside && lane == 0) work.magnitude[first_token + token_at] = magnitude;
  }
  if constexpr (Norms) {
    auto result = value.normed(norm_weight, norm_bias, norm_epsilon).stored();
    if (to < 0) return;
    if (!inside) result = {};
    const std::int64_t first_row = work.next.first_row(image);
    result.store(work.rows + first_row * channels + to * channels, lane);
    if (work.positions != nullptr && lane == 0)
      work.positions[first_row + to] = work.next.position_of(y, x);
  }
}

template <class T>
struct row_arguments {
  explicit row_arguments(const row_update& update)
      : stream(static_cast<T*>(update.stream)),
        change(static_cast<const T*>(update.change)),
        rows(static_cast<T*>(update.rows)),
        norm(update.norm),
        positions(update.positions),
        block(update.block) {}
  T* stream;
  const T* change;
  T* rows;
  norm_vectors<T> norm;
  std::uint32_t* positions;
  row_map block;
};

template <class T, int Lanes, bool Adds>
__global__ void __launch_bounds__(threads, resident)
    row_update_kernel(const __grid_constant__ row_arguments<T> work) {
  using row_type = token_row<T, Lanes>;
  constexpr int channels = row_type::channels;
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const int image = static_cast<int>(blockIdx.y);
  const int row = static_cast<int>(blockIdx.x * threads + threadIdx.x) / Lanes;
  const int k = row / window_tokens;
  const bool present = k < work.block.kept;
  const std::int64_t first_row = work.block.first_row(image);
  const std::int64_t first_token =
      static_cast<std::int64_t>(image) * (work.block.height * work.block.width);
  typename row_type::stored_type norm_weight, norm_bias, token, change;
  norm_weight.load(work.norm.weight, true, lane);
  norm_bias.load(work.norm.bias, true, lane);
  if constexpr (!Adds) detail::wait_for_predecessor();
  const int window = window_of(work.block, image, present ? k : 0);
  if constexpr (Adds) {
    detail::wait_for_predecessor();
    change.load(work.change + first_row * channels + row * channels, present, lane);
  }
  const place where = place_in_window(work.block, image, window, row - k * window_tokens);
  const bool inside = present && work.block.inside(where);
  T* const memory =
      work.stream + first_token * channels + (where.y * work.block.width + where.x) * channels;
  token.load(memory, inside, lane);

  if constexpr (Adds) {
    token.add(change);
    if (inside) token.store(memory, lane);
  }
  auto result = row_type::from(token).normed(norm_weight, norm_bias, norm_epsilon).stored();
  if (!present) return;
  if (!inside) result = {};
  result.store(work.rows + first_row * channels + row * channels, lane);
  if (work.positions != nullptr && lane == 0)
    work.positions[first_row + row] = work.block.position_of(where.y, where.x);
}

dim3 grid_for(int rows_of_image, int lanes, int images) {
  return {static_cast<unsigned>(round_up_div(rows_of_image * lanes, threads)),
          static_cast<unsigned>(images)};
}

}  // namespace

cudaError_t launch_token_update(dtype type, const token_update& update, cudaStream_t stream) {
  return with_shape(type, update.channels, [&](auto element, auto lanes) {
    using T = decltype(element);
    const token_arguments<T> work(update);
    return with_flags(work.change != nullptr, work.rows != nullptr, [&](auto adds, auto norms) {
      return detail::launch_kernel(token_update_kernel<T, lanes, adds, norms>,
                                   grid_for(work.scan_height * work.scan_width, lanes, work.batch),
                                   threads, 0, stream, work);
    });
  });
}

cudaError_t launch_row_update(dtype type, const row_update& update, cudaStream_t stream) {
  return with_shape(type, update.channels, [&](auto element, auto lanes) {
    using T = decltype(element);
    const auto launch = [&](auto adds) {
      return detail::launch_kernel(
          row_update_kernel<T, lanes, adds>,
          grid_for(update.block.kept * window_tokens, lanes, update.block.map.batch), threads, 0,
          stream, row_arguments<T>(update));
    };
    return update.change != nullptr ? launch(std::true_type()) : launch(std::false_type());
  });
}

}  // namespace winnow::swin
