// SPDX-License-Identifier: Apache-2.0
// The host twins behind the backend's interface.
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "eval/backend.hpp"
#include "eval/memory_counter.hpp"
#include "support/input_error.hpp"
#include "winnow/reference.hpp"

namespace winnow::eval {
namespace {

/// Runs a call of the library. An argument that it refuses is one that the user asked for.
template <class Call>
measurement measure(const char* name, Call&& call) {
  const memory_meter memory;
  const auto start = std::chrono::steady_clock::now();
  const status outcome = call();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  if (outcome.code() == status_code::invalid_argument)
    throw support::input_error(name, outcome.message());
  if (!outcome.ok()) throw std::runtime_error(std::string(name) + ": " + outcome.message());
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
  [[nodiscard]] std::vector<std::int32_t> offsets() const override {
    const std::int32_t* first = view().offsets;
    return {first, first + view().counts->windows + 1};
  }
  [[nodiscard]] int table_rows() const override { return view().relative.table_rows(); }
  [[nodiscard]] std::size_t bytes() const override { return partition_.bytes(); }
  [[nodiscard]] const partition& view() const { return partition_.view(); }

 private:
  reference::host_partition partition_;
};

// Views of packed arrays, const or not.

template <class Array>
auto row_view(Array& rows, const attention_tensors& shape) {
  return rows.template view<3>({shape.tokens, shape.heads, shape.head_dim});
}
template <class Array>
auto table_view(Array& table, const attention_tensors& shape) {
  return table.template view<4>({shape.table_rows, 3, shape.heads, shape.head_dim});
}
template <class Array>
auto lse_view(Array& lse, const attention_tensors& shape) {
  return lse.template view<2>({shape.tokens, shape.heads});
}

dtype wide(dtype storage) {
  return storage == dtype::float64 ? dtype::float64 : dtype::float32;
}

/// One run: the tensors in the storage type and the arguments made from them.
class host_run {
 public:
  host_run(const host_windows& windows, const attention_tensors& tensors, dtype storage,
           int threads)
      : tensors_(tensors),
        storage_(storage),
        threads_(threads),
        scale_(1.0f / std::sqrt(static_cast<float>(tensors.head_dim))),
        q_(converted(tensors.q, storage)),
        k_(converted(tensors.k, storage)),
        v_(converted(tensors.v, storage)),
        table_q_(converted(tensors.table_q, storage)),
        table_k_(converted(tensors.table_k, storage)),
        table_v_(converted(tensors.table_v, storage)),
        lse_(wide(storage), tensors.tokens * tensors.heads) {
    group_.heads = tensors.heads;
    group_.windows = windows.view();
    if (tensors.table_rows > 0) {
      group_.position = position_encoding::contextual;
      group_.table_q = table_view(std::as_const(table_q_), tensors_);
      group_.table_k = table_view(std::as_const(table_k_), tensors_);
      group_.table_v = table_view(std::as_const(table_v_), tensors_);
    }
  }

  attention_result run() {
    attention_result result;
    result.out = array(storage_, tensors_.q.elements());
    result.forward = forward(result.out);
    for (std::size_t l = 0; l < losses.size(); ++l) {
      const measurement backward = this->backward(
          result.out, converted(tensors_.grad_out[l], storage_), result.gradients[l]);
      if (l == 0) result.backward = backward;
    }
    return result;
  }

 private:
  measurement forward(array& out) {
    attention_forward_arguments<> arguments;
    arguments.q = row_view(std::as_const(q_), tensors_);
    arguments.k = row_view(std::as_const(k_), tensors_);
    arguments.v = row_view(std::as_const(v_), tensors_);
    arguments.out = row_view(out, tensors_);
    arguments.lse = lse_view(lse_, tensors_);
    arguments.scale = scale_;
    arguments.groups = &group_;
    arguments.group_count = 1;
    return measure("attention forward", [&] {
      return storage_ == dtype::float64 ? reference::attention_forward<double>(arguments, threads_)
                                        : reference::attention_forward<float>(arguments, threads_);
    });
  }

  measurement backward(const array& out, const array& grad_out, attention_gradients& gradients) {
    for (array* each : {&gradients.q, &gradients.k, &gradients.v})
      *each = array(storage_, tensors_.q.elements());
    for (array* each : {&gradients.table_q, &gradients.table_k, &gradients.table_v})
      *each = array(wide(storage_), tensors_.table_q.elements());

    head_group_gradients<> table_gradients;
    if (tensors_.table_rows > 0) {
      table_gradients.table_q = table_view(gradients.table_q, tensors_);
      table_gradients.table_k = table_view(gradients.table_k, tensors_);
      table_gradients.table_v = table_view(gradients.table_v, tensors_);
    }
    attention_backward_arguments<> arguments;
    arguments.q = row_view(std::as_const(q_), tensors_);
    arguments.k = row_view(std::as_const(k_), tensors_);
    arguments.v = row_view(std::as_const(v_), tensors_);
    arguments.out = row_view(out, tensors_);
    arguments.lse = lse_view(std::as_const(lse_), tensors_);
    arguments.grad_out = row_view(grad_out, tensors_);
    arguments.grad_q = row_view(gradients.q, tensors_);
    arguments.grad_k = row_view(gradients.k, tensors_);
    arguments.grad_v = row_view(gradients.v, tensors_);
    arguments.scale = scale_;
    arguments.groups = &group_;
    arguments.group_gradients = &table_gradients;
    arguments.group_count = 1;
    return measure("attention backward", [&] {
      return storage_ == dtype::float64 ? reference::attention_backward<double>(arguments, threads_)
                                        : reference::attention_backward<float>(arguments, threads_);
    });
  }

  const attention_tensors& tensors_;
  dtype storage_;
  int threads_;
  float scale_;
  array q_, k_, v_, table_q_, table_k_, table_v_, lse_;
  head_group<> group_;
};

class cpu_backend : public backend {
 public:
  explicit cpu_backend(int threads) : threads_(threads) {}

  std::unique_ptr<built_partition> build(const point_window& window,
                                         const token_set& tokens) override {
    return std::make_unique<host_windows>(window, tokens, threads_);
  }
  attention_result run(const built_partition& windows, const attention_tensors& tensors,
                       dtype storage) override {
    return host_run(dynamic_cast<const host_windows&>(windows), tensors, storage, threads_).run();
  }

 private:
  int threads_;
};

}  // namespace

std::unique_ptr<backend> make_backend(device_kind device, int threads) {
  if (device == device_kind::cuda) {
    throw support::input_error("--device cuda",
                               "this build of winnow-eval has no CUDA support; use --device cpu");
  }
  return std::make_unique<cpu_backend>(threads);
}

}  // namespace winnow::eval
