// SPDX-License-Identifier: Apache-2.0
#include "swin/latency.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>

namespace winnow::swin {
namespace {

using support::check_cuda;

class own_stream {
 public:
  own_stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
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
  own_event() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  own_event(const own_event&) = delete;
  own_event& operator=(const own_event&) = delete;
  ~own_event() { cudaEventDestroy(event_); }
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

double milliseconds_between(const own_event& begin, const own_event& end) {
  float milliseconds = 0.0f;
  check_cuda(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds);
}

/// A forward as a graph.
class forward_graph {
 public:
  forward_graph(backbone& network, const void* images, backbone::mode what,
                const backbone::stage_hook& after = {}) {
    cudaGraph_t captured = nullptr;
    check_cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal),
               "begin capture");
    network.forward(images, stream_.get(), what, after);
    check_cuda(cudaStreamEndCapture(stream_.get(), &captured), "end capture");
    const cudaError_t error = cudaGraphInstantiate(&executable_, captured, 0);
    cudaGraphDestroy(captured);
    check_cuda(error, "cudaGraphInstantiate");
  }
  forward_graph(const forward_graph&) = delete;
  forward_graph& operator=(const forward_graph&) = delete;
  ~forward_graph() { cudaGraphExecDestroy(executable_); }

  void launch() const {
    check_cuda(cudaGraphLaunch(executable_, stream_.get()), "cudaGraphLaunch");
  }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_.get()), "the forward"); }
  [[nodiscard]] cudaStream_t stream() const { return stream_.get(); }

 private:
  own_stream stream_;
  cudaGraphExec_t executable_ = nullptr;
};

template <class Once>
double repeated(const timing_plan& plan, Once&& once) {
  for (int i = 0; i < plan.warm_up; ++i) once();
  std::vector<double> times;
  for (int i = 0; i < plan.repeats; ++i) times.push_back(once());
  return middle_half(std::move(times));
}

double gpu_time(const forward_graph& graph, const timing_plan& plan) {
  const own_event begin, end;
  return repeated(plan, [&] {
    check_cuda(cudaEventRecord(begin.get(), graph.stream()), "cudaEventRecord");
    graph.launch();
    check_cuda(cudaEventRecord(end.get(), graph.stream()), "cudaEventRecord");
    graph.wait();
    return milliseconds_between(begin, end);
  });
}

double wall_time(const forward_graph& graph, const timing_plan& plan) {
  return repeated(plan, [&] {
    const auto begin = std::chrono::steady_clock::now();
    graph.launch();
    graph.wait();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
        .count();
  });
}

std::vector<double> stage_times(backbone& network, const void* images, const timing_plan& plan,
                                std::size_t marks) {
  const std::vector<own_event> events(marks + 1);
  const forward_graph graph(
      network, images, backbone::mode::complete, [&](int mark, cudaStream_t stream) {
        check_cuda(cudaEventRecordWithFlags(events[static_cast<std::size_t>(mark) + 1].get(),
                                            stream, cudaEventRecordExternal),
                   "cudaEventRecord");
      });
  std::vector<std::vector<double>> times(marks);
  for (int i = 0; i < plan.warm_up + plan.repeats; ++i) {
    check_cuda(cudaEventRecord(events[0].get(), graph.stream()), "cudaEventRecord");
    graph.launch();
    graph.wait();
    if (i < plan.warm_up) continue;
    for (std::size_t m = 0; m < marks; ++m)
      times[m].push_back(milliseconds_between(events[m], events[m + 1]));
  }
  std::vector<double> result;
  for (std::vector<double>& each : times) result.push_back(middle_half(std::move(each)));
  return result;
}

}  // namespace

double middle_half(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto quarter = static_cast<std::ptrdiff_t>(values.size() / 4);
  const auto first = values.begin() + quarter;
  const auto last = values.end() - quarter;
  return std::accumulate(first, last, 0.0) / static_cast<double>(last - first);
}

latency measure(backbone& network, const void* images, const timing_plan& plan) {
  latency result;
  {
    const forward_graph graph(network, images, backbone::mode::complete);
    result.wall = wall_time(graph, plan);
    result.gpu = gpu_time(graph, plan);
  }
  {
    const forward_graph graph(network, images, backbone::mode::given_rankings);
    result.choosing = result.gpu - gpu_time(graph, plan);
  }
  result.stages = stage_times(network, images, plan, network.stage_count());
  return result;
}

double measure_wall(backbone& network, const void* images, const timing_plan& plan) {
  return wall_time(forward_graph(network, images, backbone::mode::complete), plan);
}

}  // namespace winnow::swin
