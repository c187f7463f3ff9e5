// SPDX-License-Identifier: Apache-2.0
// A minimal inference engine: it knows element types only at run time, owns all memory in one block
// and hands it to winnow's type-erased calls.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "winnow/winnow.hpp"

namespace {

constexpr std::int64_t tokens = 3;
constexpr std::int64_t heads = 1;
constexpr std::int64_t head_dim = 8;

/// The engine's memory: a fixed block, from which tensors are cut and never returned.
class arena {
 public:
  void* take(std::size_t bytes) {
    void* piece = block_.get() + used_;
    used_ += (bytes + 255) / 256 * 256;
    if (used_ > capacity) {
      std::fprintf(stderr, "engine: out of memory\n");
      std::exit(1);
    }
    return piece;
  }

  template <int Rank>
  winnow::tensor_view<void, Rank> tensor(winnow::dtype type, const std::int64_t (&shape)[Rank]) {
    std::size_t elements = 1;
    for (const std::int64_t size : shape) elements *= static_cast<std::size_t>(size);
    return {take(elements * winnow::size_of(type)), type, shape};
  }

 private:
  static constexpr std::size_t capacity = 1 << 16;
  struct release {
    void operator()(std::byte* block) const { std::free(block); }
  };
  std::unique_ptr<std::byte, release> block_{
      static_cast<std::byte*>(std::aligned_alloc(256, capacity))};
  std::size_t used_ = 0;
};

void require(const winnow::status& status, const char* call) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s: %s\n", call, to_string(status.code()), status.message());
  std::exit(1);
}

void expect(const char* what, float value, float expected) {
  std::printf("%s = %g\n", what, static_cast<double>(value));
  if (std::fabs(value - expected) <= 1e-6f) return;
  std::fprintf(stderr, "%s is %g, must be %g\n", what, static_cast<double>(value),
               static_cast<double>(expected));
  std::exit(1);
}

/// Row n holds first + n in every element.
void fill(const winnow::tensor_view<void, 3>& rows, float first) {
  for (std::int64_t i = 0; i < tokens * heads * head_dim; ++i)
    static_cast<float*>(rows.data)[i] = first + static_cast<float>(i / (heads * head_dim));
}

float first_of_row(const winnow::tensor_view<void, 3>& rows, std::int64_t token) {
  return static_cast<const float*>(rows.data)[rows.offset(token)];
}

}  // namespace

int main() {
  arena memory;

  // Tokens 0 and 2 share a window, token 1 has its own.
  auto* labels = static_cast<std::int32_t*>(memory.take(tokens * sizeof(std::int32_t)));
  labels[0] = labels[2] = 7;
  labels[1] = 3;
  const winnow::labels_window window;
  winnow::label_set set;
  set.labels = labels;
  set.tokens = tokens;

  const winnow::partition_shape shape = shape_of(window, set);
  const std::size_t bytes = partition_bytes(shape);
  winnow::head_group<> group;
  group.heads = heads;
  require(bind_partition(shape, memory.take(bytes), bytes, group.windows), "bind_partition");
  require(winnow::reference::build_partition(window, set, group.windows), "build_partition");

  // A query of zeros attends to all keys of its window alike, so every result is known.
  const winnow::dtype type = winnow::dtype::float32;
  const auto rows = [&](float first) {
    const winnow::tensor_view<void, 3> view = memory.tensor(type, {tokens, heads, head_dim});
    fill(view, first);
    return view;
  };
  const winnow::tensor_view<void, 3> q = memory.tensor(type, {tokens, heads, head_dim});
  for (std::int64_t i = 0; i < tokens * heads * head_dim; ++i) static_cast<float*>(q.data)[i] = 0;
  winnow::attention_forward_arguments<> forward;
  forward.q = q;
  forward.k = rows(1.0f);
  forward.v = rows(10.0f);
  forward.out = rows(-1.0f);
  forward.lse = memory.tensor(type, {tokens, heads});
  forward.scale = 0.5f;
  forward.groups = &group;
  forward.group_count = 1;
  require(winnow::reference::attention_forward<float>(forward), "attention_forward");
  expect("out[0]", first_of_row(forward.out, 0), 11.0f);
  expect("out[1]", first_of_row(forward.out, 1), 11.0f);
  expect("out[2]", first_of_row(forward.out, 2), 11.0f);
  expect("lse[0]", static_cast<const float*>(forward.lse.data)[0], std::log(2.0f));
  expect("lse[1]", static_cast<const float*>(forward.lse.data)[1], 0.0f);

  winnow::attention_backward_arguments<> backward;
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.grad_out = rows(1.0f);
  backward.grad_q = rows(-1.0f);
  backward.grad_k = rows(-1.0f);
  backward.grad_v = rows(-1.0f);
  backward.scale = forward.scale;
  backward.groups = &group;
  backward.group_count = 1;
  require(winnow::reference::attention_backward<float>(backward), "attention_backward");
  // dv is the mean of dO over the window; dS_ij = 1/2 (8 dO_i v_j - 8 dO_i 11), so dS_00 = -4 and
  // dS_02 = 4, and dq_0 = 1/2 (-4 k_0 + 4 k_2). The keys' gradients vanish with the queries.
  expect("grad_v[0]", first_of_row(backward.grad_v, 0), 2.0f);
  expect("grad_v[1]", first_of_row(backward.grad_v, 1), 2.0f);
  expect("grad_q[0]", first_of_row(backward.grad_q, 0), 4.0f);
  expect("grad_q[1]", first_of_row(backward.grad_q, 1), 0.0f);
  expect("grad_k[0]", first_of_row(backward.grad_k, 0), 0.0f);

  // Mistakes come back as a status.
  forward.group_count = 0;
  const winnow::status refused = winnow::reference::attention_forward<float>(forward);
  std::printf("refused: %s: %s\n", to_string(refused.code()), refused.message());
  return refused.code() == winnow::status_code::invalid_argument ? 0 : 1;
}
