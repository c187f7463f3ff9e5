// SPDX-License-Identifier: Apache-2.0
// Forward attention on the GPU: time, and its ratio to the memory floor.
//
//     attention_forward_bench [Google Benchmark's options]
//
// Scans are simulated, or read from the folder that WINNOW_WORKLOADS names (stage1_coords.npy,
// stage1_batch.npy, …). The floor is the time that a vectorised copy kernel, measured in the same
// run, would need to read q, k, v and to write out.
#include "support/attention_bench.cuh"

namespace winnow::bench {
namespace {

template <class T>
class forward_call {
 public:
  forward_call(const std::vector<group_plan>& plans, int dim) : inputs_(plans, dim) {
    arguments_.q = inputs_.q;
    arguments_.k = inputs_.k;
    arguments_.v = inputs_.v;
    arguments_.out = inputs_.empty_rows();
    arguments_.scale = inputs_.scale;
    arguments_.groups = inputs_.groups.data();
    arguments_.group_count = static_cast<int>(inputs_.groups.size());
  }

  void launch(cudaStream_t stream) const {
    check(attention_forward(arguments_, nullptr, 0, stream));
  }
  [[nodiscard]] double floor_bytes() const { return 4.0 * inputs_.row_bytes(); }
  [[nodiscard]] double pairs() const { return inputs_.pairs; }

 private:
  prepared_inputs<T> inputs_;
  attention_forward_arguments<T> arguments_;
};

template <class T>
void add_work(const work& item, const char* type) {
  for (const bool cold : {false, true}) {
    if (cold && item.sweep) continue;
    add_benchmark(item.name + "/" + type + (cold ? "/cold" : "/warm"), cold ? 15 : 10,
                  [item, cold](benchmark::State& state) {
                    const forward_call<T> call(item.plan(), item.dim);
                    report(state, cold, call.floor_bytes(), call.pairs(),
                           [&](cudaStream_t stream) { call.launch(stream); });
                  });
  }
}

}  // namespace
}  // namespace winnow::bench

int main(int argc, char** argv) {
  using namespace winnow::bench;
  return run_attention_suite("attention_forward_bench", argc, argv,
                             [](auto element, const work& item, const char* type) {
                               add_work<decltype(element)>(item, type);
                             });
}
