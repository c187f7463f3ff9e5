// SPDX-License-Identifier: Apache-2.0
#include "device_memory.hpp"

// ---
#include "winnow/winnow.hpp"

/// Memory for frames of up to N points, made once. All of it is the device's.
struct frame {
  winnow::cubic_window window;
  winnow::point_set points;  ///< `num_tokens` is set: each replay reads how many points there are
  winnow::head_group<winnow::half> group;
  winnow::attention_forward_arguments<winnow::half> arguments;
  void* workspace = nullptr;  ///< of the builder and of attention, one after the other
  std::size_t workspace_bytes = 0;
};

/// Windows from coordinates, then attention. Nothing here waits for the GPU.
winnow::status run(const frame& work, cudaStream_t stream) {
  WINNOW_TRY(build_partition(work.window, work.points, {}, work.group.windows, work.workspace,
                             work.workspace_bytes, stream));
  return attention_forward(work.arguments, work.workspace, work.workspace_bytes, stream);
}

/// Records a frame; the graph serves frames of any number of points up to N.
winnow::status record(const frame& work, cudaStream_t stream, cudaGraphExec_t& executable) {
  cudaGraph_t graph = nullptr;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  const winnow::status done = run(work, stream);
  cudaStreamEndCapture(stream, &graph);  // also ends a capture in which something failed
  WINNOW_TRY(done);
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  if (error == cudaSuccess) return {};
  return winnow::status::failure(winnow::status_code::cuda_error, "cudaGraphInstantiate: %s",
                                 cudaGetErrorString(error));
}
// ---

int main() {
  skip_without_gpu();
  // Two tokens in one window, one far away, and room for a fourth.
  constexpr std::int64_t most = 4;
  constexpr std::int64_t dim = 16;
  frame work;
  work.window.size = {0.3f, 0.3f, 0.3f};
  auto* xyz = to_device(std::vector<float>(most * 3));
  auto* count = to_device(std::vector<std::int32_t>{0});
  work.points.coordinates = winnow::tensor_view<const float, 2>(xyz, {most, 3});
  work.points.num_tokens = count;
  const winnow::partition_shape shape = shape_of(work.window, most);
  check(bind_partition(shape, allocate(partition_bytes(shape)), partition_bytes(shape),
                       work.group.windows));
  work.group.heads = 1;

  // A query of zeros gives the mean of a window's values; token i has the value i.
  const std::int64_t rows[] = {most, 1, dim};
  std::vector<float> values;
  for (std::int64_t i = 0; i < most * dim; ++i) values.push_back(static_cast<float>(i / dim));
  auto* out = to_device(halves(std::vector<float>(most * dim, -1.0f)));
  work.arguments.q = work.arguments.k = {to_device(halves(std::vector<float>(most * dim))), rows};
  work.arguments.v = {to_device(halves(values)), rows};
  work.arguments.out = {out, rows};
  work.arguments.groups = &work.group;
  work.arguments.group_count = 1;
  work.workspace_bytes = std::max(build_partition_workspace_bytes(work.window, work.points),
                                  attention_forward_workspace_bytes(work.arguments));
  work.workspace = allocate(work.workspace_bytes);

  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraphExec_t executable = nullptr;
  check(record(work, stream, executable));
  const auto replay = [&](const std::vector<float>& coordinates) {
    const auto points = static_cast<std::int32_t>(coordinates.size() / 3);
    check_cuda(cudaMemcpy(xyz, coordinates.data(), coordinates.size() * 4, cudaMemcpyHostToDevice));
    check_cuda(cudaMemcpy(count, &points, 4, cudaMemcpyHostToDevice));
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaGraphLaunch(executable, stream));
    return floats(to_host(out, most * dim));
  };
  const auto expect = [&](const std::vector<float>& result, const std::vector<float>& means) {
    for (std::size_t i = 0; i < result.size(); ++i)
      check(std::fabs(result[i] - means[i / dim]) < 1e-2f, "out: not the mean of the window");
  };
  expect(replay({0.00f, 0.0f, 0.0f, 0.01f, 0.0f, 0.0f, 5.0f, 0.0f, 0.0f}), {0.5f, 0.5f, 2, -1});
  expect(replay({0, 0, 0, 5, 0, 0, 5.02f, 0, 0, 5.05f, 0, 0}), {0, 2, 2, 2});
}
