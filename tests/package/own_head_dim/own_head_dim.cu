// SPDX-License-Identifier: Apache-2.0
// Compiles the attention kernels for half and head dims up to 32, and runs head dim 24 where there
// is a GPU.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "winnow/detail/attention/forward.hpp"
#include "winnow/detail/attention/forward_launch.cuh"
#include "winnow/winnow.hpp"

namespace {

constexpr std::int64_t tokens = 3;
constexpr std::int64_t head_dim = 24;
constexpr winnow::detail::forward_instance instances[] = {
    winnow::detail::instance_of<winnow::half, 32>()};

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}
void check(const winnow::status& status) {
  check(status.ok(), status.message());
}
void check(cudaError_t error) {
  check(error == cudaSuccess, cudaGetErrorString(error));
}

winnow::status forward(const winnow::attention_forward_arguments<void>& arguments) {
  return winnow::detail::attention_forward(instances, arguments, nullptr);
}

/// Device memory with a copy of the values, for the process's lifetime.
template <class T>
T* to_device(const std::vector<T>& values) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, values.size() * sizeof(T)));
  check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(memory);
}

}  // namespace

int main() {
  // Tokens 0 and 2 share a window.
  const std::vector<std::int32_t> labels = {7, 3, 7};
  winnow::label_set set;
  set.labels = labels.data();
  set.tokens = tokens;
  const winnow::partition_shape shape = shape_of(winnow::labels_window{}, set);
  std::vector<std::byte> host(partition_bytes(shape));
  winnow::head_group<void> group;
  group.heads = 1;
  check(bind_partition(shape, host.data(), host.size(), group.windows));
  check(winnow::reference::build_partition(winnow::labels_window{}, set, group.windows));

  winnow::attention_forward_arguments<void> arguments;
  std::vector<winnow::half> values;
  for (std::int64_t i = 0; i < tokens * 128; ++i)
    values.push_back(winnow::from_float<winnow::half>(static_cast<float>(i / head_dim)));
  arguments.groups = &group;
  arguments.group_count = 1;
  const auto set_rows = [&](winnow::half* q, winnow::half* k, winnow::half* v, winnow::half* out,
                            std::int64_t dim) {
    const std::int64_t rows[] = {tokens, 1, dim};
    arguments.q = winnow::tensor_view<const winnow::half, 3>(q, rows);
    arguments.k = winnow::tensor_view<const winnow::half, 3>(k, rows);
    arguments.v = winnow::tensor_view<const winnow::half, 3>(v, rows);
    arguments.out = winnow::tensor_view<winnow::half, 3>(out, rows);
  };

  // What was not compiled is refused, before anything touches a device.
  std::vector<winnow::half> out(values.size());
  set_rows(values.data(), values.data(), values.data(), out.data(), 128);
  const winnow::status refused = forward(arguments);
  std::printf("refused: %s\n", refused.message());
  check(refused.code() == winnow::status_code::unsupported, "head dim 128 was not refused");

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: nothing was computed\n");
    return 0;
  }

  // A partition is the same bytes wherever it lies: bind the device's memory, then copy.
  std::byte* device = to_device(host);
  check(bind_partition(shape, device, host.size(), group.windows));
  const std::vector<winnow::half> zeros(values.size(), winnow::from_float<winnow::half>(0.0f));
  winnow::half* const device_values = to_device(values);
  winnow::half* const device_out = to_device(zeros);
  set_rows(to_device(zeros), device_values, device_values, device_out, head_dim);
  check(forward(arguments));
  check(cudaMemcpy(out.data(), device_out, out.size() * sizeof(winnow::half),
                   cudaMemcpyDeviceToHost));
  // A query of zeros gives the mean of the window's values: rows 0 and 2 hold 0 and 2.
  for (std::int64_t i = 0; i < tokens * head_dim; ++i)
    check(winnow::to_float(out[static_cast<std::size_t>(i)]) == 1.0f, "out: not the mean");
  std::printf("computed on the GPU\n");
  return 0;
}
