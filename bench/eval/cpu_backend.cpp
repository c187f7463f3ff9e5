// SPDX-License-Identifier: Apache-2.0
// The host twins behind the backend's interface.
#include <chrono>
#include <utility>

#include "eval/attention_calls.hpp"
#include "eval/backend.hpp"
#include "eval/machine.hpp"
#include "eval/memory_counter.hpp"
#include "eval/require.hpp"
#include "winnow/reference.hpp"

namespace winnow::eval {
namespace {

/// Runs a call of the library.
template <class Call>
measurement measure(const char* name, Call&& call) {
  const memory_meter memory;
  const auto start = std::chrono::steady_clock::now();
  const status outcome = call();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  require(name, outcome);
  return {elapsed.count(), memory.peak_bytes()};
}

class host_windows : public built_partition {
 public:
  host_windows(const point_window& window, const token_set& tokens, int threads) {
    point_set points;
    const std::int64_t shape[] = {tokens.size(), 3};
    points.coordinates = tensor_view<const float, 2>(
        tokens.size() > 0 ? tokens.coordinates.front().data() : nullptr, shape);
    points.batch = tokens.batch.data();
    std::visit(
        [&](const auto& each) {
          partition_ = reference::host_partition(shape_of(each, tokens.size()));
          build_ = measure("partition", [&] {
            return reference::build_partition(each, points, partition_.view(), threads);
          });
        },
        window);
  }
  [[nodiscard]] std::size_t bytes() const override { return partition_.bytes(); }
  [[nodiscard]] const partition& host() const override { return partition_.view(); }

 private:
  reference::host_partition partition_;
};

class host_calls : public attention_calls {
 public:
  explicit host_calls(int threads) : threads_(threads) {}
  measurement forward(const attention_forward_arguments<>& arguments) override {
    return measure("attention forward", [&] {
      return arguments.q.type == dtype::float64
                 ? reference::attention_forward<double>(arguments, threads_)
                 : reference::attention_forward<float>(arguments, threads_);
    });
  }
  measurement backward(const attention_backward_arguments<>& arguments) override {
    return measure("attention backward", [&] {
      return arguments.q.type == dtype::float64
                 ? reference::attention_backward<double>(arguments, threads_)
                 : reference::attention_backward<float>(arguments, threads_);
    });
  }

 private:
  int threads_;
};

class cpu_backend : public backend {
 public:
  explicit cpu_backend(int threads) : threads_(threads) {}

  [[nodiscard]] std::string description() const override {
    return std::to_string(used_threads(threads_)) + " threads";
  }
  [[nodiscard]] dtype usual_storage() const override { return dtype::float32; }
  std::unique_ptr<built_partition> build(const point_window& window,
                                         const token_set& tokens) override {
    return std::make_unique<host_windows>(window, tokens, threads_);
  }
  attention_result run(const built_partition& windows, const attention_tensors& tensors,
                       dtype storage) override {
    host_calls calls(threads_);
    return run_attention(windows.host(), tensors, storage, calls);
  }

 private:
  int threads_;
};

}  // namespace

std::unique_ptr<backend> make_cpu_backend(int threads) {
  return std::make_unique<cpu_backend>(threads);
}

}  // namespace winnow::eval
