// SPDX-License-Identifier: Apache-2.0
// Backward attention on the GPU: time, and its ratio to the memory floor.
//
//     attention_backward_bench [Google Benchmark's options]
//
// Scans are simulated, or read from the folder that WINNOW_WORKLOADS names (stage1_coords.npy,
// stage1_batch.npy, …). All gradients are asked for, those of tables included. The floor is the time
// that a vectorised copy kernel, measured in the same run, would need to read q, k, v, out and dO and
// to write dq, dk and dv. `both` in a name's last part times forward and backward together.
#include "support/attention_bench.cuh"

namespace winnow::bench {
namespace {

template <class T>
class backward_call {
 public:
  backward_call(const std::vector<group_plan>& plans, int dim) : inputs_(plans, dim) {
    const auto lse = static_cast<float*>(
        inputs_.own(device_bytes(static_cast<std::size_t>(inputs_.tokens * inputs_.heads) * 4)));
    forward_.q = inputs_.q;
    forward_.k = inputs_.k;
    forward_.v = inputs_.v;
    forward_.out = inputs_.empty_rows();
    forward_.lse = {lse, {inputs_.tokens, inputs_.heads}};
    forward_.scale = inputs_.scale;
    forward_.groups = inputs_.groups.data();
    forward_.group_count = static_cast<int>(inputs_.groups.size());
    check(attention_forward(forward_, nullptr, 0, nullptr));
    check(cudaDeviceSynchronize(), "attention_forward");

    backward_.q = inputs_.q;
    backward_.k = inputs_.k;
    backward_.v = inputs_.v;
    backward_.out = forward_.out;
    backward_.lse = tensor_view<const float, 2>(forward_.lse);
    backward_.grad_out = inputs_.random_rows(8);
    backward_.grad_q = inputs_.empty_rows();
    backward_.grad_k = inputs_.empty_rows();
    backward_.grad_v = inputs_.empty_rows();
    backward_.scale = inputs_.scale;
    backward_.groups = forward_.groups;
    backward_.group_count = forward_.group_count;
    for (const head_group<T>& group : inputs_.groups) {
      head_group_gradients<T> gradients;
      gradients.table_q = gradient_of(group.table_q);
      gradients.table_k = gradient_of(group.table_k);
      gradients.table_v = gradient_of(group.table_v);
      gradients.bias_table = gradient_of(group.bias_table);
      gradients_.push_back(gradients);
    }
    backward_.group_gradients = gradients_.data();
    workspace_bytes = attention_backward_workspace_bytes(backward_);
    workspace_ = inputs_.own(device_bytes(workspace_bytes));
  }

  void forward(cudaStream_t stream) const {
    check(attention_forward(forward_, nullptr, 0, stream));
  }
  void backward(cudaStream_t stream) const {
    check(attention_backward(backward_, workspace_, workspace_bytes, stream));
  }
  [[nodiscard]] double floor_bytes(bool both) const {
    return (both ? 12.0 : 8.0) * inputs_.row_bytes();
  }
  [[nodiscard]] double pairs() const { return inputs_.pairs; }
  std::size_t workspace_bytes = 0;

 private:
  template <int Rank>
  tensor_view<float, Rank> gradient_of(const tensor_view<const T, Rank>& table) {
    if (table.data == nullptr) return {};
    std::int64_t elements = 1;
    for (const std::int64_t length : table.shape) elements *= length;
    return {static_cast<float*>(inputs_.own(device_bytes(static_cast<std::size_t>(elements) * 4))),
            table};
  }

  prepared_inputs<T> inputs_;
  std::vector<head_group_gradients<T>> gradients_;
  attention_forward_arguments<T> forward_;
  attention_backward_arguments<T> backward_;
  void* workspace_ = nullptr;
};

template <class T>
void add_work(const work& item, const char* type) {
  for (const char* kind : {"warm", "cold", "both"}) {
    const bool cold = kind[0] == 'c';
    const bool both = kind[0] == 'b';
    if (item.sweep && kind[0] != 'w') continue;
    add_benchmark(item.name + "/" + type + "/" + kind, cold ? 15 : 10,
                  [item, cold, both](benchmark::State& state) {
                    const backward_call<T> call(item.plan(), item.dim);
                    report(state, cold, call.floor_bytes(both), call.pairs(),
                           [&](cudaStream_t stream) {
                             if (both) call.forward(stream);
                             call.backward(stream);
                           });
                    state.counters["workspace_bytes"] = static_cast<double>(call.workspace_bytes);
                  });
  }
}

}  // namespace
}  // namespace winnow::bench

int main(int argc, char** argv) {
  using namespace winnow::bench;
  return run_attention_suite("attention_backward_bench", argc, argv,
                             [](auto element, const work& item, const char* type) {
                               add_work<decltype(element)>(item, type);
                             });
}
