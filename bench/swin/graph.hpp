// SPDX-License-Identifier: Apache-2.0
/// \file
/// CUDA graphs, and the events that time them.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "support/device_memory.hpp"

namespace winnow::swin {

class own_stream {
 public:
  own_stream() {
    support::check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                        "cudaStreamCreate");
  }
  own_stream(const own_stream&) = delete;
  own_stream& operator=(const own_stream&) = delete;
  ~own_stream() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class own_event {
 public:
  own_event() { support::check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  own_event(const own_event&) = delete;
  own_event& operator=(const own_event&) = delete;
  ~own_event() { cudaEventDestroy(event_); }
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// What `submit` puts into a stream, as a graph with a stream of its own.
class own_graph {
 public:
  explicit own_graph(const std::function<void(cudaStream_t)>& submit) {
    cudaGraph_t captured = nullptr;
    support::check_cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal),
                        "begin capture");
    submit(stream_.get());
    support::check_cuda(cudaStreamEndCapture(stream_.get(), &captured), "end capture");
    const cudaError_t error = cudaGraphInstantiate(&executable_, captured, 0);
    cudaGraphDestroy(captured);
    support::check_cuda(error, "cudaGraphInstantiate");
  }
  own_graph(const own_graph&) = delete;
  own_graph& operator=(const own_graph&) = delete;
  ~own_graph() { cudaGraphExecDestroy(executable_); }

  void launch() const {
    support::check_cuda(cudaGraphLaunch(executable_, stream_.get()), "cudaGraphLaunch");
  }
  void wait() const { support::check_cuda(cudaStreamSynchronize(stream_.get()), "a graph"); }
  [[nodiscard]] cudaStream_t stream() const { return stream_.get(); }

 private:
  own_stream stream_;
  cudaGraphExec_t executable_ = nullptr;
};

/// Times launches of graphs on the GPU.
class graph_timer {
 public:
  /// Milliseconds between events around one launch; waits for it.
  [[nodiscard]] double time(const own_graph& graph) const {
    support::check_cuda(cudaEventRecord(begin_.get(), graph.stream()), "cudaEventRecord");
    graph.launch();
    support::check_cuda(cudaEventRecord(end_.get(), graph.stream()), "cudaEventRecord");
    graph.wait();
    return milliseconds_between(begin_, end_);
  }
  static double milliseconds_between(const own_event& begin, const own_event& end) {
    float milliseconds = 0.0f;
    support::check_cuda(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()),
                        "cudaEventElapsedTime");
    return static_cast<double>(milliseconds);
  }

 private:
  own_event begin_, end_;
};

}  // namespace winnow::swin
