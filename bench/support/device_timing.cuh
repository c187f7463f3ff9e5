// SPDX-License-Identifier: Apache-2.0
/// \file
/// How the benchmarks time work on the GPU: events around graph replays or stream submissions, medians
/// of many samples, warm or cold L2, and the bandwidth of a copy kernel as the yardstick.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "winnow/status.hpp"

namespace winnow::bench {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
inline void check(const status& result) {
  if (!result.ok()) throw std::runtime_error(result.message());
}

/// Device memory.
template <class T>
class buffer {
 public:
  explicit buffer(std::size_t count) : count_(count) {
    check(cudaMalloc(&data_, std::max<std::size_t>(count * sizeof(T), 1)), "cudaMalloc");
  }
  explicit buffer(const std::vector<T>& values) : buffer(values.size()) {
    check(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), "copy");
  }
  buffer(buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  buffer(const buffer&) = delete;
  ~buffer() { cudaFree(data_); }
  [[nodiscard]] T* data() const { return static_cast<T*>(data_); }
  [[nodiscard]] std::size_t bytes() const { return count_ * sizeof(T); }

 private:
  void* data_ = nullptr;
  std::size_t count_;
};

class timer {
 public:
  timer() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  timer(const timer&) = delete;
  ~timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }

  /// Seconds that the work submitted by `submit` took, after `before` has run.
  template <class Before, class Submit>
  double once(Before&& before, Submit&& submit) {
    before();
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    submit();
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "a timed call");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// The work that `record(stream)` submits, as a graph.
class graph {
 public:
  template <class Record>
  graph(cudaStream_t stream, Record&& record) {
    cudaGraph_t captured = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    record();
    check(cudaStreamEndCapture(stream, &captured), "end capture");
    const cudaError_t error = cudaGraphInstantiate(&executable_, captured, 0);
    cudaGraphDestroy(captured);
    check(error, "cudaGraphInstantiate");
  }
  graph(const graph&) = delete;
  ~graph() { cudaGraphExecDestroy(executable_); }
  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

enum class mode {
  graph,   ///< a graph of 20 calls, the time of one; inputs of earlier calls lie in the L2
  stream,  ///< 20 calls submitted one after another, so launches may bound it
  cold     ///< a graph of one call, after other data has passed through the L2
};
inline constexpr int calls_per_sample = 20;
inline constexpr int samples = 21;

/// The median time of one call, `call(stream)`.
template <class Call>
double seconds_of(mode how, Call&& call) {
  timer clock;
  const cudaStream_t stream = clock.stream();
  std::vector<double> times;
  const auto nothing = [] {};
  if (how == mode::stream) {
    for (int i = 0; i < samples + 3; ++i)
      times.push_back(clock.once(nothing, [&] {
        for (int c = 0; c < calls_per_sample; ++c) call(stream);
      }) / calls_per_sample);
  } else {
    const int calls = how == mode::graph ? calls_per_sample : 1;
    const graph replay(stream, [&] {
      for (int c = 0; c < calls; ++c) call(stream);
    });
    constexpr std::size_t flush_bytes = std::size_t{256} << 20;
    const buffer<char> other(how == mode::cold ? flush_bytes : 1);
    for (int i = 0; i < samples + 3; ++i)
      times.push_back(clock.once(
                          [&] {
                            if (how == mode::cold)
                              check(cudaMemsetAsync(other.data(), i, flush_bytes, stream), "flush");
                          },
                          [&] { replay.launch(stream); }) /
                      calls);
  }
  times.erase(times.begin(), times.begin() + 3);  // warm-up
  return median(std::move(times));
}

inline constexpr int copy_threads = 256;
inline constexpr int copy_unroll = 4;

/// `Unroll` 16-byte pieces a thread, all in flight at once.
template <int Unroll>
__global__ void __launch_bounds__(copy_threads)
    copy_pieces(const uint4* __restrict__ from, uint4* __restrict__ to) {
  const std::size_t first = std::size_t{blockIdx.x} * copy_threads * Unroll + threadIdx.x;
  uint4 pieces[Unroll];
#pragma unroll
  for (int i = 0; i < Unroll; ++i) pieces[i] = from[first + i * copy_threads];
#pragma unroll
  for (int i = 0; i < Unroll; ++i) to[first + i * copy_threads] = pieces[i];
}

/// Bytes a second, read plus written, of a copy far larger than the L2.
inline double copy_bandwidth() {
  constexpr std::size_t bytes = std::size_t{1} << 30;
  const buffer<char> from(bytes);
  const buffer<char> to(bytes);
  constexpr std::size_t per_block = sizeof(uint4) * copy_threads * copy_unroll;
  check(cudaMemset(from.data(), 1, bytes), "cudaMemset");
  const double seconds = seconds_of(mode::graph, [&](cudaStream_t stream) {
    copy_pieces<copy_unroll><<<bytes / per_block, copy_threads, 0, stream>>>(
        reinterpret_cast<const uint4*>(from.data()), reinterpret_cast<uint4*>(to.data()));
    check(cudaGetLastError(), "copy kernel");
  });
  return 2.0 * bytes / seconds;
}

}  // namespace winnow::bench
