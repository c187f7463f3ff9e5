// SPDX-License-Identifier: Apache-2.0
// The GPU behind the backend's interface. Its double, which only the precision table wants, is the
// host's: the device has no double attention.
#include "eval/backend.hpp"
#include "support/input_error.hpp"

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
#include "eval/attention_calls.hpp"
#include "eval/require.hpp"
#include "support/device_call.hpp"
#endif

namespace winnow::eval {

#if defined(WINNOW_WITH_CUDA) && WINNOW_WITH_CUDA
namespace {

/// Times are medians of so many calls.
constexpr int repeats = 20;

measurement measured(const support::device_cost& cost) {
  return {cost.seconds, cost.extra_bytes};
}

class device_windows : public built_partition {
 public:
  device_windows(const point_window& window, const token_set& tokens) {
    point_set points;
    const std::int64_t shape[] = {tokens.size(), 3};
    points.coordinates = tensor_view<const float, 2>(
        tokens.size() > 0 ? tokens.coordinates.front().data() : nullptr, shape);
    points.batch = tokens.batch.data();
    std::visit(
        [&](const auto& each) {
          require("partition", support::build_on_device(each, points, on_device_, repeats));
        },
        window);
    build_ = measured(on_device_.build());
    on_host_ = on_device_.to_host();
  }
  [[nodiscard]] std::size_t bytes() const override { return on_device_.bytes(); }
  [[nodiscard]] const partition& device() const { return on_device_.view(); }
  [[nodiscard]] const partition& host() const override { return on_host_.view(); }

 private:
  support::device_partition on_device_;
  reference::host_partition on_host_;
};

class device_calls : public attention_calls {
 public:
  measurement forward(const attention_forward_arguments<>& arguments) override {
    support::device_cost cost;
    require("attention forward", support::forward_on_device(arguments, cost, repeats));
    return measured(cost);
  }
  measurement backward(const attention_backward_arguments<>& arguments) override {
    support::device_cost cost;
    require("attention backward", support::backward_on_device(arguments, cost, repeats));
    return measured(cost);
  }
};

class double_calls : public attention_calls {
 public:
  explicit double_calls(int threads) : threads_(threads) {}
  measurement forward(const attention_forward_arguments<>& arguments) override {
    require("attention forward", reference::attention_forward<double>(arguments, threads_));
    return {};
  }
  measurement backward(const attention_backward_arguments<>& arguments) override {
    require("attention backward", reference::attention_backward<double>(arguments, threads_));
    return {};
  }

 private:
  int threads_;
};

class cuda_backend : public backend {
 public:
  explicit cuda_backend(int threads) : in_double_(threads) {}

  [[nodiscard]] std::string description() const override { return support::device_description(); }
  [[nodiscard]] dtype usual_storage() const override { return dtype::float16; }
  std::unique_ptr<built_partition> build(const point_window& window,
                                         const token_set& tokens) override {
    return std::make_unique<device_windows>(window, tokens);
  }
  attention_result run(const built_partition& windows, const attention_tensors& tensors,
                       dtype storage) override {
    const auto& built = dynamic_cast<const device_windows&>(windows);
    if (storage == dtype::float64) return run_attention(built.host(), tensors, storage, in_double_);
    return run_attention(built.device(), tensors, storage, on_device_);
  }

 private:
  device_calls on_device_;
  double_calls in_double_;
};

}  // namespace

std::unique_ptr<backend> make_cuda_backend(int threads) {
  const std::string missing = support::missing_device();
  if (!missing.empty())
    throw support::input_error("--device cuda", "no GPU can be used: " + missing);
  return std::make_unique<cuda_backend>(threads);
}
#else
std::unique_ptr<backend> make_cuda_backend(int) {
  throw support::input_error("--device cuda",
                             "this build of winnow-eval has no CUDA support; use --device cpu");
}
#endif

}  // namespace winnow::eval
