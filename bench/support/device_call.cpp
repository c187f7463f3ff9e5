// SPDX-License-Identifier: Apache-2.0
#include "support/device_call.hpp"

#include <algorithm>
#include <iterator>
#include <type_traits>

namespace winnow::support {
namespace {

class event {
 public:
  event() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  event(const event&) = delete;
  event& operator=(const event&) = delete;
  ~event() { cudaEventDestroy(event_); }
  void record() { check_cuda(cudaEventRecord(event_), "cudaEventRecord"); }
  /// Waits for the event.
  [[nodiscard]] double seconds_since(const event& start) const {
    check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize");
    float milliseconds = 0.0f;
    check_cuda(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return 1e-3 * milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

std::size_t free_device_memory() {
  std::size_t free = 0;
  std::size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

/// Runs `call` on the default stream until it is done. With repeats it runs once more beforehand, so
/// that loading the kernels stays out of the time.
template <class Call>
status run_timed(std::size_t workspace_bytes, int repeats, device_cost& cost, Call&& call) {
  if (repeats > 1) WINNOW_TRY(call());
  check_cuda(cudaDeviceSynchronize(), "a device call");
  const std::size_t free_before = free_device_memory();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    event start;
    event stop;
    start.record();
    WINNOW_TRY(call());
    stop.record();
    seconds.push_back(stop.seconds_since(start));
  }
  const std::size_t free_after = free_device_memory();
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  cost.seconds = seconds[static_cast<std::size_t>(repeats / 2)];
  cost.extra_bytes = workspace_bytes + (free_before > free_after ? free_before - free_after : 0);
  return {};
}

/// Bytes from a view's first element to its last; the tools' strides are not negative.
template <int Rank>
std::size_t span_of(const tensor_layout<Rank>& layout, dtype type) {
  std::int64_t last = 0;
  for (int d = 0; d < Rank; ++d) {
    if (layout.shape[d] == 0) return 0;
    last += (layout.shape[d] - 1) * layout.stride[d];
  }
  return static_cast<std::size_t>(last + 1) * size_of(type);
}

/// Device copies of the host memory behind views. Absent views stay absent.
class mirror {
 public:
  template <int Rank>
  [[nodiscard]] tensor_view<const void, Rank> input(const tensor_view<const void, Rank>& host) {
    if (host.data == nullptr) return host;
    return {keep(host.data, span_of(host, host.type)), host.type, host};
  }
  template <class T>
  [[nodiscard]] const T* input(const T* host, std::int64_t count) {
    if (host == nullptr) return nullptr;
    return static_cast<const T*>(keep(host, static_cast<std::size_t>(count) * sizeof(T)));
  }
  /// Copied in as well, since a call may leave rows as they are.
  template <int Rank>
  [[nodiscard]] tensor_view<void, Rank> output(const tensor_view<void, Rank>& host) {
    if (host.data == nullptr) return host;
    const std::size_t bytes = span_of(host, host.type);
    void* copy = keep(host.data, bytes);
    results_.push_back({host.data, blocks_.size() - 1, bytes});
    return {copy, host.type, host};
  }
  void copy_results() const {
    for (const result& each : results_) blocks_[each.block].download(each.host, each.bytes);
  }

 private:
  struct result {
    void* host;
    std::size_t block;
    std::size_t bytes;
  };

  void* keep(const void* host, std::size_t bytes) {
    return blocks_.emplace_back(host, bytes).data();
  }

  std::vector<device_memory> blocks_;
  std::vector<result> results_;
};

point_set mirrored(const point_set& host, mirror& copies) {
  return {copies.input(host.coordinates), copies.input(host.batch, host.coordinates.shape[0]),
          copies.input(host.num_tokens, 1)};
}

label_set mirrored(const label_set& host, mirror& copies) {
  return {copies.input(host.labels, host.tokens), host.tokens,
          copies.input(host.positions, 3 * host.tokens), copies.input(host.radius, host.tokens),
          copies.input(host.num_tokens, 1)};
}

std::vector<head_group<>> mirrored(const head_group<>* groups, int count, mirror& copies) {
  std::vector<head_group<>> result(groups, groups + count);
  for (head_group<>& group : result) {
    group.table_q = copies.input(group.table_q);
    group.table_k = copies.input(group.table_k);
    group.table_v = copies.input(group.table_v);
    group.bias_table = copies.input(group.bias_table);
  }
  return result;
}

}  // namespace

std::string missing_device() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  return error == cudaSuccess && devices > 0 ? "" : cudaGetErrorString(error);
}

std::string device_description() {
  cudaDeviceProp properties{};
  int driver = 0;
  int runtime = 0;
  check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check_cuda(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  const auto version = [](int number) {
    return "CUDA " + std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  return std::string(properties.name) + ", driver " + version(driver) + ", runtime " +
         version(runtime);
}

reference::host_partition device_partition::to_host() const {
  reference::host_partition result(shape_);
  // Both are bound to the same layout, which begins with the counts.
  memory_.download(result.view().counts, memory_.bytes());
  return result;
}

/// Allocates a partition and runs `build(result, workspace, bytes)` on it.
struct partition_builder {
  template <class Build>
  static status run(const partition_shape& shape, std::size_t workspace_bytes, int repeats,
                    device_partition& result, Build&& build) {
    result.shape_ = shape;
    result.memory_ = device_memory(partition_bytes(shape));
    WINNOW_TRY(bind_partition(shape, result.memory_.data(), result.memory_.bytes(), result.view_));
    const device_memory workspace(workspace_bytes);
    WINNOW_TRY(run_timed(workspace_bytes, repeats, result.build_,
                         [&] { return build(result.view_, workspace.data(), workspace_bytes); }));
    partition_counts counts{};
    WINNOW_TRY(copy_counts(result.view_, &counts, nullptr));
    check_cuda(cudaDeviceSynchronize(), "building a partition");
    return check_flags(counts);
  }

  template <class Window, class Tokens>
  static status run(const Window& window, const Tokens& tokens, const partition_shape& shape,
                    int repeats, device_partition& result) {
    return run(shape, build_partition_workspace_bytes(window, tokens), repeats, result,
               [&](const partition& view, void* workspace, std::size_t bytes) {
                 return build_partition(window, tokens, {}, view, workspace, bytes, nullptr);
               });
  }
};

status build_on_device(const cubic_window& window, const point_set& points,
                       device_partition& result, int repeats) {
  mirror copies;
  return partition_builder::run(window, mirrored(points, copies),
                                shape_of(window, points.coordinates.shape[0]), repeats, result);
}

status build_on_device(const spherical_window& window, const point_set& points,
                       device_partition& result, int repeats) {
  mirror copies;
  return partition_builder::run(window, mirrored(points, copies),
                                shape_of(window, points.coordinates.shape[0]), repeats, result);
}

status build_on_device(const labels_window& window, const label_set& labels,
                       device_partition& result, int repeats) {
  mirror copies;
  return partition_builder::run(window, mirrored(labels, copies), shape_of(window, labels), repeats,
                                result);
}

status build_on_device(const grid_window& window, const window_selection* kept,
                       device_partition& result, int repeats) {
  mirror copies;
  window_selection selection;
  if (kept != nullptr) {
    selection = *kept;
    const std::int64_t ids =
        kept->ragged() ? kept->offsets[kept->images] : kept->images * kept->stride;
    selection.ids = const_cast<std::int32_t*>(copies.input<std::int32_t>(kept->ids, ids));
    selection.offsets =
        const_cast<std::int32_t*>(copies.input<std::int32_t>(kept->offsets, kept->images + 1));
    kept = &selection;
  }
  return partition_builder::run(
      shape_of(window, kept), build_partition_workspace_bytes(window, kept), repeats, result,
      [&](const partition& view, void* workspace, std::size_t bytes) {
        return build_partition(window, kept, view, workspace, bytes, nullptr);
      });
}

status forward_on_device(const attention_forward_arguments<>& arguments, device_cost& cost,
                         int repeats) {
  WINNOW_TRY(validate(arguments));
  mirror copies;
  const auto groups = mirrored(arguments.groups, arguments.group_count, copies);
  attention_forward_arguments<> on_device = arguments;
  on_device.q = copies.input(arguments.q);
  on_device.k = copies.input(arguments.k);
  on_device.v = copies.input(arguments.v);
  on_device.out = copies.output(arguments.out);
  on_device.lse = copies.output(arguments.lse);
  on_device.groups = groups.data();
  const device_memory workspace(attention_forward_workspace_bytes(on_device));
  WINNOW_TRY(run_timed(workspace.bytes(), repeats, cost, [&] {
    return attention_forward(on_device, workspace.data(), workspace.bytes(), nullptr);
  }));
  copies.copy_results();
  return {};
}

status backward_on_device(const attention_backward_arguments<>& arguments, device_cost& cost,
                          int repeats) {
  WINNOW_TRY(validate(arguments));
  mirror copies;
  const auto groups = mirrored(arguments.groups, arguments.group_count, copies);
  std::vector<head_group_gradients<>> gradients;
  for (int g = 0; arguments.group_gradients != nullptr && g < arguments.group_count; ++g) {
    const head_group_gradients<>& host = arguments.group_gradients[g];
    gradients.push_back({copies.output(host.table_q), copies.output(host.table_k),
                         copies.output(host.table_v), copies.output(host.bias_table)});
  }
  attention_backward_arguments<> on_device = arguments;
  on_device.q = copies.input(arguments.q);
  on_device.k = copies.input(arguments.k);
  on_device.v = copies.input(arguments.v);
  on_device.out = copies.input(arguments.out);
  on_device.lse = copies.input(arguments.lse);
  on_device.grad_out = copies.input(arguments.grad_out);
  on_device.grad_q = copies.output(arguments.grad_q);
  on_device.grad_k = copies.output(arguments.grad_k);
  on_device.grad_v = copies.output(arguments.grad_v);
  on_device.groups = groups.data();
  on_device.group_gradients = gradients.empty() ? nullptr : gradients.data();
  const device_memory workspace(attention_backward_workspace_bytes(on_device));
  WINNOW_TRY(run_timed(workspace.bytes(), repeats, cost, [&] {
    return attention_backward(on_device, workspace.data(), workspace.bytes(), nullptr);
  }));
  copies.copy_results();
  return {};
}

status select_on_device(const grid_window& grid, const tensor_view<const void, 3>& features,
                        const window_selection& result) {
  mirror copies;
  const std::int64_t windows = grid.windows_per_image();
  const device_memory importance(static_cast<std::size_t>(grid.batch * windows) * sizeof(float));
  const tensor_view<float, 2> scores(importance.as<float>(), {grid.batch, windows});
  WINNOW_TRY(window_importance(grid, copies.input(features), scores, nullptr));
  const auto ids = static_cast<std::size_t>(result.images * result.stride) * sizeof(std::int32_t);
  const device_memory selected(result.ids, ids);
  window_selection on_device = result;
  on_device.ids = selected.as<std::int32_t>();
  const device_memory workspace(select_most_important_workspace_bytes(grid.batch, windows));
  WINNOW_TRY(
      select_most_important(scores, on_device, workspace.data(), workspace.bytes(), nullptr));
  check_cuda(cudaDeviceSynchronize(), "selecting windows");
  selected.download(result.ids, ids);
  return {};
}

}  // namespace winnow::support
