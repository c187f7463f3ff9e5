// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention problems of the host in device memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "support/attention_case.hpp"
#include "support/device.hpp"
#include "support/partition_copy.hpp"
#include "winnow/attention.hpp"

namespace winnow::test {

/// One group's tables on the device; `Table` is their element type there.
template <class Table>
struct device_tables {
  device_array<Table> table_q, table_k, table_v, bias;
};

/// The inputs of an `attention_case` on the device, and outputs that start poisoned.
template <class T, class Table = T>
class device_attention {
 public:
  explicit device_attention(const attention_case<T>& host)
      : q(host.q),
        k(host.k),
        v(host.v),
        out(host.tokens * host.heads * host.dim),
        lse(host.tokens * host.heads),
        tokens_(host.tokens),
        heads_(host.heads),
        dim_(host.dim),
        scale_(host.scale) {
    // Said aloud for memory checkers, under which new arrays come as they are.
    out.poison();
    lse.poison();
    for (std::size_t g = 0; g < host.groups.size(); ++g) {
      const group_spec& spec = host.specs()[g];
      partitions.emplace_back(spec.windows->view());
      const group_data<T>& data = host.groups[g];
      tables.push_back(
          {upload(data.table_q), upload(data.table_k), upload(data.table_v), upload(data.bias)});
      head_group<Table> group;
      group.heads = spec.heads;
      group.windows = partitions.back().view();
      group.position = spec.position;
      group.table_q = table(tables.back().table_q, spec);
      group.table_k = table(tables.back().table_k, spec);
      group.table_v = table(tables.back().table_v, spec);
      if (tables.back().bias.size() > 0)
        group.bias_table = tensor_view<Table, 2>(
            tables.back().bias.data(), {spec.windows->view().relative.bias_rows(), spec.heads});
      groups.push_back(group);
    }
  }

  /// Points into this object.
  [[nodiscard]] attention_forward_arguments<T, Table> forward() {
    attention_forward_arguments<T, Table> arguments;
    arguments.q = rows(q);
    arguments.k = rows(k);
    arguments.v = rows(v);
    arguments.out = rows(out);
    arguments.lse = {lse.data(), {tokens_, heads_}};
    arguments.scale = scale_;
    arguments.groups = groups.data();
    arguments.group_count = static_cast<int>(groups.size());
    return arguments;
  }

  [[nodiscard]] tensor_view<T, 3> rows(const device_array<T>& values) const {
    return {values.data(), {tokens_, heads_, dim_}};
  }

 private:
  static device_array<Table> upload(const std::vector<T>& values) {
    std::vector<Table> converted;
    for (const T& value : values) converted.push_back(from_float<Table>(to_float(value)));
    return device_array<Table>(converted);
  }
  [[nodiscard]] tensor_view<Table, 4> table(const device_array<Table>& values,
                                            const group_spec& spec) const {
    if (values.size() == 0) return {};
    return {values.data(), {spec.windows->view().relative.table_rows(), 3, spec.heads, dim_}};
  }

 public:
  device_array<T> q, k, v, out;
  device_array<float> lse;
  std::vector<partition_copy> partitions;
  std::vector<device_tables<Table>> tables;
  std::vector<head_group<Table>> groups;

 private:
  std::int64_t tokens_, heads_;
  int dim_;
  float scale_;
};

}  // namespace winnow::test
