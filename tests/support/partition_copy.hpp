// SPDX-License-Identifier: Apache-2.0
/// \file
/// A host partition copied into device memory, for tests that build none there.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "support/device.hpp"
#include "winnow/partition.hpp"

namespace winnow::test {

class partition_copy {
 public:
  explicit partition_copy(const partition& host)
      : shape_{host.max_tokens, host.max_windows, host.relative},
        memory_(static_cast<std::int64_t>(partition_bytes(shape_))) {
    bind(memory_.data(), view_);
    assign(host);
  }
  [[nodiscard]] const partition& view() const { return view_; }

  /// Another partition of the same shape. What the host leaves unwritten stays poison here.
  void assign(const partition& host) {
    std::vector<std::byte> bytes(memory_.bytes(), std::byte{device_array<std::byte>::poison_byte});
    partition image;
    bind(bytes.data(), image);
    const std::int64_t tokens = host.counts->tokens;
    copy(image.counts, host.counts, 1);
    copy(image.order, host.order, tokens);
    copy(image.offsets, host.offsets, std::int64_t{host.counts->windows} + 1);
    copy(image.bounds, host.bounds, 2 * tokens);
    if (host.position != nullptr) copy(image.position, host.position, tokens);
    if (host.radius != nullptr) copy(image.radius, host.radius, tokens);
    memory_.copy_from(bytes);
  }

 private:
  void bind(void* memory, partition& result) const {
    const status bound = bind_partition(shape_, memory, memory_.bytes(), result);
    if (!bound.ok()) throw std::invalid_argument(bound.message());
  }
  template <class T>
  static void copy(T* target, const T* source, std::int64_t count) {
    if (count > 0) std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(T));
  }

  partition_shape shape_;
  device_array<std::byte> memory_;
  partition view_;
};

}  // namespace winnow::test
