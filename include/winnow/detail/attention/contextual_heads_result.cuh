// SPDX-License-Identifier: Apache-2.0
/// \file
/// The end of 16 rows of two heads: sums of weights by cell and by radial row meet Tv, and the result is stored.
#pragma once

#include <cstdint>

#include "winnow/detail/attention/contextual_heads.cuh"
#include "winnow/detail/attention/contextual_products.cuh"
#include "winnow/detail/attention/contextual_result.cuh"
#include "winnow/detail/attention/mma.cuh"
#include "winnow/detail/attention/softmax.cuh"

namespace winnow::detail {

template <class T, bool Radial, class Layout>
struct contextual_heads_result : contextual_heads<T, Radial, Layout> {
  using base = contextual_heads<T, Radial, Layout>;
  using base::group;
  using base::group_head;
  using base::heads;
  using base::place;
  using base::problem;
  using base::shared;
  using base::words;
  using typename base::head_state;
  using typename base::heads_state;
  using typename base::layout;

  // --- Sums meet Tv -------------------------------------------------------------------------------

  /// A head's weights by radial row: lanes have four neighbours.
  __device__ __forceinline__ void add_radial_axis(int h, heads_state& state) const {
    const uint4* sums = this->sums_of_lane(state) + 4 * h * base::lane_sums;
    const auto weight = [](std::uint32_t sum) {
      return __uint2float_rn(sum) * (1.0f / (1u << base::unit_bits));
    };
    std::uint32_t w[2][row_words];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < base::lane_sums; ++n) {
        const uint4 four = sums[i * base::sums_of_eight_rows + 4 * n];
        w[i][2 * n] = pack<T>(weight(four.x), weight(four.y));
        w[i][2 * n + 1] = pack<T>(weight(four.z), weight(four.w));
      }
    this->add_head_table(w, 2, h, state.of_head[h].o);
  }
  /// Adds what weights by cell are in all, and Σ B·Tv of linear axes. \param codes of row g.
  __device__ __forceinline__ void add_sums_by_cell(const std::uint32_t* codes,
                                                   heads_state& state) const {
    if constexpr (base::sums_cells)
#pragma unroll
      for (int h = 0; h < heads; ++h) base::sum_cells(state.of_head[h]);
    if (!state.has_values) return;
    const std::uint32_t moves[2] = {moves_of(codes[0], state.length, place.t),
                                    moves_of(codes[8], state.length, place.t)};
#pragma unroll
    for (int axis = 0; axis < layout::axes; ++axis)
#pragma unroll
      for (int h = 0; h < heads; ++h) {
        head_state& own = state.of_head[h];
        std::uint32_t w[2][row_words];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::uint32_t cells[cell_words];
#pragma unroll
          for (int word = 0; word < cell_words; ++word) {
            const auto& sums = own.cells[axis * cell_words + word];
            if constexpr (!layout::sums_halves) {
              cells[word] = pack<T>(sums[2 * i], sums[2 * i + 1]);
            } else if constexpr (std::is_same_v<T, half>) {
              cells[word] = sums[i];
            } else {
              const float2 two = unpack<half>(sums[i]);
              cells[word] = pack<T>(two.x, two.y);
            }
          }
          row_shift{moves[i] >> (8 * axis)}.to_rows(cells, w[i]);
        }
        this->add_head_table(w, axis, h, own.o);
      }
  }
  /// Adds Σ B·Tv of the radial axis and normalises, behind `add_sums_by_cell`.
  __device__ __forceinline__ void complete_sums(heads_state& state) const {
    float by[heads][2];
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      head_state& own = state.of_head[h];
      if constexpr (base::sums_cells) add_lane_sums(own.softmax.sum);
#pragma unroll
      for (int i = 0; i < 2; ++i) by[h][i] = reciprocal(own.softmax.sum[2 * i]);
    }
    if constexpr (Radial)
      if (state.has_values) {
        __syncwarp();
#pragma unroll
        for (int h = 0; h < heads; ++h) add_radial_axis(h, state);
      }
#pragma unroll
    for (int h = 0; h < heads; ++h) scale_rows(by[h], state.of_head[h].o);
  }

  // --- The result ---------------------------------------------------------------------------------

  /// By the first lanes of the block: where a lane's quarter of two heads' rows begins.
  __device__ __forceinline__ void store_result_pointers() const {
    const int lane = static_cast<int>(threadIdx.x);
    if (lane >= 4) return;
    this->template table_at<T*>(layout::results)[lane] =
        static_cast<T*>(const_cast<void*>(problem.out.data)) +
        (group().first_head + group_head + lane / 2) * problem.out.head_stride + lane % 2 * 8;
  }
  /// Where 16 rows of two heads, 64 bytes each, lie before they are stored: row `row`.
  __device__ __forceinline__ std::byte* result_row(int row) const {
    if constexpr (Radial)
      return this->scratch() + layout::radial_row(row);
    else
      return this->template at<std::byte>(layout::row_products + 80 * row);
  }
  /// Stores 16 rows, whose strides fit 32 bits. \param tokens of row 0. \param wanted rows g and g + 8.
  /// \return is an element of this lane's wanted rows not finite?
  __device__ __forceinline__ bool store_rows(const std::int32_t* tokens, const bool (&wanted)[2],
                                             const heads_state& state) const {
    const std::int32_t own_tokens[2] = {tokens[place.g], tokens[place.g + 8]};
    T* const first = this->template table_at<T* const>(layout::results)[place.t];
    // Through shared memory, so that each lane has 16 bytes of a row.
    const std::uint32_t matrices =
        shared_address(result_row(place.lane % 16) + place.lane / 16 * 16);
    __syncwarp();
#pragma unroll
    for (int h = 0; h < heads; ++h) {
      const auto& o = state.of_head[h].o;
      store_matrices({pack<T>(o[0][0], o[0][1]), pack<T>(o[0][2], o[0][3]),
                      pack<T>(o[1][0], o[1][1]), pack<T>(o[1][2], o[1][3])},
                     matrices + static_cast<std::uint32_t>(32 * h));
    }
    __syncwarp();
    const bool column = place.t % 2 * 8 < problem.head_dim;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 part = reinterpret_cast<const uint4*>(result_row(place.g + 8 * i))[place.t];
      finite &= are_finite<T>(part) | !wanted[i];
      T* target = first;
      asm("mad.wide.s32 %0, %1, %2, %0;"
          : "+l"(target)
          : "r"(own_tokens[i]),
            "r"(static_cast<std::int32_t>(problem.out.token_stride * int{sizeof(T)})));
      if (wanted[i] && column) store_part(target, part);
    }
    if (problem.lse != nullptr) store_lse(tokens, wanted, state);
    return !finite;
  }
  /// Sums of infinite or NaN elements times 0 are NaN.
  template <class U>
  static __device__ __forceinline__ bool are_finite(const uint4& part) {
    using pair = std::conditional_t<std::is_same_v<U, half>, half2, __nv_bfloat162>;
    const std::uint32_t nothing = 0;
    const pair& zero = *reinterpret_cast<const pair*>(&nothing);
    const auto as_pair = [](const std::uint32_t& bits) {
      return *reinterpret_cast<const pair*>(&bits);
    };
    pair sum = __hmul2(as_pair(part.x), zero);
    sum = __hfma2(as_pair(part.y), zero, sum);
    sum = __hfma2(as_pair(part.z), zero, sum);
    sum = __hfma2(as_pair(part.w), zero, sum);
    return (*reinterpret_cast<const std::uint32_t*>(&sum) & 0x7fff7fffu) == 0;
  }
  static __device__ __forceinline__ void store_part(T* target, const uint4& part) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(part.x), "r"(part.y),
                 "r"(part.z), "r"(part.w)
                 : "memory");
  }
  /// The quad's lanes have rows g and g + 8 of the first head, then of the second one.
  __device__ __forceinline__ void store_lse(const std::int32_t* tokens, const bool (&wanted)[2],
                                            const heads_state& state) const {
    const bool odd = place.t % 2 == 1;
    const int h = place.t / 2;
    const auto& first = state.of_head[0].softmax;
    const auto& second = state.of_head[1].softmax;
    const float sum =
        odd ? (h == 0 ? first.sum[2] : second.sum[2]) : (h == 0 ? first.sum[0] : second.sum[0]);
    const float offset = odd ? (h == 0 ? first.offset[1] : second.offset[1])
                             : (h == 0 ? first.offset[0] : second.offset[0]);
    float* target = problem.lse + (group().first_head + group_head + h) * problem.lse_head_stride;
    asm("mad.wide.s32 %0, %1, %2, %0;"
        : "+l"(target)
        : "r"(tokens[place.g + 8 * (place.t & 1)]),
          "r"(static_cast<std::int32_t>(problem.lse_token_stride * 4)));
    if (odd ? wanted[1] : wanted[0]) *target = (__log2f(sum) - offset) * ln_2;
  }
};

}  // namespace winnow::detail
