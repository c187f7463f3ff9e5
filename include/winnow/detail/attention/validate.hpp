// SPDX-License-Identifier: Apache-2.0
/// \file
/// Checks of attention arguments, on the type-erased form and therefore compiled once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>

#include "winnow/attention.hpp"
#include "winnow/detail/util/check_view.hpp"

namespace winnow {
namespace detail {

/// "groups[2].table_q" and the like, without allocating.
struct argument_name {
  char text[48];
  argument_name(int group, const char* member, const char* array = "groups") noexcept {
    std::snprintf(text, sizeof text, "%s[%d].%s", array, group, member);
  }
};

/// Writes "[2, 3, 4]" into a small buffer for messages.
template <int Rank>
struct shape_text {
  char text[24 * Rank + 4];
  explicit shape_text(const std::int64_t (&shape)[Rank]) noexcept {
    int used = std::snprintf(text, sizeof text, "[");
    for (int d = 0; d < Rank; ++d)
      used += std::snprintf(text + used, sizeof text - static_cast<std::size_t>(used), "%s%lld",
                            d ? ", " : "", static_cast<long long>(shape[d]));
    std::snprintf(text + used, sizeof text - static_cast<std::size_t>(used), "]");
  }
};

template <int Rank>
status check_shape(const char* name, const tensor_layout<Rank>& view,
                   const std::int64_t (&wanted)[Rank]) noexcept {
  for (int d = 0; d < Rank; ++d)
    WINNOW_REQUIRE(view.shape[d] == wanted[d], "%s: shape is %s, must be %s", name,
                   shape_text<Rank>(view.shape).text, shape_text<Rank>(wanted).text);
  return {};
}

inline status check_dtype(const char* name, dtype has, dtype wanted) noexcept {
  WINNOW_REQUIRE(has == wanted, "%s: dtype is %s, must be %s", name, to_string(has),
                 to_string(wanted));
  return {};
}

/// The dtype of LSE and table gradients beside a storage type.
constexpr dtype wide_of(dtype storage) noexcept {
  return storage == dtype::float64 ? dtype::float64 : dtype::float32;
}

template <int Rank>
status check_array(const char* name, const tensor_view<const void, Rank>& view, dtype type,
                   const std::int64_t (&shape)[Rank]) noexcept {
  WINNOW_TRY(check_dtype(name, view.type, type));
  WINNOW_TRY(check_shape(name, view, shape));
  return check_input(name, view);
}

template <int Rank>
status check_array(const char* name, const tensor_view<void, Rank>& view, dtype type,
                   const std::int64_t (&shape)[Rank]) noexcept {
  WINNOW_TRY(check_dtype(name, view.type, type));
  WINNOW_TRY(check_shape(name, view, shape));
  return check_output(name, view);
}

template <int Rank>
bool is_absent(const tensor_view<void, Rank>& view) noexcept {
  return view.data == nullptr;
}
template <int Rank>
bool is_absent(const tensor_view<const void, Rank>& view) noexcept {
  return view.data == nullptr;
}

/// q, as the array that states N, H, D and the storage type.
inline status check_query(const tensor_view<const void, 3>& q) noexcept {
  WINNOW_REQUIRE(q.type == dtype::float32 || q.type == dtype::float16 ||
                     q.type == dtype::bfloat16 || q.type == dtype::float64,
                 "q: dtype is %s, must be a floating-point type", to_string(q.type));
  WINNOW_TRY(check_input("q", q));
  WINNOW_REQUIRE(q.shape[0] < std::int64_t{1} << 31, "q: %lld tokens, must be fewer than 2^31",
                 static_cast<long long>(q.shape[0]));
  WINNOW_REQUIRE(q.shape[1] >= 1 && q.shape[1] < std::int64_t{1} << 16,
                 "q: %lld heads, must be in [1, 65535]", static_cast<long long>(q.shape[1]));
  const std::int64_t dim = q.shape[2];
  if (dim < 8 || dim > max_head_dim || dim % 8 != 0)
    return status::failure(status_code::unsupported,
                           "q: head dim %lld, must be a multiple of 8 in [8, %d]",
                           static_cast<long long>(dim), max_head_dim);
  return {};
}

inline status check_group_partition(int g, const partition& windows, std::int64_t tokens) noexcept {
  WINNOW_REQUIRE(windows.counts != nullptr && windows.order != nullptr &&
                     windows.offsets != nullptr && windows.bounds != nullptr,
                 "groups[%d].windows: has no memory; bind_partition gives it some", g);
  WINNOW_REQUIRE(windows.max_tokens == tokens,
                 "groups[%d].windows: is a partition of up to %lld tokens, q has %lld", g,
                 static_cast<long long>(windows.max_tokens), static_cast<long long>(tokens));
  const relative_kind kind = windows.relative.kind;
  WINNOW_REQUIRE(kind == relative_kind::none ||
                     (windows.position != nullptr && windows.relative.quant_length >= 1 &&
                      windows.relative.quant_length <= max_quant_length),
                 "groups[%d].windows: positions are null or quant length %d is not in [1, %d]", g,
                 windows.relative.quant_length, max_quant_length);
  WINNOW_REQUIRE(kind != relative_kind::spherical || windows.radius != nullptr,
                 "groups[%d].windows: radius is null", g);
  return {};
}

inline status check_table(const argument_name& name, const tensor_view<const void, 4>& table,
                          const head_group<void>& group, dtype storage,
                          std::int64_t head_dim) noexcept {
  if (is_absent(table)) return {};
  WINNOW_REQUIRE(group.position == position_encoding::contextual,
                 "%s: is given, but the group's position encoding is not contextual", name.text);
  WINNOW_REQUIRE(table.type == storage || table.type == dtype::float32,
                 "%s: dtype is %s, must be %s or float32", name.text, to_string(table.type),
                 to_string(storage));
  const relative_position& relative = group.windows.relative;
  WINNOW_REQUIRE(table.shape[0] == relative.table_rows(),
                 "%s: has %lld rows, quant length %d needs %d", name.text,
                 static_cast<long long>(table.shape[0]), relative.quant_length,
                 relative.table_rows());
  WINNOW_TRY(check_shape(name.text, table, {relative.table_rows(), 3, group.heads, head_dim}));
  return check_input(name.text, table);
}

inline status check_group(int g, const head_group<void>& group,
                          const tensor_view<const void, 3>& q) noexcept {
  WINNOW_REQUIRE(group.heads >= 1, "groups[%d].heads: %d, must be >= 1", g, group.heads);
  WINNOW_TRY(check_group_partition(g, group.windows, q.shape[0]));
  const relative_position& relative = group.windows.relative;
  switch (group.position) {
    case position_encoding::none:
      break;
    case position_encoding::contextual:
      if (relative.kind == relative_kind::grid)
        return status::failure(status_code::unsupported,
                               "groups[%d].position: contextual on a grid; a grid takes none or "
                               "bias",
                               g);
      WINNOW_REQUIRE(relative.kind != relative_kind::none,
                     "groups[%d].position: contextual, but the partition has no positions", g);
      break;
    case position_encoding::bias:
      WINNOW_REQUIRE(relative.kind == relative_kind::grid,
                     "groups[%d].position: bias, but the partition is not a grid", g);
      WINNOW_REQUIRE(!is_absent(group.bias_table), "groups[%d].bias_table: is null, bias needs it",
                     g);
      break;
    default:
      WINNOW_REQUIRE(false, "groups[%d].position: %d, must be none, contextual or bias", g,
                     static_cast<int>(group.position));
  }
  WINNOW_TRY(check_table({g, "table_q"}, group.table_q, group, q.type, q.shape[2]));
  WINNOW_TRY(check_table({g, "table_k"}, group.table_k, group, q.type, q.shape[2]));
  WINNOW_TRY(check_table({g, "table_v"}, group.table_v, group, q.type, q.shape[2]));
  if (!is_absent(group.bias_table)) {
    const argument_name name(g, "bias_table");
    WINNOW_REQUIRE(group.position == position_encoding::bias,
                   "%s: is given, but the group's position encoding is not bias", name.text);
    WINNOW_REQUIRE(group.bias_table.type == q.type || group.bias_table.type == dtype::float32,
                   "%s: dtype is %s, must be %s or float32", name.text,
                   to_string(group.bias_table.type), to_string(q.type));
    WINNOW_TRY(check_shape(name.text, group.bias_table, {relative.bias_rows(), group.heads}));
    WINNOW_TRY(check_input(name.text, group.bias_table));
  }
  return {};
}

inline status check_groups(const head_group<void>* groups, int count,
                           const tensor_view<const void, 3>& q) noexcept {
  WINNOW_REQUIRE(count >= 1 && count <= max_head_groups, "group_count: %d, must be in [1, %d]",
                 count, max_head_groups);
  WINNOW_REQUIRE(groups != nullptr, "groups: is null");
  std::int64_t heads = 0;
  for (int g = 0; g < count; ++g) {
    WINNOW_TRY(check_group(g, groups[g], q));
    heads += groups[g].heads;
  }
  WINNOW_REQUIRE(heads == q.shape[1], "groups: own %lld heads in all, q has %lld",
                 static_cast<long long>(heads), static_cast<long long>(q.shape[1]));
  return {};
}

/// What forward and backward share: q, k, v, scale and the groups.
template <class Arguments>
status check_common(const Arguments& arguments) noexcept {
  const auto& q = arguments.q;
  WINNOW_TRY(check_query(q));
  WINNOW_TRY(check_array("k", arguments.k, q.type, q.shape));
  WINNOW_TRY(check_array("v", arguments.v, q.type, q.shape));
  WINNOW_REQUIRE(std::isfinite(arguments.scale), "scale: %g, must be finite",
                 static_cast<double>(arguments.scale));
  return check_groups(arguments.groups, arguments.group_count, q);
}

/// Fails when `output` starts where `other` starts. Interleaved views of one buffer are fine.
inline status check_distinct(const char* output, const void* output_data, const char* other,
                             const void* other_data) noexcept {
  WINNOW_REQUIRE(output_data == nullptr || output_data != other_data, "%s: aliases %s", output,
                 other);
  return {};
}

/// The gradients of one group's tables against the group itself.
inline status check_group_gradients(int g, const head_group_gradients<void>& gradients,
                                    const head_group<void>& group,
                                    const tensor_view<const void, 3>& q) noexcept {
  const struct {
    const char* name;
    const tensor_view<void, 4>& gradient;
    const tensor_view<const void, 4>& table;
  } tables[] = {{"table_q", gradients.table_q, group.table_q},
                {"table_k", gradients.table_k, group.table_k},
                {"table_v", gradients.table_v, group.table_v}};
  const relative_position& relative = group.windows.relative;
  for (const auto& entry : tables) {
    if (is_absent(entry.gradient)) continue;
    const argument_name name(g, entry.name, "group_gradients");
    WINNOW_REQUIRE(!is_absent(entry.table), "%s: is given, but the group has no such table",
                   name.text);
    WINNOW_TRY(check_array(name.text, entry.gradient, wide_of(q.type),
                           {relative.table_rows(), 3, group.heads, q.shape[2]}));
    WINNOW_TRY(check_distinct(name.text, entry.gradient.data, "its table", entry.table.data));
  }
  if (!is_absent(gradients.bias_table)) {
    const argument_name name(g, "bias_table", "group_gradients");
    WINNOW_REQUIRE(!is_absent(group.bias_table), "%s: is given, but the group has no bias table",
                   name.text);
    WINNOW_TRY(check_array(name.text, gradients.bias_table, wide_of(q.type),
                           {relative.bias_rows(), group.heads}));
    WINNOW_TRY(
        check_distinct(name.text, gradients.bias_table.data, "its table", group.bias_table.data));
  }
  return {};
}

}  // namespace detail

inline status validate(const attention_forward_arguments<void>& arguments) noexcept {
  WINNOW_TRY(detail::check_common(arguments));
  const auto& q = arguments.q;
  WINNOW_TRY(detail::check_array("out", arguments.out, q.type, q.shape));
  const struct {
    const char* name;
    const void* data;
  } inputs[] = {{"q", q.data}, {"k", arguments.k.data}, {"v", arguments.v.data}};
  for (const auto& input : inputs)
    WINNOW_TRY(detail::check_distinct("out", arguments.out.data, input.name, input.data));
  if (!detail::is_absent(arguments.lse)) {
    WINNOW_TRY(detail::check_array("lse", arguments.lse, detail::wide_of(q.type),
                                   {q.shape[0], q.shape[1]}));
    WINNOW_TRY(detail::check_distinct("lse", arguments.lse.data, "out", arguments.out.data));
  }
  return {};
}

inline status validate(const attention_backward_arguments<void>& arguments) noexcept {
  WINNOW_TRY(detail::check_common(arguments));
  const auto& q = arguments.q;
  WINNOW_TRY(detail::check_array("out", arguments.out, q.type, q.shape));
  WINNOW_TRY(detail::check_array("grad_out", arguments.grad_out, q.type, q.shape));
  WINNOW_TRY(
      detail::check_array("lse", arguments.lse, detail::wide_of(q.type), {q.shape[0], q.shape[1]}));
  const struct {
    const char* name;
    const tensor_view<void, 3>& view;
  } outputs[] = {
      {"grad_q", arguments.grad_q}, {"grad_k", arguments.grad_k}, {"grad_v", arguments.grad_v}};
  const struct {
    const char* name;
    const void* data;
  } others[] = {{"q", q.data},
                {"k", arguments.k.data},
                {"v", arguments.v.data},
                {"out", arguments.out.data},
                {"grad_out", arguments.grad_out.data}};
  for (int o = 0; o < 3; ++o) {
    const auto& output = outputs[o];
    if (detail::is_absent(output.view)) continue;
    WINNOW_TRY(detail::check_array(output.name, output.view, q.type, q.shape));
    for (const auto& other : others)
      WINNOW_TRY(detail::check_distinct(output.name, output.view.data, other.name, other.data));
    for (int e = 0; e < o; ++e)
      WINNOW_TRY(detail::check_distinct(output.name, output.view.data, outputs[e].name,
                                        outputs[e].view.data));
  }
  for (int g = 0; arguments.group_gradients != nullptr && g < arguments.group_count; ++g)
    WINNOW_TRY(
        detail::check_group_gradients(g, arguments.group_gradients[g], arguments.groups[g], q));
  return {};
}

}  // namespace winnow
