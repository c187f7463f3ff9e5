// SPDX-License-Identifier: Apache-2.0
#include "eval/attention_calls.hpp"

#include <cmath>
#include <utility>

namespace winnow::eval {
namespace {

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

/// The tensors in the storage type and the arguments made from them.
class attention_run {
 public:
  attention_run(const partition& windows, const attention_tensors& tensors, dtype storage,
                attention_calls& calls)
      : tensors_(tensors),
        storage_(storage),
        calls_(calls),
        scale_(1.0f / std::sqrt(static_cast<float>(tensors.head_dim))),
        q_(converted(tensors.q, storage)),
        k_(converted(tensors.k, storage)),
        v_(converted(tensors.v, storage)),
        table_q_(converted(tensors.table_q, storage)),
        table_k_(converted(tensors.table_k, storage)),
        table_v_(converted(tensors.table_v, storage)),
        lse_(wide(storage), tensors.tokens * tensors.heads) {
    group_.heads = tensors.heads;
    group_.windows = windows;
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
    return calls_.forward(arguments);
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
    return calls_.backward(arguments);
  }

  const attention_tensors& tensors_;
  dtype storage_;
  attention_calls& calls_;
  float scale_;
  array q_, k_, v_, table_q_, table_k_, table_v_, lse_;
  head_group<> group_;
};

}  // namespace

attention_result run_attention(const partition& windows, const attention_tensors& tensors,
                               dtype storage, attention_calls& calls) {
  return attention_run(windows, tensors, storage, calls).run();
}

}  // namespace winnow::eval
