// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// The gradients of q, k and v, given what went into the forward call and what came out of it.
winnow::status differentiate(const winnow::attention_forward_arguments<float>& forward,
                             const winnow::tensor_view<const float, 3>& grad_out,
                             const winnow::tensor_view<float, 3>& grad_q,
                             const winnow::tensor_view<float, 3>& grad_k,
                             const winnow::tensor_view<float, 3>& grad_v) {
  winnow::attention_backward_arguments<float> backward;
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.grad_out = grad_out;
  backward.grad_q = grad_q;
  backward.grad_k = grad_k;
  backward.grad_v = grad_v;
  backward.scale = forward.scale;
  backward.groups = forward.groups;
  backward.group_count = forward.group_count;
  return winnow::reference::attention_backward<float>(backward);
}
// ---

int main() {
  constexpr std::int64_t tokens = 12;
  constexpr std::int64_t dim = 8;
  const std::vector<std::int32_t> labels = {0, 1, 0, 2, 2, 1, 0, 0, 5, 2, 5, 1};
  winnow::label_set set;
  set.labels = labels.data();
  set.tokens = tokens;
  const winnow::reference::host_partition windows(shape_of(winnow::labels_window{}, set));
  check(winnow::reference::build_partition(winnow::labels_window{}, set, windows.view()));
  winnow::head_group<float> group;
  group.heads = 1;
  group.windows = windows.view();

  std::vector<float> q = numbers(tokens * dim, 1);
  const std::vector<float> k = numbers(tokens * dim, 2);
  const std::vector<float> v = numbers(tokens * dim, 3);
  const std::vector<float> grad_out = numbers(tokens * dim, 4);
  std::vector<float> out(q.size()), lse(tokens), grad_q(q.size()), grad_k(q.size()),
      grad_v(q.size());
  const std::int64_t shape[] = {tokens, 1, dim};
  winnow::attention_forward_arguments<float> forward;
  forward.q = {q.data(), shape};
  forward.k = {k.data(), shape};
  forward.v = {v.data(), shape};
  forward.out = {out.data(), shape};
  forward.lse = {lse.data(), {tokens, 1}};
  forward.groups = &group;
  forward.group_count = 1;
  check(winnow::reference::attention_forward<float>(forward));
  check(differentiate(forward, {grad_out.data(), shape}, {grad_q.data(), shape},
                      {grad_k.data(), shape}, {grad_v.data(), shape}));

  // A step along one element changes the loss Σ out · grad_out as its gradient says.
  const auto loss = [&] {
    check(winnow::reference::attention_forward<float>(forward));
    double sum = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += double{out[i]} * double{grad_out[i]};
    return sum;
  };
  q[0] += 0.01f;
  const double above = loss();
  q[0] -= 0.02f;
  const double below = loss();
  check(std::fabs((above - below) / 0.02 - double{grad_q[0]}) < 1e-3, "grad_q: wrong");
}
