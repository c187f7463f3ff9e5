// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "replay/run_case.hpp"
#include "support/input_error.hpp"

namespace winnow::replay {
namespace {

/// Elements of a run-time type. Never null, because a null view stands for an absent array.
class buffer {
 public:
  buffer(dtype type, std::vector<std::int64_t> shape) : type_(type), shape_(std::move(shape)) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape_) elements *= extent;
    bytes_.resize(static_cast<std::size_t>(elements) * size_of(type) + 1);
  }
  /// Rounds a float32 array.
  buffer(dtype type, const npy_array& from) : buffer(type, from.shape) {
    const auto* values = from.as<float>();
    for (std::int64_t n = 0; n < from.elements(); ++n) {
      if (type == dtype::float16) {
        store(n, from_float<half>(values[n]));
      } else if (type == dtype::bfloat16) {
        store(n, from_float<bfloat16>(values[n]));
      } else {
        store(n, values[n]);
      }
    }
  }

  template <int Rank>
  [[nodiscard]] tensor_view<void, Rank> view() {
    return {bytes_.data(), type_, layout<Rank>()};
  }
  template <int Rank>
  [[nodiscard]] tensor_view<const void, Rank> const_view() const {
    return {bytes_.data(), type_, layout<Rank>()};
  }

  /// A float32 copy.
  [[nodiscard]] npy_array to_npy() const {
    npy_array result;
    result.shape = shape_;
    const std::size_t elements = (bytes_.size() - 1) / size_of(type_);
    result.data.resize(elements * sizeof(float));
    for (std::size_t n = 0; n < elements; ++n) {
      const float value = type_ == dtype::float16    ? to_float(load<half>(n))
                          : type_ == dtype::bfloat16 ? to_float(load<bfloat16>(n))
                                                     : load<float>(n);
      std::memcpy(&result.data[n * sizeof(float)], &value, sizeof(float));
    }
    return result;
  }

 private:
  template <class T>
  void store(std::int64_t n, T value) {
    std::memcpy(&bytes_[static_cast<std::size_t>(n) * sizeof(T)], &value, sizeof(T));
  }
  template <class T>
  [[nodiscard]] T load(std::size_t n) const {
    T value;
    std::memcpy(&value, &bytes_[n * sizeof(T)], sizeof(T));
    return value;
  }
  template <int Rank>
  [[nodiscard]] tensor_layout<Rank> layout() const {
    std::int64_t shape[Rank];
    std::copy_n(shape_.begin(), Rank, shape);
    return packed_layout(shape);
  }

  dtype type_;
  std::vector<std::int64_t> shape_;
  std::vector<std::byte> bytes_;
};

template <class T>
const T* data_or_null(const std::optional<npy_array>& array) {
  return array ? array->as<T>() : nullptr;
}

/// Throws for a failed status; `where` is "NAME" or "NAME: head group 1".
void require(const status& result, const std::string& where) {
  if (!result.ok()) throw support::input_error(where, result.message());
}

/// The partition of one head group.
partition partition_of(const attention_case& input, const group_case& group,
                       const std::string& where, executor& device) {
  partition result;
  if (const auto* labels = std::get_if<labels_window>(&group.window)) {
    const label_set tokens{group.labels->as<std::int32_t>(), input.tokens,
                           data_or_null<std::int32_t>(group.positions),
                           data_or_null<float>(group.radius)};
    require(device.build(*labels, tokens, result), where);
    return result;
  }
  if (const auto* grid = std::get_if<grid_window>(&group.window)) {
    window_selection kept;
    std::vector<std::int32_t> ids;  // a selection's ids are mutable
    if (group.kept) {
      const auto* first = group.kept->as<std::int32_t>();
      ids.assign(first, first + group.kept->elements());
      ids.push_back(0);  // never null
      kept = uniform_selection(grid->batch, grid->windows_per_image(), group.kept->shape[1],
                               ids.data());
    }
    require(device.build(*grid, group.kept ? &kept : nullptr, result), where);
    return result;
  }
  const point_set points{{input.coords->as<float>(), dtype::float32, {input.tokens, 3}},
                         data_or_null<std::int32_t>(input.batch)};
  if (const auto* cubic = std::get_if<cubic_window>(&group.window))
    require(device.build(*cubic, points, result), where);
  else
    require(device.build(std::get<spherical_window>(group.window), points, result), where);
  return result;
}

/// The memory behind one head group and its gradients.
struct group_memory {
  std::optional<buffer> table_q, table_k, table_v, bias_table;
  std::optional<buffer> grad_table_q, grad_table_k, grad_table_v, grad_bias_table;
};

/// One attention call: what it reads and what it writes.
class attention_run {
 public:
  attention_run(const attention_case& input, dtype storage, const std::string& name,
                executor& device)
      : input_(input),
        device_(device),
        storage_(storage),
        name_(name),
        q_(storage, input.q),
        k_(storage, input.k),
        v_(storage, input.v),
        out_(storage, input.q.shape),
        lse_(dtype::float32, {input.tokens, input.heads}) {
    for (std::size_t g = 0; g < input.groups.size(); ++g) add_group(g);
  }

  case_results run() {
    forward();
    case_results results{{"out", out_.to_npy()}, {"lse", lse_.to_npy()}};
    if (input_.grad_out) backward(results);
    return results;
  }

 private:
  void add_group(std::size_t g) {
    const group_case& from = input_.groups[g];
    group_memory& memory = memory_.emplace_back();
    head_group<>& group = groups_.emplace_back();
    head_group_gradients<>& gradients = gradients_.emplace_back();
    group.heads = from.heads;
    group.windows = partition_of(
        input_, from, input_.suffixed ? name_ + ": head group " + std::to_string(g) : name_,
        device_);
    group.position = from.position;
    const auto add = [&](const std::optional<npy_array>& array, std::optional<buffer>& table,
                         std::optional<buffer>& gradient, auto& view, auto& gradient_view) {
      if (!array) return;
      constexpr int rank = std::extent_v<decltype(view.shape)>;
      table.emplace(storage_, *array);
      gradient.emplace(dtype::float32, array->shape);
      view = table->const_view<rank>();
      gradient_view = gradient->template view<rank>();
    };
    add(from.table_q, memory.table_q, memory.grad_table_q, group.table_q, gradients.table_q);
    add(from.table_k, memory.table_k, memory.grad_table_k, group.table_k, gradients.table_k);
    add(from.table_v, memory.table_v, memory.grad_table_v, group.table_v, gradients.table_v);
    add(from.bias_table, memory.bias_table, memory.grad_bias_table, group.bias_table,
        gradients.bias_table);
  }

  void forward() {
    attention_forward_arguments<> arguments;
    arguments.q = q_.const_view<3>();
    arguments.k = k_.const_view<3>();
    arguments.v = v_.const_view<3>();
    arguments.out = out_.view<3>();
    arguments.lse = lse_.view<2>();
    arguments.scale = input_.scale;
    arguments.groups = groups_.data();
    arguments.group_count = static_cast<int>(groups_.size());
    arguments.zero_unassigned = true;
    require(device_.forward(arguments), name_);
  }

  void backward(case_results& results) {
    const buffer grad_out(storage_, *input_.grad_out);
    buffer grad_q(storage_, input_.q.shape);
    buffer grad_k(storage_, input_.q.shape);
    buffer grad_v(storage_, input_.q.shape);
    attention_backward_arguments<> arguments;
    arguments.q = q_.const_view<3>();
    arguments.k = k_.const_view<3>();
    arguments.v = v_.const_view<3>();
    arguments.out = out_.const_view<3>();
    arguments.lse = lse_.const_view<2>();
    arguments.grad_out = grad_out.const_view<3>();
    arguments.grad_q = grad_q.view<3>();
    arguments.grad_k = grad_k.view<3>();
    arguments.grad_v = grad_v.view<3>();
    arguments.scale = input_.scale;
    arguments.groups = groups_.data();
    arguments.group_gradients = gradients_.data();
    arguments.group_count = static_cast<int>(groups_.size());
    arguments.zero_unassigned = true;
    require(device_.backward(arguments), name_);

    results.push_back({"grad_q", grad_q.to_npy()});
    results.push_back({"grad_k", grad_k.to_npy()});
    results.push_back({"grad_v", grad_v.to_npy()});
    for (std::size_t g = 0; g < memory_.size(); ++g) {
      const std::string suffix = input_.suffixed ? "." + std::to_string(g) : "";
      const auto add = [&](const char* name, const std::optional<buffer>& gradient) {
        if (gradient) results.push_back({name + suffix, gradient->to_npy()});
      };
      add("grad_table_q", memory_[g].grad_table_q);
      add("grad_table_k", memory_[g].grad_table_k);
      add("grad_table_v", memory_[g].grad_table_v);
      add("grad_bias_table", memory_[g].grad_bias_table);
    }
  }

  const attention_case& input_;
  executor& device_;
  dtype storage_;
  const std::string& name_;
  buffer q_, k_, v_, out_, lse_;
  std::vector<group_memory> memory_;
  std::vector<head_group<>> groups_;
  std::vector<head_group_gradients<>> gradients_;
};

case_results run_selection(const selection_case& input, dtype storage, const std::string& name,
                           executor& device) {
  const std::int64_t images = input.grid.batch;
  const std::int64_t windows = input.grid.windows_per_image();
  const std::int64_t kept = kept_windows(windows, input.prune_ratio);
  const buffer features(storage, input.features);
  std::vector<std::int32_t> selected(static_cast<std::size_t>(images * kept) + 1);
  require(device.select(input.grid, features.const_view<3>(),
                        uniform_selection(input.grid.batch, windows, kept, selected.data())),
          name);

  npy_array ids;
  ids.element = support::npy_element::int32;
  ids.shape = {images, kept};
  const auto* first = reinterpret_cast<const std::byte*>(selected.data());
  ids.data.assign(first, first + (selected.size() - 1) * sizeof(std::int32_t));
  return {{"kept", ids}};
}

}  // namespace

case_results run_case(const replay_case& input, dtype storage, const std::string& name,
                      executor& device) {
  if (const auto* selection = std::get_if<selection_case>(&input))
    return run_selection(*selection, storage, name, device);
  return attention_run(std::get<attention_case>(input), storage, name, device).run();
}

}  // namespace winnow::replay
