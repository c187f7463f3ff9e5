// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// What a model allocates once, for frames of up to so many tokens. All memory is the device's.
struct frame_memory {
  std::size_t partition_bytes = 0;
  std::size_t workspace_bytes = 0;
  void* partition = nullptr;
  void* workspace = nullptr;
};

frame_memory measure(const winnow::cubic_window& window, const winnow::point_set& points) {
  frame_memory memory;
  memory.partition_bytes = partition_bytes(shape_of(window, points.coordinates.shape[0]));
  memory.workspace_bytes = build_partition_workspace_bytes(window, points);
  return memory;
}

/// One frame: windows from coordinates, then attention. Nothing here waits for the GPU, so that the
/// calls can be captured into a graph; `points.num_tokens` tells each replay its number of tokens.
winnow::status attend(const winnow::cubic_window& window, const winnow::point_set& points,
                      int heads, const frame_memory& memory,
                      winnow::attention_forward_arguments<winnow::half> arguments,
                      cudaStream_t stream) {
  winnow::head_group<winnow::half> group;
  group.heads = heads;
  WINNOW_TRY(bind_partition(shape_of(window, points.coordinates.shape[0]), memory.partition,
                            memory.partition_bytes, group.windows));
  WINNOW_TRY(build_partition(window, points, {}, group.windows, memory.workspace,
                             memory.workspace_bytes, stream));
  arguments.groups = &group;
  arguments.group_count = 1;
  return attention_forward(arguments, nullptr, 0, stream);
}
// ---

namespace {

constexpr int skipped = 77;  // as CMakeLists.txt says

void check_cuda(cudaError_t error) {
  check(error == cudaSuccess, cudaGetErrorString(error));
}

/// Device memory for the process's lifetime.
void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes));
  return memory;
}
template <class T>
T* to_device(const std::vector<T>& values) {
  auto* memory = static_cast<T*>(allocate(values.size() * sizeof(T)));
  check_cuda(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return memory;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return skipped;

  // Two tokens in one window, one far away.
  constexpr std::int64_t tokens = 3;
  constexpr std::int64_t dim = 16;
  const std::vector<float> xyz = {0.00f, 0.0f, 0.0f, 0.01f, 0.0f, 0.0f, 5.0f, 0.0f, 0.0f};
  winnow::cubic_window window;
  window.size = {0.3f, 0.3f, 0.3f};
  winnow::point_set points;
  points.coordinates = winnow::tensor_view<const float, 2>(to_device(xyz), {tokens, 3});
  frame_memory memory = measure(window, points);
  memory.partition = allocate(memory.partition_bytes);
  memory.workspace = allocate(memory.workspace_bytes);

  // A query of zeros gives the mean of a window's values: 0 and 1, and 2 alone.
  std::vector<winnow::half> q(tokens * dim, winnow::from_float<winnow::half>(0.0f));
  std::vector<winnow::half> v;
  for (std::int64_t i = 0; i < tokens * dim; ++i)
    v.push_back(winnow::from_float<winnow::half>(static_cast<float>(i / dim)));
  const std::int64_t shape[] = {tokens, 1, dim};
  winnow::attention_forward_arguments<winnow::half> arguments;
  arguments.q = arguments.k = {to_device(q), shape};
  arguments.v = {to_device(v), shape};
  arguments.out = {to_device(q), shape};
  check(attend(window, points, 1, memory, arguments, nullptr));
  check_cuda(cudaMemcpy(q.data(), arguments.out.data, q.size() * sizeof(winnow::half),
                        cudaMemcpyDeviceToHost));
  const float expected[] = {0.5f, 0.5f, 2.0f};
  for (std::size_t i = 0; i < q.size(); ++i)
    check_near(winnow::to_float(q[i]), expected[i / dim], "out: not the mean of the window");
}
