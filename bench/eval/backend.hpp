// SPDX-License-Identifier: Apache-2.0
/// \file
/// Where the work runs. A backend takes host arrays, gives host arrays, and measures its calls
/// without the copies between.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "eval/array.hpp"
#include "eval/inputs.hpp"
#include "winnow/partition.hpp"

namespace winnow::eval {

/// One call: wall time, and the memory it took beyond its inputs and outputs.
struct measurement {
  double seconds = 0.0;
  std::size_t extra_bytes = 0;
};

using point_window = std::variant<cubic_window, spherical_window>;

/// A partition in the memory of the backend that built it.
class built_partition {
 public:
  virtual ~built_partition() = default;
  /// The same in host memory.
  [[nodiscard]] virtual const partition& host() const = 0;
  [[nodiscard]] virtual std::size_t bytes() const = 0;
  [[nodiscard]] const measurement& build() const { return build_; }

 protected:
  measurement build_;
};

/// The losses whose gradient backward starts from.
enum class loss { normal, mean };
inline constexpr std::array<loss, 2> losses = {loss::normal, loss::mean};

/// The tensors of one attention call in FP32, before any rounding.
struct attention_tensors {
  std::int64_t tokens = 0;
  int heads = 0;
  int head_dim = 0;
  int table_rows = 0;                         ///< 0: plain attention
  array q, k, v;                              ///< [tokens, heads, head_dim]
  array table_q, table_k, table_v;            ///< [table_rows, 3, heads, head_dim]
  std::array<array, losses.size()> grad_out;  ///< by loss, [tokens, heads, head_dim]
};

struct attention_gradients {
  array q, k, v;
  array table_q, table_k, table_v;  ///< empty for plain attention
};

struct attention_result {
  array out;
  std::array<attention_gradients, losses.size()> gradients;  ///< by loss
  measurement forward;
  measurement backward;  ///< for the first loss
};

class backend {
 public:
  virtual ~backend() = default;
  /// What the calls run on, for people.
  [[nodiscard]] virtual std::string description() const = 0;
  /// The storage type that one would use there.
  [[nodiscard]] virtual dtype usual_storage() const = 0;
  virtual std::unique_ptr<built_partition> build(const point_window& window,
                                                 const token_set& tokens) = 0;
  /// Rounds the tensors to the storage type and runs forward, then backward for each loss.
  virtual attention_result run(const built_partition& windows, const attention_tensors& tensors,
                               dtype storage) = 0;
};

std::unique_ptr<backend> make_cpu_backend(int threads);
/// \param threads of the host, for what only the host computes.
/// \throw support::input_error if there is no GPU, or winnow was built without CUDA. There is no
///        falling back to another device.
std::unique_ptr<backend> make_cuda_backend(int threads);

}  // namespace winnow::eval
