// SPDX-License-Identifier: Apache-2.0
/// \file
/// What tests on a GPU share: owning device memory, streams and graphs, and a visible skip where
/// there is no GPU. Compiles with a host compiler.
///
/// A failing CUDA call throws, which GoogleTest reports as a failure of the running test.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// Skips the running test, saying why, where no GPU can be used. First line of every GPU test.
#define WINNOW_SKIP_WITHOUT_GPU()                                                                \
  do {                                                                                           \
    if (const std::string winnow_reason = ::winnow::test::missing_gpu(); !winnow_reason.empty()) \
      GTEST_SKIP() << winnow_reason;                                                             \
  } while (false)

namespace winnow::test {

/// Why no GPU can be used; empty where one can.
inline std::string missing_gpu() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return {};
  return std::string("no GPU: ") + cudaGetErrorString(error);
}

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// Waits for the whole device and throws what any earlier kernel did wrong.
inline void synchronize() {
  check_cuda(cudaGetLastError(), "a launch");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

/// Under a memory checker arrays come bare: guards would hide a read past the end, and poison would
/// hide a read of memory that nothing wrote. WINNOW_TEST_BARE=1 says so.
inline bool bare_arrays() {
  static const bool bare = [] {
    const char* value = std::getenv("WINNOW_TEST_BARE");
    return value != nullptr && value[0] == '1';
  }();
  return bare;
}

/// Device memory for `size()` elements between two guards. New memory is poisoned, not zeroed.
template <class T>
class device_array {
 public:
  static constexpr unsigned char poison_byte = 0xcd;
  static constexpr unsigned char guard_byte = 0xa5;

  device_array() = default;
  explicit device_array(std::int64_t size) : size_(size), guard_(bare_arrays() ? 0 : 1024) {
    if (size < 0) throw std::invalid_argument("device_array: negative size");
    if (bytes() + guard_ == 0) return;
    check_cuda(cudaMalloc(&block_, bytes() + 2 * guard_), "cudaMalloc");
    if (guard_ == 0) return;
    check_cuda(cudaMemset(block_, guard_byte, bytes() + 2 * guard_), "cudaMemset");
    poison();
  }
  explicit device_array(const std::vector<T>& values)
      : device_array(static_cast<std::int64_t>(values.size())) {
    copy_from(values);
  }
  device_array(device_array&& other) noexcept { swap(other); }
  device_array& operator=(device_array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~device_array() { cudaFree(block_); }

  [[nodiscard]] T* data() const noexcept {
    return block_ ? reinterpret_cast<T*>(static_cast<std::byte*>(block_) + guard_) : nullptr;
  }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(size_) * sizeof(T);
  }

  /// Overwrites the first `values.size()` elements. Synchronous, as all copies here.
  void copy_from(const std::vector<T>& values) {
    if (static_cast<std::int64_t>(values.size()) > size_)
      throw std::invalid_argument("device_array: too many values");
    copy_from(values.data(), static_cast<std::int64_t>(values.size()));
  }
  void copy_from(const T* values, std::int64_t count) {
    if (count == 0) return;
    check_cuda(cudaMemcpy(data(), values, static_cast<std::size_t>(count) * sizeof(T),
                          cudaMemcpyHostToDevice),
               "copy to the device");
    synchronize();
  }
  [[nodiscard]] std::vector<T> to_host() const {
    std::vector<T> values(static_cast<std::size_t>(size_));
    if (size_ > 0)
      check_cuda(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost),
                 "copy to the host");
    return values;
  }

  /// Sets every byte to `poison_byte`, so that an element nothing wrote is recognised.
  void poison() { fill(poison_byte); }
  void fill(unsigned char byte) {
    if (size_ > 0) check_cuda(cudaMemset(data(), byte, bytes()), "cudaMemset");
    synchronize();
  }
  /// What a poisoned element reads as.
  [[nodiscard]] static T poisoned() {
    T value;
    std::memset(static_cast<void*>(&value), poison_byte, sizeof value);
    return value;
  }

  /// Did nobody write just before or behind the elements?
  [[nodiscard]] bool guards_intact() const {
    if (guard_ == 0) return true;
    std::vector<unsigned char> guards(2 * guard_);
    const auto* block = static_cast<const unsigned char*>(block_);
    check_cuda(cudaMemcpy(guards.data(), block, guard_, cudaMemcpyDeviceToHost), "copy a guard");
    check_cuda(cudaMemcpy(guards.data() + guard_, block + guard_ + bytes(), guard_,
                          cudaMemcpyDeviceToHost),
               "copy a guard");
    for (unsigned char byte : guards)
      if (byte != guard_byte) return false;
    return true;
  }

 private:
  void swap(device_array& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(size_, other.size_);
    std::swap(guard_, other.guard_);
  }

  void* block_ = nullptr;
  std::int64_t size_ = 0;
  std::size_t guard_ = 0;
};

/// A stream that does not wait for the default stream.
class device_stream {
 public:
  device_stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  device_stream(const device_stream&) = delete;
  device_stream& operator=(const device_stream&) = delete;
  ~device_stream() { cudaStreamDestroy(stream_); }

  [[nodiscard]] cudaStream_t get() const noexcept { return stream_; }
  operator cudaStream_t() const noexcept { return stream_; }
  void synchronize() const {
    check_cuda(cudaGetLastError(), "a launch");
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

 private:
  cudaStream_t stream_ = nullptr;
};

/// The work that `record(stream)` submits, captured once and replayed at will. A call that
/// allocates, synchronises or uses another stream makes the capture throw.
class captured_graph {
 public:
  template <class Record>
  captured_graph(cudaStream_t stream, Record&& record) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    record(stream);
    check_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(error, "cudaGraphInstantiate");
  }
  captured_graph(const captured_graph&) = delete;
  captured_graph& operator=(const captured_graph&) = delete;
  ~captured_graph() { cudaGraphExecDestroy(executable_); }

  /// Submits one replay to the stream of the capture.
  void launch() const { check_cuda(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace winnow::test
