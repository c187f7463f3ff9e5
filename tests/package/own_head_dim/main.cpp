// SPDX-License-Identifier: Apache-2.0
// Attention with head dims of its own, forward and backward: two head groups, one plain and one with
// contextual tables, on the GPU against the host twins in double. Linked with winnow's library, its
// calls run beside. Without a GPU only the refusals are tested, and the last line says so.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "own_kernels.hpp"
#include "winnow/winnow.hpp"

namespace {

using winnow::half;

constexpr std::int64_t tokens = 300;
constexpr std::int64_t heads = 2;  // one a group
constexpr int quant_length = 5;
constexpr std::int64_t table_rows = 2 * quant_length - 1;

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
void check_code(const winnow::status& status, winnow::status_code code, const char* what) {
  std::printf("%s: %s\n", what, status.message());
  check(status.code() == code, "not the expected status");
}

/// An array of the host with a copy on the device.
template <class T>
class twin {
 public:
  explicit twin(std::vector<T> values) : host_(std::move(values)) {}
  twin(const twin&) = delete;
  twin& operator=(const twin&) = delete;
  ~twin() { cudaFree(device_); }

  T* data(bool on_device) {
    if (on_device && device_ == nullptr) {
      void* memory = nullptr;
      check(cudaMalloc(&memory, host_.size() * sizeof(T)));
      device_ = static_cast<T*>(memory);
      check(cudaMemcpy(device_, host_.data(), host_.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    return on_device ? device_ : host_.data();
  }

  /// ‖device - host‖ / ‖host‖ must not exceed the limit.
  void compare(const char* name, double limit) const {
    std::vector<T> found(host_.size());
    check(cudaMemcpy(found.data(), device_, found.size() * sizeof(T), cudaMemcpyDeviceToHost));
    double difference = 0.0;
    double norm = 0.0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double expected = winnow::to_float(host_[i]);
      difference += std::pow(double{winnow::to_float(found[i])} - expected, 2);
      norm += expected * expected;
    }
    const double error = std::sqrt(difference / norm);
    std::printf("  %-12s relative error %.1e, limit %.0e\n", name, error, limit);
    check(error <= limit, "too large");
  }

 private:
  std::vector<T> host_;
  T* device_ = nullptr;
};

std::uint32_t random_state = 1;
std::uint32_t random_below(std::uint32_t limit) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % limit;
}
std::vector<half> random_halves(std::int64_t count, float scale) {
  std::vector<half> values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(
        winnow::from_float<half>(scale * (static_cast<float>(random_below(2001)) / 1000.0f - 1)));
  return values;
}

/// Labels 0 to 39, some tokens in no window, and a position for each.
class labelled_windows {
 public:
  labelled_windows() {
    std::vector<std::int32_t> labels, positions;
    for (std::int64_t i = 0; i < tokens; ++i) {
      labels.push_back(static_cast<std::int32_t>(random_below(41)) - 1);
      for (int axis = 0; axis < 3; ++axis)
        positions.push_back(static_cast<std::int32_t>(random_below(quant_length)));
    }
    winnow::labels_window window;
    window.quant_length = quant_length;
    winnow::label_set set;
    set.labels = labels.data();
    set.positions = positions.data();
    set.tokens = tokens;
    shape_ = shape_of(window, set);
    bytes_ = partition_bytes(shape_);
    memory_ = std::make_unique<twin<std::uint64_t>>(std::vector<std::uint64_t>((bytes_ + 7) / 8));
    host_ = bind(false);
    check(winnow::reference::build_partition(window, set, host_));
  }

  /// A partition is the same bytes wherever it lies.
  winnow::partition bind(bool on_device) {
    winnow::partition result = host_;
    check(bind_partition(shape_, memory_->data(on_device), bytes_, result));
    return result;
  }

 private:
  winnow::partition_shape shape_;
  std::size_t bytes_ = 0;
  std::unique_ptr<twin<std::uint64_t>> memory_;
  winnow::partition host_;
};

/// One problem, whose arguments lie on the host or on the device.
struct problem {
  explicit problem(std::int64_t head_dim) : dim(head_dim) {}

  std::int64_t dim;
  labelled_windows windows;
  twin<half> q{rows(1.7f)}, k{rows(1.7f)}, v{rows(1.7f)}, grad_out{rows(1.7f)};
  twin<half> out{rows(0.0f)}, grad_q{rows(0.0f)}, grad_k{rows(0.0f)}, grad_v{rows(0.0f)};
  twin<float> lse{std::vector<float>(tokens * heads)};
  twin<half> table_q{table()}, table_k{table()}, table_v{table()};
  twin<float> grad_table_q{wide()}, grad_table_k{wide()}, grad_table_v{wide()};
  winnow::head_group<half> groups[heads];
  winnow::head_group_gradients<half> gradients[heads];

  std::vector<half> rows(float scale) const { return random_halves(tokens * heads * dim, scale); }
  std::vector<half> table() const { return random_halves(table_rows * 3 * dim, 0.8f); }
  std::vector<float> wide() const {
    return std::vector<float>(static_cast<std::size_t>(table_rows * 3 * dim));
  }

  void describe_groups(bool on_device) {
    const std::int64_t shape[] = {table_rows, 3, 1, dim};
    for (winnow::head_group<half>& group : groups) {
      group.heads = 1;
      group.windows = windows.bind(on_device);
    }
    groups[1].position = winnow::position_encoding::contextual;
    groups[1].table_q = {table_q.data(on_device), shape};
    groups[1].table_k = {table_k.data(on_device), shape};
    groups[1].table_v = {table_v.data(on_device), shape};
    gradients[1].table_q = {grad_table_q.data(on_device), shape};
    gradients[1].table_k = {grad_table_k.data(on_device), shape};
    gradients[1].table_v = {grad_table_v.data(on_device), shape};
  }

  winnow::attention_forward_arguments<half> forward_arguments(bool on_device) {
    describe_groups(on_device);
    const std::int64_t shape[] = {tokens, heads, dim};
    winnow::attention_forward_arguments<half> arguments;
    arguments.q = {q.data(on_device), shape};
    arguments.k = {k.data(on_device), shape};
    arguments.v = {v.data(on_device), shape};
    arguments.out = {out.data(on_device), shape};
    arguments.lse = {lse.data(on_device), {tokens, heads}};
    arguments.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    arguments.groups = groups;
    arguments.group_count = heads;
    arguments.zero_unassigned = true;
    return arguments;
  }

  winnow::attention_backward_arguments<half> backward_arguments(bool on_device) {
    const winnow::attention_forward_arguments<half> forward = forward_arguments(on_device);
    winnow::attention_backward_arguments<half> arguments;
    arguments.q = forward.q;
    arguments.k = forward.k;
    arguments.v = forward.v;
    arguments.out = forward.out;
    arguments.lse = forward.lse;
    arguments.grad_out = {grad_out.data(on_device), forward.q};
    arguments.grad_q = {grad_q.data(on_device), forward.q};
    arguments.grad_k = {grad_k.data(on_device), forward.q};
    arguments.grad_v = {grad_v.data(on_device), forward.q};
    arguments.scale = forward.scale;
    arguments.groups = groups;
    arguments.group_gradients = gradients;
    arguments.group_count = heads;
    arguments.zero_unassigned = true;
    return arguments;
  }
};

/// What was not compiled, and what does not fit, is refused before anything touches a device.
void test_refusals() {
  problem wide(56);
  check(backward_workspace_bytes(wide.backward_arguments(false)) > 0, "head dim 56 fits 64");
  problem wider(72);
  check_code(forward(wider.forward_arguments(false), nullptr), winnow::status_code::unsupported,
             "forward, head dim 72");
  check_code(backward(wider.backward_arguments(false), nullptr, 0, nullptr),
             winnow::status_code::unsupported, "backward, head dim 72");
  check(backward_workspace_bytes(wider.backward_arguments(false)) == 0, "rejected, so 0 bytes");
  problem narrow(24);
  check_code(backward(narrow.backward_arguments(false), nullptr, 0, nullptr),
             winnow::status_code::workspace_too_small, "backward without its workspace");
  winnow::attention_forward_arguments<half> odd = narrow.forward_arguments(false);
  odd.group_count = 1;
  check_code(forward(odd, nullptr), winnow::status_code::invalid_argument,
             "forward with a group too few");
}

struct attention_calls {
  const char* whose;
  decltype(&forward) run_forward;
  decltype(&backward_workspace_bytes) workspace_bytes;
  decltype(&backward) run_backward;
};

#if defined(WINNOW_COMPILED)
using forward_arguments = winnow::attention_forward_arguments<half>;
using backward_arguments = winnow::attention_backward_arguments<half>;

/// Those of winnow::winnow, whichever head dims it was compiled for.
const attention_calls library = {"library",
                                 [](const forward_arguments& arguments, cudaStream_t stream) {
                                   return winnow::attention_forward(arguments, nullptr, 0, stream);
                                 },
                                 [](const backward_arguments& arguments) {
                                   return winnow::attention_backward_workspace_bytes(arguments);
                                 },
                                 [](const backward_arguments& arguments, void* workspace,
                                    std::size_t bytes, cudaStream_t stream) {
                                   return winnow::attention_backward(arguments, workspace, bytes,
                                                                     stream);
                                 }};
#endif

/// Captures what `submit(stream)` submits in CUDA's strictest mode, in which nothing may allocate or wait,
/// and runs the graph.
template <class Submit>
void run_captured(Submit&& submit) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  check(submit(stream));
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  check(cudaGraphLaunch(executable, stream));
  check(cudaStreamSynchronize(stream));
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
}

void test_head_dim(const attention_calls& calls, std::int64_t dim) {
  std::printf("%s, head dim %d on the GPU\n", calls.whose, static_cast<int>(dim));
  problem scene(dim);
  // The device first, so that nothing of the host's results is copied there.
  const auto forward_call = scene.forward_arguments(true);
  const auto arguments = scene.backward_arguments(true);
  const std::size_t bytes = calls.workspace_bytes(arguments);
  twin<std::uint64_t> workspace(std::vector<std::uint64_t>((bytes + 7) / 8));
  void* const memory = workspace.data(true);
  check(calls.run_forward(forward_call, nullptr));  // loads kernels, which a capture may not
  check(calls.run_backward(arguments, memory, bytes, nullptr));
  check(cudaDeviceSynchronize());
  run_captured([&](cudaStream_t stream) { return calls.run_forward(forward_call, stream); });
  run_captured(
      [&](cudaStream_t stream) { return calls.run_backward(arguments, memory, bytes, stream); });
  check(winnow::reference::attention_forward<double>(scene.forward_arguments(false)));
  check(winnow::reference::attention_backward<double>(scene.backward_arguments(false)));
  scene.out.compare("out", 1e-3);
  scene.lse.compare("lse", 1e-3);
  scene.grad_q.compare("grad_q", 2e-3);
  scene.grad_k.compare("grad_k", 2e-3);
  scene.grad_v.compare("grad_v", 2e-3);
  scene.grad_table_q.compare("grad_table_q", 2e-3);
  scene.grad_table_k.compare("grad_table_k", 2e-3);
  scene.grad_table_v.compare("grad_table_v", 2e-3);
}

}  // namespace

int main() {
  test_refusals();
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU, so nothing was computed\n");
    return 0;
  }
  const attention_calls own = {"own", forward, backward_workspace_bytes, backward};
  for (const std::int64_t dim : {8, 24, 48}) test_head_dim(own, dim);
#if defined(WINNOW_COMPILED)
  if (library.workspace_bytes(problem(8).backward_arguments(false)) > 0) test_head_dim(library, 8);
#endif
  std::printf("computed on the GPU\n");
  return 0;
}
