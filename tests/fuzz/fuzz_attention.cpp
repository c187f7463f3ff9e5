// SPDX-License-Identifier: Apache-2.0
// Attention with any arguments gives a result or a status, and writes nothing on failure.
#include "attention_arguments.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

/// `validate` alone reads no memory behind the views, so it may see a partition that lies, too.
template <class Arguments>
void try_lies(byte_source& source, const Arguments& arguments,
              std::vector<head_group<void>>& groups) {
  if (groups.empty()) return;
  partition& windows = groups[0].windows;
  windows.max_tokens = source.integer(windows.max_tokens);
  windows.relative.kind = static_cast<relative_kind>(source.pick(6) - 1);
  windows.relative.quant_length = source.small_integer(windows.relative.quant_length);
  if (source.rarely(4)) windows.position = nullptr;
  (void)validate(arguments);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory memory_(source);
  const dtype type = pick_dtype(source);
  const std::int64_t head_dim = source.rarely(32) ? source.pick(140) : 8 * (1 + source.pick(2));
  const std::int64_t tokens = source.pick(5) * 4;
  const int threads = source.rarely(32) ? source.pick(4) - 1 : 1;
  const bool twice = source.pick(2) == 1;
  attention_problem problem(source, memory_, type, tokens, head_dim);

  if (source.pick(2) == 0) {
    const attention_forward_arguments<void>& forward = problem.forward;
    const status valid = validate(forward);
    if (memory_.honest()) {
      const status result = call(memory_, [&] {
        return twice ? reference::attention_forward<double>(forward, threads)
                     : reference::attention_forward<float>(forward, threads);
      });
      require(valid.ok() == result.ok(), "what validates is computed");
    }
    try_lies(source, forward, problem.groups);
    return 0;
  }

  const attention_backward_arguments<void> backward = problem.backward();
  const status valid = validate(backward);
  if (memory_.honest()) {
    const status result = call(memory_, [&] {
      return twice ? reference::attention_backward<double>(backward, threads)
                   : reference::attention_backward<float>(backward, threads);
    });
    require(valid.ok() == result.ok(), "what validates is computed");
  }
  try_lies(source, backward, problem.groups);
  return 0;
}
