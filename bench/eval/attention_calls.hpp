// SPDX-License-Identifier: Apache-2.0
/// \file
/// One attention problem of an evaluation, from tensors to results: what all backends share.
#pragma once

#include "eval/backend.hpp"
#include "winnow/attention.hpp"

namespace winnow::eval {

/// The library's calls on arrays in host memory, wherever they run.
class attention_calls {
 public:
  virtual ~attention_calls() = default;
  virtual measurement forward(const attention_forward_arguments<>& arguments) = 0;
  virtual measurement backward(const attention_backward_arguments<>& arguments) = 0;
};

/// Rounds the tensors to the storage type and runs forward, then backward for each loss.
/// \param windows in the memory that `calls` want.
attention_result run_attention(const partition& windows, const attention_tensors& tensors,
                               dtype storage, attention_calls& calls);

}  // namespace winnow::eval
