// SPDX-License-Identifier: Apache-2.0
// Attention on the device with any arguments launches what a GPU takes, or gives a status and has
// launched nothing. Nothing runs: fake_runtime.hpp.
#include "attention_arguments.hpp"
#include "fake_runtime.hpp"

namespace {

using namespace winnow;
using namespace winnow::fuzz;

/// What only a partition that was bound by hand can get wrong.
void distort(byte_source& source, partition& windows) {
  windows.max_tokens = source.integer(windows.max_tokens);
  if (source.rarely(4)) windows.relative.kind = static_cast<relative_kind>(source.pick(6) - 1);
  windows.relative.quant_length = source.small_integer(windows.relative.quant_length);
  if (source.rarely(4)) windows.position = nullptr;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_source source(data, size);
  memory memory_(source, memory_place::device);
  // Mostly what the build that is fuzzed was compiled for.
  const dtype type = source.pick(4) > 0 ? dtype::float16 : pick_dtype(source);
  const std::int64_t head_dim = source.rarely(16) ? source.pick(140) : 8 * (1 + source.pick(4));
  const std::int64_t tokens =
      source.rarely(4) ? (std::int64_t{1} << source.pick(32)) - source.pick(2) : source.pick(100);
  attention_problem problem(source, memory_, type, tokens, head_dim);
  const bool lies = source.rarely(8);

  if (source.pick(2) == 0) {
    if (lies) distort(source, problem.groups[0].windows);
    const std::size_t wanted = attention_forward_workspace_bytes(problem.forward);
    const device_workspace workspace(source, memory_, wanted);
    const status valid = validate(problem.forward);
    const status result = device_call(source, [&] {
      return attention_forward(problem.forward, workspace.data(), workspace.bytes(), nullptr);
    });
    require(valid.ok() || result.code() == valid.code(), "what does not validate is refused so");
    workspace.check(result);
    return 0;
  }
  const attention_backward_arguments<void> backward = problem.backward();
  if (lies) distort(source, problem.groups[0].windows);
  const std::size_t wanted = attention_backward_workspace_bytes(backward);
  const device_workspace workspace(source, memory_, wanted);
  const status valid = validate(backward);
  const status result = device_call(source, [&] {
    return attention_backward(backward, workspace.data(), workspace.bytes(), nullptr);
  });
  require(valid.ok() || result.code() == valid.code(), "what does not validate is refused so");
  workspace.check(result);
  return 0;
}
